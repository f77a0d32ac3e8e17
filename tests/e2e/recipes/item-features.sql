-- What is sold most: the 5,000 products with the greatest quantity, of sales at a unit price of 1 or more, with their
-- department and category; equal quantities in the order of products.
CREATE VIEW item_features AS
	SELECT product, department, category
	FROM (SELECT product, sum(quantity) AS quantity FROM purchases WHERE quantity > 0 AND sales_value / quantity >= 1
		GROUP BY product ORDER BY quantity DESC, product LIMIT 5000) AS most
	JOIN products USING (product);

SELECT count(*) AS products, count(DISTINCT department) AS departments, count(DISTINCT category) AS categories
FROM item_features;
