BEGIN;
SELECT plan(119);
SET LOCAL client_min_messages = warning;

CREATE SCHEMA shop;
CREATE TABLE shop.purchases (customer int, item bigint, quantity numeric, at timestamptz DEFAULT now());
INSERT INTO shop.purchases SELECT i % 50, (i * i / 7) % 31, 1 + i % 3 FROM generate_series(1, 2000) AS i;
CREATE TABLE shop."Odd name" AS SELECT 'u' || customer AS u, 'i' || item AS i, quantity::float4 AS v FROM shop.purchases;
CREATE TABLE pairs AS SELECT customer, item, sum(quantity) AS quantity FROM shop.purchases GROUP BY 1, 2;
CREATE TABLE bad (u int, i int, v float8);
CREATE FUNCTION factors_md5(m text, v int) RETURNS text LANGUAGE sql AS
	$$ SELECT md5(string_agg(side || block || encode(data, 'hex'), ',' ORDER BY side, block)) FROM millrace.factors WHERE model = m AND version = v $$;
-- What the model predicts for all pairs it was trained on, and what they were.
CREATE FUNCTION predictions(m text) RETURNS TABLE (u text, i text, predicted float8) LANGUAGE sql AS $$
	SELECT u.id, i.id, (SELECT sum(a::float8 * b) FROM unnest(u.factor, i.factor) AS f(a, b))
	FROM millrace.user_factors(m) AS u, millrace.item_factors(m) AS i $$;

-- A training and what it leaves
CREATE TEMP TABLE result AS SELECT * FROM millrace.train_als('m', 'shop.purchases', rank => 8, iterations => 5);
SELECT is(model, 'm', 'model') FROM result;
SELECT is(version, 1, 'version') FROM result;
SELECT is(users, (SELECT count(DISTINCT customer) FROM shop.purchases), 'users') FROM result;
SELECT is(items, (SELECT count(DISTINCT item) FROM shop.purchases), 'items') FROM result;
SELECT is(ratings, (SELECT count(*) FROM pairs), 'ratings are distinct pairs') FROM result;
SELECT is(rank, 8, 'rank') FROM result;
SELECT is(iterations, 5, 'iterations') FROM result;
SELECT ok(seconds > 0, 'seconds') FROM result;
SELECT results_eq($$ SELECT iteration FROM millrace.trainings WHERE model = 'm' ORDER BY 1 $$, $$ SELECT generate_series(1, 5) $$, 'one row an iteration');
SELECT ok(bool_and(falls), 'the loss falls') FROM (SELECT loss <= lag(loss) OVER (ORDER BY iteration) AS falls FROM millrace.trainings WHERE model = 'm') t;
SELECT is((SELECT loss FROM result), (SELECT loss FROM millrace.trainings WHERE model = 'm' AND iteration = 5), 'the loss is the last one''s');
SELECT is((metrics->>'loss')::float8, (SELECT loss FROM result), 'and stands in the metrics') FROM millrace.models WHERE name = 'm';
SELECT is(parameters, '{"rank": 8, "iterations": 5, "regularization": 0.01, "alpha": 1, "implicit": true, "seed": 1, "unobserved_weight": 0.3, "regularization_exponent": 1, "value_transform": "none", "nonnegative": false, "tolerance": 1e-6, "holdout": 0, "k": 10, "own_history": 0}', 'parameters with defaults')
	FROM millrace.models WHERE name = 'm';
SELECT is((kind, version, active, owner::text, query)::text, ('als', 1, true, current_user, 'TABLE shop.purchases')::text, 'view millrace.models')
	FROM millrace.models WHERE name = 'm';
SELECT is((users, items, ratings)::text, (SELECT (users, items, ratings)::text FROM result), 'counts in the view') FROM millrace.models WHERE name = 'm';
SELECT results_eq($$ SELECT side, count(*) FROM millrace.factors WHERE model = 'm' GROUP BY 1 ORDER BY 1 $$, $$ VALUES ('baseline', 1::bigint), ('item', 1), ('trained_on', 1), ('user', 1), ('usual', 1) $$, 'blocks');
SELECT is(attstorage, 'e', 'blocks are stored uncompressed') FROM pg_attribute WHERE attrelid = 'millrace.factors'::regclass AND attname = 'data';
SELECT is(count(*), 50::bigint, 'user_factors') FROM millrace.user_factors('m');
SELECT is(array_agg(DISTINCT cardinality(factor)), '{8}', 'factors have the rank') FROM millrace.item_factors('m');
SELECT is(array_agg(id::int), (SELECT array_agg(DISTINCT item::int ORDER BY item::int) FROM shop.purchases), 'rows are in the order of ids') FROM millrace.item_factors('m');

