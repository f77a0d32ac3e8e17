-- Aggregates of another extension: HyperLogLog (package postgresql-15-hll; nobody packs it for the servers of tests/lib/postgres).
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hll') OR current_setting('server_version_num')::int < 160000 AS has_hll \gset
\if :has_hll
BEGIN;
SELECT plan(11);
SET LOCAL client_min_messages = warning;
CREATE EXTENSION hll;
\ir ../lib/streams.sql
CREATE TABLE visits (at timestamptz, page text, visitor bigint);
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('visitors', $$SELECT page, millrace.tumble(at, '1 hour') AS window_start,
	hll_cardinality(hll_add_agg(hll_hash_bigint(visitor))) AS visitors FROM visits GROUP BY 1, 2$$)$q$, 'an approximate distinct count');
SELECT millrace.create_continuous_aggregate('sketches', $$SELECT page, millrace.tumble(at, '1 hour') AS window_start, hll_add_agg(hll_hash_bigint(visitor)) AS sketch FROM visits GROUP BY 1, 2$$);
INSERT INTO visits SELECT '2024-01-01'::timestamptz + i * interval '1 s', 'p' || i % 3, i % 1000 FROM generate_series(1, 8000) i;
INSERT INTO visits SELECT '2024-01-01'::timestamptz + i * interval '1 s', 'p' || i % 3, i % 1500 FROM generate_series(1, 8000) i;
SELECT is(differences('visitors'), 0::bigint, 'equals its query over all rows');
SELECT ok(bool_and(abs(visitors - exact) < 0.1 * exact), 'and is about right') FROM visitors
	JOIN (SELECT page, millrace.tumble(at, '1 hour') AS window_start, count(DISTINCT visitor) AS exact FROM visits GROUP BY 1, 2) e USING (page, window_start);
SELECT is(hll_cardinality(hll_union_agg(sketch))::bigint, (SELECT hll_cardinality(hll_add_agg(hll_hash_bigint(visitor)))::bigint FROM visits), 'sketches of windows can be united') FROM sketches;
SELECT millrace.create_continuous_aggregate('visitors_hop', $$SELECT millrace.hop(at, '1 hour', '20 minutes') AS window_start, # hll_add_agg(hll_hash_bigint(visitor)) AS visitors FROM visits GROUP BY 1$$);
SELECT is(differences('visitors_hop'), 0::bigint, 'sliding');
CREATE TABLE pages (page text, site text);
INSERT INTO pages VALUES ('p0', 'x'), ('p1', 'y');
SELECT millrace.create_continuous_aggregate('visitors_site', $$SELECT millrace.tumble(at, '1 hour') AS window_start, site, # hll_add_agg(hll_hash_bigint(visitor)) AS visitors FROM visits JOIN pages USING (page) GROUP BY 1, 2$$);
INSERT INTO visits SELECT '2024-01-01'::timestamptz + i * interval '1 s', 'p' || i % 3, i FROM generate_series(1, 2000) i;
SELECT is(differences('visitors') + differences('visitors_hop') + differences('visitors_site'), 0::bigint, 'and joined, through PostgreSQL''s plan');
-- hll copies a state into memory as it is: only what was sealed here reaches it
CREATE ROLE mr_anybody;
GRANT USAGE ON SCHEMA millrace TO mr_anybody;
GRANT SELECT ON sketches_delta, sketches_state TO mr_anybody;
CREATE TEMP TABLE sealed AS SELECT s1 AS state FROM (TABLE sketches_state UNION ALL TABLE sketches_delta) s LIMIT 1;
GRANT SELECT ON sealed TO mr_anybody;
SET LOCAL ROLE mr_anybody;
SELECT throws_ok($$SELECT millrace.final_state('hll_add_agg(hll_hashval)'::regprocedure, NULL::hll, decode(repeat('03', 200000), 'hex'))$$, '22P03',
	'malformed state of aggregate hll_add_agg(hll_hashval)', 'a state longer than its memory');
SELECT throws_ok($$SELECT millrace.final_state('hll_add_agg(hll_hashval)'::regprocedure, NULL::hll, set_byte(state, 0, 77)) FROM sealed$$, '22P03', NULL, 'one that was changed');
SELECT throws_ok($$SELECT millrace.merge_state('hll_add_agg(hll_hashval)'::regprocedure, NULL::hll, substr(state, 1, 20)) FROM sealed$$, '22P03', NULL, 'one that was cut off');
SELECT isnt((SELECT millrace.final_state('hll_add_agg(hll_hashval)'::regprocedure, NULL::hll, state) FROM sealed), NULL, 'one of our own');
SELECT throws_ok('TABLE millrace.state_key', '42501', NULL, 'nobody reads the key');
RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
\else
SELECT plan(1);
SELECT skip('this server has no hll', 1);
SELECT * FROM finish();
\endif
