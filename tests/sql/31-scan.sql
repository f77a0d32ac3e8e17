-- Continuous aggregates that are computed in C from the rows of a batch: they equal their queries for all kinds of keys,
-- aggregates, values and memory
BEGIN;
SELECT plan(27);
SET LOCAL client_min_messages = warning;
SET LOCAL timezone = 'UTC';
\ir ../lib/streams.sql

DO $$BEGIN
	CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported THEN
	CREATE COLLATION no_case FROM "C"; -- a server without ICU
END$$;
CREATE TYPE mood AS ENUM ('sad', 'fine', 'happy');
CREATE DOMAIN percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE events (at timestamptz, b bool, c "char", i2 int2, i4 int4, gone text, i8 int8, f4 float4, f8 float8, n numeric, t text,
	ci text COLLATE no_case, v varchar(20), p char(5), y bytea, u uuid, d date, iv interval, m mood, pc percent, pr pair, ai int[],
	j jsonb, ip inet, nm name, ts timestamp);
ALTER TABLE events DROP COLUMN gone;

-- Every column is NULL in one of eight rows; some values are long, some equal without being the same bytes
CREATE FUNCTION rows(seed int, n int) RETURNS SETOF events LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setseed(seed / 1000.0);
	RETURN QUERY SELECT
		CASE WHEN random() > 0.01 THEN '2024-03-30'::timestamptz + random() * interval '2 days' END,
		CASE WHEN random() > 0.125 THEN random() > 0.5 END,
		CASE WHEN random() > 0.125 THEN chr(65 + (random() * 4)::int)::"char" END,
		CASE WHEN random() > 0.125 THEN (random() * 8 - 4)::int2 END,
		CASE WHEN random() > 0.125 THEN (random() * 8 - 4)::int4 END,
		CASE WHEN random() > 0.125 THEN (random() * 8 - 4)::int8 * 1000000000 END,
		CASE WHEN random() > 0.125 THEN (ARRAY[0, '-0', 'NaN', 1.5, 'inf'])[1 + (random() * 4)::int]::float4 END,
		CASE WHEN random() > 0.125 THEN (ARRAY[0, '-0', 0.25, 1.5, -7])[1 + (random() * 4)::int]::float8 END,
		CASE WHEN random() > 0.125 THEN (ARRAY['1', '1.0', '1.00', '-2.5', '1e40', 'NaN'])[1 + (random() * 5)::int]::numeric END,
		CASE WHEN random() > 0.125 THEN repeat((ARRAY['', 'a', 'ab', 'été', '12345678', '123456789'])[1 + (random() * 5)::int], (ARRAY[1, 1, 1, 30, 3000])[1 + (random() * 4)::int]) END,
		CASE WHEN random() > 0.125 THEN (ARRAY['x', 'X', 'yy', 'Yy', 'yY'])[1 + (random() * 4)::int] END,
		CASE WHEN random() > 0.125 THEN (ARRAY['v', 'vv'])[1 + (random())::int] END::varchar(20),
		CASE WHEN random() > 0.125 THEN (ARRAY['p', 'pp'])[1 + (random())::int] END::char(5),
		CASE WHEN random() > 0.125 THEN decode((ARRAY['00', '0000', ''])[1 + (random() * 2)::int], 'hex') END,
		CASE WHEN random() > 0.125 THEN md5((random() * 3)::int::text)::uuid END,
		CASE WHEN random() > 0.125 THEN '2024-01-01'::date + (random() * 3)::int END,
		CASE WHEN random() > 0.125 THEN (ARRAY['1 month', '30 days', '720 hours', '1 day'])[1 + (random() * 3)::int]::interval END,
		CASE WHEN random() > 0.125 THEN (enum_range(NULL::mood))[1 + (random() * 2)::int] END,
		CASE WHEN random() > 0.125 THEN (random() * 3)::int END::percent,
		CASE WHEN random() > 0.125 THEN ROW((random() * 2)::int, 'x')::pair END,
		CASE WHEN random() > 0.125 THEN ARRAY[(random() * 2)::int, NULL] END,
		CASE WHEN random() > 0.125 THEN jsonb_build_object('k', (random() * 3)::int::numeric(5, 1)) END,
		CASE WHEN random() > 0.125 THEN '10.0.0.0'::inet + (random() * 3)::int END,
		CASE WHEN random() > 0.125 THEN (ARRAY['n', 'nn'])[1 + (random())::int]::name END,
		CASE WHEN random() > 0.125 THEN '2024-03-30'::timestamp + (random() * 40)::int * interval '1 hour' END
	FROM generate_series(1, n);
