-- Scalers and the reading of features: what is learnt against PostgreSQL's aggregates, scale and unscale against their
-- formulas, NULL, numbers of every type, bad input, rights, versions.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = warning;

\ir ../lib/complaint.sql
CREATE FUNCTION fitting(query text, options text DEFAULT '') RETURNS text LANGUAGE sql AS
	$$ SELECT format('SELECT millrace.fit_scaler(''bad'', %L%s)', query, options) $$;
CREATE FUNCTION close(a float8, b float8, tolerance float8 = 1e-12) RETURNS bool IMMUTABLE LANGUAGE sql AS
	$$ SELECT abs(a - b) <= tolerance * greatest(abs(a), abs(b)) $$;
-- Same numbers, and NULL in the same places
CREATE FUNCTION same(a float8[], b float8[], tolerance float8 = 1e-12) RETURNS bool IMMUTABLE LANGUAGE sql AS
	$$ SELECT cardinality(a) = cardinality(b) AND bool_and(a[i] IS NOT DISTINCT FROM b[i] OR abs(a[i] - b[i]) <= tolerance * greatest(abs(a[i]), abs(b[i]), 1)) FROM generate_subscripts(a, 1) AS i $$;
CREATE FUNCTION learnt(m text, ver int = NULL) RETURNS SETOF millrace.scale_column STABLE LANGUAGE sql AS
	$$ SELECT c.* FROM millrace.scale_column AS c JOIN millrace.models AS v ON v.name = c.model AND v.version = c.version
		WHERE c.model = m AND CASE WHEN ver IS NULL THEN v.active ELSE c.version = ver END ORDER BY position $$;