-- The loss is the objective: all pairs, in SQL
SELECT ok(abs(1 - (pairs_loss + penalty) / (SELECT loss FROM result)) < 1e-5, 'loss = the objective computed in SQL') FROM
	(SELECT sum((0.3 + coalesce(quantity, 0)) * ((coalesce(quantity, 0) > 0)::int - predicted) ^ 2) AS pairs_loss
	 FROM predictions('m') AS p LEFT JOIN pairs AS r ON r.customer::text = p.u AND r.item::text = p.i) AS a,
	(SELECT sum(0.01 * (n + 0.3 * m) * square) AS penalty FROM
		(SELECT (SELECT sum(f * f) FROM unnest(factor) AS f) AS square, (SELECT count(*) FROM pairs WHERE customer::text = id) AS n, (SELECT items FROM result) AS m FROM millrace.user_factors('m')
		 UNION ALL
		 SELECT (SELECT sum(f * f) FROM unnest(factor) AS f), (SELECT count(*) FROM pairs WHERE item::text = id), 50 FROM millrace.item_factors('m')) AS rows) AS b;

-- Versions
SELECT is((SELECT version FROM millrace.train_als('m', 'shop.purchases', rank => 8, iterations => 5)), 2, 'next version');
SELECT results_eq($$ SELECT version, active FROM millrace.models WHERE name = 'm' ORDER BY 1 $$, $$ VALUES (1, false), (2, true) $$, 'the new one is active');
SELECT is(factors_md5('m', 1), factors_md5('m', 2), 'the same seed gives the same bits');
SELECT is((SELECT version FROM millrace.train_als('m', 'shop.purchases', rank => 8, iterations => 5, threads => 1)), 3, 'one thread');
SELECT is(factors_md5('m', 1), factors_md5('m', 3), 'one thread gives the same bits');
SELECT isnt((SELECT version FROM millrace.train_als('m', 'shop.purchases', rank => 8, iterations => 5, seed => 2)), 1, 'another seed');
SELECT isnt(factors_md5('m', 1), factors_md5('m', 4), 'another seed gives other factors');
SELECT lives_ok($$ SELECT millrace.activate('m', 1) $$, 'activate an earlier version');
SELECT results_eq($$ SELECT version FROM millrace.models WHERE name = 'm' AND active $$, 'SELECT 1', 'it is active');
SELECT throws_ok($$ SELECT millrace.activate('m', 9) $$, '42704', 'model "m" has no version 9', 'activate an unknown version');
SELECT throws_ok($$ SELECT millrace.activate('nope', 1) $$, '42704', 'model "nope" does not exist', 'activate an unknown model');
SELECT throws_ok($$ SELECT millrace.activate('m', NULL) $$, '22023', 'version must not be NULL', 'activate NULL');
SELECT is(millrace.prune('m', 1), 2, 'prune removes all but the newest and the active one');
SELECT results_eq($$ SELECT version FROM millrace.models WHERE name = 'm' ORDER BY 1 $$, 'VALUES (1), (4)', 'those are left');
SELECT is(count(DISTINCT version), 2::bigint, 'and their blocks only') FROM millrace.factors WHERE model = 'm';
SELECT throws_ok($$ SELECT millrace.prune('m', 0) $$, '22023', 'keep must be at least 1', 'prune all');
SELECT throws_ok($$ SELECT millrace.prune('nope', 1) $$, '42704', 'model "nope" does not exist', 'prune an unknown model');
SELECT is((SELECT version FROM millrace.train_als('m', 'shop.purchases', rank => 2, iterations => 1)), 5, 'numbers do not come back');
SELECT lives_ok($$ SELECT millrace.drop_model('m') $$, 'drop');
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'm') + (SELECT count(*) FROM millrace.model_version WHERE model = 'm')
	+ (SELECT count(*) FROM millrace.factors WHERE model = 'm') + (SELECT count(*) FROM millrace.training_iteration WHERE model = 'm'), 0::bigint, 'nothing is left');
SELECT throws_ok($$ SELECT millrace.drop_model('m') $$, '42704', 'model "m" does not exist', 'drop an unknown model');

