-- The five largest; they are right after every file.
SELECT coalesce(round(customer)::text, '(none)') AS customer, window_start::date AS day, cost
FROM cost_per_day ORDER BY cost DESC, customer LIMIT 5;
