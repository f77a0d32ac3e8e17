BEGIN;
SELECT plan(169);
SET LOCAL client_min_messages = warning;

-- Items 100 + i have exactly the buyers of i: equal factors, equal scores.
CREATE TABLE r (u int, i int, v float8);
INSERT INTO r SELECT u, i, 1 + (u + i) % 3 FROM (SELECT DISTINCT n % 37 AS u, (n * n / 3) % 41 AS i FROM generate_series(1, 900) AS n) AS x;
INSERT INTO r SELECT u, i + 100, v FROM r;
SELECT millrace.train_als('m', 'r', rank => 2, iterations => 6, regularization => 0.02, alpha => 3, unobserved_weight => 0.2, regularization_exponent => 0.5, own_history => 0.25);
CREATE TABLE f AS SELECT i, 'c' || i % 5 AS c FROM generate_series(0, 140) AS i WHERE i % 7 <> 0;
CREATE TEMP TABLE items AS SELECT id::int AS i, factor[1]::float8 AS y1, factor[2]::float8 AS y2 FROM millrace.item_factors('m');
CREATE TEMP TABLE users AS SELECT id::int AS u, factor[1]::float8 AS x1, factor[2]::float8 AS x2 FROM millrace.user_factors('m');
CREATE TEMP TABLE usual AS SELECT i, (sum(v) + 3 * (SELECT avg(v) FROM r)) / (count(*) + 3) AS usual FROM r GROUP BY i;

-- What folding somebody with these items in gives, by Cramer's rule.
CREATE FUNCTION folded(rows int[], amounts float8[], OUT x1 float8, OUT x2 float8) LANGUAGE sql AS $$
	WITH g AS (SELECT 0.2 * sum(y1 * y1) AS a, 0.2 * sum(y1 * y2) AS b, 0.2 * sum(y2 * y2) AS d, count(*) AS n_items FROM items),
	o AS (SELECT coalesce(sum(3 * v * y1 * y1), 0) AS a, coalesce(sum(3 * v * y1 * y2), 0) AS b, coalesce(sum(3 * v * y2 * y2), 0) AS d,
		sum((0.2 + 3 * v) * y1) AS p, sum((0.2 + 3 * v) * y2) AS q, count(*) AS n
		FROM (SELECT i, sum(v) AS v FROM unnest(rows, amounts) AS t(i, v) GROUP BY i HAVING sum(v) > 0) AS t JOIN items USING (i)),
	s AS (SELECT g.a + o.a + l AS a, g.b + o.b AS b, g.d + o.d + l AS d, p, q FROM g, o, LATERAL (SELECT 0.02 * (n + 0.2 * n_items) ^ 0.5 AS l) AS l)
	SELECT (p * d - b * q) / (a * d - b * b), (a * q - b * p) / (a * d - b * b) FROM s $$;
