-- k-means: trainings, assignment, cost and silhouettes against the definitions in SQL; retrain; bad input.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = warning;

CREATE SCHEMA shop;
-- Five heaps of 60 rows in three columns, some rows more than once.
CREATE TABLE shop.p AS SELECT i AS id, (i % 5) * 10 + sin(i * 7.3) * 2 AS x, (i % 5 * 2 % 5) * 8 + cos(i * i * 0.37) * 2 AS y, ARRAY[sin(i), 3 * cos(i * 1.7)]::float8[] AS z
	FROM generate_series(1, 300) AS i;
INSERT INTO shop.p SELECT id + 300, x, y, z FROM shop.p WHERE id % 7 = 0;
CREATE VIEW shop.rows AS SELECT id, ARRAY[x, y] || z AS f FROM shop.p;

-- The definitions
CREATE FUNCTION distance2(a float8[], b float8[]) RETURNS float8 IMMUTABLE LANGUAGE sql AS $$ SELECT sum((u - v) ^ 2) FROM unnest(a, b) AS t (u, v) $$;
CREATE FUNCTION nearest(m text, f float8[], OUT cluster int, OUT distance2 float8) STABLE LANGUAGE sql AS
	$$ SELECT cluster, distance2(center, f) FROM millrace.cluster_centers(m) ORDER BY 2, 1 LIMIT 1 $$;
CREATE FUNCTION close(a float8, b float8, tolerance float8 = 1e-9) RETURNS bool IMMUTABLE LANGUAGE sql AS $$ SELECT abs(a - b) <= tolerance * greatest(abs(a), abs(b), 1e-300) $$;
CREATE FUNCTION metrics(m text, key text) RETURNS text STABLE LANGUAGE sql AS $$ SELECT metrics->>key FROM millrace.models WHERE name = m ORDER BY version DESC LIMIT 1 $$;
CREATE FUNCTION learnt(m text, ver int) RETURNS text STABLE LANGUAGE sql AS $$ SELECT md5(string_agg((cluster, size, cost, center)::text, ',' ORDER BY cluster)) FROM millrace.cluster WHERE model = m AND version = ver $$;

-- A training and what it leaves
CREATE TEMP TABLE result AS SELECT * FROM millrace.train_kmeans('m', 'SELECT x, y, z FROM shop.p', 5);
SELECT is((model, version, active, rows, users, items, ratings, rank, metric, reason)::text, '(m,1,t,342,,,,,,)', 'the row of a training') FROM result;
SELECT ok(iterations BETWEEN 1 AND 20 AND seconds > 0 AND loss > 0, 'iterations, seconds, cost') FROM result;
SELECT is((kind, version, active, rows, users, query)::text, '(kmeans,1,t,342,,"SELECT x, y, z FROM shop.p")', 'a model of kind kmeans') FROM millrace.models WHERE name = 'm';
SELECT is(parameters, '{"k": 5, "seed": 1, "max_iterations": 20, "starts": 4, "tolerance": 0.0001, "weight": null, "columns": [{"name": "x", "type": "double precision", "width": 1, "position": 1}, {"name": "y", "type": "double precision", "width": 1, "position": 2}, {"name": "z", "type": "double precision[]", "width": 2, "position": 3}]}', 'parameters with defaults and columns')
	FROM millrace.models WHERE name = 'm';
SELECT is((metrics->>'rows', metrics->>'points', (metrics->>'iterations')::int, (metrics->>'cost')::float8)::text, (SELECT ('342', '300', iterations, loss)::text FROM result), 'metrics; equal rows are one point')
	FROM millrace.models WHERE name = 'm';
SELECT results_eq($$ SELECT iteration FROM millrace.trainings WHERE model = 'm' ORDER BY 1 $$, $$ SELECT generate_series(1, (SELECT iterations FROM result)) $$, 'one row an iteration');
SELECT ok(coalesce(bool_and(falls), true), 'the cost falls, but for rounding') FROM (SELECT loss <= lag(loss) OVER (ORDER BY iteration) * (1 + 1e-12) AS falls FROM millrace.trainings WHERE model = 'm') t;
SELECT is(loss, (SELECT loss FROM result), 'the last one''s is the model''s') FROM millrace.trainings WHERE model = 'm' ORDER BY iteration DESC LIMIT 1;
SELECT is(array_agg(size ORDER BY cluster), '{69,69,68,68,68}', 'the five heaps, the largest first') FROM millrace.cluster_centers('m');
SELECT is(array_agg(cluster ORDER BY cluster), '{0,1,2,3,4}', 'numbered from 0') FROM millrace.cluster_centers('m');

-- Truth: nearest center, its distance, sizes, cost, each center the mean of its rows
SELECT is(count(*), 0::bigint, 'kmeans_assign is the nearest center') FROM shop.rows, nearest('m', f) AS n WHERE millrace.kmeans_assign('m', f) IS DISTINCT FROM n.cluster;
SELECT ok(bool_and(close(millrace.kmeans_distance('m', f), sqrt(n.distance2))), 'kmeans_distance is the distance to it') FROM shop.rows, nearest('m', f) AS n;
SELECT ok(bool_and(c.size = t.n AND close(c.cost, t.cost)), 'sizes and costs of clusters') FROM millrace.cluster_centers('m') AS c
	JOIN (SELECT n.cluster, count(*) AS n, sum(n.distance2) AS cost FROM shop.rows, nearest('m', f) AS n GROUP BY 1) AS t USING (cluster);