-- Forms of input give the same factors
SELECT millrace.train_als('form', 'TABLE pairs', rank => 4, iterations => 3);
PREPARE same(int) AS SELECT factors_md5('form', 1) = factors_md5('form', $1);
SELECT millrace.train_als('form', 'pairs', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(2)', 'SELECT true', 'a name');
SELECT millrace.train_als('form', 'public.pairs', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(3)', 'SELECT true', 'a qualified name');
SELECT millrace.train_als('form', E'SELECT * FROM pairs; \n', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(4)', 'SELECT true', 'a query with a semicolon');
SELECT millrace.train_als('form', 'WITH p AS (SELECT * FROM pairs) SELECT * FROM p -- that is all', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(5)', 'SELECT true', 'a query with a comment at its end');
SELECT millrace.train_als('form', '(SELECT customer::smallint, item::int, quantity::int, 1, 2 FROM pairs ORDER BY random())', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(6)', 'SELECT true', 'other types of numbers, another order, more columns');
SELECT millrace.train_als('form', 'SELECT customer, item, quantity / 2 FROM pairs UNION ALL SELECT customer, item, quantity / 2 FROM pairs', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(7)', 'SELECT true', 'duplicates are summed');
SELECT millrace.train_als('form', 'SELECT * FROM pairs; -- that; is all', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(8)', 'SELECT true', 'a comment behind the semicolon');
SELECT is(query, 'SELECT * FROM pairs', 'which is not stored') FROM millrace.models WHERE name = 'form' AND version = 8;
SELECT millrace.train_als('form', 'SELECT customer, item, quantity, 1 AS i, 2 AS u, 3 AS v, 4 AS c9 FROM pairs', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(9)', 'SELECT true', 'columns named like ours');
SELECT lives_ok($$ SELECT * FROM millrace.recommend_top_k('form', 1) $$, 'for what a user has, too');
CREATE VIEW "a view" AS SELECT customer, item, quantity FROM pairs;
SELECT millrace.train_als('form', '"a view"', rank => 4, iterations => 3);
SELECT results_eq('EXECUTE same(10)', 'SELECT true', 'a quoted name of a view');
SELECT millrace.train_als('form2', 'SELECT customer, item FROM pairs', rank => 4, iterations => 3);
SELECT millrace.train_als('form2', 'SELECT customer, item, 1 FROM pairs', rank => 4, iterations => 3);
SELECT is(factors_md5('form2', 1), factors_md5('form2', 2), 'without a value it is 1');
SELECT is((SELECT users FROM millrace.train_als('text', 'shop."Odd name"', rank => 4, iterations => 3)), 50::bigint, 'text ids');
SELECT is(array_agg(id), (SELECT array_agg(DISTINCT u COLLATE "C" ORDER BY u COLLATE "C") FROM shop."Odd name"), 'text ids are in bytewise order') FROM millrace.user_factors('text');
SELECT lives_ok($$ SELECT millrace.train_als('values', 'VALUES(1,2)') $$, 'VALUES without a blank; one user, one item, rank above both');
SELECT ok(predicted > 0.5, 'and it is learnt') FROM predictions('values');
SELECT lives_ok($$ SELECT millrace.train_als('big', 'pairs', rank => 200, iterations => 2) $$, 'rank above both sides');
SELECT lives_ok($$ SELECT millrace.train_als('equal', 'SELECT u, i, 5 FROM generate_series(1, 9) u, generate_series(1, 7) i') $$, 'all values equal');
SELECT lives_ok($$ SELECT millrace.train_als('edge', 'VALUES (9223372036854775807, -9223372036854775808)') $$, 'the ends of bigint');
SELECT is((SELECT id FROM millrace.item_factors('edge')), '-9223372036854775808', 'come back');

-- Explicit
SELECT millrace.train_als('rated', 'SELECT u, i, (u % 5) + 0.5 * (i % 3) - 1 FROM generate_series(1, 40) u, generate_series(1, 30) i WHERE (u * i) % 4 > 0',
	implicit => false, rank => 2, iterations => 15, regularization => 0.001);
SELECT ok(sqrt(avg((predicted - ((u::int % 5) + 0.5 * (i::int % 3) - 1)) ^ 2)) < 0.05, 'explicit ratings are predicted, those left out too') FROM predictions('rated');
SELECT is(parameters->>'regularization_exponent', '1', 'as in Spark') FROM millrace.models WHERE name = 'rated';

-- Large values
CREATE TABLE amounts AS SELECT u, i, 1 + (u * i) % 5 AS v FROM generate_series(1, 60) u, generate_series(1, 40) i WHERE (u + i) % 3 > 0;
SELECT lives_ok(format($$ SELECT millrace.train_als('amounts', 'SELECT u, i, v * %s::float8 FROM amounts', implicit => false) $$, size), 'explicit values of ' || size)
	FROM (VALUES ('1e-3'), ('1e3'), ('1e4'), ('1e5'), ('1e6')) AS sizes (size);
SELECT ok(sqrt(avg((predicted - 1e6 * v) ^ 2)) < 1e5, 'are predicted') FROM predictions('amounts') AS p JOIN amounts AS a ON a.u::text = p.u AND a.i::text = p.i;
SELECT millrace.train_als('amounts', 'SELECT u, i, v * 1e6 FROM amounts', implicit => false, threads => 1);
SELECT is(factors_md5('amounts', 5), factors_md5('amounts', 6), 'by one thread the same');

-- A value of 0 is no purchase
SELECT lives_ok($$ SELECT millrace.train_als('zero', 'VALUES (1, 1, 1), (1, 2, 1), (2, 1, 2), (3, 3, 0), (3, 1, 0)', rank => 2, unobserved_weight => 0) $$, 'rows of zeros without unobserved weight');
SELECT is(ARRAY(SELECT (item_id, score)::text FROM millrace.recommend_top_k('zero', 99)), '{"(1,2)","(2,1)","(3,0)"}', 'popularity does not count them');
SELECT is((SELECT DISTINCT source FROM millrace.recommend_top_k('zero', 3, exclude_seen => false)), 'baseline', 'a user of zeros is unknown');
SELECT is((SELECT value FROM millrace.evaluate('zero', 'VALUES (3, 2)') WHERE metric = 'unknown_users'), 1::float8, 'in evaluate too');

-- Only reading
CREATE FUNCTION read_only(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN SET LOCAL transaction_read_only = on; EXECUTE command; RETURN 'done'; EXCEPTION WHEN read_only_sql_transaction THEN RETURN SQLERRM; END $$;
SELECT is(read_only(format('SELECT millrace.%s', call)), format('cannot execute millrace.%s() in a read-only transaction', substring(call FROM '[a-z_]*')), call)
	FROM (VALUES ('train_als(''rated'', ''nowhere'')'), ('activate(''rated'', 9)'), ('prune(''nope'', 0)'), ('drop_model(''nope'')')) AS calls (call);

-- Bad arguments
SELECT throws_ok($$ SELECT millrace.train_als(NULL, 'pairs') $$, '22023', 'model must not be NULL', 'no name');
SELECT throws_ok($$ SELECT millrace.train_als('', 'pairs') $$, '22023', 'model must not be empty', 'empty name');
SELECT throws_ok($$ SELECT millrace.train_als('x', '') $$, '22023', 'ratings must not be empty', 'empty ratings text');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', rank => 0) $$, '22023', 'rank must be between 1 and 1024, not 0', 'rank 0');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', rank => 1025) $$, '22023', 'rank must be between 1 and 1024, not 1025', 'rank 1025');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', iterations => 0) $$, '22023', 'iterations must be between 1 and 10000, not 0', 'no iterations');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', regularization => 'NaN') $$, '22023', 'regularization must be a finite number that is not negative, not NaN', 'NaN regularization');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', regularization => -1) $$, '22023', 'regularization must be a finite number that is not negative, not -1', 'negative regularization');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', alpha => 'infinity') $$, '22023', 'alpha must be a finite number that is not negative, not Infinity', 'infinite alpha');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', regularization_exponent => 11) $$, '22023', 'regularization_exponent must be between 0 and 10, not 11', 'exponent');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', threads => -1) $$, '22023', 'threads must be between 0 and 1024, not -1', 'negative threads');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'pairs', implicit => NULL) $$, '22023', 'implicit must not be NULL', 'NULL implicit');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1)', rank => 3, regularization => 0) $$, '22003', 'the equations of user "1" have no unique solution', 'singular');

