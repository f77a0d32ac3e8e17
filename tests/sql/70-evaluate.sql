BEGIN;
SELECT plan(80);
SET LOCAL client_min_messages = warning;

CREATE TABLE pairs AS SELECT n % 61 AS u, (n * n / 5) % 83 AS i, 1 + n % 4 AS v FROM generate_series(1, 3000) AS n;
INSERT INTO pairs SELECT u, 100 + i, v FROM pairs WHERE i % 3 = 0; -- the same to everybody as another item: ties
DELETE FROM pairs AS p USING pairs AS q WHERE p.u = q.u AND p.i = q.i AND p.ctid > q.ctid;
CREATE VIEW train AS SELECT u, i, v FROM pairs WHERE millrace.split(u || ':' || i % 100, 0.5);
CREATE VIEW test AS SELECT u, i, v FROM pairs WHERE NOT millrace.split(u || ':' || i % 100, 0.5)
	UNION ALL VALUES (5000, 1, 2), (5000, 2, 2), (5001, 3, 2) -- users that the model does not know
	UNION ALL VALUES (1, 7000, 2), (2, 7000, 1) -- an item that it does not know
	UNION ALL SELECT u, i, v FROM pairs WHERE u % 10 = 3; -- what users have; and twice
SELECT millrace.train_als('m', 'train', rank => 10, iterations => 5);
SELECT millrace.train_als('rated', 'train', rank => 3, iterations => 5, implicit => false);
SELECT millrace.train_als('logged', 'train', rank => 3, iterations => 5, implicit => false, value_transform => 'log1p');
SELECT millrace.train_als('tied', 'SELECT u, i % 4, 1 FROM train', rank => 2, iterations => 2);

-- The definitions, in SQL: lists of factors' products, nothing of the module
CREATE FUNCTION expected(model text, k int, exclude_seen bool) RETURNS TABLE (metric text, value float8) LANGUAGE sql AS $$
	WITH known AS (SELECT id::int AS u, factor FROM millrace.user_factors($1)), items AS (SELECT id::int AS i, factor FROM millrace.item_factors($1)),
	own AS (SELECT DISTINCT u, CASE WHEN $1 = 'tied' THEN i % 4 ELSE i END AS i FROM train),
	tested AS (SELECT u, i, sum(v) AS v FROM test GROUP BY 1, 2),
	relevant AS (SELECT u, i FROM tested WHERE v > 0 AND u IN (SELECT u FROM known) AND (NOT $3 OR (u, i) NOT IN (SELECT u, i FROM own))),
	users AS (SELECT u, count(*) AS n FROM relevant GROUP BY 1),
	products AS MATERIALIZED (SELECT u, i, (SELECT sum(a::float8 * b) FROM unnest(known.factor, items.factor) AS f(a, b)) AS score FROM known, items),
	lists AS (
		SELECT u, i, row_number() OVER (PARTITION BY u ORDER BY score DESC, i) AS rank FROM products
		WHERE u IN (SELECT u FROM users) AND (NOT $3 OR (u, i) NOT IN (SELECT u, i FROM own))),
	hits AS (
		SELECT u, n, rank, row_number() OVER (PARTITION BY u ORDER BY rank) AS nth FROM lists JOIN relevant USING (u, i) JOIN users USING (u) WHERE rank <= $2),
	by_user AS (
		SELECT u, users.n, count(rank)::float8 AS n_hits, coalesce(sum(nth::float8 / rank), 0) AS precisions, coalesce(sum(1 / (ln(rank + 1) / ln(2))), 0) AS gain,
			(SELECT sum(1 / (ln(p + 1) / ln(2))) FROM generate_series(1, least(users.n, $2)) AS p) AS ideal
		FROM users LEFT JOIN hits USING (u) GROUP BY u, users.n)
	SELECT 'precision', avg(n_hits / $2) FROM by_user UNION ALL SELECT 'recall', avg(n_hits / n) FROM by_user
	UNION ALL SELECT 'map', avg(precisions / least(n, $2)) FROM by_user UNION ALL SELECT 'ndcg', avg(gain / ideal) FROM by_user
	UNION ALL SELECT 'hit_rate', avg((n_hits > 0)::int) FROM by_user
	UNION ALL SELECT 'coverage', (SELECT count(DISTINCT i) FROM lists WHERE rank <= $2)::float8 / (SELECT count(*) FROM items)
	UNION ALL SELECT 'rmse', (SELECT sqrt(avg((CASE $1 WHEN 'logged' THEN ln(1 + v) ELSE v END - score) ^ 2)) FROM tested JOIN products USING (u, i) WHERE $1 IN ('rated', 'logged'))
	UNION ALL SELECT 'users', count(*) FROM by_user
	UNION ALL SELECT 'unknown_users', count(DISTINCT u) FROM test WHERE u NOT IN (SELECT u FROM known)
	UNION ALL SELECT 'unknown_items', count(DISTINCT i) FROM test WHERE i NOT IN (SELECT i FROM items) $$;
