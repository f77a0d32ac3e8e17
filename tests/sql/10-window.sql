BEGIN;
SELECT plan(103);

-- tumble: fixed sizes, in UTC
SELECT is(millrace.tumble('2024-03-10 10:37:12.5+00', '1 minute'), '2024-03-10 10:37:00+00'::timestamptz, 'minute');
SELECT is(millrace.tumble('2024-03-10 10:37:12+00', '1 day'), '2024-03-10 00:00:00+00'::timestamptz, 'day');
SELECT is(millrace.tumble('2024-03-13 10:37:12+00', '7 days'), '2024-03-11 00:00:00+00'::timestamptz, 'a week starts on Monday');
SELECT is(millrace.tumble('1969-12-31 23:59:59.999999+00', '1 hour'), '1969-12-31 23:00:00+00'::timestamptz, 'before 1970');
SELECT is(millrace.tumble('2024-03-10 10:00:00+00', '1 hour'), '2024-03-10 10:00:00+00'::timestamptz, 'a start is in its own window');
SELECT is(millrace.tumble('2024-03-10 10:37:00+00', '1 hour', '2020-01-01 00:15+00'), '2024-03-10 10:15:00+00'::timestamptz, 'origin');
SELECT is(millrace.tumble('2024-03-10 10:05:00+00', '1 hour', '2030-01-01 00:15+00'), '2024-03-10 09:15:00+00'::timestamptz, 'origin in the future');
SELECT is(count(*), 0::bigint, 'equal to date_bin on 1,000 times')
	FROM (SELECT '1990-01-01 UTC'::timestamptz + i * interval '11 days 03:17:29.123457' AS ts FROM generate_series(1, 1000) i) t
	WHERE millrace.tumble(ts, '17 minutes') <> date_bin('17 minutes', ts, '2000-01-03 UTC');

-- months and zones
SELECT is(millrace.tumble('2024-02-29 23:00+00', '1 month'), '2024-02-01 00:00+00'::timestamptz, 'month');
SELECT is(millrace.tumble('2024-05-15 00:00+00', '3 months'), '2024-04-01 00:00+00'::timestamptz, 'quarter');
SELECT is(millrace.tumble('1999-12-31 00:00+00', '1 year'), '1999-01-01 00:00+00'::timestamptz, 'year before the origin');
SELECT is(millrace.tumble('2024-03-14 00:00+00', '1 month', '2020-01-15 00:00+00'), '2024-02-15 00:00+00'::timestamptz, 'month from the 15th');
SELECT is(millrace.tumble('2024-03-31 12:00+00', '1 day', timezone => 'Europe/Paris'), '2024-03-30 23:00+00'::timestamptz, 'day of 23 hours');
SELECT is(millrace.tumble('2024-03-31 22:30+00', '1 day', timezone => 'Europe/Paris'), '2024-03-31 22:00+00'::timestamptz, 'day after daylight saving began');
SELECT is(millrace.tumble('2024-10-27 00:30+00', '1 hour', timezone => 'Europe/Paris'), '2024-10-27 00:00+00'::timestamptz, 'the hour shown twice, first');
SELECT is(millrace.tumble('2024-10-27 01:30+00', '1 hour', timezone => 'Europe/Paris'), '2024-10-27 01:00+00'::timestamptz, 'the hour shown twice, second');
SELECT is(millrace.tumble('2024-07-01 00:00+00', '1 month', timezone => 'America/New_York'), '2024-06-01 04:00+00'::timestamptz, 'month in a zone');
SELECT is(millrace.tumble('2023-11-05 00:30-04', '1 day', timezone => 'America/Havana'), '2023-11-05 00:00-04'::timestamptz, 'a day whose midnight is shown twice, first');
SELECT is(millrace.tumble('2023-11-05 15:00-05', '1 day', timezone => 'America/Havana'), '2023-11-05 00:00-04'::timestamptz, 'is one day');
SELECT is(millrace.tumble('2024-10-27 00:30+00', '2 hours', timezone => 'Europe/Paris'), '2024-10-27 00:00+00'::timestamptz, 'two hours that begin with the hour shown twice');
SELECT is(millrace.tumble('2024-10-27 01:30+00', '2 hours', timezone => 'Europe/Paris'), '2024-10-27 00:00+00'::timestamptz, 'are one window');

