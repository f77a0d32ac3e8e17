-- Precision@5 so far, before and after the retraining, over the households of each batch; of the baselines for the same
-- households at the same time.  Own: the part of a list that the household has bought by the end of the batch.  Next: the part of
-- its last list before the batch that it buys in the batch.
WITH batches AS (
	SELECT xmin::text::bigint AS batch, max(topic_offset) AS last_offset FROM recommended GROUP BY xmin
), lists AS (
	SELECT b.batch, b.last_offset, r.household, r.precision_own, r.precision_next, (SELECT max(since) FROM baselines WHERE since <= r.scored_at) AS since
	FROM recommended AS r JOIN batches AS b ON b.batch = r.xmin::text::bigint WHERE r.is_last
), first_bought AS MATERIALIZED (
	SELECT household, product, min(coalesce(topic_offset, -1)) AS at_offset FROM purchases
	WHERE product IN (SELECT unnest(items) FROM baselines) GROUP BY 1, 2
), bought AS MATERIALIZED (
	SELECT DISTINCT xmin::text::bigint AS batch, household, product FROM recommended WHERE product IN (SELECT unnest(items) FROM baselines)
), judged AS (
	SELECT l.batch, l.household, b.name, count(f.product) / 5.0 AS own, count(n.product) / 5.0 AS next
	FROM lists AS l JOIN baselines AS b ON b.since = l.since CROSS JOIN unnest(b.items) AS i (product)
	LEFT JOIN first_bought AS f ON f.household = l.household AND f.product = i.product AND f.at_offset <= l.last_offset
	LEFT JOIN bought AS n ON n.batch = l.batch AND n.household = l.household AND n.product = i.product
	GROUP BY 1, 2, 3
)
SELECT CASE since WHEN (SELECT min(since) FROM baselines) THEN 'before' ELSE 'after' END AS retrain, count(DISTINCT batch) AS batches, count(*) AS lists,
	round(avg(precision_own)::numeric, 4) AS own, round(avg(top.own), 4) AS "top_5", round(avg(random.own), 4) AS "random_5",
	round(avg(precision_next)::numeric, 4) AS next, round(avg(top.next) FILTER (WHERE precision_next IS NOT NULL), 4) AS "top_5 next",
	round(avg(random.next) FILTER (WHERE precision_next IS NOT NULL), 4) AS "random_5 next"
FROM lists JOIN (SELECT * FROM judged WHERE name = 'top_5') AS top USING (batch, household)
	JOIN (SELECT * FROM judged WHERE name = 'random_5') AS random USING (batch, household)
GROUP BY since ORDER BY since;
