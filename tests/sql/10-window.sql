BEGIN;
SELECT plan(44);

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