-- All items in the order of their scores for these factors.
CREATE FUNCTION scored(x1 float8, x2 float8) RETURNS TABLE (i int, score float8) LANGUAGE sql AS $$ SELECT i, $1 * y1 + $2 * y2 FROM items $$;
-- Lists are the same but for rounding: scores in order, close to those expected, ties by id, k of them, no better item left out.
CREATE FUNCTION is_best(list text, expected text, k int, description text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE wrong text;
BEGIN
	EXECUTE format($q$
		WITH list AS MATERIALIZED (SELECT rank, item_id AS i, score FROM (%s) AS l), expected AS MATERIALIZED (SELECT i, score FROM (%s) AS e)
		SELECT string_agg(w, '; ') FROM (
			SELECT 'rows ' || count(*) AS w FROM list HAVING count(*) <> least(%s, (SELECT count(*) FROM expected))
			UNION ALL SELECT 'rank ' || rank FROM (SELECT rank, row_number() OVER (ORDER BY rank) AS n, score, i, lag(score) OVER (ORDER BY rank) AS last, lag(i) OVER (ORDER BY rank) AS last_i FROM list) AS l
				WHERE rank <> n OR last < score OR (last = score AND last_i >= i)
			UNION ALL SELECT 'item ' || l.i || ' ' || l.score || ' ' || coalesce(e.score::text, 'is none') FROM list AS l LEFT JOIN expected AS e USING (i) WHERE e.i IS NULL OR abs(l.score - e.score) > 1e-5 * greatest(1, abs(e.score))
			UNION ALL SELECT 'left out ' || e.i FROM expected AS e LEFT JOIN list AS l USING (i) WHERE l.i IS NULL AND e.score > (SELECT min(score) + 1e-5 * greatest(1, abs(min(score))) FROM list)) AS x $q$, list, expected, k) INTO wrong;
	RETURN is(wrong, NULL, description);
END $$;

-- Candidates
SELECT is_best($$ SELECT * FROM millrace.recommend_top_k('m', 5, 7, false, 'SELECT i FROM f WHERE i % 2 = 0', own_history => 0) $$,
	$$ SELECT s.* FROM users, scored(x1, x2) AS s JOIN f USING (i) WHERE u = 5 AND i % 2 = 0 $$, 7, 'candidates by a query');
SELECT is_best($$ SELECT * FROM millrace.recommend_top_k('m', 5, 7, true, 'f') $$,
	$$ SELECT s.* FROM users, scored(x1, x2) AS s JOIN f USING (i) WHERE u = 5 AND i NOT IN (SELECT i FROM r WHERE u = 5) $$, 7, 'candidates by a table, without what the user has');
SELECT set_eq($$ SELECT item_id FROM millrace.recommend_top_k('m', 5, 100, false, 'VALUES (3), (5), (4711), (3), (NULL)') $$, '{3,5}'::bigint[], 'unknown ones, NULL and one twice do no harm');
SELECT set_eq($$ SELECT item_id FROM millrace.recommend_top_k('m', 5, 100, false, $q$ VALUES ('3', 1), ('04', 2), ('x', 3) $q$) $$, '{3}'::bigint[], 'texts find integers in their plain form; other columns are ignored');
SELECT set_eq($$ SELECT item_id FROM millrace.recommend_top_k('m', 999, 100, candidates => 'VALUES (3), (5)') $$, '{3,5}'::bigint[], 'of the baseline, too');
SELECT is((SELECT count(*) FROM generate_series(1, 5) AS u, millrace.recommend_top_k('m', u, 2, false, 'SELECT i FROM f WHERE i > 100')), 10::bigint, 'for many calls of a statement');
SELECT is((SELECT string_agg(item, ',' ORDER BY n) FROM (VALUES (1, 'VALUES (3)'), (2, 'VALUES (5)'), (3, 'VALUES (3)')) AS c(n, q), millrace.recommend_top_k('m', 5, 2, false, q)), '3,5,3', 'others in each call');
SELECT is((SELECT string_agg(item, ',' ORDER BY n) FROM generate_series(1, 20) AS n, millrace.recommend_top_k('m', 5, 2, false, 'VALUES (' || n % 10 + 10 || ')')), (SELECT string_agg((n % 10 + 10)::text, ',' ORDER BY n) FROM generate_series(1, 20) AS n WHERE n % 10 + 10 IN (SELECT i FROM items)), 'more than plans are kept');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT i FROM f WHERE false') $$, 'no candidates, no recommendations');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'VALUES (4711)') $$, 'nor from unknown ones');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('m', 999, candidates => 'VALUES (4711)') $$, 'nor from the baseline');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'nope') $$, '42P01', 'relation "nope" does not exist', 'candidates that are no relation');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT nope FROM f') $$, '42703', NULL, 'a query that cannot be');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT now(), i FROM f') $$, '22023', 'candidates: the first column, item id, is neither an integer nor text but timestamp with time zone', 'wrong type');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT v FROM r') $$, '22023', 'candidates: the first column, item id, is neither an integer nor text but double precision', 'a number that is no id');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT FROM r') $$, '22023', 'candidates: the first column, item id, is neither an integer nor text', 'no column');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'SELECT 1; SELECT 2') $$, '22023', 'candidates must be a single query that returns rows', 'two queries');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'DELETE FROM f') $$, '22023', 'candidates must be a single query that returns rows', 'no query');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'DELETE FROM f RETURNING i') $$, '22023', NULL, 'nothing is written');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => '') $$, '22023', 'candidates must not be empty', 'empty');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, candidates => NULL)), 10::bigint, 'NULL: all');
CREATE TABLE stock AS SELECT 3 AS i;
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 5, 5, false, 'stock')), '{3}', 'a table');
INSERT INTO stock VALUES (5);
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 5, false, 'stock')), 2::bigint, 'is read each time');
DROP TABLE stock;
CREATE TEMP TABLE stock AS SELECT 'x' AS other, 7 AS i;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 5, false, 'SELECT i FROM stock')), 1::bigint, 'it may be temporary');
ALTER TABLE stock ALTER i TYPE text USING 8::text;
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 5, 5, false, 'SELECT i FROM stock')), '{8}', 'a kept plan follows');
CREATE FUNCTION deep(x int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	RETURN x + (SELECT count(*) FROM millrace.recommend_top_k('m', 5, 2, false, format('SELECT deep(%s)', x - 1)) WHERE x > 0);
END $$;
SELECT is(deep(12), 13, 'candidates whose function asks for others, deeper than plans are kept');
SELECT is(count(*), 8::bigint, 'plans that are not kept are freed at once') FROM (SELECT count(*) AS n FROM generate_series(1, 100) AS n, millrace.recommend_top_k('m', 5, 2, false, 'VALUES (3), (' || n || ')') OFFSET 0) AS x,
	LATERAL (SELECT FROM pg_get_backend_memory_contexts() WHERE x.n > 0 AND name = 'CachedPlanSource' AND ident LIKE 'VALUES (3), (%') AS c;
SELECT cmp_ok(used_bytes, '<', 1000000::bigint, 'a call leaves nothing to the statement') FROM (SELECT count(*) AS n FROM generate_series(1, 3000) AS n, millrace.recommend_top_k('m', n % 9, 2) OFFSET 0) AS x,
	LATERAL (SELECT sum(used_bytes)::bigint AS used_bytes FROM pg_get_backend_memory_contexts() WHERE x.n > 0 AND name = 'ExecutorState') AS c;

-- Categories
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, max_per_category => 1) $$, '55000', 'model "m" has no categories', 'without item features there is nothing to limit');
SELECT millrace.set_item_features('m', 'f');
CREATE FUNCTION limited(x1 float8, x2 float8, n int) RETURNS TABLE (i int, score float8) LANGUAGE sql AS $$
	SELECT i, score FROM (SELECT s.*, c, row_number() OVER (PARTITION BY c ORDER BY score::real DESC, i) AS place FROM scored(x1, x2) AS s LEFT JOIN f USING (i)) AS x WHERE c IS NULL OR place <= n $$;
