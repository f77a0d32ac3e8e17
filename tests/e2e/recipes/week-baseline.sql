-- A baseline of the last seven days, kept as a continuous aggregate: what is sold each day is kept by the batches
-- themselves, and reading it again costs a look at seven days' counts, however many purchases there are.
SELECT millrace.create_continuous_aggregate('sold', $$
	SELECT product, millrace.tumble(at, '1 day') AS window_start, count(*) AS n FROM purchases GROUP BY 1, 2$$);

SELECT millrace.set_baseline('shop', $$
	SELECT product, sum(n) FROM sold WHERE window_start > (SELECT max(window_start) FROM sold) - interval '7 days' GROUP BY product$$,
	name => 'week');

-- From then on, by pg_cron for one:
--     SELECT cron.schedule('lists', '*/5 * * * *', $$SELECT millrace.refresh_lists('shop')$$);
SELECT rank, item_id, score FROM millrace.baseline('shop', 'week') WHERE rank <= 5;
