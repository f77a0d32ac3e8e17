-- All purchases of the data set, cleaned, and divided by a hash of their number: one half is known, the other will be streamed.
-- psql -v data=FOLDER -f load.sql
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;

CREATE TABLE products (product int PRIMARY KEY, department text, brand text, category text);
\copy products FROM PROGRAM 'cat "$DEMO_DATA/products.csv"' CSV
CREATE TABLE raw (row bigint, household int, basket bigint, product int, quantity int, sales_value numeric, at timestamptz);
\copy raw FROM PROGRAM 'cat "$DEMO_DATA/transactions.csv"' CSV

SELECT count(*) AS "rows before cleaning", count(*) FILTER (WHERE quantity = 0) AS "zero quantity",
	count(*) FILTER (WHERE sales_value = 0) AS "zero sales value",
	count(*) FILTER (WHERE quantity > 0 AND sales_value > 0) AS "rows after cleaning"
FROM raw;
DELETE FROM raw WHERE quantity = 0 OR sales_value = 0;

-- The products that are recommended: the 5,000 with the greatest quantity, of sales at a unit price of 1 or more.
CREATE TABLE item_features AS
	SELECT product, department, category
	FROM (SELECT product, sum(quantity) AS quantity FROM raw WHERE sales_value / quantity >= 1
		GROUP BY product ORDER BY quantity DESC, product LIMIT 5000) AS most
	JOIN products USING (product);
ALTER TABLE item_features ADD PRIMARY KEY (product);
SELECT count(*) AS products, count(DISTINCT department) AS departments, count(DISTINCT category) AS categories FROM item_features;

-- What households have bought of them: the first half now, the other as it comes.
CREATE TABLE purchases (row bigint, household int, product int, quantity int, at timestamptz, topic_offset bigint);
INSERT INTO purchases SELECT row, household, product, quantity, at FROM raw JOIN item_features USING (product) WHERE millrace.split(row, 0.5);
CREATE INDEX ON purchases (household);
CREATE TABLE to_stream AS SELECT * FROM raw WHERE NOT millrace.split(row, 0.5);
ANALYZE;
SELECT (SELECT count(*) FROM raw WHERE millrace.split(row, 0.5)) AS "first half", (SELECT count(*) FROM purchases) AS "of these products",
	(SELECT count(*) FROM to_stream) AS "other half";
