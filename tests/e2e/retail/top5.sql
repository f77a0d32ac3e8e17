SELECT coalesce(round(customer_id)::text, '(none)') AS customer, window_start::date AS day, total_cost
FROM customer_cost_per_day ORDER BY total_cost DESC, customer LIMIT 5;
