BEGIN;
SELECT plan(34);
SET LOCAL client_min_messages = warning;

-- Everybody has things of his own, which he buys again and again, and some that he tried once; a row a purchase
CREATE FUNCTION chance(text) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$ SELECT ('x' || left(md5($1), 8))::bit(32)::bigint / 4294967296.0 $$;
CREATE TABLE bought AS
	SELECT u, i, n FROM generate_series(1, 120) AS u, generate_series(1, 60) AS i,
		LATERAL generate_series(1, CASE WHEN chance(u || ',' || i) < 0.08 THEN 2 + 8 * chance(i || 'x') WHEN chance(u || ',' || i) < 0.3 THEN 1 ELSE 0 END::int) AS n;
CREATE VIEW train AS SELECT u, i FROM bought WHERE millrace.split(u || ':' || i || ':' || n, 0.5);
CREATE VIEW test AS SELECT u, i FROM bought WHERE NOT millrace.split(u || ':' || i || ':' || n, 0.5);
CREATE TABLE once AS SELECT DISTINCT u, i FROM train;
CREATE FUNCTION own(model text) RETURNS float8 LANGUAGE sql AS
	$$ SELECT (parameters->>'own_history')::float8 FROM millrace.models WHERE name = model ORDER BY version DESC LIMIT 1 $$;
CREATE FUNCTION chosen(model text) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT metrics->'own_history' FROM millrace.models WHERE name = model ORDER BY version DESC LIMIT 1 $$;

-- Chosen, given, off
SELECT millrace.train_als('m', 'train', rank => 8, iterations => 5);
SELECT ok(own('m') > 0, 'a weight is chosen where people buy again');
SELECT is((chosen('m')->>'weight')::float8, own('m'), 'metrics have it');
SELECT ok((chosen('m')->>'ndcg')::float8 > (chosen('m')->>'ndcg_without')::float8 AND (chosen('m')->>'users')::int BETWEEN 50 AND 120, 'and what it does for how many users');
SELECT millrace.train_als('m1', 'train', rank => 8, iterations => 5, threads => 1);
SELECT is(chosen('m1'), chosen('m'), 'the same with one thread');
SELECT millrace.train_als('shuffled', 'SELECT u, i FROM train ORDER BY md5(u || i::text)', rank => 8, iterations => 5);
SELECT is(chosen('shuffled'), chosen('m'), 'and in any order of rows');
SELECT millrace.train_als('counts', 'SELECT u, i, count(*) FROM train GROUP BY 1, 2', rank => 8, iterations => 5);
SELECT ok(own('counts') > 0, 'counts are divided too');
SELECT millrace.train_als('once', 'once', rank => 8, iterations => 5);
SELECT is(own('once'), 0::float8, 'nobody does anything twice: 0');
SELECT is((chosen('once')->>'users')::int, 0, 'which nobody was needed for');
SELECT millrace.train_als('stars', 'SELECT u, i, 1 + (u * i) % 5 + 2.5 FROM once', rank => 8, iterations => 5);
SELECT is(own('stars'), 0::float8, 'values that are no counts: 0');
SELECT millrace.train_als('explicit', 'train', rank => 8, iterations => 5, implicit => false);
SELECT is(own('explicit'), 0::float8, 'explicit feedback: 0');
SELECT millrace.train_als('given', 'train', rank => 8, iterations => 5, own_history => 0.75);
SELECT is(own('given'), 0.75::float8, 'a weight that is given');
SELECT is(chosen('given'), NULL, 'is not measured');
SELECT millrace.train_als('off', 'train', rank => 8, iterations => 5, own_history => 0);
SELECT is(own('off'), 0::float8, 'or is 0');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'train', own_history => -1) $$, '22023', 'own_history must be a finite number that is not negative, not -1', 'below 0');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'train', own_history => 'NaN') $$, '22023', 'own_history must be a finite number that is not negative, not NaN', 'not a number');
SELECT millrace.train_als('held', 'train', rank => 8, iterations => 5, holdout => 0.2, value_transform => 'log1p');
SELECT ok(own('held') > 0, 'with a hold-out and a transform');
SELECT millrace.train_als('none', 'SELECT u, i, 0 FROM train', rank => 8, iterations => 2);
SELECT is(own('none'), 0::float8, 'values of 0 only');

-- retrain: chosen again, given kept
SELECT millrace.retrain('given');
SELECT is(own('given'), 0.75::float8, 'retrain keeps what was given');
INSERT INTO bought SELECT u, i, n + 100 FROM bought WHERE i % 3 = 1;
SELECT millrace.retrain('m');
SELECT is((chosen('m')->>'weight')::float8, own('m'), 'and chooses again what was chosen');
SELECT isnt(chosen('m'), chosen('m1'), 'from the rows of now');
DELETE FROM bought WHERE n > 100;

