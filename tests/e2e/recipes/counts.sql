-- Counts by action: a minute, an hour and a day, each kept from the one before.
-- With a watermark of ten minutes a window is final when events ten minutes younger than its end have arrived.
CREATE TABLE events (at timestamptz NOT NULL, action text NOT NULL) PARTITION BY RANGE (at);
SELECT millrace.create_source('events', 'at', '1 day');

SELECT millrace.create_continuous_aggregate('per_minute', $$
	SELECT action, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n
	FROM events GROUP BY 1, 2$$, watermark => '10 minutes');

SELECT millrace.create_continuous_aggregate('per_hour', $$
	SELECT action, millrace.tumble(window_start, '1 hour') AS window_start, sum(n) AS n
	FROM per_minute GROUP BY 1, 2$$);

SELECT millrace.create_continuous_aggregate('per_day', $$
	SELECT action, millrace.tumble(window_start, '1 day') AS window_start, sum(n) AS n
	FROM per_hour GROUP BY 1, 2$$);
