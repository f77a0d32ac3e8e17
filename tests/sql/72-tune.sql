BEGIN;
SELECT plan(108);
SET LOCAL client_min_messages = warning;

CREATE TABLE pairs AS SELECT DISTINCT ON (u, i) u, i, v FROM (SELECT n % 61 AS u, (n * n / 5) % 83 AS i, 1 + n % 5 AS v FROM generate_series(1, 3000) AS n) AS x;
CREATE VIEW old AS SELECT u, i, v FROM pairs WHERE millrace.split(u || ':' || i, 0.6);
CREATE VIEW new AS SELECT u, i, v FROM pairs WHERE NOT millrace.split(u || ':' || i, 0.6)
	UNION ALL SELECT u, i, v FROM pairs WHERE u % 3 = 0 -- again
	UNION ALL VALUES (7000, 1, 1), (1, 7000, 1), (2, 7000, 1); -- unknown to old

-- With a validation of one's own: as train_als and evaluate say
CREATE TEMP TABLE run AS SELECT * FROM millrace.tune_als('m', 'old', '{"rank": [2, 5, 9], "alpha": [1, 4], "iterations": 4}', 'map', 5, validation => 'new');
CREATE FUNCTION check_trials(nth bigint, exclude_seen bool) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE t record; wrong text;
BEGIN
	FOR t IN SELECT * FROM millrace.tunings WHERE run = nth LOOP
		PERFORM millrace.train_als('check', 'old', rank => (t.parameters->>'rank')::int, alpha => (t.parameters->>'alpha')::float8, iterations => (t.parameters->>'iterations')::int,
			implicit => (t.parameters->>'implicit')::bool, nonnegative => (t.parameters->>'nonnegative')::bool, value_transform => t.parameters->>'value_transform', regularization => (t.parameters->>'regularization')::float8);
		SELECT string_agg(format('%s: %s instead of %s', e.metric, t.metrics->>e.metric, e.value), ', ') INTO wrong FROM millrace.evaluate('check', 'new', (t.parameters->>'k')::int, check_trials.exclude_seen) AS e
			WHERE e.metric NOT LIKE 'unknown%' AND (t.metrics->>e.metric)::float8 IS DISTINCT FROM e.value AND abs((t.metrics->>e.metric)::float8 - e.value) < 1e-12 IS NOT TRUE;
		RETURN NEXT is(wrong, NULL, format('trial %s of run %s is measured as evaluate does', t.trial, nth));
		RETURN NEXT is(t.value, (t.metrics->>t.metric)::float8, 'its value is that of the metric');
	END LOOP;
END $$;
SELECT check_trials((SELECT run FROM run), true);
SELECT results_eq($$ SELECT trial, parameters->>'alpha', parameters->>'rank', parameters->>'iterations' FROM millrace.tunings ORDER BY trial $$,
	$$ VALUES (1, '1', '2', '4'), (2, '1', '5', '4'), (3, '1', '9', '4'), (4, '4', '2', '4'), (5, '4', '5', '4'), (6, '4', '9', '4') $$, 'the order of the trials');
SELECT results_eq('SELECT trial, parameters, metrics, metric_name, value, version FROM run', $$ SELECT trial, parameters, metrics, 'map', value, NULL::int FROM millrace.tunings ORDER BY value DESC, trial LIMIT 1 $$, 'the best is returned');
SELECT results_eq($$ SELECT trial FROM millrace.tunings WHERE best $$, 'SELECT trial FROM run', 'and marked');
SELECT is(trials, 6, 'of six') FROM run;
SELECT cmp_ok((SELECT max(value) FROM millrace.tunings), '>', (SELECT min(value) FROM millrace.tunings), 'trials differ');
SELECT is((SELECT count(*) FROM millrace.models WHERE name = 'm'), 0::bigint, 'no model is stored');
SELECT check_trials((SELECT run FROM millrace.tune_als('m', 'old', '{"rank": [4], "iterations": 3}', 'coverage', 3, validation => 'new', exclude_seen => false)), false);
SELECT check_trials((SELECT run FROM millrace.tune_als('m', 'old', '{"rank": [4, 6], "implicit": false, "iterations": 3, "nonnegative": [true, false]}', 'hit_rate', 7, validation => 'new', exclude_seen => false)), false);
SELECT check_trials((SELECT run FROM millrace.tune_als('m', 'old', '{"implicit": false, "rank": [2, 3], "regularization": [0.1, null]}', k => 7, validation => 'new')), true);
SELECT is(metric, 'rmse', 'explicit trials are compared by rmse') FROM millrace.tunings ORDER BY run DESC LIMIT 1;
SELECT is(value, (SELECT min(value) FROM millrace.tunings WHERE run = t.run), 'of which the least is best') FROM millrace.tunings AS t WHERE best ORDER BY run DESC LIMIT 1;
SELECT check_trials((SELECT run FROM millrace.tune_als('m', 'old', '{"value_transform": ["log1p", "none", "binary", "log1p"], "rank": 3, "iterations": 3}', validation => 'new')), true);
SELECT is((SELECT count(DISTINCT value) FROM millrace.tunings WHERE run = t.run), 3::bigint, 'three transforms, three values') FROM millrace.tunings AS t ORDER BY run DESC LIMIT 1;
SELECT is((SELECT array_agg(value ORDER BY trial) FROM millrace.tunings WHERE run = (SELECT run FROM millrace.tune_als('m', 'old', '{"rank": [3, 4], "iterations": 3}', validation => 'new'))),
	(SELECT array_agg(value ORDER BY trial) FROM millrace.tunings WHERE run = (SELECT run FROM millrace.tune_als('m', 'SELECT u::text, i::text, v FROM old', '{"rank": [3, 4], "iterations": 3}', validation => 'SELECT u, i, v FROM new'))), 'validation ids of the other kind, in another order');

