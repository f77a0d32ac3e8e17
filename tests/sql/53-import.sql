BEGIN;
SELECT plan(89);
SET LOCAL client_min_messages = warning;

CREATE TABLE pairs AS SELECT DISTINCT n % 61 AS u, (n * n / 5) % 83 AS i, 1 + n % 3 AS v FROM generate_series(1, 1500) AS n;
SELECT millrace.train_als('m', 'pairs', rank => 10, iterations => 5);

-- There and back: the same factors, bit by bit, and the same recommendations
CREATE TEMP TABLE result AS SELECT * FROM millrace.import_als('back', $$ SELECT id::bigint, factor FROM millrace.user_factors('m') ORDER BY random() $$, $$ SELECT id::int, factor FROM millrace.item_factors('m') ORDER BY random() $$, 'pairs');
SELECT results_eq('SELECT model, version, users, items, ratings, rank, iterations, loss, metric, metric_value, active, reason FROM result',
	$$ SELECT 'back', 1, 61::bigint, count(DISTINCT i), count(DISTINCT (u, i)), 10, 0, NULL::float8, NULL, NULL::float8, true, NULL FROM pairs $$, 'the result');
SELECT results_eq($$ SELECT * FROM millrace.user_factors('back') $$, $$ SELECT * FROM millrace.user_factors('m') $$, 'users'' factors are the same');
SELECT results_eq($$ SELECT * FROM millrace.item_factors('back') $$, $$ SELECT * FROM millrace.item_factors('m') $$, 'items'' factors are the same');
SELECT is((SELECT array_agg(data ORDER BY side, block) FROM millrace.factors WHERE model = 'back'), (SELECT array_agg(data ORDER BY side, block) FROM millrace.factors WHERE model = 'm' AND side NOT IN ('trained_on', 'usual')), 'and all blocks, the baseline''s too');
CREATE FUNCTION lists(model text, exclude_seen bool) RETURNS SETOF text LANGUAGE sql AS $$ SELECT u || t::text FROM generate_series(0, 70) AS u, millrace.recommend_top_k($1, u, 7, $2) AS t $$;
SELECT results_eq($$ SELECT lists('back', true) $$, $$ SELECT lists('m', true) $$, 'the same recommendations');
SELECT results_eq($$ SELECT lists('back', false) $$, $$ SELECT lists('m', false) $$, 'with what users have');
SELECT results_eq($$ SELECT * FROM millrace.evaluate('back', 'pairs', exclude_seen => false) $$, $$ SELECT * FROM millrace.evaluate('m', 'pairs', exclude_seen => false) $$, 'the same evaluation');
SELECT is(parameters, '{"imported": true, "rank": 10, "implicit": true}', 'parameters say so') FROM millrace.models WHERE name = 'back';
SELECT is(query, 'TABLE public.pairs', 'the query is stored') FROM millrace.models WHERE name = 'back';
SELECT is(active, true, 'active') FROM millrace.models WHERE name = 'back';
SELECT is_empty($$ SELECT * FROM millrace.trainings WHERE model = 'back' $$, 'nothing was trained');
SELECT throws_ok($$ SELECT millrace.retrain('back') $$, '55000', 'model "back" has no training to repeat', 'so nothing is repeated');

-- Ids are kept in the type that the ratings have
SELECT millrace.import_als('texts', $$ SELECT * FROM millrace.user_factors('m') $$, $$ SELECT * FROM millrace.item_factors('m') $$, 'pairs');
SELECT results_eq($$ SELECT lists('texts', true) $$, $$ SELECT lists('m', true) $$, 'text ids of an integer model are integers again');
SELECT millrace.import_als('ints', $$ SELECT id::bigint, factor FROM millrace.user_factors('m') $$, $$ SELECT id::bigint, factor FROM millrace.item_factors('m') $$, 'SELECT u::text, i::varchar FROM pairs');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('ints', 3, 100, false) WHERE item_id IS NOT NULL), 0::bigint, 'integers become text');
SELECT set_eq($$ SELECT item, score FROM millrace.recommend_top_k('ints', 3, 100) $$, $$ SELECT item, score FROM millrace.recommend_top_k('m', 3, 100) $$, 'with the same scores');
SELECT throws_ok($$ SELECT millrace.import_als('x', 'VALUES (''a'', ''{1}''::real[])', 'VALUES (1, ''{1}''::real[])', 'pairs') $$, '22P02', 'invalid input syntax for type bigint: "a"', 'a text that is no integer');

