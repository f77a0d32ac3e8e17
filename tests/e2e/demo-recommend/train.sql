-- Trained on 80 % of the first half (another seed divides anew), and judged on both parts: precision of the five best, which may be bought again.
SET client_min_messages = warning;
SELECT version, users, items, ratings, round(seconds::numeric, 1) AS seconds
FROM millrace.train_als('journey', 'SELECT household, product FROM purchases WHERE millrace.split(row, 0.8, seed => 2)');

SELECT part, round(value::numeric, 4) AS "precision@5" FROM (VALUES ('train', ''), ('validation', 'NOT ')) AS parts (part, sign),
	millrace.evaluate('journey', format('SELECT household, product FROM purchases WHERE %smillrace.split(row, 0.8, seed => 2)', sign), 5, exclude_seen => false)
WHERE metric = 'precision';

-- Then on all of it: that version serves.
SELECT version, users, items, ratings, round(seconds::numeric, 1) AS seconds
FROM millrace.train_als('journey', 'SELECT household, product FROM purchases');
SELECT items AS "items with a category", categories FROM millrace.set_item_features('journey', 'SELECT product, category FROM item_features');

SELECT name, array_agg(item_id ORDER BY rank) AS items, array_agg(category ORDER BY rank) AS categories
FROM unnest('{top_5,random_5}'::text[]) AS name, millrace.baseline('journey', name) GROUP BY name ORDER BY name DESC;