-- Pairs that are held out: as train_als says with the same hold-out
CREATE TEMP TABLE held AS SELECT * FROM millrace.tune_als('m', 'pairs', '{"rank": 6, "iterations": 5}', holdout => 0.3, seed => 7);
SELECT is(value, (SELECT metric_value FROM millrace.train_als('check', 'pairs', rank => 6, iterations => 5, holdout => 0.3, seed => 7)), 'ndcg, as train_als measures it') FROM held;
SELECT is(metric_name, 'ndcg', 'which is the default') FROM held;
SELECT is(value, (SELECT metric_value FROM millrace.train_als('check', 'pairs', rank => 3, iterations => 5, implicit => false, holdout => 0.3)), 'rmse') FROM millrace.tune_als('m', 'pairs', '{"rank": 3, "iterations": 5, "implicit": false}', holdout => 0.3);
SELECT ok(ratings BETWEEN (SELECT count(*) * 0.65 FROM pairs) AND (SELECT count(*) * 0.75 FROM pairs), 'about that part is held out') FROM millrace.models WHERE name = 'check' ORDER BY version DESC LIMIT 1;
SELECT is(parameters->'holdout', '0.3', 'it stands among the parameters') FROM held;
SELECT isnt(value, (SELECT value FROM held), 'another seed holds out others') FROM millrace.tune_als('m', 'pairs', '{"rank": 6, "iterations": 5}', holdout => 0.3, seed => 8);
SET LOCAL millrace.threads = 1;
SELECT is(value, (SELECT value FROM held), 'one thread gives the same') FROM millrace.tune_als('m', 'pairs', '{"rank": 6, "iterations": 5}', holdout => 0.3, seed => 7);
RESET millrace.threads;
SELECT is((SELECT value FROM millrace.tune_als('m', 'SELECT (u + 100)::text, (i + 100)::text, v FROM pairs ORDER BY v, i', '{"rank": 6, "iterations": 5}', holdout => 0.3, seed => 7)),
	(SELECT value FROM millrace.tune_als('m', 'SELECT u + 100, i + 100, v FROM pairs', '{"rank": 6, "iterations": 5}', holdout => 0.3, seed => 7)), 'so do ids as text, in another order');
SELECT is((SELECT users FROM millrace.train_als('lone', 'SELECT n, n FROM generate_series(1, 50) AS n UNION ALL SELECT 1000 + n % 10, 1000 + n / 10 FROM generate_series(0, 99) AS n', rank => 2, iterations => 1, holdout => 0.9)), 60::bigint, 'everybody keeps a pair');
SELECT is(items, 60::bigint, 'and so does every item') FROM millrace.models WHERE name = 'lone';
SELECT is_empty($$ SELECT id FROM millrace.item_factors('lone') WHERE 0 = ALL (factor) UNION ALL SELECT id FROM millrace.user_factors('lone') WHERE 0 = ALL (factor) $$, 'and has factors');

