-- An alert when the counts of two actions in one minute differ by more than 20.
-- It looks at the minutes that a batch has changed, and reports each minute once: as a row of millrace.alerts, and to
-- LISTEN millrace.
SELECT millrace.create_alert('unbalanced', $$
	SELECT window_start, coalesce(sum(n) FILTER (WHERE action = 'Open'), 0) - coalesce(sum(n) FILTER (WHERE action = 'Close'), 0) AS difference
	FROM per_minute GROUP BY window_start
	HAVING abs(coalesce(sum(n) FILTER (WHERE action = 'Open'), 0) - coalesce(sum(n) FILTER (WHERE action = 'Close'), 0)) > 20$$);
