-- Alerts.  Finality comes from committed batches, so this file commits and cleans up after itself.
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA mr_alert;
SET search_path = mr_alert, public;
\ir ../lib/streams.sql
SELECT plan(69);

CREATE TABLE e (at timestamptz NOT NULL, action text, u int) PARTITION BY RANGE (at);
SELECT millrace.create_source('e', 'at');
SELECT millrace.ensure_partitions('e', '2024-01-01', '2024-01-04');
SELECT millrace.create_continuous_aggregate('pm', $$SELECT action, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM e GROUP BY 1, 2$$, watermark => '10 minutes');
CREATE FUNCTION add(at timestamptz, action text, n int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO e SELECT add.at, add.action, i FROM generate_series(1, n) i
$$;
CREATE FUNCTION reported(alert text) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT to_char(window_start, 'HH24:MI') || ' ' || key || ' ' || value FROM millrace.alerts WHERE alerts.alert = $1 ORDER BY 1
$$;

-- The difference of two actions' counts in one minute, whatever the order of batches
SELECT add('2024-01-01 09:00', 'Open', 50);
SELECT millrace.create_alert('gap', $$
	SELECT window_start, a.n AS opened, b.n AS closed FROM pm a JOIN pm b USING (window_start) WHERE a.action = 'Open' AND b.action = 'Close' AND abs(a.n - b.n) > 20;
$$);
SELECT millrace.create_alert('surge', 'SELECT * FROM pm WHERE n > 20');
SELECT is(string_agg(concat_ws(' ', name, kind, source, target), ', ' ORDER BY name), 'gap alert e gap, surge alert e surge', 'alerts are streams') FROM millrace.streams WHERE kind = 'alert';
SELECT add('2024-01-01 10:00', 'Open', 5), add('2024-01-01 10:00', 'Close', 25);
SELECT is_empty($$SELECT reported('gap')$$, 'a difference of 20 is not more than 20');
SELECT is((SELECT n FROM pm WHERE window_start = '2024-01-01 09:00'), 50::bigint, 'there is a window that fires');
SELECT results_eq($$SELECT reported('surge')$$, $$VALUES ('10:00 {"action": "Close"} {"n": 25, "final": false}')$$, 'but only what changes is looked at; keys are told from values');
SELECT add('2024-01-01 10:00', 'Close', 1);
SELECT results_eq($$SELECT reported('gap')$$, $$VALUES ('10:00 {} {"closed": 26, "opened": 5}')$$, 'one more, and it fires');
SELECT add('2024-01-01 10:00', 'Open', 20), add('2024-01-01 10:00', 'Close', 50), add('2024-01-01 10:01', 'Close', 30);
SELECT results_eq($$SELECT reported('gap')$$, $$VALUES ('10:00 {} {"closed": 26, "opened": 5}')$$, 'reported once, as it was then');
SELECT results_eq('SELECT closed FROM gap', 'VALUES (76::bigint)', 'its view shows what fires now');
SELECT add('2024-01-01 10:01', 'Open', 1);
SELECT is((SELECT count(*) FROM reported('gap')), 2::bigint, 'the other action first');
BEGIN;
SELECT add('2024-01-01 10:02', 'Close', 30), add('2024-01-01 10:02', 'Open', 1);
SELECT is((SELECT count(*) FROM reported('gap')), 3::bigint, 'seen at once by the transaction');
ROLLBACK;
SELECT is((SELECT count(*) FROM reported('gap')), 2::bigint, 'rolled back, nothing was reported');
BEGIN;
SELECT add('2024-01-01 10:02', 'Open', 1);
SAVEPOINT s;
SELECT add('2024-01-01 10:02', 'Close', 30);
SELECT is((SELECT count(*) FROM reported('gap')), 3::bigint, 'within a savepoint');
ROLLBACK TO s;
SELECT add('2024-01-01 10:03', 'Close', 40);
COMMIT;
SELECT is((SELECT count(*) FROM reported('gap')), 2::bigint, 'which is rolled back');
SELECT add('2024-01-01 10:02', 'Close', 30);
SELECT is((SELECT count(*) FROM reported('gap')), 3::bigint, 'then it is new again');
INSERT INTO e_20240102 SELECT '2024-01-02 10:00', 'Close', i FROM generate_series(1, 30) i;
SELECT is((SELECT count(*) FROM reported('surge') r WHERE r LIKE '10:00%'), 3::bigint, 'a batch straight into a partition');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT add('2024-01-02 11:00', 'r', 15);
SELECT add('2024-01-02 11:00', 'r', 15);
COMMIT;
SELECT is((SELECT count(*) FROM reported('surge') r WHERE r LIKE '11:00%'), 1::bigint, 'REPEATABLE READ');
SELECT add('2024-01-02 11:01', NULL, 25);
SELECT results_eq($$SELECT r FROM reported('surge') r WHERE r LIKE '11:01%'$$, $$VALUES ('11:01 {"action": null} {"n": 25, "final": false}')$$, 'a NULL key');
SELECT isnt((SELECT (streams -> 'surge' ->> 'rows')::int FROM millrace.batches WHERE source = 'e'::regclass ORDER BY xid DESC LIMIT 1), NULL, 'millrace.batches has its work');

-- The condition on the window reaches the states of both sides of the join
INSERT INTO e SELECT '2024-01-01'::timestamptz + i * interval '1 second', 'x', i FROM generate_series(1, 80000) i;
CALL millrace.maintain();
ANALYZE pm_state;
ANALYZE pm_delta;
CREATE FUNCTION plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query; END $$;
CREATE TABLE alert_plan AS SELECT * FROM plan_of($$SELECT r.* FROM unnest('{2024-01-01 10:00+00}'::timestamptz[]) AS w(w), LATERAL
	(SELECT to_jsonb(v) FROM gap v WHERE v.window_start = w.w OFFSET 0) r$$) AS line;
SELECT is(count(*) FILTER (WHERE line ~ 'Index Cond: .*window_start = w.w'), count(*) FILTER (WHERE line ~ 'pm_state_window_start_idx|on pm_state'), 'every scan of NAME_state is by the window')
	FROM alert_plan;
SELECT is(count(*) > 0, true, 'there are some') FROM alert_plan WHERE line ~ 'Index Cond: .*window_start = w.w';

SELECT is((SELECT count(*) FROM millrace.alert_row), (SELECT count(*) FROM millrace.alerts), 'what has been reported is not written again');

-- More windows than are looked at one by one, and more than are told apart
SELECT millrace.create_alert('all_of_them', $$SELECT window_start, action, n FROM pm WHERE action = 'many'$$);
INSERT INTO e SELECT '2024-01-02'::timestamptz + i % 1000 * interval '1 minute', 'many', i FROM generate_series(1, 3000) i;
SELECT is(count(*), 1000::bigint, 'a thousand windows in one batch') FROM millrace.alerts WHERE alert = 'all_of_them';
SELECT millrace.create_continuous_aggregate('ps', $$SELECT millrace.tumble(at, '1 second') AS window_start, count(*) AS n FROM e GROUP BY 1$$);
SELECT millrace.create_alert('seconds', $$SELECT window_start, n FROM ps$$);
INSERT INTO e SELECT '2024-01-03'::timestamptz + (i - 1) * interval '1 second', 'seconds', i FROM generate_series(1, 20000) i;
SELECT is(count(*), 20000::bigint, 'twenty thousand') FROM millrace.alerts WHERE alert = 'seconds';
SELECT millrace.drop_alert('seconds');
SELECT millrace.drop_continuous_aggregate('ps');

-- Sliding windows, sessions, rollups, final windows: what is reported is what fires after all batches, where counts only grow
CREATE TABLE r (at timestamptz, a text, x int);
SELECT millrace.create_continuous_aggregate('sliding', $$SELECT millrace.hop(at, '30 minutes', '5 minutes') AS w, a, count(*) AS n FROM r GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('visits', $$SELECT a, window_start, count(*) AS n FROM (SELECT *, millrace.session(at, '2 minutes') OVER (PARTITION BY a ORDER BY at) AS window_start FROM r) s GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('minutes', $$SELECT millrace.tumble(at, '1 minute') AS m, a, count(*) AS n FROM r GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('hours', $$SELECT millrace.tumble(m, '1 hour', timezone => 'Asia/Kolkata') AS window_start, a, sum(n) AS n, max(n) AS most FROM minutes GROUP BY 1, 2$$);
CREATE VIEW indirect AS SELECT w AS window_start, upper(a) AS loud, a AS quiet, n FROM sliding;
SELECT millrace.create_alert('on_sliding', 'WITH i AS (SELECT * FROM indirect) SELECT s.window_start, s.quiet AS who, s.n FROM (SELECT * FROM i OFFSET 0) s LEFT JOIN (VALUES (1)) v(one) ON true WHERE s.n > 10');
SELECT millrace.create_alert('on_visits', 'SELECT window_start, a, n FROM visits WHERE n > 3');
SELECT millrace.create_alert('on_hours', 'SELECT window_start, a, n, most FROM hours WHERE n > 20');
SELECT millrace.create_alert('on_final', 'SELECT m AS window_start, a, n FROM minutes_final WHERE n > 1');
SELECT setseed(0.5);
DO $$
BEGIN
	FOR i IN 1 .. 60 LOOP
		INSERT INTO r SELECT '2024-01-01'::timestamptz + i * interval '3 minutes' + random() * interval '4 minutes' - interval '30 minutes' * (random() < 0.1)::int,
			'abc'::char(3), 1 FROM generate_series(1, 1 + (random() * 8)::int);
		COMMIT;
	END LOOP;
END $$;
SELECT set_eq($$SELECT window_start, key FROM millrace.alerts WHERE alert = 'on_sliding'$$, $$SELECT w, jsonb_build_object('who', a) FROM sliding_query WHERE n > 10$$,
	'sliding windows, through a view, a subquery and WITH; the key under another name');
SELECT isnt_empty($$SELECT reported('on_sliding')$$, 'there are some');
SELECT set_eq($$SELECT window_start, key FROM millrace.alerts WHERE alert = 'on_visits' AND window_start IN (SELECT window_start FROM visits_query)$$,
	$$SELECT window_start, jsonb_build_object('a', a) FROM visits_query WHERE n > 3$$, 'sessions');
SELECT isnt_empty($$SELECT reported('on_visits')$$, 'there are some');
SELECT set_eq($$SELECT window_start, key FROM millrace.alerts WHERE alert = 'on_hours'$$,
	$$SELECT millrace.tumble(m, '1 hour', timezone => 'Asia/Kolkata'), jsonb_build_object('a', a) FROM minutes_query GROUP BY 1, 2 HAVING sum(n) > 20$$, 'a rollup: hours of minutes');
SELECT isnt_empty($$SELECT reported('on_hours')$$, 'there are some');
SELECT set_eq($$SELECT window_start, key, value FROM millrace.alerts WHERE alert = 'on_final' AND window_start < '2024-01-01 02:30'$$,
	$$SELECT m, jsonb_build_object('a', a) AS key, jsonb_build_object('n', n) AS value FROM minutes_final WHERE n > 1 AND m < '2024-01-01 02:30'$$,
	'NAME_final: when the window has become final, as it is then');
SELECT isnt_empty($$SELECT reported('on_final')$$, 'there are some');

-- Two sources, one of them fed by a pipe
CREATE TABLE sales (at timestamptz, amount int);
SELECT millrace.create_pipe('to_sales', 'r', $$INSERT INTO sales SELECT at, x FROM new_rows WHERE x > 100$$);
SELECT millrace.create_continuous_aggregate('sold', $$SELECT millrace.tumble(at, '1 minute') AS m, sum(amount) AS sum FROM sales GROUP BY 1$$);
SELECT millrace.create_alert('both', 'SELECT s.m AS window_start, pm.action, s.sum, pm.n FROM sold s JOIN pm ON pm.window_start = s.m WHERE s.sum > 1000 AND pm.n > 2');
SELECT is((SELECT inputs::text FROM millrace.stream WHERE name = 'both'), '{pm,sold}', 'inputs in order of creation');
INSERT INTO r VALUES ('2024-01-03 20:00', 'z', 900);
SELECT add('2024-01-03 20:00', 'go', 2);
INSERT INTO r VALUES ('2024-01-03 20:00', 'z', 200);
SELECT is_empty($$SELECT reported('both')$$, 'not yet');
SELECT add('2024-01-03 20:00', 'go', 1);
SELECT results_eq($$SELECT reported('both')$$, $$VALUES ('20:00 {"action": "go"} {"n": 3, "sum": 1100}')$$, 'a batch of either source');
SELECT add('2024-01-03 20:01', 'go', 3);
INSERT INTO r VALUES ('2024-01-03 20:01', 'z', 2000);
SELECT is((SELECT count(*) FROM reported('both')), 2::bigint, 'also through the pipe');

-- Late rows that are replayed
CREATE TABLE l (at timestamptz);
SELECT millrace.create_continuous_aggregate('lm', $$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM l GROUP BY 1$$, watermark => '0', late_policy => 'divert');
SELECT millrace.create_alert('on_late', 'SELECT window_start, n FROM lm WHERE n > 1');
INSERT INTO l VALUES ('2024-01-01 12:00');
INSERT INTO l VALUES ('2024-01-01 10:00'), ('2024-01-01 10:00');
SELECT is_empty($$SELECT reported('on_late')$$, 'rows that are diverted');
SELECT is(millrace.replay_late('lm'), 2::bigint, 'are replayed');
SELECT results_eq($$SELECT reported('on_late')$$, $$VALUES ('10:00 {} {"n": 2}')$$, 'and fire');

-- Corrections
CREATE TABLE c (at timestamptz, x int);
SELECT millrace.create_continuous_aggregate('cm', $$SELECT millrace.tumble(at, '1 minute') AS window_start, sum(x) AS n FROM c GROUP BY 1$$);
SELECT millrace.create_alert('on_refresh', 'SELECT window_start, n FROM cm WHERE n > 100');
INSERT INTO c VALUES ('2024-01-01 10:00', 1), ('2024-01-01 11:00', 1);
UPDATE c SET x = 200 WHERE at = '2024-01-01 11:00';
SELECT is_empty($$SELECT reported('on_refresh')$$, 'an UPDATE');
SELECT millrace.refresh('cm');
SELECT results_eq($$SELECT reported('on_refresh')$$, $$VALUES ('11:00 {} {"n": 200}')$$, 'is seen when it is refreshed');
SELECT throws_ok($$SELECT millrace.refresh('on_refresh')$$, '42809', 'stream "on_refresh" is an alert and has nothing to refresh', 'an alert is not');
SELECT millrace.drop_alert('on_refresh');

-- Renames
ALTER VIEW pm RENAME TO per_minute;
ALTER VIEW per_minute RENAME COLUMN action TO deed;
ALTER VIEW surge RENAME COLUMN action TO "the ""deed""";
ALTER VIEW surge RENAME TO surging;
SELECT add('2024-01-03 21:00', 'renamed', 30);
SELECT results_eq($$SELECT r FROM reported('surge') r WHERE r LIKE '%renamed%'$$, $$VALUES ('21:00 {"the \"deed\"": "renamed"} {"n": 30, "final": false}')$$, 'renamed columns and views');

-- An alert that errors
SELECT millrace.create_alert('broken', 'SELECT window_start, 1 / (n - 7) AS x FROM per_minute');
SELECT throws_ok($$SELECT add('2024-01-03 22:00', 'x', 7)$$, '22012', NULL, 'an alert that errors fails the batch');
DO $$
DECLARE context text;
BEGIN
	PERFORM add('2024-01-03 22:00', 'x', 7);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
	CREATE TABLE failure AS SELECT context;
END $$;
SELECT matches(context, 'millrace stream "broken"', 'and says which it was') FROM failure;
SELECT millrace.drop_alert('broken');

-- Bad input
SELECT throws_ok($$SELECT millrace.create_alert(NULL, 'SELECT 1')$$, '22004', NULL, 'NULL name');
SELECT throws_ok($$SELECT millrace.create_alert('x', NULL)$$, '22004', NULL, 'NULL query');
SELECT throws_ok($$SELECT millrace.create_alert('', 'SELECT 1')$$, '42602', NULL, 'empty name');
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT window_start FROM nowhere')$$, '42P01', NULL, 'unknown table');
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT n FROM per_minute')$$, '42703', 'the query of alert "x" has no column window_start', 'no window_start');
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT window_start::date AS window_start FROM per_minute')$$, '42804', 'column window_start of alert "x" is of type date', 'of another type');
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT at AS window_start FROM e')$$, '42809', 'the query of alert "x" reads no continuous aggregate', 'not over an aggregate');
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT window_start FROM pm_state')$$, '42809', NULL, 'not over its states');
SELECT throws_ok($$SELECT millrace.create_alert('gap', 'SELECT window_start FROM per_minute')$$, '42710', 'stream "gap" already exists', 'name taken');
SELECT throws_ok($$SELECT millrace.create_alert('e', 'SELECT window_start FROM per_minute')$$, '42P07', NULL, 'name taken by a table');
CREATE TEMP TABLE t (x int);
SELECT throws_ok($$SELECT millrace.create_alert('x', 'SELECT window_start FROM per_minute, t')$$, '42P16', NULL, 'a temporary table');
SELECT throws_ok($$SELECT millrace.drop_alert('nothing')$$, '42704', 'alert "nothing" does not exist', 'dropping an unknown one');
SELECT throws_ok($$SELECT millrace.drop_alert('pm')$$, '42704', NULL, 'or what is no alert');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('gap', 'SELECT 1')$$, '42710', NULL, 'an aggregate of that name');

-- Rights
CREATE ROLE mr_alert_writer;
GRANT USAGE ON SCHEMA mr_alert, millrace TO mr_alert_writer;
GRANT INSERT ON e TO mr_alert_writer;
GRANT EXECUTE ON FUNCTION millrace.create_alert(text, text), millrace.drop_alert(text) TO mr_alert_writer;
SET ROLE mr_alert_writer;
SELECT lives_ok($$INSERT INTO e SELECT '2024-01-03 23:00', 'writer', i FROM generate_series(1, 30) i$$, 'a writer needs INSERT only');
SELECT is_empty('SELECT * FROM millrace.alerts', 'who does not see alerts whose view he may not SELECT');
SELECT throws_ok('SELECT * FROM millrace.alert_row', '42501', NULL, 'nor the table');
SELECT throws_ok($$SELECT millrace.drop_alert('gap')$$, '42501', NULL, 'nor may he drop one');
SELECT throws_ok($$SELECT millrace.create_alert('mine', 'SELECT window_start FROM per_minute')$$, '42501', NULL, 'or create one');
RESET ROLE;
GRANT SELECT ON surging TO mr_alert_writer;
SET ROLE mr_alert_writer;
SELECT is((SELECT count(*) FROM reported('surge') r WHERE r LIKE '%writer%'), 1::bigint, 'he sees them when he may');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION millrace.create_alert(text, text), millrace.drop_alert(text) FROM mr_alert_writer;

-- Dropping
SELECT throws_ok($$SELECT millrace.drop_continuous_aggregate('sold')$$, '2BP01', NULL, 'an aggregate that an alert reads');
SELECT millrace.drop_alert('both');
SELECT is((SELECT count(*) FROM millrace.alert_row WHERE alert NOT IN (SELECT oid FROM pg_class)) + (SELECT count(*) FROM millrace.progress WHERE state NOT IN (SELECT oid FROM pg_class)),
	0::bigint, 'nothing is left of a dropped alert');
SELECT lives_ok($$SELECT millrace.drop_continuous_aggregate('sold')$$, 'then the aggregate can go');
DROP VIEW per_minute CASCADE;
SELECT is(string_agg(name, ',' ORDER BY name), 'on_final,on_hours,on_late,on_sliding,on_visits', 'DROP … CASCADE takes the alerts') FROM millrace.stream WHERE kind = 'alert';
DROP TABLE r, l CASCADE;
SELECT is(count(*), 0::bigint, 'as does that of the source') FROM millrace.stream WHERE kind = 'alert';
SELECT is(count(*), 0::bigint, 'with what they reported') FROM millrace.alert_row;

SELECT * FROM finish();
DROP SCHEMA mr_alert CASCADE;
DROP OWNED BY mr_alert_writer;
DROP ROLE mr_alert_writer;