-- Bad ratings
SELECT throws_ok($$ SELECT millrace.train_als('x', 'nowhere.purchases') $$, '42P01', 'relation "nowhere.purchases" does not exist', 'unknown table');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT nothing, item FROM pairs') $$, '42703', 'column "nothing" does not exist', 'unknown column');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1') $$, '22023', 'ratings: expected two or three columns, found 1', 'one column');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT now(), 1') $$, '22023', 'ratings: the first column, user, is neither an integer nor text', 'type of user');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1, 1.5') $$, '22023', 'ratings: the second column, item, is neither an integer nor text', 'type of item');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1, 1, true') $$, '22023', 'ratings: the third column, value, is not a number', 'type of value');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'DELETE FROM pairs RETURNING customer, item') $$, '22023', 'ratings must be a single query that returns rows', 'no SELECT');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1, 1; SELECT 1, 1') $$, '22023', 'ratings must be a single query that returns rows', 'two queries');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1, 1 INTO x') $$, '22023', 'ratings must be a single query that returns rows', 'SELECT INTO');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'bad') $$, '22023', 'ratings: there are no rows', 'empty');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, 1.0), (NULL, 2, 1)') $$, '22023', 'ratings: the user is NULL', 'NULL user');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, 1.0), (1, NULL, 1)') $$, '22023', 'ratings: the item is NULL', 'NULL item');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, 1.0), (1, 2, NULL)') $$, '22023', 'ratings: the value is NULL', 'NULL value');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, float8 ''NaN'')') $$, '22003', 'ratings: a value that is not a number: NaN', 'NaN');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, numeric ''NaN'')') $$, '22003', 'ratings: a value that is not a number: NaN', 'numeric NaN');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, float4 ''-infinity'')') $$, '22003', 'ratings: an infinite value: -Infinity', 'infinite');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1, 1e300)') $$, '22003', 'ratings: a value out of range: 1e+300', 'out of range');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT 1, 1, 3e38 FROM generate_series(1, 2)') $$, '22003', 'ratings: a sum of values is out of range', 'a sum out of range');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (7, 8, -2)') $$, '22023', 'ratings: a negative value, which implicit feedback cannot have: -2', 'negative');
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT i, i, 1 / (500 - i) FROM generate_series(1, 1000) i') $$, '22012', 'division by zero', 'an error in mid-stream');
SET LOCAL millrace.max_memory = '3MB'; -- more than any one piece
SELECT throws_ok($$ SELECT millrace.train_als('x', 'SELECT i, i FROM generate_series(1, 200000) i', rank => 1) $$, '54000', 'this needs more memory than millrace.max_memory allows', 'above max_memory');
SET LOCAL millrace.max_memory = '6MB';
SELECT lives_ok($$ SELECT millrace.train_als('near', 'SELECT lpad(i::text, 3000, ''x''), 1 FROM generate_series(1, 960) AS i', rank => 1, iterations => 1, threads => 1) $$, 'just below it, where half more would be above');
RESET millrace.max_memory;
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'x') + (SELECT count(*) FROM millrace.factors WHERE model = 'x'), 0::bigint, 'a training that fails leaves nothing');

