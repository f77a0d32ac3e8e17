-- What a training takes, stops and measures; retrain, its warm start and its gate; rollback.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;

CREATE SCHEMA shop;
-- 80 users, 60 items, four tastes: a user has most items of his taste, and few others.
CREATE FUNCTION taste(u int, i int, salt text) RETURNS bool IMMUTABLE LANGUAGE sql AS
	$$ SELECT millrace.split(u || ' ' || i || salt, CASE WHEN u % 4 = i % 4 THEN 0.7 ELSE 0.05 END) $$;
CREATE TABLE shop.r AS SELECT u, i, 1 + (u * i) % 3 AS v FROM generate_series(1, 80) AS u, generate_series(1, 60) AS i WHERE taste(u, i, '');
CREATE FUNCTION factors_md5(m text, ver int) RETURNS text LANGUAGE sql AS
	$$ SELECT md5(string_agg(side || block || encode(data, 'hex'), ',' ORDER BY side, block)) FROM millrace.factors WHERE model = m AND version = ver AND side NOT IN ('trained_on', 'usual') $$;
CREATE FUNCTION active(m text) RETURNS int LANGUAGE sql AS $$ SELECT version FROM millrace.models WHERE name = m AND active $$;
CREATE FUNCTION all_of(m text) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(t::text, E'\n' ORDER BY version) FROM millrace.models AS t WHERE name = m $$;

-- Values
CREATE TABLE shop.v AS SELECT u, i, 1 + (u * i) % 3 AS v FROM shop.r UNION ALL SELECT u, i, 2 FROM shop.r WHERE u % 3 = 0;
SELECT millrace.train_als('v', 'shop.v', rank => 4, iterations => 3, value_transform => 'log1p');
SELECT millrace.train_als('v', 'SELECT u, i, ln(1 + sum(v)) FROM shop.v GROUP BY 1, 2', rank => 4, iterations => 3);
SELECT ok(abs(1 - max((metrics->>'loss')::float8) / min((metrics->>'loss')::float8)) < 1e-6, 'log1p is ln(1 + the sum of a pair)') FROM millrace.models WHERE name = 'v';
SELECT millrace.train_als('v', 'SELECT u, i, v FROM shop.v UNION ALL VALUES (1, 1, 0)', rank => 4, iterations => 3, value_transform => 'binary');
SELECT millrace.train_als('v', 'SELECT u, i, 1 FROM shop.r UNION ALL SELECT 1, 1, 0 WHERE NOT EXISTS (SELECT FROM shop.r WHERE u = 1 AND i = 1)', rank => 4, iterations => 3);
SELECT is(factors_md5('v', 3), factors_md5('v', 4), 'binary is 1 for what is above zero, 0 for zero');
SELECT is(parameters->>'value_transform', 'binary', 'and is stored') FROM millrace.models WHERE name = 'v' AND version = 3;
SELECT throws_ok($$ SELECT millrace.train_als('v', 'VALUES (1, 2, 3), (4, 5, -1)', implicit => false, value_transform => 'log1p') $$, '22023', NULL, 'no logarithm of zero or less');
SELECT millrace.train_als('n', 'shop.r', rank => 4, iterations => 5, nonnegative => true);
SELECT ok(min(f) >= 0 AND max(f) > 0, 'nonnegative factors') FROM (SELECT unnest(factor) FROM millrace.user_factors('n') UNION ALL SELECT unnest(factor) FROM millrace.item_factors('n')) AS t (f);

-- From factors that are all negative, nonnegative ones would be 0 for ever
SELECT millrace.import_als('n2', 'SELECT DISTINCT u, ARRAY[-1,-2,-3]::real[] FROM shop.r', 'SELECT DISTINCT i, ARRAY[-1,-2,-3]::real[] FROM shop.r');
SELECT millrace.train_als('n2', 'shop.r', rank => 3, iterations => 3, nonnegative => true, warm_start => warm) FROM unnest('{t,f}'::bool[]) AS warm;
SELECT is(factors_md5('n2', 2), factors_md5('n2', 3), 'nonnegative factors do not start from negative ones');

