-- Indexers: numbers against the definition in SQL; every kind of value; what a statement sees; one_hot.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = warning;

CREATE SCHEMA shop;
CREATE TABLE shop.rows AS SELECT (ARRAY['b', 'a', 'C', 'a', 'b', 'd', NULL, 'a', 'é', 'B', '', 'z', 'C', 'ab'])[1 + n * n / 3 % 14] AS v, n FROM generate_series(1, 300) AS n;
-- The definition
CREATE FUNCTION numbered(query text) RETURNS TABLE (index int, value text, count bigint) LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE format(
	'SELECT (row_number() OVER (ORDER BY count(*) DESC, v::text COLLATE "C"))::int - 1, v::text, count(*) FROM (%s) AS q(v) WHERE v IS NOT NULL GROUP BY v::text', query); END $$;
CREATE FUNCTION labels(name text) RETURNS TABLE (index int, value text, count bigint) STABLE LANGUAGE sql AS
	$$ SELECT l.index, l.value, l.count FROM millrace.index_label AS l JOIN millrace.models AS m ON m.name = l.model AND m.version = l.version AND m.active WHERE l.model = $1 $$;

-- A fit and what it leaves
CREATE TEMP TABLE result AS SELECT * FROM millrace.fit_indexer('i', 'shop.rows');
SELECT is((model, version, active, rows, users, items, ratings, rank, iterations, loss, metric, metric_value, reason)::text, '(i,1,t,300,,,,,,,,,)', 'the row of a training') FROM result;
SELECT ok(seconds > 0, 'seconds') FROM result;
SELECT is((kind, version, active, rows, users, items, ratings, uses, query, parameters - 'columns')::text, '(indexer,1,t,300,,,,,"TABLE shop.rows","{""on_unknown"": ""error""}")', 'a model of kind indexer') FROM millrace.models WHERE name = 'i';
SELECT is((metrics->>'values')::bigint, (SELECT count(DISTINCT v) FROM shop.rows), 'metrics: values') FROM millrace.models WHERE name = 'i';
SELECT is((metrics->>'nulls')::bigint, (SELECT count(*) FROM shop.rows WHERE v IS NULL), 'NULLs are counted') FROM millrace.models WHERE name = 'i';
SELECT set_eq($$ SELECT * FROM labels('i') $$, $$ SELECT * FROM numbered('SELECT v FROM shop.rows') $$, 'by frequency, ties by bytes');
SELECT is_empty($$ SELECT v FROM shop.rows JOIN numbered('SELECT v FROM shop.rows') ON value = v WHERE millrace.index_of('i', v) IS DISTINCT FROM index $$, 'index_of is the number');
SELECT is(millrace.index_size('i'), (SELECT count(DISTINCT v)::int FROM shop.rows), 'index_size is how many there are');
-- A locale that sorts otherwise, unless the server was built without ICU
SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'en-x-icu') AS has_icu \gset
\if :has_icu
SELECT millrace.fit_indexer('ties', $$ SELECT unnest('{z,ä,a,Z}'::text[]) COLLATE "en-x-icu" $$);
\else
SELECT millrace.fit_indexer('ties', $$ SELECT unnest('{z,ä,a,Z}'::text[]) $$);
\endif
SELECT is(array_agg(value ORDER BY index), '{Z,a,z,ä}', 'bytewise, whatever the locale') FROM labels('ties');

-- Values of any type, by their text; only the first column counts
CREATE TYPE shop.size AS ENUM ('small', 'large');
CREATE DOMAIN shop.word AS varchar(8);
CREATE TABLE shop.types AS SELECT n % 3 AS i, n % 2 = 0 AS b, date '2011-07-01' + n % 4 AS d, (n % 5) * 0.10 AS x, ('c' || n % 2)::char(5) AS c,
	(ARRAY['small', 'large'])[1 + n % 2]::shop.size AS e, ('w' || n % 3)::shop.word AS w, ARRAY[n % 2, n % 3] AS a, 1.5::float8 * (n % 3) AS f FROM generate_series(1, 20) AS n;
