-- Recommendations and an alert, when some events are there.  Run by the owner of the tables: psql -f model.sql
-- All or nothing, so that it can be run again after a failure.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
BEGIN;
-- A purchase says more than a view.  A tenth of what users have is held out: retrain serves a new version only if it does not do worse there.
SELECT version, users, items, ratings, metric, round(metric_value::numeric, 3) AS value FROM millrace.train_als('shop', $$
	SELECT user_id, product_id, CASE event_type WHEN 'purchase' THEN 5 WHEN 'cart' THEN 3 ELSE 1 END FROM operations_raw$$, rank => 32, holdout => 0.1);

-- Categories, so that a list has two products of each at most.
SELECT items, categories FROM millrace.set_item_features('shop', $$
	SELECT DISTINCT product_id, category_code FROM operations_raw WHERE category_code <> 'NaN'$$);

-- Each event is answered by five products for its user, in the transaction that stores it.
SELECT millrace.create_scorer('recommended', 'operations_raw', 'shop', 'user_id', 'product_id', k => 5, max_per_category => 2);

-- A rush: many events of a department in a minute.
SELECT millrace.create_alert('rush', $$
	SELECT department, window_start, sum(n) AS n, sum(revenue) AS revenue FROM operations_per_minute
	GROUP BY department, window_start HAVING sum(n) >= 50$$);

-- Upkeep and retraining, if pg_cron is here: the model each quarter of an hour, its categories and popularity each hour.
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron') AS has_cron \gset
\if :has_cron
	SELECT millrace.schedule('retrain', '*/15 * * * *', 'shop'), millrace.schedule('lists', name => 'shop'),
		millrace.schedule('maintain'), millrace.schedule('partitions'), millrace.schedule('retention'), millrace.schedule('runs');
\endif
COMMIT;
