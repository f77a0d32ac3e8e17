-- Federated aggregates: three databases of this server, two of them nodes, by postgres_fdw.  Databases and foreign servers, so this file
-- commits, and drops what it made.
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw') OR current_setting('server_version_num')::int < 160000 AS has_fdw \gset
\if :has_fdw
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE DATABASE mr_node1 TEMPLATE template0;
CREATE DATABASE "mr node's 2" TEMPLATE template0;
-- The same on every node and here
SELECT current_database() AS here, $script$
	SET client_min_messages = warning; SET timezone = 'UTC';
	CREATE SCHEMA IF NOT EXISTS federating; SET search_path = federating, public;
	CREATE EXTENSION IF NOT EXISTS millrace;
	CREATE TABLE events (id bigint, at timestamptz, "a customer" text, item text COLLATE "C", amount numeric(10,2), x float8);
	SELECT millrace.create_source('events', 'at');
	SELECT millrace.create_continuous_aggregate('counts', $$SELECT item, millrace.tumble(at, '1 hour') AS window_start, count(*) AS n, sum(amount) AS total, min(id) AS first,
		max("a customer") AS "the last", stddev(amount) AS sd, avg(id) AS mean, count(*) FILTER (WHERE amount > 20) AS large, bool_and(amount > 0) AS every FROM events GROUP BY 1, 2 HAVING count(*) > 1$$, watermark => '10 minutes');
	SELECT millrace.create_continuous_aggregate('trend', $$SELECT millrace.hop(at, '1 hour', '20 minutes') AS w, "a customer", count(*) AS n, sum(amount) AS total FROM events GROUP BY 1, 2$$, watermark => '10 minutes');
	SELECT millrace.create_continuous_aggregate('visits', $$SELECT "a customer", window_start, count(*) AS n, sum(amount) AS spent, max(at) AS until FROM (SELECT *, millrace.session(at, '5 minutes') OVER (PARTITION BY "a customer" ORDER BY at)
		AS window_start FROM events) s GROUP BY 1, 2$$, watermark => '10 minutes');
	SELECT millrace.create_continuous_aggregate('It''s "per day"', $$SELECT millrace.tumble(at, '1 day', timezone => 'Europe/Paris') AS "the day", x > 100 AS far, avg(amount) AS mean FROM events GROUP BY 1, 2$$, watermark => '10 minutes');
	SELECT millrace.create_continuous_aggregate('weeks', $$SELECT millrace.tumble(at, '7 days', '2024-01-03 12:00+00') AS week, count(*) FILTER (WHERE at > '2024-01-01 12:00+00' AND amount < 1e20::float8) AS n, max(at - interval '1 day 02:00') AS last
		FROM events GROUP BY 1$$);
	SELECT millrace.create_continuous_aggregate('per_day', $$SELECT c.item, millrace.tumble(c.window_start, '1 day') AS day, sum(c.n) AS n, count(DISTINCT c.n) AS kinds, bool_and(final) AS all_final FROM counts c GROUP BY 1, 2$$);
	SELECT millrace.create_continuous_aggregate('two_days', 'SELECT millrace.hop(day, ''2 days'', ''1 day''), sum(n) AS n FROM per_day GROUP BY 1');
	SELECT millrace.share_aggregate(a) FROM (VALUES ('counts'), ('trend'), ('visits'), ('It''s "per day"'), ('weeks')) v(a);