-- Cancel: 57014 is no error that throws_ok would catch
CREATE FUNCTION cancelled(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'not cancelled';
EXCEPTION WHEN query_canceled THEN
	RETURN CASE WHEN clock_timestamp() - statement_timestamp() < interval '900 ms' THEN 'cancelled' ELSE 'cancelled late' END;
END $$;
CREATE TABLE many AS SELECT i % 3000 AS u, (i * 7919::bigint) % 2003 AS i FROM generate_series(1, 300000) AS i;
SET LOCAL statement_timeout = '500 ms';
SELECT is(cancelled($$ SELECT millrace.train_als('x', 'many', rank => 128, iterations => 10000) $$), 'cancelled', 'statement_timeout ends a training');
RESET statement_timeout;
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'x') + (SELECT count(*) FROM millrace.factors WHERE model = 'x'), 0::bigint, 'and leaves nothing');
SET LOCAL statement_timeout = '1 s';
SELECT is(cancelled($$ SELECT millrace.train_als('high', 'SELECT i::bigint << 48, 1 FROM generate_series(-32768, 32767) AS i', rank => 1, iterations => 1) $$), 'not cancelled', 'ids that differ in high bits only');
RESET statement_timeout;
SELECT lives_ok($$ SELECT millrace.train_als('after', 'pairs', rank => 4, iterations => 2) $$, 'the session goes on');

SELECT * FROM finish();
ROLLBACK;