CREATE FUNCTION explained(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; plan text = '';
BEGIN
	FOR line IN EXECUTE 'EXPLAIN ' || command LOOP plan = plan || line || E'\n'; END LOOP;
	RETURN plan;
END $$;

CREATE SCHEMA shop;
-- More rows than a block of sums has; a constant, a large offset, negative numbers
CREATE TABLE shop.t AS SELECT i AS id, sin(i) * 3 AS a, (i % 7)::int AS b, 1e9 + (i % 3) * 0.25 AS c, 4.25::numeric AS d, ARRAY[i % 2, -i, cos(i)]::float8[] AS e
	FROM generate_series(1, 5000) AS i;
CREATE VIEW shop.f AS SELECT a, b, c, d, e FROM shop.t;
CREATE VIEW shop.v AS SELECT id, ARRAY[a, b, c, d] || e AS x FROM shop.t;

-- What is learnt
CREATE TEMP TABLE result AS SELECT * FROM millrace.fit_scaler('s', 'shop.f');
SELECT is((model, version, active, rows, users, items, ratings, rank, iterations, loss, metric, metric_value, reason)::text, '(s,1,t,5000,,,,,,,,,)', 'the row of a training') FROM result;
SELECT is((kind, version, active, rows, query)::text, '(scaler,1,t,5000,"TABLE shop.f")', 'a model of kind scaler') FROM millrace.models WHERE name = 's';
SELECT is(parameters - 'columns', '{"method": "standard", "on_null": "error"}', 'parameters') FROM millrace.models WHERE name = 's';
SELECT is(parameters->'columns', '[{"name": "a", "type": "double precision", "width": 1, "position": 1}, {"name": "b", "type": "integer", "width": 1, "position": 2}, {"name": "c", "type": "numeric", "width": 1, "position": 3}, {"name": "d", "type": "numeric", "width": 1, "position": 4}, {"name": "e", "type": "double precision[]", "width": 3, "position": 5}]', 'columns')
	FROM millrace.models WHERE name = 's';
SELECT is(metrics->>'nulls', '0', 'metrics') FROM millrace.models WHERE name = 's';
CREATE TEMP TABLE truth AS SELECT u.position, count(*) AS n, avg(u.x::numeric)::float8 AS mean, stddev_samp(u.x::numeric)::float8 AS stddev, min(u.x) AS minimum, max(u.x) AS maximum
	FROM shop.v, unnest(x) WITH ORDINALITY AS u (x, position) GROUP BY 1;
SELECT is(array_agg(position ORDER BY position), '{1,2,3,4,5,6,7}', 'a row a feature') FROM learnt('s');
SELECT ok(bool_and(t.n = l.n AND t.minimum = l.minimum AND t.maximum = l.maximum), 'number, least and greatest') FROM truth AS t JOIN learnt('s') AS l USING (position);
SELECT ok(bool_and(close(t.mean, l.mean) OR abs(t.mean - l.mean) < 1e-15), 'means') FROM truth AS t JOIN learnt('s') AS l USING (position);
SELECT ok(bool_and(close(t.stddev, l.stddev, CASE l.position WHEN 3 THEN 1e-9 ELSE 1e-12 END)), 'sample standard deviations, with a large offset too') FROM truth AS t JOIN learnt('s') AS l USING (position);
SELECT ok(bool_and(close(t.s, l.stddev)), 'as stddev_samp has them') FROM learnt('s') AS l JOIN (SELECT u.position, stddev_samp(u.x) AS s FROM shop.v, unnest(x) WITH ORDINALITY AS u (x, position) GROUP BY 1) AS t USING (position) WHERE position <> 3;
SELECT is((mean, stddev)::text, '(4.25,0)', 'a constant has its value as mean, exactly, and no deviation') FROM learnt('s') WHERE position = 4;

-- standard: (x - mean) / stddev
SELECT ok(bool_and(same(millrace.scale('s', v.x), ARRAY(SELECT CASE WHEN t.stddev = 0 THEN 0 ELSE (u.x - t.mean) / t.stddev END FROM unnest(v.x) WITH ORDINALITY AS u (x, position) JOIN truth AS t USING (position) ORDER BY position), 1e-9)), 'scale is standard') FROM shop.v AS v WHERE id % 50 = 0;
SELECT ok(bool_and(abs(m) < 1e-6 AND close(s, 1, 1e-9)), 'means 0, deviations 1') FROM (SELECT avg(u.x) AS m, stddev_samp(u.x) AS s FROM shop.v, unnest(millrace.scale('s', x)) WITH ORDINALITY AS u (x, position) WHERE position <> 4 GROUP BY position) AS t;
SELECT ok(bool_and(same(millrace.unscale('s', millrace.scale('s', x)), x)), 'unscale is the inverse') FROM shop.v;
SELECT is((millrace.scale('s', '{0,0,0,99,0,0,0}'))[4], 0::float8, 'a constant becomes 0, whatever comes');
SELECT is((millrace.unscale('s', '{0,0,0,99,0,0,0}'))[4], 4.25::float8, 'and is itself again');

-- The other methods.  The second version of a name is active.
SELECT is((version, active)::text, '(2,t)', 'a second version') FROM millrace.fit_scaler('s', 'shop.f', 'minmax');
SELECT ok(bool_and(same(millrace.scale('s', v.x), ARRAY(SELECT CASE WHEN t.minimum = t.maximum THEN 0 ELSE (u.x - t.minimum) / (t.maximum - t.minimum) END FROM unnest(v.x) WITH ORDINALITY AS u (x, position) JOIN truth AS t USING (position) ORDER BY position))), 'minmax') FROM shop.v AS v WHERE id % 50 = 0;
SELECT is((min(u.x), max(u.x))::text, '(0,1)', 'from 0 to 1') FROM shop.v, unnest(millrace.scale('s', x)) AS u (x);
SELECT ok(bool_and(same(millrace.unscale('s', millrace.scale('s', x)), x)), 'unscale minmax') FROM shop.v;
SELECT is((millrace.scale('s', '{0,14,1e9,4.25,0,0,0}'))[2], 14 / 6.0::float8, 'beyond the range');
SELECT is((version, active, reason)::text, '(3,f,"activate is false")', 'not activated') FROM millrace.fit_scaler('s', 'shop.f', 'stddev', activate => false);
SELECT is((millrace.scale('s', '{0,14,1e9,4.25,0,0,0}'))[2], 14 / 6.0::float8, 'the active version scales');
SELECT millrace.activate('s', 3);
SELECT ok(bool_and(same(millrace.scale('s', v.x), ARRAY(SELECT CASE WHEN t.stddev = 0 THEN 0 ELSE u.x / t.stddev END FROM unnest(v.x) WITH ORDINALITY AS u (x, position) JOIN truth AS t USING (position) ORDER BY position), 1e-9)), 'stddev') FROM shop.v AS v WHERE id % 50 = 0;
SELECT ok(bool_and(same(millrace.unscale('s', millrace.scale('s', x)), x)), 'unscale stddev') FROM shop.v;
SELECT is(millrace.rollback('s'), 2, 'rollback');
SELECT is((millrace.scale('s', '{0,14,1e9,4.25,0,0,0}'))[2], 14 / 6.0::float8, 'to minmax');
SELECT is((version, active)::text, '(4,t)', 'none') FROM millrace.fit_scaler('s', 'shop.f', 'none');
SELECT ok(bool_and(millrace.scale('s', x) = x AND millrace.unscale('s', x) = x), 'none changes nothing') FROM shop.v;

-- scikit-learn's and Spark's documented examples: StandardScaler has the deviation of the population there, the sample's here
SELECT millrace.fit_scaler('doc', 'VALUES (0, 0), (0, 0), (1, 1), (1, 1)');
SELECT ok(same(millrace.scale('doc', '{2,2}'), ARRAY[3 * sqrt(0.75), 3 * sqrt(0.75)]), 'scikit-learn: transform([[2, 2]]) is 3, with the population''s deviation');
SELECT millrace.fit_scaler('doc', 'VALUES (-1, 2), (-0.5, 6), (0, 10), (1, 18)', 'minmax');
SELECT is(millrace.scale('doc', '{2,2}'), '{1.5,0}', 'scikit-learn: MinMaxScaler');
SELECT millrace.fit_scaler('doc', 'VALUES (ARRAY[0.0]), (ARRAY[2.0])');
SELECT is(millrace.scale('doc', '{0}'), ARRAY[-1 / sqrt(2::float8)], 'Spark: StandardScaler of 0 and 2');

-- One pass is sound: squares of these differ in the last digits only, and the order does not matter much
CREATE FUNCTION deviation(query text) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN PERFORM millrace.fit_scaler('one', query); RETURN (SELECT stddev FROM learnt('one')); END $$;
SELECT ok(close(deviation('SELECT 1e15 + i % 2 FROM generate_series(1, 10000) AS i'), 0.5 * sqrt(10000 / 9999.0::float8), 1e-9), 'an offset of 1e15');
CREATE TABLE shop.far AS SELECT i, CASE WHEN i = 1 THEN 1e9 ELSE sin(i) * 1e3 END AS x FROM generate_series(1, 10000) AS i;
SELECT ok(close(deviation('SELECT x FROM shop.far ORDER BY i'), (SELECT stddev_samp(x::numeric)::float8 FROM shop.far), 1e-14), 'the first row is far from the others');
SELECT ok(close(deviation('SELECT i FROM generate_series(1, 100000) AS i'), sqrt((100000::float8 ^ 2 - 1) / 12 * (100000 / 99999.0::float8))), 'rows in order');
SELECT is(deviation('SELECT 0.1 FROM generate_series(1, 5000)'), 0::float8, 'a constant that is no binary number');
SELECT is((n, mean, stddev)::text, '(5000,0.1,0)', 'its mean is itself') FROM learnt('one');
SELECT is(deviation('SELECT 7'), 0::float8, 'one row');
SELECT is(millrace.scale('one', '{9}'), '{0}', 'says nothing of others');
SELECT ok(close(deviation('SELECT i * 1e153 FROM generate_series(-1, 1) AS i'), 1e153), 'large numbers');

-- NULL
CREATE TABLE shop.n AS SELECT CASE WHEN i % 4 = 0 THEN NULL ELSE i END AS a, ARRAY[i, CASE WHEN i % 10 <> 3 THEN i * 2.5 END] AS b FROM generate_series(1, 3000) AS i;
SELECT alike(complaint(fitting('SELECT a FROM shop.n')), E'22023\nscaler "bad": column "a" is NULL\nRow 4 has a = NULL.\n%coalesce%', 'error: a number');
SELECT alike(complaint(fitting('SELECT b FROM shop.n')), E'22023\nscaler "bad": element 2 of column "b" is NULL\nRow 3 has b = {3,NULL}.\n%', 'error: an element');
SELECT is((version, rows)::text, '(1,3000)', 'on_null mean') FROM millrace.fit_scaler('n', 'shop.n', 'standard', 'mean');
SELECT is(metrics->>'nulls', '1050', 'NULLs are counted') FROM millrace.models WHERE name = 'n';
SELECT ok(bool_and(l.n = t.n AND close(l.mean, t.mean) AND close(l.stddev, t.stddev)), 'mean: NULL is not among the rows')
	FROM learnt('n') AS l JOIN (SELECT 1 AS position, count(a) AS n, avg(a)::float8 AS mean, stddev_samp(a)::float8 AS stddev FROM shop.n UNION ALL SELECT i + 1, count(b[i]), avg(b[i])::float8, stddev_samp(b[i])::float8 FROM shop.n, generate_series(1, 2) AS i GROUP BY i) AS t USING (position);
SELECT is(millrace.scale('n', ARRAY[NULL, 0, NULL]::float8[]), millrace.scale('n', (SELECT array_agg(CASE position WHEN 2 THEN 0 ELSE mean END ORDER BY position) FROM learnt('n'))), 'mean: NULL is scaled as the mean');
SELECT is((millrace.scale('n', '{NULL,0,NULL}'))[1], 0::float8, 'which is 0 with standard');
SELECT millrace.fit_scaler('n', 'shop.n', 'standard', 'keep');
SELECT ok(bool_and(l.n = t.n AND l.mean = t.mean), 'keep learns the same') FROM learnt('n', 2) AS l JOIN learnt('n', 1) AS t USING (position);
SELECT is(array_positions(millrace.scale('n', '{NULL,0,NULL}'), NULL), '{1,3}', 'keep: NULL stays');
SELECT is(array_positions(millrace.unscale('n', '{NULL,0,NULL}'), NULL), '{1,3}', 'and comes back');
SELECT is(millrace.scale('n', ARRAY[NULL, NULL, NULL]::float8[]), '{NULL,NULL,NULL}', 'nothing but NULL');
SELECT millrace.fit_scaler('n', 'shop.n', 'standard', 'zero');
SELECT ok(bool_and(l.n = 3000 AND close(l.mean, t.mean) AND close(l.stddev, t.stddev)), 'zero: NULL is the number 0')
	FROM learnt('n') AS l JOIN (SELECT 1 AS position, avg(coalesce(a, 0))::float8 AS mean, stddev_samp(coalesce(a, 0))::float8 AS stddev FROM shop.n UNION ALL SELECT i + 1, avg(coalesce(b[i], 0))::float8, stddev_samp(coalesce(b[i], 0))::float8 FROM shop.n, generate_series(1, 2) AS i GROUP BY i) AS t USING (position);
SELECT is(millrace.scale('n', '{NULL,1,NULL}'), millrace.scale('n', '{0,1,0}'), 'zero: and is scaled so');
SELECT throws_ok($$ SELECT millrace.unscale('n', '{NULL,1,1}') $$, '22023', 'feature 1 of model "n" is NULL', 'unscale has NULL only with keep');
SELECT is(millrace.scale('n', NULL), NULL, 'no array, no result');
SELECT alike(complaint(fitting('SELECT NULL::int AS a, 1 AS b', ', on_null => ''mean''')), E'22023\nscaler "bad": column "a" is NULL in all rows\n%', 'nothing to learn from');
SELECT alike(complaint(fitting('SELECT ARRAY[1, NULL] AS a, 1 AS b', ', on_null => ''keep''')), E'22023\nscaler "bad": element 2 of column "a" is NULL in all rows\n%', 'nor in an array');
SELECT alike(complaint(fitting('SELECT NULL::float8[] AS a', ', on_null => ''zero''')), E'22023\nscaler "bad": column "a" is NULL\n%', 'an array that is NULL has no width');

-- Numbers of every type, arrays, domains, short and long and compressed arrays as they are stored
CREATE DOMAIN shop.price AS numeric(10, 2);
CREATE DOMAIN shop.vector AS real[];
CREATE TABLE shop.types (a smallint, b int, c bigint, d real, e float8, f numeric, g bool, h shop.price, i smallint[], j int[], k bigint[], l real[], m float8[], n numeric[], o bool[], p shop.vector, q shop.price[]);
INSERT INTO shop.types SELECT x, x * 100000, x * 10000000000::bigint, x / 4.0, x / 8.0, x / 3.0, x % 2 = 0, x, ARRAY[x, 2], ARRAY[3, x * -7], ARRAY[x * 10000000000::bigint], ARRAY[x / 2.0, 1], ARRAY[x / 7.0::float8, -0.0], ARRAY[x * 1e-7, x * 123456789012345678901234567890.5], ARRAY[x > 3, false], ARRAY[x * 0.5], ARRAY[x * 2.25]
	FROM generate_series(1, 9) AS x;
CREATE VIEW shop.wide AS SELECT ARRAY[a, b, c, d, e, f, g::int, h] || i::float8[] || j::float8[] || k::float8[] || l::float8[] || m || n::float8[] || o::int[]::float8[] || p::float8[] || q::float8[] AS x FROM shop.types;
SELECT millrace.fit_scaler('t', 'shop.types', 'none');
SELECT is((SELECT count(*) FROM learnt('t')), (SELECT cardinality(x)::bigint FROM shop.wide LIMIT 1), 'a feature for each number and element');
SELECT ok(bool_and(close(l.mean, t.mean) OR (l.mean = 0 AND t.mean = 0)), 'numbers of every type')
	FROM learnt('t') AS l JOIN (SELECT u.position, avg(u.x) AS mean FROM shop.wide, unnest(x) WITH ORDINALITY AS u (x, position) GROUP BY 1) AS t USING (position);
SELECT ok(bool_and(l.minimum = t.minimum AND l.maximum = t.maximum), 'exactly')
	FROM learnt('t') AS l JOIN (SELECT u.position, min(u.x) AS minimum, max(u.x) AS maximum FROM shop.wide, unnest(x) WITH ORDINALITY AS u (x, position) GROUP BY 1) AS t USING (position);
CREATE TABLE shop.long AS SELECT i, (SELECT array_agg((i * j % 17)::float8 ORDER BY j) FROM generate_series(1, 3000) AS j) AS x FROM generate_series(1, 20) AS i;
SELECT millrace.fit_scaler('long', 'SELECT x FROM shop.long', 'none');
SELECT ok(bool_and(close(l.mean, t.mean)) AND count(*) = 3000, 'arrays that are compressed') FROM learnt('long') AS l JOIN (SELECT j AS position, avg(x[j]) AS mean FROM shop.long, generate_series(1, 3000) AS j GROUP BY 1) AS t USING (position);
SELECT millrace.fit_scaler('w', 'SELECT 1 AS a, ''[5:6]={7,8}''::int[] AS b');
SELECT is(array_agg(mean ORDER BY position), '{1,7,8}', 'an array that does not begin at 1') FROM learnt('w');

-- Bad input names column and row
CREATE TEMP TABLE bad (what text, query text, error text);
INSERT INTO bad VALUES
	('no columns', 'SELECT FROM shop.t', E'22023\nscaler "bad": the query has no columns\n%'),
	('no rows', 'SELECT 1 AS a WHERE false', E'22023\nscaler "bad": there are no rows\n%'),
	('text', 'SELECT 1 AS a, ''x''::text AS "B c"', E'22023\nscaler "bad": column "B c" is of type text, not a number or an array of numbers\n%'),
	('an array of text', 'SELECT ARRAY[''x''] AS a', E'22023\nscaler "bad": column "a" is of type text[], not a number or an array of numbers\n%'),
	('a timestamp', 'SELECT now() AS a', E'22023\nscaler "bad": column "a" is of type timestamp with time zone, not%'),
	('an empty array', 'SELECT 1 AS a, ''{}''::int[] AS b', E'22023\nscaler "bad": column "b" is an empty array\nRow 1 has a = 1, b = {}.%'),
	('a matrix', 'SELECT ''{{1,2},{3,4}}''::int[] AS b', E'22023\nscaler "bad": column "b" has 2 dimensions, not one\n%'),
	('another width', 'VALUES (1, ARRAY[1, 2]), (2, ARRAY[1, 2, 3])', E'22023\nscaler "bad": column "column2" has 3 elements, and 2 in the rows before\nRow 2 has column1 = 2, column2 = {1,2,3}.\n%'),
	('another width, shorter', 'VALUES (1, ARRAY[1, 2]), (2, ARRAY[1])', E'22023\nscaler "bad": column "column2" has 1 element%, and 2 in the rows before\n%'),
	('NaN', 'VALUES (1, 2.5), (2, ''NaN''::float8)', E'22003\nscaler "bad": column "column2" is not a number\nRow 2 has column1 = 2, column2 = NaN.\n%'),
	('NaN in an array', 'SELECT ARRAY[1, ''NaN'']::real[] AS v', E'22003\nscaler "bad": element 2 of column "v" is not a number\n%'),
	('NaN, numeric', 'SELECT ''NaN''::numeric AS v', E'22003\nscaler "bad": column "v" is not a number\n%'),
	('infinity', 'SELECT 3 AS a, ''-Infinity''::real AS v', E'22003\nscaler "bad": column "v" is infinite\nRow 1 has a = 3, v = -Infinity.\n%'),
	('infinity after NULL', 'SELECT ARRAY[NULL, ''Infinity'']::float8[] AS v', E'22023\nscaler "bad": element 1 of column "v" is NULL\n%'),
	('too large', 'SELECT 1e400 AS v', E'22003\nscaler "bad": column "v" is infinite, or too large for double precision\n%'),
	('squares too large', 'VALUES (-1e200), (1e200)', E'22003\nscaler "bad": the numbers of column "column1" are too large: their variance is out of range\nThey go from -1e+200 to 1e+200.'),
	('too many', 'SELECT array_agg(i) AS v FROM generate_series(1, 20000) AS i', E'54000\nscaler "bad": 20000 features, more than 16384'),
	('an error of the query', 'SELECT 1 / (i - 3) FROM generate_series(1, 5) AS i', E'22012\ndivision by zero'),
	('no query', 'nowhere', E'42P01\nrelation "nowhere" does not exist\n%'),
	('two queries', 'SELECT 1; SELECT 2', E'22023\nquery must be a single query that returns rows\n%'),
	('no SELECT', 'DELETE FROM shop.t', E'22023\nquery must be a single query that returns rows\n%');
SELECT alike(complaint(fitting(query)), error, what) FROM bad;
SELECT is(complaint(fitting('SELECT 1', ', method => ''robust''')), E'22023\nmethod must be standard, stddev, minmax or none, not "robust"', 'an unknown method');
SELECT is(complaint(fitting('SELECT 1', ', on_null => ''ignore''')), E'22023\non_null must be error, zero, mean or keep, not "ignore"', 'an unknown on_null');
SELECT is(complaint(fitting('SELECT 1', ', method => NULL')), E'22023\nmethod must not be NULL', 'method NULL');
SELECT is(complaint(fitting('SELECT 1', ', on_null => NULL')), E'22023\non_null must not be NULL', 'on_null NULL');
SELECT is(complaint(fitting('SELECT 1', ', activate => NULL')), E'22023\nactivate must not be NULL', 'activate NULL');
SELECT throws_ok($$ SELECT millrace.fit_scaler('', 'SELECT 1') $$, '22023', 'name must not be empty', 'an empty name');
CREATE TEMP TABLE temporary AS SELECT 1 AS a;
SELECT alike(complaint(fitting('SELECT a FROM temporary')), '%temporary%', 'temporary tables are refused');
SELECT is(count(*), 0::bigint, 'errors leave no model') FROM millrace.model WHERE name = 'bad';
SELECT is(count(*), 0::bigint, 'and no memory') FROM pg_backend_memory_contexts WHERE name LIKE 'millrace run%' OR name LIKE 'millrace features%';

-- Bad input of scale
SELECT throws_ok($$ SELECT millrace.scale('nobody', '{1}') $$, '42704', 'model "nobody" does not exist', 'no such scaler');
SELECT millrace.fit_scaler('idle', 'VALUES (1, 2), (3, 5)', activate => false);
SELECT throws_like($$ SELECT millrace.scale('idle', '{1,2}') $$, '%"idle" has no active version%', 'no active version');
SELECT millrace.fit_scaler('two', 'VALUES (1, 2), (3, 5)');
SELECT throws_ok($$ SELECT millrace.scale('two', '{1}') $$, '22023', 'model "two" takes 2 features, not 1', 'too few');
SELECT throws_ok($$ SELECT millrace.unscale('two', '{1,2,3}') $$, '22023', 'model "two" takes 2 features, not 3', 'too many');
SELECT throws_ok($$ SELECT millrace.scale('two', '{}') $$, '22023', 'model "two" takes 2 features, not 0', 'none');
SELECT throws_ok($$ SELECT millrace.scale('two', '{{1,2}}') $$, '22023', 'features of model "two" have 2 dimensions, not one', 'a matrix');
SELECT throws_ok($$ SELECT millrace.scale('two', '{1,NULL}') $$, '22023', 'feature 2 of model "two" is NULL', 'NULL');
SELECT throws_ok($$ SELECT millrace.scale('two', '{NaN,1}') $$, '22003', 'feature 1 of model "two" is not a number', 'NaN');
SELECT throws_ok($$ SELECT millrace.scale('two', '{1,Infinity}') $$, '22003', 'feature 2 of model "two" is infinite', 'infinity');
SELECT throws_ok($$ SELECT millrace.unscale('two', '{1e308,1e308}') $$, '22003', 'feature 2 of model "two" is too large: the result is out of range', 'a result out of range');
SELECT millrace.fit_scaler('constant', 'SELECT 5');
SELECT throws_ok($$ SELECT millrace.scale('constant', '{NaN}') $$, '22003', 'feature 1 of model "constant" is not a number', 'NaN where it does not matter');
SELECT is(millrace.scale('two', '[0:1]={1,2}'::float8[]), millrace.scale('two', '{1,2}'), 'subscripts do not matter');
SELECT is(millrace.scale('two', ARRAY[1, 2]), millrace.scale('two', '{1,2}'), 'integers are cast');

-- retrain repeats query, method and on_null on today's rows
CREATE TABLE shop.r (a float8, b float8);
INSERT INTO shop.r VALUES (1, 2), (3, NULL), (5, 4);
SELECT millrace.fit_scaler('r', 'SELECT a, b FROM shop.r', 'minmax', 'keep');
INSERT INTO shop.r VALUES (11, 12);
SELECT is((model, version, active, rows)::text, '(r,2,t,4)', 'retrain') FROM millrace.retrain('r');
SELECT is(millrace.scale('r', '{6,NULL}'), '{0.5,NULL}', 'learns of new rows by the same rules');
SELECT is((parameters->>'method', parameters->>'on_null', query)::text, '(minmax,keep,"SELECT a, b FROM shop.r")', 'which it repeats') FROM millrace.models WHERE name = 'r' AND version = 2;
SELECT is((version, active, reason)::text, '(3,f,"activate is false")', 'retrain without activate') FROM millrace.retrain('r', activate => false);
SELECT throws_ok($$ SELECT millrace.retrain('r', iterations => 3) $$, '22023', NULL, 'iterations mean nothing');
SELECT is(millrace.prune('r', 1), 1, 'prune');
SELECT is(array_agg(DISTINCT version ORDER BY version), '{2,3}', 'takes what was learnt along') FROM millrace.scale_column WHERE model = 'r';
SELECT millrace.drop_model('r');
SELECT is(count(*), 0::bigint, 'so does drop_model') FROM millrace.scale_column WHERE model = 'r';

-- Another version within a session, a transaction, a subtransaction: the one that the snapshot shows
SELECT millrace.fit_scaler('live', 'VALUES (0), (2)', 'minmax');
CREATE FUNCTION live() RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RETURN (millrace.scale('live', '{1}'))[1]; END $$;
SELECT is(live(), 0.5::float8, 'the first version');
SAVEPOINT s;
SELECT millrace.fit_scaler('live', 'VALUES (0), (4)', 'minmax');
SELECT is(live(), 0.25::float8, 'the second one at once');
ROLLBACK TO s;
SELECT is(live(), 0.5::float8, 'and the first again');
SELECT is(array_agg((millrace.scale(name, '{1}'))[1] ORDER BY name), '{0,0.5}', 'several scalers in turn') FROM (VALUES ('live'), ('constant')) AS v (name);

-- A scaler of what another scaler makes: its uses
SELECT millrace.fit_scaler('second', 'SELECT millrace.scale(''two'', ARRAY[a, a]), (millrace.scale(name => ''live'', features => ARRAY[a]))[1] FROM shop.types');
SELECT is(uses, '{"two": 1, "live": 1}', 'models that its query calls') FROM millrace.models WHERE name = 'second';
CREATE VIEW shop.scaled AS SELECT millrace.unscale('two', ARRAY[a, a]) AS x FROM shop.types;
SELECT millrace.fit_scaler('third', 'WITH q AS (SELECT x[1] FROM shop.scaled) SELECT * FROM q WHERE EXISTS (SELECT millrace.scale(''one'', ARRAY[1]))');
SELECT is(uses, '{"one": 6, "two": 1}', 'in views and subqueries too') FROM millrace.models WHERE name = 'third';
SELECT is(uses, NULL, 'none') FROM millrace.models WHERE name = 'two';

-- The query runs as the model's owner, with the settings it was fitted with
CREATE ROLE shop_scaler;
CREATE ROLE shop_other;
GRANT USAGE ON SCHEMA millrace TO shop_scaler, shop_other;
GRANT EXECUTE ON FUNCTION millrace.fit_scaler(text, text, text, text, bool), millrace.retrain(text, int, bool, float8, float8, int, bigint, bool), millrace.drop_model(text) TO shop_scaler, shop_other;
GRANT USAGE ON SCHEMA shop TO shop_scaler, shop_other;
CREATE TABLE shop.own (a int);
INSERT INTO shop.own VALUES (1), (2);
GRANT SELECT ON shop.own TO shop_scaler;
SET LOCAL ROLE shop_scaler;
SET LOCAL search_path = shop, public;
SELECT is((version, rows)::text, '(1,2)', 'a role of its own') FROM millrace.fit_scaler('own', 'own');
RESET search_path;
SET LOCAL ROLE shop_other;
SELECT ok(millrace.scale('own', '{1}') IS NOT NULL, 'everybody may scale');
SELECT throws_ok($$ SELECT millrace.retrain('own') $$, '42501', 'must be owner of model "own"', 'nobody else retrains it');
SELECT throws_ok($$ SELECT millrace.fit_scaler('own', 'SELECT 1') $$, '42501', 'must be owner of model "own"', 'nor fits it anew');
SELECT throws_ok($$ SELECT millrace.fit_scaler('mine', 'shop.own') $$, '42501', NULL, 'rows are read as the caller');
RESET ROLE;
SELECT is((version, rows)::text, '(2,2)', 'a superuser retrains it as its owner') FROM millrace.retrain('own');

-- Parallel workers scale, too
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL max_parallel_workers_per_gather = 2;
SELECT set_config(CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'force_parallel_mode' ELSE 'debug_parallel_query' END, 'on', true);
SELECT millrace.fit_scaler('par', 'SELECT x[1], x[2] FROM shop.v');
SELECT alike(explained('SELECT sum((millrace.scale(''par'', x[1:2]))[1]) FROM shop.v'), '%Gather%', 'a parallel plan');
SELECT ok(abs(sum((millrace.scale('par', x[1:2]))[1])) < 1e-9, 'in parallel') FROM shop.v;

SELECT * FROM finish();
ROLLBACK;