SELECT is((SELECT max(n) FROM (SELECT count(*) AS n FROM millrace.recommend_top_k('m', 5, 1000, false, max_per_category => n, own_history => 0, baseline => NULL) JOIN f ON i = item_id GROUP BY c) AS x), n::bigint, 'at most ' || n || ' of a category') FROM generate_series(1, 3) AS n;
SELECT is((SELECT array_agg(score ORDER BY rank) FROM millrace.recommend_top_k('m', u, 12, false, max_per_category => n, own_history => 0)),
	(SELECT array_agg(score::real ORDER BY score DESC) FROM (SELECT a.score, row_number() OVER (ORDER BY a.score DESC, item_id) AS rank FROM (SELECT t.*, c, row_number() OVER (PARTITION BY c ORDER BY rank) AS place
		FROM millrace.recommend_top_k('m', u, 1000, false, own_history => 0) AS t LEFT JOIN f ON i = item_id) AS a WHERE c IS NULL OR place <= n) AS b WHERE rank <= 12), format('the best %s of each, user %s', n, u))
	FROM (VALUES (5, 1), (5, 2), (7, 1), (0, 3), (36, 1)) AS t(u, n);
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 1000, false, max_per_category => 1, baseline => NULL) LEFT JOIN f ON i = item_id WHERE c IS NULL),
	(SELECT count(*) FROM items LEFT JOIN f USING (i) WHERE c IS NULL), 'items without a category are not limited');
SELECT is((SELECT max(n) FROM (SELECT count(*) AS n FROM (SELECT * FROM millrace.recommend_top_k('m', 999, 1000, max_per_category => 2) ORDER BY rank LIMIT (SELECT sum(least(n, CASE WHEN c IS NULL THEN n ELSE 2 END)) FROM (SELECT c, count(*) AS n FROM items LEFT JOIN f USING (i) GROUP BY c) AS y)) AS t JOIN f ON i = item_id GROUP BY c) AS x), 2::bigint, 'nor more of the baseline while there are others');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 999, 1000, max_per_category => 2)), (SELECT count(*) FROM items), 'which fills the list when categories have run out');
SELECT is((SELECT array_agg(DISTINCT source) FROM (SELECT * FROM millrace.recommend_top_k('m', 5, 1000, false, max_per_category => 1, own_history => 0) ORDER BY rank OFFSET (SELECT count(*) FROM millrace.recommend_top_k('m', 5, 1000, false, max_per_category => 1, own_history => 0, baseline => NULL))) AS t), '{baseline}', 'a user''s list too');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, max_per_category => 0) $$, '22023', 'max_per_category must be at least 1, not 0', 'none of a category');

-- Filling from a baseline: 900 and 901 are new, 3 and 5 are known
INSERT INTO f VALUES (900, 'new'), (901, 'new'), (903, 'c1');
SELECT millrace.refresh_lists('m');
SELECT millrace.set_baseline('m', 'VALUES (3), (900), (901), (902), (903), (5)', 'novel');
SELECT is(ARRAY(SELECT item_id || source FROM millrace.recommend_top_k('m', 5, 8, false, 'SELECT i FROM f WHERE i < 130', 1, 'novel', 0) ORDER BY rank OFFSET 5), '{3baseline,5baseline}', 'only candidates are filled in');
SELECT is((SELECT array_agg(item ORDER BY rank) FROM (SELECT * FROM millrace.recommend_top_k('m', 5, 1000, false, NULL, 1, 'novel', 0) ORDER BY rank OFFSET 10) AS t WHERE source = 'baseline'), '{900,902,3,901,903,5}', 'when categories run out the baseline goes on: with what the limit allows, then with the rest');
SELECT is((SELECT array_agg(item ORDER BY rank) FROM millrace.recommend_top_k('m', 5, 1000, false, NULL, 2, 'novel', 0) WHERE source = 'baseline'), '{900,901,902,3,903,5}', 'two of a category');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 1000, false, NULL, NULL, 'novel', 0) WHERE source = 'baseline'), 0::bigint, 'not without such a limit');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 1000, false, NULL, 1, NULL, 0) WHERE source = 'baseline'), 0::bigint, 'nor without a baseline');
SELECT is(ARRAY(SELECT (rank, item_id, item, score, source)::text FROM millrace.recommend_top_k('m', 999, 3, baseline => 'novel') ORDER BY rank), '{"(1,3,3,1,baseline)","(2,900,900,0.5,baseline)","(3,901,901,0.33333334,baseline)"}', 'a baseline of one''s own for nobody');
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 999, 9, candidates => 'VALUES (5), (900), (77)', baseline => 'novel') ORDER BY rank), '{900,5}', 'candidates that only the baseline has');
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 999, 9, candidates => $$ VALUES ('5'), ('902'), ('x') $$, baseline => 'novel') ORDER BY rank), '{902,5}', 'as texts');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k('m', 999, baseline => NULL) $$, 'nothing for nobody without a baseline');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 999, 100, baseline => 'top_5')), 5::bigint, 'top_5 has five');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 10, baseline => 'random')), 10::bigint, 'a baseline that is not used');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, baseline => 'nope') $$, '42704', NULL, 'a baseline that is not there');
INSERT INTO r VALUES (998, 900, 1);
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 998, 3, baseline => 'novel') ORDER BY rank), '{3,901,902}', 'what he has is excluded though the model does not know it');
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 998, 3, false, baseline => 'novel') ORDER BY rank), '{3,900,901}', 'or not');
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k_for('m', 'VALUES (998)', 3, baseline => 'novel') ORDER BY rank), '{3,901,902}', 'in a batch, too');

