-- Models of four kinds in one catalog: functions of one kind refuse the others; what is for all kinds works on each; rights;
-- which versions a training used; what is dumped.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;

CREATE SCHEMA shop;
CREATE TABLE shop.sales AS SELECT n % 7 AS u, n * n % 11 AS i, (n % 5)::float8 AS x, (n % 3)::float8 AS y, (ARRAY['Thursday', 'Tuesday', 'Monday'])[1 + n % 3] AS day FROM generate_series(1, 120) AS n;
CREATE TEMP TABLE kinds (kind text, again text);
INSERT INTO kinds VALUES ('als', 'SELECT millrace.train_als(%L, ''SELECT u, i FROM shop.sales'', rank => 2, iterations => 2)'), ('kmeans', 'SELECT millrace.train_kmeans(%L, ''SELECT x, y FROM shop.sales'', 3)'),
	('indexer', 'SELECT millrace.fit_indexer(%L, ''SELECT day FROM shop.sales'')'), ('scaler', 'SELECT millrace.fit_scaler(%L, ''SELECT x, y FROM shop.sales'')');
SELECT lives_ok(format(again, 'a_' || kind), 'made: ' || kind) FROM kinds;
SELECT results_eq($$ SELECT name, kind, version, active FROM millrace.models ORDER BY kind $$, $$ SELECT 'a_' || kind, kind, 1, true FROM kinds ORDER BY kind $$, 'one catalog');
SELECT is(string_agg(kind || ' ' || (users IS NULL) || (items IS NULL) || (ratings IS NULL) || (rows IS NULL), ', ' ORDER BY kind), 'als falsefalsefalsetrue, indexer truetruetruefalse, kmeans truetruetruefalse, scaler truetruetruefalse', 'counts that a kind has') FROM millrace.models;
SELECT is(rows, 120::bigint, kind || ': rows') FROM millrace.models WHERE kind <> 'als';

-- Every function that takes a model, with the models of the other kinds
CREATE TEMP TABLE calls (kind text, call text);
INSERT INTO calls SELECT kind, again FROM kinds;
INSERT INTO calls VALUES ('als', 'SELECT millrace.user_factors(%L)'), ('als', 'SELECT millrace.item_factors(%L)'), ('als', 'SELECT millrace.import_als(%L, ''VALUES (1, ARRAY[1.0])'', ''VALUES (1, ARRAY[1.0])'')'),
	('als', 'SELECT millrace.user_history(%L, ''{1}'')'), ('als', 'SELECT millrace.track_history(%L)'), ('als', 'SELECT millrace.set_item_features(%L, ''VALUES (1, 2)'')'), ('als', 'SELECT millrace.set_baseline(%L, ''VALUES (1)'')'),
	('als', 'SELECT millrace.refresh_lists(%L)'), ('als', 'SELECT millrace.baseline(%L, ''top'')'), ('als', 'SELECT millrace.recommend_top_k(%L, 1)'), ('als', 'SELECT millrace.recommend_top_k(%L, ''1''::text)'),
	('als', 'SELECT millrace.recommend_top_k_for(%L, ''VALUES (1)'')'), ('als', 'SELECT millrace.recommend_from_items(%L, ''{1}''::bigint[])'), ('als', 'SELECT millrace.recommend_from_items(%L, ''{1}''::text[])'),
	('als', 'SELECT millrace.similar_items(%L, 1)'), ('als', 'SELECT millrace.similar_items(%L, ''1''::text)'), ('als', 'SELECT millrace.similar_users(%L, 1)'), ('als', 'SELECT millrace.similar_users(%L, ''1''::text)'),
	('als', 'SELECT millrace.predict(%L, 1, 1)'), ('als', 'SELECT millrace.explain(%L, 1, 1)'), ('als', 'SELECT millrace.create_scorer(''s'', ''shop.sales'', %L, ''u'', ''i'')'),
	('als', 'SELECT millrace.evaluate(%L, ''VALUES (1, 1)'')'), ('als', 'SELECT millrace.tune_als(%L, ''shop.sales'', ''{"rank": [2]}'')'),
	('kmeans', 'SELECT millrace.kmeans_assign(%L, ''{1,2}'')'), ('kmeans', 'SELECT millrace.kmeans_distance(%L, ''{1,2}'')'), ('kmeans', 'SELECT millrace.cluster_centers(%L)'), ('kmeans', 'SELECT millrace.cluster_centers(%L, 1)'),
	('kmeans', 'SELECT millrace.kmeans_cost(%L, ''VALUES (1, 2)'')'), ('kmeans', 'SELECT millrace.silhouette(%L, ''VALUES (1, 2)'')'),
	('indexer', 'SELECT millrace.index_of(%L, ''Monday'')'), ('indexer', 'SELECT millrace.index_size(%L)'), ('scaler', 'SELECT millrace.scale(%L, ''{1,2}'')'), ('scaler', 'SELECT millrace.unscale(%L, ''{1,2}'')');