-- NULL, infinite, bad input
SELECT is(millrace.tumble(NULL, '1 hour'), NULL, 'NULL time');
SELECT is(millrace.tumble(now(), NULL), NULL, 'NULL size');
SELECT is(millrace.tumble('infinity', '1 hour'), 'infinity'::timestamptz, 'infinity');
SELECT throws_ok($$SELECT millrace.tumble(now(), '0')$$, '22023', 'window size "00:00:00" must be positive', 'zero size');
SELECT throws_ok($$SELECT millrace.tumble(now(), '-1 hour')$$, '22023', 'window size "-01:00:00" must be positive', 'negative size');
SELECT throws_ok($$SELECT millrace.tumble(now(), '1 month 1 day')$$, '22023', 'window size "1 mon 1 day" mixes months with smaller units', 'mixed units');
SELECT throws_ok($$SELECT millrace.tumble(now(), '1 hour', 'infinity')$$, '22023', 'window origin must be finite', 'infinite origin');
SELECT throws_ok($$SELECT millrace.tumble(now(), '1 hour', timezone => 'Mars/Olympus')$$, '22023', 'time zone "Mars/Olympus" not recognized', 'unknown zone');
SELECT throws_ok($$SELECT millrace.tumble('4714-11-24 00:00+00 BC', '1 year')$$, '22008', NULL, 'out of range');

-- tumble in zones, against PostgreSQL's own calendar
CREATE TABLE moments (ts timestamptz);
INSERT INTO moments SELECT start + i * step FROM (VALUES
		('1900-01-01 00:00+00'::timestamptz, interval '61 days 05:17:23.123457', 1500), -- 250 years
		('2024-03-30 00:00+00', '13 minutes', 300), ('2024-10-26 00:00+00', '13 minutes', 300), -- Paris: both changes
		('2017-10-14 12:00+00', '13 minutes', 200), ('2018-02-17 12:00+00', '13 minutes', 200), -- Sao Paulo: midnight skipped, then 23:00 twice
		('2011-12-29 00:00+00', '13 minutes', 300), -- Apia: no 30 December
		('2024-04-06 00:00+00', '13 minutes', 200), ('2024-10-05 00:00+00', '13 minutes', 200)) v(start, step, n), -- Lord Howe: half an hour
	LATERAL generate_series(1, n) i;
SELECT is_empty($$SELECT zone, unit, ts FROM moments, unnest('{Europe/Paris,America/Sao_Paulo,Asia/Kathmandu,America/New_York,Australia/Lord_Howe,Africa/Casablanca,Pacific/Apia,EST,<-03>+3,UTC}'::text[]) zone,
		unnest('{hour,day,week,month,year}'::text[]) unit
	WHERE millrace.tumble(ts, ('1 ' || unit)::interval, timezone => zone) <> date_trunc(unit, ts, zone) AND (zone, unit) <> ('Australia/Lord_Howe', 'hour')$$, 'equal to date_trunc in ten zones');
SELECT is_empty($$SELECT zone, ts FROM moments, unnest('{MSK,IST,PST,-3}'::text[]) zone
	WHERE millrace.tumble(ts, '1 day', timezone => zone) AT TIME ZONE zone <> date_trunc('day', ts AT TIME ZONE zone)$$, 'abbreviations are those of AT TIME ZONE');