-- Own history
SELECT is_best(format($$ SELECT * FROM millrace.recommend_top_k('m', %s, %s, false, own_history => %s) $$, u, k, coalesce(w::text, 'NULL')),
	format($$ SELECT s.i, score + %s * coalesce(ln(1 + usual / (1 + usual) * (1 + v)), 0) AS score FROM users, scored(x1, x2) AS s JOIN usual ON usual.i = s.i LEFT JOIN r ON r.u = %s AND r.i = s.i WHERE users.u = %2$s $$, coalesce(w, 0.25), u), k, format('own history of %s with weight %s, %s items', u, w, k))
	FROM (VALUES (5, 10, 0.25), (5, 1000, NULL), (7, 20, 100), (0, 3, 0.001)) AS t(u, k, w);
SELECT is((SELECT array_agg(DISTINCT source || (r.i IS NOT NULL) ORDER BY source || (r.i IS NOT NULL)) FROM millrace.recommend_top_k('m', 5, 1000, false) LEFT JOIN r ON u = 5 AND i = item_id), '{historytrue,modelfalse}', 'source tells what the user has');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5, 1000, false, own_history => 0)), '{model}', 'without it all is the model''s');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5, 1000, true, own_history => 5)), '{model}', 'what is excluded is not raised');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, own_history => -1) $$, '22023', 'own_history must be 0 or more, not -1', 'negative weight');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, own_history => 'NaN') $$, '22023', 'own_history must be 0 or more, not NaN', 'NaN');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, fold_in => NULL) $$, '22023', 'fold_in must not be NULL', 'NULL');

-- Folding in
INSERT INTO r VALUES (1000, 3, 1), (1000, 8, 2), (1000, 8, 1), (1000, 110, 4), (1000, 4711, 1), (1001, 3, 0);
SELECT is_best($$ SELECT * FROM millrace.recommend_top_k('m', 1000, 1000, false, own_history => 0) $$,
	$$ SELECT s.* FROM folded('{3,8,8,110}', '{1,2,1,4}') AS x, scored(x.x1, x.x2) AS s $$, 1000, 'an unknown user with rows is folded in, in the transaction that wrote them');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 1000)), '{fold_in}', 'source');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 1000, 1000) WHERE item_id IN (3, 8, 110)), 0::bigint, 'without what he has');
SELECT is((SELECT array_agg(DISTINCT source ORDER BY source) FROM millrace.recommend_top_k('m', 1000, 1000, false)), '{fold_in,history}', 'with his own history');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 1000, fold_in => false)), '{baseline}', 'not folded in if not wanted');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 1000, 1000, fold_in => false) WHERE item_id IN (3, 8, 110)), 0::bigint, 'but what he has is still excluded');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 1001)), '{baseline}', 'a value of 0 tells nothing');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5)), '{model}', 'a known user is the model''s');
INSERT INTO r SELECT 5, min(i), 7 FROM items WHERE i NOT IN (SELECT i FROM r WHERE u = 5);
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5)), '{fold_in}', 'until he has a newer row');
SELECT is_best($$ SELECT * FROM millrace.recommend_top_k('m', 5, 1000, false, own_history => 0) $$,
	$$ SELECT s.* FROM (SELECT array_agg(i) AS i, array_agg(v) AS v FROM r WHERE u = 5) AS h, folded(h.i, h.v) AS x, scored(x.x1, x.x2) AS s $$, 1000, 'then from all his rows');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5, fold_in => false)), '{model}', 'not folded in if not wanted');
DELETE FROM r WHERE u = 5 AND v = 7;
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 5)), '{model}', 'the row is gone: the model''s again');
UPDATE r SET v = v + 1 WHERE u = 6 AND i = (SELECT min(i) FROM r WHERE u = 6);
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 6)), '{fold_in}', 'a changed value counts');
DELETE FROM r WHERE u = 9;
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 9)), '{model}', 'who has nothing any more is as he was');