SELECT set_eq($$ SELECT DISTINCT substring(call FROM 'millrace\.(\w+)') FROM calls $$,
	$$ SELECT proname::text FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND proname !~ '^_' AND (proargnames @> '{model}' OR proname ~ 'index_|indexer|scale') AND proname NOT IN ('retrain', 'activate', 'rollback', 'prune', 'drop_model', 'warm') $$, 'these are all that take a model of one kind');
SELECT throws_ok(format(call, 'a_' || k.kind), '42809', format('model "a_%s" is of kind %1$s, not %s', k.kind, c.kind), format('a %s model for %s', k.kind, substring(call FROM 'millrace\.(\w+)'))) FROM calls AS c JOIN kinds AS k ON k.kind <> c.kind;
SELECT throws_ok(format(call, 'nobody'), '42704', 'model "nobody" does not exist', format('an unknown one for %s', substring(call FROM 'millrace\.(\w+)'))) FROM calls WHERE call !~ 'train_|fit_|import_|tune_';
CREATE FUNCTION hint(command text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE hint text; BEGIN EXECUTE command; EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT; RETURN hint; END $$;
SELECT is(hint($$ SELECT * FROM millrace.recommend_top_k('a_kmeans', 1) $$), 'Functions for a model of kind kmeans are train_kmeans, kmeans_assign, kmeans_distance, cluster_centers, silhouette.', 'the hint');

-- What is for all kinds
SELECT lives_ok(format(again, 'a_' || kind), 'a second version: ' || kind) FROM kinds;
SELECT lives_ok(format('SELECT millrace.retrain(%L)', 'a_' || kind), 'retrain: ' || kind) FROM kinds;
SELECT is(active, 3, kind || ': the newest version is active') FROM millrace.model;
SELECT throws_ok(format('SELECT millrace.retrain(%L, holdout => 0.1)', 'a_' || kind), '22023', format('holdout means nothing for model "a_%s", which is of kind %1$s', kind), 'an argument that means nothing: ' || kind) FROM kinds WHERE kind <> 'als';
SELECT throws_ok(format('SELECT millrace.retrain(%L, %s => 1)', 'a_' || kind, a), '22023', format('%s means nothing for model "a_%s", which is of kind %2$s', a, kind), a || ': ' || kind) FROM kinds, unnest('{iterations,seed}'::text[]) AS a WHERE kind IN ('indexer', 'scaler');
SELECT is(millrace.rollback('a_' || kind), 2, 'rollback: ' || kind) FROM kinds;
SELECT is(millrace.rollback('a_' || kind), 1, 'further: ' || kind) FROM kinds;
SELECT throws_ok(format('SELECT millrace.rollback(%L)', 'a_' || kind), '55000', format('model "a_%s" has no earlier version to go back to', kind), 'no further: ' || kind) FROM kinds;
SELECT lives_ok(format('SELECT millrace.activate(%L, 3)', 'a_' || kind), 'activate: ' || kind) FROM kinds;
SELECT throws_ok(format('SELECT millrace.activate(%L, 4)', 'a_' || kind), '42704', format('model "a_%s" has no version 4', kind), 'a version that is not there: ' || kind) FROM kinds;
SELECT is(millrace.warm('a_' || kind) > 0, kind = 'als', 'warm: ' || kind) FROM kinds;
SELECT ok(millrace.warm() > 0, 'of all');
CREATE FUNCTION rows_of(name text) RETURNS TABLE (kind text, n bigint) LANGUAGE sql AS $$
	SELECT 'als', count(*) FROM millrace.factors WHERE model = $1 UNION ALL SELECT 'kmeans', count(*) FROM millrace.cluster WHERE model = $1 UNION ALL
	SELECT 'indexer', count(*) FROM millrace.index_label WHERE model = $1 UNION ALL SELECT 'scaler', count(*) FROM millrace.scale_column WHERE model = $1 UNION ALL
	SELECT 'iterations', count(DISTINCT version) FROM millrace.training_iteration WHERE model = $1 $$;
CREATE TEMP TABLE before AS SELECT k.kind, r.kind AS rows, n FROM kinds AS k, rows_of('a_' || k.kind) AS r;
SELECT set_eq($$ SELECT kind, rows FROM before WHERE n > 0 $$, $$ SELECT kind, kind AS rows FROM kinds UNION ALL SELECT kind, 'iterations' FROM kinds WHERE kind IN ('als', 'kmeans') $$, 'a kind has rows in its own table');
SELECT is(millrace.prune('a_' || kind, 1), 2, 'prune: ' || kind) FROM kinds;
SELECT is(r.n, b.n / 3, format('and what they had learnt, %s: %s', k.kind, b.rows)) FROM kinds AS k, rows_of('a_' || k.kind) AS r, before AS b WHERE b.kind = k.kind AND b.rows = r.kind;
SELECT lives_ok(format('SELECT millrace.drop_model(%L)', 'a_' || kind), 'drop: ' || kind) FROM kinds;
SELECT is(sum(n), 0::numeric, 'nothing stays: ' || k.kind) FROM kinds AS k, rows_of('a_' || k.kind) AS r GROUP BY k.kind;
SELECT lives_ok(format(k.again, 'a_' || o.kind), 'a name that is free again may be of any kind: ' || k.kind) FROM kinds AS k, kinds AS o WHERE (o.kind, k.kind) IN (('als', 'kmeans'), ('kmeans', 'indexer'), ('indexer', 'scaler'), ('scaler', 'als'));
SELECT millrace.drop_model('a_' || kind) FROM kinds;

-- What users have is kept for models of users and items only, whatever others read with the same query
CREATE TABLE shop.bought (at timestamptz, u int, i int);
INSERT INTO shop.bought SELECT now(), u, i FROM shop.sales;
SELECT millrace.create_source('shop.bought', 'at');
SELECT millrace.train_als('taste', 'SELECT u, i FROM shop.bought', rank => 2, iterations => 1), millrace.train_kmeans('heaps', 'SELECT u, i FROM shop.bought', 2);
SELECT is(count(*), 1::bigint, 'a history') FROM millrace.streams WHERE kind = 'history';
SELECT millrace.drop_model('taste');
SELECT is(count(*), 0::bigint, 'goes with its model') FROM millrace.streams WHERE kind = 'history';
SELECT millrace.drop_model('heaps');

-- Versions that a training used
SELECT millrace.fit_indexer('day', 'SELECT day FROM shop.sales'), millrace.fit_indexer('item', 'SELECT i FROM shop.sales'), millrace.fit_scaler('size', 'SELECT x, y FROM shop.sales');
SELECT millrace.train_kmeans('heaps', $$ SELECT millrace.one_hot(millrace.index_of('day', day), millrace.index_size('day')), millrace.scale('size', ARRAY[x, y]) FROM shop.sales $$, 3);
SELECT is(uses, '{"day": 1, "size": 1}', 'k-means: what its query calls') FROM millrace.models WHERE name = 'heaps';
SELECT millrace.train_als('taste', $$ SELECT u, millrace.index_of('item', i::text) FROM shop.sales $$, rank => 2, iterations => 1);
SELECT is(uses, '{"item": 1}', 'als') FROM millrace.models WHERE name = 'taste';
SELECT millrace.fit_indexer('cluster', $$ SELECT millrace.kmeans_assign('heaps', millrace.one_hot(millrace.index_of('day', day), 3) || millrace.scale('size', ARRAY[x, y])) FROM shop.sales $$);
SELECT is(uses, '{"day": 1, "size": 1, "heaps": 1}', 'an indexer') FROM millrace.models WHERE name = 'cluster';
SELECT millrace.fit_scaler('again', $$ SELECT millrace.scale('size', ARRAY[x, y]) FROM shop.sales $$);
SELECT is(uses, '{"size": 1}', 'a scaler') FROM millrace.models WHERE name = 'again';
SELECT is(uses, NULL, 'nothing') FROM millrace.models WHERE name = 'size';
SELECT millrace.retrain('size'), millrace.retrain('heaps'), millrace.retrain('taste');
SELECT is(uses, '{"day": 1, "size": 1}', 'by the snapshot of the statement') FROM millrace.models WHERE name = 'heaps' AND active;
SELECT millrace.retrain('heaps');
SELECT is(uses, '{"day": 1, "size": 2}', 'that is active now') FROM millrace.models WHERE name = 'heaps' AND active;
-- Whether two versions do the same
SELECT ok(millrace._same_version('size', 1, 2), 'fitted on the same rows: the same');
INSERT INTO shop.sales SELECT 1, 1, 4, 2, 'Tuesday' FROM generate_series(1, 9);
SELECT millrace.retrain('day'), millrace.retrain('size');
SELECT ok(NOT millrace._same_version('day', 1, 2), 'another order of labels is not');
SELECT ok(NOT millrace._same_version('size', 2, 3), 'nor are other scales');
SELECT millrace.fit_indexer('day', 'SELECT day FROM shop.sales', on_unknown => 'keep'), millrace.fit_scaler('size', 'SELECT x, y FROM shop.sales', on_null => 'zero');
SELECT ok(NOT millrace._same_version('day', 2, 3), 'nor the same labels with another on_unknown');
SELECT ok(NOT millrace._same_version('size', 3, 4), 'nor the same scales with another on_null');
SELECT millrace.prune('day', 1);
SELECT ok(NOT millrace._same_version('day', 2, 3), 'nor one that has gone');
SELECT ok(millrace._same_version('day', 3, 3), 'a version is itself');

-- Rights
CREATE ROLE mr_fitter;
CREATE ROLE mr_member IN ROLE mr_fitter;
CREATE ROLE mr_other;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_reader, mr_fitter, mr_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_fitter, mr_other;
CREATE SCHEMA private AUTHORIZATION mr_fitter;
GRANT USAGE ON SCHEMA shop TO mr_fitter;
GRANT SELECT ON shop.sales TO mr_fitter;
CREATE FUNCTION public.who() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
SET LOCAL ROLE mr_fitter;
CREATE TABLE private.sales AS SELECT *, 1 + u % 3 AS n FROM shop.sales;
SELECT lives_ok(format(replace(again, 'shop.', 'private.'), 'p_' || kind), 'who has EXECUTE and SELECT: ' || kind) FROM (VALUES ('als', 'SELECT millrace.train_als(%L, ''SELECT u, i FROM shop.sales'', rank => 2, iterations => 2)'), ('kmeans', 'SELECT millrace.train_kmeans(%L, ''SELECT x, y FROM shop.sales'', 3)'),
	('indexer', 'SELECT millrace.fit_indexer(%L, ''SELECT day FROM shop.sales'')'), ('scaler', 'SELECT millrace.fit_scaler(%L, ''SELECT x, y FROM shop.sales'')')) AS kinds (kind, again);
SELECT is(count(*), 4::bigint, 'owns them') FROM millrace.models WHERE name ~ '^p_' AND owner = 'mr_fitter'::regrole;
SET LOCAL ROLE mr_reader;
SELECT throws_ok(call, '42501', 'permission denied for function ' || f, f || ' is not for everybody') FROM (VALUES ('fit_indexer', $$ SELECT millrace.fit_indexer('x', 'VALUES (1)') $$), ('fit_scaler', $$ SELECT millrace.fit_scaler('x', 'VALUES (1)') $$),
	('train_kmeans', $$ SELECT millrace.train_kmeans('x', 'VALUES (1)', 1) $$), ('retrain', $$ SELECT millrace.retrain('p_indexer') $$), ('drop_model', $$ SELECT millrace.drop_model('p_indexer') $$)) AS t (f, call);
SELECT is(millrace.index_of('p_indexer', 'Monday') || ' ' || millrace.index_size('p_indexer') || ' ' || millrace.one_hot(0, 2)::text || ' ' || cardinality(millrace.scale('p_scaler', '{1,2}')) || cardinality(millrace.unscale('p_scaler', '{1,2}')) || ' ' || (millrace.kmeans_assign('p_kmeans', '{1,2}') >= 0) || ' ' || (millrace.kmeans_distance('p_kmeans', '{1,2}') >= 0),
	'1 3 {1} 22 true true', 'applying them is');
SELECT is((SELECT count(*) FROM millrace.cluster WHERE model = 'p_kmeans') + (SELECT count(*) FROM millrace.index_label WHERE model = 'p_indexer') + (SELECT count(*) FROM millrace.scale_column WHERE model = 'p_scaler') + (SELECT count(*) FROM millrace.cluster_centers('p_kmeans')), 11::bigint, 'reading them, too');
SELECT throws_ok(format('%s millrace.%I', what, t), '42501', NULL, format('%s %s is not', what, t)) FROM unnest('{cluster,index_label,scale_column,model_version}'::text[]) AS t, unnest('{DELETE FROM,TRUNCATE}'::text[]) AS what;
SELECT throws_ok($$ SELECT millrace.silhouette('p_kmeans', 'SELECT x, y FROM private.sales') $$, '42501', NULL, 'rows to judge by are read as the caller');
SET LOCAL ROLE mr_other;
SELECT throws_ok(call, '42501', 'must be owner of model "p_indexer"', 'another may not: ' || call) FROM unnest(ARRAY[$$SELECT millrace.fit_indexer('p_indexer', 'VALUES (1)')$$, $$SELECT millrace.retrain('p_indexer')$$, $$SELECT millrace.activate('p_indexer', 1)$$, $$SELECT millrace.rollback('p_indexer')$$, $$SELECT millrace.prune('p_indexer', 1)$$, $$SELECT millrace.drop_model('p_indexer')$$]) AS call;
SELECT throws_ok($$ SELECT millrace.fit_indexer('mine', 'SELECT day FROM private.sales') $$, '42501', NULL, 'nor read what he may not select');
SET LOCAL ROLE mr_member;
SELECT lives_ok($$ SELECT millrace.retrain('p_indexer') $$, 'a member of the owner may');
SELECT is(owner, 'mr_fitter', 'who stays the owner') FROM millrace.models WHERE name = 'p_indexer' AND version = 2;
RESET ROLE;
SELECT throws_ok($$ SELECT millrace.drop_model('p_indexer'), millrace.fit_indexer('x', 'TABLE nothing') $$, '42P01', NULL, 'an error undoes all');
-- The query runs as the owner, whoever fits
SELECT millrace.fit_indexer('p_indexer', 'SELECT public.who() UNION ALL SELECT session_user');
SELECT is(array_agg(value), '{mr_fitter}', 'a superuser lends no rights') FROM millrace.index_label WHERE model = 'p_indexer' AND version = 3 AND value <> session_user;
SELECT millrace.retrain('p_indexer');
SELECT is(array_agg(value), '{mr_fitter}', 'nor when he retrains') FROM millrace.index_label WHERE model = 'p_indexer' AND version = 4 AND value <> session_user;
REVOKE SELECT ON shop.sales FROM mr_fitter;
SELECT throws_ok($$ SELECT millrace.fit_indexer('p_indexer', 'SELECT day FROM shop.sales') $$, '42501', 'permission denied for table sales', 'not even his own');
CREATE TABLE private.shadowed AS SELECT 'a' AS v;
GRANT SELECT ON private.shadowed TO mr_fitter;
SET LOCAL ROLE mr_fitter;
SET LOCAL search_path = private, public;
SELECT millrace.fit_indexer('shadow', 'SELECT v FROM shadowed');
CREATE TEMP TABLE shadowed AS SELECT 'b' AS v;
SELECT millrace.retrain('shadow');
RESET search_path;
RESET ROLE;
SELECT is(millrace.index_of('shadow', 'a'), 0, 'a temporary table does not take the place of a table');
-- An owner who has gone
DROP OWNED BY mr_fitter CASCADE;
DROP ROLE mr_member;
DROP ROLE mr_fitter;
SELECT throws_ok(call, '42704', 'owner "mr_fitter" of model "p_indexer" does not exist or was renamed', 'an owner who has gone: ' || call) FROM unnest(ARRAY[$$SELECT millrace.fit_indexer('p_indexer', 'VALUES (1)')$$, $$SELECT millrace.retrain('p_indexer')$$]) AS call;
SELECT is(millrace.index_size('p_indexer'), 2, 'what he has fitted is still applied');
SELECT lives_ok($$ SELECT millrace.activate('p_indexer', 1), millrace.prune('p_indexer', 1), millrace.drop_model('p_indexer') $$, 'and a superuser may drop it');

-- What is dumped: every table of the extension but those that say so
SELECT set_eq($$ SELECT unnest(extconfig)::regclass::text FROM pg_extension WHERE extname = 'millrace' AND extconfig && ARRAY['millrace.model'::regclass::oid] INTERSECT SELECT unnest('{millrace.model,millrace.model_version,millrace.cluster,millrace.index_label,millrace.scale_column}'::text[]) $$,
	'{millrace.model,millrace.model_version,millrace.cluster,millrace.index_label,millrace.scale_column}'::text[], 'models of all kinds are dumped');
SELECT is(string_agg(c.oid::regclass || '.' || coalesce(a.attname, ''), ' '), NULL, 'every table and column has a comment') FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relnamespace = 'millrace'::regnamespace AND c.relname ~ 'model|cluster|index_label|scale_column|training' AND c.relkind IN ('r', 'v', 'c') AND col_description(c.oid, a.attnum) IS NULL;
SELECT is(string_agg(p.oid::regprocedure::text, ' '), NULL, 'and every function') FROM pg_proc AS p WHERE pronamespace = 'millrace'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL;

SELECT * FROM finish();
ROLLBACK;
