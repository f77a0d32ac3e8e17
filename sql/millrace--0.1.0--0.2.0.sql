/*
 * From 0.1.0 to 0.2.0: what has been added to or changed in the numbered parts since 0.1.0 was tagged.
 * tests/e2e/upgrade compares an upgraded database with a new one, object by object.
 */

/* After an upgrade of the server: some aggregates keep their states in another type than before. */
CREATE FUNCTION millrace._aggregate_states(definition regclass, OUT columns name[], OUT types regtype[], OUT aggregates regprocedure[])
	LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_states';
COMMENT ON FUNCTION millrace._aggregate_states(regclass) IS 'Internal: the columns of a continuous aggregate''s tables that hold states, the types that these have on this server, and the aggregates whose they are';
CREATE FUNCTION millrace._states_differ(definition regclass, state regclass, delta regclass) RETURNS bool
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM millrace._aggregate_states(definition) d, unnest(d.columns, d.types) t(name, type)
		JOIN pg_attribute a ON a.attrelid IN (state, delta) AND a.attname = t.name AND a.atttypid <> t.type)
$$;
COMMENT ON FUNCTION millrace._states_differ(regclass, regclass, regclass) IS 'Internal: whether the tables of a continuous aggregate have states of other types than its aggregates have on this server';

CREATE FUNCTION millrace._converted_state(aggregate regprocedure, from_type regtype, to_type regtype) RETURNS text
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	/* PostgreSQL 17 counts infinite intervals apart: number, sum, number of infinite and of minus infinite ones. */
	IF to_type = 'bytea'::regtype AND aggregate = 'avg(interval)'::regprocedure AND from_type = 'interval[]'::regtype THEN
		RETURN 'int8send((extract(epoch FROM %1$s[2]) * 1000000)::bigint) || interval_send(%1$s[1]) || int8send(0) || int8send(0)';
	ELSIF to_type = 'bytea'::regtype AND aggregate = 'sum(interval)'::regprocedure AND from_type = 'interval'::regtype THEN
		RETURN 'int8send(1) || interval_send(%1$s) || int8send(0) || int8send(0)';
	END IF;
	RAISE EXCEPTION 'states of aggregate % cannot be converted from type % to %', aggregate, from_type, to_type USING ERRCODE = '0A000',
		HINT = 'Drop the continuous aggregate and create it again.';
END $$;
COMMENT ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype) IS 'Internal: an expression, for format, that makes a state of an aggregate of what another version of the server has stored';

CREATE FUNCTION millrace._rewrite_states(definition regclass, state regclass, delta regclass) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	stream millrace.stream;
	texts record;
	changes text;
	empty text;
	rel regclass;
	altered text;
