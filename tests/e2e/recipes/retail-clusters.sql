-- Kinds of sales lines by price, quantity and day of week, learnt from those before July 2011; then each line that comes gets
-- its cluster in the transaction that stores it.  With Spark: StringIndexer, OneHotEncoder, VectorAssembler, KMeans.
CREATE VIEW lines AS
	SELECT invoice_no, stock_code, invoice_date, coalesce(unit_price, 0) AS unit_price, coalesce(quantity, 0) AS quantity,
		to_char(invoice_date AT TIME ZONE 'UTC', 'FMDay') AS day
	FROM retail;
SELECT rows FROM millrace.fit_indexer('day', $$SELECT day FROM lines WHERE invoice_date < '2011-07-01'$$);
SELECT index, value, count FROM millrace.index_label WHERE model = 'day' ORDER BY index;

CREATE VIEW features AS
	SELECT *, millrace.one_hot(millrace.index_of('day', day), millrace.index_size('day')) AS days FROM lines;
SELECT rows, round(loss) AS cost
FROM millrace.train_kmeans('lines', $$SELECT unit_price, quantity, days FROM features WHERE invoice_date < '2011-07-01'$$, 20);

-- Rounding is to fewer digits than float8 has, so that the last of them, which depend on the machine, do not show.
SELECT cluster, size, round(cost::numeric) AS cost, round(center[1]::numeric, 3) AS unit_price, round(center[2]::numeric, 3) AS quantity,
	ARRAY(SELECT round(share::numeric, 4) FROM unnest(center[3:]) AS share) AS days
FROM millrace.cluster_centers('lines') ORDER BY cluster;

CREATE TABLE clustered (invoice_no text, stock_code text, invoice_date timestamptz, cluster int NOT NULL);
SELECT millrace.create_pipe('clusters', 'retail', $$
	INSERT INTO clustered
	SELECT invoice_no, stock_code, invoice_date, millrace.kmeans_assign('lines', ARRAY[coalesce(unit_price, 0), coalesce(quantity, 0)]
		|| millrace.one_hot(millrace.index_of('day', to_char(invoice_date AT TIME ZONE 'UTC', 'FMDay')), millrace.index_size('day')))
	FROM new_rows$$);
