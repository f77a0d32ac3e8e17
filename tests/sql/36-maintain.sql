-- Not in one transaction, because states are merged only once their transaction has ended.  Runs in a schema of its own.
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA maintain_test;
-- A window is final when all older transactions have ended, so none may run beside this
ALTER SYSTEM SET autovacuum = off;
SELECT pg_reload_conf() AS reloaded \gset
DO $$ BEGIN
	WHILE EXISTS (SELECT FROM pg_stat_activity WHERE backend_type IN ('autovacuum worker', 'autovacuum launcher')) AND clock_timestamp() < now() + interval '1 minute' LOOP
		PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
	END LOOP;
END $$;
SET search_path = maintain_test, public;
SELECT plan(68);
\ir ../lib/streams.sql

CREATE TABLE e (batch int, at timestamptz, k text, v numeric);
CREATE TABLE seen (batch int PRIMARY KEY, watermark timestamptz);
CREATE TABLE aggregate (name text, final_query text);
-- Each with the rows of the final windows, computed by the watermark that each batch saw
INSERT INTO aggregate VALUES
	('late', $$SELECT k, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, sum(v) AS s, min(v) AS least FROM e JOIN seen USING (batch)
		WHERE watermark IS NULL OR millrace.tumble(at, '1 minute') + '1 minute' > watermark GROUP BY 1, 2$$),
	('dropping', NULL),
	('sliding', $$SELECT k, w AS window_start, count(*) AS n, sum(v) AS s, min(v) AS least FROM e JOIN seen USING (batch), LATERAL millrace.hop(at, '5 minutes', '1 minute') w
		WHERE watermark IS NULL OR w + '5 minutes' > watermark GROUP BY 1, 2$$),
	('sessions', $$SELECT k, window_start, count(*) AS n, sum(v) AS s, min(v) AS least FROM (SELECT *, millrace.session(at, '40 seconds') OVER (PARTITION BY k ORDER BY at)
		AS window_start FROM e JOIN seen USING (batch) WHERE watermark IS NULL OR at + '40 seconds' > watermark) q GROUP BY 1, 2$$);
UPDATE aggregate SET final_query = (SELECT final_query FROM aggregate WHERE name = 'late') WHERE name = 'dropping';
SELECT millrace.create_continuous_aggregate('late', $$SELECT k, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, sum(v) AS s, min(v) AS least
	FROM e GROUP BY 1, 2$$, watermark => '2 minutes');
SELECT millrace.create_continuous_aggregate('dropping', $$SELECT k, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, sum(v) AS s, min(v) AS least
	FROM e GROUP BY 1, 2$$, watermark => '2 minutes', late_policy => 'drop');
SELECT millrace.create_continuous_aggregate('sliding', $$SELECT k, millrace.hop(at, '5 minutes', '1 minute') AS window_start, count(*) AS n, sum(v) AS s, min(v) AS least
	FROM e GROUP BY 1, 2$$, watermark => '2 minutes');
SELECT millrace.create_continuous_aggregate('sessions', $$SELECT k, window_start, count(*) AS n, sum(v) AS s, min(v) AS least
	FROM (SELECT *, millrace.session(at, '40 seconds') OVER (PARTITION BY k ORDER BY at) AS window_start FROM e) q GROUP BY 1, 2$$, watermark => '2 minutes');

