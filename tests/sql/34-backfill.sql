-- A continuous aggregate over a table with rows, filled beside writers; it commits, so this file cleans up after itself.
SET client_min_messages = error;
SET timezone = 'UTC';
\ir ../lib/streams.sql
SELECT * FROM no_plan();
CREATE TABLE bf (at timestamptz, a text, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('bf', 'at');
SELECT millrace.ensure_partitions('bf', '2024-01-01', '2024-01-05');
CREATE TABLE bf_rest PARTITION OF bf DEFAULT;
CREATE FUNCTION fill(seed int, n int) RETURNS void LANGUAGE sql AS $$
	SELECT setseed(seed / 100.0);
	INSERT INTO bf SELECT '2024-01-01'::timestamptz + random() * interval '5 days', 'a' || (random() * 4)::int, (random() * 1000)::int FROM generate_series(1, n)
$$;
SELECT fill(1, 5000);
INSERT INTO bf VALUES (NULL, 'x', 1), ('-infinity', 'x', 2), ('infinity', 'x', 3);
SELECT millrace.create_continuous_aggregate('bt', 'SELECT a, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n, avg(v) AS mean FROM bf GROUP BY 1, 2', watermark => '1 hour', with_data => false);
SELECT millrace.create_continuous_aggregate('bm', 'SELECT a, millrace.tumble(at, ''1 month'', timezone => ''Europe/Paris'') AS window_start, count(*) AS n, avg(v) AS mean FROM bf GROUP BY 1, 2', with_data => false);
SELECT millrace.create_continuous_aggregate('bh', 'SELECT a, millrace.hop(at, ''5 hours'', ''1 hour'') AS window_start, count(*) AS n FROM bf GROUP BY 1, 2', watermark => '1 hour', with_data => false);
SELECT millrace.create_continuous_aggregate('bs', 'SELECT a, window_start, count(*) AS n, sum(v) FROM (SELECT *, millrace.session(at, ''5 minutes'') OVER (PARTITION BY a ORDER BY at) AS window_start FROM bf) q GROUP BY 1, 2', watermark => '1 hour', with_data => false);
SELECT is((SELECT string_agg(DISTINCT status, ' ') FROM millrace.stream WHERE source = 'bf'::regclass), 'filling', 'to be filled');
SELECT is((SELECT count(*) FROM bt), 0::bigint, 'nothing is there at first');
SELECT fill(2, 1000);
SELECT is((SELECT sum(n) FROM bt), 1000::numeric, 'but what comes from now on');
SELECT is((SELECT count(*) FROM bt WHERE final), 0::bigint, 'no window is final');
SELECT is((SELECT string_agg(DISTINCT reason, ' ') FROM millrace.verify('bt')), 'marked (filling), not refreshed', 'verify says why it is not right');
DELETE FROM bf WHERE v < 20;
SELECT throws_ok($$SELECT millrace.stop_stream('bt')$$, '55000', NULL, 'it cannot be stopped');
SELECT throws_ok($$SELECT millrace.start_stream('bt')$$, '55000', NULL, 'or started');
SELECT throws_ok($$CALL millrace.backfill('nothing')$$, '42704', NULL, 'no such stream');

/* Given up half-way: what is done is kept. */
SELECT millrace._slice_marks('bt', millrace._slices('bf', 'at'));
SELECT is(count(*), 7::bigint, 'a slice for each partition, and what is before and after') FROM millrace.mark WHERE state = 'bt_state'::regclass AND reason = 'filling' AND from_time <= to_time;
SELECT cmp_ok(millrace._fill('bt', '2024-01-03', '2024-01-03 23:59'), '>', 0::bigint, 'one of them');
SELECT is((SELECT count(*) FROM (SELECT a, window_start, n, mean FROM bt WHERE window_start >= '2024-01-03' AND window_start < '2024-01-04' EXCEPT TABLE bt_query) q), 0::bigint, 'is right');
SELECT is((SELECT status FROM millrace.stream WHERE name = 'bt'), 'filling', 'and the rest is to come');
CALL millrace.backfill('bt');
CALL millrace.backfill('bm');
CALL millrace.backfill('bh');
CALL millrace.backfill('bs');
SELECT is((SELECT string_agg(DISTINCT status, ' ') FROM millrace.stream WHERE source = 'bf'::regclass), 'running', 'filled');
SELECT is(concat_ws(' ', differences('bt'), differences('bm'), differences('bh'), differences('bs')), '0 0 0 0', 'they are right');
SELECT is((SELECT count(*) FROM millrace.verify('bt')) + (SELECT count(*) FROM millrace.verify('bs')), 0::bigint, 'verify finds so, too');
SELECT is((SELECT max(max_time) FROM millrace.progress WHERE state = 'bt_state'::regclass), (SELECT max(at) FROM bf WHERE isfinite(at)), 'the watermark starts from the rows');
SELECT is(count(*), 0::bigint, 'no mark is left') FROM millrace.mark;
SELECT fill(3, 100);
SELECT is(concat_ws(' ', differences('bt'), differences('bm'), differences('bh'), differences('bs')), '0 0 0 0', 'batches go on');
SELECT cmp_ok((SELECT count(*) FROM bt_final), '>', 0::bigint, 'and windows become final');
SELECT throws_ok($$CALL millrace.backfill('bt')$$, '55000', 'stream "bt" is running, and not to be filled', 'again');

-- An unpartitioned table, with an index and without; one that is empty
CREATE TABLE plain (at timestamptz, v int);
INSERT INTO plain SELECT '2024-01-01'::timestamptz + i * interval '1 minute', i FROM generate_series(1, 5000) i;
SELECT millrace.create_continuous_aggregate('bp', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n, sum(v) FROM plain GROUP BY 1', with_data => false);
CALL millrace.backfill('bp');
SELECT is(differences('bp'), 0::bigint, 'a table without partitions');
CREATE INDEX ON plain (at);
UPDATE pg_class SET reltuples = 1e6 WHERE oid = 'plain'::regclass;
SELECT millrace.create_continuous_aggregate('bi', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n, sum(v) FROM plain GROUP BY 1', with_data => false);
CALL millrace.backfill('bi');
SELECT is(differences('bi'), 0::bigint, 'in slices of an index');
CREATE TABLE nothing (at timestamptz, v int);
SELECT millrace.create_continuous_aggregate('bn', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM nothing GROUP BY 1', watermark => '1 hour', with_data => false);
SELECT millrace.refresh('bn');
SELECT is((SELECT status FROM millrace.stream WHERE name = 'bn'), 'running', 'refresh fills, too');
SELECT is(differences('bn'), 0::bigint, 'also nothing');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('x', 'SELECT 1', with_data => NULL)$$, '22004', NULL, 'with_data NULL');
SELECT * FROM finish();
DROP TABLE bf, plain, nothing CASCADE;
DROP FUNCTION fill(int, int), columns(text), differences(text), refused(text);
