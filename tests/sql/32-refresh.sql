-- Corrections: what UPDATE, DELETE and TRUNCATE mark, and what refresh makes of it.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;
SET LOCAL timezone = 'UTC';
\ir ../lib/streams.sql

CREATE TABLE ev (at timestamptz, a text, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('ev', 'at');
SELECT millrace.ensure_partitions('ev', '2024-01-01', '2024-01-04');
CREATE TABLE ev_default PARTITION OF ev DEFAULT;
SELECT millrace.create_continuous_aggregate('m', 'SELECT a, millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n, avg(v) AS mean FROM ev GROUP BY 1, 2', watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('h', 'SELECT a, millrace.hop(at, ''1 hour'', ''10 minutes'') AS window_start, count(*) AS n, max(v) AS greatest FROM ev GROUP BY 1, 2', watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('s', 'SELECT a, window_start, count(*) AS n, sum(v) FROM (SELECT *, millrace.session(at, ''5 minutes'') OVER (PARTITION BY a ORDER BY at) AS window_start FROM ev) q GROUP BY 1, 2', watermark => '1 minute');
CREATE FUNCTION all_differences() RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', differences('m'), differences('h'), differences('s')) $$;
CREATE FUNCTION refresh_all() RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', millrace.refresh('m') >= 0, millrace.refresh('h') >= 0, millrace.refresh('s') >= 0) $$;
CREATE FUNCTION fill(seed int, n int) RETURNS void LANGUAGE sql AS $$
	SELECT setseed(seed / 100.0);
	INSERT INTO ev SELECT '2024-01-01'::timestamptz + random() * interval '3 days', 'a' || (random() * 4)::int, (random() * 1000)::int FROM generate_series(1, n)
$$;
SELECT fill(1, 2000);

-- Marks
UPDATE ev SET v = v + 1 WHERE v % 50 = 0;
SELECT isnt(all_differences(), '0 0 0', 'an update is not followed at once');
SELECT is((SELECT count(DISTINCT state) FROM millrace.mark), 3::bigint, 'it marks windows of every aggregate');
SELECT is((SELECT string_agg(DISTINCT reason, ' ') FROM millrace.mark), 'update', 'with the reason');
SELECT is(refresh_all(), 't t t', 'refresh');
SELECT is(all_differences(), '0 0 0', 'makes them right');
SELECT is(count(*), 0::bigint, 'and removes the marks') FROM millrace.mark;
UPDATE ev SET v = 0 WHERE false;
DELETE FROM ev WHERE false;
SELECT is(count(*), 0::bigint, 'no rows, no marks') FROM millrace.mark;
DELETE FROM ev WHERE v % 40 = 1;
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'DELETE');
DELETE FROM ev_20240102 WHERE v % 40 = 2;
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'DELETE from a partition');
UPDATE ev SET at = at + interval '1 day' WHERE v % 40 = 3;
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'UPDATE that moves rows to other partitions');
MERGE INTO ev USING (SELECT DISTINCT ON (v) v, at FROM ev WHERE v < 100 ORDER BY v, at) q ON ev.at = q.at
	WHEN MATCHED AND q.v < 30 THEN DELETE WHEN MATCHED THEN UPDATE SET v = 7;
MERGE INTO ev USING (SELECT i FROM generate_series(1, 20) i) q ON ev.v = 1000000 + i
	WHEN NOT MATCHED THEN INSERT VALUES ('2024-01-02 12:00', 'merged', 1000000 + i);