-- Early stop
CREATE TEMP TABLE early AS SELECT * FROM millrace.train_als('early', 'shop.r', rank => 4, iterations => 200, tolerance => 1e-3);
SELECT ok(iterations BETWEEN 2 AND 60, 'ends when the loss no longer falls: ' || iterations) FROM early;
SELECT is(count(*), (SELECT iterations FROM early)::bigint, 'as many rows as iterations') FROM millrace.trainings WHERE model = 'early';
SELECT is(bool_and(falls ORDER BY iteration), false, 'at the first such iteration') FROM (SELECT iteration, loss < 0.999 * lag(loss) OVER (ORDER BY iteration) AS falls FROM millrace.trainings WHERE model = 'early') t WHERE falls IS NOT NULL;
SELECT is(count(*), 1::bigint, 'and no later') FROM (SELECT loss < 0.999 * lag(loss) OVER (ORDER BY iteration) AS falls FROM millrace.trainings WHERE model = 'early') t WHERE NOT falls;
SELECT is(parameters->>'iterations', '200', 'what is stored is what was asked for') FROM millrace.models WHERE name = 'early';
SELECT is((SELECT iterations FROM millrace.train_als('early', 'SELECT 1, 1', rank => 1, iterations => 40, tolerance => 0)), 40, 'tolerance 0: all are done');

-- Hold-out
CREATE TEMP TABLE held AS SELECT * FROM millrace.train_als('m', 'SELECT u, i, v FROM shop.r', rank => 6, iterations => 8, holdout => 0.25);
SELECT ok(ratings BETWEEN 0.7 * all_pairs AND 0.8 * all_pairs, 'a quarter is held out') FROM held, (SELECT count(*) AS all_pairs FROM shop.r) AS r;
SELECT is((metric, active, reason)::text, '(ndcg,t,)', 'measured by NDCG') FROM held;
SELECT ok(metric_value > 0.5, 'which is high on clear tastes: ' || metric_value) FROM held;
SELECT is((metrics->>'metric', (metrics->>'metric_value')::float8, (metrics->'holdout'->>'ndcg')::float8)::text, (SELECT (metric, metric_value, metric_value)::text FROM held), 'it stands in the metrics')
	FROM millrace.models WHERE name = 'm';
SELECT is(ARRAY(SELECT jsonb_object_keys(metrics->'holdout') ORDER BY 1), '{coverage,hit_rate,map,ndcg,precision,recall,rmse,users}', 'with everything else') FROM millrace.models WHERE name = 'm';
SELECT is((parameters->'holdout', parameters->'k')::text, '(0.25,10)', 'parameters of measuring are stored') FROM millrace.models WHERE name = 'm';
SELECT is(count(metric), 8::bigint, 'each iteration is measured') FROM millrace.trainings WHERE model = 'm';
SELECT is((SELECT metric FROM millrace.trainings WHERE model = 'm' AND iteration = 8), (SELECT metric_value FROM held), 'on all users, where they are few');
SELECT is((SELECT (metric, metric_value, ratings)::text FROM millrace.train_als('m2', 'shop.r', rank => 6, iterations => 8, holdout => 0.25, threads => 1)), (SELECT (metric, metric_value, ratings)::text FROM held), 'one thread measures the same');
SELECT isnt((SELECT metric_value FROM millrace.train_als('m2', 'shop.r', rank => 6, iterations => 8, holdout => 0.25, k => 3)), (SELECT metric_value FROM held), 'another k measures something else');
SELECT is(count(metric), 0::bigint, 'without a hold-out nothing is measured') FROM millrace.trainings WHERE model = 'early';
CREATE TABLE shop.rated AS SELECT u, i, 1 + (u % 5) * 0.5 + (i % 3) AS v FROM generate_series(1, 60) u, generate_series(1, 40) i WHERE (u * i) % 5 <> 0;
CREATE TEMP TABLE rated AS SELECT * FROM millrace.train_als('rated', 'shop.rated', implicit => false, rank => 3, iterations => 12, holdout => 0.2, regularization => 0.01);
SELECT is(metric, 'rmse', 'explicit feedback is measured by RMSE') FROM rated;
SELECT ok(metric_value < 0.2, 'which is low where there is a pattern: ' || metric_value) FROM rated;
SELECT is((metrics->'holdout'->>'rmse')::float8, (SELECT metric_value FROM rated), 'in the metrics too') FROM millrace.models WHERE name = 'rated';
SELECT ok((metrics->'holdout'->>'ndcg') IS NOT NULL, 'and the lists at the end') FROM millrace.models WHERE name = 'rated';

