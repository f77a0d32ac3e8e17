-- A moving average over the last 30 minutes for each action.  RANGE counts minutes, not rows, so gaps do no harm;
-- it takes this minute and what began up to 30 minutes before it.
SELECT action, window_start, n, avg(n) OVER last AS mean
FROM per_minute
WINDOW last AS (PARTITION BY action ORDER BY window_start RANGE '30 minutes' PRECEDING)
ORDER BY action, window_start;
