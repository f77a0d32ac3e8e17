/*
 * A shop with everything that Millrace has in use, created by the owner of the database.  Nothing depends on time of day
 * or chance, so that what a query returns before and after can be compared.
 */
CREATE TABLE sales (
	id bigint GENERATED ALWAYS AS IDENTITY,
	at timestamptz NOT NULL,
	customer bigint,
	product bigint,
	shop text,
	price numeric(10, 2),
	took interval,
	weight float8
) PARTITION BY RANGE (at);
CREATE TABLE cleaned (at timestamptz, shop text, price numeric);
CREATE SCHEMA "Other Schema";
CREATE TABLE "Other Schema"."Shop's" (shop text PRIMARY KEY, town text);
INSERT INTO "Other Schema"."Shop's" SELECT 's' || n, 'town ' || n % 2 FROM generate_series(0, 4) n;

SELECT millrace.create_source('sales', 'at', retention => '100 years');
SELECT millrace.ensure_partitions('sales', '2024-01-01', '2024-01-04');
CREATE FUNCTION sell(n_from int, n_to int, late interval = '0') RETURNS void LANGUAGE sql AS $$
	INSERT INTO sales (at, customer, product, shop, price, took, weight)
	SELECT '2024-01-01'::timestamptz + n * interval '20 seconds' - late, n % 53, (n * n / 11) % 41, 's' || n % 5,
		(n * 7 % 1000) / 100.0, n % 90 * interval '1 second', n % 17 / 3.0
	FROM generate_series(n_from, n_to) n
$$;
SELECT sell(1, 3000);

SELECT millrace.create_continuous_aggregate('per_minute', 'SELECT shop, millrace.tumble(at, ''10 minutes'') AS window_start, count(*) AS n, sum(price) AS revenue,
	sum(customer) AS customers, avg(product) AS product, var_samp(price) AS spread, stddev_pop(weight) AS weights, corr(weight, price) AS corr, regr_slope(weight, price) AS slope,
	min(shop) AS first, bool_or(price > 5) AS dear, bit_xor(product) AS bits, max(at) AS last, avg(price) FILTER (WHERE customer % 2 = 0) AS even
	FROM sales GROUP BY 1, 2', watermark => '10 minutes', retain => '100 years');
SELECT millrace.create_continuous_aggregate('durations', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, sum(took) AS took, avg(took) AS mean, max(took) AS longest
	FROM sales GROUP BY 1', watermark => '10 minutes', late_policy => 'divert');
SELECT millrace.create_continuous_aggregate('sliding', 'SELECT shop, millrace.hop(at, ''1 hour'', ''20 minutes'') AS window_start, count(*) AS n, avg(price) AS mean
	FROM sales GROUP BY 1, 2', watermark => '10 minutes', late_policy => 'drop');
SELECT millrace.create_continuous_aggregate('visits', 'SELECT customer, window_start, count(*) AS n, sum(price) AS revenue FROM (SELECT *,
	millrace.session(at, ''15 minutes'') OVER (PARTITION BY customer ORDER BY at) AS window_start FROM sales) s GROUP BY 1, 2', watermark => '10 minutes');
SELECT millrace.create_continuous_aggregate('per_town', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, d.town, count(*) AS n, sum(price) AS revenue
	FROM sales JOIN "Other Schema"."Shop''s" d USING (shop) GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('per_hour', 'SELECT shop, millrace.tumble(window_start, ''1 hour'') AS window_start, sum(n) AS n, sum(revenue) AS revenue
	FROM per_minute GROUP BY 1, 2');
SELECT millrace.create_pipe('clean', 'sales', 'INSERT INTO cleaned SELECT at, shop, price FROM new_rows WHERE price > 1');
SELECT millrace.create_alert('rush', 'SELECT window_start, shop, n FROM per_minute WHERE n >= 6');

SELECT millrace.train_als('shop', 'SELECT customer, product FROM sales', rank => 8, iterations => 4, holdout => 0.1, track_history => true);
SELECT millrace.set_item_features('shop', 'SELECT i, ''c'' || i % 7 FROM generate_series(0, 40) i');
SELECT millrace.retrain('shop', gate_tolerance => 1000);
SELECT millrace.train_als('texts', 'SELECT ''u'' || customer, ''p'' || product, price::float8 FROM sales', rank => 4, iterations => 3);
SELECT millrace.create_scorer('lists', 'sales', 'shop', 'customer', 'product');
SELECT millrace.fit_indexer('shops', 'SELECT shop FROM sales');
SELECT millrace.fit_scaler('prices', 'SELECT price, weight FROM sales');
SELECT millrace.train_kmeans('groups', 'SELECT millrace.scale(''prices'', ARRAY[price, weight]::float8[]), millrace.one_hot(millrace.index_of(''shops'', shop), 5) FROM sales', 3);

/* On the way: batches that are not folded, windows to be refreshed, rows that came late, recommendations, messages that were refused. */
SELECT sell(3001, 9000);
SELECT sell(500, 520);
SELECT sell(9001, 9010, '2 hours');
UPDATE sales SET price = price + 1 WHERE at < '2024-01-01 00:30';
DELETE FROM sales WHERE at BETWEEN '2024-01-01 12:00' AND '2024-01-01 12:05';
INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset) VALUES ('events', 'operations', 0, 4711);
INSERT INTO millrace.dead_letters (source, topic, partition, "offset", payload, stage, reason) VALUES ('events', 'operations', 0, 17, '\x7b', 'decode', 'not JSON');
