/* Millrace over those tables; no INSERT, UPDATE or DELETE of theirs. */
SET search_path = "Verkauf";
SELECT millrace.create_source('sales', 'at', partition_interval => '1 day');
SELECT millrace.create_source('plain', 'at');
SELECT millrace.create_continuous_aggregate('hours', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, product % 3 AS kind, count(*), sum(price), avg(price), var_samp(price), sum(took) AS took, avg(took) AS mean
	FROM sales GROUP BY 1, 2', watermark => '10 minutes');
SELECT millrace.create_continuous_aggregate('sliding', 'SELECT millrace.hop(at, ''3 hours'', ''1 hour'') AS window_start, count(*), max(price) FROM sales GROUP BY 1', with_data => false);
CALL millrace.backfill('sliding');
SELECT millrace.create_continuous_aggregate('visits', 'SELECT customer, window_start, count(*) FROM (SELECT *, millrace.session(at, ''15 minutes'') OVER (PARTITION BY customer ORDER BY at) AS window_start
	FROM plain) s GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('days', 'SELECT millrace.tumble(window_start, ''1 day'') AS window_start, sum(count) AS n FROM hours GROUP BY 1');
SELECT millrace.create_alert('rush', 'SELECT window_start, kind, count FROM hours WHERE count > 5');
SELECT users, items, ratings FROM millrace.train_als('m', 'SELECT customer, product FROM sales', rank => 8, iterations => 4, track_history => true);
SELECT millrace.set_item_features('m', 'SELECT i, ''c'' || i % 7 FROM generate_series(0, 40) i');
SELECT millrace.create_scorer('lists', 'sales', 'm', 'customer', 'product');
SELECT rows, iterations FROM millrace.train_kmeans('groups', 'SELECT price, product FROM sales', 4);
SELECT rows FROM millrace.fit_indexer('index', 'SELECT product FROM sales');