-- Without ratings
SELECT millrace.import_als('bare', $$ SELECT * FROM millrace.user_factors('m') $$, $$ SELECT * FROM millrace.item_factors('m') $$);
SELECT results_eq($$ SELECT rank, item, score, source FROM millrace.recommend_top_k('bare', 42, 10) ORDER BY 3 DESC, 2 $$, $$ SELECT rank, item, score, source FROM millrace.recommend_top_k('m', 42, 10, exclude_seen => false) ORDER BY 3 DESC, 2 $$, 'nothing is excluded; 42 finds ''42''');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('bare', 4711) $$, 'an unknown user gets nothing');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('bare', NULL::text) $$, 'nor does nobody');
SELECT is(query, NULL, 'no query is stored') FROM millrace.models WHERE name = 'bare';
SELECT is(ratings, 0::bigint, 'no pairs') FROM millrace.models WHERE name = 'bare';
SELECT is((SELECT value FROM millrace.evaluate('bare', 'pairs') WHERE metric = 'users'), 61::float8, 'evaluate excludes nothing');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('bare', 'pairs', method => 'baseline') $$, '55000', 'model "bare" has no baseline', 'nor has it a baseline');

-- Versions of one model
SELECT is(reason, 'activate is false', 'the result says that it is not active') FROM millrace.import_als('m', 'VALUES (1, ''{1,0}''::float8[]), (2, ''{0,1}'')', 'VALUES (''a'', ''{1,2}''::real[]), (''b'', ''{2,1}'')', activate => false);
SELECT is(active, false, 'activate => false') FROM millrace.models WHERE name = 'm' AND version = 2;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 1, 3)), 3::bigint, 'the old version is served');
SELECT millrace.activate('m', 2);
SELECT results_eq($$ SELECT * FROM millrace.recommend_top_k('m', 1) $$, $$ VALUES (1, NULL::bigint, 'b', 2::real, 'model'), (2, NULL, 'a', 1, 'model') $$, 'until the new one is activated');
SELECT millrace.import_als('rated', 'VALUES (1, ''{1,0}''::float8[]), (2, ''{0,1}'')', 'VALUES (1, ''{1,2}''::real[], 0), (2, ''{2,1}'', 0)', implicit => false);
SELECT is(value, sqrt((1 + 4) / 2.0)::float8, 'implicit => false: evaluate tells the RMSE') FROM millrace.evaluate('rated', 'VALUES (1, 1, 2), (2, 1, 0)') WHERE metric = 'rmse';

-- What is stored
CREATE DOMAIN embedding AS real[];
CREATE TABLE domains AS SELECT n::smallint AS id, ARRAY[n, 1.5]::embedding AS factor FROM generate_series(1, 9000) AS n;
SELECT lives_ok($$ SELECT millrace.import_als('domains', 'domains', 'SELECT id::varchar(9), factor::float8[] FROM domains') $$, 'a table, domains, more than one block');
SELECT results_eq($$ SELECT id, factor FROM millrace.user_factors('domains') $$, 'SELECT id::text, factor::real[] FROM domains ORDER BY domains.id', 'stored as given');
SELECT results_eq($$ SELECT id FROM millrace.item_factors('domains') $$, 'SELECT id::text FROM domains ORDER BY id::text COLLATE "C"', 'text in the order of its bytes');
SELECT lives_ok($$ SELECT millrace.import_als('nd', 'SELECT 1, ARRAY[n, 2]::real[] FROM generate_series(1, 1) AS n', 'SELECT 1, ''[5:6]={1,2}''::real[]') $$, 'bounds of the array do not matter');
SELECT is(factor, '{1,2}'::real[], 'they are not kept') FROM millrace.item_factors('nd');
SELECT lives_ok(format('SELECT millrace.import_als(%L, %L, %2$L)', 'wide', 'SELECT repeat(chr(228), 30000) || n, (SELECT array_agg(x::real) FROM generate_series(1, 1024) AS x) FROM generate_series(1, 3) AS n'), 'the widest factors, long ids');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('wide', repeat(chr(228), 30000) || 2)), 3::bigint, 'and they are found');