CREATE FUNCTION differences(model text, k int, exclude_seen bool) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT format('%s: %s instead of %s', metric, a.value, e.value) FROM expected($1, $2, $3) AS e FULL JOIN millrace.evaluate($1, 'test', $2, $3) AS a USING (metric)
	WHERE a.value IS DISTINCT FROM e.value AND abs(a.value - e.value) < CASE metric WHEN 'rmse' THEN 1e-6 ELSE 1e-9 END IS NOT TRUE OR e.value = 0 AND $1 <> 'tied' $$;

SELECT is_empty(format('SELECT differences(%L, %s, %L)', model, k, exclude_seen), format('%s, k = %s, %s what users have', model, k, CASE WHEN exclude_seen THEN 'without' ELSE 'with' END))
	FROM unnest('{m,rated,logged,tied}'::text[]) AS model, unnest('{1,2,5,20,500}'::int[]) AS k, unnest('{t,f}'::bool[]) AS exclude_seen;
SELECT cmp_ok((SELECT count(*) FROM (SELECT a.id FROM millrace.item_factors('m') AS a JOIN millrace.item_factors('m') AS b ON a.factor = b.factor AND a.id <> b.id) AS x), '>', 20::bigint, 'there were ties');
SELECT results_eq($$ SELECT metric FROM millrace.evaluate('m', 'test') $$, $$ VALUES ('precision'), ('recall'), ('map'), ('ndcg'), ('hit_rate'), ('coverage'), ('rmse'), ('users'), ('unknown_users'), ('unknown_items') $$, 'rows');
SELECT is(value, 2::float8, 'unknown users are counted') FROM millrace.evaluate('m', 'test') WHERE metric = 'unknown_users';
SELECT is(value, 1::float8, 'unknown items are counted') FROM millrace.evaluate('m', 'test') WHERE metric = 'unknown_items';
SELECT is((SELECT array_agg(round(value::numeric, 12)) FROM millrace.evaluate('m', 'test')), (SELECT array_agg(round(value::numeric, 12)) FROM millrace.evaluate('m', 'SELECT u::text, i::text, 3 FROM test')), 'ids of the other kind, with a value');
SELECT is((SELECT array_agg(value) FROM millrace.evaluate('m', 'test')), (SELECT array_agg(value) FROM millrace.evaluate('m', 'SELECT u, i, 1 FROM test UNION ALL SELECT u, 9999 + u, -1 FROM test') WHERE metric <> 'unknown_items') || 1::float8, 'a value that is not above zero is not relevant');
SELECT is(value, NULL, 'nobody known: NULL') FROM millrace.evaluate('m', 'VALUES (12345, 1)') WHERE metric = 'precision';
SELECT is(value, 0::float8, 'of no users') FROM millrace.evaluate('m', 'VALUES (12345, 1)') WHERE metric = 'users';
SELECT is(value, NULL, 'no pair known: no RMSE') FROM millrace.evaluate('rated', 'VALUES (12345, 1), (1, 7000)') WHERE metric = 'rmse';
SELECT is(value, NULL, 'nor of the baseline') FROM millrace.evaluate('rated', 'test', method => 'baseline') WHERE metric = 'rmse';
SELECT is((SELECT value FROM millrace.evaluate('rated', 'SELECT u, i FROM test') WHERE metric = 'rmse'), (SELECT value FROM millrace.evaluate('rated', 'SELECT u, i, count(*) FROM test GROUP BY 1, 2') WHERE metric = 'rmse'), 'without values RMSE is of 1');
SELECT is(value, NULL, 'nothing new in the test') FROM millrace.evaluate('m', 'train') WHERE metric = 'precision';
SET LOCAL millrace.threads = 1;
CREATE TEMP TABLE one AS SELECT * FROM millrace.evaluate('rated', 'test', 5);
RESET millrace.threads;
SELECT results_eq('SELECT * FROM one', $$ SELECT * FROM millrace.evaluate('rated', 'test', 5) $$, 'one thread gives the same');

-- What a user has is not relevant, though the model does not know the item
CREATE TABLE later AS SELECT * FROM pairs;
SELECT millrace.train_als('later', 'later', rank => 2, iterations => 1);
INSERT INTO later VALUES (1, 7000);
SELECT is((SELECT value FROM millrace.evaluate('later', 'VALUES (''1'', ''7000''), (''2'', ''7000''), (''2'', ''7001''), (''3'', ''12'')') WHERE metric = 'users'), 2 - (EXISTS (SELECT FROM pairs WHERE u = 3 AND i = 12))::int::float8, 'seen items that the model does not know');

