BEGIN;
SELECT plan(48);
SET LOCAL client_min_messages = warning;

-- Items 100 + i have exactly the buyers of i: equal factors, equal scores.
CREATE TABLE r (u int, i int);
INSERT INTO r SELECT DISTINCT n % 37, (n * n / 3) % 41 FROM generate_series(1, 900) AS n;
INSERT INTO r SELECT u, i + 100 FROM r;
SELECT millrace.train_als('m', 'r', rank => 12, iterations => 4);
CREATE TEMP TABLE truth AS
	SELECT u.id::int AS u, i.id::int AS i, (SELECT sum(a::float8 * b) FROM unnest(u.factor, i.factor) AS f(a, b)) AS score
	FROM millrace.user_factors('m') AS u, millrace.item_factors('m') AS i;
CREATE TEMP TABLE answer AS
	SELECT u, t.* FROM (SELECT DISTINCT u FROM r) AS users, millrace.recommend_top_k('m', u, 1000000, false) AS t;

-- Against brute force
SELECT is((SELECT count(*) FROM answer), (SELECT count(*) FROM truth), 'k of a million: every item, for every user');
SELECT ok(max(abs(answer.score - truth.score)) < 1e-5, 'scores are inner products') FROM answer JOIN truth ON truth.u = answer.u AND truth.i = answer.item_id;
SELECT is(count(*), 0::bigint, 'total order: score descending, then id ascending') FROM
	(SELECT score, item_id, lead(score) OVER w AS next_score, lead(item_id) OVER w AS next_id FROM answer WINDOW w AS (PARTITION BY u ORDER BY rank)) AS t
	WHERE next_score > score OR (next_score = score AND next_id < item_id);
SELECT is(count(*), (SELECT count(*) FROM answer) / 2, 'every item ties with its twin, which follows it') FROM
	(SELECT item_id, score, lead(item_id) OVER w AS next_id, lead(score) OVER w AS next_score FROM answer WINDOW w AS (PARTITION BY u ORDER BY rank)) AS t
	WHERE next_score = score AND next_id = item_id + 100;
SELECT is(array_agg(rank ORDER BY rank), array_agg(n ORDER BY n), 'ranks count from 1') FROM (SELECT rank, row_number() OVER (ORDER BY rank)::int AS n FROM answer WHERE u = 5) AS t;
SELECT is(array_agg(DISTINCT source), '{model}', 'source') FROM answer;
SELECT is(count(*), 0::bigint, 'item is item_id as text') FROM answer WHERE item IS DISTINCT FROM item_id::text;
SELECT is(count(*), 0::bigint, 'k = 7 is the first 7') FROM (SELECT DISTINCT u FROM r) AS users,
	LATERAL (SELECT array_agg(t ORDER BY t.rank) AS a FROM millrace.recommend_top_k('m', u, 7, false) AS t) AS seven
	WHERE a::text <> (SELECT array_agg((rank, item_id, item, score, source) ORDER BY rank)::text FROM answer WHERE answer.u = users.u AND rank <= 7);
SELECT is(count(*), 0::bigint, 'exclude_seen leaves out exactly what the user has') FROM (SELECT DISTINCT u FROM r) AS users
	WHERE ARRAY(SELECT item_id FROM millrace.recommend_top_k('m', u, 5) ORDER BY rank) IS DISTINCT FROM
		ARRAY(SELECT item_id FROM answer AS a WHERE a.u = users.u AND NOT EXISTS (SELECT FROM r WHERE r.u = a.u AND r.i = a.item_id) ORDER BY rank LIMIT 5);
SELECT is(count(*), 10::bigint, 'k is 10 if not given') FROM millrace.recommend_top_k('m', 5);
SELECT is(count(*), (SELECT count(*) FROM answer WHERE u = 5) - (SELECT count(*) FROM r WHERE u = 5), 'k above what is left') FROM millrace.recommend_top_k('m', 5, 1000000);

