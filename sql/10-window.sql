/* Windows of time, usable in any query. */
CREATE FUNCTION millrace.tumble(ts timestamptz, size interval, origin timestamptz DEFAULT NULL, timezone text DEFAULT NULL)
	RETURNS timestamptz
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_tumble';
COMMENT ON FUNCTION millrace.tumble(timestamptz, interval, timestamptz, text) IS
'Start of the tumbling window of the given size that holds ts: start <= ts < start + size.
size: days and smaller units, or months and years, not both.
origin: where a window starts; by default 2000-01-03 00:00, a Monday, or 2000-01-01 for months.
timezone: where days and months begin, daylight saving included; by default UTC.
NULL for a NULL ts; an infinite ts is returned as it is.';

CREATE FUNCTION millrace.window_counts(source regclass, time_column name, size interval, slide interval DEFAULT NULL,
	by name[] DEFAULT '{}')
	RETURNS TABLE (window_start timestamptz, window_end timestamptz, key jsonb, count bigint)
	LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'mr_window_counts';
COMMENT ON FUNCTION millrace.window_counts(regclass, name, interval, interval, name[]) IS
'Rows of any table or view counted by windows of time.
time_column: of type timestamptz, timestamp or date; rows where it is NULL or infinite are not counted.
size: length of a window; slide: distance between starts of windows, size by default; size must be a multiple of it.
by: columns to count by; key holds their values, {} for none.';
