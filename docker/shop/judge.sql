-- How good the recommendations are: a model of the first 80 % of the events, judged on the others by precision of the five best
-- products that are new to a user; beside the most popular ones.  The model that serves is not touched.
SET client_min_messages = warning;
SELECT version AS tried, users, ratings FROM millrace.train_als('shop_trial', $$
	SELECT user_id, product_id, CASE event_type WHEN 'purchase' THEN 5 WHEN 'cart' THEN 3 ELSE 1 END FROM operations_raw
	WHERE id < (SELECT percentile_disc(0.8) WITHIN GROUP (ORDER BY id) FROM operations_raw)$$, rank => 32, track_history => false);
SELECT method AS recommended_by, round(value::numeric, 4) AS precision_at_5
FROM unnest('{model,baseline}'::text[]) AS method, millrace.evaluate('shop_trial', $$
	SELECT user_id, product_id FROM operations_raw
	WHERE id >= (SELECT percentile_disc(0.8) WITHIN GROUP (ORDER BY id) FROM operations_raw)$$, k => 5, method => method)
WHERE metric = 'precision';
SELECT millrace.drop_model('shop_trial');
