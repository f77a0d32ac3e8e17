BEGIN;
SELECT plan(55);
SET LOCAL client_min_messages = error;
SET LOCAL TimeZone = 'Europe/Paris';

CREATE SCHEMA shop;
SET LOCAL search_path = shop, public;
CREATE TABLE sales AS SELECT i AS id, (ARRAY['b', 'a', 'c', 'it''s', 'b'])[1 + i % 5] AS kind, i % 7 AS quantity, (i * i % 101)::numeric / 10 AS price, i % 3 = 0 AS online,
	ARRAY[i % 2, i % 11] AS more, 1 + i % 2 AS times FROM generate_series(1, 500) AS i;
CREATE FUNCTION sql_of(text) RETURNS text LANGUAGE sql AS 'SELECT sql FROM millrace.pipelines WHERE name = $1';
-- The statements but for settings, and views by name only
CREATE FUNCTION body_of(text) RETURNS text LANGUAGE sql AS 
	$$ SELECT regexp_replace(regexp_replace(sql_of($1), '^SET [^\n]*\n', '', 'gn'), '^CREATE OR REPLACE VIEW (\S+) AS\n(?: [^\n]*\n)+', E'view \\1\n', 'gn') $$;
SELECT is_empty('SELECT * FROM millrace.pipelines', 'without models it is empty');

-- What an indexer, a scaler, clusters and both together are made by
SELECT millrace.fit_indexer('kinds', 'SELECT kind FROM sales', on_unknown => 'keep');
SELECT is((kind, version, uses, is_current)::text, '(indexer,1,,t)', 'an indexer stands on nothing') FROM millrace.pipelines;
SELECT is(body_of('kinds'), $$SELECT millrace.fit_indexer('kinds', $$ || '$$SELECT kind FROM sales$$' || $$, on_unknown => 'keep');
SELECT q.*, millrace.index_of('kinds', q.kind::text) AS index
FROM (SELECT kind FROM sales
) AS q;
$$, 'its statements');
SELECT matches(sql_of('kinds'), E'^SET search_path = shop, public;\nSET TimeZone = ''Europe/Paris'';\n', 'settings that its query was stored with stand before them');
CREATE VIEW features AS SELECT *, millrace.one_hot(millrace.index_of('kinds', kind), millrace.index_size('kinds')) AS kinds FROM sales;
SELECT millrace.fit_scaler('sizes', 'SELECT price, quantity, kinds FROM features', on_null => 'zero');
SELECT is((kind, version, uses, is_current)::text, '(scaler,1,"{""kinds"": 1}",t)', 'a scaler, and what it uses through a view') FROM millrace.pipelines WHERE name = 'sizes';
SELECT is(body_of('sizes'), $$SELECT millrace.fit_indexer('kinds', $$ || '$$SELECT kind FROM sales$$' || $$, on_unknown => 'keep');
view shop.features
SELECT millrace.fit_scaler('sizes', $$ || '$$SELECT price, quantity, kinds FROM features$$' || $$, on_null => 'zero');
SELECT q.*, millrace.scale('sizes', ARRAY[q.price, q.quantity]::float8[] || q.kinds) AS scaled
FROM (SELECT price, quantity, kinds FROM features
) AS q;
$$, 'what it uses is fitted first');
SELECT millrace.train_kmeans('The "k"', $$SELECT id > 0 AS "yes", millrace.scale('sizes', ARRAY[price, quantity] || kinds) AS scaled, price AS "a b", online, more, times FROM features -- all$$,
	4, seed => 7, weight => 'times', max_iterations => 9);
SELECT is((kind, version, uses, is_current)::text, '(kmeans,1,"{""kinds"": 1, ""sizes"": 1}",t)', 'clusters stand on both') FROM millrace.pipelines WHERE name = 'The "k"';
SELECT is(body_of('The "k"'), $$SELECT millrace.fit_indexer('kinds', $$ || '$$SELECT kind FROM sales$$' || $$, on_unknown => 'keep');
view shop.features
SELECT millrace.fit_scaler('sizes', $$ || '$$SELECT price, quantity, kinds FROM features$$' || $$, on_null => 'zero');
SELECT millrace.train_kmeans('The "k"', $$ || '$$SELECT id > 0 AS "yes", millrace.scale(''sizes'', ARRAY[price, quantity] || kinds) AS scaled, price AS "a b", online, more, times FROM features -- all$$'
	|| $$, k => 4, seed => 7, max_iterations => 9, weight => 'times');
SELECT q.*, millrace.kmeans_assign('The "k"', ARRAY[q.yes::int]::float8[] || q.scaled || ARRAY[q."a b", q.online::int]::float8[] || q.more::float8[]) AS cluster
FROM (SELECT id > 0 AS "yes", millrace.scale('sizes', ARRAY[price, quantity] || kinds) AS scaled, price AS "a b", online, more, times FROM features -- all
) AS q;
$$, 'numbers become one array, arrays follow, the weight is left out');
SELECT is((SELECT count(*) FROM regexp_matches(sql_of('The "k"'), 'SET search_path', 'g')), 1::bigint, 'settings that stay the same are set once');

