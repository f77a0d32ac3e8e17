-- Online variance of the counts: after each minute, of all minutes so far.  PostgreSQL goes through them once.
SELECT action, window_start, n, var_samp(n) OVER sofar AS variance
FROM per_minute
WINDOW sofar AS (PARTITION BY action ORDER BY window_start)
ORDER BY action, window_start;
