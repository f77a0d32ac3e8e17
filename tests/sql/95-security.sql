-- What nobody gets by Millrace that he has not got already.  Several commits: a schema and roles of its own.
SET client_min_messages = error;
CREATE SCHEMA sec;
CREATE ROLE mr_mallory;
CREATE ROLE mr_writer;
CREATE ROLE mr_reader;
GRANT USAGE ON SCHEMA millrace TO mr_mallory, mr_writer, mr_reader;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_mallory;
GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA millrace TO mr_mallory;
GRANT USAGE, CREATE ON SCHEMA sec TO mr_mallory;
GRANT USAGE ON SCHEMA sec TO mr_writer, mr_reader;
SET search_path = sec, public;

SELECT plan(53);

--
-- The catalog
--
SELECT is_empty($$SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND prosecdef$$, 'nothing is SECURITY DEFINER');
SELECT set_eq($$SELECT proname::text FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND provolatile = 'v' AND prokind <> 'a'
	AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype) AND has_function_privilege('public', oid, 'EXECUTE')$$,
	'{warm,_as_owner,_lock_partitions}'::text[], 'what is not read only is not for PUBLIC, but: making a cache file, and two that only members of the owner may call');
SELECT is_empty($$SELECT relname FROM pg_class, aclexplode(relacl) a WHERE relnamespace = 'millrace'::regnamespace AND a.grantee = 0 AND a.privilege_type <> 'SELECT'$$,
	'PUBLIC writes no table');
SELECT is_empty($$SELECT relname FROM pg_class, aclexplode(relacl) a WHERE relname IN ('late_row', 'alert_row', 'dead_letters') AND relnamespace = 'millrace'::regnamespace AND a.grantee = 0$$,
	'and does not read the tables with rows of users');
SELECT set_eq($$SELECT p.proname::text FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'millrace'::regnamespace AND l.lanname IN ('sql', 'plpgsql')
	AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)$$,
	'{create_pipe,create_continuous_aggregate,create_federated_aggregate,create_alert,create_scorer,_replace_view,drop_pipe,drop_continuous_aggregate,drop_alert,drop_scorer,backfill,maintain,ensure_partitions}'::text[],
	'functions in SQL have a search_path of their own, but for those that hand on the caller''s, and procedures, which commit');

