-- Besides the shop's own: windows of other kinds that are dropped soon, so that their states reach a level; and rows of other writers.
SELECT millrace.create_continuous_aggregate('soak_recent', $$
	SELECT department, millrace.tumble(event_time, '10 seconds') AS window_start, count(*) AS n, avg(price) AS price, max(price) AS dearest, corr(price::float8, revenue::float8) AS corr
	FROM operations GROUP BY 1, 2$$, watermark => '20 seconds', retain => :'retain');
SELECT millrace.create_continuous_aggregate('soak_trend', $$
	SELECT brand, millrace.hop(event_time, '1 minute', '10 seconds') AS window_start, count(*) AS n, sum(revenue) AS revenue
	FROM operations GROUP BY 1, 2$$, watermark => '20 seconds', retain => :'retain');
SELECT millrace.create_continuous_aggregate('soak_visits', $$
	SELECT user_id, window_start, count(*) AS n, count(*) FILTER (WHERE event_type = 'purchase') AS purchases
	FROM (SELECT *, millrace.session(event_time, '10 seconds') OVER (PARTITION BY user_id ORDER BY event_time) AS window_start FROM operations_raw) s
	GROUP BY user_id, window_start$$, watermark => '20 seconds', retain => :'retain');
CREATE SEQUENCE direct_id START 5000000000;
CREATE TABLE direct (LIKE operations_raw);
