-- What must not be possible, and what must not disturb others.
BEGIN;
SELECT plan(60);
SET LOCAL client_min_messages = error;
\ir ../lib/streams.sql
CREATE ROLE owner_a;
CREATE ROLE writer;
GRANT CREATE ON SCHEMA public TO owner_a, writer;
GRANT USAGE ON SCHEMA millrace TO owner_a, writer;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO owner_a;

-- merge_state takes only the types of its aggregate
SELECT throws_ok($$SELECT millrace.merge_state('count()'::regprocedure, NULL::text, 5::bigint)$$, '42804', NULL, 'result of another type');
SELECT throws_ok($$SELECT millrace.merge_state('max(anyarray)'::regprocedure, NULL::int[], 5::bigint)$$, '42804', NULL, 'state that is no array');
SELECT throws_ok($$SELECT millrace.merge_state('max(anyarray)'::regprocedure, NULL::int[], '{a}'::text[])$$, '42804', NULL, 'array of another type');
SELECT throws_ok($$SELECT millrace.merge_state('max(text)'::regprocedure, NULL::bigint, 'abc'::text)$$, '42804', NULL, 'pointer as a number');
SELECT throws_ok($$SELECT millrace.merge_state('sum(bigint)'::regprocedure, NULL::numeric, 5::bigint)$$, '42804', NULL, 'number as a serialised state');
SELECT throws_ok($$SELECT millrace.merge_state('array_agg(anynonarray)'::regprocedure, NULL::int[], '\x00'::bytea)$$, '42804', NULL, 'aggregate that is refused');
SELECT throws_ok($$SELECT millrace.merge_state(0::regprocedure, NULL::int, 5)$$, '42883', NULL, 'no aggregate');
SELECT throws_ok($$SELECT millrace.merge_state(NULL, NULL::int, 5)$$, '22004', NULL, 'NULL aggregate');
SELECT throws_ok($$SELECT millrace.merge_state('sum(bigint)'::regprocedure, NULL::numeric, '\x01'::bytea)$$, '22P03', 'malformed state of aggregate sum(bigint)', 'malformed state');
SELECT is(millrace.merge_state('max(anyarray)'::regprocedure, NULL::int[], s), '{3}', 'arrays') FROM (VALUES ('{1}'::int[]), ('{3}')) v(s);

-- Initial values, NULL states, enums
CREATE FUNCTION addup(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 + $2';
CREATE AGGREGATE mysum(bigint) (SFUNC = addup, STYPE = bigint, COMBINEFUNC = addup, INITCOND = '0', PARALLEL = SAFE);
CREATE FUNCTION land(bool, bool) RETURNS bool LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT coalesce($1, true) AND $2';
CREATE AGGREGATE all_known(bool) (SFUNC = land, STYPE = bool, COMBINEFUNC = land, INITCOND = 'true', PARALLEL = SAFE);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE odd (at timestamptz, n bigint, b bool, m mood, a int[]);
SELECT millrace.create_continuous_aggregate('odd_day', 'SELECT millrace.tumble(at, ''1 day'') AS w, mysum(n), all_known(b), min(m) AS least, max(m), max(a) AS arr, avg(n) AS mean FROM odd GROUP BY 1');
INSERT INTO odd VALUES ('2024-01-01', 5, true, 'ok', '{1}'), ('2024-01-02', 1, NULL, NULL, NULL);
INSERT INTO odd VALUES ('2024-01-01', 7, NULL, 'sad', '{2,1}'), ('2024-01-02', 1, true, 'happy', NULL);
SELECT is(differences('odd_day'), 0::bigint, 'initial values, NULL states and polymorphic aggregates');

-- Queries that a batch could not answer
CREATE TABLE ev (at timestamptz NOT NULL, v int) PARTITION BY RANGE (at);
SELECT millrace.create_source('ev', 'at');
SELECT millrace.ensure_partitions('ev', '2024-01-01', '2024-01-02');
CREATE VIEW reads_ev AS SELECT * FROM ev;
SELECT matches(refused('SELECT millrace.tumble(e.at, ''1 day''), count(*) FROM ev e JOIN reads_ev r ON r.v = e.v GROUP BY 1'), 'source more than once', 'self-join through a view');
SELECT matches(refused('SELECT millrace.tumble(e.at, ''1 day''), count(*) FROM ev e JOIN ev_20240101 r ON r.v = e.v GROUP BY 1'), 'source more than once', 'self-join with a partition');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM ONLY ev GROUP BY 1'), 'ONLY', 'ONLY');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FILTER (WHERE at > now()) FROM ev GROUP BY 1'), 'now\(\)', 'now()');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM ev WHERE at > current_date GROUP BY 1'), 'current_date', 'current_date');

