-- The reading of features as points: equal rows merged or not, chunks, weights, the order of rows.  A model of one cluster says
-- it all: its size is the sum of weights, its centre the mean, its cost the sum of squared distances to that.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = warning;

CREATE SCHEMA shop;
CREATE FUNCTION close(a float8, b float8, tolerance float8 = 1e-9) RETURNS bool IMMUTABLE LANGUAGE sql AS $$ SELECT abs(a - b) <= tolerance * greatest(abs(a), abs(b), 1e-300) $$;
CREATE FUNCTION error(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE state text; message text; detail text;
BEGIN
	EXECUTE command;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws(E'\n', state, message, NULLIF(detail, ''));
END $$;
-- Points of the rows of a table, whose columns but w are features (all of them if weight is NULL), and whether the model of
-- one cluster has the sums that SQL has.
CREATE FUNCTION reading(query text, weight name = NULL, OUT points int, OUT is_right bool) LANGUAGE plpgsql AS $$
DECLARE truth record; columns text[];
BEGIN
	PERFORM millrace.train_kmeans('one', query, 1, starts => 1, weight => weight);
	SELECT (metrics->>'points')::int INTO points FROM millrace.models WHERE name = 'one' AND active;
	EXECUTE format('CREATE TEMP TABLE q ON COMMIT DROP AS %s', query);
	SELECT array_agg(quote_ident(attname)) INTO columns FROM pg_attribute WHERE attrelid = 'q'::regclass AND attnum > 0 AND attname IS DISTINCT FROM weight;
	EXECUTE format('SELECT sum(w) AS w, ARRAY[%s] AS center, %s AS cost FROM (SELECT *, %s::float8 AS w FROM (SELECT %s%s FROM q) AS r (%s%s)) AS q',
		(SELECT string_agg(format('sum(w * %s) / sum(w)', c), ', ') FROM unnest(columns) AS c),
		(SELECT string_agg(format('(sum(w * %1$s::float8 ^ 2) - sum(w * %1$s) ^ 2 / sum(w))', c), ' + ') FROM unnest(columns) AS c),
		CASE WHEN weight IS NULL THEN '1' ELSE 'weight' END, array_to_string(columns, ', '), ', ' || quote_ident(weight), array_to_string(columns, ', '), CASE WHEN weight IS NOT NULL THEN ', weight' END) INTO truth;
	DROP TABLE q;
	SELECT close(c.size, truth.w) AND close(c.cost, truth.cost, 1e-7) AND (SELECT bool_and(close(u, v, 1e-9)) FROM unnest(c.center, truth.center) AS t (u, v))
		INTO is_right FROM millrace.cluster_centers('one') AS c;
END $$;

-- Merged to the end
SELECT is(points, 30, 'equal rows are one point') FROM reading('SELECT i % 10 AS a, i % 3 AS c FROM generate_series(1, 3000) AS i');
SELECT ok(is_right, 'with their number as weight') FROM reading('SELECT i % 10 AS a, i % 3 AS c FROM generate_series(1, 3000) AS i');
SELECT is(reading('SELECT i % 20000 AS a, i % 8 AS b FROM generate_series(1, 100000) AS i')::text, '(20000,t)', 'many points, five rows each');
SELECT is(reading($$ SELECT '-0'::float8 AS a, 1 AS b UNION ALL SELECT 0, 1 UNION ALL SELECT 2, 1 $$)::text, '(2,t)', '0 and -0 are equal');
SELECT millrace.train_kmeans('zero', $$ VALUES ('{-0,1}'::float8[]), ('{0,1}'), ('{0,-0}') $$, 1);
SELECT is(metrics->>'points', '2', 'in an array too') FROM millrace.models WHERE name = 'zero';

-- Given up after 65,536 rows
SELECT is(reading('SELECT i AS a FROM generate_series(1, 65536) AS i')::text, '(65536,t)', 'as many rows as are looked at');
SELECT is(reading('SELECT i AS a FROM generate_series(1, 65537) AS i')::text, '(65537,t)', 'one more');
SELECT is(reading('SELECT i AS a, -i AS b FROM generate_series(1, 70000) AS i')::text, '(70000,t)', 'no equal rows: all weights are 1');
SELECT is(reading('SELECT greatest(i, 5000) AS a FROM generate_series(1, 70000) AS i')::text, '(65001,t)', 'some equal rows before it is given up, and a chunk that grows after');
SELECT is(reading('SELECT CASE WHEN i <= 70000 THEN i ELSE 1 END AS a FROM generate_series(1, 80000) AS i')::text, '(80000,t)', 'and none found after');
CREATE FUNCTION shop.sixteen(n int) RETURNS text LANGUAGE sql AS $$ SELECT format('SELECT %s FROM (SELECT greatest(s, 1000) AS i FROM generate_series(1, %s) AS s) AS t', string_agg(format('i + %s AS c%s', c, c), ', '), n) FROM generate_series(1, 16) AS c $$;
SELECT millrace.train_kmeans('chunks', shop.sixteen(140000), 1, starts => 1);
SELECT is(metrics->>'points', '139001', 'three chunks, the last two without weights of their own') FROM millrace.models WHERE name = 'chunks';
SELECT ok(close(c.size, 140000) AND close(c.cost, 16 * t.cost) AND close(c.center[1], t.mean + 1) AND close(c.center[16], t.mean + 16), 'have the sums they should')
	FROM millrace.cluster_centers('chunks') AS c, (SELECT var_pop(i) * 140000 AS cost, avg(i) AS mean FROM (SELECT greatest(s, 1000)::float8 AS i FROM generate_series(1, 140000) AS s) AS t) AS t;

-- Weights
SELECT is(reading('SELECT i % 10 AS a, i / 100.0 AS w FROM generate_series(1, 3000) AS i', 'w')::text, '(10,t)', 'weights of equal rows are added');
SELECT is(reading('SELECT i AS a, 2 + i % 2 AS w FROM generate_series(1, 100) AS i', 'w')::text, '(100,t)', 'weights of rows that are all different');
SELECT is(reading('SELECT i AS a, 1 AS w FROM generate_series(1, 100) AS i', 'w')::text, '(100,t)', 'weights that are all 1');
SELECT is(reading('SELECT i AS a, 1.5::real AS w FROM generate_series(1, 70000) AS i', 'w')::text, '(70000,t)', 'given up, with weights');
SELECT is(reading('SELECT w, c FROM (SELECT i % 3 AS w, i AS c FROM generate_series(1, 99) AS i) AS t', 'w')::text, '(66,t)', 'weight 0 is no point');
SELECT is(rows, 99::bigint, 'but a row') FROM millrace.models WHERE name = 'one' AND active;
SELECT is(parameters->'columns', '[{"name": "c", "type": "integer", "width": 1, "position": 2}]', 'the weight is no feature') FROM millrace.models WHERE name = 'one' AND active;
CREATE TEMP TABLE bad (what text, query text, error text);
INSERT INTO bad VALUES
	('a weight below 0', 'SELECT 1 AS a, -0.5 AS w', E'22023\nquery: the weight is below 0: -0.5\nRow 1 has a = 1, w = -0.5.'),
	('a weight that is NULL', 'SELECT 1 AS a, NULL::int AS w', E'22023\nquery: column "w" is NULL\nRow 1 has a = 1, w = NULL.'),
	('a weight that is NaN', 'SELECT 1 AS a, ''NaN''::real AS w', E'22003\nquery: column "w" is not a number\n%'),
	('an infinite weight', 'SELECT 1 AS a, ''Infinity''::real AS w', E'22003\nquery: column "w" is infinite\n%'),
	('a weight that is no number', 'SELECT 1 AS a, ARRAY[1] AS w', E'22023\nquery: the weight "w" is of type integer[], not a number'),
	('a weight that is true', 'SELECT 1 AS a, true AS w', E'22023\nquery: the weight "w" is of type boolean, not a number'),
	('no such column', 'SELECT 1 AS a', E'22023\nquery: there is no column "w", which is to be the weight'),
	('two of them', 'SELECT 1 AS w, 2 AS w', E'22023\nquery: more than one column is called "w", which is to be the weight'),
	('nothing but the weight', 'SELECT 1 AS w', E'22023\nquery: the query has no columns but the weight'),
	('all weights 0', 'SELECT 1 AS a, 0 AS w', E'22023\nquery: all weights are 0\n%'),
	('weights that are too large together', 'SELECT 1 AS a, 1e308 AS w FROM generate_series(1, 2)', E'22003\nquery: a sum of weights is out of range');
SELECT alike(error(format('SELECT millrace.train_kmeans(''bad'', %L, 1, weight => ''w'')', query)), error, what) FROM bad;

-- The order of rows does not matter when equal rows are merged
CREATE TABLE shop.t AS SELECT i, (i * 37 % 101) / 10.0 AS a, i * 11 % 13 AS b, ARRAY[i * 7 % 5, i % 2] AS c FROM generate_series(1, 30000) AS i;
CREATE FUNCTION learnt(query text) RETURNS text LANGUAGE sql AS $$ SELECT millrace.train_kmeans('order', query, 7); SELECT md5(string_agg((cluster, size, cost, center)::text, ',' ORDER BY cluster)) FROM millrace.cluster_centers('order') $$;
SELECT is(learnt('SELECT a, b, c FROM shop.t ORDER BY i DESC'), learnt('SELECT a, b, c FROM shop.t ORDER BY i'), 'the other way round');
SELECT is(learnt('SELECT a, b, c FROM shop.t ORDER BY i * 7919 % 30011'), learnt('SELECT a, b, c FROM shop.t ORDER BY i'), 'in disorder');
SELECT isnt(learnt('SELECT a, b, c FROM shop.t WHERE i > 1'), learnt('SELECT a, b, c FROM shop.t'), 'one row less is another model');

-- Memory is priced
SET LOCAL millrace.max_memory = '1MB';
SELECT matches(error('SELECT millrace.train_kmeans(''bad'', ''SELECT i, i, i FROM generate_series(1, 60000) AS i'', 2)'), E'^54000\nthis needs more memory than millrace.max_memory allows\n(Reading|Merging) more than \\d+ points( of 3 features)? needs \\d MB, the limit is 1 MB.$', 'rows beyond the limit');
SELECT is(points, 10, 'rows that are merged are not') FROM reading('SELECT i % 10 AS a FROM generate_series(1, 60000) AS i');
RESET millrace.max_memory;
SELECT is(count(*), 0::bigint, 'nothing is left in memory') FROM pg_backend_memory_contexts WHERE name LIKE 'millrace run%' OR name LIKE 'millrace features%';
SELECT ok(millrace.kmeans_cost('zero', $$ SELECT ARRAY[1, 2] $$) > 0, 'a query that runs as the caller');
SELECT is(current_setting('synchronize_seqscans'), 'on', 'nor of settings');

SELECT * FROM finish();
ROLLBACK;