-- Many items: an iteration is measured on a part of the users, the end on all (10,000 at most)
CREATE TEMP TABLE wide AS SELECT * FROM millrace.train_als('wide', 'SELECT (i * i / 3) % 600, i FROM generate_series(1::bigint, 140000) AS i UNION ALL SELECT u, 1 + (u * k) % 40 FROM generate_series(0, 599) AS u, generate_series(1, 5) AS k',
	rank => 4, iterations => 2, holdout => 0.4);
SELECT cmp_ok((metrics->'holdout'->>'users')::int, '>', 500, 'all users at the end') FROM millrace.models WHERE name = 'wide';
SELECT is((metrics->>'metric_value')::float8, (SELECT metric_value FROM wide), 'which is the result') FROM millrace.models WHERE name = 'wide';
SELECT isnt((SELECT metric FROM millrace.trainings WHERE model = 'wide' AND iteration = 2), (SELECT metric_value FROM wide), 'a part after an iteration');

-- activate => false
SELECT is((SELECT (version, active, reason)::text FROM millrace.train_als('m', 'SELECT u, i, v FROM shop.r', rank => 6, iterations => 8, holdout => 0.25, activate => false)), '(2,f,"activate is false")', 'not activated');
SELECT is(active('m'), 1, 'the active version stays');
SELECT is((active, activated, metrics->>'reason')::text, '(f,,"activate is false")', 'the view says so') FROM millrace.models WHERE name = 'm' AND version = 2;
SELECT millrace.train_als('never', 'shop.r', rank => 2, iterations => 1, activate => false);
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('never', 1) $$, '55000', 'model "never" has no active version', 'a first version that is not activated is not served');
SELECT is((SELECT reason FROM millrace.retrain('never')), 'no gate: no version was active', 'retrain of a model without active version');
SELECT is(active('never'), 2, 'activates');

-- retrain repeats the definition, with the settings of its creation
SET LOCAL search_path = shop, public;
SELECT millrace.train_als('def', 'SELECT u, i, v FROM r', rank => 3, iterations => 4, alpha => 2, unobserved_weight => 0.1, regularization => 0.02, regularization_exponent => 0.5,
	value_transform => 'log1p', seed => 7, nonnegative => true, tolerance => 1e-5, k => 4);
SET LOCAL search_path = public;
SELECT is((SELECT (model, version, rank, iterations, active, reason)::text FROM millrace.retrain('def', warm_start => false)), '(def,2,3,4,t,"no gate: nothing was held out")', 'retrain');
SELECT is(factors_md5('def', 1), factors_md5('def', 2), 'cold, on the same rows: the same bits');
SELECT is(a.parameters, b.parameters, 'the same parameters') FROM millrace.models AS a, millrace.models AS b WHERE a.name = 'def' AND a.version = 1 AND b.name = 'def' AND b.version = 2;
SELECT is(a.query, b.query, 'the same query') FROM millrace.models AS a, millrace.models AS b WHERE a.name = 'def' AND a.version = 1 AND b.name = 'def' AND b.version = 2;
SELECT is((SELECT (rank, iterations, seed, holdout)::text FROM millrace.retrain('def', iterations => 2, seed => 9, holdout => 0.1), (SELECT 1) AS one,
	LATERAL (SELECT (parameters->>'seed')::int AS seed, (parameters->>'holdout')::float8 AS holdout FROM millrace.models WHERE name = 'def' AND version = 2) AS old), '(3,2,7,0)', 'iterations, seed and holdout may be given');