END $$;

-- Aggregates of users: by value, by reference, without a first value, in SQL and PL/pgSQL (whose arrays are expanded objects), polymorphic
CREATE FUNCTION sql_add(numeric, numeric) RETURNS numeric IMMUTABLE STRICT LANGUAGE sql AS 'SELECT $1 + $2';
CREATE AGGREGATE sql_sum(numeric) (sfunc = sql_add, stype = numeric, combinefunc = sql_add, parallel = safe);
CREATE FUNCTION stat_add(s int8[], x int) RETURNS int8[] IMMUTABLE LANGUAGE plpgsql AS 'BEGIN s[1] := s[1] + 1; s[2] := s[2] + coalesce(x, 100); RETURN s; END';
CREATE FUNCTION stat_merge(s int8[], t int8[]) RETURNS int8[] IMMUTABLE LANGUAGE plpgsql AS 'BEGIN s[1] := s[1] + t[1]; s[2] := s[2] + t[2]; RETURN s; END';
CREATE AGGREGATE stat(int) (sfunc = stat_add, stype = int8[], combinefunc = stat_merge, initcond = '{0,0}', parallel = safe);
CREATE FUNCTION poly_larger(anyelement, anyelement) RETURNS anyelement IMMUTABLE STRICT LANGUAGE sql AS 'SELECT greatest($1, $2)';
CREATE AGGREGATE poly_max(anyelement) (sfunc = poly_larger, stype = anyelement, combinefunc = poly_larger, parallel = safe);
CREATE FUNCTION flip(text, text) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT CASE WHEN $2 IN ('a', 'reset') OR $1 = 'reset' THEN 'reset' WHEN length($2) > 8 THEN greatest($1, $2) ELSE $1 END$$;
CREATE AGGREGATE flips(text) (sfunc = flip, stype = text, combinefunc = flip, parallel = safe);

SELECT millrace.create_continuous_aggregate('aggregates', $$
	SELECT millrace.tumble(at, '1 hour'), i4, count(*), count(t) AS n_t, sum(i2) AS s2, sum(i4) AS s4, sum(i8) AS s8, sum(n) AS sn, sum(f8) AS sf8,
		avg(i4) AS a4, avg(i8) AS a8, avg(n) AS an, round(var_samp(i4), 6) AS v4, stddev_pop(i8) AS d8, round(variance(n), 6) AS vn, round(stddev(f8)::numeric, 6) AS df,
		min(t), max(t) AS max_t, min(ci) AS min_ci, min(n) AS min_n, max(f4) AS max_f4, max(at) AS last, min(ts) AS first, max(iv) AS max_iv, min(ip) AS min_ip,
		bool_and(b), bool_or(b) AS any_b, bit_or(i4) AS bits, bit_and(i8) AS bits8
	FROM events GROUP BY 1, 2$$);
SELECT millrace.create_continuous_aggregate('own_aggregates', $$
	SELECT millrace.tumble(at, '1 hour'), sql_sum(n), sql_sum(i8) AS s8, stat(i4), stat(NULL) AS stat_null, poly_max(t), poly_max(i8) AS p8, poly_max(iv) AS pi,
		flips(t), flips('a') AS always, count(*), round(corr(i4, i8)::numeric, 6) AS corr, round(regr_slope(f8, i4)::numeric, 6) AS slope, regr_count(i4, f8) AS pairs
	FROM events GROUP BY 1$$);
