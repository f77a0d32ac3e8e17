BEGIN;
SELECT no_plan();
SET LOCAL client_min_messages = error;

/* What is kept from the batches of a source, compared with what SQL says. */
CREATE FUNCTION pg_temp.history(model text, query text, users text[], OUT kept bool, OUT differences bigint, OUT n bigint) LANGUAGE plpgsql AS $$
BEGIN
	CREATE TEMP TABLE h AS SELECT * FROM millrace.user_history(model, users);
	EXECUTE format('CREATE TEMP TABLE w AS SELECT u::text AS "user", i::text AS item, sum(CASE WHEN v::float8 BETWEEN -1e38 AND 1e38 THEN v::float4::float8 ELSE 0 END)::float4 AS value FROM (%s) AS q(u, i, v)
		WHERE u IS NOT NULL AND u::text = ANY ($1) AND i::text IN (SELECT id FROM millrace.item_factors(%L)) GROUP BY 1, 2', query, model) USING users;
	SELECT bool_and(is_kept), count(*) INTO kept, n FROM h;
	SELECT count(*) INTO differences FROM (
		(SELECT "user", item, value FROM h EXCEPT ALL SELECT * FROM w) UNION ALL (SELECT * FROM w EXCEPT ALL SELECT "user", item, value FROM h)) AS q;
	-- One user is looked up in the index; for many a short table is read whole.
	CREATE TEMP TABLE one AS SELECT o.* FROM unnest(users) AS u, millrace.user_history(model, ARRAY[u]) AS o;
	differences := differences + (SELECT count(*) FROM ((SELECT * FROM h EXCEPT ALL SELECT * FROM one) UNION ALL (SELECT * FROM one EXCEPT ALL SELECT * FROM h)) AS q);
	DROP TABLE one;
	DROP TABLE h, w;
END $$;
CREATE FUNCTION pg_temp.check(model text, query text, is_kept text, what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	users text[];
BEGIN
	EXECUTE format('SELECT array_agg(DISTINCT u::text) FROM (%s) AS q(u, i, v)', query) INTO users;
	RETURN is((SELECT format('%s %s', kept, differences) FROM pg_temp.history(model, query, users || '{nobody, 471100}'::text[])), is_kept || ' 0', what);
END $$;
CREATE FUNCTION pg_temp.same(model text, what text, query text = 'SELECT u, i, v FROM p') RETURNS text LANGUAGE sql AS $$ SELECT pg_temp.check(model, query, 't', what) $$;
CREATE FUNCTION pg_temp.queried(model text, what text, query text = 'SELECT u, i, v FROM p') RETURNS text LANGUAGE sql AS $$ SELECT pg_temp.check(model, query, 'f', what) $$;
CREATE FUNCTION pg_temp.has(model text, VARIADIC users text[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(format('%s:%s=%s', h."user", h.item, h.value), ' ' ORDER BY n) FROM ROWS FROM (millrace.user_history(model, users)) WITH ORDINALITY AS h("user", item, value, is_new, is_kept, n)
$$;
CREATE FUNCTION pg_temp.new(model text, VARIADIC users text[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(DISTINCT format('%s=%s', h."user", h.is_new), ' ') FROM millrace.user_history(model, users) AS h
$$;
CREATE FUNCTION pg_temp.maintain() RETURNS bigint LANGUAGE sql AS $$ SELECT sum(millrace._maintain_history(name))::bigint FROM millrace.stream $$;

CREATE TABLE truth AS SELECT n % 37 AS u, (n * n / 3) % 41 AS i, sum(1 + n % 3) AS v FROM generate_series(1, 900) AS n GROUP BY 1, 2;
CREATE TABLE p (at timestamptz, gone text, u int, i bigint, v numeric) PARTITION BY RANGE (at);
ALTER TABLE p DROP COLUMN gone;
SELECT millrace.create_source('p', 'at', '1 day');
SELECT millrace.ensure_partitions('p', '2024-01-01 UTC', '2024-01-05 UTC');
INSERT INTO p SELECT '2024-01-01 UTC'::timestamptz + n * interval '7 min', u, i, v FROM (SELECT row_number() OVER () AS n, * FROM truth) AS q;
CREATE TEMP TABLE done4 AS SELECT millrace.train_als('p', 'SELECT u, i, v FROM p', rank => 4, iterations => 2);
SELECT is(format('%s %s %s', kind, source, status), 'history p running', 'training begins to keep them where the ratings are a source') FROM millrace.streams;
SELECT pg_temp.same('p', 'what was there');
SELECT is(pg_temp.new('p', '5', '6'), '5=f 6=f', 'as trained on');
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 3, 2), ('2024-01-03 UTC', 5, 3, 1.5), ('2024-01-03 UTC', 4711, 3, 1), ('2024-01-03 UTC', 5, 4711, 1);
SELECT pg_temp.same('p', 'rows inserted just now');
SELECT is(pg_temp.new('p', '5', '6'), '5=t 6=f', 'are new');
SELECT is(pg_temp.has('p', '5', '6', '5'), concat_ws(' ', pg_temp.has('p', '5'), pg_temp.has('p', '6'), pg_temp.has('p', '5')), 'a user who is asked for twice');
INSERT INTO p VALUES ('2024-01-02 UTC', NULL, 3, 2), ('2024-01-03 UTC', 6, NULL, 1.5), ('2024-01-03 UTC', 7, 3, NULL), ('2024-01-03 UTC', 7, 4, 'NaN'), ('2024-01-03 UTC', 7, 5, '-Infinity'), ('2024-01-03 UTC', 7, 6, 1e300), ('2024-01-03 UTC', 7, 7, 0.1), ('2024-01-03 UTC', 7, 7, 1e-20), ('2024-01-03 UTC', 7, 8, -3);
SELECT pg_temp.same('p', 'NULL, NaN and numbers out of range');
SAVEPOINT s;
INSERT INTO p VALUES ('2024-01-02 UTC', 8, 3, 99);
DELETE FROM p WHERE u = 9;
SELECT pg_temp.same('p', 'in a savepoint');
ROLLBACK TO s;
SELECT pg_temp.same('p', 'that is rolled back');
UPDATE p SET v = v + 1 WHERE u = 5;
SELECT pg_temp.same('p', 'UPDATE of values');
UPDATE p SET u = 10 WHERE u = 11;
SELECT pg_temp.same('p', 'UPDATE of users');
UPDATE p SET at = at + interval '1 day' WHERE u = 12 AND at < '2024-01-04 UTC';
SELECT pg_temp.same('p', 'UPDATE that moves rows to other partitions');
DELETE FROM p WHERE u = 13 OR i = 3;
SELECT pg_temp.same('p', 'DELETE');
SELECT is(pg_temp.has('p', '13'), NULL, 'nothing is left of him');
INSERT INTO p_20240102 (i, u, v, at) VALUES (3, 13, 1, '2024-01-02 UTC'), (1, 14, 1, '2024-01-02 UTC');
UPDATE p_20240102 SET v = 7 WHERE u = 14;
DELETE FROM p_20240102 WHERE u = 15;
SELECT pg_temp.same('p', 'a partition by its name');
COPY p (u, i, v, at) FROM STDIN;
16	3	2.5	2024-01-02 UTC
16	3	2.5	2024-01-03 UTC
\.
COPY p_20240102 (v, u, i, at) FROM STDIN;
2.5	16	4	2024-01-02 UTC
\.
SELECT pg_temp.same('p', 'COPY');
SELECT is(streams -> (SELECT name FROM millrace.stream) ->> 'rows', NULL, 'counted at commit only') FROM millrace.batches LIMIT 1;
SELECT cmp_ok(pg_temp.maintain(), '>', 10::bigint, 'folding');
SELECT pg_temp.same('p', 'folded');
CREATE FUNCTION pg_temp.rows(OUT folded bigint, OUT users bigint, OUT unfolded bigint) LANGUAGE plpgsql AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream WHERE kind = 'history';
	EXECUTE format('SELECT (SELECT count(*) FROM %1$s), (SELECT count(DISTINCT key) FROM %1$s), (SELECT count(*) FROM %2$s)', s.target, s.delta) INTO folded, users, unfolded;
END $$;
SELECT ok(folded = users AND unfolded = 0, 'one row a user') FROM pg_temp.rows();
DELETE FROM p WHERE u = 20;
INSERT INTO p VALUES ('2024-01-02 UTC', 21, 3, 2);
INSERT INTO p VALUES ('2024-01-02 UTC', 21, 3, 2);
DELETE FROM p WHERE u = 21 AND i = 3;
SELECT ok(pg_temp.maintain() > 0, 'folding again');
SELECT pg_temp.same('p', 'what is deleted folds away');
SELECT is((SELECT folded FROM pg_temp.rows()), (SELECT count(DISTINCT u) FROM p WHERE i IS NOT NULL), 'with users of whom nothing is left');

-- Partitions come and go
ALTER TABLE p DETACH PARTITION p_20240102;
SELECT pg_temp.same('p', 'without a partition that was detached');
INSERT INTO p_20240102 VALUES ('2024-01-02 UTC', 5, 9, 1);
ALTER TABLE p ATTACH PARTITION p_20240102 FOR VALUES FROM ('2024-01-02 UTC') TO ('2024-01-03 UTC');
SELECT pg_temp.same('p', 'attached again, with what it got meanwhile');
ALTER TABLE p_20240102 RENAME TO renamed;
SELECT ok(pg_temp.maintain() >= 0, 'until');
SELECT pg_temp.same('p', 'it is filled anew');
CREATE TABLE new_one PARTITION OF p FOR VALUES FROM ('2024-02-01 UTC') TO ('2024-02-02 UTC');
SELECT pg_temp.same('p', 'a partition without rows');
CREATE TABLE parted (v numeric, i bigint, u int, at timestamptz) PARTITION BY LIST (u);
CREATE TABLE parted_5 PARTITION OF parted FOR VALUES IN (5);
CREATE TABLE parted_other PARTITION OF parted DEFAULT;
INSERT INTO parted VALUES (3, 1, 5, '2024-03-01 UTC'), (4, 1, 6, '2024-03-01 UTC');
ALTER TABLE p ATTACH PARTITION parted FOR VALUES FROM ('2024-03-01 UTC') TO ('2024-03-02 UTC');
SELECT pg_temp.same('p', 'partitions of a partition, whose columns stand in another order');
INSERT INTO p VALUES ('2024-03-01 UTC', 5, 2, 7), ('2024-03-01 UTC', 6, 2, 7);
INSERT INTO parted_5 VALUES (8, 2, 5, '2024-03-01 UTC');
SELECT pg_temp.same('p', 'and rows that come to them');
ALTER TABLE parted DETACH PARTITION parted_5;
SELECT pg_temp.same('p', 'one of them detached');
DROP TABLE new_one;
SELECT pg_temp.queried('p', 'a partition that was dropped: by the query');
SELECT ok(pg_temp.maintain() >= 0, 'until');
SELECT pg_temp.same('p', 'it is filled anew');
TRUNCATE renamed;
SELECT is(status, 'filling', 'so is one that was truncated') FROM millrace.streams;
SELECT pg_temp.queried('p', 'by the query');
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 3, 1);
SELECT ok(pg_temp.maintain() >= 0, 'until');
SELECT pg_temp.same('p', 'it is filled anew, with a row that came meanwhile');

-- Stopped, started, failed
CREATE TEMP TABLE name AS SELECT name FROM millrace.stream;
SELECT millrace.stop_stream(name) FROM name;
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 3, 1);
SELECT pg_temp.queried('p', 'stopped: by the query');
SELECT millrace.start_stream(name) FROM name;
SELECT pg_temp.same('p', 'started');
ALTER TABLE p RENAME COLUMN u TO x;
ALTER TABLE p RENAME COLUMN i TO u;
ALTER TABLE p RENAME COLUMN x TO i;
SELECT pg_temp.queried('p', 'columns that have changed their names: by the query');
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 3, 1);
SELECT is(status, 'failed', 'the next batch finds it out, and goes on') FROM millrace.streams;
SELECT millrace.refresh(name) FROM name;
SELECT pg_temp.same('p', 'filled with what the query means now');
ALTER TABLE p RENAME COLUMN i TO x;
ALTER TABLE p RENAME COLUMN u TO i;
ALTER TABLE p RENAME COLUMN x TO u;
ALTER TABLE p RENAME TO p2;
SELECT throws_ok($$ SELECT * FROM millrace.user_history('p', '{5}') $$, '42P01', NULL, 'a table that has another name: as the query says');
INSERT INTO p2 VALUES ('2024-01-02 UTC', 5, 3, 1);
ALTER TABLE p2 RENAME TO p;
SELECT is(millrace.track_history('p'), (SELECT name FROM name), 'track_history heals it');
SELECT pg_temp.same('p', 'healed');

-- Columns of another type
ALTER TABLE p ALTER v TYPE float8 USING v * 2;
SELECT pg_temp.queried('p', 'other values by a change of type: by the query');
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 3, 1);
SELECT ok(pg_temp.maintain() >= 0, 'until');
SELECT pg_temp.same('p', 'they are filled anew');
ALTER TABLE p ALTER v TYPE numeric USING v / 2;
SELECT ok(pg_temp.maintain() >= 0, 'as it was');
CREATE TABLE k AS SELECT * FROM truth;
CREATE TEMP TABLE done16 AS SELECT millrace.train_als('k', 'SELECT u, i, v FROM k', rank => 2, iterations => 1, track_history => true);
ALTER TABLE k ALTER u TYPE text, ALTER i TYPE text;
INSERT INTO k VALUES ('5', '3', 1);
SELECT pg_temp.queried('k', 'users and items of another kind: by the query', 'SELECT u, i, v FROM k');
SELECT ok(pg_temp.maintain() >= 0, 'until');
SELECT pg_temp.same('k', 'they are filled anew, too', 'SELECT u, i, v FROM k');
SELECT millrace.drop_model('k');

-- One stream for the same ratings, gone with the last model
CREATE TEMP TABLE done8 AS SELECT millrace.train_als('p2', 'SELECT u, i, v FROM p WHERE v >= 0 AND v < 1e30 AND i IS NOT NULL AND u IS NOT NULL', rank => 4, iterations => 1);
CREATE TEMP TABLE done9 AS SELECT millrace.train_als('p3', 'SELECT u, i, v FROM p WHERE v >= 0 AND v < 1e30 AND i IS NOT NULL AND u IS NOT NULL', rank => 4, iterations => 1);
SELECT is(count(*), 2::bigint, 'two models share one, the first has another') FROM millrace.stream;
SELECT pg_temp.same(m, m, 'SELECT u, i, v FROM p WHERE v >= 0 AND v < 1e30 AND i IS NOT NULL AND u IS NOT NULL') FROM (VALUES ('p2'), ('p3')) AS v(m);
UPDATE p SET v = -v WHERE u IN (5, 6);
SELECT pg_temp.same('p3', 'rows that come to fulfil conditions, and others that no longer do', 'SELECT u, i, v FROM p WHERE v >= 0 AND v < 1e30 AND i IS NOT NULL AND u IS NOT NULL');
UPDATE p SET v = -v WHERE u IN (5, 6);
SELECT millrace.drop_model('p2');
SELECT is(count(*), 2::bigint, 'a model less') FROM millrace.stream;
SELECT millrace.drop_model('p');
SELECT is(count(*), 1::bigint, 'the last of them') FROM millrace.stream;
CREATE TEMP TABLE done10 AS SELECT millrace.train_als('p3', 'SELECT u, i, v FROM p WHERE v > 2 AND v < 1e30 AND u IS NOT NULL AND i IS NOT NULL', rank => 4, iterations => 1);
SELECT millrace.prune('p3', 1);
SELECT is(string_agg(definition, ';'), 'SELECT u, i, v FROM p WHERE v > 2 AND v < 1e30 AND u IS NOT NULL AND i IS NOT NULL', 'of a version that was pruned nothing is left') FROM millrace.streams;
TRUNCATE p;
SELECT is_empty($$ SELECT * FROM millrace.user_history('p3', '{5, 6}') $$, 'TRUNCATE');
INSERT INTO p VALUES ('2024-01-02 UTC', 5, 1, 3);
SELECT pg_temp.same('p3', 'and it goes on', 'SELECT u, i, v FROM p WHERE v > 2');
SELECT is(status, 'running', 'all the time') FROM millrace.streams;
DROP TABLE p;
SELECT is_empty('SELECT * FROM millrace.stream', 'it goes with the source');
SELECT is_empty($$ SELECT * FROM pg_class WHERE relnamespace = 'millrace'::regnamespace AND relname LIKE 'history\_%' $$, 'and so do its tables');

-- What can be kept
CREATE TABLE e (u text, i varchar(20), n int, price float8, at timestamptz DEFAULT now());
INSERT INTO e SELECT 'u' || u, 'item ' || i, v::int, v * 1.1 FROM truth;
SELECT millrace.create_source('e', 'at');
CREATE VIEW clean AS SELECT u AS who, i AS what, n, price FROM e WHERE n > 1;
CREATE VIEW cleaner AS SELECT who, what, price * 2 AS twice, n FROM clean AS c WHERE price < 100;
CREATE TABLE other AS SELECT DISTINCT u, i FROM e;
CREATE FUNCTION pg_temp.kept(query text, plain text = NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	before int := (SELECT count(*) FROM millrace.stream);
BEGIN
	PERFORM millrace.train_als('e', query, rank => 2, iterations => 1);
	IF (SELECT count(*) FROM millrace.stream) = before THEN
		RETURN NULL;
	END IF;
	INSERT INTO e VALUES ('u5', 'item 1', 3, 0.3), ('u5', 'item 1', 3, 0.2), ('new', 'item 0', 5, 1);
	UPDATE e SET n = n + 1 WHERE u = 'u7';
	DELETE FROM e WHERE u = 'u8' AND i = 'item 0';
	RETURN (SELECT format('%s %s', h.kept, h.differences) FROM pg_temp.history('e', coalesce(plain, query),
		(SELECT array_agg(DISTINCT u) || array_agg(DISTINCT upper(u)) || array_agg(DISTINCT i::text) FROM e)) AS h);
END $$;
SELECT is(pg_temp.kept(q, p), 't 0', q) FROM (VALUES
	('SELECT u, i, n FROM e', NULL),
	('SELECT u, i FROM e', 'SELECT u, i, 1 FROM e'),
	('SELECT who, what, twice FROM cleaner', NULL),
	('cleaner', 'TABLE cleaner'),
	('SELECT what, who FROM (SELECT * FROM clean WHERE n < 90) AS q WHERE price > 0', 'SELECT what, who, 1 FROM (SELECT * FROM clean WHERE n < 90) AS q WHERE price > 0'),
	('SELECT upper(u), i, ln(1 + n) FROM e WHERE i <> ''item 7'' ORDER BY 1', NULL),
	('SELECT u, i, sum(n) FROM e GROUP BY u, i', NULL),
	('SELECT u, i, count(*) FROM e WHERE n > 1 GROUP BY 1, 2', NULL),
	('SELECT u, i, count(price)::float8 FROM e GROUP BY 1, 2', NULL),
	('SELECT who, what, sum(n) FILTER (WHERE n < 30) FROM clean GROUP BY 1, 2 HAVING true', 'SELECT who, what, coalesce(sum(n) FILTER (WHERE n < 30), 0) FROM clean GROUP BY 1, 2'),
	('SELECT who, what, coalesce(n, 0) FROM clean', NULL)) AS v(q, p) WHERE q NOT LIKE '%HAVING%';
CREATE FUNCTION look(n int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN n + (SELECT count(*) FROM other); END';
SELECT is(pg_temp.kept(q), NULL, q) FROM (VALUES
	('SELECT u, i, max(n) FROM e GROUP BY 1, 2'),
	('SELECT u, i FROM e GROUP BY 1, 2'),
	('SELECT DISTINCT u, i FROM e'),
	('SELECT u, i, sum(n) FROM e GROUP BY 1, 2 HAVING sum(n) > 0'),
	('SELECT u, i, sum(price)::int FROM e GROUP BY 1, 2'),
	('SELECT u, i, n FROM e WHERE at + interval ''365 days'' > now()'),
	('SELECT u, i, n FROM e WHERE random() < 2'),
	('SELECT u, i, look(n) FROM e'),
	('SELECT u, i, n FROM e WHERE look(n) > 1'),
	('SELECT u, i, n FROM e WHERE i IN (SELECT i FROM e)'),
	('SELECT u, i, n FROM e LIMIT 1000'),
	('SELECT u, i, n FROM e UNION ALL SELECT u, i, n FROM e'),
	('SELECT e.u, e.i, n FROM e JOIN other USING (i)'),
	('WITH q AS MATERIALIZED (SELECT * FROM e) SELECT u, i, n FROM q'),
	('SELECT u, i, rank() OVER (ORDER BY n) FROM e'),
	('SELECT u, i, n FROM e TABLESAMPLE BERNOULLI (100)'),
	('SELECT u, i, n FROM ONLY e'),
	('SELECT u, i, generate_series(1, n) FROM e'),
	('SELECT u, i FROM other')) AS v(q);
SELECT throws_like($$ SELECT millrace.train_als('e', 'SELECT DISTINCT u, i FROM e', rank => 2, iterations => 1, track_history => true) $$, '%cannot be kept for model "e"%', 'track_history => true: an error says why');
SELECT throws_like($$ SELECT millrace.track_history('e2') $$, '%"e2" does not exist', 'an unknown model');
CREATE TEMP TABLE done11 AS SELECT millrace.train_als('e3', 'SELECT u, i, n FROM e WHERE n > 2', rank => 2, iterations => 1, track_history => false);
SELECT is(count(*), 0::bigint, 'track_history => false: not begun') FROM millrace.stream WHERE command LIKE '%n > 2';
CREATE TEMP TABLE done17 AS SELECT millrace.retrain('e3');
SELECT is(count(*), 0::bigint, 'nor by retrain') FROM millrace.stream WHERE command LIKE '%n > 2';
SELECT isnt(millrace.track_history('e3'), NULL, 'but later');
CREATE TEMP TABLE done14 AS SELECT millrace.train_als('t', 'other', rank => 2, iterations => 1);
SELECT isnt(millrace.track_history('t'), NULL, 'a table that is no source becomes one');
SELECT is(source, 'other'::regclass, 'it has') FROM millrace.sources WHERE source = 'other'::regclass;
INSERT INTO other VALUES ('u5', 'item 1');
SELECT pg_temp.same('t', 'and its rows are kept', 'SELECT u, i, 1 FROM other');

-- A partition whose rows come and go without triggers
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE TABLE f (u int, i int) PARTITION BY LIST (u);
CREATE TABLE f_other PARTITION OF f DEFAULT;
INSERT INTO f SELECT u, i FROM truth;
CREATE TEMP TABLE done18 AS SELECT millrace.train_als('f', 'f', rank => 2, iterations => 1);
CREATE FOREIGN TABLE f_far PARTITION OF f FOR VALUES IN (-1) SERVER nowhere;
SELECT throws_like($$ SELECT millrace.track_history('f') $$, '%a foreign partition%', 'a foreign partition');

-- Rights
CREATE ROLE history_owner;
GRANT USAGE ON SCHEMA millrace TO history_owner;
GRANT CREATE ON SCHEMA public TO history_owner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO history_owner;
SET LOCAL ROLE history_owner;
CREATE TABLE o (u int, i int);
INSERT INTO o SELECT u, i FROM generate_series(1, 10) AS u, generate_series(1, 10) AS i WHERE (u * i) % 3 = 1;
CREATE TEMP TABLE done12 AS SELECT millrace.train_als('o', 'public.o', rank => 2, iterations => 1, track_history => true);
INSERT INTO o VALUES (1, 1), (1, 5);
SELECT throws_ok(format('SELECT * FROM %s', target), '42501', NULL, 'the table itself is nobody''s') FROM millrace.stream WHERE source = 'o'::regclass;
RESET ROLE;
SELECT pg_temp.same('o', 'of one who owns model and table', 'SELECT u, i, 1 FROM o');
INSERT INTO o VALUES (2, 2);
SELECT pg_temp.same('o', 'rows of another', 'SELECT u, i, 1 FROM o');
ALTER TABLE o OWNER TO CURRENT_USER;
SELECT throws_ok($$ SELECT * FROM millrace.user_history('o', '{1}') $$, '42501', NULL, 'who may no longer read the table is told nothing');
GRANT SELECT ON o TO history_owner;
SELECT pg_temp.queried('o', 'who may only read it, by the query', 'SELECT u, i, 1 FROM o');
SELECT lives_ok('INSERT INTO o VALUES (3, 3)', 'which keeps nobody from writing');
SELECT is(status, 'failed', 'the stream stands still') FROM millrace.streams WHERE source = 'o'::regclass;
SELECT pg_temp.queried('o', 'still by the query', 'SELECT u, i, 1 FROM o');
GRANT CREATE ON SCHEMA millrace TO history_owner;
ALTER TABLE o OWNER TO history_owner;
SELECT isnt(millrace.track_history('o'), NULL, 'heals it');
SELECT pg_temp.same('o', 'healed', 'SELECT u, i, 1 FROM o');

-- A user with very much
CREATE TABLE big (u text, i text);
INSERT INTO big SELECT 'u' || n % 3, 'a long name that all of them begin with ' || n * 7919 % 10007 || CASE WHEN n % 2 = 0 THEN ' ü' ELSE '' END FROM generate_series(1, 12000) AS n;
CREATE TEMP TABLE done15 AS SELECT millrace.train_als('big', 'big', rank => 2, iterations => 1, track_history => true);
SELECT pg_temp.same('big', 'thousands of items', 'SELECT u, i, 1 FROM big');
INSERT INTO big SELECT 'u' || n % 3, 'a long name that all of them begin with ' || n FROM generate_series(1, 9000) AS n;
DELETE FROM big WHERE i LIKE '%5';
SELECT pg_temp.same('big', 'and more', 'SELECT u, i, 1 FROM big');
SELECT ok(pg_temp.maintain() > 0, 'folding');
SELECT pg_temp.same('big', 'folded', 'SELECT u, i, 1 FROM big');

-- A corrupt row
CREATE TABLE c (u int, i int);
INSERT INTO c SELECT u, i FROM generate_series(1, 10) AS u, generate_series(1, 10) AS i WHERE (u * i) % 3 = 1;
CREATE TEMP TABLE done13 AS SELECT millrace.train_als('c', 'c', rank => 2, iterations => 1, track_history => true);
CREATE FUNCTION pg_temp.spoil(model_source regclass, bytes bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('UPDATE %s SET items = %L', (SELECT target FROM millrace.stream WHERE source = model_source), bytes);
END $$;
SELECT pg_temp.spoil('c', '\x');
SELECT throws_ok($$ SELECT * FROM millrace.user_history('c', '{1}') $$, 'XX001', NULL, 'empty');
SELECT pg_temp.spoil('c', '\x6901ffffffffffffffffffffff01');
SELECT throws_ok($$ SELECT * FROM millrace.user_history('c', '{1}') $$, 'XX001', NULL, 'a number without end');
SELECT pg_temp.spoil('c', '\x690201');
SELECT throws_ok($$ SELECT * FROM millrace.user_history('c', '{1}') $$, 'XX001', NULL, 'too short');
SELECT pg_temp.spoil('c', '\x740101014108');
SELECT throws_ok($$ SELECT * FROM millrace.user_history('c', '{1}') $$, 'XX001', NULL, 'a text that begins nowhere');
SELECT pg_temp.spoil('c', '\x6901020800');
SELECT throws_ok($$ SELECT * FROM millrace.user_history('c', '{1}') $$, 'XX001', NULL, 'too long');
SELECT millrace.stop_stream(name) FROM millrace.stream WHERE source = 'c'::regclass;
SELECT millrace.start_stream(name) FROM millrace.stream WHERE source = 'c'::regclass;
SELECT pg_temp.same('c', 'stopped and started it is whole again', 'SELECT u, i, 1 FROM c');
SELECT millrace.drop_model(name) FROM (SELECT DISTINCT name FROM millrace.models) AS m;
SELECT is_empty('SELECT * FROM millrace.stream', 'dropping all models leaves no stream');
SELECT is_empty($$ SELECT * FROM pg_class WHERE relnamespace = 'millrace'::regnamespace AND relname LIKE 'history\_%' $$, 'and no table');
SELECT * FROM finish();
ROLLBACK;