SELECT is((parameters->'iterations', parameters->'seed', parameters->'holdout')::text, '(2,9,0.1)', 'and are stored') FROM millrace.models WHERE name = 'def' AND version = 3;
SELECT is((SELECT iterations FROM millrace.retrain('def')), 2, 'for later retrainings too');

-- Warm start
CREATE FUNCTION losses(m text, ver int) RETURNS float8[] LANGUAGE sql AS $$ SELECT array_agg(loss ORDER BY iteration) FROM millrace.trainings WHERE model = m AND version = ver $$;
SELECT millrace.train_als('w', 'shop.r', rank => 5, iterations => 6);
SELECT millrace.retrain('w', iterations => 3);
SELECT ok((losses('w', 2))[1] < (losses('w', 1))[6], 'goes on where the active version ended');
SELECT millrace.retrain('w', warm_start => false, iterations => 6);
SELECT is(losses('w', 3), losses('w', 1), 'or begins again');
INSERT INTO shop.r SELECT u, i, 1 FROM generate_series(60, 100) AS u, generate_series(50, 70) AS i WHERE taste(u, i, '');
SELECT is((SELECT (users, items)::text FROM millrace.retrain('w')), '(100,70)', 'new users and items');
SELECT ok((losses('w', 4))[1] < (losses('cold', 1))[1], 'of which the others know nothing, but start ahead') FROM millrace.train_als('cold', 'shop.r', rank => 5, iterations => 6);
SELECT is(count(*), 0::bigint, 'the new ones have learnt') FROM millrace.item_factors('w') WHERE id::int > 60 AND (SELECT sum(f * f) FROM unnest(factor) AS f) < 1e-3;
SELECT millrace.train_als('w', 'SELECT ''u'' || u, i::text FROM shop.r', rank => 5, iterations => 1, warm_start => true);
SELECT ok((losses('w', 5))[1] < (losses('cold2', 1))[1], 'train_als starts warm if asked to, by ids of another type') FROM millrace.train_als('cold2', 'SELECT ''u'' || u, i::text FROM shop.r', rank => 5, iterations => 1);
SELECT throws_ok($$ SELECT millrace.train_als('w', 'shop.r', rank => 6, warm_start => true) $$, '22023', 'rank must be 5 to start from version 5 of model "w", not 6', 'not from another rank');
SELECT lives_ok($$ SELECT millrace.train_als('first', 'shop.r', rank => 2, iterations => 1, warm_start => true) $$, 'at random, if there is no version');
-- A version that has seen what is held out now is no start, lest it flatters the new one.
SELECT millrace.train_als('leak', 'shop.r', rank => 6, iterations => 8, seed => 3);
SELECT millrace.retrain('leak', holdout => 0.25);
SELECT millrace.train_als('leak2', 'shop.r', rank => 6, iterations => 8, seed => 3, holdout => 0.25);
SELECT is(factors_md5('leak', 2), factors_md5('leak2', 1), 'a version without hold-out is no start for one with');
SELECT millrace.retrain('leak', seed => 4);
SELECT millrace.train_als('leak2', 'shop.r', rank => 6, iterations => 8, seed => 4, holdout => 0.25);
SELECT is(factors_md5('leak', 3), factors_md5('leak2', 2), 'nor is one that held out other pairs');
SELECT millrace.retrain('leak');
SELECT isnt(factors_md5('leak', 4), factors_md5('leak2', 2), 'one that held out the same is');