-- What was bought a moment ago
CREATE TEMP TABLE first AS SELECT item_id FROM millrace.recommend_top_k('m', 5, 1);
INSERT INTO r SELECT 5, item_id FROM first;
SELECT isnt((SELECT item_id FROM millrace.recommend_top_k('m', 5, 1)), (SELECT item_id FROM first), 'a purchase in this transaction is excluded');
INSERT INTO r VALUES (5, 4711), (5, 12);
SELECT is(count(*), 10::bigint, 'an item that the model does not know, and one twice, do no harm') FROM millrace.recommend_top_k('m', 5);

-- Ways to call it
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k('m', 5)), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 5::smallint)), 'smallint');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k('m', 5)), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', '5')), 'a literal in quotes');
SELECT is((SELECT count(*) FROM (SELECT millrace.recommend_top_k('m', 5, 3)) AS t), 3::bigint, 'in the list of a SELECT');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k(model => 'm', user_id => 5, k => 2, exclude_seen => true)), 2::bigint, 'by the names of the arguments');
SELECT is(count(*), 3::bigint, 'in a join') FROM (VALUES (1), (2), (3)) AS users (u), millrace.recommend_top_k('m', u, 1);

-- Users whom nobody knows
SELECT is(ARRAY(SELECT (item_id, score)::text FROM millrace.recommend_top_k('m', 999, 20) ORDER BY rank),
	ARRAY(SELECT (i::bigint, count(*)::real)::text FROM (SELECT * FROM r EXCEPT ALL SELECT * FROM (SELECT 5, item_id FROM first UNION ALL VALUES (5, 4711), (5, 12)) AS x) AS r GROUP BY i ORDER BY count(*) DESC, i LIMIT 20),
	'an unknown user gets the items of the most users');
SELECT is(array_agg(DISTINCT source), '{baseline}', 'source') FROM millrace.recommend_top_k('m', 999);
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k('m', 'abc')), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 999)), 'a text that is no id');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k('m', NULL)), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 999)), 'NULL');
SELECT is((SELECT array_agg(item) FROM millrace.recommend_top_k('m', '05')), (SELECT array_agg(item) FROM millrace.recommend_top_k('m', 999)), 'an id is found in its own form only');
CREATE TEMP TABLE popular AS SELECT item_id FROM millrace.recommend_top_k('m', 999, 2);
INSERT INTO r SELECT 999, item_id FROM popular;
SELECT is(count(*), 0::bigint, 'nor what he has meanwhile') FROM millrace.recommend_top_k('m', 999, 1000) WHERE item_id IN (SELECT item_id FROM popular);

-- Text ids
CREATE TABLE t AS SELECT 'u' || u AS u, CASE WHEN i % 2 = 0 THEN 'é' ELSE 'Z' END || i AS i FROM r;
SELECT millrace.train_als('text', 't', rank => 12, iterations => 4);
SELECT is(count(*), 0::bigint, 'item_id is NULL') FROM millrace.recommend_top_k('text', 'u5', 1000) WHERE item_id IS NOT NULL;
SELECT is(count(*), 0::bigint, 'items of text are excluded') FROM millrace.recommend_top_k('text', 'u5', 1000) AS a JOIN t ON t.u = 'u5' AND t.i = a.item;
SELECT is(count(*), 0::bigint, 'ties are in bytewise order') FROM
	(SELECT score, item, lead(score) OVER (ORDER BY rank) AS next_score, lead(item) OVER (ORDER BY rank) AS next_item FROM millrace.recommend_top_k('text', 'u5', 1000, false)) AS a
	WHERE next_score > score OR (next_score = score AND next_item COLLATE "C" < item COLLATE "C");
SELECT millrace.train_als('digits', 'SELECT u::text, i::text FROM r', rank => 2, iterations => 1);
SELECT is((SELECT array_agg(DISTINCT source) FROM millrace.recommend_top_k('digits', 7)), '{model}', 'a number finds the text id');

