-- A query that is run as it is, over the table, and kept continuously, over the batches.
SELECT action, millrace.tumble(at, '6 hours', timezone => 'Europe/Paris') AS window_start, count(*) AS n,
	min(at) AS first, max(at) AS last, avg(extract(minute FROM at)) AS mean,
	stddev_samp(extract(minute FROM at)::float8) AS deviation, corr(extract(second FROM at)::float8, extract(minute FROM at)::float8) AS corr
FROM events WHERE extract(second FROM at) < 50
GROUP BY 1, 2