-- What can be a source
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM ev_20240101 GROUP BY 1'), '"ev_20240101" is a partition and cannot be a source', 'a partition');
CREATE TABLE par (at timestamptz);
CREATE TABLE chi () INHERITS (par);
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM par GROUP BY 1'), '"par" inherits or is inherited from', 'a parent by inheritance');
CREATE TEMP TABLE tmp (at timestamptz);
SELECT throws_ok($$SELECT millrace.create_source('tmp', 'at')$$, '42809', '"tmp" is a temporary table and cannot be a source', 'a temporary table');
SELECT throws_ok($$CREATE TABLE chi2 () INHERITS (odd)$$, '42809', NULL, 'a source cannot be inherited from later');
CREATE TABLE whole (LIKE odd) PARTITION BY RANGE (at);
SELECT throws_ok($$ALTER TABLE whole ATTACH PARTITION odd DEFAULT$$, '42809', '"odd" is a source and cannot become a partition', 'or become a partition');
CREATE SCHEMA sc CREATE TABLE p5 PARTITION OF public.ev FOR VALUES FROM ('2024-05-01') TO ('2024-06-01');
SELECT has_trigger('sc', 'p5', 'millrace_on_insert', 'a partition made by CREATE SCHEMA has the trigger');

-- Pipes: targets
CREATE TABLE ref (id int PRIMARY KEY);
CREATE TABLE deferred (id int REFERENCES ref DEFERRABLE INITIALLY DEFERRED);
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'ev', 'INSERT INTO deferred SELECT v FROM new_rows')$$, '0A000', NULL, 'deferred constraints are refused at creation');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'ev', 'INSERT INTO tmp SELECT at FROM new_rows')$$, '22023', 'temporary relation "tmp" cannot be used', 'so are temporary tables');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'ev', 'WITH i AS (INSERT INTO ref VALUES (1) RETURNING id) INSERT INTO par SELECT at FROM new_rows')$$, '22023', NULL, 'and WITH that writes');