-- Many users: row by row what recommend_top_k lists
CREATE FUNCTION differ(arguments text, users text, threads int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	EXECUTE format($q$ WITH many AS MATERIALIZED (SELECT user_id, rank, item_id, item, score, source FROM millrace.recommend_top_k_for('m', %1$L, %2$s, threads => %3$s)),
		one AS MATERIALIZED (SELECT u::bigint, t.* FROM (SELECT DISTINCT u FROM (%1$s) AS q(u)) AS users, millrace.recommend_top_k('m', u, %2$s) AS t)
		SELECT (SELECT count(*) FROM many) * 0 + count(*) FROM ((TABLE many EXCEPT ALL TABLE one) UNION ALL (TABLE one EXCEPT ALL TABLE many)) AS d $q$, users, arguments, threads) INTO n;
	RETURN n;
END $$;
CREATE TEMP TABLE asked AS SELECT DISTINCT u FROM r UNION VALUES (4712), (-1);
SELECT is(differ(a, 'SELECT u FROM asked', t), 0::bigint, format('%s, %s threads', a, t)) FROM (VALUES ('k => 10'), ('k => 3, exclude_seen => false'), ('k => 1000, exclude_seen => false, own_history => 2'),
	('k => 20, max_per_category => 1, baseline => ''novel'''), ('k => 5, candidates => ''SELECT i FROM f WHERE i % 2 = 0''')) AS a(a), generate_series(1, 3) AS t;
CREATE TEMP TABLE many AS SELECT * FROM millrace.recommend_top_k_for('m', 'SELECT u % 30 FROM asked', 4);
SELECT is((SELECT array_agg(user_id) FROM (SELECT DISTINCT ON (user_id) user_id FROM many) AS x), (SELECT array_agg(DISTINCT (u % 30)::bigint ORDER BY (u % 30)::bigint) FROM asked), 'each user once');
SELECT is(count(*), 0::bigint, 'in the order of users, then rank') FROM (SELECT user_id, rank, lag(user_id) OVER w AS last, lag(rank) OVER w AS last_rank FROM (SELECT *, row_number() OVER () AS n FROM millrace.recommend_top_k_for('m', 'SELECT u % 30 FROM asked', 4)) AS x WINDOW w AS (ORDER BY n)) AS y
	WHERE last > user_id OR (last = user_id AND last_rank + 1 <> rank);
SELECT is(count(*), 0::bigint, 'user is user_id as text') FROM many WHERE "user" IS DISTINCT FROM user_id::text;
SELECT is((SELECT count(DISTINCT user_id) FROM millrace.recommend_top_k_for('m', NULL, 2)), (SELECT count(*) FROM users), 'NULL: all users that the model knows');
SELECT is((SELECT array_agg(coalesce("user", 'nobody') || source) FROM millrace.recommend_top_k_for('m', 'VALUES (NULL), (7)', 1)), '{7model,nobodybaseline}', 'nobody comes last');
SELECT is_empty($$ SELECT * FROM millrace.recommend_top_k_for('m', 'SELECT 1 WHERE false') $$, 'no users');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('m', 'SELECT 1.5') $$, '22023', 'users: the first column, user id, is neither an integer nor text but numeric', 'wrong type');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('m', 'nope') $$, '42P01', 'relation "nope" does not exist', 'no such relation');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('m', 'VALUES (1)', 0) $$, '22023', 'k must be at least 1', 'k of 0');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('m', 'VALUES (1)', threads => -1) $$, '22023', 'threads must be 0 or more', 'threads');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('nope', 'VALUES (1)') $$, '42704', 'model "nope" does not exist', 'unknown model');

-- Enough users for one pass over the ratings, and for more than a block
CREATE TABLE big AS SELECT u, (u * 7 + n * n) % 61 AS i, n % 3 AS v FROM generate_series(1, 5000) AS u, generate_series(1, 4 + u % 5) AS n;
SELECT millrace.train_als('big', 'big', rank => 3, iterations => 2);
INSERT INTO big VALUES (17, 3, 1), (NULL, 3, 1), (18, NULL, 1), (6000, 5, 2), (6001, 777, 1);
ALTER TABLE big ALTER v TYPE float8;
INSERT INTO big VALUES (19, 5, 'NaN'), (19, 6, 'NaN'), (20, 6, NULL), (21, 6, 'Infinity');
CREATE TEMP TABLE bulk AS SELECT * FROM millrace.recommend_top_k_for('big', 'SELECT DISTINCT u FROM big', 3);
SELECT is(count(*), 0::bigint, 'one pass over the ratings gives the same') FROM (SELECT user_id, rank, item_id, score, source FROM bulk WHERE user_id < 300 OR user_id > 4900
	EXCEPT ALL SELECT u, rank, item_id, score, source FROM (SELECT DISTINCT u FROM big WHERE u < 300 OR u > 4900) AS users, millrace.recommend_top_k('big', u, 3)) AS x;