-- The script makes the same again, where there are only tables.
CREATE TEMP TABLE viewed AS SELECT pg_get_viewdef('features') AS definition;
CREATE TEMP TABLE was AS SELECT model, version, cluster, size, cost, center FROM millrace.cluster;
CREATE TEMP TABLE labels AS SELECT * FROM millrace.index_label;
CREATE TEMP TABLE scales AS SELECT * FROM millrace.scale_column;
CREATE TEMP TABLE script AS SELECT sql_of('The "k"') AS sql;
-- The last statement, with what it returns
CREATE FUNCTION applied(script text) RETURNS TABLE (id bool, cluster int, price numeric) LANGUAGE plpgsql AS
	$$ BEGIN RETURN QUERY EXECUTE 'SELECT yes, cluster, "a b" FROM (' || regexp_replace(script, '^.*;\n(SELECT q[.][*].*);\n$', '\1') || ') AS applied'; END $$;
CREATE TEMP TABLE first AS SELECT * FROM applied(sql_of('The "k"'));
SELECT results_eq('SELECT cluster, count(*) FROM first GROUP BY 1 ORDER BY 1', $$ SELECT c, (SELECT count(*) FROM features f WHERE c = millrace.kmeans_assign('The "k"', ARRAY[1.0] || millrace.scale('sizes', ARRAY[price, quantity] || kinds)
	|| ARRAY[price, online::int]::float8[] || more::float8[])) FROM generate_series(0, 3) AS c $$, 'the last statement gives each row its cluster');
SELECT millrace.drop_model(name) FROM millrace.model;
DROP VIEW features;
SELECT is_empty('SELECT * FROM millrace.pipelines', 'models that are gone are gone from it');
DO $$ BEGIN EXECUTE (SELECT sql FROM script); END $$;
SELECT is(definition, pg_get_viewdef('features'), 'the script makes the view again') FROM viewed;
SELECT results_eq('SELECT * FROM millrace.cluster ORDER BY model, cluster', 'SELECT * FROM was ORDER BY model, cluster', 'the script makes the same clusters');
SELECT results_eq('SELECT * FROM millrace.index_label ORDER BY index', 'SELECT * FROM labels ORDER BY index', 'the same indexes');
SELECT results_eq('SELECT * FROM millrace.scale_column ORDER BY position', 'SELECT * FROM scales ORDER BY position', 'the same scales');
SELECT bag_eq($$ SELECT * FROM applied(sql_of('The "k"')) $$, 'SELECT * FROM first', 'and rows are in the same clusters');

-- Is it trained on what is active?
SELECT millrace.fit_indexer('kinds', 'SELECT kind FROM sales', on_unknown => 'keep');
SELECT results_eq('SELECT name, uses, is_current FROM millrace.pipelines ORDER BY name COLLATE "C"', $$ VALUES ('The "k"', '{"kinds": 1, "sizes": 1}'::jsonb, true), ('kinds', NULL, true), ('sizes', '{"kinds": 1}', true) $$,
	'another version that does the same makes no difference');
UPDATE sales SET kind = 'b' WHERE kind = 'a' AND id > 100;
UPDATE sales SET kind = 'd' WHERE kind = 'c' AND id > 100;
SELECT millrace.fit_indexer('kinds', 'SELECT kind FROM sales', on_unknown => 'keep');
SELECT results_eq('SELECT name, uses, is_current FROM millrace.pipelines ORDER BY name COLLATE "C"', $$ VALUES ('The "k"', '{"kinds": 1, "sizes": 1}'::jsonb, false), ('kinds', NULL, true), ('sizes', '{"kinds": 1}', false) $$,
	'one that does something else does, to what stands on it directly or not');
SELECT millrace.fit_scaler('sizes', 'SELECT price, quantity, kinds FROM features', on_null => 'zero');
SELECT results_eq('SELECT name, uses, is_current FROM millrace.pipelines ORDER BY name COLLATE "C"', $$ VALUES ('The "k"', '{"kinds": 1, "sizes": 1}'::jsonb, false), ('kinds', NULL, true), ('sizes', '{"kinds": 3}', true) $$,
	'fitting again helps what is fitted');