SELECT is((SELECT n FROM m WHERE a = 'merged'), 20::bigint, 'MERGE inserts');
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'MERGE updates and deletes');
CREATE TABLE keyed (id int PRIMARY KEY, at timestamptz NOT NULL, v int);
SELECT millrace.create_continuous_aggregate('k', 'SELECT millrace.tumble(at, ''1 day'') AS day, sum(v) FROM keyed GROUP BY 1');
INSERT INTO keyed SELECT i, '2024-01-01'::timestamptz + i * interval '1 hour', i FROM generate_series(1, 100) i;
INSERT INTO keyed SELECT i, '2024-01-01'::timestamptz + i * interval '2 hours', 1 FROM generate_series(51, 150) i ON CONFLICT (id) DO UPDATE SET at = excluded.at, v = 5;
SELECT millrace.refresh('k');
SELECT is(differences('k'), 0::bigint, 'INSERT … ON CONFLICT DO UPDATE');
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent SELECT id FROM keyed;
ALTER TABLE keyed ADD FOREIGN KEY (id) REFERENCES parent ON DELETE CASCADE;
DELETE FROM parent WHERE id % 3 = 0;
SELECT millrace.refresh('k');
SELECT is(differences('k'), 0::bigint, 'rows deleted by a foreign key');

-- Rows without a time, infinite times
INSERT INTO ev VALUES (NULL, 'x', 1), (NULL, 'x', 2), ('infinity', 'x', 1), ('infinity', 'x', 2), ('-infinity', 'x', 1), ('-infinity', 'x', 2);
UPDATE ev SET v = 10 WHERE v = 1 AND a = 'x';
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'NULL and infinite times are updated');
DELETE FROM ev WHERE a = 'x';
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'and deleted');

-- Savepoints
SAVEPOINT s;
DELETE FROM ev WHERE v % 3 = 0;
ROLLBACK TO s;
SELECT is(count(*), 0::bigint, 'marks go with their savepoint') FROM millrace.mark;

-- TRUNCATE
TRUNCATE ev_20240102;
SELECT is((SELECT (from_time, to_time) FROM millrace.mark WHERE state = 'm_state'::regclass), ('2024-01-02 00:00'::timestamptz, '2024-01-02 23:59'::timestamptz), 'TRUNCATE of a partition marks what it held');
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'and is right');
TRUNCATE ev;
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'TRUNCATE of all');
SELECT is((SELECT count(*) FROM m) + (SELECT count(*) FROM h) + (SELECT count(*) FROM s), 0::bigint, 'nothing is left');

-- A million rows leave few marks
CREATE TABLE many (at timestamptz, v int);
SELECT millrace.create_continuous_aggregate('per_minute', 'SELECT millrace.tumble(at, ''1 minute'') AS minute, count(*), sum(v) FROM many GROUP BY 1');
INSERT INTO many SELECT '2024-01-01'::timestamptz + i * interval '10 seconds', i FROM generate_series(1, 60000) i;
DELETE FROM many WHERE at < '2024-01-05';
SELECT is(count(*), 1::bigint, 'neighbours are one mark') FROM millrace.mark;
UPDATE many SET v = 1 WHERE extract(minute FROM at)::int % 2 = 0 AND random() < 0.5;
SELECT cmp_ok(count(*), '<=', 1001::bigint, 'scattered ones are not too many') FROM millrace.mark;
SELECT cmp_ok(millrace.refresh('per_minute'), '>', 1000::bigint, 'refresh tells what it wrote');
SELECT is(differences('per_minute'), 0::bigint, 'and is right');