SELECT is(millrace.tumble('9999-07-01 12:00+00', '1 day', timezone => 'Europe/Paris'), '9999-06-30 22:00+00'::timestamptz, 'daylight saving in a far year');
SELECT is(millrace.tumble('2024-03-31 01:10+00', '2 hours', '2024-01-01 01:30+00', 'Europe/Paris'), '2024-03-31 01:00+00'::timestamptz, 'a start that clocks skip is the moment at which they do');
SELECT is(millrace.tumble('2024-10-27 01:10+00', '90 minutes', '2024-10-26 23:00+00', 'Europe/Paris'), '2024-10-27 00:30+00'::timestamptz, 'clocks that are put back do not go back to the window before');

SELECT is(millrace.tumble('2024-04-06 15:10+00', '1 hour', timezone => 'Australia/Lord_Howe'), '2024-04-06 14:00+00'::timestamptz, 'an hour during which clocks are put back by half an hour');
SELECT results_eq($$SELECT millrace.hop('2024-04-06 15:40+00', '2 hours', '1 hour', timezone => 'Australia/Lord_Howe')$$, $$VALUES ('2024-04-06 14:00+00'::timestamptz), ('2024-04-06 15:30+00')$$, '… ends where the next one starts');
SELECT is(millrace.tumble('2024-10-27 02:10+00', '2 hours', '2024-01-01 00:00+00', 'Europe/Paris'), '2024-10-27 02:00+00'::timestamptz, 'a window that starts when the hour has been shown twice');

-- Panes of many kinds: from, to, n as in windows of n panes; windows by brute force
CREATE TABLE kinds (id int GENERATED ALWAYS AS IDENTITY, slide interval, n int, origin timestamptz, zone text, from_time timestamptz, to_time timestamptz);
INSERT INTO kinds (slide, n, origin, zone, from_time, to_time)
	SELECT slide::interval, n, origin, zone, from_time, from_time + interval '30 hours' FROM unnest('{5 minutes,1 hour,61 minutes,2 hours}'::text[]) slide, unnest('{1,3,20}'::int[]) n,
		unnest('{NULL,2001-01-31 02:37:00+00,2040-05-05 01:13:14.15+00}'::timestamptz[]) origin,
		(VALUES (NULL, '2024-03-30 12:00+00'::timestamptz), ('Europe/Paris', '2024-03-30 12:00+00'), ('Europe/Paris', '2024-10-26 12:00+00'), ('America/Sao_Paulo', '2017-10-14 12:00+00'),
			('America/Sao_Paulo', '2018-02-17 12:00+00'), ('Asia/Kathmandu', '2024-03-30 12:00+00')) z(zone, from_time)
	UNION ALL SELECT slide::interval, n, origin, zone, '2019-06-15 00:00+00', '2023-06-15 00:00+00' FROM unnest('{1 day,7 days,1 month,3 months}'::text[]) slide, unnest('{1,2,12}'::int[]) n,
		unnest('{NULL,2001-01-31 02:37:00+00}'::timestamptz[]) origin, unnest('{NULL,Europe/Paris,America/Sao_Paulo,Asia/Kathmandu}'::text[]) zone;
CREATE TABLE expected AS SELECT id, pane AS w_start, lead(pane, n) OVER (PARTITION BY id, n ORDER BY pane) AS w_end FROM
	(SELECT DISTINCT id, n, millrace.tumble(t, slide, origin, zone) AS pane FROM kinds,
		generate_series(from_time - n * slide - interval '1 day', to_time + n * slide + interval '1 day', CASE WHEN slide < '1 day' THEN interval '1 minute' ELSE '40 minutes' END) t) p;
CREATE TABLE instants AS SELECT k.*, from_time + (to_time - from_time) * (i * 0.618034 - floor(i * 0.618034)) AS t FROM kinds k, generate_series(1, 20) i;
INSERT INTO instants SELECT k.*, w_start + d FROM kinds k JOIN expected USING (id), unnest('{0,-1 microsecond}'::interval[]) d
	WHERE w_start BETWEEN from_time AND to_time AND extract(epoch FROM w_start)::bigint / 60 % 7 = 0;