SELECT ok(close(sum(cost), (SELECT loss FROM result)), 'whose sum is the cost') FROM millrace.cluster_centers('m');
SELECT ok(bool_and(close(c.center[i], t.mean, 1e-6)), 'a center is the mean of its rows') FROM millrace.cluster_centers('m') AS c,
	LATERAL (SELECT i, avg(f[i]) AS mean FROM shop.rows, generate_series(1, 4) AS i WHERE millrace.kmeans_assign('m', f) = c.cluster GROUP BY i) AS t;
SELECT ok(close(millrace.kmeans_cost('m', 'SELECT f FROM shop.rows'), (SELECT loss FROM result)), 'kmeans_cost of the rows of the training');
SELECT is(millrace.kmeans_cost('m', 'SELECT center FROM millrace.cluster_centers(''m'')'), 0::float8, 'of the centers themselves');
SELECT ok(close(millrace.kmeans_cost('m', 'SELECT x + 1, y, z FROM shop.p WHERE id < 50'), (SELECT sum(n.distance2) FROM shop.p, nearest('m', ARRAY[x + 1, y] || z) AS n WHERE id < 50)), 'of other rows');

-- Forms of the features
SELECT is(millrace.kmeans_assign('m', center), cluster, 'a center is in its cluster') FROM millrace.cluster_centers('m') WHERE cluster = 3;
SELECT is(millrace.kmeans_distance('m', center), 0::float8, 'at distance 0') FROM millrace.cluster_centers('m') WHERE cluster = 3;
SELECT is(millrace.kmeans_assign('m', (ARRAY[NULL::float8] || center)[2:5]), 3, 'a slice of an array') FROM millrace.cluster_centers('m') WHERE cluster = 3;
SELECT is(millrace.kmeans_assign('m', ('[0:3]=' || center::text)::float8[]), 3, 'another lower bound') FROM millrace.cluster_centers('m') WHERE cluster = 3;
CREATE TABLE shop.stored (f float8[]);
INSERT INTO shop.stored SELECT f FROM shop.rows;
SELECT is(sum(millrace.kmeans_assign('m', f)), (SELECT sum(millrace.kmeans_assign('m', f)) FROM shop.rows), 'arrays as they are stored') FROM shop.stored;
SELECT is(millrace.kmeans_assign(NULL, '{1}'), NULL, 'NULL for no model') UNION ALL SELECT is(millrace.kmeans_assign('m', NULL), NULL, 'and no features');
SELECT is(proparallel::text || provolatile::text || proisstrict::text, 'sstrue', proname || ' is parallel safe, stable, strict') FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND proname IN ('kmeans_assign', 'kmeans_distance');

-- The same rows in other forms are the same model
SELECT millrace.train_kmeans('form', query, 5) FROM unnest(ARRAY['SELECT x, y, z FROM shop.p', 'SELECT f FROM shop.rows', 'SELECT f FROM shop.rows ORDER BY id DESC', 'SELECT x, y, z[1], z[2] FROM shop.p;',
	'SELECT ARRAY[x, y], z FROM shop.p ORDER BY md5(id::text)', 'shop.stored']) AS query;
SELECT is(count(DISTINCT learnt('form', v)), 1::bigint, 'columns or arrays, in any order') FROM generate_series(1, 6) AS v;
SELECT is(learnt('form', 1), learnt('m', 1), 'the same seed gives the same bits');
SELECT millrace.train_kmeans('form', 'shop.stored', 5, threads => 1);
SELECT is(learnt('form', 7), learnt('form', 1), 'and so does one thread');
SELECT is(query, 'TABLE shop.stored', 'a name of a table is stored as a query') FROM millrace.models WHERE name = 'form' AND version = 7;
SELECT millrace.train_kmeans('form', 'SELECT i::smallint, i::int * 2, i::bigint, i::real, i::numeric(9, 2), i > 9, ARRAY[i, 0]::int[] FROM generate_series(1, 20) AS i', 2);
SELECT is((SELECT cardinality(center) FROM millrace.cluster_centers('form') LIMIT 1), 8, 'all kinds of numbers');
SELECT is(millrace.kmeans_assign('form', ARRAY[1, 2, 1, 1, 1, 0, 1, 0]) <> millrace.kmeans_assign('form', ARRAY[20, 40, 20, 20, 20, 1, 20, 0]), true, 'in two clusters');

-- Ties, k = 1, k = rows, few distinct rows
SELECT millrace.train_kmeans('tie', 'VALUES (0), (4)', 2);
SELECT is(millrace.kmeans_assign('tie', '{2}'), 0, 'as near to two: the lower number');
SELECT is(array_agg(center ORDER BY cluster), '{{0},{4}}', 'clusters of one size are in the order of their centers') FROM millrace.cluster_centers('tie');
SELECT is((millrace.train_kmeans('one', 'SELECT i, 2 * i FROM generate_series(1, 9) AS i', 1)).loss, 300::float8, 'one cluster');
SELECT is(center, '{5,10}', 'is the mean') FROM millrace.cluster_centers('one');
SELECT is((millrace.train_kmeans('all', 'SELECT i, i * i % 7 FROM generate_series(1, 40) AS i', 40)).loss, 0::float8, 'as many clusters as rows');
SELECT is((SELECT array_agg(DISTINCT size) FROM millrace.cluster_centers('all')), '{1}', 'of one row each');
SELECT is((millrace.train_kmeans('few', 'SELECT i % 3 FROM generate_series(1, 30) AS i', 3)).loss, 0::float8, 'as many clusters as distinct rows');
SELECT is((millrace.train_kmeans('single', 'SELECT 7', 1)).loss, 0::float8, 'one row is one cluster');