-- Bad input
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('nope', 1) $$, '42704', 'model "nope" does not exist', 'unknown model');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 1, 0) $$, '22023', 'k must be at least 1', 'k of 0');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 1, -5) $$, '22023', 'k must be at least 1', 'negative k');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 1, NULL) $$, '22023', 'k must be at least 1', 'NULL k');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k(NULL, 1) $$, '22023', 'model must not be NULL', 'NULL model');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 1, 5, NULL) $$, '22023', 'exclude_seen must not be NULL', 'NULL exclude_seen');

-- Versions: what is served follows what is active
CREATE TEMP TABLE v1 AS SELECT * FROM millrace.recommend_top_k('m', 5);
SELECT millrace.train_als('m', 'SELECT u, i FROM r WHERE i < 20', rank => 3, iterations => 2);
SELECT ok(max(item_id) < 20, 'a new version is served at once') FROM millrace.recommend_top_k('m', 5, 1000, false);
SELECT millrace.activate('m', 1);
SELECT is((SELECT array_agg(v::text) FROM v1 AS v), (SELECT array_agg(v::text) FROM millrace.recommend_top_k('m', 5) AS v), 'and the old one after activate');
UPDATE millrace.model SET active = NULL WHERE name = 'm';
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 1) $$, '55000', 'model "m" has no active version', 'no active version');
SELECT millrace.activate('m', 2);

-- Many models: more than a backend keeps
SELECT millrace.train_als('many' || n, 'VALUES (1, ' || n || ')', rank => 2, iterations => 1) FROM generate_series(1, 20) AS n;
SELECT is(count(*), 0::bigint, 'twenty models in turn') FROM generate_series(1, 20) AS n, millrace.recommend_top_k('many' || n, 1, 5, false) WHERE item_id <> n;

-- A block that does not pass its check
UPDATE millrace.factors SET data = set_byte(data, 200, get_byte(data, 200) # 1) WHERE model = 'text' AND side = 'item';
UPDATE millrace.model_version SET uuid = gen_random_uuid() WHERE model = 'text'; -- or this session would not read it again
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('text', 'u5') $$, 'XX001', 'block 0 of side "item" of model "text" version 1 is corrupt: its checksum is wrong', 'damaged block');
SELECT isnt_empty($$ SELECT * FROM millrace.recommend_top_k('m', 5) $$, 'other models go on');
DELETE FROM millrace.factors WHERE model = 'text' AND side = 'item';
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('text', 'u5') $$, 'XX001', 'block 0 of side "item" of model "text" version 1 is corrupt: it is missing', 'missing block');
UPDATE millrace.factors SET data = substr(data, 1, 100) WHERE model = 'digits' AND side = 'user';
UPDATE millrace.model_version SET uuid = gen_random_uuid() WHERE model = 'digits';
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('digits', '5') $$, 'XX001', 'block 0 of side "user" of model "digits" version 1 is corrupt: its length does not match its header', 'cut block');

-- The ids become text
CREATE TABLE changing AS SELECT n % 5 AS u, n % 3 AS i FROM generate_series(1, 9) AS n;
SELECT millrace.train_als('changing', 'SELECT * FROM changing', rank => 2, iterations => 1);
SELECT is(ARRAY(SELECT item_id FROM millrace.recommend_top_k('changing', 1)), '{2}', 'a plan is kept');
ALTER TABLE changing ALTER u TYPE text, ALTER i TYPE text, ADD v int;
SELECT is(ARRAY(SELECT item_id FROM millrace.recommend_top_k('changing', 1)), '{2}', 'and made again for other columns');

-- The ratings are gone
DROP TABLE r CASCADE;
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5) $$, '42P01', 'relation "r" does not exist', 'without the ratings seen items cannot be excluded');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('m', 5, exclude_seen => false) $$, '42P01', NULL, 'nor is it known whether the user has newer rows');
SELECT isnt_empty($$ SELECT * FROM millrace.recommend_top_k('m', 5, exclude_seen => false, own_history => 0, fold_in => false) $$, 'a list that needs nothing of that goes on');
SELECT throws_ok($$ SELECT millrace.recommend_top_k('m', now()) $$, '42883', NULL, 'ids are bigint or text');

SELECT * FROM finish();
ROLLBACK;