--
-- Objects named like what bodies use, in a schema that comes before pg_catalog.  Each does what the real one does, and tells.
--
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.tell(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
	trace text;
BEGIN
	GET DIAGNOSTICS trace = PG_CONTEXT;
	what := what || ' in ' || regexp_replace(regexp_replace(trace, E'^[^\n]*\n[^\n]*\n[^\n]*\n', ''), E'\n.*', '');
	IF position(what IN coalesce(current_setting('evil.told', true), '')) = 0 THEN
		PERFORM set_config('evil.told', coalesce(current_setting('evil.told', true), '') || what || E'\n', false);
	END IF;
END $$;
DO $$
DECLARE
	o record;
	n int := 0;
BEGIN
	/* Those of pg_catalog again; and pairs of types that it has no operator for, so that a new one is the best match wherever it stands. */
	FOR o IN
		WITH t AS (SELECT unnest('{oid,regclass,regtype,regproc,text,name,"\"char\"",int2,int4,int8,xid8,bool,interval,timestamptz,jsonb,float8,numeric}'::regtype[]) AS t)
		SELECT p.oprname, p.oprleft::regtype AS l, p.oprright::regtype AS r, p.oprresult::regtype AS res, format('a OPERATOR(pg_catalog.%s) b', p.oprname) AS body
		FROM pg_operator p WHERE p.oprnamespace = 'pg_catalog'::regnamespace AND p.oprleft IN (SELECT t FROM t) AND p.oprright IN (SELECT t FROM t)
			AND p.oprname IN ('=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '->', '->>', '~~', '?') AND p.oprresult <> 0
		UNION ALL
		SELECT '=', a.t, b.t, 'bool', 'CASE WHEN a::text ~ ''^\d+$'' OR b::text !~ ''^\d+$'' THEN a::text = b::text ELSE '
			|| CASE WHEN a.t::text LIKE 'reg%' THEN 'a::oid::text = b::text' ELSE 'a::text = b::text' END || ' END'
		FROM t a, t b WHERE a.t::text IN ('oid', 'regclass', 'regtype', 'regproc', 'name', 'text', '"char"') AND b.t::text IN ('oid', 'regclass', 'regtype', 'regproc', 'name', 'text', '"char"')
			AND NOT EXISTS (SELECT FROM pg_operator p WHERE p.oprname = '=' AND p.oprleft = a.t AND p.oprright = b.t)
		UNION ALL
		SELECT '||', a.t, b.t, 'text', 'a::text || b::text' FROM t a, t b WHERE a.t::text IN ('text', 'name', 'oid', 'regclass') AND b.t::text IN ('text', 'name', 'oid', 'regclass')
			AND NOT EXISTS (SELECT FROM pg_operator p WHERE p.oprname = '||' AND p.oprleft = a.t AND p.oprright = b.t)
	LOOP
		n := n + 1;
		EXECUTE format('CREATE FUNCTION evil.op%s(a %s, b %s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS $f$ BEGIN PERFORM evil.tell(%L); RETURN %s; END $f$',
			n, o.l, o.r, o.res, format('%s %s %s', o.l, o.oprname, o.r), o.body);
		EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.op%s)', o.oprname, o.l, o.r, n);
	END LOOP;
	FOR o IN
		SELECT p.oid::regprocedure AS f, p.proname, p.prorettype::regtype AS res, (SELECT string_agg(format_type(t, NULL), ', ' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY u(t, i)) AS args,
			(SELECT string_agg('$' || i, ', ' ORDER BY i) FROM generate_series(1, p.pronargs) i) AS vals
		FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0 AND p.proargmodes IS NULL
			AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) t JOIN pg_type y ON y.oid = t WHERE y.typtype = 'p')
			AND p.proname IN ('now', 'clock_timestamp', 'isfinite', 'quote_ident', 'quote_literal', 'current_setting', 'lower', 'upper', 'rtrim', 'octet_length', 'length', 'round',
				'abs', 'greatest', 'least', 'jsonb_typeof', 'to_regclass', 'to_char', 'md5', 'current_schema', 'current_database', 'pg_get_expr', 'hashtextextended',
				'pg_has_role', 'timestamptz', 'text', 'date_part', 'extract', 'substr', 'strpos', 'split_part', 'regexp_replace', 'pg_get_viewdef', 'has_table_privilege', 'nextval')
	LOOP
		EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS $f$ BEGIN PERFORM evil.tell(%L); RETURN pg_catalog.%I(%s); END $f$',
			o.proname, o.args, o.res, o.f::text, o.proname, coalesce(o.vals, ''));
	END LOOP;
	FOR o IN SELECT unnest('{text,name,regclass,interval,int4,int8,timestamptz}'::text[]) AS name LOOP
		EXECUTE format('CREATE DOMAIN evil.%I AS pg_catalog.%1$I CHECK (evil.tell(%L) IS NOT NULL OR true)', o.name, 'type ' || o.name);
	END LOOP;
END $$;

CREATE TABLE sec.ev (at timestamptz NOT NULL, k text, v float8, u bigint, i bigint) PARTITION BY RANGE (at);
CREATE TABLE sec.clean (at timestamptz, k text);
CREATE TEMP TABLE stream (name text); -- also in pg_temp, which comes first for tables
CREATE TEMP TABLE sources (source regclass);
CREATE TEMP TABLE model (name text);
SET search_path = evil, pg_catalog, sec, public;
SELECT millrace.create_source('sec.ev', 'at', '1 day', '30 years');
SELECT millrace.ensure_partitions('sec.ev', '2024-01-01', '2024-01-03');
SELECT millrace.create_pipe('sec_p', 'sec.ev', 'INSERT INTO sec.clean SELECT at, k FROM new_rows');
SELECT millrace.create_continuous_aggregate('sec_m', 'SELECT k, millrace.tumble(at, ''1 minute'') AS window_start, pg_catalog.count(*) AS n FROM sec.ev GROUP BY 1, 2', watermark => '1 minute', late_policy => 'divert');
SELECT millrace.create_continuous_aggregate('sec_m', 'SELECT k, millrace.tumble(at, ''1 minute'') AS window_start, pg_catalog.count(*) AS n, pg_catalog.sum(v) AS v FROM sec.ev GROUP BY 1, 2',
	watermark => '1 minute', late_policy => 'divert', retain => '30 years');