BEGIN
	SELECT * INTO STRICT stream FROM millrace.stream s WHERE s.state = _rewrite_states.state;
	texts := millrace._aggregate_texts(definition, state, delta);
	SELECT format('CREATE OR REPLACE FUNCTION %s(after xid8) RETURNS TABLE (cursor xid8, %s) LANGUAGE sql STABLE BEGIN ATOMIC %%s; END', p.oid::regproc,
			(SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = t.oid AND a.attnum > 0))
		INTO STRICT changes FROM pg_proc p JOIN pg_class t ON t.oid = stream.target
		WHERE p.pronamespace = t.relnamespace AND p.proargtypes = '5069' AND p.oid IN (
			SELECT d.objid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = delta);
	/* What reads the columns stands aside meanwhile. */
	FOREACH rel IN ARRAY ARRAY[stream.final, stream.target] LOOP
		SELECT string_agg(format('NULL::%s%s AS %I', format_type(a.atttypid, a.atttypmod),
				CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', n.nspname, c.collname) END, a.attname), ', ' ORDER BY a.attnum)
			INTO empty FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			LEFT JOIN pg_collation c ON c.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
			WHERE a.attrelid = rel AND a.attnum > 0;
		EXECUTE format('CREATE OR REPLACE VIEW %s AS SELECT %s', rel, empty);
	END LOOP;
	EXECUTE format(changes, 'SELECT NULL::xid8, ' || empty);
	FOREACH rel IN ARRAY ARRAY[state, delta] LOOP
		SELECT string_agg(format('ALTER COLUMN %I TYPE %s USING ', t.name, t.type) || format(millrace._converted_state(t.aggregate, a.atttypid, t.type), t.name), ', ')
			INTO altered FROM millrace._aggregate_states(definition) d, unnest(d.columns, d.types, d.aggregates) t(name, type, aggregate)
			JOIN pg_attribute a ON a.attrelid = rel AND a.attname = t.name AND a.atttypid <> t.type;
		IF altered IS NOT NULL THEN
			EXECUTE format('ALTER TABLE %s %s', rel, altered);
		END IF;
	END LOOP;
	EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', stream.target, texts.live);
	EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', stream.final, texts.final);
	EXECUTE format(changes, texts.changes);
END $$;
COMMENT ON FUNCTION millrace._rewrite_states(regclass, regclass, regclass) IS 'Internal: converts the stored states of a continuous aggregate to the types that its aggregates have on this server, as its owner';
CREATE FUNCTION millrace._convert_states(name text) RETURNS bool LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_convert_states';
COMMENT ON FUNCTION millrace._convert_states(text) IS 'Internal: converts the stored states of a continuous aggregate, where an upgrade of the server asks for it';

CREATE OR REPLACE PROCEDURE millrace.maintain(name text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	names text[];
	stream text;
	step text;
BEGIN
	PERFORM millrace._check_maintain();
	SELECT pg_catalog.array_agg(s.name ORDER BY s.seq) INTO names
		FROM millrace.stream s LEFT JOIN pg_catalog.pg_class c ON c.oid = s.state
		WHERE maintain.name IS NULL AND pg_catalog.pg_has_role(CASE WHEN s.kind = 'history' THEN s.owner::oid ELSE c.relowner END, 'USAGE');
	IF maintain.name IS NOT NULL THEN
		names := ARRAY[maintain.name];
	END IF;
	FOREACH stream IN ARRAY coalesce(names, '{}') LOOP
		FOREACH step IN ARRAY ARRAY['_convert_states($1)', '_advance_idle($1)', '_close_windows($1)', '_drop_expired($1)', 'refresh($1)', '_compact($1, false)'] LOOP
			EXIT WHEN maintain.name IS NULL AND NOT EXISTS (SELECT FROM millrace.stream s WHERE s.name = stream);
			IF (SELECT s.kind = 'rollup' FROM millrace.stream s WHERE s.name = stream) THEN
				CONTINUE WHEN step <> '_compact($1, false)';
				step := 'compact($1)';
			END IF;
			IF (SELECT s.kind = 'history' FROM millrace.stream s WHERE s.name = stream) THEN
				CONTINUE WHEN step <> '_compact($1, false)';
				step := '_maintain_history($1)';
			END IF;
			/* A stream that has failed is healed by its owner. */
			CONTINUE WHEN step = 'refresh($1)' AND NOT EXISTS (
				SELECT FROM millrace.stream s JOIN millrace.mark m USING (state) WHERE s.name = stream AND s.status = 'running');
			CONTINUE WHEN step <> '_convert_states($1)' AND (SELECT s.status = 'failed' FROM millrace.stream s WHERE s.name = stream);
			BEGIN
				EXECUTE 'SELECT millrace.' || step USING stream;
			EXCEPTION WHEN OTHERS THEN
				/* One that fails must not keep the others from it. */
				IF maintain.name IS NOT NULL THEN
					RAISE;
				END IF;
				RAISE WARNING 'could not maintain "%": %', stream, SQLERRM USING ERRCODE = SQLSTATE;
			END;
			COMMIT;
		END LOOP;
	END LOOP;
	PERFORM millrace._prune_batches();
	PERFORM millrace._sweep_cache();
END $$;
COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates, and for what users have, from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, refreshes what is
marked, merges states, settles rollups, converts what another major version of the server has stored, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT cron.schedule(''millrace'', ''* * * * *'', ''CALL millrace.maintain()'');';

REVOKE EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text) TO @extowner@ WITH GRANT OPTION;

/* Whether late rows were dropped is known after millrace.batches has forgotten them, too. */
ALTER TABLE millrace.stream ADD COLUMN late_since timestamptz;
COMMENT ON COLUMN millrace.stream.late_since IS 'When a row first came too late for it and was not taken (late_policy drop or divert); NULL: none has';
UPDATE millrace.stream s SET late_since = b.started
	FROM (SELECT w.key AS name, pg_catalog.min(b.started) AS started FROM millrace.batches b, pg_catalog.jsonb_each(b.streams) w WHERE w.value ? 'late' GROUP BY 1) b
	WHERE b.name = s.name AND s.late_policy <> 'update';
CREATE OR REPLACE FUNCTION millrace.verify(name text) RETURNS TABLE (window_start timestamptz, key jsonb, stored jsonb, expected jsonb, reason text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $$
#variable_conflict use_column
DECLARE
	s millrace.stream;
	keys record;
	win record;
	win_size interval := '0';
	win_kind text := 'rollup';
	columns text;
	key_columns text;
	tolerances jsonb;
	longest interval := '0';
	closed_to timestamptz;
	has_late bool;
	has_join bool;
	diff record;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = verify.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.state IS NULL THEN
		RAISE EXCEPTION 'stream "%" is a %, which cannot be verified', name, s.kind USING ERRCODE = '42809', HINT = 'Name a continuous aggregate.';
	END IF;
	IF s.definition IS NULL OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.definition) THEN
		RAISE EXCEPTION 'the query of continuous aggregate "%" is gone', name USING ERRCODE = '55000', DETAIL = s.error,
			HINT = format('Restore what it reads, then call millrace.refresh(%L).', name);
	END IF;
	keys := millrace._aggregate_keys(s.definition);
	IF s.kind = 'aggregate' THEN
		win := millrace._aggregate_window(s.definition);
		win_size := win.size;
		win_kind := win.kind;
		closed_to := millrace._closed_to(s.state);
	END IF;
	IF win_kind = 'session' THEN
		EXECUTE format('SELECT coalesce(max(q.window_last - q.window_start), ''0'') FROM (SELECT window_start, window_last FROM %s
			UNION ALL SELECT window_start, window_last FROM %s) q WHERE isfinite(q.window_start) AND isfinite(q.window_last)', s.state, s.delta) INTO longest;
	END IF;
	/* Everything that is neither the window nor a key is compared. */
	SELECT string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname <> ALL (keys.keys) AND a.attname IS DISTINCT FROM keys.window_column),
		string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname = ANY (keys.keys)),
		coalesce(jsonb_object_agg(a.attname, CASE WHEN e.oid = 'float4'::regtype THEN 1e-5 ELSE 1e-9 END)
			FILTER (WHERE e.oid IN ('float4'::regtype, 'float8'::regtype)), '{}')
		INTO columns, key_columns, tolerances
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_type e ON e.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END
		WHERE a.attrelid = s.definition AND a.attnum > 0 AND NOT a.attisdropped;
	has_late := s.late_policy <> 'update' AND s.late_since IS NOT NULL;
	has_join := s.kind = 'aggregate' AND EXISTS (SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
		WHERE w.ev_class = s.definition AND d.refclassid = 'pg_class'::regclass AND d.refobjid NOT IN (s.definition, s.source));
	FOR diff IN EXECUTE format($q$
		WITH s AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %4$s r) q),
		e AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %5$s r) q)
		SELECT coalesce(s.w, e.w) AS w, coalesce(s.k, e.k) AS k, s.v AS stored, e.v AS expected
		FROM s FULL JOIN e ON s.id = e.id AND s.i = e.i
		WHERE s.v IS DISTINCT FROM e.v AND millrace._differ(s.v, e.v, $1)
		ORDER BY 1, 2$q$,
		CASE WHEN keys.window_column IS NULL THEN 'NULL::timestamptz' ELSE 'r.' || quote_ident(keys.window_column) END,
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || key_columns || ') x)', '''{}''::jsonb'),
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || columns || ') x)', '''{}''::jsonb'), s.target, s.definition) USING tolerances
	LOOP
		/* Its rows, or its states, are gone. */
		CONTINUE WHEN s.kind = 'aggregate' AND (EXISTS (SELECT FROM millrace.gone_range g WHERE g.source = s.source
				AND g.from_time < diff.w + win_size + longest AND g.to_time > CASE win_kind WHEN 'session' THEN diff.w - win_size - longest ELSE diff.w END)
			OR diff.w + CASE win_kind WHEN 'session' THEN '0' ELSE win_size END <= s.retained_from);
		window_start := diff.w;
		key := diff.k;
		stored := diff.stored;
		expected := diff.expected;
		SELECT format('marked (%s), not refreshed', string_agg(DISTINCT m.reason, ', ')) INTO reason FROM millrace.mark m
			WHERE m.state = s.state AND CASE WHEN m.from_time = '-infinity' AND m.to_time = 'infinity' THEN true
				WHEN diff.w IS NULL THEN m.from_time > m.to_time OR keys.window_column IS NULL
				WHEN win_kind = 'session' THEN m.to_time >= diff.w AND m.from_time <= diff.w + longest + win_size
				ELSE m.to_time >= diff.w AND m.from_time < diff.w + win_size OR m.from_time = diff.w END
			HAVING count(*) > 0;
		IF reason IS NULL AND s.kind = 'rollup' AND EXISTS (SELECT FROM millrace.stream i JOIN millrace.mark m USING (state) WHERE i.target = ANY (s.inputs)) THEN
			reason := 'windows that it reads are marked, not refreshed';
		ELSIF reason IS NULL AND has_late AND diff.w + win_size <= closed_to THEN
			reason := 'late rows dropped';
		ELSIF reason IS NULL AND has_join THEN
			reason := 'a joined table may have changed';
		END IF;
		reason := coalesce(reason, 'defect');
		RETURN NEXT;
	END LOOP;
END $$;
