-- Cost for each customer and day, from files of sales lines; CustomerID comes as 17450.0 and may be missing.
CREATE TABLE sales (
	customer numeric,
	quantity int,
	price numeric,
	sold timestamptz NOT NULL
) PARTITION BY RANGE (sold);
SELECT millrace.create_source('sales', 'sold', '1 month');

SELECT millrace.create_continuous_aggregate('cost_per_day', $$
	SELECT customer, millrace.tumble(sold, '1 day') AS window_start, sum(price * quantity) AS cost
	FROM sales GROUP BY 1, 2$$);
