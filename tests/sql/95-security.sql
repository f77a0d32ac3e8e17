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

SELECT plan(6);

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
	'{create_pipe,create_continuous_aggregate,create_alert,create_scorer,_replace_view,drop_pipe,drop_continuous_aggregate,drop_alert,drop_scorer,backfill,maintain,ensure_partitions}'::text[],
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

SELECT * FROM finish();
RESET search_path;
DROP OWNED BY mr_mallory, mr_writer, mr_reader;
DROP ROLE mr_mallory, mr_writer, mr_reader;
SELECT millrace.drop_model(name) FROM millrace.model WHERE name LIKE 'sec\_%';
DROP SCHEMA sec, evil CASCADE;