-- What it does, by the formula in SQL
SELECT millrace.train_als('f', 'train', rank => 8, iterations => 5, k => 5);
CREATE TEMP TABLE v AS SELECT u, i, count(*)::float8 AS v FROM train GROUP BY 1, 2;
CREATE TEMP TABLE usual AS
	SELECT i, (sum(v) + 3 * (SELECT avg(v) FROM v)) / (count(*) + 3) AS usual FROM v GROUP BY 1;
CREATE TEMP TABLE expected AS
	SELECT u.id::int AS u, t.id::int AS i, v.v IS NOT NULL AS seen,
		(SELECT sum(a::float8 * b) FROM unnest(u.factor, t.factor) AS f(a, b)) + coalesce(own('f') * ln(1 + usual * (1 + v.v) / (1 + usual)), 0) AS score
	FROM millrace.user_factors('f') AS u CROSS JOIN millrace.item_factors('f') AS t LEFT JOIN v ON v.u = u.id::int AND v.i = t.id::int LEFT JOIN usual ON usual.i = t.id::int;
CREATE TEMP TABLE answer AS SELECT * FROM millrace.recommend_top_k_for('f', NULL, 100000, false);
SELECT is((SELECT count(*) FROM answer), (SELECT count(*) FROM expected), 'all items of all users');
SELECT ok(max(abs(a.score - e.score)) < 1e-4, 'scores by the formula') FROM answer AS a JOIN expected AS e ON e.u = a.user_id AND e.i = a.item_id;
SELECT is(count(*), 0::bigint, 'source tells who was raised') FROM answer AS a JOIN expected AS e ON e.u = a.user_id AND e.i = a.item_id WHERE (a.source = 'history') <> e.seen;
SELECT is(count(*), 0::bigint, 'one user gets the same as many') FROM millrace.recommend_top_k('f', 17, 100000, false) AS t JOIN answer AS a ON a.user_id = 17 AND a.item_id = t.item_id WHERE a.score <> t.score OR a.rank <> t.rank;
SELECT ok(max(abs(t.score - (e.score + 0.2 * (e.score - p.score) / own('f') - (e.score - p.score)))) < 1e-4, 'another weight at the call')
	FROM millrace.recommend_top_k('f', 17, 100000, false, own_history => 0.2) AS t JOIN expected AS e ON e.u = 17 AND e.i = t.item_id
	JOIN millrace.recommend_top_k('f', 17, 100000, false, own_history => 0) AS p USING (item_id);

-- evaluate judges the same lists
CREATE FUNCTION precision_at(k int, weight float8) RETURNS float8 LANGUAGE sql AS $$
	SELECT avg(hits::float8 / $1) FROM (
		SELECT count(a.item_id) AS hits FROM (SELECT DISTINCT u FROM test WHERE u IN (SELECT u FROM train)) AS users
			LEFT JOIN (SELECT DISTINCT t.user_id, t.item_id FROM millrace.recommend_top_k_for('f', NULL, $1, false, own_history => $2) AS t JOIN test ON test.u = t.user_id AND test.i = t.item_id) AS a ON a.user_id = users.u
		GROUP BY users.u) AS h $$;
SELECT ok(abs(value - precision_at(5, NULL)) < 1e-9, 'evaluate: the lists of recommend_top_k_for') FROM millrace.evaluate('f', 'test', 5, false) WHERE metric = 'precision';
SELECT ok(abs(value - precision_at(5, 0.1)) < 1e-9, 'with the weight that is asked for') FROM millrace.evaluate('f', 'test', 5, false, own_history => 0.1) WHERE metric = 'precision';
SELECT ok(precision_at(5, NULL) > precision_at(5, 0), 'own history is worth something here');
SELECT is((SELECT array_agg(t ORDER BY metric)::text FROM millrace.evaluate('f', 'test', 5, true, own_history => 3) AS t), (SELECT array_agg(t ORDER BY metric)::text FROM millrace.evaluate('f', 'test', 5) AS t), 'what is excluded is not raised');
SELECT throws_ok($$ SELECT millrace.evaluate('f', 'test', 5, false, own_history => 'Infinity') $$, '22023', NULL, 'and no infinite weight');

-- tune_als judges them too
CREATE TEMP TABLE tuned AS SELECT * FROM millrace.tune_als('f', 'train', '{"rank": 8, "iterations": 5, "own_history": [null, 0, 0.1], "value_transform": ["none", "binary"]}', 'precision', 5, validation => 'test', exclude_seen => false);
SELECT ok(abs(t.value - precision_at(5, w)) < 1e-9, 'tune_als: ' || coalesce(w::text, 'the chosen one'))
	FROM unnest('{NULL,0,0.1}'::float8[]) AS w, millrace.tunings AS t
	WHERE model = 'f' AND t.parameters->>'value_transform' = 'none' AND t.parameters->>'own_history' IS NOT DISTINCT FROM w::text;
SELECT ok(parameters->>'own_history' IS DISTINCT FROM '0', 'and the best has it') FROM tuned;

SELECT * FROM finish();
ROLLBACK;
