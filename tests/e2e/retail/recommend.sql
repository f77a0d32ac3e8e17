-- Train on half of the pairs (customer, item), compare with popularity on the other half, then train on all.
SET client_min_messages = warning;
SELECT version, users, items, ratings, round(seconds::numeric, 1) AS seconds
FROM millrace.train_als('half', $$SELECT customer, item FROM purchases WHERE millrace.split(customer || ' ' || item, 0.5)$$);

SELECT m.metric, round(m.value::numeric, 4) AS als, round(p.value::numeric, 4) AS popularity
FROM millrace.evaluate('half', $$SELECT customer, item FROM purchases WHERE NOT millrace.split(customer || ' ' || item, 0.5)$$, 5) m
JOIN millrace.evaluate('half', $$SELECT customer, item FROM purchases WHERE NOT millrace.split(customer || ' ' || item, 0.5)$$, 5, method => 'baseline') p USING (metric)
WHERE m.metric IN ('precision', 'recall', 'ndcg');

SELECT version, users, items, ratings, round(seconds::numeric, 1) AS seconds
FROM millrace.train_als('shop', 'SELECT customer, item FROM purchases');

\echo The last purchases of customer 17850 …
SELECT p.item, i.description, max(p.purchased_at)::date AS day
FROM purchases p JOIN items i USING (item) WHERE p.customer = 17850 GROUP BY 1, 2 ORDER BY day DESC, item LIMIT 5;
\echo … and what to recommend:
SELECT r.rank, r.item, i.description, round(r.score::numeric, 3) AS score, r.source
FROM millrace.recommend_top_k('shop', 17850, 5) r LEFT JOIN items i USING (item) ORDER BY r.rank;