SELECT lives_ok(format('SELECT millrace.fit_indexer(%L, %L)', 'of_' || c, format('SELECT %I, 1, 2 AS v FROM shop.types', c)), c || ' is fitted') || E'\n' ||
	set_eq(format('SELECT * FROM labels(%L)', 'of_' || c), format('SELECT * FROM numbered(%L)', format('SELECT %I FROM shop.types', c)), c || ' by its text') || E'\n' ||
	results_eq(format('SELECT count(*) FROM shop.types, labels(%L) WHERE value = %I::text AND millrace.index_of(%1$L, %2$I::text) = index', 'of_' || c, c), 'VALUES (20::bigint)', c || ' is found')
	FROM unnest('{i,b,d,x,c,e,w,a,f}'::text[]) AS c;
SELECT millrace.fit_indexer('numerics', 'VALUES (1.0), (1.00), (1.00)');
SELECT set_eq($$ SELECT value FROM labels('numerics') $$, '{1.00,1.0}'::text[], 'values that are equal but not the same text are two');
SELECT is(millrace.index_of('numerics', '1.00'), 0, 'each with its own number');
SELECT is(millrace.index_of('of_c', 'c1'::char(9)), millrace.index_of('of_c', 'c1'), 'blanks at the end of a character(n) are no part of it');
SELECT lives_ok($$ SELECT millrace.fit_indexer('long', 'SELECT repeat(chr(228), 5000 * n) || n FROM generate_series(1, 9) AS n') $$, 'long values');
SELECT is((SELECT string_agg(millrace.index_of('long', repeat(chr(228), 5000 * n) || n)::text, '' ORDER BY (repeat(chr(228), 5000 * n) || n) COLLATE "C") FROM generate_series(1, 9) AS n), '012345678', 'are found');
SELECT throws_ok(format('SELECT millrace.index_of(%L, repeat(%L, 9000))', 'long', 'ä'), '22023', format('indexer "long" does not know the value "%s"', repeat('ä', 50)), 'and cut in messages, between characters');
SELECT lives_ok($$ SELECT millrace.fit_indexer('many', 'SELECT ''v'' || n FROM generate_series(1, 25000) AS n, generate_series(1, 1 + n % 3)') $$, 'many values');
SELECT set_eq($$ SELECT * FROM labels('many') $$, $$ SELECT * FROM numbered('SELECT ''v'' || n FROM generate_series(1, 25000) AS n, generate_series(1, 1 + n % 3)') $$, 'are all stored');
SELECT is((SELECT count(*) FROM labels('many') WHERE millrace.index_of('many', value) = index), 25000::bigint, 'and found');
SELECT throws_ok($$ SELECT millrace.index_of('many', 'v25001') $$, '22023', 'indexer "many" does not know the value "v25001"', 'another is not');

-- Queries
CREATE VIEW shop.v AS SELECT v FROM shop.rows WHERE n > 100;
SELECT lives_ok(format('SELECT millrace.fit_indexer(%L, %L)', 'q', query), query) || E'\n' || set_eq('SELECT value, count FROM labels(''q'')', $$ SELECT v, count(*) FROM shop.v WHERE v IS NOT NULL GROUP BY v $$, query)
	FROM unnest(ARRAY['shop.v', 'SHOP.V', 'TABLE shop.v', 'SELECT * FROM shop.v;', 'WITH q AS (SELECT v FROM shop.v) SELECT * FROM q -- all of it', 'SELECT v AS x, count(*) OVER () AS x FROM shop.v ORDER BY 1', 'SELECT "V" FROM (SELECT v AS "V" FROM shop.v) AS q /* ; */']) AS query;
SELECT throws_ok(format('SELECT millrace.fit_indexer(''bad'', %L)', query), state, message, message)
	FROM (VALUES ('shop.nothing', '42P01', 'relation "shop.nothing" does not exist'), ('SELECT nothing FROM shop.rows', '42703', 'column "nothing" does not exist'), ('SELECT FROM shop.rows', '22023', 'indexer "bad": the query has no columns'),
		('SELECT v FROM shop.rows WHERE false', '22023', 'indexer "bad": there are no values'), ('SELECT NULL::text FROM shop.rows', '22023', 'indexer "bad": there are no values'),
		('DELETE FROM shop.rows RETURNING v', '22023', 'query must be a single query that returns rows'), ('EXPLAIN SELECT 1', '22023', 'query must be a single query that returns rows'), ('SELECT 1 INTO x', '22023', 'query must be a single query that returns rows'), ('SELECT 1; SELECT 2', '22023', 'query must be a single query that returns rows'), ('SELECT $1', '42P02', 'there is no parameter $1'),
		('SELECT 1/(n - n) FROM shop.rows', '22012', 'division by zero'), ('', '22023', 'query must not be empty')) AS t (query, state, message);