SELECT millrace.create_continuous_aggregate('sec_h', 'SELECT k, millrace.tumble(window_start, ''1 hour'') AS window_start, pg_catalog.sum(n) AS n FROM sec_m GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('sec_h', 'SELECT k, millrace.tumble(window_start, ''1 hour'') AS window_start, pg_catalog.sum(n) AS n, pg_catalog.max(n) AS most FROM sec_m GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('sec_s', 'SELECT u, window_start, pg_catalog.count(*) AS n FROM (SELECT *, millrace.session(at, ''5 minutes'') OVER (PARTITION BY u ORDER BY at) AS window_start FROM sec.ev) s GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('sec_w', 'SELECT k, millrace.hop(at, ''10 minutes'', ''5 minutes'') AS window_start, pg_catalog.count(*) AS n FROM sec.ev GROUP BY 1, 2', with_data => false);
SELECT millrace.create_alert('sec_a', 'SELECT k, window_start, n FROM sec_m');
INSERT INTO sec.ev SELECT pg_catalog.timestamptz_pl_interval('2024-01-02 00:00', pg_catalog.make_interval(mins => g)), 'k', g, pg_catalog.int4mod(g, 5), pg_catalog.int4mod(g, 7) FROM pg_catalog.generate_series(1, 20) g;
CALL millrace.backfill('sec_w');
SELECT millrace.train_als('sec_model', 'SELECT u, i FROM sec.ev', rank => 2, iterations => 1);
SELECT millrace.retrain('sec_model');
SELECT millrace.set_item_features('sec_model', 'SELECT DISTINCT i, k FROM sec.ev');
SELECT millrace.set_baseline('sec_model', 'SELECT i, pg_catalog.count(*) FROM sec.ev GROUP BY 1');
SELECT millrace.refresh_lists('sec_model');
SELECT millrace.create_scorer('sec_sc', 'sec.ev', 'sec_model', 'u', 'i');
INSERT INTO sec.ev VALUES ('2024-01-03', 'z', 1, 3, 4), ('2024-01-01', 'late', 1, 3, 4);
UPDATE sec.ev SET v = 5 WHERE pg_catalog.int8eq(u, 3);
CALL millrace.maintain();
CALL millrace.maintain('sec_m');
CALL millrace.ensure_partitions();
CREATE TEMP TABLE told_wrong AS SELECT * FROM millrace.verify('sec_m') UNION ALL SELECT * FROM millrace.verify('sec_h') UNION ALL SELECT * FROM millrace.verify('sec_s') UNION ALL SELECT * FROM millrace.verify('sec_w');
SELECT millrace.stop_stream('sec_m'), millrace.stop_stream('sec_p');
INSERT INTO sec.ev VALUES ('2024-01-03', 'z', 1, 3, 4);
SELECT millrace.start_stream('sec_m'), millrace.start_stream('sec_p'), millrace.compact('sec_m'), millrace.compact('sec_h'), millrace.refresh('sec_m', '-infinity', 'infinity'), millrace.replay_late('sec_m');
SELECT (SELECT pg_catalog.count(*) FROM millrace.streams), (SELECT pg_catalog.count(*) FROM millrace.revisions), (SELECT pg_catalog.count(*) FROM millrace.late_rows), (SELECT pg_catalog.count(*) FROM millrace.alerts), (SELECT pg_catalog.count(*) FROM millrace.models), (SELECT pg_catalog.count(*) FROM millrace.pipelines), (SELECT pg_catalog.count(*) FROM millrace.trainings), (SELECT pg_catalog.count(*) FROM millrace.tunings);
SELECT (SELECT pg_catalog.count(*) FROM sec_m), (SELECT pg_catalog.count(*) FROM sec_m_final), (SELECT pg_catalog.count(*) FROM sec_m_changes(NULL)), (SELECT pg_catalog.count(*) FROM sec_h), (SELECT pg_catalog.count(*) FROM sec_h_final), (SELECT pg_catalog.count(*) FROM sec_h_changes(NULL)), (SELECT pg_catalog.count(*) FROM sec_w), (SELECT pg_catalog.count(*) FROM sec_s), (SELECT pg_catalog.count(*) FROM sec_a), (SELECT pg_catalog.count(*) FROM sec_sc_latest), (SELECT pg_catalog.count(*) FROM sec_sc_hourly);
SELECT (SELECT pg_catalog.count(*) FROM millrace.recommend_top_k('sec_model', 3)), (SELECT pg_catalog.count(*) FROM millrace.recommend_top_k_for('sec_model', NULL)), (SELECT pg_catalog.count(*) FROM millrace.similar_items('sec_model', 3, 3)), (SELECT pg_catalog.count(*) FROM millrace.evaluate('sec_model', 'VALUES (1, 1)'));
SELECT millrace.tune_als('sec_model', 'SELECT u, i FROM sec.ev', '{"rank": [2]}');
SELECT millrace.fit_indexer('sec_ix', 'SELECT k FROM sec.ev'), millrace.fit_scaler('sec_scale', 'SELECT v FROM sec.ev'), millrace.train_kmeans('sec_km', 'SELECT v, u FROM sec.ev', 2);
SELECT millrace.retrain('sec_ix'), millrace.activate('sec_ix', 1), millrace.retrain('sec_km'), millrace.rollback('sec_km'), millrace.kmeans_cost('sec_km', 'SELECT v, u FROM sec.ev'),
	millrace.silhouette('sec_km', 'SELECT v, u FROM sec.ev'), millrace.import_als('sec_imp', 'SELECT * FROM millrace.user_factors(''sec_model'')', 'SELECT * FROM millrace.item_factors(''sec_model'')');
SELECT pg_catalog.count(*) FROM millrace.window_counts('sec.ev', 'at', '1 day', by => '{k}');
SELECT millrace.drop_expired_partitions('sec.ev'), millrace.prune('sec_model', 1);
CREATE TABLE sec.ev_x PARTITION OF sec.ev FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
ALTER TABLE sec.ev DETACH PARTITION sec.ev_x;
ALTER TABLE sec.ev ATTACH PARTITION sec.ev_x FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
DROP TABLE sec.ev_x;
SELECT pg_catalog.set_config('evil.n_streams', (SELECT pg_catalog.count(*)::pg_catalog.text FROM millrace.stream s WHERE s.status OPERATOR(pg_catalog.=) 'running'), false);
SELECT millrace.drop_alert('sec_a'), millrace.drop_scorer('sec_sc'), millrace.drop_pipe('sec_p'), millrace.drop_continuous_aggregate('sec_h'), millrace.drop_continuous_aggregate('sec_m');
SELECT millrace.drop_model('sec_model');
DROP TABLE sec.ev CASCADE;
SET search_path = sec, public;
SELECT is(nullif(current_setting('evil.told', true), ''), NULL, 'no statement of ours ran an operator, function or type of the caller''s schemas');

--
-- States: anybody may call the functions that merge them, with any bytes
--
CREATE TABLE sec.states (at timestamptz, i int, b bigint, n numeric);
INSERT INTO sec.states SELECT '2024-01-01', g, g * 1000000007::bigint, (g * 1.000000000000001) ^ 3 FROM generate_series(1, 50) g;
SELECT millrace.create_continuous_aggregate('sec_states', 'SELECT millrace.tumble(at, ''1 day'') AS w, sum(b) AS a, avg(b) AS b, sum(n) AS c, stddev(n) AS d, stddev(i) AS e, stddev(b) AS f FROM sec.states GROUP BY 1');
CREATE TABLE sec.known AS SELECT v.* FROM (TABLE sec.sec_states_state UNION ALL TABLE sec.sec_states_delta) d, LATERAL (VALUES ('sum(bigint)'::regprocedure, d.s1), ('avg(bigint)', d.s2), ('sum(numeric)', d.s3), ('stddev(numeric)', d.s4),
	('stddev(integer)', d.s5), ('stddev(bigint)', d.s6)) v(aggregate, state);
GRANT SELECT ON sec.known TO mr_reader;
CREATE FUNCTION sec.damaged(state bytea) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 0 .. (random() * 3)::int LOOP
		state := set_byte(state, (random() * (length(state) - 1))::int, CASE WHEN random() < 0.3 THEN 255 WHEN random() < 0.5 THEN 128 ELSE (random() * 255)::int END);
	END LOOP;
	RETURN CASE WHEN random() < 0.2 THEN substr(state, 1, (random() * length(state))::int) ELSE state END;
END $$;
CREATE FUNCTION sec.try_states(n int) RETURNS TABLE (outcome text) LANGUAGE plpgsql AS $$
DECLARE
	known record;
	result numeric;
BEGIN
	PERFORM setseed(0.5);
	FOR known IN SELECT k.* FROM sec.known k, generate_series(1, n) LOOP
		BEGIN
			EXECUTE format('SELECT millrace.merge_state(%L::regprocedure, NULL::numeric, s) FROM (VALUES ($1), ($2)) q(s)', known.aggregate) INTO result USING sec.damaged(known.state), known.state;
			outcome := 'computed';
		EXCEPTION WHEN OTHERS THEN
			outcome := SQLSTATE;
		END;
		RETURN NEXT;
	END LOOP;
END $$;
SET ROLE mr_reader;
SELECT throws_ok($$SELECT millrace.final_state('sum(numeric)'::regprocedure, NULL::numeric, '\x000000000000000100000001800000000000000000000000000100000000000000000000000000000000000000000000000000'::bytea)$$,
	'22P03', 'malformed state of aggregate sum(numeric)', 'a state that made the server crash');
SELECT set_eq('SELECT * FROM sec.try_states(1000)', '{computed,22P03,22003}'::text[], '6,000 damaged states are computed or refused');
RESET ROLE;
CREATE AGGREGATE sec.secret_sum(bigint) (SFUNC = int8pl, STYPE = bigint, COMBINEFUNC = int8pl);
REVOKE EXECUTE ON FUNCTION sec.secret_sum(bigint) FROM PUBLIC;
SET ROLE mr_reader;
SELECT throws_ok($$SELECT millrace.merge_state('sec.secret_sum(bigint)'::regprocedure, NULL::bigint, 1::bigint)$$, '42501', 'permission denied for aggregate secret_sum', 'nor is it a way around EXECUTE');
SELECT throws_ok('SELECT millrace.on_batch()', '39P01', NULL, 'trigger functions are not called');
SELECT throws_ok('SELECT millrace._on_drop()', '39P01', NULL, 'nor those of event triggers');
RESET ROLE;

--
-- Functions that make texts: anybody may call them, with any relation or none
--
CREATE TABLE sec.texts (at timestamptz, k text);
SELECT millrace.create_continuous_aggregate('sec_texts', 'SELECT k, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM sec.texts GROUP BY 1, 2');
SELECT millrace.create_continuous_aggregate('sec_days', 'SELECT k, millrace.tumble(window_start, ''1 day'') AS day, sum(n) AS n FROM sec_texts GROUP BY 1, 2');
CREATE VIEW sec.hidden AS SELECT k, sum(n) AS n FROM sec_texts GROUP BY k, millrace.tumble(window_start, '1 day');
GRANT SELECT ON sec.sec_texts TO mr_mallory;
SET ROLE mr_mallory;
SELECT throws_ok($$SELECT millrace._partial_text('sec_texts_query', '-', '-')$$, '42P01', 'relation with OID 0 does not exist', 'no relation');
SELECT throws_ok($$SELECT millrace._federated_text('sec_texts_query', 'sec_texts_state', '4294967295', '{}', '', '')$$, '42P01', 'relation with OID 4294967295 does not exist', 'one that is gone');
SELECT throws_ok($$SELECT millrace._aggregate_texts('sec_texts_query', '-', 'sec_texts_delta')$$, '42P01', 'relation with OID 0 does not exist', 'for the views of an aggregate');
SELECT throws_ok($$SELECT millrace._rollup_texts('sec_days_query', '-', 'sec_texts_final')$$, '42P01', 'relation with OID 0 does not exist', 'of a rollup');
SELECT throws_ok($$SELECT millrace._rollup_texts('sec_days_query', 'sec_days_state', '-')$$, '42P01', 'relation with OID 0 does not exist', 'and over what it reads');
SELECT throws_ok($$SELECT millrace._federated_rollup_text('sec_days_query', 'sec_days_state', '-', '', '', 1)$$, '42P01', 'relation with OID 0 does not exist', 'of a federated one');
SELECT throws_ok($$SELECT millrace._federated_rollup_text('sec.hidden', 'sec_days_state', 'sec_texts', '', '', 1)$$, '0A000', 'the query of a rollup must show its window', 'a window that is in GROUP BY only');
SELECT throws_ok($$SELECT millrace._rollup_texts('sec.hidden', 'sec_days_state', 'sec_texts_final')$$, '0A000', 'the query of a rollup must show its window', 'is not for a rollup');
SELECT throws_ok($$SELECT millrace._rollup_redo('sec_texts_state')$$, '42704', '"sec_texts_state" does not hold the rows of a rollup', 'states of an aggregate are none of a rollup');
SELECT throws_ok($$SELECT millrace._rollup_redo_inputs('sec_texts_state')$$, '42704', '"sec_texts_state" does not hold the rows of a rollup', 'for none of the functions in its views');
RESET ROLE;

--
-- The owner of a table whose source it is: what he wrote does not run with the rights of who maintains it
--
CREATE FUNCTION sec.spy(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF current_user <> 'mr_mallory' THEN RAISE EXCEPTION 'got the rights of %', current_user; END IF; RETURN true; END $$;
CREATE FUNCTION sec.spy_late(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'mr_mallory' THEN RAISE EXCEPTION 'got the rights of %', current_user; END IF; RETURN true; END $$;
ALTER FUNCTION sec.spy(int) OWNER TO mr_mallory;
ALTER FUNCTION sec.spy_late(int) OWNER TO mr_mallory;
SET ROLE mr_mallory;
CREATE TABLE sec.trap (at timestamptz NOT NULL, k int, CHECK (k > 0 OR sec.spy(1))) PARTITION BY RANGE (at);
CREATE INDEX ON sec.trap (k) WHERE sec.spy(2);
SELECT millrace.create_source('sec.trap', 'at', '1 day', '30 years');
SELECT millrace.create_continuous_aggregate('sec_trap', 'SELECT k, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM sec.trap WHERE sec.spy(k) GROUP BY 1, 2', watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('sec_trap_s', 'SELECT k, window_start, count(*) AS n FROM (SELECT *, millrace.session(at, ''1 hour'') OVER (PARTITION BY k ORDER BY at) AS window_start FROM sec.trap WHERE sec.spy(k)) s GROUP BY 1, 2');
CREATE OR REPLACE VIEW sec.sec_trap AS SELECT k, window_start, n, final FROM (SELECT 1 AS k, '2024-01-01'::timestamptz AS window_start, 5::bigint AS n, true AS final) q WHERE sec.spy_late(3);
RESET ROLE;
SELECT lives_ok($$SELECT millrace.ensure_partitions('sec.trap', '2024-01-01', '2024-01-02')$$, 'partitions: its constraints and indexes');
SELECT is((SELECT count(*) FROM millrace.partitions('sec.trap')), 2::bigint, 'which are made');
SET ROLE mr_mallory;
INSERT INTO sec.trap VALUES ('2024-01-01', 1);
RESET ROLE;
SELECT results_eq($$SELECT reason, stored, expected FROM millrace.verify('sec_trap')$$, $$VALUES ('defect', '{"n": 5}'::jsonb, '{"n": 1}'::jsonb)$$, 'verify: functions in its views');
SELECT is_empty($$SELECT * FROM millrace.verify('sec_trap_s')$$, 'and in those of sessions');
CALL millrace.maintain('sec_trap');
SELECT is((SELECT status FROM millrace.streams WHERE name = 'sec_trap'), 'running', 'maintain');
SELECT lives_ok($$SELECT millrace.refresh('sec_trap', '-infinity', 'infinity'), millrace.compact('sec_trap')$$, 'refresh and compact');
SET ROLE mr_mallory;
GRANT SELECT ON sec.sec_trap, sec.sec_trap_final TO PUBLIC;
CREATE OR REPLACE VIEW sec.sec_trap_query AS SELECT k, at AS window_start, 1::bigint AS n FROM sec.trap WHERE sec.spy_late(k);
RESET ROLE;
SELECT lives_ok('TABLE millrace.revisions', 'who breaks his views does not break millrace.revisions');
SELECT throws_ok($$INSERT INTO sec.trap VALUES ('2024-01-01', 1)$$, 'P0001', 'got the rights of postgres', 'an INSERT of one''s own into his table is another thing, in PostgreSQL itself');
SET ROLE mr_writer;
SELECT throws_ok($$SELECT millrace._as_owner('sec.trap', 'SELECT 1')$$, '42501', 'must be owner of table trap', 'running as the owner is for members of the role');
SELECT throws_ok($$SELECT millrace._lock_partitions('sec.trap')$$, '42501', 'must be owner of table trap', 'and so is the lock of who makes partitions');
RESET ROLE;
BEGIN;
SELECT millrace.ensure_partitions('sec.trap', '2024-01-01', '2024-01-01');
SELECT is((SELECT string_agg(objsubid::text, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), '6', 'a lock that nobody can take by pg_advisory_lock');
ROLLBACK;
-- Old partitions of one table that cannot go do not keep those of others
CREATE TABLE sec.old_a (at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE sec.old_b (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT millrace.create_source('sec.old_a', 'at', '1 day', '1 year'), millrace.create_source('sec.old_b', 'at', '1 day', '1 year');
SELECT millrace.ensure_partitions('sec.old_a', '2020-01-01', '2020-01-01'), millrace.ensure_partitions('sec.old_b', '2020-01-01', '2020-01-01');
CREATE VIEW sec.on_old AS TABLE sec.old_a_20200101;
SELECT is(millrace.drop_expired_partitions(), 1, 'retention: the others'' go');
SELECT throws_ok($$SELECT millrace.drop_expired_partitions('sec.old_a')$$, '2BP01', NULL, 'asked for by name, it is an error');

--
-- A writer: INSERT only
--
CREATE TABLE sec.written (at timestamptz, k text, n int);
CREATE TABLE sec.written_to (at timestamptz, who name, k text);
SELECT millrace.create_pipe('sec_w', 'sec.written', 'INSERT INTO sec.written_to SELECT at, current_user, k FROM new_rows');
SELECT millrace.create_continuous_aggregate('sec_wa', 'SELECT k, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM sec.written GROUP BY 1, 2', watermark => '1 hour', late_policy => 'divert');
GRANT INSERT ON sec.written TO mr_writer;
SET ROLE mr_writer;
SELECT lives_ok($$INSERT INTO sec.written VALUES ('2024-01-01', 'x', 1)$$, 'needs nothing but INSERT');
SELECT throws_ok('TABLE sec.written_to', '42501', NULL, 'sees nothing of what follows');
SELECT throws_ok('TABLE sec.sec_wa', '42501', NULL, 'nor the aggregate');
SELECT throws_ok('TABLE sec.sec_wa_delta', '42501', NULL, 'nor its states');
SELECT is_empty('TABLE millrace.late_rows', 'nor late rows');
SELECT throws_ok($$SET millrace.max_future = '100 years'$$, '42501', NULL, 'cannot let the watermark run ahead');
SELECT throws_ok($$SET millrace.keep_batches = 0$$, '42501', NULL, 'nor forget batches');
SELECT throws_ok($$SELECT millrace.refresh('sec_wa')$$, '42501', NULL, 'refreshes nothing');
SELECT throws_ok($$DELETE FROM millrace.stream$$, '42501', NULL, 'drops nothing');
RESET ROLE;
SELECT results_eq('SELECT who FROM sec.written_to', $$VALUES (current_user)$$, 'the pipe ran as its owner');

--
-- Row security on a source
--
CREATE TABLE sec.tenants (at timestamptz, tenant text, u bigint, i bigint);
ALTER TABLE sec.tenants OWNER TO mr_mallory;
SET ROLE mr_mallory;
ALTER TABLE sec.tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON sec.tenants USING (tenant = current_setting('sec.tenant', true)) WITH CHECK (true);
GRANT SELECT, INSERT ON sec.tenants TO mr_reader;
INSERT INTO sec.tenants SELECT '2024-01-01', chr(97 + g % 2), g % 5, g % 7 FROM generate_series(1, 20) g;
SELECT millrace.create_continuous_aggregate('sec_ten', 'SELECT tenant, millrace.tumble(at, ''1 day'') AS w, count(*) AS n FROM sec.tenants GROUP BY 1, 2', watermark => '1 day', late_policy => 'divert');
GRANT SELECT ON sec.sec_ten TO mr_reader;
SET ROLE mr_reader;
SET sec.tenant = 'a';
SELECT is((SELECT count(*) FROM sec.tenants), 10::bigint, 'a reader sees his rows');
SELECT is((SELECT sum(count) FROM millrace.window_counts('sec.tenants', 'at', '1 day')), 10::numeric, 'window_counts counts only those');
SELECT is((SELECT sum(n) FROM sec.sec_ten), 20::numeric, 'a continuous aggregate has all: to see it is a right of its own');
INSERT INTO sec.tenants VALUES ('2024-02-01', 'a', 1, 1);
INSERT INTO sec.tenants VALUES ('2024-01-01', 'b', 1, 1);
SELECT is_empty('TABLE millrace.late_rows', 'late rows are not shown to whom row security holds for');
SET ROLE mr_mallory;
SELECT is((SELECT count(*) FROM millrace.late_rows WHERE stream = 'sec_ten'), 1::bigint, 'but to the owner');
ALTER TABLE sec.tenants FORCE ROW LEVEL SECURITY;
SELECT throws_ok($$SELECT millrace.refresh('sec_ten', '-infinity', 'infinity')$$, '0A000',
	'a continuous aggregate cannot be computed from "tenants": row security hides rows from role "mr_mallory"', 'forced upon the owner, nothing is computed from a part of the rows');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('sec_ten2', 'SELECT tenant, millrace.tumble(at, ''1 day'') AS w, count(*) AS n FROM sec.tenants GROUP BY 1, 2')$$, '0A000', NULL, 'nor created');
SELECT throws_ok($$SELECT * FROM millrace.verify('sec_ten')$$, '42501', 'query would be affected by row-level security policy for table "tenants"', 'nor verified');
RESET ROLE;
SELECT is((SELECT sum(n) FROM sec.sec_ten), 21::numeric, 'and what is there stays');

SELECT * FROM finish();
RESET search_path;
SELECT millrace.drop_pipe('sec_w');
DROP OWNED BY mr_mallory, mr_writer, mr_reader CASCADE;
DROP ROLE mr_mallory, mr_writer, mr_reader;
SELECT millrace.drop_model(name) FROM millrace.model WHERE name LIKE 'sec\_%';
DROP SCHEMA sec, evil CASCADE;
