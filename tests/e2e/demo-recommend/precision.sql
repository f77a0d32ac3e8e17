-- Precision@5 so far, before and after the retraining: the part of a list that the household has bought by the end of the batch,
-- over the households of each batch; of the baselines for the same households at the same time.
WITH batches AS (
	SELECT xmin AS batch, max(topic_offset) AS last_offset FROM recommended GROUP BY xmin
), lists AS (
	SELECT scored_at >= (SELECT max(since) FROM baselines) AND (SELECT count(DISTINCT since) FROM baselines) > 1 AS is_after, r.household, r.precision_own, r.precision_next,
		b.last_offset, (SELECT max(since) FROM baselines WHERE since <= r.scored_at) AS since
	FROM recommended AS r JOIN batches AS b ON b.batch = r.xmin WHERE r.is_last
), first_bought AS MATERIALIZED (
	SELECT household, product, min(coalesce(topic_offset, -1)) AS at_offset FROM purchases
	WHERE product IN (SELECT unnest(items) FROM baselines) GROUP BY 1, 2
), judged AS (
	SELECT l.household, l.last_offset, b.name, count(f.product) / 5.0 AS "precision"
	FROM lists AS l JOIN baselines AS b ON b.since = l.since CROSS JOIN unnest(b.items) AS i (product)
	LEFT JOIN first_bought AS f ON f.household = l.household AND f.product = i.product AND f.at_offset <= l.last_offset
	GROUP BY 1, 2, 3
)
SELECT CASE WHEN is_after THEN 'after' ELSE 'before' END AS retrain, count(DISTINCT last_offset) AS batches, count(*) AS lists,
	round(avg(precision_own)::numeric, 4) AS "precision@5", round(avg(top."precision"), 4) AS "top_5", round(avg(random."precision"), 4) AS "random_5",
	round(avg(precision_next)::numeric, 4) AS "bought next"
FROM lists JOIN (SELECT * FROM judged WHERE name = 'top_5') AS top USING (household, last_offset)
	JOIN (SELECT * FROM judged WHERE name = 'random_5') AS random USING (household, last_offset)
GROUP BY is_after ORDER BY is_after;