-- Seeds, starts, iterations, tolerance
SELECT millrace.train_kmeans('far', format('SELECT sin(i * 12.9898) * 437, cos(i * 78.233) * 135 FROM generate_series(1, 800) AS i'), 12, seed => s, starts => 1, max_iterations => 2) FROM generate_series(1, 4) AS s;
SELECT ok(count(DISTINCT learnt('far', v)) > 1, 'another seed starts elsewhere') FROM generate_series(1, 4) AS v;
SELECT is((millrace.train_kmeans('far', 'SELECT sin(i * 12.9898) * 437, cos(i * 78.233) * 135 FROM generate_series(1, 800) AS i', 12, max_iterations => 1)).iterations, 1, 'one iteration');
CREATE TEMP TABLE early AS SELECT * FROM millrace.train_kmeans('early', 'SELECT sin(i * 12.9898) * 437, cos(i * 78.233) * 135 FROM generate_series(1, 800) AS i', 12, max_iterations => 1000, tolerance => 0.001);
SELECT cmp_ok(iterations, '<', 100, 'ends when the cost no longer falls: ' || iterations) FROM early;
CREATE TEMP TABLE late AS SELECT * FROM millrace.train_kmeans('late', 'SELECT sin(i * 12.9898) * 437, cos(i * 78.233) * 135 FROM generate_series(1, 800) AS i', 12, max_iterations => 1000, tolerance => 0);
SELECT ok(late.iterations >= early.iterations AND late.iterations < 1000 AND late.loss <= early.loss, 'or when no row changes its cluster: ' || late.iterations) FROM early, late;
SELECT ok(bool_and(close(c.center[1], t.x, 1e-9)), 'then each center is a mean')
	FROM millrace.cluster_centers('late') AS c, LATERAL (SELECT avg(sin(i * 12.9898) * 437) AS x FROM generate_series(1, 800) AS i WHERE millrace.kmeans_assign('late', ARRAY[sin(i * 12.9898) * 437, cos(i * 78.233) * 135]) = c.cluster) AS t;

-- Weights
SELECT millrace.train_kmeans('w', 'SELECT x, y, z, 1 + id % 3 AS w FROM shop.p', 5, weight => 'w');
SELECT millrace.train_kmeans('w2', 'SELECT x, y, z FROM shop.p, generate_series(1, 1 + id % 3)', 5);
SELECT is(learnt('w', 1), learnt('w2', 1), 'a row of weight 3 is a row three times');
SELECT is((SELECT (version, rows)::text FROM millrace.retrain('w', warm_start => false)), '(2,342)', 'retrain');
SELECT is(learnt('w', 2), learnt('w', 1), 'takes the weight too');
SELECT is((parameters->>'weight', rows)::text, '(w,342)', 'the weight is stored') FROM millrace.models WHERE name = 'w' AND version = 2;
SELECT is(sum(size), (SELECT sum(1 + id % 3)::float8 FROM shop.p), 'sizes are sums of weights') FROM millrace.cluster_centers('w');
SELECT ok(close(millrace.kmeans_cost('w', 'SELECT 1 + id % 3 AS w, x, y, z FROM shop.p'), metrics('w', 'cost')::float8), 'kmeans_cost takes the weight by its name');
SELECT is(millrace.silhouette('w', 'SELECT 1 + id % 3 AS w, x, y, z FROM shop.p'), millrace.silhouette('w2', 'SELECT x, y, z FROM shop.p, generate_series(1, 1 + id % 3)'), 'so does silhouette');
SELECT millrace.train_kmeans('w3', 'SELECT x, y, z, CASE WHEN id % 2 = 0 THEN 0.25 ELSE 0 END AS w FROM shop.p', 5, weight => 'w');
SELECT millrace.train_kmeans('w4', 'SELECT x, y, z FROM shop.p WHERE id % 2 = 0', 5);
SELECT ok(bool_and(a.center = b.center AND a.size = b.size / 4), 'rows of weight 0 do not count') FROM millrace.cluster_centers('w3') AS a JOIN millrace.cluster_centers('w4') AS b USING (cluster);

-- Silhouettes by definition
CREATE FUNCTION silhouette_sql(m text, rows text, squared bool) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE result float8;
BEGIN
	DROP TABLE IF EXISTS pg_temp.s;
	EXECUTE format('CREATE TEMP TABLE s AS SELECT row_number() OVER () AS i, f, millrace.kmeans_assign(%L, f) AS c FROM (%s) AS q (f)', m, rows);
	WITH pairs AS (SELECT a.i, a.c AS own, b.c, sum(CASE WHEN squared THEN d2 ELSE sqrt(d2) END) AS sum, count(*) AS n FROM s AS a, s AS b, LATERAL (SELECT distance2(a.f, b.f)) AS d (d2) GROUP BY 1, 2, 3),
		means AS (SELECT i, max(CASE WHEN c = own AND n > 1 THEN sum / (n - 1) END) AS a, min(CASE WHEN c <> own THEN sum / n END) AS b FROM pairs GROUP BY i)
	SELECT avg(CASE WHEN a IS NULL THEN 0 WHEN a = b THEN 0 ELSE (b - a) / greatest(a, b) END) INTO result FROM means;
	RETURN result;
