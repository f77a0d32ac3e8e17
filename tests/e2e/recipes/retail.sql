-- Sales lines of a shop, from a file for each day.
CREATE TABLE retail (
	invoice_no text,
	stock_code text,
	quantity int,
	invoice_date timestamptz NOT NULL,
	unit_price numeric,
	country text
) PARTITION BY RANGE (invoice_date);
SELECT millrace.create_source('retail', 'invoice_date', '1 month');
