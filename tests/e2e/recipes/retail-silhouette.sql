-- How well the clusters fit the lines that came since, and how many of these are in each.
SELECT count(*) AS rows, round(millrace.kmeans_cost('lines', $$SELECT unit_price, quantity, days FROM features WHERE invoice_date >= '2011-07-01'$$)) AS cost,
	round(millrace.silhouette('lines', $$SELECT unit_price, quantity, days FROM features WHERE invoice_date >= '2011-07-01'$$)::numeric, 6) AS silhouette
FROM clustered;
SELECT cluster, count(*) AS lines FROM clustered GROUP BY 1 ORDER BY 1;