-- The gate
CREATE TABLE shop.g AS SELECT * FROM shop.r;
SELECT millrace.train_als('g', 'shop.g', rank => 6, iterations => 8, holdout => 0.25);
SELECT is((SELECT (version, active, reason)::text FROM millrace.retrain('g')), '(2,t,)', 'as good: it passes');
UPDATE shop.g SET i = (u * 31 + i * 17) % 60; -- no taste any more
CREATE TEMP TABLE refused AS SELECT * FROM millrace.retrain('g');
SELECT is((version, active)::text, '(3,f)', 'much worse: it does not') FROM refused;
SELECT matches(reason, '^ndcg 0\.[0-9]+ is worse than the 0\.[0-9]+ of version 2 by more than 5 %$', 'with the reason') FROM refused;
SELECT is(metrics->>'reason', (SELECT reason FROM refused), 'in the view too') FROM millrace.models WHERE name = 'g' AND version = 3;
SELECT is(active('g'), 2, 'the active version stays');
SELECT is((SELECT active FROM millrace.retrain('g', gate_tolerance => 1)), true, 'unless the tolerance allows it');
SELECT is((SELECT active FROM millrace.retrain('g', activate => false, gate_tolerance => 1)), false, 'activate => false');
SELECT is((SELECT (active, reason)::text FROM millrace.retrain('g', holdout => 0.1)), '(t,"no gate: another part was held out of version 4")', 'another part is not comparable');
SELECT is((SELECT (active, reason)::text FROM millrace.retrain('g', holdout => 0)), '(t,"no gate: nothing was held out")', 'nothing held out');
SELECT is((SELECT (active, reason)::text FROM millrace.retrain('g', holdout => 0.1)), '(t,"no gate: nothing was held out of version 7")', 'nothing held out before');
-- RMSE on another scale is no measure: another version becomes active during the training, by the ratings themselves
CREATE FUNCTION shop.other_scale() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM millrace.activate('scale', 1) FROM millrace.models WHERE name = 'scale' AND version = 2; RETURN 1; END $$;
SELECT millrace.train_als('scale', 'SELECT u, i, 100 * v FROM shop.r', rank => 3, implicit => false, holdout => 0.2);
SELECT millrace.train_als('scale', 'SELECT u, i, 100 * v FROM shop.r, shop.other_scale() AS o WHERE o = 1', rank => 3, implicit => false, holdout => 0.2, value_transform => 'log1p');
SELECT is((SELECT (active, reason)::text FROM millrace.retrain('scale')), '(t,"no gate: version 1 has another value_transform")', 'nor is another scale');
-- Nothing relevant is held out
CREATE TABLE shop.none AS SELECT u, i, 1 AS v FROM shop.r;
SELECT millrace.train_als('none', 'shop.none', rank => 3, holdout => 0.2);
UPDATE shop.none SET v = 0;
SELECT is((SELECT (active, reason)::text FROM millrace.retrain('none')), '(f,"ndcg cannot be measured: nobody has anything relevant")', 'what cannot be measured does not pass');
-- What becomes active during the training counts: here version 1, by the ratings themselves, as another session could
CREATE FUNCTION shop.go_back() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM millrace.activate('late', 1) FROM millrace.models WHERE name = 'late' AND version = 2; RETURN 1; END $$;
SELECT millrace.train_als('late', 'shop.r', rank => 6, iterations => 8, holdout => 0.25);
SELECT millrace.train_als('late', 'SELECT r.u, r.i, r.v FROM shop.r, shop.go_back() AS g WHERE g = 1', rank => 6, iterations => 1, holdout => 0.25, regularization => 1e4);
SELECT is(active('late'), 2, 'the second version is active');
SELECT matches((SELECT active || ': ' || reason FROM millrace.retrain('late')), '^false: ndcg .* is worse than the .* of version 1 by more than 5 %$', 'the gate compares with what is active in the end');
UPDATE shop.rated SET v = 1 + 4 * millrace.split(u || ' ' || i, 0.5)::int;
SELECT is((SELECT (version, active)::text FROM millrace.retrain('rated', warm_start => false)), '(2,f)', 'of RMSE more is worse');
SELECT matches(metrics->>'reason', '^rmse [0-9.]+ is worse than the 0\.[0-9]+ of version 1 by more than 5 %$', 'with the reason') FROM millrace.models WHERE name = 'rated' AND version = 2;