-- Partitions
SELECT throws_ok($$SELECT millrace.create_source('ev', 'at', '1 month 1 day')$$, '22023', NULL, 'an interval that is no window size');
CREATE TABLE by_date (d date NOT NULL) PARTITION BY RANGE (d);
SELECT throws_ok($$SELECT millrace.create_source('by_date', 'd', '6 hours')$$, '22023', NULL, 'hours of a date column');
CREATE TABLE bounds (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT millrace.create_source('bounds', 'at');
CREATE TABLE low PARTITION OF bounds FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE high PARTITION OF bounds FOR VALUES FROM ('2030-01-01') TO (MAXVALUE);
SELECT is(millrace.ensure_partitions('bounds', '2019-12-31', '2020-01-02') + millrace.ensure_partitions('bounds', '2031-01-01', '2031-01-01'), 2, 'unbounded partitions hold their times');
SET LOCAL datestyle = 'SQL';
SET LOCAL timezone = 'Asia/Kolkata';
SELECT is(string_agg(extract(epoch FROM from_time)::text, ' '), '1704067200.000000 1704153600.000000 1714521600.000000', 'bounds do not depend on DateStyle')
	FROM millrace.partitions('ev');
SET LOCAL datestyle = 'ISO';
SET LOCAL timezone = 'UTC';
ALTER TABLE ev DETACH PARTITION ev_20240102;
SELECT is(millrace.ensure_partitions('ev', '2024-01-02', '2024-01-02'), 1, 'a detached partition keeps its name');
ALTER TABLE ev ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON ev TO writer;
SELECT millrace.ensure_partitions('ev', '2024-01-03', '2024-01-03');
SELECT table_privs_are('public', 'ev_20240103', 'writer', '{}', 'row security is not opened by a partition');
ALTER TABLE ev DISABLE ROW LEVEL SECURITY;

-- Foreign partitions do not stop DDL
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE far PARTITION OF ev FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') SERVER nowhere;
SELECT lives_ok('CREATE TABLE unrelated (i int)', 'a foreign partition does not stop CREATE TABLE');
SELECT lives_ok($$SELECT millrace.create_source('ev', 'at')$$, 'or create_source');
DROP FOREIGN TABLE far;

-- A role cannot use the internal functions on what is not its own
CREATE TABLE treasure (xid xid8, w timestamptz, who text, s bigint);
CREATE VIEW secret AS SELECT millrace.tumble(at, '1 day') AS w, 'secret'::text AS who, count(*) FROM ev GROUP BY 1, 2;
SET LOCAL ROLE owner_a;
CREATE TABLE mine (at timestamptz, v int);
CREATE TABLE my_state (xid xid8, w timestamptz, who text, s bigint);
SELECT throws_ok($$SELECT millrace._stream_put('x', 'aggregate', 'mine', 'treasure', NULL, 'treasure', 'treasure', 'treasure', 'treasure', 'q', NULL, NULL, NULL, NULL, NULL, NULL, false)$$, '42501', NULL, 'registering another role''s table');
SELECT throws_ok($$SELECT millrace._stream_put('x', 'aggregate', 'mine', 'treasure', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false)$$, '22004', NULL, 'or half a stream');
SELECT throws_ok($$SELECT millrace._aggregate_backfill('secret', 'my_state')$$, '42501', NULL, 'reading through another role''s view');
RESET ROLE;

-- The pg_temp of a writer, when a target has been renamed
SET LOCAL ROLE owner_a;
CREATE TABLE tgt (at timestamptz, v int);
SELECT millrace.create_pipe('cap', 'mine', 'INSERT INTO tgt SELECT * FROM new_rows');
ALTER TABLE tgt RENAME TO tgt_old;
GRANT INSERT ON mine TO writer;
RESET ROLE;
SET LOCAL ROLE writer;
CREATE TEMP TABLE tgt (at timestamptz, v int);
SELECT throws_ok($$INSERT INTO mine VALUES ('2024-01-01', 1)$$, '22023', 'temporary relation "tgt" cannot be used', 'a writer''s temporary table does not take its place');
DROP TABLE tgt;
SELECT throws_ok($$INSERT INTO mine VALUES ('2024-01-01', 1)$$, '42P01', NULL, 'and without it the error is plain');
RESET ROLE;
ALTER TABLE tgt_old RENAME TO tgt;
CREATE DOMAIN checked AS int;
SET LOCAL ROLE owner_a;
CREATE TABLE typed (at timestamptz, v int);
SELECT millrace.create_pipe('typed', 'typed', 'INSERT INTO tgt SELECT at, v::checked FROM new_rows');
GRANT INSERT ON typed TO writer;
RESET ROLE;
DROP DOMAIN checked;
SET LOCAL ROLE writer;
CREATE DOMAIN pg_temp.checked AS int;
SELECT throws_ok($$INSERT INTO typed VALUES ('2024-01-01', 1)$$, '22023', 'temporary type "checked" cannot be used', 'nor does his temporary type, whose check would run as the owner');
RESET ROLE;
DROP DOMAIN pg_temp.checked;
CREATE SCHEMA app_pg_temp;
SET LOCAL search_path = app_pg_temp, public, pg_temp;
SELECT millrace.create_pipe('in_schema', 'odd', 'INSERT INTO par SELECT at FROM new_rows');
SELECT is((SELECT settings[1] FROM millrace.stream WHERE name = 'in_schema'), 'search_path=app_pg_temp, public, pg_temp', 'pg_temp is stored last, whatever the schemas are called');
SET LOCAL search_path = public;

-- Settings of the writer do not change the owner's text
CREATE TABLE texts (a text, b bool);
SELECT millrace.create_pipe('texts', 'mine', $$INSERT INTO texts SELECT '\' || (v / 3.0::float8), v = NULL FROM new_rows$$);
SET LOCAL extra_float_digits = -10;
SET LOCAL transform_null_equals = on;
SET LOCAL standard_conforming_strings = off;
INSERT INTO mine VALUES ('2024-01-01', 1);
RESET extra_float_digits;
RESET transform_null_equals;
RESET standard_conforming_strings;
SELECT results_eq('TABLE texts', $$VALUES ('\0.3333333333333333'::text, NULL::bool)$$, 'a pipe means what it meant when it was created');
SELECT is(current_setting('extra_float_digits'), '1', 'the writer keeps his settings');

-- Owners that change
SELECT millrace.create_continuous_aggregate('of_ev', 'SELECT millrace.tumble(at, ''1 day'') AS w, count(*) FROM ev GROUP BY 1');
ALTER TABLE of_ev_state OWNER TO owner_a;
SELECT throws_ok($$INSERT INTO ev VALUES ('2024-01-01', 1)$$, '42501', NULL, 'view and state of two roles are refused');
ALTER TABLE of_ev_state OWNER TO CURRENT_USER;
SELECT lives_ok($$INSERT INTO ev VALUES ('2024-01-01', 1)$$, 'until they are of one again');
ALTER TABLE mine OWNER TO writer;
SELECT throws_ok($$INSERT INTO mine VALUES ('2024-01-01', 1)$$, '42501', 'the owner of stream "cap", owner_a, is no longer an owner of its source mine', 'a former owner gets no more rows');
SELECT lives_ok($$SELECT millrace.drop_pipe('cap')$$, 'the pipe can be dropped');
SELECT lives_ok($$INSERT INTO mine VALUES ('2024-01-01', 1)$$, 'after which rows come in');

-- Dropping: what depends on it is not lost silently
CREATE VIEW on_top AS TABLE of_ev;
SELECT throws_ok($$SELECT millrace.drop_continuous_aggregate('of_ev')$$, '2BP01', NULL, 'a view over a continuous aggregate keeps it');
DROP TABLE ev CASCADE;
SELECT is(count(*), 0::bigint, 'DROP TABLE CASCADE takes all of it') FROM pg_class WHERE relname LIKE 'of\_ev%' OR relname = 'on_top';
SELECT is(count(*), 0::bigint, 'and its stream and source') FROM millrace.stream t FULL JOIN millrace.sources s USING (source) WHERE t.name = 'of_ev' OR s.source::text LIKE 'ev%';
-- What others made over a superuser's aggregate does not run with his rights, nor is it in his way
CREATE TABLE base (at timestamptz, v int);
SELECT millrace.create_continuous_aggregate('base_m', 'SELECT millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n FROM base GROUP BY 1', watermark => '1 minute');
GRANT SELECT ON base_m, base_m_final TO owner_a;
CREATE TABLE ran_as (who name);
GRANT INSERT ON ran_as TO PUBLIC;
SET LOCAL ROLE owner_a;
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ran_as VALUES (current_user); RETURN NULL; END $$;
CREATE FUNCTION day() RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN '1 day'; END $$;
CREATE TABLE sized (at timestamptz, v int);
SELECT millrace.create_continuous_aggregate('by_a', 'SELECT millrace.tumble(window_start, ''1 hour'') AS window_start, sum(n) AS n FROM base_m GROUP BY 1');
SELECT millrace.create_continuous_aggregate('sized_d', 'SELECT millrace.tumble(at, day()) AS window_start, count(*) AS n FROM sized GROUP BY 1');
CREATE TRIGGER tell AFTER DELETE ON by_a_state FOR EACH STATEMENT EXECUTE FUNCTION tell();
CREATE OR REPLACE FUNCTION day() RETURNS interval LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
	IF current_user <> 'owner_a' THEN RAISE EXCEPTION 'day() as %', current_user; END IF; RETURN '1 day'; END $$;
RESET ROLE;
SELECT millrace._rollup_renew('base_m');
SELECT results_eq('SELECT DISTINCT who FROM ran_as', $$VALUES ('owner_a'::name)$$, 'triggers on the rows of a rollup run as its owner');
SELECT lives_ok($$SELECT millrace.compact('sized_d'), millrace.refresh('sized_d'), millrace._aggregate_keys('sized_d_query')$$, 'functions in the size of a window run as its owner');
SET LOCAL ROLE owner_a;
CREATE OR REPLACE VIEW by_a_query AS SELECT NULL::timestamptz AS window_start, NULL::numeric AS n;
RESET ROLE;
INSERT INTO base VALUES ('2024-01-01', 1);
DELETE FROM base;
SELECT lives_ok($$SELECT millrace.refresh('base_m')$$, 'a broken rollup of another role does not keep a refresh from its work');
SET LOCAL ROLE owner_a;
CREATE TABLE no_view (window_start timestamptz);
CREATE VIEW alerting AS SELECT now() AS window_start;
SELECT throws_ok($$SELECT millrace._alert_start('no_view')$$, '42809', '"no_view" is not a view', 'an alert is a view');
SELECT throws_ok($$SELECT millrace._stream_put('evil', 'alert', 'typed', 'no_view', NULL, 'no_view', NULL, NULL, NULL, 'x', NULL, NULL, NULL, NULL, NULL, NULL, false)$$,
	'42809', '"no_view" is not a view', 'also when it is put directly');
SELECT throws_ok($$SELECT millrace._stream_put('evil', 'alert', 'typed', 'alerting', NULL, 'alerting', NULL, NULL, NULL, 'x', NULL, NULL, NULL, NULL, NULL, ARRAY['base_m'::regclass], false)$$,
	'42501', NULL, 'nobody puts an alert into the batches of another owner''s source');
RESET ROLE;
SELECT lives_ok($$INSERT INTO base VALUES ('2024-01-01', 1)$$, 'which are not disturbed');
-- Intervals longer than there is time; a definition that is gone
CREATE TABLE aged (at timestamptz, v int);
CREATE TABLE aged_names (v int, title text);
SELECT millrace.create_continuous_aggregate('aged_w', 'SELECT millrace.tumble(at, ''1 day'') AS w, count(*) FROM aged GROUP BY 1', watermark => '10000 years', retain => '10000 years');
SELECT lives_ok($$INSERT INTO aged VALUES ('2024-01-01', 1)$$, 'a watermark of 10000 years');
SELECT lives_ok($$SELECT millrace._close_windows('aged_w'), millrace._drop_expired('aged_w')$$, 'and a retention');
SELECT millrace.create_continuous_aggregate('aged_n', 'SELECT title, millrace.tumble(at, ''1 day'') AS w, count(*) FROM aged JOIN aged_names USING (v) GROUP BY 1, 2',
	watermark => '1 day', on_error => 'suspend');
DROP TABLE aged_names CASCADE;
SELECT lives_ok('TABLE millrace.revisions', 'millrace.revisions passes by what has lost its query');
SELECT * FROM finish();
ROLLBACK;