CREATE INDEX ON expected (id, w_start);
ANALYZE expected, instants;
SELECT ok(count(*) > 5000, 'there are moments to look at') FROM instants;
SELECT is_empty($$SELECT i.id, i.t, found, want FROM instants i,
		LATERAL (SELECT array_agg(w) AS found FROM millrace.hop(t, slide * n, slide, origin, zone) w) h,
		LATERAL (SELECT array_agg(w_start ORDER BY w_start) AS want FROM expected e WHERE e.id = i.id AND w_start > t - slide * (n + 1) - interval '1 day' AND w_start <= t AND t < w_end) e
	WHERE found IS DISTINCT FROM want$$, 'hop: all windows that hold the time, ascending');
SELECT is_empty($$SELECT i.id, i.t, closed, want FROM instants i, millrace._last_closed(t, slide * n, slide, origin, zone) closed,
		LATERAL (SELECT max(w_start) AS want FROM expected e WHERE e.id = i.id AND w_start > t - slide * (n + 2) - interval '1 day' AND w_end <= t) e
	WHERE closed IS DISTINCT FROM want$$, '_last_closed: the last window that ended');
SELECT is(millrace._last_closed('2024-03-01 10:30+00', '1 hour', NULL, NULL, NULL), '2024-03-01 09:00+00'::timestamptz, '_last_closed: tumbling windows');
SELECT is(millrace._last_closed('2024-03-01 10:00+00', '1 hour', NULL, NULL, NULL), '2024-03-01 09:00+00'::timestamptz, '_last_closed: a window ends with its last moment');
SELECT is(millrace._last_closed(NULL, '1 hour', NULL, NULL, NULL), '-infinity'::timestamptz, '_last_closed: NULL');
SELECT is(millrace._last_closed('-infinity', '1 hour', NULL, NULL, NULL), '-infinity'::timestamptz, '_last_closed: -infinity');
SELECT is(millrace._last_closed('4713-11-25 BC', '1000 years', NULL, NULL, NULL), '-infinity'::timestamptz, '_last_closed: no window before it');
SELECT throws_ok($$SELECT millrace._last_closed(now(), NULL, NULL, NULL, NULL)$$, '22004', 'size and slide of _last_closed must not be null', '_last_closed: NULL size');