-- rollback and prune
SELECT is(millrace.rollback('g'), 7, 'rollback activates the version before');
SELECT is(active('g'), 7, 'it is active');
SELECT is(millrace.rollback('g'), 6, 'and so on');
SELECT is(millrace.rollback('g'), 4, 'without those that were never active');
SELECT is(millrace.rollback('g'), 2, 'neither the one that the gate refused');
SELECT is(millrace.rollback('g'), 1, 'down to the first');
SELECT throws_ok($$ SELECT millrace.rollback('g') $$, '55000', 'model "g" has no earlier version to go back to', 'no further');
SELECT throws_ok($$ SELECT millrace.rollback('nope') $$, '42704', 'model "nope" does not exist', 'rollback of an unknown model');
SELECT throws_ok($$ SELECT millrace.rollback(NULL) $$, '22023', 'model must not be NULL', 'rollback of NULL');
SELECT millrace.activate('g', 4);
SELECT is(millrace.prune('g', 2), 4, 'prune of all but two');
SELECT is(ARRAY(SELECT version FROM millrace.models WHERE name = 'g' ORDER BY 1), '{2,4,7,8}', 'leaves the active one and the one to go back to');
SELECT is(millrace.rollback('g'), 2, 'to which one can');
SELECT is(millrace.prune('g', 1), 2, 'prune of all but one');
SELECT is(ARRAY(SELECT version FROM millrace.models WHERE name = 'g' ORDER BY 1), '{2,8}', 'leaves the active one and the newest');
SELECT throws_ok($$ SELECT millrace.rollback('g') $$, '55000', NULL, 'nothing is before');
SELECT is((SELECT version FROM millrace.retrain('g', warm_start => false, gate_tolerance => 1)), 9, 'retrain goes on');
SELECT is((parameters->'holdout')::text, '0.25', 'from the active version, not from the newest') FROM millrace.models WHERE name = 'g' AND version = 9;

-- Nothing to repeat, or to start from
SELECT throws_ok($$ SELECT millrace.retrain('nope') $$, '42704', 'model "nope" does not exist', 'an unknown model');
SELECT millrace.import_als('brought', 'SELECT * FROM millrace.user_factors(''m'')', 'SELECT * FROM millrace.item_factors(''m'')', 'SELECT u::text, i::text FROM shop.r');
SELECT throws_ok($$ SELECT millrace.retrain('brought') $$, '55000', 'model "brought" has no training to repeat', 'a model that was not trained here');
SELECT is((SELECT (version, active)::text FROM millrace.train_als('brought', 'SELECT u::text, i::text FROM shop.r', rank => 6, iterations => 1, warm_start => true)), '(2,t)', 'a training may start from one');
SELECT millrace.activate('brought', 1);
SELECT is((SELECT (version, active, reason)::text FROM millrace.retrain('brought', holdout => 0.25)), '(3,t,"no gate: nothing was held out of version 1")', 'it is no measure');
SELECT millrace.train_als('other', 'shop.r', rank => 2, iterations => 1);
SELECT millrace.train_als('other', 'shop.r', rank => 4, iterations => 1);
SELECT millrace.import_als('other', 'SELECT * FROM millrace.user_factors(''other'')', 'SELECT * FROM millrace.item_factors(''other'')', 'SELECT u::text, i::text FROM shop.r', activate => false);
SELECT millrace.activate('other', 1);
SELECT is((SELECT rank FROM millrace.retrain('other')), 2, 'what is repeated is the active version');
SELECT millrace.train_als('other', 'shop.r', rank => 5, iterations => 1);
SELECT millrace.activate('other', 3);
SELECT throws_ok($$ SELECT millrace.retrain('other') $$, '22023', 'rank must be 4 to start from version 3 of model "other", not 5', 'an import of another rank is active: what is repeated is the newest version that was trained');
SELECT is((SELECT rank FROM millrace.retrain('other', warm_start => false)), 5, 'which is no matter for a cold start');

