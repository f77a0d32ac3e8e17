BEGIN;
SELECT no_plan();
SET LOCAL client_min_messages = warning;

\ir ../lib/complaint.sql
CREATE FUNCTION training(ratings text, options text DEFAULT '') RETURNS text LANGUAGE sql AS
	$$ SELECT format('SELECT millrace.train_als(''x'', %L, rank => 2, iterations => 1%s)', ratings, options) $$;
-- Nothing of a training is left, and no memory either.
CREATE FUNCTION leavings() RETURNS bigint LANGUAGE sql AS
	$$ SELECT (SELECT count(*) FROM millrace.model WHERE name = 'x') + (SELECT count(*) FROM millrace.model_version WHERE model = 'x')
		+ (SELECT count(*) FROM millrace.factors WHERE model = 'x') + (SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'millrace run') $$;
-- The factors of a training
CREATE FUNCTION factors(ratings text, options text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE md5 text;
BEGIN
	EXECUTE training(ratings, options);
	SELECT md5(string_agg(f::text, ',')) INTO md5 FROM (SELECT factor FROM millrace.user_factors('x') UNION ALL SELECT factor FROM millrace.item_factors('x')) AS f;
	PERFORM millrace.drop_model('x');
	RETURN md5;
END $$;
-- Users, items and ratings that a training counts
CREATE FUNCTION counts(ratings text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
	EXECUTE replace(training(ratings), 'SELECT millrace.train_als', 'SELECT users || '' '' || items || '' '' || ratings FROM millrace.train_als') INTO result;
	PERFORM millrace.drop_model('x');
	RETURN result;
END $$;

-- What cannot be
CREATE TABLE empty (u int, i int, v float8);
SELECT is(complaint(training('empty')), E'22023\nratings: there are no rows\nThe query is: TABLE public.empty\nCheck its conditions, and whether its tables have been filled.', 'an empty table');
SELECT is(complaint(training('SELECT 1, 2 WHERE false')), E'22023\nratings: there are no rows\nThe query is: SELECT 1, 2 WHERE false\nCheck its conditions, and whether its tables have been filled.', 'an empty query');
SELECT is(complaint(training('SELECT 7, NULL::int, 1.5')), E'22023\nratings: the item is NULL\nThe user is "7".\nLeave such rows out with WHERE … IS NOT NULL.', 'NULL item');
SELECT is(complaint(training('SELECT NULL::text, ''soap'', 1.5')), E'22023\nratings: the user is NULL\nThe item is "soap".\nLeave such rows out with WHERE … IS NOT NULL.', 'NULL user');
SELECT is(complaint(training('SELECT NULL::int, NULL::int, NULL::float8')), E'22023\nratings: the user is NULL\nThe item is "NULL".\nLeave such rows out with WHERE … IS NOT NULL.', 'all NULL');
SELECT is(complaint(training('SELECT 7, ''soap''::text, NULL::numeric')), E'22023\nratings: the value is NULL\nIt belongs to user "7" and item "soap".\nLeave such rows out with WHERE … IS NOT NULL.', 'NULL value');
SELECT is(complaint(training('SELECT i, i, CASE WHEN i <> 5000 THEN 1 END FROM generate_series(1, 9999) AS i')), E'22023\nratings: the value is NULL\nIt belongs to user "5000" and item "5000".\nLeave such rows out with WHERE … IS NOT NULL.', 'a NULL far on');
SELECT is(complaint(training(format('SELECT 7, 8, %s', value))), format(E'22003\nratings: %s\nIt belongs to user "7" and item "8".\n%s', message, hint), value)
	FROM (VALUES ('float8 ''NaN''', 'a value that is not a number: NaN', 'Leave such rows out.'), ('float4 ''NaN''', 'a value that is not a number: NaN', 'Leave such rows out.'),
		('numeric ''NaN''', 'a value that is not a number: NaN', 'Leave such rows out.'), ('numeric ''-infinity''', 'an infinite value: -Infinity', 'Leave such rows out.'),
		('float8 ''infinity''', 'an infinite value: Infinity', 'Leave such rows out.'), ('float4 ''-infinity''', 'an infinite value: -Infinity', 'Leave such rows out.'),
		('float8 ''1e39''', 'a value out of range: 1e+39', 'Scale the values down.'), ('float8 ''-1e39''', 'a value out of range: -1e+39', 'Scale the values down.'),
		('numeric ''1e39''', 'a value out of range: 1e+39', 'Scale the values down.'),
		('numeric ''1e400''', 'a value out of range: 1' || repeat('0', 99) || '…', 'Scale the values down.')) AS cases (value, message, hint);
SELECT is(complaint(training('VALUES (7, 8, 1), (7, 9, -0.25)')), E'22023\nratings: a negative value, which implicit feedback cannot have: -0.25\nIt belongs to user "7" and item "9".\nLeave such rows out, or train with implicit => false.', 'negative in implicit');
SELECT is(complaint(training('VALUES (7, 8, 1), (7, 9, -0.25)', ', implicit => false')), 'no error', 'not in explicit');
SELECT millrace.drop_model('x');
SELECT is(complaint(training('VALUES (7, 9, 3), (7, 9, -4)', ', implicit => false, value_transform => ''log1p''')), E'22023\nratings: a negative value, of which value_transform log1p takes no logarithm: -1\nIt belongs to user "7" and item "9".\nLeave such rows out, or train with value_transform => ''none''.', 'negative with log1p');
SELECT is(complaint(training('VALUES (7, 9, 3)', ', value_transform => ''log2''')), E'22023\nvalue_transform must be none, log1p or binary, not "log2"', 'no such transform');
SELECT is(complaint(training('SELECT 7, 8, 3e38 FROM generate_series(1, 2)')), E'22003\nratings: a sum of values is out of range\nIt belongs to user "7" and item "8".\nScale the values down.', 'a sum out of range');
SELECT is(complaint(training('SELECT 7, 8, v FROM (VALUES (3e38), (3e38), (-3e38)) AS t (v)', ', implicit => false, regularization => 1, tolerance => 0')) LIKE E'22003\nratings: %', false, 'a sum that comes back into range');
SELECT is(complaint(training('SELECT i, i, 1 / (5000 - i) FROM generate_series(1, 9999) AS i')), E'22012\ndivision by zero', 'an error in mid-stream');

-- Columns
SELECT is(complaint(training('SELECT FROM empty')), E'22023\nratings: expected two or three columns, found 0\nThe columns are: .\nThe first columns must be user and item (bigint, integer, smallint or text) and, if there is one, value (a number). Cast them in a query.', 'no columns');
SELECT is(complaint(training('SELECT u FROM empty')), E'22023\nratings: expected two or three columns, found 1\nThe columns are: u integer.\nThe first columns must be user and item (bigint, integer, smallint or text) and, if there is one, value (a number). Cast them in a query.', 'one column');
SELECT is(complaint(training(format('SELECT %s AS a, 1 AS b', id))), format(E'22023\nratings: the first column, user, is neither an integer nor text\nThe columns are: a %s, b integer.\nThe first columns must be user and item (bigint, integer, smallint or text) and, if there is one, value (a number). Cast them in a query.', type), type)
	FROM (VALUES ('1.0', 'numeric'), ('100000000000000000000', 'numeric'), ('1e0::float8', 'double precision'), ('true', 'boolean'), ('current_date', 'date'), ('gen_random_uuid()', 'uuid'), ('''a''::bytea', 'bytea'), ('''{1}''::int[]', 'integer[]'), ('ROW(1, 2)', 'record')) AS ids (id, type);
SELECT is(split_part(complaint(training(format('SELECT 1, 2, %s', value))), E'\n', 2), 'ratings: the third column, value, is not a number', value)
	FROM (VALUES ('''5''::text'), ('true'), ('now()'), ('''5''::jsonb'), ('''5''::money'), ('''{5}''::float8[]')) AS cases (value);
SELECT is(complaint(training('SELECT 9223372036854775807 + i, 1 FROM generate_series(0, 1) AS i')), E'22003\nbigint out of range', 'ids that overflow');
SELECT is(complaint(training('SELECT 1; SELECT 2')), E'22023\nratings must be a single query that returns rows\nGive a name, or one SELECT, VALUES or TABLE.', 'two queries');

-- Relations
CREATE TABLE gone AS SELECT 1 AS u, 2 AS i;
DROP TABLE gone;
SELECT is(complaint(training('gone')), E'42P01\nrelation "gone" does not exist\nGive the name of a table or view, or a query whose first columns are user, item and, if there is one, value.', 'a dropped table');
CREATE TABLE hidden AS SELECT 1 AS u, 2 AS i;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_reader;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_reader;
SET LOCAL ROLE mr_reader;
SELECT is(complaint(training('hidden')), E'42501\npermission denied for table hidden', 'a table without SELECT');
SELECT is(complaint(training('SELECT u, i FROM hidden')), E'42501\npermission denied for table hidden', 'in a query');
RESET ROLE;
GRANT SELECT (u, i) ON hidden TO mr_reader;
SET LOCAL ROLE mr_reader;
SELECT is(complaint(training('SELECT u, i FROM hidden')), 'no error', 'with SELECT on its columns');
RESET ROLE;
SELECT millrace.drop_model('x');
SELECT is(leavings(), 0::bigint, 'nothing of all that is left');

-- What is small
SELECT is(counts('VALUES (1, 1, 1)'), '1 1 1', 'one row');
SELECT is(counts('SELECT n % 5, (n * 7919) % 5003 FROM generate_series(1, 100000) AS n'), '5 5003 25015', 'pairs that come back much later');
SELECT is(counts('SELECT 1, i FROM generate_series(1, 700) AS i'), '1 700 700', 'one user');
SELECT is(counts('SELECT u, 1 FROM generate_series(1, 700) AS u'), '700 1 700', 'one item');
SELECT is(counts('SELECT 1, 1, 1 FROM generate_series(1, 70000) AS u'), '1 1 1', 'one pair, often');
SELECT is(counts('SELECT u, i, 5 FROM generate_series(1, 30) AS u, generate_series(1, 20) AS i'), '30 20 600', 'all values equal');
SELECT is(counts('SELECT u, i, 0 FROM generate_series(1, 30) AS u, generate_series(1, 20) AS i'), '30 20 600', 'all values zero');

-- Whatever the types, the same
CREATE TABLE triples AS SELECT (n * 7919) % 997 AS u, (n * n) % 499 AS i, 1 + n % 4 AS v FROM generate_series(1, 20000) AS n;
CREATE VIEW seen AS SELECT u, i, v FROM triples;
CREATE DOMAIN id AS int CHECK (VALUE >= 0);
CREATE DOMAIN better_id AS id;
CREATE DOMAIN amount AS numeric(9, 3);
CREATE DOMAIN label AS varchar(40);
CREATE TEMP TABLE want AS SELECT factors('triples') AS md5;
SELECT is(factors(ratings), md5, ratings) FROM want, (VALUES ('seen'), ('SELECT u::int2, i::int2, v::int2 FROM triples'), ('SELECT u::int8, i::int8, v::int8 FROM triples'), ('SELECT u, i, v::float4 FROM triples'),
	('SELECT u, i, v::float8 FROM triples'), ('SELECT u, i, v::numeric FROM triples'), ('SELECT u, i, v * 1.000 FROM triples'), ('SELECT u::better_id, i::id, v::amount FROM triples'), ('SELECT u, i, v, repeat(''x'', 100) FROM triples'),
	('SELECT * FROM triples ORDER BY random()'), ('SELECT * FROM triples ORDER BY u, i'), ('SELECT * FROM triples ORDER BY i DESC, u'),
	('SELECT u, i, sum(v) FROM triples GROUP BY 1, 2'), ('SELECT u, i, v / 2.0::float4 FROM triples CROSS JOIN generate_series(1, 2)'), ('SELECT u, i, n FROM triples CROSS JOIN LATERAL (SELECT 1 AS n FROM generate_series(1, v)) AS s')) AS forms (ratings);
SELECT is(factors(format('SELECT lpad(u::text, 6, ''0'')::%s, i, v FROM triples', type)), md5, type || ' ids in the same order') FROM want, (VALUES ('text'), ('varchar'), ('label')) AS types (type);
SELECT is(factors('SELECT lpad(u::text, 3, ''0''), repeat(''ü'', 20) || lpad(i::text, 3, ''0''), v FROM triples'), md5, 'text ids that begin alike') FROM want;
SELECT is(factors('SELECT repeat(lpad(u::text, 3, ''0''), 1000), i, v FROM triples'), md5, 'long ids') FROM want;
SELECT is(factors('SELECT u, i, -v::float4 FROM triples', ', implicit => false'), factors('SELECT u, i, -v::numeric FROM triples', ', implicit => false'), 'negative values of two types');
SELECT is(factors('SELECT u, i, v / 8.0::float8 FROM triples'), factors('SELECT u, i, (v / 8.0)::numeric(20, 10) FROM triples'), 'fractions of two types');
CREATE TABLE wide AS SELECT 0 AS before, repeat('x', 10) AS more, u, i, v FROM triples;
ALTER TABLE wide DROP COLUMN before, DROP COLUMN more;
ALTER TABLE wide ADD COLUMN behind int DEFAULT 5;
SELECT is(factors('wide'), md5, 'a table with dropped and added columns') FROM want;
CREATE TABLE parts (u int, i int, v int) PARTITION BY HASH (u);
CREATE TABLE part0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part1 (v int, gone int, i int, u int);
ALTER TABLE part1 DROP COLUMN gone;
ALTER TABLE parts ATTACH PARTITION part1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parts SELECT * FROM triples;
SELECT is(factors('parts'), md5, 'a partitioned table, one part with other columns') FROM want;

CREATE TABLE more AS SELECT (i * 7919::bigint) % 30011 AS u, (i * 104729::bigint) % 9973 AS i FROM generate_series(1, 700000) AS i;
SELECT is(factors('more'), factors('SELECT u, i, count(*) FROM more GROUP BY u, i ORDER BY i, u'), 'more than one thread arranges');
SELECT is(factors('SELECT i % 3, u FROM more'), factors('SELECT i % 3, u, count(*) FROM more GROUP BY 1, 2 ORDER BY 1, 2'), 'of three users, too');

-- Transforms
SELECT is(factors('triples', ', value_transform => ''binary'''), factors('SELECT DISTINCT u, i, 1 FROM triples'), 'binary');
SELECT is(factors('SELECT u, i, CASE WHEN v > 1 THEN v - 2 ELSE 0 END FROM triples', ', value_transform => ''binary'''),
	factors('SELECT u, i, CASE WHEN sum(v - 2) FILTER (WHERE v > 2) > 0 THEN 1 ELSE 0 END FROM triples GROUP BY 1, 2'), 'binary of zeros');
SELECT ok(abs(a.loss / b.loss - 1) < 1e-5, 'log1p') FROM
	millrace.train_als('log a', 'SELECT u, i, v FROM triples', value_transform => 'log1p', rank => 4, iterations => 3) AS a,
	millrace.train_als('log b', 'SELECT u, i, ln(1 + sum(v)) FROM triples GROUP BY 1, 2', rank => 4, iterations => 3) AS b;

-- Ids
SELECT is(counts('VALUES ('''', ''a''), (''a'', ''''), ('''', ''''), (''b'', ''ab''), (''a b'', E''\n''), (''a'', '''')'), '4 4 5', 'empty and odd texts');
SELECT millrace.train_als('texts', 'VALUES (''ü'', ''日本''), ('''', ''日本語''), (''üb'', ''日''), (''u'', ''''), (''z'', ''a'')', rank => 2, iterations => 1);
SELECT is(ARRAY(SELECT id FROM millrace.user_factors('texts')), ARRAY(SELECT u FROM unnest('{ü,"",üb,u,z}'::text[]) AS u ORDER BY u COLLATE "C"), 'texts of several bytes a character');
SELECT is(ARRAY(SELECT id FROM millrace.item_factors('texts')), ARRAY(SELECT i FROM unnest('{日本,日本語,日,"",a}'::text[]) AS i ORDER BY i COLLATE "C"), 'in bytewise order');
SELECT is(counts(format('SELECT %s, 1 + i %% 9 FROM generate_series(1, 60000) AS i', id)), '60000 9 60000', id) FROM (VALUES ('i'), ('-i'), ('i * 1000003::bigint'), ('i::bigint << 47'), ('30000 - i'), ('9223372036854775807 - i'),
	('i::text'), ('md5(i::text)'), ('repeat(''x'', 50) || i'), ('1000000 + i'), ('60001 - i'), ('CASE WHEN i % 2 = 0 THEN i ELSE i * 1000000007::bigint END')) AS ids (id);
CREATE FUNCTION ids(ratings text) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE training(ratings);
	RETURN ARRAY(SELECT id FROM millrace.user_factors('x'));
END $$;
SELECT is(ids(format('SELECT u, 1 FROM (%s) AS s (u)', q)), ARRAY(SELECT DISTINCT u FROM unnest(expected) AS u ORDER BY u)::text[], q) FROM (VALUES
	('SELECT i FROM generate_series(50000, 1, -1) AS i', ARRAY(SELECT generate_series(1, 50000)::bigint)), ('SELECT (i * 7919::bigint) % 50021 FROM generate_series(1, 50020) AS i', ARRAY(SELECT generate_series(1, 50020)::bigint)),
	('SELECT CASE WHEN i % 3 = 0 THEN -i ELSE i * 5 END FROM generate_series(1, 30000) AS i', ARRAY(SELECT CASE WHEN i % 3 = 0 THEN -i ELSE i * 5 END FROM generate_series(1, 30000::bigint) AS i))) AS cases (q, expected);
SELECT millrace.drop_model('x');
SELECT is(complaint(training(format('SELECT repeat(''x'', %s), 1', n))), CASE WHEN n > 65536 THEN format(E'54000\nratings: the id of a user has %s bytes, more than 65536\nIt begins: %s…\nUse a shorter id, or md5() of this one.', n, repeat('x', 100)) ELSE 'no error' END, 'an id of ' || n || ' bytes')
	FROM (VALUES (65536), (65537)) AS sizes (n);
SELECT is(counts('SELECT repeat(md5(i::text), 2048), 1 FROM generate_series(1, 100) AS i'), '100 1 100', 'a hundred of 64 kB');
CREATE TABLE long_ids AS SELECT i, repeat(chr(64 + i), 60000) AS squeezed, (SELECT string_agg(md5((i * 10000 + j)::text), '') FROM generate_series(1, 1000) AS j) AS apart FROM generate_series(1, 20) AS i;
INSERT INTO long_ids VALUES (21, repeat('Ü', 40000), '');
SELECT is(counts('SELECT apart, squeezed FROM long_ids WHERE i <= 20'), '20 20 20', 'ids that are compressed or stored apart');
SELECT is(ids('SELECT apart, 1 FROM long_ids WHERE i <= 20') || ids('SELECT squeezed, 1 FROM long_ids WHERE i <= 20'),
	ARRAY(SELECT apart FROM long_ids WHERE i <= 20 ORDER BY apart COLLATE "C") || ARRAY(SELECT squeezed FROM long_ids WHERE i <= 20 ORDER BY squeezed COLLATE "C"), 'come back whole');
SELECT millrace.drop_model('x');
SELECT is(complaint(training('SELECT i, squeezed FROM long_ids')), format(E'54000\nratings: the id of an item has 80000 bytes, more than 65536\nIt begins: %s…\nUse a shorter id, or md5() of this one.', repeat('Ü', 50)), 'one that is compressed and too long');

-- Memory: refused at once, with what would do
CREATE FUNCTION needs(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE message text := complaint(command); enough text := substring(message FROM 'Set millrace.max_memory to ''(\d+MB)'' or more'); n int := 1;
BEGIN
	IF message NOT LIKE E'54000\nthis needs more memory than millrace.max_memory allows\n%' OR enough IS NULL THEN RETURN message; END IF;
	WHILE enough IS NOT NULL AND n < 100 LOOP
		PERFORM set_config('millrace.max_memory', enough, true);
		enough := substring(complaint(command) FROM 'Set millrace.max_memory to ''(\d+MB)'' or more');
		n := n + 1;
	END LOOP;
	RETURN substring(message FROM E'allows\n(.*)\n') || '; ' || n || ' tries';
END $$;
CREATE TABLE many AS SELECT i % 3000 AS u, (i * 7919::bigint) % 2003 AS i FROM generate_series(1, 200000) AS i;
SET LOCAL millrace.max_memory = '1MB';
SELECT matches(needs(training('many')), '^Reading more than \d+ rows with \d+ users and \d+ items needs 2 MB, the limit is 1 MB\.; \d+ tries$', 'while reading');
SET LOCAL millrace.max_memory = '3MB';
SELECT matches(needs(training('many')), '^Arranging 200000 rows with 3000 users and 2003 items needs \d+ MB, the limit is 3 MB\.; 2 tries$', 'after reading');
SET LOCAL millrace.max_memory = '6MB';
SELECT matches(needs(format('SELECT millrace.train_als(''x'', ''many'', rank => 256, iterations => 1)')), '^A model of rank 256 of 200000 ratings with 3000 users and 2003 items needs \d+ MB, the limit is 6 MB\.; 2 tries$', 'before training');
RESET millrace.max_memory;
SELECT millrace.drop_model('x');
SELECT is(leavings(), 0::bigint, 'nothing is left');

-- Cancelled wherever it is
CREATE FUNCTION cancelled(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'not cancelled';
EXCEPTION WHEN query_canceled THEN
	RETURN 'cancelled';
END $$;
SELECT is(cancelled(training('SELECT i, CASE WHEN i = 5000 AND pg_cancel_backend(pg_backend_pid()) THEN 0 ELSE i END FROM generate_series(1, 100000) AS i')), 'cancelled', 'while reading');
SELECT is(leavings(), 0::bigint, 'leaves nothing');
CREATE TEMP TABLE ends (how text);
SELECT command FROM generate_series(0, 15) AS n, LATERAL (VALUES (1, format('SET LOCAL statement_timeout = %L', (3 * 1.4 ^ n)::int || 'ms')),
	(2, format('INSERT INTO ends SELECT cancelled(%L)', training('more'))), (3, 'RESET statement_timeout'),
	(4, 'SELECT millrace.drop_model(name) FROM millrace.model WHERE name = ''x'''),
	(5, format('SELECT is(leavings(), 0::bigint, ''cancelled after %s ms or done'')', (3 * 1.4 ^ n)::int))) AS commands (step, command) ORDER BY n, step
\gexec
SELECT ok(count(*) > 3, count(*) || ' were cancelled') FROM ends WHERE how = 'cancelled';
SELECT is(counts('triples'), (SELECT count(DISTINCT u) || ' ' || count(DISTINCT i) || ' ' || count(DISTINCT (u, i)) FROM triples), 'the session goes on');

SELECT * FROM finish();
ROLLBACK;
