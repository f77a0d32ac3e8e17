BEGIN;
SELECT plan(24);
SET LOCAL client_min_messages = warning;

CREATE FUNCTION pg_temp.has(model text, VARIADIC users text[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(format('%s:%s=%s', h."user", h.item, h.value), ' ' ORDER BY n) FROM ROWS FROM (millrace.user_history(model, users)) WITH ORDINALITY AS h("user", item, value, is_new, is_kept, n)
$$;
CREATE FUNCTION pg_temp.new(model text, VARIADIC users text[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(DISTINCT format('%s=%s', h."user", h.is_new), ' ') FROM millrace.user_history(model, users) AS h
$$;

-- By the ratings query
CREATE TABLE r (u int, i smallint, v numeric);
INSERT INTO r SELECT n % 37, (n * n / 3) % 41, 1 + n % 3 FROM generate_series(1, 900) AS n;
CREATE TEMP TABLE done AS SELECT millrace.train_als('m', 'r', rank => 4, iterations => 2, holdout => 0.2, value_transform => 'log1p');
CREATE TEMP TABLE truth AS SELECT u, i, sum(v) AS v FROM r GROUP BY 1, 2;
SELECT is(pg_temp.has('m', VARIADIC array_agg(DISTINCT u::text)), (SELECT string_agg(format('%s:%s=%s', u, i, v), ' ' ORDER BY u::text, i) FROM truth), 'many users at once: items ascending, values summed') FROM r;
SELECT is(pg_temp.has('m', '5'), (SELECT string_agg(format('5:%s=%s', i, v), ' ' ORDER BY i) FROM truth WHERE u = 5), 'one user');
SELECT is(pg_temp.has('m', 'abc', '5', '4711', '05', '99999999999'), pg_temp.has('m', '5'), 'nothing of users whom nobody knows');
SELECT is(pg_temp.has('m', 'abc'), NULL, 'nor of one alone');
SELECT is(pg_temp.new('m', VARIADIC array_agg(DISTINCT u::text)), (SELECT string_agg(u || '=f', ' ' ORDER BY u || '=f') FROM (SELECT DISTINCT u::text FROM r) AS q), 'nothing is new after training, whatever was held out or transformed') FROM r;
INSERT INTO r VALUES (5, 3, 2), (6, 4711, 1), (7, 1, 0), (8, 1, NULL), (9, NULL, 1), (10, 2, 'NaN');
SELECT is(pg_temp.new('m', '5'), '5=t', 'new rows are seen');
SELECT is(pg_temp.new('m', '6'), '6=f', 'an item that the model does not know is not new');
SELECT is(pg_temp.new('m', '7'), '7=f', 'nor one whose value is 0');
SELECT is(pg_temp.has('m', '8'), (SELECT string_agg(format('8:%s=%s', i, v), ' ' ORDER BY i) FROM (SELECT i, coalesce(v, 0) AS v FROM truth WHERE u = 8 UNION SELECT 1, 0 WHERE NOT EXISTS (SELECT FROM truth WHERE u = 8 AND i = 1)) AS q), 'a value of NULL counts as 0');
SELECT is(pg_temp.has('m', '9'), (SELECT string_agg(format('9:%s=%s', i, v), ' ' ORDER BY i) FROM truth WHERE u = 9), 'an item NULL does not count');
SELECT unalike(pg_temp.has('m', '10'), '%NaN%', 'nor does a value that is not a number');
DELETE FROM r WHERE u = 5 AND i = 3 AND v = 2 AND ctid = (SELECT max(ctid) FROM r WHERE u = 5 AND i = 3);
SELECT is(pg_temp.new('m', '5'), '5=f', 'a row that is deleted again leaves nothing');
INSERT INTO r VALUES (777, 3, 2), (777, 1, 1), (777, 3, 1.5);
SELECT is(pg_temp.has('m', '777'), '777:1=1 777:3=3.5', 'a user whom the model does not know');
SELECT is(pg_temp.new('m', '777'), '777=', 'of whom nothing can be new');

-- Texts, without a value
CREATE TABLE t (u varchar(20), i text);
INSERT INTO t SELECT 'u' || u, 'item ' || i FROM (SELECT u, i FROM truth) AS q;
CREATE TEMP TABLE done2 AS SELECT millrace.train_als('t', 'SELECT u, i FROM t', rank => 4, iterations => 2);
SELECT is(pg_temp.has('t', VARIADIC array_agg(DISTINCT u)), (SELECT string_agg(format('%s:%s=1', u, i), ' ' ORDER BY u COLLATE "C", i COLLATE "C") FROM t), 'texts') FROM t;
INSERT INTO t VALUES ('u5', 'item 1'), ('u5', 'item 1'), ('42', 'item 1');
SELECT matches(pg_temp.has('t', 'u5'), 'u5:item 1=[23]( |$)', 'how often');
SELECT is(pg_temp.has('t', '42'), '42:item 1=1', 'a text of digits');
SELECT is(pg_temp.new('t', 'u5', 'u6'), 'u5=t u6=f', 'new of texts');

-- Far apart
CREATE TABLE far (u bigint, i bigint);
INSERT INTO far SELECT u * 1000003::bigint * 1000003, i * 998244353::bigint * (CASE WHEN i % 2 = 0 THEN 1 ELSE -1000 END) FROM truth;
CREATE TEMP TABLE done3 AS SELECT millrace.train_als('far', 'far', rank => 4, iterations => 2);
SELECT is(pg_temp.has('far', VARIADIC array_agg(DISTINCT u::text)), (SELECT string_agg(format('%s:%s=1', u, i), ' ' ORDER BY u::text, i) FROM far), 'ids that lie far apart') FROM far;
SELECT is(pg_temp.has('far', '0'), (SELECT string_agg(format('%s:%s=1', u, i), ' ' ORDER BY u, i) FROM far WHERE u = 0), 'one of them');

-- Who may ask
CREATE ROLE history_other;
GRANT USAGE ON SCHEMA millrace TO history_other;
GRANT EXECUTE ON FUNCTION millrace.user_history(text, text[]) TO history_other;
SET LOCAL ROLE history_other;
SELECT throws_ok($$SELECT * FROM millrace.user_history('m', '{5}')$$, '42501', 'must be owner of model "m"', 'not everybody');
RESET ROLE;
SELECT throws_ok($$SELECT * FROM millrace.user_history('nobody', '{5}')$$, '42704', 'model "nobody" does not exist', 'an unknown model');
SELECT is_empty($$SELECT * FROM millrace.user_history('m', '{}')$$, 'no users');
SELECT is_empty($$SELECT * FROM millrace.user_history('m', NULL)$$, 'NULL');
SELECT * FROM finish();
ROLLBACK;