SELECT is((SELECT count(*) FROM bulk), 15000 + 9::bigint, 'for all');
SELECT is((SELECT array_agg(DISTINCT source ORDER BY source) FROM bulk), '{baseline,fold_in,model}', 'of every kind');
SET LOCAL millrace.max_memory = '1MB';
SELECT is(count(*), 0::bigint, 'in blocks where memory is short, too') FROM (TABLE bulk EXCEPT ALL SELECT * FROM millrace.recommend_top_k_for('big', 'SELECT DISTINCT u FROM big', 3)) AS x;
RESET millrace.max_memory;
ALTER TABLE big ALTER i TYPE text;
SELECT is(count(*), 0::bigint, 'items that have become texts come in another order') FROM (TABLE bulk EXCEPT ALL SELECT * FROM millrace.recommend_top_k_for('big', 'SELECT DISTINCT u FROM big', 3)) AS x;
ALTER TABLE big ALTER u TYPE text;
SELECT is(count(*), 0::bigint, 'users, too') FROM (SELECT "user", rank, item, score, source FROM bulk EXCEPT ALL SELECT "user", rank, item, score, source FROM millrace.recommend_top_k_for('big', 'SELECT DISTINCT u FROM big', 3)) AS x;
SELECT millrace.train_als('texts', $$ SELECT 'u' || u, 'é' || i, v FROM big WHERE u::int <= 5000 AND i IS NOT NULL AND v < 9 $$, rank => 3, iterations => 2);
SELECT is(count(*), 0::bigint, 'ids of text') FROM (SELECT "user", rank, item, score, source FROM millrace.recommend_top_k_for('texts', NULL, 3) WHERE user_id IS NULL AND item_id IS NULL AND "user" < 'u13'
	EXCEPT ALL SELECT 'u' || u, rank, item, score, source FROM (SELECT DISTINCT u FROM big WHERE u < '13') AS users, millrace.recommend_top_k('texts', 'u' || u, 3)) AS x;
SELECT is((SELECT count(DISTINCT "user") FROM millrace.recommend_top_k_for('texts', NULL, 3)), 5000::bigint, 'all of them');

-- Memory does not grow with the users whose baseline has items that the model does not know
CREATE TABLE few AS SELECT u, i, 1 AS v FROM generate_series(1, 9) AS u, generate_series(1, 5) AS i;
CREATE INDEX ON few (u);
CREATE FUNCTION is_small() RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	IF (SELECT sum(used_bytes) FROM pg_catalog.pg_get_backend_memory_contexts() WHERE name = 'millrace recommendations') > 300000 THEN
		RAISE 'memory grows';
	END IF;
	RETURN true;
END $$;
SELECT millrace.train_als('few', 'SELECT u, i, v FROM few WHERE is_small()', rank => 2, iterations => 1);
SELECT millrace.set_baseline('few', 'SELECT 1000 + n FROM generate_series(1, 5) AS n', 'unknown');
INSERT INTO few SELECT 100 + u, 1001, 1 FROM generate_series(1, 200) AS u;
ANALYZE few;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k_for('few', 'SELECT 100 + u FROM generate_series(1, 200) AS u', baseline => 'unknown')), 800::bigint, 'many users with a baseline of what the model does not know');

-- The same where what users have is kept by user
CREATE TEMP TABLE before AS SELECT * FROM millrace.recommend_top_k_for('m', 'asked', 20) UNION ALL SELECT * FROM millrace.recommend_top_k_for('m', 'asked', 1000, false);
SELECT millrace.track_history('m');
SELECT is((SELECT bool_and(is_kept) FROM millrace.user_history('m', '{5,1000}')), true, 'what users have is kept by user');
SELECT is(count(*), 0::bigint, 'the lists stay') FROM (SELECT user_id, rank, item_id, score, source FROM before EXCEPT ALL (SELECT user_id, rank, item_id, score, source FROM millrace.recommend_top_k_for('m', 'asked', 20)
	UNION ALL SELECT user_id, rank, item_id, score, source FROM millrace.recommend_top_k_for('m', 'asked', 1000, false))) AS x;
SELECT is(differ('k => 10', 'SELECT u FROM asked', 0), 0::bigint, 'one by one and many');
INSERT INTO r SELECT 7, min(i), 1 FROM items WHERE i NOT IN (SELECT i FROM r WHERE u = 7);
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 7)), '{fold_in}', 'a newer row is seen in the transaction that writes it');
SELECT is(differ('k => 10', 'VALUES (7), (8)', 2), 0::bigint, 'by many, too');
DELETE FROM r WHERE u = 7 AND NOT EXISTS (SELECT FROM before WHERE user_id = 7 AND source = 'history' AND item_id = i);
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('m', 7)), '{model}', 'and when it goes');
SELECT is(ARRAY(SELECT item FROM millrace.recommend_top_k('m', 998, 3, baseline => 'novel') ORDER BY rank), '{3,901,902}', 'what the model does not know is excluded');

-- From items
SELECT is_best($$ SELECT * FROM millrace.recommend_from_items('m', '{3,8,8,110,4711,NULL}'::bigint[], 1000, false) $$,
	$$ SELECT s.* FROM folded('{3,8,110}', '{1,2,1}') AS x, scored(x.x1, x.x2) AS s $$, 1000, 'from items');
