-- The average over the actions of each minute, then over the minutes of each hour; the busiest hour first.
-- Minutes and actions without an event have no row, so they do not count in the averages.
SELECT millrace.tumble(window_start, '1 hour') AS hour, avg(mean) AS mean
FROM (SELECT window_start, avg(n) AS mean FROM per_minute GROUP BY 1) minutes
GROUP BY 1 ORDER BY mean DESC, hour;