-- A hundred batches of few rows, some of them late, without a time or a key, with compaction in between at random
CREATE TABLE shown (name text, "row" jsonb);
CREATE TABLE found (problem text);
CREATE FUNCTION contents(name text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE answer text;
BEGIN
	EXECUTE format('SELECT md5(string_agg(r, '','' ORDER BY r)) FROM (SELECT ''live'' || l::text FROM %1$I l UNION ALL SELECT ''final'' || f::text FROM %1$s_final f) q(r)', name)
		INTO answer;
	RETURN answer;
END $$;
CREATE FUNCTION compact_some(all_of_it bool) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	chosen text := (SELECT name FROM aggregate ORDER BY random() LIMIT 1);
	before text := contents(chosen);
BEGIN
	PERFORM millrace._compact(chosen, all_of_it);
	INSERT INTO found SELECT chosen || ' differs after compaction' WHERE contents(chosen) <> before;
END $$;
CREATE FUNCTION look() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	name text;
	final_query text;
BEGIN
	FOR name, final_query IN TABLE aggregate LOOP
		INSERT INTO found SELECT name || ' differs from its query' WHERE name <> 'dropping' AND differences(name) > 0;
		EXECUTE format('INSERT INTO found SELECT ''%1$s_final shows another row'' FROM (SELECT %2$s FROM %1$s_final EXCEPT ALL %3$s) q', name, columns(name), final_query);
		EXECUTE format('INSERT INTO found SELECT ''%1$s_final has lost '' || s."row"::text FROM shown s WHERE name = %1$L AND NOT EXISTS
			(SELECT FROM %1$s_final f WHERE to_jsonb(f) = s."row")', name);
		EXECUTE format('INSERT INTO shown SELECT %1$L, to_jsonb(f) FROM %1$s_final f EXCEPT TABLE shown', name);
	END LOOP;
END $$;
SELECT setseed(0.36);
DO $$
DECLARE
	at timestamptz := '2024-01-01';
	r float8;
BEGIN
	FOR i IN 1..100 LOOP
		INSERT INTO seen SELECT i, max(e.at) - interval '2 minutes' FROM e;
		INSERT INTO e SELECT i, at + random() * interval '60 seconds' - CASE WHEN random() < 0.2 THEN random() * interval '8 minutes' ELSE '0' END,
			(ARRAY['a', 'b', NULL])[ceil(random() * 3)::int], (random() * 100)::int FROM generate_series(1, (random() * 6)::int);
		INSERT INTO e SELECT i, NULL, 'a', 1 WHERE random() < 0.05;
		at := at + random() * interval '40 seconds';
		COMMIT;
		FOR j IN 1..3 LOOP
			r := random();
			IF r < 0.4 THEN
				PERFORM compact_some(r < 0.1);
			END IF;
			COMMIT;
		END LOOP;
		PERFORM look();
		COMMIT;
	END LOOP;
END $$;
SELECT is(problem, NULL, 'compaction between batches') FROM (SELECT string_agg(problem, '; ') AS problem FROM (SELECT DISTINCT problem FROM found ORDER BY 1 LIMIT 5) p) q;
SELECT cmp_ok((SELECT count(*) FROM shown WHERE name = n), '>', 20::bigint, n || ': there were final windows') FROM unnest(ARRAY['late', 'dropping', 'sliding', 'sessions']) n;
SELECT ok(EXISTS (SELECT FROM late_delta WHERE part = 'l' UNION ALL SELECT FROM late_state WHERE part = 'l'), 'and late rows');
SELECT is((SELECT count(*) FROM ((SELECT k, window_start, n, s, least FROM dropping) EXCEPT ALL (SELECT k, millrace.tumble(at, '1 minute'), count(*), sum(v), min(v)
	FROM e JOIN seen USING (batch) WHERE watermark IS NULL OR at IS NULL OR millrace.tumble(at, '1 minute') + '1 minute' > watermark GROUP BY 1, 2)) q), 0::bigint,
	'what is dropped is dropped for good');

SELECT millrace.compact(name) FROM aggregate;
SELECT is((SELECT count(*) FROM late_delta) + (SELECT count(*) FROM dropping_delta) + (SELECT count(*) FROM sliding_delta) + (SELECT count(*) FROM sessions_delta), 0::bigint,
	'compaction leaves nothing behind');
SELECT is(string_agg(DISTINCT parts, ' ' ORDER BY parts), 'b fl l', 'a row for each group, or two where late rows came')
	FROM (SELECT string_agg(part::text, '' ORDER BY part) AS parts FROM late_state GROUP BY window_start, k1) q;
SELECT is((SELECT count(*) FROM dropping_state), (SELECT count(*) FROM dropping), 'one row for each group');
SELECT is((SELECT count(*) FROM sessions_state WHERE part = 'b'), (SELECT count(*) FROM (SELECT DISTINCT k, window_start FROM
	(SELECT k, millrace.session(at, '40 seconds') OVER (PARTITION BY k ORDER BY at) AS window_start FROM e JOIN seen USING (batch)
	WHERE watermark IS NULL OR at IS NULL OR at + '40 seconds' > watermark) q) r), 'one row for each session of rows in time');
SELECT is(millrace.compact('late'), 0::bigint, 'a second compaction has nothing to do');
SELECT look();
SELECT is((SELECT count(*) FROM found), 0::bigint, 'all of them right');
SELECT throws_ok($$SELECT millrace.compact('nothing')$$, '42704', 'continuous aggregate "nothing" does not exist');
CREATE ROLE maintain_stranger;
GRANT USAGE ON SCHEMA maintain_test, millrace TO maintain_stranger;
GRANT EXECUTE ON FUNCTION millrace.compact(text), millrace._compact(text, bool) TO maintain_stranger;
GRANT EXECUTE ON PROCEDURE millrace.maintain(text) TO maintain_stranger;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO maintain_stranger;
SET ROLE maintain_stranger;
SELECT throws_ok($$SELECT millrace.compact('late')$$, '42501', 'must be owner of stream "late"');
SELECT throws_ok($$SELECT millrace._close_windows('late')$$, '42501', 'must be owner of stream "late"');
CALL millrace.maintain();
SELECT pass('maintain of somebody who owns none');
RESET ROLE;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT throws_ok($$SELECT millrace.compact('late')$$, '25001', 'millrace.compact cannot run in a transaction of isolation level REPEATABLE READ');
ROLLBACK;
BEGIN;
SELECT throws_ok($$CALL millrace.maintain()$$, '25001', 'millrace.maintain cannot run inside a transaction block');
ROLLBACK;

-- Transaction ids of another server, as a restore brings them
INSERT INTO e VALUES (0, '2030-01-01', 'restored', 1);
SELECT cursor AS before FROM late_changes(NULL) LIMIT 1 \gset
UPDATE late_delta SET xid = '9999999999';
UPDATE late_state SET xid = '8888888888' WHERE window_start = (SELECT min(window_start) FROM late_state);
SELECT millrace.compact('late');
SELECT millrace.compact('late');
SELECT is((SELECT count(*) FROM late_delta) + (SELECT count(*) FROM late_state WHERE xid > '8888888887'), 0::bigint, 'rows of another server are merged like others');
SELECT ok(EXISTS (SELECT FROM late_changes(:'before') WHERE k = 'restored'), 'and are changes');
DELETE FROM e WHERE k = 'restored';

-- Windows whose rows were changed
UPDATE e SET v = v + 1 WHERE batch = 50;
SELECT is((SELECT marks > 0 FROM millrace.streams WHERE name = 'late'), true, 'windows wait for a refresh');
CALL millrace.maintain();
SELECT is(differences('late') + differences('sliding') + differences('sessions'), 0::bigint, 'maintain refreshes them');
SELECT is((SELECT marks FROM millrace.streams WHERE name = 'late'), 0::bigint, 'and none wait');
SELECT is((SELECT count(*) FROM shown s WHERE name = 'late' AND NOT EXISTS (SELECT FROM late_final f WHERE to_jsonb(f) = s."row")), 0::bigint, 'what was final stays');

-- What millrace.streams and millrace.batches tell
INSERT INTO e VALUES (99, '2025-01-01 00:02', 'streams', 1);
ANALYZE late_state, late_delta;
SELECT results_eq($$SELECT status, error, watermark, late_policy, state_rows, last_batch = (SELECT max(started) FROM millrace.batches WHERE source = 'e'::regclass)
	FROM millrace.streams WHERE name = 'late'$$, $$SELECT 'running', NULL::text, '2025-01-01 00:00'::timestamptz, 'update',
	(SELECT count(*) FROM late_state) + (SELECT count(*) FROM late_delta), true$$, 'millrace.streams: state, watermark, rows');
SELECT is((SELECT closed_to < watermark FROM millrace.streams WHERE name = 'late'), true, 'the watermark is ahead');
CALL millrace.maintain('late');
SELECT is((SELECT closed_to = watermark FROM millrace.streams WHERE name = 'late'), true, 'until somebody sees it');
SELECT is((SELECT state_bytes FROM millrace.streams WHERE name = 'late'), pg_total_relation_size('late_state') + pg_total_relation_size('late_delta'), 'bytes with indexes');
UPDATE millrace.batches SET started = started - interval '2 minutes' WHERE source = 'e'::regclass;
SELECT results_eq($$SELECT rows_per_second, ms_per_batch FROM millrace.streams WHERE name = 'late'$$, $$SELECT 0::float8, NULL::float8$$, 'no work in the last minute');
INSERT INTO e SELECT 99, '2025-01-01 01:00', 'streams', 1 FROM generate_series(1, 120);
SELECT results_eq($$SELECT s.rows_per_second, s.ms_per_batch FROM millrace.streams s WHERE name = 'late'$$,
	$$SELECT 2::float8, (streams -> 'late' ->> 'ms')::float8 FROM millrace.batches ORDER BY xid DESC LIMIT 1$$, '120 rows in the last minute');
SELECT is(count(*), 0::bigint, 'each column is described') FROM pg_attribute WHERE attnum > 0 AND attrelid IN ('millrace.streams'::regclass, 'millrace.batches'::regclass)
	AND col_description(attrelid, attnum) IS NULL;
SELECT results_eq($$SELECT rows, late_rows, jsonb_object_keys(streams) FROM millrace.batches WHERE xid = (SELECT max(xid::text::bigint) FROM millrace.batches)::text::xid8 ORDER BY 3$$,
	$$VALUES (120::bigint, 0::bigint, 'dropping'), (120, 0, 'late'), (120, 0, 'sessions'), (120, 0, 'sliding')$$, 'millrace.batches: rows and streams');
SELECT millrace.drop_continuous_aggregate(name) FROM aggregate;

-- A quiet stream: its last windows close when nothing has come for a while, by one call
CREATE TABLE quiet (at timestamptz, k text);
SELECT millrace.create_continuous_aggregate('idle', $$SELECT millrace.tumble(at, '1 minute') AS window_start, k, count(*) AS n FROM quiet GROUP BY 1, 2$$,
	watermark => '1 minute', idle_after => '10 minutes');
SELECT millrace.create_continuous_aggregate('sleeping', $$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM quiet GROUP BY 1$$,
	watermark => '1 minute');
INSERT INTO quiet VALUES ('2024-01-01 10:00:10', 'a'), ('2024-01-01 10:05:10', 'a');
CALL millrace.maintain('idle');
SELECT results_eq('SELECT window_start FROM idle_final', ARRAY['2024-01-01 10:00:00+00'::timestamptz], 'what the watermark has passed is final after maintain');
CREATE PROCEDURE time_passes(passed interval) LANGUAGE sql AS $$
	UPDATE millrace.progress SET arrived = arrived - passed;
	UPDATE millrace.batches SET started = started - passed;
$$;
CALL time_passes('9 minutes');
CALL millrace.maintain('idle');
SELECT is((SELECT count(*) FROM idle_final), 1::bigint, 'a short silence closes nothing');
CALL time_passes('2 minutes');
INSERT INTO quiet VALUES ('2024-01-01 10:00:20', 'old');
CALL millrace.maintain();
SELECT is((SELECT count(*) FROM idle_final), 1::bigint, 'a batch that brings no later event is no silence');
CALL time_passes('10 minutes');
CALL millrace.maintain();
SELECT results_eq('SELECT window_start FROM idle_final ORDER BY 1', ARRAY['2024-01-01 10:00:00+00', '2024-01-01 10:05:00+00']::timestamptz[],
	'after a long silence one call makes the last window final');
SELECT is((SELECT count(*) FROM sleeping_final), 1::bigint, 'without idle_after it stays open');
SELECT cmp_ok(max(max_time), '<', '2024-01-01 10:16'::timestamptz, 'event time has gone on by the time of silence')
	FROM millrace.progress WHERE state = 'idle_state'::regclass;
INSERT INTO quiet VALUES ('2024-01-01 10:06:00', 'late');
SELECT results_eq($$SELECT n, final FROM idle WHERE k = 'late'$$, $$VALUES (1::bigint, true)$$, 'rows for closed windows are late, and counted');
SELECT is((SELECT count(*) FROM idle_final), 2::bigint, 'but not final again');
INSERT INTO quiet VALUES ('2024-01-01 11:00', 'a');
SELECT is((SELECT final FROM idle WHERE window_start = '2024-01-01 11:00'), false, 'then the stream goes on');
SELECT millrace.drop_continuous_aggregate('idle'), millrace.drop_continuous_aggregate('sleeping');

-- Retention by event time
CREATE TABLE old (at timestamptz, k text);
SELECT millrace.create_continuous_aggregate('hours', $$SELECT millrace.tumble(at, '1 hour') AS window_start, k, count(*) AS n FROM old GROUP BY 1, 2$$, retain => '1 day');
SELECT millrace.create_continuous_aggregate('halves', $$SELECT millrace.hop(at, '1 hour', '30 minutes') AS window_start, k, count(*) AS n FROM old GROUP BY 1, 2$$, retain => '1 day');
SELECT millrace.create_continuous_aggregate('visits', $$SELECT k, window_start, count(*) AS n FROM (SELECT *, millrace.session(at, '30 minutes') OVER (PARTITION BY k ORDER BY at)
	AS window_start FROM old) q GROUP BY 1, 2$$, retain => '1 day');
SELECT millrace.create_continuous_aggregate('kept', $$SELECT millrace.tumble(at, '1 hour') AS window_start, count(*) AS n FROM old GROUP BY 1$$);
INSERT INTO old SELECT at, 'every 20 minutes' FROM generate_series('2024-01-01 00:00'::timestamptz, '2024-01-01 11:40', '20 minutes') at;
INSERT INTO old SELECT at, 'every 20 minutes' FROM generate_series('2024-01-01 12:00'::timestamptz, '2024-01-03 00:00', '20 minutes') at;
INSERT INTO old SELECT at, 'every 2 hours' FROM generate_series('2024-01-01 00:00'::timestamptz, '2024-01-03 00:00', '2 hours') at;
INSERT INTO old VALUES (NULL, 'none'), ('infinity', 'never'), ('-infinity', 'ever'), ('9999-01-01', 'future');
CALL millrace.maintain();
SELECT is((SELECT min(window_start) FROM hours), '2024-01-02 00:00'::timestamptz, 'windows older than retain are gone');
SELECT is((SELECT min(window_start) FROM halves), '2024-01-01 23:30'::timestamptz, 'sliding ones that ended before');
SELECT is((SELECT n FROM halves WHERE window_start = '2024-01-01 23:30' AND k = 'every 20 minutes'), 3::bigint, 'what is left of them is whole');
SELECT results_eq($$SELECT k, min(window_start) FROM visits WHERE isfinite(window_start) AND window_start < '2025-01-01' GROUP BY 1 ORDER BY 1$$,
	$$VALUES ('every 2 hours', '2024-01-02 00:00'::timestamptz), ('every 20 minutes', '2024-01-01 00:00')$$, 'a session stays whole until its end is old');
SELECT is((SELECT count(*) FROM hours WHERE window_start IS NULL OR window_start > '2025-01-01'), 3::bigint, 'windows without a time, and of the future, stay');
SELECT is((SELECT min(window_start) FROM hours_state), '2024-01-02 00:00'::timestamptz, 'so are their states');
SELECT is((SELECT count(*) FROM kept WHERE isfinite(window_start)), 50::bigint, 'without retain all stay');
INSERT INTO old VALUES ('2024-01-01 05:00', 'too old'), ('2024-01-02 05:00', 'not too old');
SELECT results_eq($$SELECT k FROM hours WHERE k LIKE '%too old'$$, ARRAY['not too old'], 'rows for dropped windows are given up');
SELECT is((SELECT late_rows FROM millrace.batches ORDER BY xid DESC LIMIT 1), 3::bigint, 'and counted as late, by each aggregate');
SELECT results_eq($$SELECT k FROM halves_changes(NULL) WHERE k LIKE '%too old'$$, $$SELECT k FROM halves WHERE k LIKE '%too old'$$, 'nor are they changes');
INSERT INTO hours_delta (xid, part, window_start, k1, s1) VALUES ('3', 'b', '2024-01-01 05:00', 'unaware', 1);
SELECT is((SELECT count(*) FROM hours WHERE k = 'unaware'), 0::bigint, 'a batch that did not know of it yet brings none back');
SELECT retained_from AS bound FROM millrace.stream WHERE name = 'hours' \gset
CALL millrace.maintain('hours');
SELECT is((SELECT count(*) FROM hours_delta) + (SELECT count(*) FROM hours_state WHERE k1 = 'unaware'), 0::bigint, 'and what it left goes');
SELECT is((SELECT retained_from FROM millrace.stream WHERE name = 'hours'), :'bound', 'the bound moves only when a window goes');
UPDATE old SET k = k || '!' WHERE at < '2024-01-01 06:00';
CALL millrace.maintain();
SELECT is((SELECT min(window_start) FROM hours_state), '2024-01-02 00:00'::timestamptz, 'a refresh brings none back');
SELECT is((SELECT min(window_start) FROM halves), '2024-01-01 23:30'::timestamptz, 'nor of sliding ones');
SELECT is((SELECT n FROM halves WHERE window_start = '2024-01-01 23:30' AND k = 'every 20 minutes'), 3::bigint, 'whole as they were');
SELECT millrace.drop_continuous_aggregate('hours'), millrace.drop_continuous_aggregate('halves'), millrace.drop_continuous_aggregate('visits');

-- Rows of millrace.batches
SET millrace.keep_batches = 5;
DO $$ BEGIN FOR i IN 1..12 LOOP INSERT INTO old VALUES (now(), 'more'); COMMIT; END LOOP; END $$;
SELECT max(xid::text::bigint) AS newest FROM millrace.batches WHERE source = 'old'::regclass \gset
INSERT INTO quiet VALUES (now(), 'kept');
CALL millrace.maintain();
SELECT is((SELECT count(*) FROM millrace.batches WHERE source = 'old'::regclass), 5::bigint, 'millrace.keep_batches rows are kept');
SELECT is((SELECT max(xid::text::bigint) FROM millrace.batches WHERE source = 'old'::regclass), :newest::bigint, 'the newest');
DO $$ BEGIN FOR i IN 1..2000 LOOP INSERT INTO old VALUES (now(), 'more'); COMMIT; END LOOP; END $$;
SELECT cmp_ok((SELECT count(*) FROM millrace.batches WHERE source = 'old'::regclass), '<', 1500::bigint, 'batches themselves see to it, now and then');
DROP TABLE e, old, quiet CASCADE;
CALL millrace.maintain();
SELECT is((SELECT count(*) FROM millrace.batches b WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = b.source)), 0::bigint, 'rows of tables that are gone go');

-- A day of batches of ten seconds, maintained once an hour
CREATE TABLE day (at timestamptz, k text);
SELECT millrace.create_continuous_aggregate('minutes', $$SELECT millrace.tumble(at, '1 minute') AS window_start, k, count(*) FROM day GROUP BY 1, 2$$,
	watermark => '1 minute', retain => '2 hours');
SELECT millrace.create_continuous_aggregate('stays', $$SELECT k, window_start, count(*) FROM (SELECT *, millrace.session(at, '20 seconds') OVER (PARTITION BY k ORDER BY at)
	AS window_start FROM day) q GROUP BY 1, 2$$, watermark => '1 minute', retain => '2 hours');
CREATE TABLE size (hour int, states bigint, progress bigint, batches bigint);
SET millrace.keep_batches = 1000;
DO $$
BEGIN
	FOR i IN 1..8640 LOOP
		INSERT INTO day SELECT '2024-01-01'::timestamptz + (i + random() - CASE WHEN random() < 0.02 THEN 60 ELSE 0 END) * interval '10 seconds', 'k' || n FROM generate_series(1, 8) n;
		COMMIT;
		IF i % 360 = 0 THEN
			INSERT INTO size SELECT i / 360, (SELECT count(*) FROM minutes_state) + (SELECT count(*) FROM minutes_delta) + (SELECT count(*) FROM stays_state) + (SELECT count(*) FROM stays_delta),
				(SELECT count(*) FROM millrace.progress), (SELECT count(*) FROM millrace.batches WHERE source = 'day'::regclass);
			CALL millrace.maintain();
		END IF;
	END LOOP;
END $$;
SELECT cmp_ok((SELECT max(states) FROM size WHERE hour > 16), '<', (SELECT max(states) FROM size WHERE hour <= 8) * 4 / 3, 'states do not grow after the first hours');
SELECT cmp_ok((SELECT max(progress) FROM size), '<=', 2 * 365::bigint, 'nor does what is known of progress');
SELECT cmp_ok((SELECT max(batches) FROM size), '<=', 1000 + 360::bigint, 'nor do batches');
SELECT is((SELECT count(*) FROM ((SELECT window_start, k, count FROM minutes) EXCEPT TABLE minutes_query) d), 0::bigint, 'what is there is right');
SELECT is((SELECT min(window_start) FROM minutes), (SELECT millrace.tumble(max(at), '1 minute') - interval '2 hours' FROM day), 'two hours of it');
CALL millrace.maintain();
SELECT cmp_ok((SELECT count(*) FROM millrace.progress), '<=', 4::bigint, 'and progress needs two rows for each aggregate');
DROP TABLE day CASCADE;
SELECT * FROM finish();
RESET millrace.keep_batches;
ALTER SYSTEM RESET autovacuum;
SELECT pg_reload_conf() AS reloaded \gset
DROP OWNED BY maintain_stranger;
DROP ROLE maintain_stranger;
SET client_min_messages = error;
DROP SCHEMA maintain_test CASCADE;