-- hop
SELECT results_eq($$SELECT millrace.hop('2024-03-10 10:07+00', '15 minutes', '5 minutes')$$, $$VALUES ('2024-03-10 09:55+00'::timestamptz), ('2024-03-10 10:00+00'), ('2024-03-10 10:05+00')$$, 'hop');
SELECT results_eq($$SELECT millrace.hop('2024-03-10 10:07+00', '2 months', '1 month', timezone => 'Europe/Paris')$$, $$VALUES ('2024-01-31 23:00+00'::timestamptz), ('2024-02-29 23:00+00')$$, 'hop of months in a zone');
SELECT results_eq($$SELECT millrace.hop(ts, '1 hour', '30 minutes') FROM (VALUES (NULL::timestamptz), ('infinity'), ('-infinity')) v(ts)$$, $$VALUES (NULL::timestamptz), ('infinity'), ('-infinity')$$, 'hop of NULL and infinite times is one row each');
SELECT results_eq($$SELECT count(*) FROM (SELECT millrace.hop('2024-03-10 10:07+00', '3 hours', '1 minute') LIMIT 5) q$$, $$VALUES (5::bigint)$$, 'hop with LIMIT');
SELECT results_eq($$SELECT count(*), count(DISTINCT w) FROM millrace.hop('2024-03-10 10:07+00', '1000 seconds', '1 millisecond') w$$, $$VALUES (1000000::bigint, 1000000::bigint)$$, 'hop: a million windows');
CREATE FUNCTION plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN ' || query; END $$;
SELECT ok(bool_or(line LIKE '%rows=36 %'), 'the planner knows the number of windows') FROM plan_of($$SELECT * FROM millrace.hop('2024-03-10 10:07+00', '3 hours', '5 minutes')$$) line;
SELECT ok(bool_or(line LIKE '%rows=8 %'), '… of months') FROM plan_of($$SELECT * FROM millrace.hop('2024-03-10 10:07+00', '2 years', '3 months')$$) line;
SELECT throws_ok($$SELECT millrace.hop(now(), NULL, '1 hour')$$, '22004', 'size and slide of hop must not be null', 'hop: NULL size');
SELECT throws_ok($$SELECT millrace.hop(now(), '1 hour', NULL)$$, '22004', 'size and slide of hop must not be null', 'hop: NULL slide');
SELECT throws_ok($$SELECT millrace.hop(now(), '1 hour', '0')$$, '22023', 'window slide "00:00:00" must be positive', 'hop: zero slide');
SELECT throws_ok($$SELECT millrace.hop(now(), '0', '1 hour')$$, '22023', 'window size "00:00:00" must be positive', 'hop: zero size');
SELECT throws_ok($$SELECT millrace.hop(now(), '1 hour', '25 minutes')$$, '22023', 'window size "01:00:00" is not a multiple of its slide "00:25:00"', 'hop: slide that does not divide');
SELECT throws_ok($$SELECT millrace.hop(now(), '5 minutes', '1 hour')$$, '22023', NULL, 'hop: slide longer than the size');
SELECT throws_ok($$SELECT millrace.hop(now(), '1 month', '1 day')$$, '22023', NULL, 'hop: months and days');
SELECT throws_ok($$SELECT millrace.hop(now(), '1000 days', '1 millisecond')$$, '54000', NULL, 'hop: too many windows');
SELECT throws_ok($$SELECT millrace.hop('4714-11-25 00:00+00 BC', '1000 years', '1 year')$$, '22008', NULL, 'hop: out of range');
SELECT throws_ok($$SELECT millrace.hop(now(), '2 hours', '1 hour', timezone => 'Mars/Olympus')$$, '22023', 'time zone "Mars/Olympus" not recognized', 'hop: unknown zone');

-- session: against rows that have no predecessor within the gap
CREATE TABLE visits AS SELECT i % 2 AS k, '2024-03-30 00:00+00'::timestamptz + make_interval(secs => (i * 7919 % 50021) * (1 + i % 3)) AS at FROM generate_series(1, 1500) i;
INSERT INTO visits SELECT k, at FROM visits LIMIT 200; -- peers
INSERT INTO visits SELECT NULL, at FROM visits WHERE k = 1;
CREATE TABLE visit_starts AS SELECT DISTINCT k, at FROM visits w
	WHERE NOT EXISTS (SELECT FROM visits p WHERE p.k IS NOT DISTINCT FROM w.k AND p.at < w.at AND p.at >= w.at - interval '97 seconds');
SELECT ok(count(*) BETWEEN 800 AND 1800, 'some visits start a session, some do not') FROM visit_starts;
SELECT is_empty($$SELECT * FROM (SELECT k, at, millrace.session(at, '97 seconds') OVER (PARTITION BY k ORDER BY at) AS s FROM visits) f,
		LATERAL (SELECT max(w.at) AS want FROM visit_starts w WHERE w.k IS NOT DISTINCT FROM f.k AND w.at <= f.at) e
	WHERE s IS DISTINCT FROM want$$, 'session: equal to brute force');
SELECT results_eq($$SELECT at, millrace.session(at, '10 minutes') OVER (ORDER BY at) FROM (VALUES ('2024-03-10 10:00+00'::timestamptz), ('2024-03-10 10:10+00'), ('2024-03-10 10:20:00.000001+00'),
		(NULL), ('infinity'), ('infinity'), ('-infinity')) v(at) ORDER BY at$$,
	$$VALUES ('-infinity'::timestamptz, '-infinity'::timestamptz), ('2024-03-10 10:00+00', '2024-03-10 10:00+00'), ('2024-03-10 10:10+00', '2024-03-10 10:00+00'),
		('2024-03-10 10:20:00.000001+00', '2024-03-10 10:20:00.000001+00'), ('infinity', 'infinity'), ('infinity', 'infinity'), (NULL, NULL)$$, 'session: exactly the gap later is in it; NULL and infinite times');