SELECT millrace.activate('kinds', 1);
SELECT results_eq('SELECT name, is_current FROM millrace.pipelines ORDER BY name COLLATE "C"', $$ VALUES ('The "k"', false), ('kinds', true), ('sizes', false) $$, 'an earlier version may be the right one');
SELECT millrace.activate('sizes', 1);
SELECT results_eq('SELECT name, is_current FROM millrace.pipelines ORDER BY name COLLATE "C"', $$ VALUES ('The "k"', true), ('kinds', true), ('sizes', true) $$, 'for all');
SELECT millrace.fit_indexer('kinds', 'SELECT kind FROM sales', on_unknown => 'null', activate => false);
SELECT ok(bool_and(is_current), 'versions that are not active do not matter') FROM millrace.pipelines;
SELECT is((SELECT count(*) FROM millrace.pipelines), 3::bigint, 'nor do they show');
SELECT millrace.fit_indexer('new', 'SELECT kind FROM sales', activate => false);
SELECT is_empty($$ SELECT * FROM millrace.pipelines WHERE name = 'new' $$, 'a model without an active version does not show');

-- A version that is gone is replaced by the active one, and is not current.
SELECT millrace.fit_indexer('kinds', 'SELECT kind FROM sales', on_unknown => 'keep');
SELECT is(millrace.prune('kinds', 1), 3, 'a version that a model in use was trained with is not pruned');
SELECT millrace.activate('kinds', 1);
SELECT ok(bool_and(is_current), 'so that it is known what it did') FROM millrace.pipelines;
SELECT millrace.activate('kinds', 5);
DELETE FROM millrace.model_version WHERE model = 'kinds' AND version = 1;
SELECT is((uses, is_current)::text, '("{""kinds"": 1, ""sizes"": 1}",f)', 'a version that is gone is still named') FROM millrace.pipelines WHERE name = 'The "k"';
SELECT is((SELECT count(*) FROM regexp_matches(sql_of('The "k"'), 'fit_indexer', 'g')), 1::bigint, 'the active one is fitted in its place');
SELECT ok(position('fit_indexer' IN sql) < position('fit_scaler' IN sql) AND position('fit_scaler' IN sql) < position('train_kmeans' IN sql), 'before what uses it, though it was made later') FROM millrace.pipelines WHERE name = 'The "k"';
SELECT millrace.drop_model('kinds');
SELECT is((uses, is_current)::text, '("{""kinds"": 1, ""sizes"": 1}",f)', 'a model that was dropped, too') FROM millrace.pipelines WHERE name = 'The "k"';
SELECT unalike(sql_of('The "k"'), '%fit_indexer%', 'but nothing is fitted in its place');
SELECT millrace.fit_indexer('kinds', 'SELECT online FROM sales', on_unknown => 'keep');
SELECT is((uses, is_current)::text, '("{""kinds"": 1, ""sizes"": 1}",f)', 'one of the same name and number is another') FROM millrace.pipelines WHERE name = 'The "k"';

-- Names, quotes and columns
SELECT millrace.fit_scaler('it''s', E'SELECT price, quantity, ''$\\'' || '''' = ''$'' FROM sales', method => 'minmax');
SELECT matches(body_of('it''s'), $$^SELECT millrace.fit_scaler\('it''s', +E'SELECT price, quantity, ''\$\\\\'' \|\| '''' = ''\$'' FROM sales', method => 'minmax'\);$$, 'names and queries are quoted');
SELECT lives_ok(sql_of('it''s'), 'and read back');
SELECT millrace.fit_scaler('same', 'SELECT price + 1, quantity + 1, more FROM sales');
SELECT alike(sql_of('same'), E'%ARRAY[q.c1, q.c2]::float8[] || q.c3::float8[]) AS scaled\nFROM (SELECT price + 1, quantity + 1, more FROM sales\n) AS q (c1, c2, c3);\n', 'columns of the same name are numbered');
SELECT lives_ok(sql_of('same'), 'and found');

