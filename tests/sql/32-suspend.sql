-- Streams that are stopped, or fail and are suspended.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;
SET LOCAL timezone = 'UTC';
\ir ../lib/streams.sql
CREATE TABLE ev (at timestamptz, a text, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('ev', 'at');
SELECT millrace.ensure_partitions('ev', '2024-01-01', '2024-01-03');
CREATE TABLE dim (a text PRIMARY KEY, kind text);
INSERT INTO dim SELECT 'a' || i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END FROM generate_series(0, 9) i;
CREATE FUNCTION fill(seed int, n int) RETURNS void LANGUAGE sql AS $$
	SELECT setseed(seed / 100.0);
	INSERT INTO ev SELECT '2024-01-01'::timestamptz + random() * interval '3 days', 'a' || (random() * 9)::int, (random() * 1000)::int FROM generate_series(1, n)
$$;
CREATE FUNCTION status(name text) RETURNS text LANGUAGE sql AS $$ SELECT status FROM millrace.stream WHERE stream.name = status.name $$;
CREATE FUNCTION right(name text) RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM millrace.verify(name) $$;
SELECT millrace.create_continuous_aggregate('m', 'SELECT a, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n, avg(v) AS mean FROM ev GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('s', 'SELECT a, window_start, count(*) AS n, sum(v) FROM (SELECT *, millrace.session(at, ''5 minutes'') OVER (PARTITION BY a ORDER BY at) AS window_start FROM ev) q GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('j', 'SELECT d.kind, millrace.tumble(e.at, ''1 hour'') AS window_start, count(*) AS n FROM ev e JOIN dim d USING (a) GROUP BY 1, 2', on_error => 'suspend');
CREATE TABLE out (at timestamptz, v int CONSTRAINT small CHECK (v < 1000000));
SELECT millrace.create_pipe('p', 'ev', 'INSERT INTO out SELECT at, v FROM new_rows', on_error => 'suspend');
SELECT fill(1, 500);

-- Stop and start
SELECT millrace.stop_stream('m'), millrace.stop_stream('s'), millrace.stop_stream('p');
SELECT is(status('m'), 'stopped', 'stopped');
SELECT throws_ok($$SELECT millrace.stop_stream('m')$$, '55000', 'stream "m" does not run: it is stopped', 'twice');
SELECT fill(2, 300);
SELECT isnt(differences('m'), 0::bigint, 'a stopped aggregate takes no rows');
SELECT is((SELECT string_agg(DISTINCT reason, '; ') FROM millrace.verify('m')), 'marked (stopped), not refreshed', 'verify says why');
SELECT is((SELECT string_agg(DISTINCT reason, '; ') FROM millrace.verify('s')), 'marked (stopped), not refreshed', 'also of sessions');
SELECT is((SELECT count(*) FROM out), 500::bigint, 'nor does a pipe');
SELECT is((SELECT count(*) FROM millrace.late_row WHERE stream = 'p' AND reason = 'stopped'), 300::bigint, 'whose rows are kept');
SELECT millrace.start_stream('m'), millrace.start_stream('s'), millrace.start_stream('p');
SELECT is(right('m') + right('s'), 0::bigint, 'started, they have made up for them');
SELECT is((SELECT count(*) FROM out), 800::bigint, 'and so has the pipe');
SELECT is((SELECT count(*) FROM (TABLE out EXCEPT ALL SELECT at, v FROM ev) q), 0::bigint, 'with the same rows');
SELECT is((SELECT count(*) FROM millrace.late_row) + (SELECT count(*) FROM millrace.mark), 0::bigint, 'nothing is left to do');
SELECT throws_ok($$SELECT millrace.start_stream('m')$$, '42710', 'stream "m" is running', 'starting a running stream');
SELECT throws_ok($$SELECT millrace.start_stream('nothing')$$, '42704', NULL, 'starting no stream');
SELECT throws_ok($$SELECT millrace.stop_stream('nothing')$$, '42704', NULL, 'stopping no stream');
SELECT fill(3, 100);
SELECT is(right('m') + right('s') + right('j'), 0::bigint, 'batches go on');
SELECT is((SELECT count(*) FROM out), 900::bigint, 'in the pipe too');

-- A pipe that fails
SELECT throws_ok($$SELECT millrace.create_pipe('x', 'ev', 'INSERT INTO out SELECT at, v FROM new_rows', 'never')$$, '22023', 'on_error "never" of "x" is not known', 'bad on_error');
INSERT INTO ev VALUES ('2024-01-01', 'a1', 5000000), ('2024-01-01', 'a1', 1);
SELECT is(status('p'), 'failed', 'a failing pipe is suspended');
SELECT matches((SELECT error FROM millrace.stream WHERE name = 'p'), '^SQLSTATE 23514', 'with its error, but no values of rows, which all could read');
SELECT is((SELECT count(*) FROM out), 900::bigint, 'it has written nothing');
SELECT is((SELECT count(*) FROM ev), 902::bigint, 'ingestion goes on');
SELECT is(right('m') + right('s') + right('j'), 0::bigint, 'and so do other streams');
INSERT INTO ev VALUES ('2024-01-02', 'a1', 2);
SELECT is((SELECT count(*) FROM millrace.late_row WHERE stream = 'p' AND reason ~ 'SQLSTATE 23514'), 3::bigint, 'later rows are kept too');
SELECT throws_ok($$SELECT millrace.refresh('p')$$, '23514', NULL, 'a refresh with the cause still there fails');
SELECT is(status('p'), 'failed', 'and changes nothing');
ALTER TABLE out DROP CONSTRAINT small;
SELECT is(millrace.refresh('p'), 3::bigint, 'without it the rows are passed on');
SELECT is(status('p'), 'running', 'it runs again');
SELECT is((SELECT count(*) FROM out), 903::bigint, 'with all rows');

-- A dimension table that is dropped
DROP TABLE dim CASCADE;
SELECT is(status('j'), 'failed', 'an aggregate whose dimension is dropped is suspended');
SELECT isnt((SELECT count(*) FROM j), 0::bigint, 'with its windows');
SELECT lives_ok($$SELECT fill(4, 100)$$, 'ingestion goes on');
SELECT lives_ok($$UPDATE ev SET v = v + 1 WHERE v % 50 = 0$$, 'and updates');
SELECT lives_ok($$INSERT INTO ev_20240101 VALUES ('2024-01-01 10:00', 'a1', 1)$$, 'also straight into a partition');
SELECT cmp_ok((SELECT count(*) FROM millrace.mark WHERE state = 'j_state'::regclass AND from_time > '-infinity'), '>', 0::bigint, 'their windows are marked one by one');
SELECT throws_ok($$SELECT * FROM millrace.verify('j')$$, '55000', NULL, 'verify says that the query is gone');
SELECT throws_ok($$SELECT millrace.refresh('j')$$, '42P01', NULL, 'as long as the table is missing, so does refresh');
CREATE TABLE dim (a text PRIMARY KEY, kind text);
INSERT INTO dim SELECT 'a' || i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END FROM generate_series(0, 9) i;
SELECT cmp_ok(millrace.refresh('j'), '>', 0::bigint, 'when it is back, refresh heals the stream');
SELECT is(status('j'), 'running', 'which runs');
SELECT is(right('j') + differences('j'), 0::bigint, 'and is right');
SELECT fill(5, 100);
SELECT is(right('j'), 0::bigint, 'batches go on');
INSERT INTO dim SELECT 'a' || i, 'more' FROM generate_series(10, 11) i;
UPDATE dim SET kind = 'new' WHERE a = 'a1';
SELECT is((SELECT string_agg(DISTINCT reason, '; ') FROM millrace.verify('j')), 'a joined table may have changed', 'verify names a dimension');
SELECT millrace.refresh('j', '-infinity', 'infinity');
SELECT is(right('j'), 0::bigint, 'refresh of all follows it');

-- An aggregate whose expression fails
CREATE TABLE logs (at timestamptz, v text);
SELECT millrace.create_continuous_aggregate('ints', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, sum(v::int) FROM logs WHERE v <> ''bad'' GROUP BY 1', on_error => 'suspend');
INSERT INTO logs VALUES ('2024-01-01', '1');
INSERT INTO logs VALUES ('2024-01-01 01:00', 'one');
SELECT is(status('ints'), 'failed', 'an aggregate that cannot handle a row is suspended');
INSERT INTO logs VALUES ('2024-01-01', '2');
SELECT is((SELECT sum FROM ints), 1::bigint, 'its windows stay');
SELECT throws_ok($$SELECT millrace.start_stream('ints')$$, '22P02', NULL, 'starting it with the row still there fails');
UPDATE logs SET v = '10' WHERE v = 'one';
SELECT millrace.start_stream('ints');
SELECT is((SELECT sum(sum) FROM ints), 13::numeric, 'without it, it goes on');
SELECT is(status('ints'), 'running', 'and runs');
CREATE TABLE logs2 (at timestamptz, v text);
SELECT millrace.create_continuous_aggregate('ints2', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, sum(v::int) FROM logs2 GROUP BY 1');
SELECT throws_ok($$INSERT INTO logs2 VALUES ('2024-01-01 01:00', 'one')$$, '22P02', NULL, 'without suspend the batch fails');

-- Savepoints and rights
CREATE ROLE mr_sus_writer;
GRANT INSERT ON logs TO mr_sus_writer;
GRANT USAGE ON SCHEMA millrace TO mr_sus_writer;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_sus_writer;
SET LOCAL ROLE mr_sus_writer;
SAVEPOINT s;
SELECT lives_ok($$INSERT INTO logs VALUES ('2024-01-01 01:00', 'two')$$, 'a writer with INSERT only suspends a stream');
RESET ROLE;
SELECT is(status('ints'), 'failed', 'which has failed');
SELECT is(current_user::text, session_user::text, 'and nobody is somebody else');
ROLLBACK TO s;
SELECT is(status('ints'), 'running', 'until the savepoint is rolled back');
SET LOCAL ROLE mr_sus_writer;
SELECT throws_ok($$SELECT millrace.stop_stream('ints')$$, '42501', NULL, 'it cannot stop a stream');
SELECT throws_ok($$SELECT millrace._stream_set('ints', 'stopped', NULL, false)$$, '42501', NULL, 'by no means');
SELECT throws_ok($$SELECT millrace._fill('ints', '-infinity', 'infinity')$$, '42501', NULL, 'nor fill it');
RESET ROLE;

-- Verify
SELECT throws_ok($$SELECT * FROM millrace.verify('nothing')$$, '42704', NULL, 'verify of no stream');
SELECT throws_ok($$SELECT * FROM millrace.verify('p')$$, '42809', NULL, 'verify of a pipe');
SELECT millrace.refresh('m'), millrace.refresh('s');
SET LOCAL session_replication_role = replica;
INSERT INTO ev VALUES ('2024-01-01 12:00', 'a3', 9);
SET LOCAL session_replication_role = origin;
SELECT results_eq($$SELECT window_start, key, (expected ->> 'n')::int - (stored ->> 'n')::int, reason FROM millrace.verify('m')$$,
	$$VALUES ('2024-01-01 12:00'::timestamptz, '{"a": "a3"}'::jsonb, 1, 'defect'::text)$$, 'verify finds a row that came past the triggers');
SELECT millrace.refresh('m', '2024-01-01 12:00', '2024-01-01 12:01');
SELECT is(right('m'), 0::bigint, 'a refresh of its window counts it');
CREATE TABLE fl (at timestamptz, f float8, r real, n numeric);
SELECT millrace.create_continuous_aggregate('floats', 'SELECT millrace.tumble(at, ''1 hour'') AS w, sum(f), avg(f), stddev(f), sum(r) AS reals, corr(f, r), sum(n) AS exact FROM fl GROUP BY 1');
SELECT setseed(0.7);
INSERT INTO fl SELECT '2024-01-01'::timestamptz + random() * interval '10 hours', random() * 100, random(), random() FROM generate_series(1, 500) i;
INSERT INTO fl SELECT '2024-01-01'::timestamptz + random() * interval '10 hours', random() * 100, random(), random() FROM generate_series(1, 500) i;
INSERT INTO fl VALUES ('2024-01-02', 'NaN', 'NaN', 'NaN'), ('2024-01-02', 'Infinity', 1, 1), ('2024-01-03', NULL, NULL, NULL);
SELECT is(right('floats'), 0::bigint, 'floats may differ in their last digits');
UPDATE floats_delta SET s1 = s1;
SELECT millrace.refresh('floats', '-infinity', 'infinity');
SELECT is(right('floats'), 0::bigint, 'also when refreshed');
SELECT * FROM finish();
ROLLBACK;