SELECT millrace.create_continuous_aggregate('filters', $$
	SELECT millrace.tumble(at, '1 hour'), i2 % 3 AS k, lower(t) AS lt, count(*) FILTER (WHERE b) AS n_b, sum(n) FILTER (WHERE i4 > 0 AND t IS NOT NULL) AS s,
		sum(i4 * 2 + 1) AS e, max(upper(t)) AS mu, count(CASE WHEN b THEN i8 / nullif(i4, 0) END) AS c, sum(1) AS ones, avg(length(t || v)) AS al, max(j ->> 'k') AS jk
	FROM events WHERE (i8 IS NULL OR i8 <> 0) AND coalesce(pc, 0) < 3 GROUP BY 1, 2, 3$$);
SELECT millrace.create_continuous_aggregate('fixed_keys', $$SELECT millrace.tumble(at, '1 day'), b, c, i2, count(*), sum(i4) FROM events GROUP BY 1, 2, 3, 4$$);
SELECT millrace.create_continuous_aggregate('int_keys', $$SELECT millrace.tumble(at, '1 day'), i4, i8, d, count(*), sum(i4) FROM events GROUP BY 1, 2, 3, 4$$);
SELECT millrace.create_continuous_aggregate('float_keys', $$SELECT millrace.tumble(at, '1 day'), f4, f8, count(*) FROM events GROUP BY 1, 2, 3$$);
SELECT millrace.create_continuous_aggregate('numeric_keys', $$SELECT millrace.tumble(at, '1 day'), n, iv, count(*) FROM events GROUP BY 1, 2, 3$$);
SELECT millrace.create_continuous_aggregate('text_keys', $$SELECT millrace.tumble(at, '1 day'), t, v, p, count(*) FROM events GROUP BY 1, 2, 3, 4$$);
SELECT millrace.create_continuous_aggregate('no_case_keys', $$SELECT millrace.tumble(at, '1 day'), ci, count(*), min(t) FROM events GROUP BY 1, 2$$);
SELECT millrace.create_continuous_aggregate('other_keys', $$SELECT millrace.tumble(at, '1 day'), y, u, m, pc, count(*) FROM events GROUP BY 1, 2, 3, 4, 5$$);
SELECT millrace.create_continuous_aggregate('odd_keys', $$SELECT millrace.tumble(at, '1 day'), pr, ai, j, ip, nm, count(*) FROM events GROUP BY 1, 2, 3, 4, 5, 6$$);
SELECT millrace.create_continuous_aggregate('by_clock', $$SELECT millrace.tumble(ts AT TIME ZONE 'Europe/Paris', '30 minutes', timezone => 'Europe/Paris') AS w, count(*), max(i4) FROM events GROUP BY 1$$);
SELECT millrace.create_continuous_aggregate('by_month', $$SELECT millrace.tumble(at, '1 month', timezone => 'Asia/Tokyo') AS w, count(*) FROM events GROUP BY 1$$);

CREATE FUNCTION all_differences() RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(name || ': ' || n, ', ' ORDER BY name), 'none')
	FROM (SELECT name, differences(name) AS n FROM millrace.streams OFFSET 0) s WHERE n > 0
$$;

INSERT INTO events SELECT * FROM rows(1, 3000);
SELECT is(differences(name), 0::bigint, format('a batch of all kinds of values: %s', name)) FROM millrace.streams ORDER BY name;
INSERT INTO events SELECT * FROM rows(2, 1);
SELECT is(all_differences(), 'none', 'a row');
INSERT INTO events SELECT * FROM rows(3, 500);
SELECT is(all_differences(), 'none', 'more');
INSERT INTO events (at) VALUES ('2024-03-30'), (NULL), ('infinity'), ('-infinity'), ('2024-03-30');
SELECT is(all_differences(), 'none', 'NULLs in all columns, infinite times');
SELECT is(count(*), 3::bigint, 'rows without a time, and infinite ones, have windows of their own') FROM own_aggregates WHERE tumble IS NULL OR NOT isfinite(tumble);

