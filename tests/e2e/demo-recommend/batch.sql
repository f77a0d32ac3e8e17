-- One scored batch: the newest.
SELECT rows, round(ms::numeric) AS ms, streams->'recommended' AS recommended
FROM millrace.batches WHERE source = 'transactions'::regclass ORDER BY xid DESC LIMIT 1;

SELECT topic_offset AS "offset", household, product, category, items, (SELECT array_agg(round(s::numeric, 2)) FROM unnest(scores) AS s) AS scores,
	sources, precision_own AS own, precision_next AS next
FROM recommended WHERE is_last ORDER BY seq DESC LIMIT 5;

SELECT i.category, i.product, p.brand, i.department FROM recommended_latest AS r, unnest(r.items) WITH ORDINALITY AS l (product, rank)
	JOIN item_features AS i USING (product) JOIN products AS p USING (product)
WHERE r.household = (SELECT household FROM recommended WHERE is_last ORDER BY seq DESC LIMIT 1) ORDER BY rank;