-- train
CREATE TEMP TABLE trained AS SELECT * FROM millrace.tune_als('m', 'pairs', '{"rank": [2, 7], "iterations": [3], "value_transform": "log1p", "alpha": 2.5}', train => true);
SELECT is(version, 1, 'train => true makes a version') FROM trained;
SELECT is(m.parameters - 'holdout' - 'own_history', t.parameters - 'holdout' - 'own_history', 'with the best parameters') FROM millrace.models AS m, trained AS t WHERE name = 'm';
SELECT is(ratings, (SELECT count(*) FROM pairs), 'of all pairs') FROM millrace.models WHERE name = 'm';
SELECT is(active, true, 'which is active') FROM millrace.models WHERE name = 'm';

-- Trials that fail
CREATE TEMP TABLE failing AS SELECT * FROM millrace.tune_als('m', 'SELECT u, i, v FROM pairs WHERE u < 5', '{"implicit": false, "regularization": [0, 0.1, 0], "rank": 40, "iterations": 2}');
SELECT is(trial, 2, 'the others go on') FROM failing;
SELECT results_eq($$ SELECT t.trial, t.value IS NULL, t.error LIKE 'the equations of user "%" have no unique solution' FROM millrace.tunings AS t JOIN failing USING (run) ORDER BY 1 $$, $$ VALUES (1, true, true), (2, false, NULL), (3, true, true) $$, 'and it is told why');
SELECT throws_ok($$ SELECT millrace.tune_als('m', 'SELECT u, i, v FROM pairs WHERE u < 5', '{"implicit": false, "regularization": 0, "rank": [40, 41]}') $$, '22023', 'none of the 2 trials could be measured', 'all fail');
SELECT throws_ok($$ SELECT millrace.tune_als('m', 'pairs', '{"rank": 2}', validation => 'VALUES (7000, 1)') $$, '22023', 'validation: none of its users has ratings', 'nobody to measure is told before the first trial');
SET LOCAL millrace.max_memory = '1MB';
SELECT is(trial, 2, 'one that needs too much memory') FROM millrace.tune_als('m', 'pairs', '{"rank": [1024, 2], "iterations": 2}');
SELECT is(error, 'this needs more memory than millrace.max_memory allows', 'says so') FROM millrace.tunings WHERE trial = 1 ORDER BY run DESC LIMIT 1;
SELECT lives_ok($$ SELECT millrace.tune_als('m', 'pairs', '{"rank": [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8], "iterations": 1}') $$, 'a trial gives its memory back');
RESET millrace.max_memory;
SELECT is((SELECT trial FROM millrace.tune_als('m', 'pairs', '{"rank": [8, 8], "iterations": 1}')), 1, 'the first of equals');

-- Bad input
PREPARE tune(jsonb) AS SELECT millrace.tune_als('x', 'pairs', $1);
SELECT throws_ok($$ EXECUTE tune('[1]') $$, '22023', 'grid is not a JSON object', 'an array');
SELECT throws_ok($$ EXECUTE tune('3') $$, '22023', 'grid is not a JSON object', 'a number');
SELECT throws_ok($$ EXECUTE tune('{"rank": []}') $$, '22023', 'grid: there are no values of "rank"', 'an empty list');
SELECT throws_ok($$ EXECUTE tune('{"rank": [[2]]}') $$, '22023', 'grid: a value of "rank" is an array', 'lists in lists');
SELECT throws_ok($$ EXECUTE tune('{"rank": {"from": 2}}') $$, '22023', 'grid: a value of "rank" is an object', 'an object');
SELECT throws_ok($$ EXECUTE tune('{"ranks": [2]}') $$, '22023', 'a training has no parameter "ranks"', 'an unknown key');
SELECT throws_ok($$ EXECUTE tune('{"k": [2]}') $$, '22023', 'grid: "k" is the same for all trials', 'a key outside of the grid');
SELECT throws_ok($$ EXECUTE tune('{"rank": [2, 0]}') $$, '22023', 'rank must be between 1 and 1024, not 0', 'a bad value');
SELECT throws_ok($$ EXECUTE tune('{"rank": ["many"]}') $$, '22023', 'rank must be an integer, not "many"', 'a word for a number');
SELECT throws_ok($$ EXECUTE tune('{"rank": [null]}') $$, '22023', 'rank must not be NULL', 'null');
SELECT throws_ok($$ EXECUTE tune('{"value_transform": ["sqrt"]}') $$, '22023', 'value_transform must be none, log1p or binary, not "sqrt"', 'a bad name');
SELECT throws_ok(format('EXECUTE tune(%L)', jsonb_build_object('alpha', (SELECT jsonb_agg(n) FROM generate_series(1, 101) AS n), 'rank', (SELECT jsonb_agg(n) FROM generate_series(1, 100) AS n))), '22023', 'grid: there are more than 10000 combinations', 'too many combinations');
SELECT throws_ok($$ EXECUTE tune(NULL) $$, '22023', 'grid must not be NULL', 'no grid');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', 'accuracy') $$, '22023', 'there is no metric "accuracy"', 'an unknown metric');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{"implicit": [false, true]}', 'rmse') $$, '22023', 'implicit feedback has no rmse', 'rmse of implicit feedback');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{"implicit": false, "value_transform": ["none", "log1p"]}') $$, '22023', 'rmse cannot compare trials of different value_transform', 'rmse on two scales');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', holdout => 0) $$, '22023', 'holdout must be above 0 and below 1, not 0', 'nothing held out');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', holdout => 'NaN') $$, '22023', 'holdout must be above 0 and below 1, not NaN', 'NaN');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'VALUES (1, 1), (2, 2)', '{}') $$, '22023', 'holdout 0.2: none of the 2 pairs can be held out', 'nothing that can be held out');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', k => 0) $$, '22023', 'k must be between 1 and 10000, not 0', 'k');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', threads => -1) $$, '22023', 'threads must be between 0 and 1024, not -1', 'threads');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', exclude_seen => NULL) $$, '22023', 'exclude_seen must not be NULL', 'NULL');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'nope', '{}') $$, '42P01', 'relation "nope" does not exist', 'no such table');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'pairs', '{}', validation => 'SELECT 1, 1 WHERE false') $$, '22023', 'validation: there are no rows', 'an empty validation');
SELECT throws_ok($$ SELECT millrace.tune_als('x', 'SELECT u, i, -1 FROM pairs', '{"implicit": [false, true]}', 'ndcg') $$, '22023', NULL, 'negative values, if any trial is implicit');
SELECT is_empty($$ SELECT FROM millrace.tunings WHERE model = 'x' $$, 'nothing is left behind');

