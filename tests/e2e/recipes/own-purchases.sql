-- What each household has ever bought: the distinct products, one row a household.
-- A pipe keeps the pairs, so that a look at one household reads its own products and not all it ever bought of them; the
-- view puts them together.  Pairs from before are inserted by hand.
CREATE TABLE own_purchase (household int, product int, PRIMARY KEY (household, product));
SELECT millrace.create_pipe('own_purchase', 'purchases', $$
	INSERT INTO own_purchase SELECT DISTINCT household, product FROM new_rows ON CONFLICT DO NOTHING$$);
INSERT INTO own_purchase SELECT DISTINCT household, product FROM purchases ON CONFLICT DO NOTHING;

CREATE VIEW own_purchases AS
	SELECT household, array_agg(product ORDER BY product) AS products FROM own_purchase GROUP BY household;
