-- The tables of the demo, and what is kept up to date from their batches.
CREATE EXTENSION millrace;

-- Raw events, as they stand in the files: CustomerID comes as 17450.0 and may be missing.
CREATE TABLE online_retail (
	invoice_no text,
	stock_code text,
	description text,
	quantity int,
	invoice_date timestamptz NOT NULL,
	unit_price numeric,
	customer_id numeric,
	country text
) PARTITION BY RANGE (invoice_date);
SELECT millrace.create_source('online_retail', 'invoice_date', '1 month');

-- Cleaned purchases, filled in the same transactions.
CREATE TABLE purchases (customer bigint NOT NULL, item text NOT NULL, quantity int NOT NULL, amount numeric NOT NULL, purchased_at timestamptz NOT NULL);
CREATE INDEX ON purchases (customer);
SELECT millrace.create_pipe('purchases', 'online_retail', $$
	INSERT INTO purchases
	SELECT customer_id::bigint, stock_code, quantity, quantity * unit_price, invoice_date
	FROM new_rows WHERE customer_id IS NOT NULL AND quantity > 0$$);

CREATE TABLE items (item text PRIMARY KEY, description text NOT NULL);
SELECT millrace.create_pipe('items', 'online_retail', $$
	INSERT INTO items
	SELECT DISTINCT ON (stock_code) stock_code, description FROM new_rows
	WHERE stock_code IS NOT NULL AND description IS NOT NULL AND customer_id IS NOT NULL
	ON CONFLICT DO NOTHING$$);

-- Cost per customer and day, over the raw table.
SELECT millrace.create_continuous_aggregate('customer_cost_per_day', $$
	SELECT customer_id, millrace.tumble(invoice_date, '1 day') AS window_start, sum(unit_price * quantity) AS total_cost, count(*) AS lines
	FROM online_retail GROUP BY 1, 2$$);