SELECT results_eq($$SELECT DISTINCT millrace.session(at, '1 day') OVER (ORDER BY at NULLS FIRST) FROM (VALUES ('2024-03-30 12:00+00'::timestamptz), ('2024-03-31 12:00+00'), (NULL)) v(at) ORDER BY 1$$,
	$$VALUES ('2024-03-30 12:00+00'::timestamptz), (NULL)$$, 'session: a day has 24 hours');
SELECT throws_ok($$SELECT millrace.session(at, '1 minute') OVER (ORDER BY at DESC) FROM visits$$, '22023', 'the rows of session must be ordered by its time', 'session: descending times');
SELECT throws_ok($$SELECT millrace.session(at, NULL) OVER (ORDER BY at) FROM visits$$, '22004', 'session gap must not be null', 'session: NULL gap');
SELECT throws_ok($$SELECT millrace.session(at, '0') OVER (ORDER BY at) FROM visits$$, '22023', 'session gap "00:00:00" must be positive', 'session: zero gap');
SELECT throws_ok($$SELECT millrace.session(at, '1 month') OVER (ORDER BY at) FROM visits$$, '22023', 'session gap "1 mon" has months, which differ in length', 'session: months');
SELECT throws_ok($$SELECT millrace.session(now(), '1 minute')$$, '42809', NULL, 'session: without OVER');
SELECT is_empty($$WITH parts AS (SELECT k, min(at) AS first, max(at) AS last FROM (SELECT k, at, millrace.session(at, '97 seconds') OVER (PARTITION BY k, half ORDER BY at) AS s, half
			FROM (SELECT *, hashtext(at::text) % 2 AS half FROM visits) h) q GROUP BY k, half, s),
		merged AS (SELECT k, min(first), max(last) FROM (SELECT *, millrace._session(first, last, '97 seconds') OVER (PARTITION BY k ORDER BY first) AS s FROM parts) q GROUP BY k, s),
		whole AS (SELECT k, min(at), max(at) FROM (SELECT k, at, millrace.session(at, '97 seconds') OVER (PARTITION BY k ORDER BY at) AS s FROM visits) q GROUP BY k, s)
	(TABLE merged EXCEPT TABLE whole) UNION ALL (TABLE whole EXCEPT TABLE merged)$$, '_session: sessions of two halves merge to those of the whole');
SELECT results_eq($$SELECT millrace._session(f, l, '1 hour') OVER (ORDER BY f) FROM (VALUES ('2024-03-10 10:00+00'::timestamptz, '2024-03-10 15:00+00'::timestamptz), ('2024-03-10 11:00+00', '2024-03-10 11:30+00'),
		('2024-03-10 16:00+00', '2024-03-10 16:00+00')) v(f, l)$$, $$SELECT '2024-03-10 10:00+00'::timestamptz FROM generate_series(1, 3)$$, '_session: one inside another does not shorten it');