END $$;
SELECT ok(close(millrace.silhouette('m', 'SELECT f FROM shop.rows'), silhouette_sql('m', 'SELECT f FROM shop.rows', true)), 'silhouette by squared distances');
SELECT ok(close(millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean'), silhouette_sql('m', 'SELECT f FROM shop.rows', false)), 'and by distances');
SELECT ok(close(millrace.silhouette('far', 'SELECT 4 * i, 3 * i % 100 FROM generate_series(1, 90) AS i'), silhouette_sql('far', 'SELECT ARRAY[4 * i, 3 * i % 100]::float8[] FROM generate_series(1, 90) AS i', true)), 'of other rows, some clusters being empty');
SELECT ok(close(millrace.silhouette('tie', 'VALUES (0), (1), (1), (9)'), silhouette_sql('tie', 'VALUES (''{0}''::float8[]), (''{1}''), (''{1}''), (''{9}'')', true)), 'a row alone in its cluster');
SELECT ok(close(millrace.silhouette('tie', 'VALUES (0), (1), (1), (9)', 'euclidean'), silhouette_sql('tie', 'VALUES (''{0}''::float8[]), (''{1}''), (''{1}''), (''{9}'')', false)), 'by distances too');
SELECT ok(close(millrace.silhouette('all', 'SELECT i, i * i % 7 FROM generate_series(1, 40) AS i'), 0), 'all alone');
SELECT ok(abs(millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean', 100) - millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean')) < 0.1, 'of a sample');
SELECT isnt(millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean', 100, 2), millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean', 100), 'another seed draws others');
SELECT is(millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean', 342, 2), millrace.silhouette('m', 'SELECT f FROM shop.rows', 'euclidean'), 'all rows, if there are no more');
SELECT is(millrace.silhouette('m', 'SELECT f FROM shop.rows', sample => 100), millrace.silhouette('m', 'SELECT f FROM shop.rows'), 'squared distances need no sample');

-- Versions
SELECT millrace.train_kmeans('m', 'SELECT x, y, z FROM shop.p', 3, activate => false);
SELECT is((version, active, metrics->>'reason')::text, '(2,f,"activate is false")', 'a version that is not activated') FROM millrace.models WHERE name = 'm' AND version = 2;
SELECT is((SELECT count(*) FROM millrace.cluster_centers('m')), 5::bigint, 'is not served');
SELECT is((SELECT count(*) FROM millrace.cluster_centers('m', 2)), 3::bigint, 'but may be looked at');
SELECT millrace.activate('m', 2);
SELECT is((SELECT count(*) FROM millrace.cluster_centers('m')), 3::bigint, 'activate');
SELECT is((SELECT max(millrace.kmeans_assign('m', f)) FROM shop.rows), 2, 'kmeans_assign goes by it');
SELECT is(millrace.rollback('m'), 1, 'rollback');
SELECT is((SELECT max(millrace.kmeans_assign('m', f)) FROM shop.rows), 4, 'at once');
SELECT is(millrace.prune('m', 1), 0, 'prune keeps the newest and the active one');
SELECT millrace.train_kmeans('m', 'SELECT x, y, z FROM shop.p', 5);
SELECT is(millrace.prune('m', 1), 2, 'prune');
SELECT is(array_agg(DISTINCT version), '{3}', 'removes clusters too') FROM millrace.cluster WHERE model = 'm';
SELECT lives_ok($$ SELECT millrace.drop_model('form') $$, 'drop_model');
SELECT is(count(*), 0::bigint, 'leaves no clusters') FROM millrace.cluster WHERE model = 'form';

-- Retrain: from the active centers, so that numbers keep their meaning
CREATE TABLE shop.live AS SELECT id, x, y FROM shop.p;
SELECT millrace.train_kmeans('r', 'SELECT x, y FROM shop.live', 5);
CREATE TEMP TABLE before AS SELECT id, millrace.kmeans_assign('r', ARRAY[x, y]) AS cluster FROM shop.live;
-- The smallest heap becomes the largest.
INSERT INTO shop.live SELECT id + g * 1000, x + 0.01 * g, y FROM shop.live, generate_series(1, 5) AS g WHERE id IN (SELECT id FROM before WHERE cluster = 4);
SELECT is((version, active, reason, rows)::text, format('(2,t,,%s)', (SELECT count(*) FROM shop.live)), 'retrain') FROM millrace.retrain('r');
SELECT is(count(*), 0::bigint, 'clusters keep their numbers') FROM before JOIN shop.live USING (id) WHERE millrace.kmeans_assign('r', ARRAY[x, y]) <> cluster;
SELECT is(cluster, 4, 'whatever their sizes') FROM millrace.cluster_centers('r') ORDER BY size DESC LIMIT 1;
SELECT ok(metrics('r', 'cost')::float8 <= millrace.kmeans_cost('r', 'SELECT x, y FROM shop.live') * (1 + 1e-12), 'the cost is that of today''s rows');
SELECT is(a.parameters, b.parameters, 'parameters stay') FROM millrace.models AS a, millrace.models AS b WHERE a.name = 'r' AND a.version = 1 AND b.name = 'r' AND b.version = 2;
SELECT is((SELECT (version, active)::text FROM millrace.retrain('r', warm_start => false)), '(3,t)', 'or from the seed');
SELECT is(cluster, 0, 'the largest first') FROM millrace.cluster_centers('r') ORDER BY size DESC LIMIT 1;
SELECT is((SELECT iterations FROM millrace.retrain('r', iterations => 1, seed => 9)), 1, 'iterations');
SELECT is((parameters->'max_iterations', parameters->'seed')::text, '(1,9)', 'and seed are stored') FROM millrace.models WHERE name = 'r' AND version = 4;
SELECT is((SELECT (version, active, reason)::text FROM millrace.retrain('r', activate => false)), '(5,f,"activate is false")', 'activate => false');
SELECT is((SELECT version FROM millrace.train_kmeans('r', 'SELECT x, y FROM shop.live', 5, warm_start => true)), 6, 'train_kmeans starts from the active centers if asked to');
SELECT is((SELECT (version, iterations)::text FROM millrace.train_kmeans('r', 'SELECT x, y FROM shop.live', 5, warm_start => true, tolerance => 0)), '(7,2)', 'which are good for the same rows');
SELECT throws_ok($$ SELECT millrace.train_kmeans('r', 'SELECT x, y FROM shop.live', 4, warm_start => true) $$, '22023', 'k must be 5 to start from version 7 of model "r", not 4', 'not from another number');
SELECT throws_ok($$ SELECT millrace.train_kmeans('r', 'SELECT x FROM shop.live', 5, warm_start => true) $$, '22023', 'query: the number of features is 1, but that of model "r" is 2', 'nor from other features');
SELECT is((SELECT version FROM millrace.train_kmeans('first', 'SELECT x, y FROM shop.live', 5, warm_start => true)), 1, 'from the seed, if there is no version');
SELECT millrace.train_kmeans('sleeping', 'SELECT x, y FROM shop.live', 5, activate => false);
SELECT is((SELECT (version, active, reason)::text FROM millrace.retrain('sleeping')), '(2,t,"no gate: no version was active")', 'retrain of a model without active version');
-- A query that gives another width
CREATE TABLE shop.wide AS SELECT x, y, ARRAY[x, y] AS more FROM shop.live;
SELECT millrace.train_kmeans('wide', 'SELECT * FROM shop.wide', 2);
UPDATE shop.wide SET more = more || 0;
SELECT throws_ok($$ SELECT millrace.retrain('wide') $$, '22023', 'query: the number of features is 5, but that of model "wide" is 4', 'retrain with other features');
SELECT is((version, active, reason)::text, '(2,t,"no gate: version 1 has other features")', 'from the seed: as many as there are now') FROM millrace.retrain('wide', warm_start => false);
SELECT is(array_length(center, 1), 5, 'their centers') FROM millrace.cluster_centers('wide') WHERE cluster = 0;
SELECT is((version, active, reason)::text, '(3,t,)', 'from where retraining goes on') FROM millrace.retrain('wide');
-- The gate
SET LOCAL client_min_messages = error;
SELECT millrace.train_kmeans('gate', 'SELECT x, y FROM shop.live', 5);
SELECT is((version, active)::text, '(2,t)', 'from the active centers it is never worse') FROM millrace.retrain('gate', gate_tolerance => 0);
UPDATE millrace.model_version SET parameters = parameters || '{"k": 2}' WHERE model = 'gate';
SELECT is((version, active)::text, '(3,f)', 'fewer clusters cost more') FROM millrace.retrain('gate', warm_start => false);
SELECT matches(metrics->>'reason', '^cost [0-9.e+]+ is above the [0-9.e+]+ of the same rows under version 2 by more than 5 %$', 'the reason') FROM millrace.models WHERE name = 'gate' AND version = 3;
SELECT is((version, active)::text, '(4,t)', 'unless that is allowed') FROM millrace.retrain('gate', warm_start => false, gate_tolerance => 1000);
SET LOCAL client_min_messages = warning;

-- What retrain takes for this kind
SELECT throws_ok($$ SELECT millrace.retrain('r', holdout => 0.1) $$, '22023', 'holdout means nothing for model "r", which is of kind kmeans', 'holdout');
SELECT throws_ok($$ SELECT millrace.retrain('r', iterations => 0) $$, '22023', 'iterations must be between 1 and 10000, not 0', 'no iterations');
SELECT throws_ok($$ SELECT millrace.retrain('r', gate_tolerance => -1) $$, '22023', 'gate_tolerance must be a finite number that is not negative, not -1', 'negative gate');
SELECT throws_ok($$ SELECT millrace.retrain('r', warm_start => NULL) $$, '22023', 'warm_start must not be NULL', 'NULL');
-- Bad arguments
CREATE FUNCTION training(arguments text) RETURNS text LANGUAGE sql AS $$ SELECT 'SELECT millrace.train_kmeans(' || arguments || ')' $$;
SELECT throws_ok(training(arguments), '22023', message, arguments) FROM (VALUES
	($$ NULL, 'shop.rows', 2 $$, 'model must not be NULL'), ($$ '', 'shop.rows', 2 $$, 'model must not be empty'), ($$ 'x', '', 2 $$, 'query must not be empty'), ($$ 'x', NULL, 2 $$, 'query must not be NULL'),
	($$ 'x', 'shop.stored', 0 $$, 'k must be between 1 and 65536, not 0'), ($$ 'x', 'shop.stored', -5 $$, 'k must be between 1 and 65536, not -5'), ($$ 'x', 'shop.stored', 65537 $$, 'k must be between 1 and 65536, not 65537'),
	($$ 'x', 'shop.stored', NULL $$, 'k must not be NULL'), ($$ 'x', 'shop.stored', 2, seed => NULL $$, 'seed must not be NULL'), ($$ 'x', 'shop.stored', 2, max_iterations => 0 $$, 'max_iterations must be between 1 and 10000, not 0'),
	($$ 'x', 'shop.stored', 2, starts => 0 $$, 'starts must be between 1 and 1000, not 0'), ($$ 'x', 'shop.stored', 2, tolerance => 'NaN' $$, 'tolerance must be between 0 and 1, not NaN'),
	($$ 'x', 'shop.stored', 2, tolerance => -0.5 $$, 'tolerance must be between 0 and 1, not -0.5'), ($$ 'x', 'shop.stored', 2, threads => -1 $$, 'threads must be between 0 and 1024, not -1'),
	($$ 'x', 'shop.stored', 2, warm_start => NULL $$, 'warm_start must not be NULL'), ($$ 'x', 'shop.stored', 2, activate => NULL $$, 'activate must not be NULL'),
	($$ 'x', 'shop.stored', 301 $$, 'k must be at most 300, the number of distinct rows, not 301'), ($$ 'x', 'VALUES (1), (2), (2)', 3 $$, 'k must be at most 2, the number of distinct rows, not 3'),
	($$ 'x', 'SELECT 7', 2 $$, 'k must be at most 1, the number of distinct rows, not 2'), ($$ 'x', 'VALUES (1, 0), (2, 0), (3, 1)', 2, weight => 'column2' $$, 'k must be at most 1, the number of distinct rows, not 2')) AS v (arguments, message);
-- Bad features
SELECT throws_ok(training(format('''x'', %L, 2', query)), state, message, query) FROM (VALUES
	('SELECT x FROM shop.p WHERE false', '22023', 'query: there are no rows'), ('SELECT FROM shop.p', '22023', 'query: the query has no columns'),
	('SELECT id::text, x FROM shop.p', '22023', 'query: column "id" is of type text, not a number or an array of numbers'),
	('VALUES (1, 2.0), (2, NULL)', '22023', 'query: column "column2" is NULL'), ('VALUES (''{1,2}''::float8[]), (NULL)', '22023', 'query: column "column1" is NULL'),
	('VALUES (''{1,2}''::float8[]), (''{1,NULL}'')', '22023', 'query: element 2 of column "column1" is NULL'),
	('VALUES (''{1,2}''::float8[]), (''{1,2,3}'')', '22023', 'query: column "column1" has 3 elements, and 2 in the rows before'),
	('VALUES (''{}''::float8[])', '22023', 'query: column "column1" is an empty array'), ('VALUES (float8 ''NaN''), (1)', '22003', 'query: column "column1" is not a number'),
	('VALUES (numeric ''NaN''), (1)', '22003', 'query: column "column1" is not a number'), ('VALUES (float8 ''-infinity''), (1)', '22003', 'query: column "column1" is infinite'),
	('VALUES (1e200), (2e200), (-3e200)', '22003', 'the squares of the features are out of range'), ('SELECT nothing FROM shop.p', '42703', 'column "nothing" does not exist'),
	('nowhere.points', '42P01', 'relation "nowhere.points" does not exist'), ('SELECT 1; SELECT 2', '22023', 'query must be a single query that returns rows'), ('SELECT 1 INTO x', '22023', 'query must be a single query that returns rows')) AS v (query, state, message);
SELECT throws_ok(training($$ 'x', 'SELECT x FROM shop.p', 2, weight => 'w' $$), '22023', 'query: there is no column "w", which is to be the weight', 'no weight');
SELECT throws_ok(training($$ 'x', 'SELECT x, -1 AS w FROM shop.p', 2, weight => 'w' $$), '22023', 'query: the weight is below 0: -1', 'a negative weight');
SELECT throws_ok(training($$ 'x', 'SELECT 1 AS w', 2, weight => 'w' $$), '22023', 'query: the query has no columns but the weight', 'only a weight');
-- Bad rows
SELECT throws_ok(format('SELECT millrace.kmeans_assign(%L, %L)', model, features), state, message, model || ' ' || features) FROM (VALUES
	('nope', '{1}', '42704', 'model "nope" does not exist'), ('m', '{1,2,3}', '22023', 'model "m" takes 4 features, not 3'), ('m', '{}', '22023', 'model "m" takes 4 features, not 0'),
	('m', '{1,2,3,NULL}', '22023', 'a feature of model "m" is NULL'), ('m', '{1,NaN,3,4}', '22003', 'feature 2 of model "m" is not a number'), ('m', '{1,2,3,-Infinity}', '22003', 'feature 4 of model "m" is infinite'),
	('m', '{{1,2},{3,4}}', '22023', 'features of model "m" have 2 dimensions, not one'), ('m', '{1e200,0,0,0}', '22003', 'the distance to the clusters of model "m" is out of range')) AS v (model, features, state, message);
SELECT millrace.train_kmeans('none', 'shop.stored', 2, activate => false);
SELECT throws_ok($$ SELECT millrace.kmeans_assign('none', '{1,2,3,4}') $$, '55000', 'model "none" has no active version', 'no active version');
SELECT throws_ok($$ SELECT * FROM millrace.cluster_centers('none') $$, '55000', 'model "none" has no active version', 'of cluster_centers');
SELECT throws_ok($$ SELECT * FROM millrace.cluster_centers('nope') $$, '42704', 'model "nope" does not exist', 'cluster_centers of an unknown model');
SELECT throws_ok($$ SELECT * FROM millrace.cluster_centers('nope', 1) $$, '42704', 'model "nope" does not exist', 'and version');
SELECT throws_ok($$ SELECT * FROM millrace.cluster_centers('m', 9) $$, '42704', 'model "m" has no version 9', 'of an unknown version');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('nope', 'shop.stored') $$, '42704', 'model "nope" does not exist', 'kmeans_cost of an unknown model');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('m', 'SELECT x FROM shop.p') $$, '22023', 'query: the number of features is 1, but that of model "m" is 4', 'of other features');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('m', NULL) $$, '22023', 'query must not be NULL', 'of no query');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('w', 'SELECT x, y, z FROM shop.p') $$, '22023', 'query: there is no column "w", which is to be the weight', 'without the weight');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'SELECT f FROM shop.rows WHERE id = 1') $$, '22023', 'query: all rows are in one cluster of model "m"', 'silhouette of one row');
SELECT throws_ok($$ SELECT millrace.silhouette('one', 'SELECT i, 2 * i FROM generate_series(1, 9) AS i', 'euclidean') $$, '22023', 'query: all rows are in one cluster of model "one"', 'of one cluster');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'shop.stored', 'cosine') $$, '22023', 'metric must be squared_euclidean or euclidean, not "cosine"', 'another metric');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'shop.stored', NULL) $$, '22023', 'metric must not be NULL', 'no metric');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'shop.stored', 'euclidean', 1) $$, '22023', 'sample must be between 2 and 1000000, not 1', 'a sample of one');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'shop.stored', 'euclidean', NULL) $$, '22023', 'sample must not be NULL', 'no sample');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'shop.stored', 'euclidean', 10, NULL) $$, '22023', 'seed must not be NULL', 'no seed');
SELECT throws_ok($$ SELECT millrace.silhouette('m', 'SELECT f FROM shop.rows WHERE false') $$, '22023', 'query: there are no rows', 'no rows');
-- Large numbers beside small ones
SELECT is((SELECT loss FROM millrace.train_kmeans('offset', 'SELECT 1e9 + i % 2, i % 3 FROM generate_series(1, 60) AS i', 6)), 0::float8, 'a large mean hides no differences');

-- Memory
CREATE TABLE shop.many AS SELECT i::float8 AS x, sin(i) AS y, cos(i * 0.7) AS z FROM generate_series(1, 200000) AS i;
SET LOCAL millrace.max_memory = '4MB';
SELECT throws_ok(training($$ 'x', 'shop.many', 3 $$), '54000', 'this needs more memory than millrace.max_memory allows', 'above max_memory while reading');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('x', 'shop.many') $$, '42704', 'model "x" does not exist', 'and nothing is left');
SET LOCAL millrace.max_memory = '20MB';
CREATE FUNCTION detail(command text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE d text; BEGIN EXECUTE command; RETURN 'done'; EXCEPTION WHEN program_limit_exceeded THEN GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL; RETURN d; END $$;
SELECT matches(detail(training($$ 'x', 'SELECT array_fill(i::float8, ARRAY[1000]) FROM generate_series(1, 1000) AS i', 1000, starts => 1000 $$)), '^A clustering of 1000 points with 1000 features into 1000 clusters needs [0-9]+ MB, the limit is 20 MB\.$', 'the price is known before it begins');
RESET millrace.max_memory;
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'x') + (SELECT count(*) FROM millrace.cluster WHERE model = 'x'), 0::bigint, 'a training that fails leaves nothing');

-- Cancel: 57014 is no error that throws_ok would catch
CREATE FUNCTION cancelled(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'not cancelled';
EXCEPTION WHEN query_canceled THEN
	RETURN CASE WHEN clock_timestamp() - statement_timestamp() < interval '900 ms' THEN 'cancelled' ELSE 'cancelled late' END;
END $$;
SET LOCAL statement_timeout = '500 ms';
SELECT is(cancelled(training($$ 'x', 'shop.many', 3000, max_iterations => 10000, tolerance => 0 $$)), 'cancelled', 'statement_timeout ends a training');
RESET statement_timeout;
SELECT millrace.train_kmeans('many', 'shop.many', 5, max_iterations => 1, starts => 1);
SET LOCAL statement_timeout = '500 ms';
SELECT is(cancelled($$ SELECT millrace.silhouette('many', 'shop.many', 'euclidean', 200000) $$), 'cancelled', 'and a silhouette');
RESET statement_timeout;
SELECT is((SELECT count(*) FROM millrace.model WHERE name = 'x') + (SELECT count(*) FROM millrace.cluster WHERE model = 'x'), 0::bigint, 'nothing is left');

-- Parallel workers
SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL max_parallel_workers_per_gather = 2;
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (COSTS off) ' || query; END $$;
SELECT ok(bool_or(p LIKE '%Parallel Seq Scan%'), 'a parallel plan') FROM plan($$ SELECT millrace.kmeans_assign('many', ARRAY[x, y, z]), count(*) FROM shop.many GROUP BY 1 $$) AS p;
SELECT results_eq($$ SELECT millrace.kmeans_assign('many', ARRAY[x, y, z]), count(*)::float8 FROM shop.many GROUP BY 1 ORDER BY 1 $$, $$ SELECT cluster, size FROM millrace.cluster_centers('many') ORDER BY 1 $$, 'workers assign as the training did');
SET LOCAL max_parallel_workers_per_gather = 0;

-- Damage
SET LOCAL client_min_messages = error;
CREATE FUNCTION damaged(change text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE message text;
BEGIN
	BEGIN
		EXECUTE change;
		EXECUTE $q$ SELECT millrace.kmeans_assign('first', '{1,2}') FROM millrace.cluster_centers('r', 7) $q$;
		message := 'fine';
		RAISE EXCEPTION 'undo';
	EXCEPTION WHEN data_corrupted THEN message := SQLERRM; WHEN raise_exception THEN NULL;
	END;
	RETURN NEXT is(message, split_part(change, '-- ', 2), change);
END $$;
SELECT damaged(change) FROM unnest(ARRAY[
	'DELETE FROM millrace.cluster WHERE model = ''r'' AND version = 7 AND cluster = 1 -- cluster 1 of model "r" version 7 is corrupt: it is missing',
	'UPDATE millrace.cluster SET center = ''{1}'' WHERE model = ''r'' AND version = 7 AND cluster = 2 -- cluster 2 of model "r" version 7 is corrupt: its center has another width',
	'UPDATE millrace.cluster SET center = ''{}'' WHERE model = ''r'' AND version = 7 AND cluster = 2 -- cluster 2 of model "r" version 7 is corrupt: its center is no array of numbers',
	'UPDATE millrace.cluster SET center = ''{1,NULL}'' WHERE model = ''r'' AND version = 7 AND cluster = 2 -- cluster 2 of model "r" version 7 is corrupt: its center is no array of numbers',
	'UPDATE millrace.cluster SET center = ''{1,NaN}'' WHERE model = ''r'' AND version = 7 AND cluster = 2 -- cluster 2 of model "r" version 7 is corrupt: its center is not finite',
	'DELETE FROM millrace.cluster WHERE model = ''first'' AND cluster = 4 -- cluster 4 of model "first" version 1 is corrupt: it is missing',
	'SELECT 1 -- fine']) AS change;

-- Only reading
CREATE FUNCTION read_only(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN SET LOCAL transaction_read_only = on; EXECUTE command; RETURN 'done'; EXCEPTION WHEN read_only_sql_transaction THEN RETURN SQLERRM; END $$;
SELECT is(read_only(training($$ 'x', 'shop.stored', 2 $$)), 'cannot execute millrace.train_kmeans() in a read-only transaction', 'train_kmeans writes');
SELECT is(read_only($$ SELECT millrace.silhouette('m', 'shop.stored'), millrace.kmeans_cost('m', 'shop.stored'), millrace.kmeans_assign('m', '{1,2,3,4}') $$), 'done', 'the others do not');

-- Rights
CREATE ROLE mr_trainer;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_trainer, mr_reader;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_trainer;
CREATE SCHEMA private AUTHORIZATION mr_trainer;
SET LOCAL ROLE mr_trainer;
CREATE TABLE private.p AS SELECT i % 10 AS x, i % 7 AS y FROM generate_series(1, 70) AS i;
SELECT lives_ok($$ SELECT millrace.train_kmeans('private', 'private.p', 3) $$, 'who has EXECUTE and SELECT trains');
SELECT throws_ok($$ SELECT millrace.train_kmeans('m', 'private.p', 3) $$, '42501', 'must be owner of model "m"', 'not over another''s model');
CREATE FUNCTION private.spy(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'mr_trainer' THEN RAISE 'called by %', current_user; END IF; RETURN $1; END $$;
SET LOCAL search_path = private, public;
SELECT lives_ok($$ SELECT millrace.train_kmeans('spy', 'SELECT spy(x), y FROM p', 3) $$, 'a query that calls a function of the owner');
SET LOCAL search_path = public;
CREATE TEMP TABLE mine AS SELECT 1 AS x;
SELECT throws_ok($$ SELECT millrace.train_kmeans('temporary', 'mine', 1) $$, '22023', NULL, 'nor from a temporary table');
SELECT lives_ok($$ SELECT millrace.kmeans_cost('private', 'SELECT x, x FROM mine') $$, 'which kmeans_cost may read');
SET LOCAL ROLE mr_reader;
SELECT throws_ok($$ SELECT millrace.train_kmeans('x', 'VALUES (1)', 1) $$, '42501', 'permission denied for function train_kmeans', 'training is not for everybody');
SELECT is(millrace.kmeans_assign('private', '{1,1}') IS NOT NULL, true, 'assigning is');
SELECT is((SELECT sum(size) FROM millrace.cluster_centers('private')), 70::float8, 'and looking at the centers');
SELECT throws_ok($$ SELECT millrace.silhouette('private', 'private.p') $$, '42501', NULL, 'rows are read as the caller');
SELECT throws_ok($$ SELECT millrace.kmeans_cost('private', 'private.p') $$, '42501', NULL, 'those of kmeans_cost too');
RESET ROLE;
SELECT is((SELECT (version, active)::text FROM millrace.retrain('private')), '(2,t)', 'a superuser retrains');
SELECT is((SELECT version FROM millrace.retrain('spy')), 2, 'as the owner, with his search_path');
SELECT is(owner::text, 'mr_trainer', 'who owns the version') FROM millrace.models WHERE name = 'private' AND version = 2;

SELECT * FROM finish();
ROLLBACK;
