-- What the dashboard's first tab asks: the last hour, as a whole and by department.
SELECT coalesce(department, 'all') AS department, sum(n) FILTER (WHERE event_type = 'view') AS views, sum(n) FILTER (WHERE event_type = 'cart') AS carts,
	sum(n) FILTER (WHERE event_type = 'purchase') AS purchases, sum(revenue) AS revenue
FROM operations_per_minute WHERE window_start > now() - interval '1 hour'
GROUP BY ROLLUP (department) ORDER BY revenue DESC, department NULLS FIRST LIMIT 7;
