-- Partitions that come with rows, and those that go.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;
SET LOCAL timezone = 'UTC';
\ir ../lib/streams.sql
CREATE TABLE ev (at timestamptz, a text, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('ev', 'at');
SELECT millrace.ensure_partitions('ev', '2024-01-01', '2024-01-05');
SELECT millrace.create_continuous_aggregate('m', 'SELECT a, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n, avg(v) AS mean FROM ev GROUP BY 1, 2');
SELECT is(count(*), 0::bigint, 'empty partitions mark nothing') FROM millrace.mark;
INSERT INTO ev SELECT '2024-01-01'::timestamptz + i * interval '1 minute', 'a', i FROM generate_series(1, 7000) i;
CREATE FUNCTION kept() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM m WHERE window_start >= '2024-01-02' AND window_start < '2024-01-03' $$;

-- Attached with rows, its columns in another order and one dropped, owned by somebody else
CREATE ROLE mr_corr_other;
CREATE TABLE p (v int, x int, a text, at timestamptz);
ALTER TABLE p DROP x;
INSERT INTO p SELECT i, 'p', '2024-02-01'::timestamptz + i * interval '1 minute' FROM generate_series(1, 1000) i;
ALTER TABLE ev ATTACH PARTITION p FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
SELECT is((SELECT (from_time, to_time, reason) FROM millrace.mark), ('2024-02-01 00:00'::timestamptz, '2024-02-29 23:00'::timestamptz, 'attach'::text), 'its range of time is marked');
SELECT isnt(differences('m'), 0::bigint, 'its rows are missing');
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'until a refresh');
INSERT INTO p VALUES (1, 'p', '2024-02-20');
UPDATE p SET v = 2 WHERE a = 'p';
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'it has the triggers');

-- A subtree; CREATE TABLE … PARTITION OF; a default partition
CREATE TABLE sub (LIKE ev) PARTITION BY LIST (a);
CREATE TABLE sub_x PARTITION OF sub DEFAULT;
INSERT INTO sub SELECT '2024-04-01'::timestamptz + i * interval '1 minute', 'p', i FROM generate_series(1, 100) i;
ALTER TABLE ev ATTACH PARTITION sub FOR VALUES FROM ('2024-04-01') TO ('2024-05-01');
SELECT is(count(*), 1::bigint, 'a subtree is marked') FROM millrace.mark;
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'and computed');
UPDATE sub_x SET v = 5;
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'its leaves have the triggers');
CREATE TABLE made PARTITION OF ev FOR VALUES FROM ('2024-05-01') TO ('2024-06-01');
SELECT is(count(*), 0::bigint, 'CREATE TABLE … PARTITION OF marks nothing') FROM millrace.mark;
CREATE TABLE rest (LIKE ev);
INSERT INTO rest VALUES ('2030-01-01', 'r', 1), (NULL, 'r', 2);
ALTER TABLE ev ATTACH PARTITION rest DEFAULT;
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'a default partition with rows');

-- Detached: the windows stay
ALTER TABLE ev DETACH PARTITION ev_20240102;
SELECT is(count(*), 0::bigint, 'no trigger is left') FROM pg_trigger WHERE tgrelid = 'ev_20240102'::regclass;
SELECT is(kept(), 24::bigint, 'the windows are kept');
UPDATE ev SET v = v + 1;
SELECT millrace.refresh('m');
SELECT is(kept(), 24::bigint, 'also by a refresh of all others');
SELECT is(differences('m'), 24::bigint, 'which are right');
INSERT INTO ev VALUES ('2024-01-02 12:10', 'late', 1);
UPDATE ev SET v = 1 WHERE a = 'late';
SELECT millrace.refresh('m');
SELECT is((SELECT n FROM m WHERE window_start = '2024-01-02 12:00' AND a = 'a'), 60::bigint, 'a row that is not in the gone partition does not bring the window to an end');
DELETE FROM rest WHERE a = 'late';
ALTER TABLE ev ATTACH PARTITION ev_20240102 FOR VALUES FROM ('2024-01-02') TO ('2024-01-03');
SELECT millrace.refresh('m');
SELECT is(differences('m'), 0::bigint, 'attached again, all is computed');
DROP TABLE ev_20240103;
SELECT is((SELECT count(*) FROM m WHERE window_start >= '2024-01-03' AND window_start < '2024-01-04'), 24::bigint, 'DROP of a partition keeps windows');
SELECT is((SELECT (from_time, to_time) FROM millrace.gone_range), ('2024-01-03'::timestamptz, '2024-01-04'::timestamptz), 'and is noted');
TRUNCATE ev;
SELECT millrace.refresh('m');
SELECT is((SELECT count(*) FROM m), 24::bigint, 'TRUNCATE leaves them too');
SELECT millrace.refresh('m', '2024-01-03', '2024-01-04');
SELECT is(differences('m'), 0::bigint, 'unless they are named');
-- Detached while event triggers were off
SET LOCAL session_replication_role = replica;
ALTER TABLE ev DETACH PARTITION ev_20240102;
SET LOCAL session_replication_role = origin;
INSERT INTO ev_20240102 VALUES ('2024-03-02 10:00', 'a', 1);
ALTER TABLE ev ATTACH PARTITION ev_20240102 FOR VALUES FROM ('2024-03-02') TO ('2024-03-03');
SELECT is((SELECT (from_time, to_time) FROM millrace.known_partition WHERE partition = 'ev_20240102'::regclass), ('2024-03-02'::timestamptz, '2024-03-03'::timestamptz),
	'what is attached has the bounds that it has now');
DROP TABLE ev CASCADE;
SELECT is((SELECT count(*) FROM millrace.known_partition) + (SELECT count(*) FROM millrace.gone_range) + (SELECT count(*) FROM millrace.mark), 0::bigint, 'nothing is left of a dropped source');
SELECT * FROM finish();
ROLLBACK;