-- Bad input
PREPARE import(text, text) AS SELECT millrace.import_als('x', $1, $2);
CREATE FUNCTION fails(rows text, code text, message text, what text) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT throws_ok(format('EXECUTE import(%L, %L)', $1, 'VALUES (1, ''{1,2}''::real[])'), $2, 'users: ' || $3, $4 || ': users')
	UNION ALL SELECT throws_ok(format('EXECUTE import(%L, %L)', 'VALUES (1, ''{1,2}''::real[])', $1), $2, 'items: ' || $3, $4 || ': items') $$;
SELECT fails('VALUES (1, ''{1,2}''::real[]), (2, ''{1,2}''), (1, ''{1,3}'')', '22023', 'id "1" is there more than once', 'the same id twice');
SELECT fails('VALUES (''ab'', ''{1,2}''::real[]), (''a'', ''{1,2}''), (''ab'', ''{1,3}'')', '22023', 'id "ab" is there more than once', 'the same text twice');
SELECT fails('VALUES (1, ''{1,2}''::real[]), (NULL, ''{1,2}'')', '22023', 'an id is NULL', 'a NULL id');
SELECT fails('VALUES (1, ''{1,2}''::real[]), (42, NULL)', '22023', 'the factor of id "42" is NULL', 'a NULL factor');
SELECT fails('VALUES (1, ''{1,2}''::real[]), (42, ''{1,NULL}'')', '22023', 'the factor of id "42" contains NULL', 'NULL inside');
SELECT fails('VALUES (1, ''{1,2}''::real[]), (42, ''{1,2,3}'')', '22023', 'the factor of id "42" has 3 numbers, another has 2', 'another length');
SELECT fails('VALUES (42, ''{}''::real[])', '22023', 'the factor of id "42" is empty', 'no number');
SELECT fails('VALUES (42, ''{{1,2},{3,4}}''::real[])', '22023', 'the factor of id "42" has 2 dimensions', 'two dimensions');
SELECT fails('VALUES (42, array_fill(1::real, ARRAY[1025]))', '22023', 'the factor of id "42" has 1025 numbers', 'too many numbers');
SELECT fails('VALUES (42, ''{1,NaN}''::real[])', '22003', 'the factor of id "42" contains NaN', 'NaN');
SELECT fails('VALUES (42, ''{1,-Infinity}''::float8[])', '22003', 'the factor of id "42" contains an infinite number', 'infinity');
SELECT fails('VALUES (42, ''{1,1e39}''::float8[])', '22003', 'the factor of id "42" contains a number out of range: 1e+39', 'out of range of real');
SELECT fails('SELECT 1, ''{1,2}''::real[] WHERE false', '22023', 'there are no rows', 'no rows');
SELECT fails('SELECT 1', '22023', 'expected two columns, found 1', 'one column');
SELECT fails('VALUES (1.5, ''{1,2}''::real[])', '22023', 'the first column, id, is neither an integer nor text but numeric', 'an id of another type');
SELECT fails('VALUES (1, ''{1,2}''::int[])', '22023', 'the second column, factor, is neither real[] nor double precision[] but integer[]', 'factors of another type');
SELECT fails('VALUES (repeat(''x'', 65537), ''{1,2}''::real[])', '54000', 'an id has 65537 bytes, more than 65536', 'an id too long');
SELECT throws_ok($$ EXECUTE import('VALUES (1, ''{1,2}''::real[])', 'VALUES (1, ''{1,2,3}''::real[])') $$, '22023', 'the factors of users have 2 numbers, those of items 3', 'sides of two lengths');
SELECT throws_ok($$ EXECUTE import('nope', 'domains') $$, '42P01', 'relation "nope" does not exist', 'no such table');
SELECT throws_ok($$ EXECUTE import('DELETE FROM domains', 'domains') $$, '22023', 'users must be a single query that returns rows', 'no query');
SELECT throws_ok($$ EXECUTE import('SELECT n, ''{1,2}''::real[] FROM generate_series(1, 3000) AS n WHERE 1 / (2500 - n) > -5', 'domains') $$, '22012', NULL, 'a query that fails');
SELECT throws_ok($$ EXECUTE import(NULL, 'domains') $$, '22023', 'users must not be NULL', 'NULL users');
SELECT throws_ok($$ SELECT millrace.import_als('x', 'domains', '') $$, '22023', 'items must not be empty', 'empty items');
SELECT throws_ok($$ SELECT millrace.import_als('x', 'domains', 'domains', 'SELECT 1, 1 WHERE false') $$, '22023', 'ratings: there are no rows', 'empty ratings');
SELECT throws_ok($$ SELECT millrace.import_als('x', 'domains', 'domains', implicit => NULL) $$, '22023', 'implicit must not be NULL', 'NULL implicit');
SELECT throws_ok($$ SELECT millrace.import_als('x', 'domains', 'domains', activate => NULL) $$, '22023', 'activate must not be NULL', 'NULL activate');
SET LOCAL millrace.max_memory = '1MB';
SELECT throws_ok($$ EXECUTE import('SELECT n, array_fill(1::real, ARRAY[500]) FROM generate_series(1, 2000) AS n', 'domains') $$, '54000', 'this needs more memory than millrace.max_memory allows', 'memory');
RESET millrace.max_memory;
SELECT is_empty($$ SELECT FROM millrace.models WHERE name = 'x' $$, 'nothing is left behind');