-- _hop_starts
CREATE TABLE s_state (xid xid8, gone int, window_start timestamptz, k1 int);
ALTER TABLE s_state DROP COLUMN gone;
CREATE TABLE s_delta (window_start timestamptz, k1 int);
INSERT INTO s_state (window_start, k1) SELECT millrace.tumble('2024-03-30 00:00+00'::timestamptz + make_interval(secs => i * 7919 % 100003 + (i % 3) * 5000000), '5 minutes', NULL, 'Europe/Paris'), i FROM generate_series(1, 2000) i;
INSERT INTO s_state (window_start) VALUES ('1970-01-01 00:00+00'), ('-infinity'), ('infinity'), ('infinity');
INSERT INTO s_delta SELECT millrace.tumble('2024-03-30 09:00+00'::timestamptz + make_interval(secs => i * 7919 % 300007), '5 minutes', NULL, 'Europe/Paris'), i FROM generate_series(1, 50) i;
INSERT INTO s_state (window_start) SELECT '2000-01-01 00:00+00' FROM generate_series(1, 20);
DELETE FROM s_state WHERE window_start = '2000-01-01 00:00+00';
PREPARE hop_starts AS SELECT * FROM millrace._hop_starts('s_state', 's_delta', '3 hours', '5 minutes', NULL, 'Europe/Paris');
PREPARE hop_starts_expected AS SELECT DISTINCT w FROM (SELECT window_start FROM s_state UNION SELECT window_start FROM s_delta) p, millrace.hop(window_start, '3 hours', '5 minutes', NULL, 'Europe/Paris') w ORDER BY w;
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: without an index');
CREATE INDEX s_partial ON s_state (window_start) WHERE k1 > 1000;
CREATE INDEX s_descending ON s_state (window_start DESC);
CREATE INDEX s_hash ON s_state USING hash (window_start);
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: with indexes that do not serve');
CREATE INDEX s_index ON s_state (window_start);
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: with an index');
SELECT results_eq($$SELECT * FROM millrace._hop_starts('s_state', 's_delta', '3 hours', '5 minutes', NULL, NULL)$$,
	$$SELECT DISTINCT w FROM (SELECT window_start FROM s_state UNION SELECT window_start FROM s_delta) p, millrace.hop(window_start, '3 hours', '5 minutes') w ORDER BY w$$, '_hop_starts: UTC');
INSERT INTO s_state (window_start) VALUES (NULL), (NULL);
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: NULL');
INSERT INTO s_delta (window_start) VALUES (NULL), ('-infinity'), ('infinity'), ('1995-05-05 05:05+00'), ('2090-05-05 05:05+00');
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: the same and more in delta');
TRUNCATE s_state;
SELECT results_eq('hop_starts', 'hop_starts_expected', '_hop_starts: only delta');
SELECT is_empty($$SELECT millrace._hop_starts('s_state', NULL, '3 hours', '5 minutes', NULL, NULL)$$, '_hop_starts: an empty table and no delta');
INSERT INTO s_state (window_start) SELECT '2024-01-01 00:00+00'::timestamptz + i * interval '1 month' FROM generate_series(1, 30) i WHERE i % 7 < 4;
SELECT results_eq($$SELECT millrace._hop_starts('s_state', NULL, '6 months', '1 month', NULL, NULL)$$,
	$$SELECT DISTINCT w FROM s_state, millrace.hop(window_start, '6 months', '1 month') w ORDER BY w$$, '_hop_starts: months');
INSERT INTO s_state (window_start, k1) SELECT '2024-01-01 00:00+00'::timestamptz, i FROM generate_series(1, 100000) i;
ANALYZE s_state;
CREATE FUNCTION tuples_read() RETURNS bigint LANGUAGE sql AS $$ SELECT pg_stat_get_xact_tuples_returned('s_index'::regclass) + pg_stat_get_xact_tuples_returned('s_state'::regclass) + pg_stat_get_xact_tuples_fetched('s_state'::regclass) $$;
SELECT tuples_read() AS tuples_before \gset
SELECT count(*) AS n_starts FROM millrace._hop_starts('s_state', NULL, '3 hours', '5 minutes', NULL, NULL) \gset
SELECT cmp_ok(tuples_read() - :tuples_before, '<', 3000::bigint, '_hop_starts reads a few rows of each pane only');
CREATE ROLE window_reader;
GRANT SELECT ON s_state TO window_reader;
GRANT USAGE ON SCHEMA millrace TO window_reader;
GRANT SELECT (window_start) ON s_delta TO window_reader;
SET LOCAL ROLE window_reader;
SELECT throws_ok('hop_starts', '42501', 'permission denied for table s_delta', '_hop_starts: privileges');
RESET ROLE;
SELECT throws_ok($$SELECT millrace._hop_starts('few_windows', NULL, '3 hours', '5 minutes', NULL, NULL)$$, '42P01', NULL, '_hop_starts: unknown table');
SELECT throws_ok($$SELECT millrace._hop_starts('moments', NULL, '3 hours', '5 minutes', NULL, NULL)$$, '42703', NULL, '_hop_starts: a table without panes');
SELECT throws_ok($$SELECT millrace._hop_starts(NULL, NULL, '3 hours', '5 minutes', NULL, NULL)$$, '22004', NULL, '_hop_starts: NULL');