SELECT throws_ok(call, '22023', message, message) FROM (VALUES ('SELECT millrace.fit_indexer(NULL, ''shop.rows'')', 'name must not be NULL'), ('SELECT millrace.fit_indexer('''', ''shop.rows'')', 'name must not be empty'),
	('SELECT millrace.fit_indexer(''bad'', NULL)', 'query must not be NULL'), ('SELECT millrace.fit_indexer(''bad'', ''shop.rows'', NULL)', 'on_unknown must not be NULL'), ('SELECT millrace.fit_indexer(''bad'', ''shop.rows'', ''skip'')', 'on_unknown must be error, keep or null, not "skip"'),
	('SELECT millrace.fit_indexer(''bad'', ''shop.rows'', activate => NULL)', 'activate must not be NULL'), ('SELECT millrace.index_of(NULL, ''a'')', 'name must not be NULL'), ('SELECT millrace.index_size(NULL)', 'name must not be NULL')) AS t (call, message);
SELECT is_empty($$ SELECT FROM millrace.models WHERE name = 'bad' $$, 'nothing is left of what failed');
SELECT throws_ok($$ SELECT millrace.index_of('nobody', 'a') $$, '42704', 'model "nobody" does not exist', 'an unknown indexer');
SELECT throws_ok($$ SELECT millrace.index_size('') $$, '42704', 'model "" does not exist', 'or without a name');
CREATE TEMP TABLE passing AS SELECT 1 AS v;
SELECT throws_ok($$ SELECT millrace.fit_indexer('bad', 'passing') $$, '22023', 'temporary relation "passing" cannot be used', 'no temporary table, for retrain could not read it');
SET LOCAL millrace.max_memory = '1MB';
SELECT throws_like($$ SELECT millrace.fit_indexer('bad', 'SELECT ''value '' || n FROM generate_series(1, 50000) AS n') $$, 'this needs more memory than millrace.max_memory allows', 'within max_memory');
RESET millrace.max_memory;

-- Unknown values, and NULL
SELECT throws_ok($$ SELECT millrace.index_of('i', 'x') $$, '22023', 'indexer "i" does not know the value "x"', 'error: unknown');
SELECT throws_ok($$ SELECT millrace.index_of('i', NULL) $$, '22023', 'indexer "i" has no number for NULL', 'error: NULL');
SELECT throws_ok($$ SELECT millrace.index_of('i', 'A') $$, '22023', 'indexer "i" does not know the value "A"', 'error: another case');
SELECT millrace.fit_indexer('keep', 'shop.rows', 'keep'), millrace.fit_indexer('null', 'shop.rows', on_unknown => 'null');
SELECT is(ARRAY[millrace.index_of('keep', 'x'), millrace.index_of('keep', NULL), millrace.index_of('keep', 'a'), millrace.index_size('keep')], ARRAY[n, n, millrace.index_of('i', 'a'), n + 1], 'keep: one number for all, behind the others') FROM millrace.index_size('i') AS n;
SELECT is(ARRAY[millrace.index_of('null', 'x'), millrace.index_of('null', NULL), millrace.index_of('null', 'a'), millrace.index_size('null')], ARRAY[NULL, NULL, millrace.index_of('i', 'a'), n], 'null: none') FROM millrace.index_size('i') AS n;
SELECT is(millrace.index_of('i', ''), (SELECT index FROM labels('i') WHERE value = ''), 'an empty text is a value');

-- Versions
SELECT is(active, false, 'activate => false') FROM millrace.fit_indexer('ver', 'VALUES (''x'')', activate => false);
SELECT throws_ok($$ SELECT millrace.index_of('ver', 'x') $$, '55000', 'model "ver" has no active version', 'none is active');
SELECT is(reason, 'activate is false', 'the reason') FROM millrace.fit_indexer('ver', 'VALUES (''y''), (''x''), (''y'')', activate => false);
SELECT millrace.activate('ver', 1);
SELECT is(millrace.index_of('ver', 'x'), 0, 'the first version');
SELECT millrace.activate('ver', 2);
SELECT is(millrace.index_of('ver', 'x'), 1, 'the second');
SELECT is(millrace.rollback('ver'), 1, 'rollback');
SELECT is(millrace.index_of('ver', 'x'), 0, 'the first again');
SELECT is(millrace.prune('ver', 1), 0, 'prune keeps the newest and the active one');
SELECT millrace.activate('ver', 2);
SELECT is(millrace.prune('ver', 1), 1, 'and removes the rest');
SELECT is(count(*), 2::bigint, 'with its values') FROM millrace.index_label WHERE model = 'ver';
SELECT throws_ok($$ SELECT millrace.activate('ver', 1) $$, '42704', 'model "ver" has no version 1', 'it has gone');
SELECT is(millrace.warm('ver'), 0::bigint, 'warm has nothing to do');

-- retrain
SET LOCAL DateStyle = 'German';
CREATE TABLE shop.days AS SELECT date '2011-07-01' + n % 3 AS d FROM generate_series(1, 8) AS n;
SET LOCAL search_path = shop, public;
SELECT millrace.fit_indexer('days', 'SELECT d FROM days', 'keep');
RESET search_path; RESET DateStyle;
SELECT is(millrace.index_of('days', '02.07.2011'), 0, 'a text form depends on settings');
INSERT INTO shop.days SELECT date '2011-07-09' FROM generate_series(1, 5);
SELECT is((version, rows, active, reason)::text, '(2,13,t,)', 'retrain fits again') FROM millrace.retrain('days');
SELECT is(ARRAY[millrace.index_of('days', '09.07.2011'), millrace.index_of('days', '02.07.2011'), millrace.index_of('days', '?')], '{0,1,4}', 'on what there is now, with the settings and on_unknown of before');
SELECT is((active, reason)::text, '(f,"activate is false")', 'activate') FROM millrace.retrain('days', activate => false);
SELECT throws_ok(format('SELECT millrace.retrain(''days'', %s => 1)', a), '22023', format('%s means nothing for model "days", which is of kind indexer', a), a) FROM unnest('{iterations,holdout,seed}'::text[]) AS a;
SELECT throws_ok($$ SELECT millrace.retrain('days', activate => NULL) $$, '22023', 'activate must not be NULL', 'NULL');
DROP TABLE shop.days;
SELECT throws_ok($$ SELECT millrace.retrain('days') $$, '42P01', 'relation "days" does not exist', 'a table that has gone');
SELECT is(millrace.index_of('days', '02.07.2011'), 1, 'leaves the version');

-- What a statement sees: the version that its snapshot shows, from the first row to the last
CREATE FUNCTION fit(name text, v text) RETURNS int LANGUAGE sql AS $$ SELECT version FROM millrace.fit_indexer(name, format('VALUES (%L), (''x'')', v)) $$;
SELECT fit('see', 'a'); -- a 0, x 1
DECLARE before CURSOR FOR SELECT millrace.index_of('see', 'x') FROM generate_series(1, 3);
FETCH before;
SELECT is(ARRAY[millrace.index_of('see', 'x'), fit('see', 'z'), millrace.index_of('see', 'x')], '{1,2,1}', 'a statement does not see what it does');
SELECT is(millrace.index_of('see', 'x'), 0, 'the next one does');
SELECT results_eq('FETCH ALL FROM before', 'VALUES (1), (1)', 'a cursor is of its time');
CREATE FUNCTION steps() RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE r int[] = '{}';
BEGIN
	FOR i IN 1 .. 4 LOOP
		BEGIN
			IF i = 2 THEN PERFORM fit('see', 'a'); END IF;
			r = r || millrace.index_of('see', 'x');
			IF i = 2 THEN RAISE EXCEPTION 'undone'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
		IF i = 3 THEN PERFORM fit('see', 'b'); END IF;
	END LOOP;
	RETURN r;
END $$;
SELECT is(steps(), '{0,1,0,1}', 'in a loop: what is done is seen, what is undone no more');
SAVEPOINT s;
SELECT fit('see', 'y');
SELECT millrace.index_of('see', 'x') AS inside \gset
ROLLBACK TO s;
SELECT is(ARRAY[:inside, millrace.index_of('see', 'x')], '{0,1}', 'in a savepoint, and after it');
CREATE FUNCTION undone() RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE r int[] = '{}'; n int;
BEGIN
	FOR i IN 1 .. 3 LOOP
		BEGIN
			IF i = 2 THEN
				PERFORM fit('see', 'y');
				BEGIN -- a later transaction ends, so that the end of this one does not show in a snapshot
					PERFORM fit('see', 'z');
					RAISE EXCEPTION 'undone';
				EXCEPTION WHEN raise_exception THEN NULL;
				END;
			END IF;
			n = millrace.index_of('see', 'x'); -- one expression for all of them
			r = r || n;
			IF i = 2 THEN RAISE EXCEPTION 'undone'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
	RETURN r;
END $$;
SELECT is(undone(), '{1,0,1}', 'one expression, evaluated before, in and after what is undone');
PREPARE p(text) AS SELECT millrace.index_of('see', $1);
SET LOCAL plan_cache_mode = force_generic_plan;
SELECT results_eq($$ EXECUTE p('x') $$, 'VALUES (1)', 'a prepared statement');
SELECT fit('see', 'y');
SELECT results_eq($$ EXECUTE p('x') $$, 'VALUES (0)', 'sees each time what there is');
SELECT millrace.drop_model('see');
SELECT throws_ok($$ EXECUTE p('x') $$, '42704', 'model "see" does not exist', 'dropped');
SELECT fit('see', 'a');
SELECT results_eq($$ EXECUTE p('x') $$, 'VALUES (1)', 'and made anew: other contents under the same number');

-- Many of them in one statement, more than a backend keeps
SELECT millrace.fit_indexer('m' || n, format('VALUES (%L), (%L), (%1$L)', CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END, CASE WHEN n % 2 = 0 THEN 'b' ELSE 'a' END)) FROM generate_series(1, 50) AS n;
SELECT is((SELECT count(*) FROM generate_series(1, 500) AS n WHERE millrace.index_of('m' || 1 + n % 50, 'a') = (1 + n % 50) % 2), 500::bigint, 'names from rows');
DO $$ BEGIN EXECUTE (SELECT 'CREATE FUNCTION all_of_them(v text) RETURNS int[] STABLE LANGUAGE sql AS $f$ SELECT ARRAY[' || string_agg(format('millrace.index_of(%L, v)', 'm' || n), ',' ORDER BY n) || '] $f$' FROM generate_series(1, 50) AS n); END $$;
SELECT is(count(*), 200::bigint, 'or from the query') FROM generate_series(1, 200) AS n WHERE all_of_them('a') = (SELECT array_agg(n % 2 ORDER BY n) FROM generate_series(1, 50) AS n);
SELECT cmp_ok(count(*), '<=', 60::bigint, 'and what is kept is bounded') FROM pg_backend_memory_contexts WHERE name = 'millrace fitted';

-- Parallel workers see the same, of this transaction too
CREATE TABLE shop.wide AS SELECT 'v' || 1 + n % 25000 AS v FROM generate_series(1, 60000) AS n;
ANALYZE shop.wide;
SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL max_parallel_workers_per_gather = 2;
CREATE FUNCTION plan_of(query text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE line text; plan text = ''; BEGIN FOR line IN EXECUTE 'EXPLAIN (COSTS off) ' || query LOOP plan = plan || line || E'\n'; END LOOP; RETURN plan; END $$;
PREPARE many AS SELECT sum(millrace.index_of('many', v)), count(*) FROM shop.wide WHERE millrace.index_of('many', v) % 2 = 1;
SELECT matches(plan_of('EXECUTE many'), 'Parallel Seq Scan', 'in parallel');
SELECT results_eq('EXECUTE many', $$ SELECT sum(index), count(*) FROM shop.wide JOIN labels('many') ON value = v WHERE index % 2 = 1 $$, 'the same');
SET LOCAL max_parallel_workers_per_gather = 0;

-- As a trigger of another table, in a check, in a read-only transaction
CREATE TABLE shop.checked (v text CHECK (millrace.index_of('keep', v) < millrace.index_size('keep') - 1));
SELECT lives_ok($$ INSERT INTO shop.checked SELECT v FROM shop.rows WHERE v IS NOT NULL $$, 'in a check');
SELECT throws_ok($$ INSERT INTO shop.checked VALUES ('x') $$, '23514', NULL, 'that fails');

-- Damage
DELETE FROM millrace.index_label WHERE model = 'keep' AND index = 3;
SELECT millrace.activate('keep', 1);
UPDATE millrace.model_version SET uuid = gen_random_uuid() WHERE model = 'keep';
SELECT throws_ok($$ SELECT millrace.index_of('keep', 'a') $$, 'XX001', NULL, 'a row that is missing is noticed');

-- one_hot
SELECT is(ARRAY[millrace.one_hot(0, 4), millrace.one_hot(1, 4), millrace.one_hot(2, 4), millrace.one_hot(3, 4)], '{{1,0,0},{0,1,0},{0,0,1},{0,0,0}}'::float8[], 'the last one has no place');
SELECT is(ARRAY[millrace.one_hot(0, 3, false), millrace.one_hot(1, 3, false), millrace.one_hot(2, 3, drop_last => false)], '{{1,0,0},{0,1,0},{0,0,1}}'::float8[], 'unless it is asked for');
SELECT is(array_dims(millrace.one_hot(7, 9)), '[1:8]', 'bounds');
SELECT is((millrace.one_hot(0, 1), millrace.one_hot(0, 1, false))::text, '({},{1})', 'of one value');
SELECT is(millrace.one_hot(NULL, 4) IS NULL AND millrace.one_hot(1, NULL) IS NULL AND millrace.one_hot(1, 4, NULL) IS NULL, true, 'NULL');
SELECT is(millrace.one_hot(2, 4) || ARRAY[7, 8]::float8[] || 9::float8, '{0,0,1,7,8,9}'::float8[], 'an array like any other');
SELECT is((SELECT sum(x) FROM unnest(millrace.one_hot(99999, 100000, false)) AS x), 1::float8, 'a wide one');
SELECT throws_ok(call, state, message, message) FROM (VALUES ('SELECT millrace.one_hot(4, 4)', '22023', 'index must be between 0 and 3, not 4'), ('SELECT millrace.one_hot(-1, 4)', '22023', 'index must be between 0 and 3, not -1'),
	('SELECT millrace.one_hot(0, 0)', '22023', 'n must be at least 1, not 0'), ('SELECT millrace.one_hot(0, -2147483648)', '22023', 'n must be at least 1, not -2147483648'), ('SELECT millrace.one_hot(0, 2147483647)', '54000', 'an array of 2147483646 numbers is too large')) AS t (call, state, message);
SELECT is(provolatile::text || proparallel::text || proisstrict::text, CASE proname WHEN 'one_hot' THEN 'istrue' WHEN 'fit_indexer' THEN 'vufalse' ELSE 'ssfalse' END, proname || ': volatility, parallel, strict')
	FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND proname IN ('one_hot', 'index_of', 'index_size', 'fit_indexer');

-- values that are stored in several pieces, as they are long
SELECT millrace.fit_indexer('pages', $$ SELECT chr(64 + i) || repeat('x', 900000 + i) FROM generate_series(1, 40) AS i $$);
SELECT is((SELECT string_agg(left(value, 1), '' ORDER BY index) || ' ' || sum(length(value)) || ' ' || max(index) FROM millrace.index_label WHERE model = 'pages'),
	(SELECT string_agg(chr(64 + i), '' ORDER BY chr(64 + i) COLLATE "C") || ' ' || sum(900001 + i) || ' 39' FROM generate_series(1, 40) AS i), 'long values are stored in order');
SELECT is(millrace.index_of('pages', chr(64 + 40) || repeat('x', 900040)), 39, 'and found');
SELECT millrace.drop_model('pages');

-- In a transaction that only reads
SET LOCAL transaction_read_only = on;
SELECT is(millrace.index_of('i', 'a'), 0, 'index_of reads');
SELECT throws_ok($$ SELECT millrace.fit_indexer('i', 'VALUES (''a'')') $$, '25006', 'cannot execute millrace.fit_indexer() in a read-only transaction', 'fit_indexer writes');

SELECT * FROM finish();
ROLLBACK;