-- Baseline
SELECT is((SELECT value FROM millrace.evaluate('m', 'test', 5, true, 'baseline') WHERE metric = 'precision'),
	(SELECT avg(n) FROM (SELECT (count(*) FILTER (WHERE EXISTS (SELECT FROM test AS t WHERE t.u = users.u AND t.i = b.i)))::float8 / 5 AS n
		FROM (SELECT DISTINCT u FROM test WHERE u IN (SELECT u FROM train)) AS users,
		LATERAL (SELECT i FROM train GROUP BY i HAVING NOT bool_or(train.u = users.u) ORDER BY count(*) DESC, i LIMIT 5) AS b GROUP BY users.u) AS x), 'precision of popularity');
SELECT is((SELECT value FROM millrace.evaluate('m', 'test', 5, true, 'baseline') WHERE metric = 'users'), (SELECT value FROM one WHERE metric = 'users'), 'over the same users');

-- Bad input
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('nope', 'test') $$, '42704', 'model "nope" does not exist', 'unknown model');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'nope') $$, '42P01', 'relation "nope" does not exist', 'unknown table');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'SELECT u, i FROM test WHERE false') $$, '22023', 'test: there are no rows', 'empty test');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'VALUES (NULL::int, 1)') $$, '22023', 'test: the user is NULL', 'NULL in the test');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'test', 0) $$, '22023', 'k must be at least 1', 'k of 0');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'test', method => 'magic') $$, '22023', 'method must be ''model'' or ''baseline'', not ''magic''', 'unknown method');
SELECT lives_ok($$ SELECT * FROM millrace.evaluate('m', 'test', 1000000) $$, 'k of a million');

-- split
SELECT ok(abs(avg(millrace.split(n, 0.3)::int) - 0.3) < 0.01, 'the fraction') FROM generate_series(1, 100000) AS n;
SELECT ok(abs(avg((millrace.split(n, 0.5) = millrace.split(n, 0.5, 2))::int) - 0.5) < 0.02, 'seeds are independent') FROM generate_series(1, 20000) AS n;
SELECT is(string_agg(millrace.split(n, 0.5)::int::text, '' ORDER BY n), (SELECT string_agg(millrace.split(n::text, 0.5)::int::text, '' ORDER BY n) FROM generate_series(1, 64) AS n), 'by the text form') FROM generate_series(1, 64) AS n;
SELECT is(string_agg(millrace.split(n, 0.5)::int::text, '' ORDER BY n), '11111001110110101000011001100110', 'never changes') FROM generate_series(1, 32) AS n;
SELECT ok(bool_and(millrace.split(n, 0.6)), 'growing only adds') FROM generate_series(1, 10000) AS n WHERE millrace.split(n, 0.3);
SELECT is(count(*), 0::bigint, 'fraction 0') FROM generate_series(1, 10000) AS n WHERE millrace.split(n, 0);
SELECT is(count(*), 0::bigint, 'fraction 1') FROM generate_series(1, 10000) AS n WHERE NOT millrace.split(n, 1);
SELECT is(millrace.split(NULL::int, 0.5), NULL, 'NULL key');
SELECT throws_ok($$ SELECT millrace.split(1, 1.5) $$, '22023', 'fraction must be between 0 and 1, not 1.5', 'fraction above 1');
SELECT throws_ok($$ SELECT millrace.split(1, -0.5) $$, '22023', 'fraction must be between 0 and 1, not -0.5', 'negative fraction');
SELECT throws_ok($$ SELECT millrace.split(1, 'NaN') $$, '22023', 'fraction must be between 0 and 1, not NaN', 'NaN fraction');
CREATE DOMAIN key AS text;
SELECT lives_ok($$ SELECT millrace.split('x'::text, 0.5), millrace.split('x'::varchar(3), 0.5), millrace.split('x'::key, 0.5), millrace.split(1.50, 0.5), millrace.split(true, 0.5), millrace.split(gen_random_uuid(), 0.5) $$, 'types of keys');
SELECT throws_ok(format('SELECT millrace.split(%s, 0.5)', key), '22023', 'the key may not be of type ' || type, 'its text depends on settings: ' || type)
	FROM (VALUES ('now()', 'timestamp with time zone'), ('1::float8', 'double precision'), ('ARRAY[now()]', 'timestamp with time zone[]')) AS keys (key, type);
SELECT is(provolatile, 'i', 'immutable') FROM pg_proc WHERE proname = 'split' AND pronamespace = 'millrace'::regnamespace;
SELECT lives_ok('CREATE INDEX ON pairs (u) WHERE millrace.split(u, 0.5)', 'may stand in an index');

SELECT * FROM finish();
ROLLBACK;
