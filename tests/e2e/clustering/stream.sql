-- Another model, of all lines that there are, scaled; and a pipe that keeps which version each line got its cluster from.
SELECT version FROM millrace.fit_scaler('sizes', 'SELECT unit_price, quantity FROM features WHERE abs(quantity) < 1000 AND unit_price < 100');
SELECT version FROM millrace.train_kmeans('kinds', $$SELECT millrace.scale('sizes', ARRAY[unit_price, quantity]) AS sizes FROM features$$, 8);
CREATE TABLE kinds (invoice_date timestamptz, unit_price numeric, quantity int, version int, cluster int NOT NULL);
SELECT millrace.create_pipe('kinds', 'retail', $$
	INSERT INTO kinds
	SELECT invoice_date, unit_price, quantity, (SELECT active FROM millrace.model WHERE name = 'kinds'),
		millrace.kmeans_assign('kinds', millrace.scale('sizes', ARRAY[unit_price, quantity]))
	FROM new_rows$$);