-- A query that fails leaves everything as it was
CREATE TEMP TABLE before AS SELECT all_of('w') AS all_of;
ALTER TABLE shop.r RENAME TO gone;
SELECT throws_ok($$ SELECT millrace.retrain('w') $$, '42P01', NULL, 'its table has gone');
ALTER TABLE shop.gone RENAME TO r;
ALTER TABLE shop.r RENAME COLUMN u TO w;
SELECT throws_ok($$ SELECT millrace.retrain('def') $$, '42703', NULL, 'a column has gone');
ALTER TABLE shop.r RENAME COLUMN w TO u;
ALTER TABLE shop.r ALTER COLUMN u DROP NOT NULL;
INSERT INTO shop.r VALUES (NULL, 1, 1);
SELECT throws_ok($$ SELECT millrace.retrain('m') $$, '22023', 'ratings: the user is NULL', 'an id is NULL now');
DELETE FROM shop.r WHERE u IS NULL;
SELECT is(all_of('w'), all_of, 'nothing has changed') FROM before;
SELECT is(count(*), 0::bigint, 'no blocks without a version') FROM millrace.factors AS f WHERE NOT EXISTS (SELECT FROM millrace.model_version AS v WHERE v.model = f.model AND v.version = f.version);

-- Rights: as the owner
CREATE ROLE mr_owner;
CREATE ROLE mr_stranger;
GRANT USAGE ON SCHEMA millrace TO mr_owner, mr_stranger;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_owner;
CREATE SCHEMA owned AUTHORIZATION mr_owner;
SET LOCAL ROLE mr_owner;
CREATE TABLE owned.r AS SELECT u % 9 AS u, u % 7 AS i FROM generate_series(1, 60) AS u;
SELECT millrace.train_als('owned', 'SELECT u, current_user::text FROM owned.r', rank => 2, iterations => 1);
RESET ROLE;
SELECT millrace.retrain('owned');
SELECT is((SELECT id FROM millrace.item_factors('owned')), 'mr_owner', 'a superuser''s retrain runs as the owner');
SET LOCAL ROLE mr_stranger;
SELECT throws_ok($$ SELECT millrace.retrain('owned') $$, '42501', 'permission denied for function retrain', 'retrain is not for everybody');
SELECT throws_ok($$ SELECT millrace.rollback('owned') $$, '42501', 'permission denied for function rollback', 'nor rollback');
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_stranger;
SET LOCAL ROLE mr_stranger;
SELECT throws_ok($$ SELECT millrace.retrain('owned') $$, '42501', 'must be owner of model "owned"', 'nor for who is not the owner');
SELECT throws_ok($$ SELECT millrace.rollback('owned') $$, '42501', 'must be owner of model "owned"', 'nor rollback');
RESET ROLE;
REVOKE ALL ON owned.r FROM mr_owner;
SELECT throws_ok($$ SELECT millrace.retrain('owned') $$, '42501', 'permission denied for table r', 'whose rights are needed, not the caller''s');