-- Values that are stored out of line or compressed in another table come as references to it
CREATE TABLE stored (LIKE events);
ALTER TABLE stored ALTER t SET STORAGE EXTERNAL;
INSERT INTO stored SELECT * FROM rows(4, 300);
INSERT INTO stored (at, t) SELECT '2024-03-30', repeat(md5(i::text), 400) FROM generate_series(1, 20) i, generate_series(1, 2);
ALTER TABLE stored ALTER t SET STORAGE EXTENDED;
INSERT INTO stored (at, t) SELECT '2024-03-30', repeat(md5(i::text), 400) FROM generate_series(1, 20) i, generate_series(1, 2);
INSERT INTO events SELECT * FROM stored;
SELECT is(all_differences(), 'none', 'values stored out of line and compressed');
SELECT is(count(*), 20::bigint, 'long keys are compared by value') FROM text_keys WHERE length(t) = 12800 AND count = 4;

-- Too many groups for the memory: they are written in portions, and rows are read from a file
SET LOCAL work_mem = '64kB';
CREATE TABLE many (at timestamptz, k text, k2 int, x numeric);
SELECT millrace.create_continuous_aggregate('many_groups', $$SELECT millrace.tumble(at, '1 minute'), k, k2, count(*), sum(x), min(k) FROM many GROUP BY 1, 2, 3$$);
INSERT INTO many SELECT '2024-01-01'::timestamptz + i % 500 * interval '7 minutes', CASE WHEN i % 11 > 0 THEN 'k' || i % 13 END, i % 3, i / 8.0 FROM generate_series(1, 20000) i;
SELECT is(differences('many_groups'), 0::bigint, 'memory for a part of the groups');
INSERT INTO events SELECT * FROM rows(5, 3000);
SELECT is(all_differences(), 'none', 'and for a part of the others');
RESET work_mem;
INSERT INTO many SELECT '2024-01-01'::timestamptz + i % 5000 * interval '7 minutes', 'k' || i % 13, i % 3, i / 8.0 FROM generate_series(1, 50000) i;
SELECT is(differences('many_groups'), 0::bigint, 'many groups in memory');

-- Rights are those of the stream's owner when the batch runs, and an error in the middle leaves nothing behind
CREATE FUNCTION fails(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN IF n = 77 THEN RAISE ''unlucky''; END IF; RETURN n; END';
SELECT millrace.create_continuous_aggregate('failing', $$SELECT millrace.tumble(at, '1 minute'), k, max(fails(k2)) FROM many GROUP BY 1, 2$$);
SELECT throws_ok($$INSERT INTO many SELECT '2024-01-01', 'k', i FROM generate_series(1, 100) i$$, 'P0001', 'unlucky', 'an error in an expression');
INSERT INTO many SELECT '2024-01-01', 'k', i FROM generate_series(1, 70) i;
SELECT is(differences('failing'), 0::bigint, 'the next batch is whole');
CREATE ROLE mr_scanner;
GRANT CREATE ON SCHEMA public TO mr_scanner;
GRANT USAGE ON SCHEMA millrace TO mr_scanner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_scanner;
ALTER TABLE many OWNER TO mr_scanner;
SELECT millrace.drop_continuous_aggregate('failing');
SELECT millrace.drop_continuous_aggregate('many_groups');
SET LOCAL ROLE mr_scanner;
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('by_role', $$SELECT millrace.tumble(at, '1 minute'), sql_sum(x) FROM many GROUP BY 1$$)$q$, 'a role that may use an aggregate');
INSERT INTO many VALUES ('2024-01-01', 'k', 1, 1);
SELECT is(differences('by_role'), 0::bigint, 'can keep it');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION sql_sum(numeric) FROM PUBLIC;
SELECT throws_ok($$INSERT INTO many VALUES ('2024-01-01', 'k', 1, 1)$$, '42501', NULL, 'and not when it may no longer');
SELECT * FROM finish();
ROLLBACK;