-- A hostile search_path
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.differs(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE FUNCTION hostile.differs(bigint, bigint) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE OPERATOR hostile.< (FUNCTION = hostile.differs, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR hostile.< (FUNCTION = hostile.differs, LEFTARG = bigint, RIGHTARG = bigint);
SET LOCAL search_path = hostile, pg_catalog, public;
CREATE TEMP TABLE guarded AS SELECT * FROM millrace.import_als('guarded', 'domains', 'SELECT id::text, factor FROM public.domains', 'SELECT id, id::text FROM public.domains');
RESET search_path;
SELECT is(version, 1, 'operators of others are not called') FROM guarded;

-- Rights
CREATE ROLE mr_importer;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_importer, mr_reader;
GRANT EXECUTE ON FUNCTION millrace.import_als TO mr_importer;
CREATE TABLE secret AS TABLE domains;
SET LOCAL ROLE mr_reader;
SELECT throws_ok($$ EXECUTE import('domains', 'domains') $$, '42501', 'permission denied for function import_als', 'only with the right to');
SET LOCAL ROLE mr_importer;
SELECT throws_ok($$ SELECT millrace.import_als('mine', 'public.secret', 'public.secret') $$, '42501', 'permission denied for table secret', 'queries run as the caller');
SELECT throws_ok($$ SELECT millrace.import_als('m', 'VALUES (1, ''{1}''::real[])', 'VALUES (1, ''{1}''::real[])') $$, '42501', 'must be owner of model "m"', 'another''s model');
CREATE TEMP TABLE passing AS SELECT 1 AS id, '{1,2}'::real[] AS factor;
SELECT lives_ok($$ SELECT millrace.import_als('mine', 'passing', 'passing') $$, 'factors may be in temporary tables');
SELECT throws_ok($$ SELECT millrace.import_als('mine', 'passing', 'passing', 'SELECT id, id FROM passing') $$, '22023', 'temporary relation "passing" cannot be used', 'ratings may not');
RESET ROLE;
SELECT is(owner::text, 'mr_importer', 'who imports is the owner') FROM millrace.models WHERE name = 'mine';
SELECT millrace.import_als('mine', 'secret', 'secret');
SELECT is(owner::text, 'mr_importer', 'and stays it when a superuser imports') FROM millrace.models WHERE name = 'mine' AND version = 2;
SELECT throws_ok($$ SELECT millrace.import_als('mine', 'secret', 'secret', 'SELECT id, id FROM public.secret') $$, '42501', 'permission denied for table secret', 'who lends no rights to the ratings');

SELECT * FROM finish();
ROLLBACK;