SELECT is_best($$ SELECT * FROM millrace.recommend_from_items('m', ARRAY[3, 8, 110], 9, weights => '{1,3,4}') $$,
	$$ SELECT s.* FROM folded('{3,8,110}', '{1,3,4}') AS x, scored(x.x1, x.x2) AS s WHERE i NOT IN (3, 8, 110) $$, 9, 'with weights, without the items given');
SELECT is((SELECT array_agg((rank, item, score)::text) FROM millrace.recommend_from_items('m', '{3,8,110}'::text[], 5, weights => '{1,3,4}')), (SELECT array_agg((rank, item, score)::text) FROM millrace.recommend_top_k('m', 1000, 5)), 'as texts; as for who has them');
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_from_items('m', '{3}'::bigint[])), '{fold_in}', 'source');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_from_items('m', '{}'::bigint[])), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 999)), 'no items: the baseline');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_from_items('m', '{4711}'::bigint[], baseline => 'novel')), '{3,900,901,902,903,5}', 'nor one that the model knows');
SELECT is((SELECT max(n) FROM (SELECT count(*) AS n FROM millrace.recommend_from_items('m', '{3}'::bigint[], 20, candidates => 'f', max_per_category => 2, baseline => NULL) JOIN f ON i = item_id GROUP BY c) AS x), 2::bigint, 'candidates and categories');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_from_items('m', NULL::bigint[]) $$, '22023', 'items must not be NULL', 'NULL');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_from_items('m', '{1,2}'::bigint[], weights => '{1}') $$, '22023', 'there are 1 weights for 2 items', 'a weight is missing');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_from_items('m', '{1,2}'::bigint[], weights => '{1,NULL}') $$, '22003', 'a weight must be a finite number, not NULL', 'NULL weight');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_from_items('m', '{1,2}'::bigint[], weights => '{1,Infinity}') $$, '22003', 'a weight must be a finite number, not Infinity', 'infinite weight');

-- Similar items and users
CREATE TEMP TABLE cosines AS SELECT a.i AS of, b.i, (a.y1 * b.y1 + a.y2 * b.y2) / sqrt((a.y1 ^ 2 + a.y2 ^ 2) * (b.y1 ^ 2 + b.y2 ^ 2)) AS score FROM items AS a, items AS b WHERE a.i <> b.i;
SELECT is_best(format($$ SELECT rank, neighbor_id AS item_id, score FROM millrace.similar_items('m', %s, %s) $$, i, k), format($$ SELECT i, score FROM cosines WHERE of = %s $$, i), k, format('%s items like %s', k, i)) FROM (VALUES (3, 5), (8, 1000), (117, 1)) AS t(i, k);
SELECT is((SELECT (neighbor_id, neighbor, score)::text FROM millrace.similar_items('m', 3, 1)), '(103,103,1)', 'a twin is most like');
SELECT is_best($$ SELECT rank, neighbor_id AS item_id, score FROM millrace.similar_items('m', '3', 5, 'SELECT i FROM f WHERE i < 50') $$, $$ SELECT i, score FROM cosines JOIN f USING (i) WHERE of = 3 AND i < 50 $$, 5, 'among candidates, by a text');
SELECT is_empty($$ SELECT * FROM millrace.similar_items('m', 4711) $$, 'an unknown item is like none');
SELECT is_empty($$ SELECT * FROM millrace.similar_items('m', NULL::bigint) $$, 'nor is NULL');
SELECT throws_ok($$ SELECT * FROM millrace.similar_items('m', 3, 0) $$, '22023', 'k must be at least 1', 'k of 0');
SELECT is_best($$ SELECT rank, neighbor_id AS item_id, score FROM millrace.similar_users('m', 7, 10) $$,
	$$ SELECT b.u AS i, (a.x1 * b.x1 + a.x2 * b.x2) / sqrt((a.x1 ^ 2 + a.x2 ^ 2) * (b.x1 ^ 2 + b.x2 ^ 2)) AS score FROM users AS a, users AS b WHERE a.u = 7 AND b.u <> 7 $$, 10, 'similar users');
SELECT is_best($$ SELECT rank, neighbor_id AS item_id, score FROM millrace.similar_users('m', '1000', 1000) $$,
	$$ SELECT u AS i, (a.x1 * b.x1 + a.x2 * b.x2) / sqrt((a.x1 ^ 2 + a.x2 ^ 2) * (b.x1 ^ 2 + b.x2 ^ 2)) AS score FROM folded('{3,8,110}', '{1,3,4}') AS a, users AS b $$, 1000, 'like one who is folded in');
SELECT is_empty($$ SELECT * FROM millrace.similar_users('m', 999) $$, 'nobody is like nobody');