-- A hostile search_path
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.differs(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE OPERATOR hostile.<> (FUNCTION = hostile.differs, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR hostile.= (FUNCTION = hostile.differs, LEFTARG = text, RIGHTARG = text);
SET LOCAL search_path = hostile, pg_catalog, public;
CREATE TEMP TABLE guarded AS SELECT * FROM millrace.tune_als('m', 'public.pairs', '{"rank": [2], "iterations": 1}', train => true);
RESET search_path;
SELECT isnt(version, NULL, 'operators of others are not called') FROM guarded;

-- Rights
CREATE ROLE mr_tuner;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_tuner, mr_reader;
GRANT EXECUTE ON FUNCTION millrace.tune_als TO mr_tuner;
SET LOCAL ROLE mr_reader;
SELECT throws_ok($$ SELECT millrace.tune_als('mine', 'VALUES (1, 1)', '{}') $$, '42501', 'permission denied for function tune_als', 'only with the right to');
SELECT isnt_empty('SELECT FROM millrace.tunings', 'everybody may read the trials');
SET LOCAL ROLE mr_tuner;
SELECT throws_ok($$ SELECT millrace.tune_als('m', 'VALUES (1, 1)', '{}') $$, '42501', 'must be owner of model "m"', 'another''s model');
SELECT throws_ok($$ SELECT millrace.tune_als('mine', 'public.pairs', '{}') $$, '42501', 'permission denied for table pairs', 'another''s ratings');
SELECT throws_ok($$ SELECT millrace.tune_als('mine', 'SELECT n % 7, n % 5 FROM generate_series(1, 35) AS n', '{}', validation => 'public.pairs') $$, '42501', 'permission denied for table pairs', 'another''s validation');
SELECT throws_ok($$ SELECT millrace.tune_als('mine', 'SELECT n % 7, n % 5 FROM generate_series(1, 30) AS n', '{"rank": 2}', train => true) $$, '42501', 'permission denied for function train_als', 'train needs the right to train');
SELECT lives_ok($$ SELECT millrace.tune_als('mine', 'SELECT n % 7, n % 5 FROM generate_series(1, 30) AS n', '{"rank": 2}') $$, 'one''s own');
RESET ROLE;

-- Trials go with their model
SELECT isnt_empty($$ SELECT FROM millrace.tunings WHERE model = 'm' $$, 'there are trials');
SELECT millrace.drop_model('m');
SELECT is_empty($$ SELECT FROM millrace.tunings WHERE model = 'm' $$, 'and none without the model');
SELECT isnt_empty($$ SELECT FROM millrace.tunings WHERE model <> 'm' $$, 'others stay');

SELECT * FROM finish();
ROLLBACK;
