-- The same on every node and in the database that reads them all.
CREATE EXTENSION millrace;
CREATE TABLE events (id bigint NOT NULL, at timestamptz, customer text, item bigint, amount numeric(10,2), weight float8) PARTITION BY RANGE (at);
CREATE TABLE events_default PARTITION OF events DEFAULT;
SELECT millrace.create_source('events', 'at', '1 day');
SELECT millrace.create_continuous_aggregate('counts', $$SELECT item, millrace.tumble(at, '10 minutes') AS window_start, count(*) AS n, sum(amount) AS total, avg(amount) AS mean,
	min(customer) AS first, max(customer) AS last, stddev(amount) AS deviation, count(weight) AS weighed FROM events GROUP BY 1, 2 HAVING count(*) > 1$$, watermark => '1 hour');
SELECT millrace.create_continuous_aggregate('trend', $$SELECT millrace.hop(at, '1 hour', '20 minutes') AS window_start, item, count(*) AS n, sum(amount) AS total FROM events GROUP BY 1, 2$$, watermark => '1 hour');
SELECT millrace.create_continuous_aggregate('visits', $$SELECT customer, window_start, count(*) AS n, sum(amount) AS spent, max(at) AS until FROM (SELECT *, millrace.session(at, '3 minutes')
	OVER (PARTITION BY customer ORDER BY at) AS window_start FROM events) s GROUP BY 1, 2$$, watermark => '1 hour');
SELECT millrace.create_continuous_aggregate('per_day', $$SELECT millrace.tumble(window_start, '1 day', timezone => 'Europe/Paris') AS day, sum(n) AS n, max(n) AS most, count(DISTINCT item) AS items FROM counts GROUP BY 1$$);
SELECT millrace.share_aggregate(a) FROM unnest('{counts,trend,visits}'::text[]) a;
