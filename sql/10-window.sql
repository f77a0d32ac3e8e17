/* Windows of time, usable in any query. */
CREATE FUNCTION millrace.tumble(ts timestamptz, size interval, origin timestamptz DEFAULT NULL, timezone text DEFAULT NULL)
	RETURNS timestamptz
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_tumble';
COMMENT ON FUNCTION millrace.tumble(timestamptz, interval, timestamptz, text) IS
'Start of the tumbling window of the given size that holds ts: start <= ts < start + size.
size: days and smaller units, or months and years, not both.
origin: where a window starts; by default 2000-01-03 00:00, a Monday, or 2000-01-01 for months.
timezone: where days and months begin, daylight saving included; by default UTC.
If clocks are put back, longer windows go on, and those of up to an hour come twice; each ends where the next one starts.
NULL for a NULL ts; an infinite ts is returned as it is.';

CREATE FUNCTION millrace._hop_support(internal) RETURNS internal
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_hop_support';
COMMENT ON FUNCTION millrace._hop_support(internal) IS 'Internal: tells the planner how many windows hop returns';

CREATE FUNCTION millrace.hop(ts timestamptz, size interval, slide interval, origin timestamptz DEFAULT NULL,
	timezone text DEFAULT NULL) RETURNS SETOF timestamptz
	LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 36 SUPPORT millrace._hop_support AS 'MODULE_PATHNAME', 'mr_hop';
COMMENT ON FUNCTION millrace.hop(timestamptz, interval, interval, timestamptz, text) IS
'Starts of all sliding windows of the given size that hold ts: start <= ts < start + size, in ascending order.
slide: distance between starts; size must be a multiple of it, months of months, and at most 1,000,000 times as long.
origin, timezone: as for tumble.  Windows start where tumble(ts, slide, origin, timezone) does, and have size / slide of its windows.
One row with NULL for a NULL ts; one row with ts for an infinite one.';

CREATE FUNCTION millrace.session(ts timestamptz, gap interval) RETURNS timestamptz
	LANGUAGE c WINDOW IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_session';
COMMENT ON FUNCTION millrace.session(timestamptz, interval) IS
'Window function: start of the session that holds ts, used as session(ts, gap) OVER (PARTITION BY keys ORDER BY ts).
gap: a session ends when no event comes for longer than this, an event exactly gap after the last one belongs to it; days (of 24 hours) and smaller units.
NULL for a NULL ts; an infinite ts is a session of its own.';

CREATE FUNCTION millrace._session(first timestamptz, last timestamptz, gap interval) RETURNS timestamptz
	LANGUAGE c WINDOW IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_session_parts';
COMMENT ON FUNCTION millrace._session(timestamptz, timestamptz, interval) IS
'Internal: window function, ordered by first; start of the session to which a partial session from first to last belongs';

CREATE FUNCTION millrace._last_closed(closed_to timestamptz, size interval, slide interval, origin timestamptz, timezone text)
	RETURNS timestamptz LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_last_closed_start';
COMMENT ON FUNCTION millrace._last_closed(timestamptz, interval, interval, timestamptz, text) IS
'Internal: greatest start of a window that ended at or before closed_to, -infinity if closed_to is NULL; slide NULL: as tumble';

CREATE FUNCTION millrace._hop_last(window_start timestamptz, size interval, slide interval, origin timestamptz, timezone text)
	RETURNS timestamptz LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_hop_last';
COMMENT ON FUNCTION millrace._hop_last(timestamptz, interval, interval, timestamptz, text) IS 'Internal: start of the last pane of a sliding window';
CREATE FUNCTION millrace._hop_starts(state regclass, delta regclass, size interval, slide interval, origin timestamptz, timezone text)
	RETURNS SETOF timestamptz LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'mr_hop_starts';
COMMENT ON FUNCTION millrace._hop_starts(regclass, regclass, interval, interval, timestamptz, text) IS
'Internal: starts of all sliding windows that hold a pane in column window_start of state or delta, distinct and ascending, NULL last.
Skips from pane to pane in an index on state (window_start); delta, which may be NULL, is read whole.';

CREATE FUNCTION millrace.window_counts(source regclass, time_column name, size interval, slide interval DEFAULT NULL,
	by name[] DEFAULT '{}')
	RETURNS TABLE (window_start timestamptz, window_end timestamptz, key jsonb, count bigint)
	LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'mr_window_counts';
COMMENT ON FUNCTION millrace.window_counts(regclass, name, interval, interval, name[]) IS
'Rows of any table or view counted by windows of time.
time_column: of type timestamptz, timestamp or date; rows where it is NULL or infinite are not counted.
size: length of a window; slide: distance between starts of windows, size by default; size must be a multiple of it.
by: columns to count by; key holds their values, {} for none.';
