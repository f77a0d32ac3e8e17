-- A backend forgets partitions that have had no batch for long.  Not in one transaction, which keeps what it has used.
SET client_min_messages = error;
SET timezone = 'UTC';
SELECT * FROM no_plan();
CREATE TABLE leaves (at timestamptz, a text, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('leaves', 'at');
SELECT millrace.ensure_partitions('leaves', '2024-01-01', '2024-02-10');
SELECT millrace.create_continuous_aggregate('leaves_m', 'SELECT a, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM leaves GROUP BY 1, 2');
SELECT is(count(*), 41::bigint, 'each partition is known') FROM millrace.known_partition WHERE source = 'leaves'::regclass;
CREATE VIEW plans AS SELECT count(*) AS n FROM pg_backend_memory_contexts WHERE name = 'millrace leaf';
INSERT INTO leaves_20240101 VALUES ('2024-01-01', 'a', 0);
INSERT INTO leaves_20240102 VALUES ('2024-01-02', 'a', 0);
DO $$ BEGIN FOR i IN 1 .. 200 LOOP INSERT INTO leaves_20240103 VALUES ('2024-01-03', 'a', i); END LOOP; END $$;
INSERT INTO leaves_20240104 VALUES ('2024-01-04', 'a', 0);
SELECT is(n, 4::bigint, 'few are kept, whatever had the last batches') FROM plans;
DO $$ DECLARE leaf regclass; BEGIN
	FOR leaf IN SELECT partition FROM millrace.partitions('leaves') ORDER BY from_time LIMIT 40 LOOP
		EXECUTE format('INSERT INTO %s SELECT from_time, ''a'', 1 FROM millrace.partitions(''leaves'') WHERE partition = %L::regclass', leaf, leaf);
	END LOOP;
END $$;
SELECT cmp_ok(n, '>=', 40::bigint, 'who writes to 40 partitions has plans for all') FROM plans;
DO $$ BEGIN FOR i IN 1 .. 1000 LOOP INSERT INTO leaves_20240209 VALUES ('2024-02-09', 'a', i); END LOOP; END $$;
INSERT INTO leaves_20240210 VALUES ('2024-02-10', 'a', 1);
SELECT is(n, 2::bigint, 'when another comes, those that had none of the last batches are gone') FROM plans;
INSERT INTO leaves_20240105 VALUES ('2024-01-05', 'a', 2);
SELECT is(n, 3::bigint, 'and are there again when they are needed') FROM plans;
SELECT is(count(*), 0::bigint, 'every row is counted') FROM millrace.verify('leaves_m');
SELECT * FROM finish();
DROP TABLE leaves CASCADE;
DROP VIEW plans;