-- One pair
SELECT ok(abs(millrace.predict('m', u, i) - (x1 * y1 + x2 * y2)) < 1e-5, format('predict %s, %s', u, i)) FROM users, items WHERE (u, i) IN ((7, 3), (0, 140));
SELECT is(millrace.predict('m', 7, item_id), score, 'the score that is listed') FROM millrace.recommend_top_k('m', 7, 1);
SELECT is(millrace.predict('m', 1000, item_id), score, 'of who is folded in') FROM millrace.recommend_top_k('m', 1000, 1);
SELECT is(ARRAY[millrace.predict('m', '7', 3), millrace.predict('m', 7, '3'), millrace.predict('m', '7', '3')], array_fill(millrace.predict('m', 7, 3), '{3}'), 'ids as texts');
SELECT is(ARRAY[millrace.predict('m', 999, 3), millrace.predict('m', 7, 4711), millrace.predict('m', NULL::bigint, 3), millrace.predict('m', 7, NULL::text), millrace.predict('m', 1000, 3, fold_in => false)], '{NULL,NULL,NULL,NULL,NULL}', 'NULL where nothing is known');

-- Why
SELECT ok(abs(sum(contribution) - millrace.predict('m', 1000, 12)) < 1e-5, 'contributions sum to the score of who is folded in') FROM millrace.explain('m', 1000, 12);
SELECT is(array_agg((because_id, because, value)::text ORDER BY because_id), '{"(3,3,1)","(8,8,3)","(110,110,4)"}', 'of what he has') FROM millrace.explain('m', 1000, 12);
SELECT ok(bool_and(abs(e.contribution - s.contribution) < 1e-5), 'each is the part of its own weight')
	FROM millrace.explain('m', 1000, 12) AS e JOIN (SELECT h.i, x.x1 * w.y1 + x.x2 * w.y2 AS contribution FROM (VALUES (3, 1.0), (8, 3), (110, 4)) AS h(i, v) JOIN items USING (i), items AS w,
		LATERAL (WITH o AS (SELECT sum(0.2 * y1 * y1 + 3 * coalesce(v, 0) * y1 * y1) + l AS a, sum(0.2 * y1 * y2 + 3 * coalesce(v, 0) * y1 * y2) AS b, sum(0.2 * y2 * y2 + 3 * coalesce(v, 0) * y2 * y2) + l AS d
			FROM items LEFT JOIN (VALUES (3, 1.0), (8, 3), (110, 4)) AS t(i, v) USING (i), (SELECT 0.02 * (3 + 0.2 * count(*)) ^ 0.5 AS l FROM items) AS l GROUP BY l)
			SELECT (0.2 + 3 * h.v) * (d * items.y1 - b * items.y2) / (a * d - b * b) AS x1, (0.2 + 3 * h.v) * (a * items.y2 - b * items.y1) / (a * d - b * b) AS x2 FROM o) AS x WHERE w.i = 12) AS s ON s.i = because_id;
SELECT is(array_agg(rank ORDER BY contribution DESC, because_id), array_agg(rank ORDER BY rank), 'the greatest first') FROM millrace.explain('m', 7, 12);
SELECT is((SELECT count(*) FROM millrace.explain('m', '7', '12')), (SELECT count(*) FROM r WHERE u = 7), 'ids as texts');
SELECT is_empty($$ SELECT * FROM millrace.explain('m', 999, 3) $$, 'nobody');
SELECT is_empty($$ SELECT * FROM millrace.explain('m', 7, 4711) $$, 'an unknown item');

-- Imported without ratings
SELECT millrace.import_als('bare', 'SELECT u, ARRAY[x1, x2] FROM users', 'SELECT i, ARRAY[y1, y2] FROM items');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k_for('bare', 'VALUES (7)', 5)), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 7, 5, false, own_history => 0)), 'of a model without ratings nothing is excluded');
SELECT throws_ok($$ SELECT * FROM millrace.explain('bare', 7, 3) $$, '55000', 'model "bare" has no ratings to explain a score by', 'nor explained');

-- Rights
CREATE ROLE mr_caller;
GRANT USAGE ON SCHEMA millrace TO mr_caller;
CREATE TABLE secret AS SELECT 3 AS i;
SET LOCAL ROLE mr_caller;
SELECT throws_ok($$ SELECT * FROM r $$, '42501', NULL, 'a caller who may not read the ratings');
SELECT isnt_empty($$ SELECT * FROM millrace.recommend_top_k('m', 1000) $$, 'gets lists');
SELECT isnt_empty($$ SELECT * FROM millrace.recommend_top_k_for('m', 'VALUES (1000), (5)') $$, 'of many users');
SELECT isnt_empty($$ SELECT * FROM millrace.similar_users('m', 1000) $$, 'similar users');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, candidates => 'secret') $$, '42501', 'permission denied for table secret', 'candidates are read as the caller');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k_for('m', 'secret') $$, '42501', 'permission denied for table secret', 'users, too');
SELECT throws_ok($$ SELECT * FROM millrace.explain('m', 1000, 3) $$, '42501', 'permission denied for function explain', 'what users have is not for everybody');
RESET ROLE;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 5, 5, false, 'SELECT i FROM secret')), 1::bigint, 'a plan of one');
SET LOCAL ROLE mr_caller;
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, 5, false, 'SELECT i FROM secret') $$, '42501', 'permission denied for table secret', 'is none of another');
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