-- Bad arguments
CREATE FUNCTION bad(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'SELECT millrace.' || call; RETURN 'no error'; EXCEPTION WHEN invalid_parameter_value THEN RETURN SQLERRM; END $$;
SELECT is(bad(format('train_als(''x'', ''shop.r'', %s => NULL)', argument)), argument || ' must not be NULL', argument || ' NULL')
	FROM unnest('{rank,iterations,alpha,implicit,seed,threads,holdout,warm_start,activate,unobserved_weight,value_transform,nonnegative,tolerance,k}'::text[]) AS argument;
SELECT is(bad(format('retrain(''m'', %s => NULL)', argument)), argument || ' must not be NULL', 'retrain: ' || argument || ' NULL')
	FROM unnest('{model,warm_start,gate_tolerance,threads,activate}'::text[]) AS argument WHERE argument <> 'model';
SELECT is(bad(format('train_als(''x'', ''shop.r'', %s => ''%s'')', argument, value)), format('%s must be %s, not %s', argument, expected, value), argument || ' ' || value)
	FROM (VALUES ('holdout', 'between 0 and 0.99', '{-0.1,1,NaN,Infinity}'::text[]), ('tolerance', 'between 0 and 1', '{-1,1.5,NaN,-Infinity}'),
		('k', 'between 1 and 10000', '{0,-1,10001}'), ('unobserved_weight', 'a finite number that is not negative', '{-1,NaN,Infinity,1e+300}'),
		('regularization_exponent', 'between 0 and 10', '{-1,NaN}'), ('threads', 'between 0 and 1024', '{-1,1025}')) AS bad (argument, expected, "values"), unnest("values") AS value;
SELECT is(bad(format('retrain(''m'', %s => ''%s'')', argument, value)), format('%s must be %s, not %s', argument, expected, value), 'retrain: ' || argument || ' ' || value)
	FROM (VALUES ('holdout', 'between 0 and 0.99', '{-0.1,1,NaN}'::text[]), ('iterations', 'between 1 and 10000', '{0,-1}'), ('gate_tolerance', 'a finite number that is not negative', '{-1,NaN,Infinity}'),
		('threads', 'between 0 and 1024', '{-1}')) AS bad (argument, expected, "values"), unnest("values") AS value;
SELECT matches(bad('train_als(''x'', ''shop.r'', value_transform => ''sqrt'')'), 'sqrt', 'unknown transform');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1)', holdout => 0.5) $$, '22023', NULL, 'nothing can be held out of one pair');
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'x'), 0::bigint, 'nothing is left of these');

-- Only reading
CREATE FUNCTION read_only(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN SET LOCAL transaction_read_only = on; EXECUTE command; RETURN 'done'; EXCEPTION WHEN read_only_sql_transaction THEN RETURN SQLERRM; END $$;
SELECT is(read_only(format('SELECT millrace.%s', call)), format('cannot execute millrace.%s() in a read-only transaction', substring(call FROM '[a-z_]*')), call)
	FROM (VALUES ('retrain(''m'')'), ('rollback(''m'')')) AS calls (call);

-- What it needs is priced before the first iteration
SET LOCAL millrace.max_memory = '40MB';
CREATE FUNCTION refused(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE hint text;
BEGIN EXECUTE command; RETURN 'no error'; EXCEPTION WHEN program_limit_exceeded THEN GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT; RETURN hint; END $$;
SELECT matches(refused($$ SELECT millrace.train_als('x', 'SELECT i, i % 1000 FROM generate_series(1, 20000) AS i', rank => 1000, iterations => 10000) $$), 'millrace.max_memory', 'too large for max_memory: at once');
RESET millrace.max_memory;

-- Cancelled: 57014 is no error that throws_ok would catch
CREATE FUNCTION cancelled(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'not cancelled';
EXCEPTION WHEN query_canceled THEN
	RETURN CASE WHEN clock_timestamp() - statement_timestamp() < interval '1300 ms' THEN 'cancelled' ELSE 'cancelled late' END;
END $$;
CREATE TABLE shop.n AS SELECT 300000::bigint AS v;
SELECT millrace.train_als('slow', 'SELECT i % 3000, (i * 7919) % 2003 FROM generate_series(1, (SELECT v FROM shop.n)) AS i', rank => 32, iterations => 1, holdout => 0.1, tolerance => 0);
SET LOCAL statement_timeout = '900 ms';
SELECT is(cancelled($$ SELECT millrace.retrain('slow', iterations => 10000) $$), 'cancelled', 'a retrain with a hold-out');
UPDATE shop.n SET v = 1e12;
SELECT is(cancelled($$ SELECT millrace.retrain('slow') $$), 'cancelled', 'while it reads');
RESET statement_timeout;
SELECT is((SELECT count(*) FROM millrace.models WHERE name = 'slow'), 1::bigint, 'nothing is left');
UPDATE shop.n SET v = 3e5;
SELECT lives_ok($$ SELECT millrace.retrain('slow') $$, 'the session goes on');

SELECT * FROM finish();
ROLLBACK;