SELECT millrace.train_kmeans('weighted', 'SELECT price + 1, times, quantity + 1 FROM sales', 2, weight => 'times');
SELECT alike(sql_of('weighted'), E'%ARRAY[q.c1, q.c3]::float8[]) AS cluster\nFROM (SELECT price + 1, times, quantity + 1 FROM sales\n) AS q (c1, c2, c3);\n', 'with a weight among them, too');
SELECT lives_ok(sql_of('weighted'), 'and found, too');
SELECT millrace.fit_indexer('value', 'SELECT kind AS "The kind", quantity AS value, price AS value FROM sales'), millrace.fit_indexer('first', 'SELECT kind AS "The kind", quantity AS value FROM sales');
SELECT alike(sql_of('value'), E'%millrace.index_of(''value'', q.c1::text) AS index%\n) AS q (c1, c2, c3);\n', 'an indexer takes the first column');
SELECT alike(sql_of('first'), E'%millrace.index_of(''first'', q."The kind"::text) AS index%\n) AS q;\n', 'by its name');
SELECT lives_ok(sql_of(name), 'which is found: ' || name) FROM unnest('{value,first}'::text[]) AS name;
SELECT millrace.import_als(E'taken\nDROP TABLE sales;', 'SELECT 1, ARRAY[1, 2]::real[]', 'SELECT 1, ARRAY[1, 2]::real[]', 'SELECT id, quantity FROM sales');
SELECT matches(body_of(E'taken\nDROP TABLE sales;'), E'^-- "taken\\\\nDROP TABLE sales;": factors from elsewhere, by millrace.import_als\nSELECT [*] FROM millrace.recommend_top_k_for', 'what comes from elsewhere is named, on one line');
CREATE VIEW cheap WITH (security_barrier) AS SELECT price, quantity FROM sales WHERE kind <> '\' AND DATE '2024-02-01' > '2024-01-01' AND price < 0.1::float8 * 90;
SELECT millrace.fit_scaler('cheap', 'TABLE cheap');
SELECT alike(sql_of('cheap'), E'CREATE OR REPLACE VIEW shop.cheap WITH (security_barrier=true) AS\n%SET search_path%', 'a view keeps its options');
CREATE TEMP TABLE cheap_sql AS SELECT sql_of('cheap') AS sql;
SET LOCAL DateStyle = 'SQL, DMY';
SET LOCAL extra_float_digits = -15;
SET LOCAL standard_conforming_strings = off;
SELECT is(sql_of('cheap'), sql, 'the settings of who looks do not matter for its literals') FROM cheap_sql;
RESET DateStyle;
RESET extra_float_digits;
SELECT is(body_of('first'), E'SELECT millrace.fit_indexer(''first'', $$SELECT kind AS "The kind", quantity AS value FROM sales$$);\nSELECT q.*, millrace.index_of(''first'', q."The kind"::text) AS index\nFROM (SELECT kind AS "The kind", quantity AS value FROM sales\n) AS q;\n',
	'nor for what is quoted');
SET LOCAL standard_conforming_strings = on;

-- A model that is trained with itself as it was
SELECT millrace.train_kmeans('self', 'SELECT price, quantity FROM sales', 2);
SELECT millrace.train_kmeans('self', 'SELECT price, millrace.kmeans_assign(''self'', ARRAY[price, quantity]) AS cluster FROM sales', 2);
SELECT is((SELECT count(*) FROM regexp_matches(sql_of('self'), 'train_kmeans', 'g')), 2::bigint, 'stands on its version before');
SELECT millrace.prune('self', 1);
SELECT is((SELECT count(*) FROM regexp_matches(sql_of('self'), 'train_kmeans', 'g')), 1::bigint, 'which may be gone');

-- Settings
SET LOCAL search_path = shop;
SET LOCAL DateStyle = 'SQL, DMY';
SELECT millrace.fit_indexer('dates', 'SELECT ''01/02/2024''::date');
SET LOCAL search_path = shop, public;
SELECT matches(sql_of('dates'), E'^SET search_path = shop;\nSET TimeZone = ''Europe/Paris'';\nSET DateStyle = ''SQL, DMY'';\n', 'settings are those of the training, all that differ from PostgreSQL''s own');
SET LOCAL search_path = '';
SELECT millrace.fit_scaler('nowhere', 'SELECT price FROM shop.sales');
SET LOCAL search_path = shop, public;
SELECT matches(sql_of('nowhere'), E'^SET search_path = '''';\n', 'no schema at all');
SELECT lives_ok(sql_of('nowhere') || 'SET search_path = shop, public', 'is read back');
SET LOCAL search_path = shop, public;
SET LOCAL DateStyle = 'ISO, MDY';
SELECT millrace.fit_scaler('days', 'SELECT millrace.index_of(''dates'', ''01/02/2024''), price FROM sales');
SELECT matches(sql_of('days'), E'DMY(.|\n)*fit_indexer(.|\n)*SET search_path = shop, public;\n(.|\n)*SET DateStyle = ''ISO, MDY'';\n(.|\n)*fit_scaler', 'each statement has its own');

-- Recommenders
SELECT millrace.train_als('als', 'SELECT id % 20, quantity FROM sales', rank => 3, iterations => 2);
SELECT alike(body_of('als'), 'SELECT millrace.train_als(''als'', $$SELECT id % 20, quantity FROM sales$$, rank => 3, iterations => 2%);' || E'\nSELECT * FROM millrace.recommend_top_k_for(''als'', NULL);\n', 'a recommender');
SELECT lives_ok(sql_of('als'), 'its script');

-- Anybody may look.
CREATE ROLE mr_guest;
GRANT USAGE ON SCHEMA millrace TO mr_guest;
SET LOCAL ROLE mr_guest;
SELECT ok(count(*) >= 5, 'anybody who may use the schema may read it') FROM millrace.pipelines;
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