-- window_counts
CREATE TABLE clicks (at timestamptz, "Kind of ""click""" text, n int);
INSERT INTO clicks SELECT '2024-01-01 00:00+00'::timestamptz + i * interval '7 seconds', CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END, i
	FROM generate_series(1, 2000) i;
INSERT INTO clicks VALUES (NULL, 'a', 0), ('infinity', 'a', 0);
SELECT results_eq($$SELECT window_start, window_end, key, count FROM millrace.window_counts('clicks', 'at', '1 hour')$$,
	$$SELECT date_trunc('hour', at), date_trunc('hour', at) + interval '1 hour', '{}'::jsonb, count(*) FROM clicks WHERE isfinite(at) GROUP BY 1 ORDER BY 1$$, 'counts by hour');
SELECT results_eq($$SELECT window_start, key ->> 'Kind of "click"', count FROM millrace.window_counts('clicks', 'at', '1 hour', by => '{"Kind of \"click\""}') ORDER BY 1, 2$$,
	$$SELECT date_trunc('hour', at), "Kind of ""click""", count(*) FROM clicks WHERE isfinite(at) GROUP BY 1, 2 ORDER BY 1, 2$$, 'counts by hour and a column with a hostile name and NULLs');
SELECT results_eq($$SELECT window_start, key ->> 'n', count FROM millrace.window_counts('clicks', 'at', '30 minutes', '10 minutes')$$,
	$$SELECT w, NULL::text, count(*) FROM clicks, LATERAL (SELECT date_bin('10 minutes', at, '2000-01-01+00') - i * interval '10 minutes' FROM generate_series(0, 2) i) h(w)
		WHERE isfinite(at) GROUP BY 1 ORDER BY 1$$, 'sliding windows equal to expanding every event');
SELECT is(sum(count), 2000::numeric, 'each event is in one tumbling window') FROM millrace.window_counts('clicks', 'at', '1 month');
CREATE TABLE no_clicks (at date);
SELECT is_empty($$SELECT * FROM millrace.window_counts('no_clicks', 'at', '1 day')$$, 'an empty table');
CREATE VIEW few_clicks AS SELECT at AT TIME ZONE 'UTC' AS at FROM clicks WHERE n <= 10;
SELECT is(sum(count), 10::numeric, 'a view, and timestamp without time zone') FROM millrace.window_counts('few_clicks', 'at', '1 day');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('nowhere', 'at', '1 day')$$, '42P01', NULL, 'unknown table');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'when', '1 day')$$, '42703', 'column "when" of relation "clicks" does not exist', 'unknown time column');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'n', '1 day')$$, '42804', 'column "n" of relation "clicks" has type integer, which is not a time', 'time column of another type');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'at', '1 day', by => '{x}')$$, '42703', 'column "x" of relation "clicks" does not exist', 'unknown key');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'at', '1 hour', '25 minutes')$$, '22023', 'window size "01:00:00" is not a multiple of its slide "00:25:00"', 'slide that does not divide');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'at', '1 month', '1 day')$$, '22023', NULL, 'slide in another unit');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', 'at', '1000 days', '1 millisecond')$$, '54000', NULL, 'too many windows for each event');
SELECT throws_ok($$SELECT * FROM millrace.window_counts('clicks', NULL, '1 day')$$, '22004', NULL, 'NULL argument');
SELECT * FROM finish();
ROLLBACK;