-- Reads the touched windows only
CREATE INDEX ON many (at);
ANALYZE many;
CREATE FUNCTION rows_read() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT pg_stat_get_xact_tuples_returned('many'::regclass) + coalesce((SELECT sum(pg_stat_get_xact_tuples_fetched(indexrelid)) FROM pg_index WHERE indrelid = 'many'::regclass), 0)::bigint + pg_stat_get_xact_tuples_fetched('many'::regclass) $$;
UPDATE many SET v = 77 WHERE at = '2024-01-06 10:00:20';
SELECT rows_read() AS before \gset
SELECT is(millrace.refresh('per_minute'), 1::bigint, 'one window');
SELECT cmp_ok(rows_read() - :before, '<=', 12::bigint, 'reads its six rows');
SELECT is(differences('per_minute'), 0::bigint, 'and is right');
UPDATE many SET v = 78 WHERE extract(minute FROM at) = 17 AND at >= '2024-01-06';
SELECT cmp_ok((SELECT count(*) FROM millrace.mark), '>', 20::bigint, 'many windows');
SELECT rows_read() AS before \gset
SELECT millrace.refresh('per_minute') AS n \gset
SELECT cmp_ok(rows_read() - :before, '<=', (12 * :n)::bigint, 'one by one with an index');
SELECT is(differences('per_minute'), 0::bigint, 'and right');
DROP INDEX many_at_idx;
UPDATE many SET v = 79 WHERE extract(minute FROM at) = 18 AND at >= '2024-01-06';
SELECT rows_read() AS before \gset
SELECT is(millrace.refresh('per_minute') <= :n, true, 'without an index no other windows are written');
SELECT cmp_ok(rows_read() - :before, '<=', 2 * (SELECT count(*) FROM many), 'but the table is read once, and not for each');
SELECT is(differences('per_minute'), 0::bigint, 'and right');
CREATE TABLE zoneless (at timestamp, v int);
SELECT millrace.create_continuous_aggregate('paris', 'SELECT millrace.tumble(at AT TIME ZONE ''Europe/Paris'', ''1 day'', timezone => ''Europe/Paris'') AS day, count(*), sum(v) FROM zoneless GROUP BY 1');
INSERT INTO zoneless SELECT '2024-03-01'::timestamp + i * interval '1 hour', i FROM generate_series(1, 2000) i;
UPDATE zoneless SET v = 1, at = at + interval '10 days' WHERE at::date = '2024-03-31';
SELECT millrace.refresh('paris');
SELECT is(differences('paris'), 0::bigint, 'a column without a zone, a change of clocks');
CREATE TABLE by_date (d date, v int) PARTITION BY RANGE (d);
CREATE TABLE by_date_1 PARTITION OF by_date FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE by_date_2 PARTITION OF by_date FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
SELECT millrace.create_continuous_aggregate('monthly', 'SELECT millrace.tumble(d::timestamptz, ''1 month'') AS month, count(*), sum(v) FROM by_date GROUP BY 1');
INSERT INTO by_date SELECT '2024-01-01'::date + i % 60, i FROM generate_series(1, 100) i;
DELETE FROM by_date WHERE v % 7 = 0;
TRUNCATE by_date_2;
SELECT millrace.refresh('monthly');
SELECT is(differences('monthly'), 0::bigint, 'a date');

-- Finality
SELECT millrace.refresh('m', '-infinity', 'infinity');
SELECT is(all_differences(), '0 0 0', 'all windows by force');

-- Bad input and rights
SELECT throws_ok($$SELECT millrace.refresh('nothing')$$, '42704', 'stream "nothing" does not exist', 'no such stream');
SELECT throws_ok($$SELECT millrace.refresh(NULL)$$, '22004', NULL, 'no name');
SELECT throws_ok($$SELECT millrace.refresh('m', '2024-01-02', '2024-01-01')$$, '22023', 'from_time must be before to_time in a refresh of "m"', 'a range the wrong way round');
CREATE ROLE mr_corr_writer;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ev TO mr_corr_writer;
GRANT USAGE ON SCHEMA millrace TO mr_corr_writer;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_corr_writer;
SELECT fill(3, 500);
SET LOCAL ROLE mr_corr_writer;
SELECT lives_ok($$UPDATE ev SET v = v + 1 WHERE v < 100$$, 'a writer that owns nothing may update');
SELECT lives_ok($$DELETE FROM ev WHERE v < 10$$, 'and delete');
SELECT throws_ok($$SELECT millrace.refresh('m')$$, '42501', 'must be owner of stream "m"', 'but not refresh');
SELECT throws_ok($$INSERT INTO millrace.mark VALUES ('m_state', '0', '-infinity', 'infinity', 'x')$$, '42501', NULL, 'or mark');
RESET ROLE;
SELECT refresh_all();
SELECT is(all_differences(), '0 0 0', 'what it wrote is refreshed');
SELECT * FROM finish();
ROLLBACK;
