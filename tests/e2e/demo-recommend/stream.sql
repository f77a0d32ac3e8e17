-- What happens to the purchases that the topic brings: they are stored as they come, those of products that are recommended
-- become known to the model, and each is answered by five recommendations, all in the transaction of the batch.
SET client_min_messages = warning;
CREATE TABLE transactions (
	row bigint,
	household int,
	basket bigint,
	product int,
	quantity int,
	sales_value numeric,
	at timestamptz NOT NULL,
	topic_offset bigint
) PARTITION BY RANGE (at);
SELECT millrace.create_source('transactions', 'at', '1 month');
SELECT millrace.create_pipe('purchases', 'transactions', $$
	INSERT INTO purchases
	SELECT n.row, n.household, n.product, n.quantity, n.at, n.topic_offset FROM new_rows AS n JOIN item_features USING (product)$$);
SELECT millrace.create_scorer('recommended', 'transactions', 'journey', 'household', 'product');

-- The baselines as they were when, to be compared with what was recommended.
CREATE TABLE baselines AS
	SELECT statement_timestamp() AS since, name, array_agg(item_id ORDER BY rank) AS items
	FROM unnest('{top_5,random_5}'::text[]) AS name, millrace.baseline('journey', name) GROUP BY name;