$script$ AS schema \gset
\o /dev/null
\connect mr_node1
:schema
INSERT INTO events SELECT i, '2024-01-01'::timestamptz + i * interval '67 s', nullif('c' || i % 13, 'c3'), nullif('i' || i % 7, 'i2'), i % 50, i / 3.0 FROM generate_series(1, 1000) i;
INSERT INTO events VALUES (-1, NULL, 'c1', 'i1', 1, 1), (-2, 'infinity', 'c1', NULL, 2, NULL), (-3, '-infinity', NULL, 'i1', 3, 'NaN');
\connect "mr node's 2"
:schema
INSERT INTO events SELECT i, '2024-01-01'::timestamptz + i * interval '71 s', nullif('c' || i % 11, 'c3'), nullif('i' || i % 5, 'i2'), i % 30, i / 3.0 FROM generate_series(1, 900) i;
INSERT INTO events SELECT i, '2024-01-01'::timestamptz + (i - 30) * interval '71 s', nullif('c' || i % 11, 'c3'), 'more', i % 30, -i FROM generate_series(901, 1500) i;
SELECT millrace.compact('counts');
\connect :here
SET client_min_messages = warning;
SET timezone = 'UTC';
SET search_path = federating, public;
:schema
\o
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hll') AS has_hll \gset
SELECT plan(CASE WHEN :'has_hll' THEN 85 ELSE 75 END);
\ir ../lib/streams.sql
CREATE FUNCTION federation_refused(name text, aggregate text, servers text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	PERFORM millrace.create_federated_aggregate(name, aggregate, servers::name[]);
	RETURN 'created';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN SQLSTATE || ' ' || SQLERRM || '|' || hint;
END $$;

-- What it needs
SELECT is(federation_refused('all', 'counts', '{node1}'), '42704 server "node1" does not exist|CREATE EXTENSION postgres_fdw, then CREATE SERVER node1 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host …, port …, dbname …), and a user mapping', 'without postgres_fdw');
CREATE EXTENSION postgres_fdw SCHEMA public;
SELECT is(federation_refused('all', 'counts', '{node1}'), '42704 server "node1" does not exist|CREATE SERVER node1 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host …, port …, dbname …), and a user mapping', 'without the server');
SELECT format('CREATE SERVER node1 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host ''127.0.0.1'', port %L, dbname ''mr_node1'')', current_setting('port')),
	format('CREATE SERVER "node''s 2" FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host ''127.0.0.1'', port %L, dbname ''mr node''''s 2'')', current_setting('port')),
	'CREATE SERVER down FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host ''127.0.0.1'', port ''1'', dbname ''none'')',
	'CREATE FOREIGN DATA WRAPPER other', 'CREATE SERVER other FOREIGN DATA WRAPPER other' \gexec
SELECT is(federation_refused('all', 'counts', '{other}'), '42809 server "other" is one of other|Nodes are servers of postgres_fdw.', 'a server of another kind');
SELECT matches(federation_refused('all', 'counts', '{node1}'), '^42704 node "node1" cannot be read: user mapping not found for .*CREATE USER MAPPING FOR postgres SERVER node1 OPTIONS', 'without a user mapping');
CREATE USER MAPPING FOR CURRENT_USER SERVER node1;
CREATE USER MAPPING FOR CURRENT_USER SERVER "node's 2";
CREATE USER MAPPING FOR CURRENT_USER SERVER down;
SELECT matches(federation_refused('all', 'counts', '{node1,down}'), '^08001 node "down" cannot be read: could not connect to server "down"', 'a node that is down');
SELECT is(federation_refused('all', 'none', '{node1}'), '42704 continuous aggregate "none" does not exist here|Create it here as on the nodes; its source may stay empty.', 'no such aggregate here');
SELECT is(federation_refused('all', 'counts', '{}'), '22023 federated aggregate "all" needs a server|', 'no server');
SELECT is(federation_refused('all', 'counts', '{node1,node1}'), '22023 servers of federated aggregate "all" are named twice|Its rows would count twice.', 'the same twice');
SELECT is(federation_refused(NULL, 'counts', '{node1}'), '22004 name, aggregate and servers of a federated aggregate must not be null|', 'no name');
SELECT is(federation_refused('all', 'counts', '{node1,NULL}'), '22004 name, aggregate and servers of a federated aggregate must not be null|', 'NULL among the servers');
SELECT is(federation_refused('', 'counts', '{node1}'), '42602 "" is not a valid name of a federated aggregate|A name has 1 to 63 bytes.', 'an empty name');
SELECT is(federation_refused(repeat('n', 51), 'counts', '{node1}'), '42622 the names "' || repeat('n', 51) || '" and "node1" are too long for a foreign table|Together they may have 55 bytes.', 'a long name');
SELECT is(federation_refused('all', 'per_day', '{node1}'), '55000 rollup "per_day" reads federating.counts, of which there is no federated aggregate of yours over these servers|Create that first.', 'a rollup before what it reads');
SELECT throws_ok($$SELECT millrace.share_aggregate('per_day')$$, '42809', '"per_day" is a rollup, which has no states to share', 'a rollup has nothing to share');
SELECT throws_ok($$SELECT millrace.share_aggregate('none')$$, '42704', 'continuous aggregate "none" does not exist', 'nothing to share');

-- Definitions that differ
SELECT $q$SELECT "a customer", window_start, count(*) AS n, sum(amount) AS spent, max(at) AS until FROM (SELECT *, millrace.session(at, '5 minutes') OVER (PARTITION BY "a customer" ORDER BY at)
		AS window_start FROM events) s GROUP BY 1, 2$q$ AS visits \gset
SELECT millrace.create_continuous_aggregate('unshared', $$SELECT millrace.tumble(at, '1 hour') AS w, count(*) AS n FROM events GROUP BY 1$$) \g /dev/null
SELECT is(federation_refused('all', 'unshared', '{node1}'), '42704 node "node1" does not share continuous aggregate "unshared"|There: SELECT millrace.share_aggregate(''unshared''), and GRANT SELECT on unshared_partial', 'an aggregate that is not shared there');
SELECT millrace.create_continuous_aggregate('visits', replace(:'visits', '5 minutes', '6 minutes'), watermark => '10 minutes') \g /dev/null
SELECT matches(federation_refused('all', 'visits', '{node1}'), '^42804 node "node1" has another query of continuous aggregate "visits"\|Create it by the same text', 'another query');
SELECT millrace.create_continuous_aggregate('visits', replace(:'visits', 'amount', 'x'), watermark => '10 minutes') \g /dev/null
SELECT matches(federation_refused('all', 'visits', '{node1}'), '^42804 node "node1" keeps other states of continuous aggregate "visits"\|Source, types', 'other states');
SELECT millrace.create_continuous_aggregate('visits', :'visits', watermark => '10 minutes') \g /dev/null
SELECT is((SELECT count(*) FROM visits_partial), 0::bigint, 'what is replaced stays shared');
SELECT is((SELECT count(*) FROM pg_class WHERE relkind = 'f'), 0::bigint, 'what was refused leaves nothing');
SET timezone = 'Europe/Paris';
SET intervalstyle = iso_8601;
SET datestyle = German;
SET extra_float_digits = -10;
SET quote_all_identifiers = on;
SELECT is(federation_refused('weeks_all', 'weeks', '{node1,"node''s 2"}'), 'created', 'the same query is the same in a session of other settings');
RESET intervalstyle;
RESET datestyle;
RESET extra_float_digits;
RESET quote_all_identifiers;
SET timezone = 'UTC';
SELECT is((SELECT sum(n) FROM weeks_all), 1249::numeric, 'and read');
SELECT millrace.drop_federated_aggregate('weeks_all') \g /dev/null

-- All kinds of windows, rows here, too
SELECT millrace.create_federated_aggregate(n, a, '{node1,"node''s 2"}') FROM (VALUES ('counts all', 'counts'), ('trend_all', 'trend'), ('visits_all', 'visits'), ('It''s all', 'It''s "per day"')) v(n, a) \g /dev/null
SELECT millrace.create_federated_aggregate('days_all', 'per_day', '{"node''s 2",node1}') \g /dev/null
SELECT millrace.create_federated_aggregate('two_days_all', 'two_days', '{node1,"node''s 2"}') \g /dev/null
SELECT is((SELECT string_agg(concat_ws('|', name, view, aggregate, servers, owner), E'\n' ORDER BY name COLLATE "C") FROM millrace.federated_aggregates),
'It''s all|"It''s all"|It''s "per day"|{node1,"node''s 2"}|postgres
counts all|"counts all"|counts|{node1,"node''s 2"}|postgres
days_all|days_all|per_day|{"node''s 2",node1}|postgres
trend_all|trend_all|trend|{node1,"node''s 2"}|postgres
two_days_all|two_days_all|two_days|{node1,"node''s 2"}|postgres
visits_all|visits_all|visits|{node1,"node''s 2"}|postgres', 'what there is');
BEGIN;
DELETE FROM millrace.federated WHERE name = 'counts all';
SELECT is(federation_refused('again', 'two_days', '{node1,"node''s 2"}'), '55000 rollup "two_days" is computed from federating.counts, of which there is no federated aggregate of yours over these servers|Create that first.', 'a rollup of a rollup asks for all below it');
ROLLBACK;
CREATE FOREIGN TABLE events1 (id bigint, at timestamptz, "a customer" text, item text COLLATE "C", amount numeric(10,2), x float8) SERVER node1 OPTIONS (schema_name 'federating', table_name 'events');
CREATE FOREIGN TABLE events2 (id bigint, at timestamptz, "a customer" text, item text COLLATE "C", amount numeric(10,2), x float8) SERVER "node's 2" OPTIONS (schema_name 'federating', table_name 'events');
-- Rows of a federated aggregate and of the query over the raw rows of all, that differ: the query in a schema where events are all of them
CREATE SCHEMA all_rows;
CREATE VIEW all_rows.events AS TABLE federating.events UNION ALL TABLE federating.events1 UNION ALL TABLE federating.events2;
CREATE FUNCTION wrong() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	f record;
	n bigint;
	result text := '';
BEGIN
	FOR f IN SELECT g.name, g.view, s.name AS stream, s.query FROM millrace.federated_aggregates g JOIN millrace.stream s ON s.name = g.aggregate ORDER BY s.seq LOOP
		SET LOCAL search_path = all_rows, federating, public;
		EXECUTE format('CREATE OR REPLACE VIEW all_rows.%I AS %s', f.stream, replace(f.query, 'bool_and(final)', 'NULL::bool'));
		SET LOCAL search_path = federating, public;
		EXECUTE format('SELECT count(*) FROM ((SELECT ROW(%1$s)::text FROM %2$s EXCEPT ALL SELECT ROW(%1$s)::text FROM all_rows.%3$I) UNION ALL (SELECT ROW(%1$s)::text FROM all_rows.%3$I EXCEPT ALL SELECT ROW(%1$s)::text FROM %2$s)) d',
			(SELECT string_agg(CASE atttypid WHEN 'float8'::regtype THEN format('%I::numeric(20,6)', attname) ELSE quote_ident(attname) END, ', ' ORDER BY attnum) FROM pg_attribute
				WHERE attrelid = f.view AND attnum > 0 AND attname NOT IN ('final', 'all_final')), f.view, f.stream) INTO n;
		IF n > 0 THEN
			result := result || format('%s: %s; ', f.name, n);
		END IF;
	END LOOP;
	RETURN result;
END $$;
SELECT is(wrong(), '', 'equal to the queries over all raw rows');
SELECT is(concat_ws(' ', (SELECT count(*) FROM "counts all"), (SELECT count(*) FROM trend_all), (SELECT count(*) FROM visits_all), (SELECT count(*) FROM two_days_all)), '145 1098 1811 3', 'which are many');
INSERT INTO events SELECT i, '2024-01-01 05:00'::timestamptz + i * interval '67 s', nullif('c' || i % 13, 'c3'), nullif('i' || i % 7, 'i2'), i % 50, i / 3.0 FROM generate_series(1, 300) i;
INSERT INTO events VALUES (-4, NULL, 'c1', 'i1', 1, 1), (-5, 'infinity', 'c1', NULL, 2, NULL), (-6, '-infinity', NULL, 'i1', 3, 'NaN');
SELECT is(wrong(), '', 'rows here count, too');
SELECT millrace.compact('counts'), millrace.compact('trend') \g /dev/null
SELECT is(wrong(), '', 'folded as well');

-- Finality: this database has come least far
CREATE FUNCTION finals() RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', (SELECT max(window_start) FILTER (WHERE final AND isfinite(window_start)) FROM "counts all"), (SELECT max(w) FILTER (WHERE final AND isfinite(w)) FROM trend_all),
		(SELECT max(until) FILTER (WHERE final AND isfinite(until)) FROM visits_all), (SELECT max(day) FILTER (WHERE final AND isfinite(day)) FROM days_all))
$$;
SELECT is(finals(), '2024-01-01 09:00:00+00 2024-01-01 09:20:00+00 2024-01-01 10:14:09+00', 'what is so here and on every node');
INSERT INTO events VALUES (-7, '2024-01-20', 'c1', 'i1', 1, 1);
CALL millrace.maintain();
SELECT is(finals(), '2024-01-01 16:00:00+00 2024-01-01 16:20:00+00 2024-01-01 17:24:05+00', 'then a node holds the others back');
\! psql -Xqd mr_node1 -c "INSERT INTO federating.events VALUES (-8, '2024-01-20', 'c1', 'i1', 1, 1)" -c 'CALL millrace.maintain()'
\! psql -Xqd "mr node's 2" -c "INSERT INTO federating.events VALUES (-9, '2024-01-20', 'c1', 'i1', 1, 1)" -c 'CALL millrace.maintain()'
SELECT is(finals(), '2024-01-02 04:00:00+00 2024-01-02 04:40:00+00 2024-01-02 04:59:30+00 2024-01-02 00:00:00+00', 'then none');
SELECT is((SELECT count(*) FROM days_all WHERE all_final IS DISTINCT FROM final AND isfinite(day)), 0::bigint, 'a rollup sees the same');
SELECT is(wrong(), '', 'and all is as in the raw rows');

-- What reaches the nodes
CREATE FUNCTION plan_of(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	result text := '';
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (VERBOSE, COSTS off) ' || query LOOP
		result := result || line || E'\n';
	END LOOP;
	RETURN result;
END $$;
SELECT matches(plan_of($$SELECT * FROM "counts all" WHERE window_start >= '2024-01-02' AND item = 'i1'$$), 'Async Foreign Scan on federating."counts all_states_node1".*counts_partial WHERE [^\n]*window_start >= ''2024-01-02[^\n]*k1 = ''i1''', 'conditions reach the nodes, which work at the same time');
SELECT matches(plan_of($$SELECT * FROM trend_all WHERE w = '2024-01-02' AND "a customer" = 'c1'$$), 'Async Foreign Scan.*trend_partial WHERE [^\n]*''2024-01-02[^\n]*k1 = ''c1''', 'of sliding windows, too');
SELECT matches(plan_of($$SELECT * FROM visits_all WHERE "a customer" = 'c1'$$), 'Async Foreign Scan.*visits_partial WHERE [^\n]*k1 = ''c1''', 'of sessions the keys');
SELECT matches(plan_of($$SELECT * FROM days_all WHERE item = 'i1'$$), 'Async Foreign Scan.*counts_partial WHERE [^\n]*k1 = ''i1''', 'of rollups, too');
SELECT matches(plan_of($$SELECT * FROM "counts all" WHERE window_start >= (SELECT now() - interval '1 hour')$$), 'counts_partial WHERE [^\n]*window_start >= \$1', 'a moment of this database as a parameter');

-- Retention: what one node has dropped is shown by none
\! psql -Xqd mr_node1 -c "SET search_path = federating" -c "SELECT millrace.create_continuous_aggregate('trend', query, watermark => '10 minutes', retain => '18 days 20 hours') FROM millrace.stream WHERE name = 'trend'" -c "CALL millrace.maintain()" -o /dev/null
SELECT isnt((SELECT retained_from FROM trend_all_info_node1 WHERE name = 'trend'), NULL, 'a node has dropped windows');
SELECT is((SELECT min(w) FROM trend_all WHERE isfinite(w)), (SELECT min(w) FROM all_rows.trend, trend_all_info_node1 WHERE w + interval '1 hour' > retained_from AND name = 'trend'), 'they are not shown in part');

-- Whoever reads needs no mapping of his own
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA federating, millrace TO mr_reader;
SET ROLE mr_reader;
SELECT throws_ok('SELECT count(*) FROM federating.trend_all', '42501', NULL, 'without a right nobody reads it');
RESET ROLE;
GRANT SELECT ON trend_all, days_all TO mr_reader;
SET ROLE mr_reader;
SELECT cmp_ok((SELECT count(*) FROM federating.trend_all), '>', 100::bigint, 'with SELECT on the view the nodes are read by the mapping of its owner');
SELECT cmp_ok((SELECT count(*) FROM federating.days_all), '>', 10::bigint, 'a rollup, too');
SELECT throws_ok('SELECT count(*) FROM federating.trend_all_states_node1', '42501', NULL, 'not the foreign tables');
SELECT throws_ok($$SELECT millrace.create_federated_aggregate('mine', 'trend', '{node1}')$$, '42501', NULL, 'nor does he create any');
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_reader;
GRANT CREATE ON SCHEMA federating TO mr_reader;
SET ROLE mr_reader;
SELECT throws_ok($$SELECT millrace.create_federated_aggregate('mine', 'trend', '{node1}')$$, '42501', 'must be owner of stream "trend"', 'not of what is another''s');
CREATE VIEW mine AS SELECT 1;
SELECT throws_ok($$SELECT millrace._federated_put('mine', 'mine', 'trend', '{node1}', '{}')$$, '42501', 'must be owner of stream "trend"', 'nor says that it is one');
SELECT throws_ok($$SELECT millrace._federated_put('trend_all', NULL, NULL, NULL, NULL)$$, '42501', 'must be owner of view trend_all', 'nor that it is none');
SELECT throws_ok($$SELECT millrace._shared_put('trend', 'mine')$$, '42501', 'must be owner of stream "trend"', 'nor that it is shared');
SELECT throws_ok($$SELECT millrace.share_aggregate('unshared')$$, '42501', 'must be owner of stream "unshared"', 'nor shares it');
SELECT throws_ok($$SELECT millrace.unshare_aggregate('trend')$$, '42501', 'must be owner of stream "trend"', 'nor ends that');
SELECT throws_ok($$SELECT millrace.drop_federated_aggregate('trend_all')$$, '42501', NULL, 'nor drops it');
CREATE TABLE his (at timestamptz);
SELECT millrace.create_source('his', 'at') \g /dev/null
SELECT millrace.create_continuous_aggregate('his_counts', 'SELECT millrace.tumble(at, ''1 day'') AS w, count(*) AS n FROM his GROUP BY 1') \g /dev/null
SELECT millrace._federated_put('mine', 'mine', 'his_counts', '{node1}', '{}') \g /dev/null
SELECT millrace.drop_continuous_aggregate('his_counts') \g /dev/null
SELECT is((SELECT count(*) FROM millrace.federated WHERE aggregate = 'his_counts'), 0::bigint, 'what he said of an aggregate of his ends with it');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER node1 TO mr_reader;
SET ROLE mr_reader;
CREATE FOREIGN TABLE his_own (n int) SERVER node1;
CREATE FOREIGN TABLE given_away (n int) SERVER node1;
SELECT millrace.create_continuous_aggregate('his_counts', 'SELECT millrace.tumble(at, ''1 day'') AS w, count(*) AS n FROM his GROUP BY 1') \g /dev/null
SELECT throws_ok($$SELECT millrace._federated_put('mine', 'mine', 'his_counts', '{node1}', '{his_own,trend_all_states_node1}')$$, '42501', 'must be owner of foreign table trend_all_states_node1', 'nor lists tables of another');
SELECT millrace._federated_put('mine', 'mine', 'his_counts', '{node1}', '{his_own,given_away}') \g /dev/null
RESET ROLE;
ALTER FOREIGN TABLE given_away OWNER TO CURRENT_USER;
SET ROLE mr_reader;
DROP VIEW mine;
RESET ROLE;
SELECT is((SELECT string_agg(relname, ' ') FROM pg_class WHERE relname IN ('his_own', 'given_away')), 'given_away', 'with his view go tables that are his, and no others');
DROP FOREIGN TABLE given_away;

-- States that another extension's functions trust: only of those whose key is known here
\if :has_hll
CREATE TABLE own_key AS TABLE millrace.state_key;
CREATE EXTENSION hll SCHEMA public;
SELECT millrace.create_continuous_aggregate('visitors', 'SELECT millrace.tumble(at, ''1 day'') AS w, hll_cardinality(hll_add_agg(hll_hash_bigint(id))) AS n FROM events GROUP BY 1') \g /dev/null
-- What another session does: each reads the keys once
DELETE FROM millrace.state_key;
\set told `psql -XAtqd millrace_test -c "INSERT INTO federating.events (id, at) VALUES (-10, '2024-01-05')" -c "INSERT INTO federating.events (id, at) VALUES (-11, '2024-01-05')" 2>&1 | grep -c 'ERROR: .*state_key has no key$'`
SELECT is(:'told'::text, '2', 'without a key nothing is sealed, asked again or not');
VACUUM millrace.state_key;
INSERT INTO millrace.state_key (key) SELECT sha256(int4send(i)) FROM generate_series(1, 20) i; -- of other nodes
\set told `psql -XAtqd millrace_test -c "INSERT INTO federating.events (id, at) VALUES (-10, '2024-01-05')" 2>&1 | head -1`
SELECT is(:'told'::text, 'ERROR:  table millrace.state_key has no key of this database''s own', 'nor with one of another');
INSERT INTO millrace.state_key TABLE own_key;
\! psql -Xqd millrace_test -c "INSERT INTO federating.events (id, at) VALUES (-10, '2024-01-05')"
DELETE FROM millrace.state_key WHERE key NOT IN (SELECT key FROM own_key);
\set told `psql -XAtqd millrace_test -c "SELECT sum(n) > 0 FROM federating.visitors" 2>&1`
SELECT is(:'told'::text, 't', 'but with its own, in whatever order they lie');
UPDATE millrace.state_key SET key = sha256(key);
\set told `psql -XAtqd millrace_test -c "SELECT sum(n) > 0 FROM federating.visitors" 2>&1 | paste -sd ' '`
SELECT matches(:'told'::text, '^ERROR:  malformed state of aggregate .* DETAIL:  It is not sealed with a key in millrace.state_key. HINT:  ', 'what no key has sealed says so');
DELETE FROM millrace.state_key;
INSERT INTO millrace.state_key TABLE own_key;
INSERT INTO millrace.state_key (key) SELECT sha256(int4send(i)) FROM generate_series(1, 64) i;
\set told `psql -XAtqd millrace_test -c "SELECT sum(n) > 0 FROM federating.visitors" 2>&1 | head -1`
SELECT is(:'told'::text, 'ERROR:  table millrace.state_key has more than 64 keys', 'too many are an error');
DELETE FROM millrace.state_key WHERE key IN (SELECT sha256(int4send(i)) FROM generate_series(21, 64) i);
SELECT throws_ok($$INSERT INTO millrace.state_key (key) VALUES ('\x00')$$, '23514', NULL, 'and so is what is no key');
\! for d in mr_node1 "mr node's 2"; do psql -Xqd "$d" -o /dev/null -c "SET search_path = federating, public" -c "CREATE EXTENSION hll SCHEMA public" -c "SELECT millrace.create_continuous_aggregate('visitors', 'SELECT millrace.tumble(at, ''1 day'') AS w, hll_cardinality(hll_add_agg(hll_hash_bigint(id))) AS n FROM events GROUP BY 1')" -c "SELECT millrace.share_aggregate('visitors')"; done
SELECT matches(federation_refused('visitors_all', 'visitors', '{node1,"node''s 2"}'), '^55000 node "node1" seals the states of continuous aggregate "visitors" with another key\|', 'sealed states of a node whose key is not known');
\! psql -Xqd mr_node1 -c "INSERT INTO millrace.state_key (key) VALUES (sha256('another'))"
\! for d in mr_node1 "mr node's 2"; do psql -Xqd "$d" -c "COPY (SELECT key FROM millrace.state_key WHERE own) TO STDOUT" | psql -Xqd millrace_test -c "COPY millrace.state_key (key) FROM STDIN"; done
SELECT is(federation_refused('visitors_all', 'visitors', '{node1,"node''s 2"}'), 'created', 'and once it is');
SELECT is((SELECT round(sum(n)) FROM visitors_all), (SELECT round(sum(n)) FROM (SELECT hll_cardinality(hll_add_agg(hll_hash_bigint(id))) AS n FROM all_rows.events GROUP BY millrace.tumble(at, '1 day')) q), 'they are merged');
SELECT is((SELECT count(*) FROM millrace.state_key WHERE own), 1::bigint, 'one is its own');
DELETE FROM millrace.state_key WHERE NOT own;
SELECT millrace.drop_federated_aggregate('visitors_all') \g /dev/null
\endif

-- The end
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('trend', query) FROM millrace.stream WHERE name = 'trend'$$, '2BP01', 'continuous aggregate "trend" is read by federated aggregate "trend_all"', 'what is read is not replaced');
SELECT throws_ok($$SELECT millrace.drop_continuous_aggregate('trend')$$, '2BP01', NULL, 'nor dropped');
BEGIN;
CREATE TEMP TABLE tied ON COMMIT DROP AS SELECT objid::regclass AS rel FROM pg_depend WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_extension'::regclass AND deptype = 'n';
DELETE FROM pg_depend WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_extension'::regclass AND deptype = 'n'; -- as a dump
SELECT millrace._tie(name) FROM millrace.stream WHERE kind IN ('aggregate', 'rollup') \g /dev/null
SELECT set_eq($$SELECT objid::regclass FROM pg_depend WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_extension'::regclass AND deptype = 'n'$$, 'TABLE tied', 'what a dump has brought back goes with the extension again');
ROLLBACK;
SELECT throws_ok($$SELECT millrace.drop_federated_aggregate('counts all')$$, '2BP01', NULL, 'nor what a rollup reads');
SELECT is(federation_refused('trend_all', 'trend', '{node1}'), '42710 federated aggregate "trend_all" already exists|See millrace.federated_aggregates.', 'nor made twice');
SELECT millrace.drop_federated_aggregate(f) FROM (VALUES ('two_days_all'), ('days_all'), ('trend_all'), ('visits_all'), ('It''s all')) v(f) \g /dev/null
SELECT throws_ok($$SELECT millrace.drop_federated_aggregate('trend_all')$$, '42704', 'federated aggregate "trend_all" does not exist', 'gone is gone');
SELECT millrace.unshare_aggregate('trend') \g /dev/null
SELECT throws_ok($$SELECT millrace.unshare_aggregate('trend')$$, '42704', 'continuous aggregate "trend" is not shared', 'shared no more');
SELECT lives_ok($$SELECT millrace.drop_continuous_aggregate(a) FROM unnest('{trend,visits}'::text[]) a$$, 'aggregates go, shared or not');
CREATE FUNCTION left_of_it() RETURNS text LANGUAGE sql AS $$
	SELECT concat((SELECT string_agg(relname, ' ') FROM pg_class WHERE relname LIKE 'counts all%'), (SELECT string_agg(f::text, ' ') FROM millrace.federated f))
$$;
CREATE VIEW how_far AS TABLE "counts all_info_node1";
SELECT throws_ok($$SELECT millrace.drop_federated_aggregate('counts all')$$, '2BP01', NULL, 'nor with what somebody made of its tables');
DROP VIEW how_far;
SELECT lives_ok($$SELECT millrace.drop_federated_aggregate('counts all')$$, 'but then');
SELECT is(left_of_it(), '', 'with all that was made');
SELECT is(federation_refused('counts all', 'counts', '{node1,"node''s 2"}'), 'created', 'and made again');
DROP VIEW "counts all";
SELECT is(left_of_it(), '', 'DROP VIEW takes along its tables');
SELECT is(federation_refused('counts all', 'counts', '{node1,"node''s 2"}'), 'created', 'so it can be made again');
DROP SERVER "node's 2" CASCADE;
SELECT is(left_of_it(), '', 'so does DROP SERVER CASCADE');
SELECT is(federation_refused('counts all', 'counts', '{node1}'), 'created', 'over what is left');
CREATE VIEW ghost AS SELECT 1;
SELECT millrace._federated_put('ghost', 'ghost', 'counts', '{node1}', '{}') \g /dev/null
SET session_replication_role = replica;
DROP VIEW ghost;
RESET session_replication_role;
CREATE VIEW ghost AS SELECT 1;
SELECT lives_ok($$SELECT millrace._federated_put('ghost', 'ghost', 'counts', '{node1}', '{}')$$, 'a view that nobody saw go makes room');
DROP VIEW ghost;
DROP VIEW counts_partial;
SELECT is((SELECT string_agg(name, ', ' ORDER BY name) FROM millrace.shared), 'It''s "per day", weeks', 'a view of states that is dropped is shared no more');
DROP SCHEMA all_rows CASCADE;
DROP TABLE events CASCADE;
SELECT is(left_of_it(), '', 'and DROP TABLE CASCADE of the source');
SELECT is((SELECT string_agg(name, ' ') FROM millrace.shared), NULL, 'nor is what went with its source');
SELECT postgres_fdw_disconnect_all() \g /dev/null
DROP SCHEMA federating CASCADE;
DROP EXTENSION postgres_fdw CASCADE;
DROP EXTENSION IF EXISTS hll CASCADE;
DROP FOREIGN DATA WRAPPER other CASCADE;
DROP OWNED BY mr_reader;
DROP ROLE mr_reader;
DROP DATABASE mr_node1;
DROP DATABASE "mr node's 2";
SET search_path = public;
SELECT * FROM finish();
\else
SELECT plan(1);
SELECT pass('no postgres_fdw');
\endif
