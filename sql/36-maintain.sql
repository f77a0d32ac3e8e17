/*
 * Maintenance: compaction, retention, windows of quiet streams (maintain.c).  What there is to see of streams.
 */
CREATE FUNCTION millrace._compact(name text, "all" bool) RETURNS bigint LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_compact';
COMMENT ON FUNCTION millrace._compact(text, bool) IS 'Internal: merges the states of a continuous aggregate; all: also where that rewrites much more than it removes';
CREATE FUNCTION millrace._advance_idle(name text) RETURNS timestamptz LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_advance_idle';
COMMENT ON FUNCTION millrace._advance_idle(text) IS 'Internal: lets the event time of an idle aggregate follow the clock';
CREATE FUNCTION millrace._close_windows(name text) RETURNS timestamptz LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_close_windows';
COMMENT ON FUNCTION millrace._close_windows(text) IS 'Internal: makes the windows final that ended before the watermark';
CREATE FUNCTION millrace._drop_expired(name text) RETURNS bigint LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_drop_expired';
COMMENT ON FUNCTION millrace._drop_expired(text) IS 'Internal: drops the states of windows that are older than retain';
CREATE FUNCTION millrace._prune_batches() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'mr_prune_batches';
COMMENT ON FUNCTION millrace._prune_batches() IS 'Internal: deletes rows of millrace.batches beyond millrace.keep_batches, and those of sources that are gone';
CREATE FUNCTION millrace._check_maintain() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'mr_check_maintain';
COMMENT ON FUNCTION millrace._check_maintain() IS 'Internal: refuses to run maintain in a transaction block';

/* Of what a dump brings back nothing knows that it belongs to the extension. */
CREATE FUNCTION millrace._tie(name text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_stream_tie';
COMMENT ON FUNCTION millrace._tie(text) IS 'Internal: has DROP EXTENSION CASCADE take the query and the states of a continuous aggregate along, and what was made to share and to federate it';

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
	federated text;
	partial text;
	told text;
	grants text[];
	granted text;
BEGIN
	SELECT * INTO STRICT stream FROM millrace.stream s WHERE s.state = _rewrite_states.state;
	SELECT min(f.name) INTO federated FROM millrace.federated f JOIN pg_class c ON c.oid = f.view WHERE f.aggregate = stream.name;
	IF federated IS NOT NULL THEN
		RAISE EXCEPTION 'states of continuous aggregate "%" cannot be converted while federated aggregate "%" reads them', stream.name, federated USING ERRCODE = '2BP01',
			HINT = format('SELECT millrace.drop_federated_aggregate(%L), and create it again when they are converted here and on the nodes.', federated);
	END IF;
	texts := millrace._aggregate_texts(definition, state, delta);
	SELECT format('CREATE OR REPLACE FUNCTION %s(after xid8) RETURNS TABLE (cursor xid8, %s) LANGUAGE sql STABLE BEGIN ATOMIC %%s; END', p.oid::regproc,
			(SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = t.oid AND a.attnum > 0))
		INTO STRICT changes FROM pg_proc p JOIN pg_class t ON t.oid = stream.target
		WHERE p.pronamespace = t.relnamespace AND p.proargtypes = '5069' AND p.oid IN (
			SELECT d.objid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = delta);
	/* What reads the columns stands aside meanwhile; NAME_partial, which shows them, is made anew. */
	SELECT c.oid::regclass, obj_description(c.oid, 'pg_class'), ARRAY(SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass,
			CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END) FROM aclexplode(c.relacl) a)
		INTO partial, told, grants FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = stream.name;
	IF partial IS NOT NULL THEN
		EXECUTE 'DROP VIEW ' || partial;
	END IF;
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
	IF partial IS NOT NULL THEN
		EXECUTE format('CREATE VIEW %s AS %s', partial, millrace._partial_text(definition, state, delta));
		EXECUTE format('COMMENT ON VIEW %s IS %L', partial, told);
		PERFORM millrace._shared_put(stream.name, partial::regclass);
		FOREACH granted IN ARRAY grants LOOP
			EXECUTE granted;
		END LOOP;
	END IF;
END $$;
COMMENT ON FUNCTION millrace._rewrite_states(regclass, regclass, regclass) IS 'Internal: converts the stored states of a continuous aggregate to the types that its aggregates have on this server, as its owner';
CREATE FUNCTION millrace._convert_states(name text) RETURNS bool LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_convert_states';
COMMENT ON FUNCTION millrace._convert_states(text) IS 'Internal: converts the stored states of a continuous aggregate, where an upgrade of the server asks for it';

CREATE FUNCTION millrace.compact(name text) RETURNS bigint
	LANGUAGE sql STRICT SET search_path = pg_catalog, pg_temp AS $$
		SELECT coalesce((SELECT millrace._settle(s.state) FROM millrace.stream s WHERE s.name = $1 AND s.kind = 'rollup'), millrace._compact($1, true))
	$$;
COMMENT ON FUNCTION millrace.compact(text) IS
'Merges the states that batches have left to a continuous aggregate, to one for each group, and returns how many it wrote.
Of a rollup, the rows of windows that have become final are stored.  Nothing that the aggregate shows changes.  Only of use to read it faster at once: batches and millrace.maintain do the same by and by.';

CREATE FUNCTION millrace._maintained(name text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN name IS NOT NULL THEN ARRAY[name] ELSE coalesce((SELECT array_agg(s.name ORDER BY s.seq)
		FROM millrace.stream s LEFT JOIN pg_class c ON c.oid = s.state
		WHERE pg_has_role(CASE WHEN s.kind = 'history' THEN s.owner::oid ELSE c.relowner END, 'USAGE')), '{}') END
$$;
COMMENT ON FUNCTION millrace._maintained(text) IS 'Internal: the streams that maintain works on';

CREATE FUNCTION millrace._maintain_step(stream text, step text, is_alone bool) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = _maintain_step.stream;
	/* A stream that has failed is healed by its owner. */
	IF NOT FOUND AND NOT is_alone OR s.status = 'failed' AND step <> 'convert' THEN
		RETURN;
	END IF;
	IF s.kind IN ('rollup', 'history') THEN
		IF step = 'convert' AND s.kind = 'rollup' THEN
			step := 'tie';
		ELSIF step <> 'compact' THEN
			RETURN;
		ELSE
			step := s.kind;
		END IF;
	END IF;
	IF step = 'refresh' AND (s.status = 'running' AND EXISTS (SELECT FROM millrace.mark m WHERE m.state = s.state)) IS NOT TRUE THEN
		RETURN;
	END IF;
	BEGIN
		CASE step
			WHEN 'tie' THEN PERFORM millrace._tie(stream);
			WHEN 'convert' THEN PERFORM millrace._convert_states(stream);
				PERFORM millrace._tie(stream);
			WHEN 'idle' THEN PERFORM millrace._advance_idle(stream);
			WHEN 'close' THEN PERFORM millrace._close_windows(stream);
			WHEN 'expire' THEN PERFORM millrace._drop_expired(stream);
			WHEN 'refresh' THEN PERFORM millrace.refresh(stream);
			WHEN 'compact' THEN PERFORM millrace._compact(stream, false);
			WHEN 'rollup' THEN PERFORM millrace.compact(stream);
			WHEN 'history' THEN PERFORM millrace._maintain_history(stream);
		END CASE;
	EXCEPTION WHEN OTHERS THEN
		/* One that fails must not keep the others from it. */
		IF is_alone THEN
			RAISE;
		END IF;
		RAISE WARNING 'could not maintain "%": %', stream, SQLERRM USING ERRCODE = SQLSTATE;
	END;
END $$;
COMMENT ON FUNCTION millrace._maintain_step(text, text, bool) IS 'Internal: a step of maintain, for one stream';

/* A procedure that commits cannot have a search_path of its own: here only what means the same with any. */
CREATE PROCEDURE millrace.maintain(name text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	stream pg_catalog.text;
	step pg_catalog.text;
BEGIN
	PERFORM millrace._check_maintain();
	FOREACH stream IN ARRAY millrace._maintained(name) LOOP
		FOREACH step IN ARRAY ARRAY['convert', 'idle', 'close', 'expire', 'refresh', 'compact'] LOOP
			PERFORM millrace._maintain_step(stream, step, name IS NOT NULL);
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
run inside a transaction block.  With pg_cron: SELECT millrace.schedule(''maintain'');';

REVOKE EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text), millrace._tie(text),
	millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text),
	millrace._maintain_step(text, text, bool)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text), millrace._tie(text),
	millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text),
	millrace._maintain_step(text, text, bool)
	TO @extowner@ WITH GRANT OPTION;
REVOKE EXECUTE ON PROCEDURE millrace.maintain(text) FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE millrace.maintain(text) TO @extowner@ WITH GRANT OPTION;

CREATE VIEW millrace.streams AS
	WITH recent AS (
		SELECT b.source, w.key AS name, b.rows, (w.value ->> 'ms')::float8 AS ms
		FROM millrace.batches b, pg_catalog.jsonb_each(b.streams) w
		WHERE b.started > pg_catalog.now() - interval '1 minute'),
	work AS (
		SELECT r.source, r.name, pg_catalog.sum(r.rows)::float8 / 60 AS rows_per_second, pg_catalog.avg(r.ms) AS ms_per_batch
		FROM recent r GROUP BY 1, 2),
	times AS (
		SELECT p.state, pg_catalog.max(p.max_time) AS max_time FROM millrace.progress p GROUP BY 1)
	SELECT s.name, s.kind, s.source, s.target, coalesce(c.relowner::regrole, s.owner) AS owner,
		coalesce(s.command, pg_catalog.pg_get_viewdef(s.definition)) AS definition, s.status, s.error,
		t.max_time - s.watermark AS watermark,
		CASE WHEN s.watermark IS NOT NULL THEN nullif(millrace._closed_to(s.state), '-infinity') END AS closed_to,
		CASE WHEN s.watermark IS NOT NULL THEN s.late_policy END AS late_policy, s.retained_from,
		CASE WHEN s.state IS NOT NULL THEN (nullif(c.reltuples, -1) + coalesce(nullif(d.reltuples, -1), 0))::bigint END AS state_rows,
		CASE WHEN s.delta IS NOT NULL THEN pg_catalog.pg_total_relation_size(coalesce(s.state, s.target)) + pg_catalog.pg_total_relation_size(s.delta)
			WHEN s.state IS NOT NULL THEN pg_catalog.pg_total_relation_size(s.state) END AS state_bytes,
		CASE WHEN s.state IS NOT NULL THEN (SELECT pg_catalog.count(*) FROM millrace.mark m WHERE m.state = s.state) END AS marks,
		coalesce(w.rows_per_second, 0) AS rows_per_second, w.ms_per_batch,
		(SELECT b.started FROM millrace.batches b WHERE b.source = s.source ORDER BY b.xid DESC LIMIT 1) AS last_batch,
		s.created
	FROM millrace.stream s LEFT JOIN pg_catalog.pg_class c ON c.oid = CASE WHEN s.kind IN ('alert', 'scorer') THEN s.target ELSE s.state END LEFT JOIN pg_catalog.pg_class d ON d.oid = s.delta
		LEFT JOIN times t ON t.state = s.state LEFT JOIN work w ON w.source = s.source AND w.name = s.name
	ORDER BY s.source, s.seq;
GRANT SELECT ON millrace.streams TO PUBLIC;
COMMENT ON VIEW millrace.streams IS 'Streams, in the order in which they run: what they are, how far they are, and how fast';
COMMENT ON COLUMN millrace.streams.name IS 'Name, unique in the database';
COMMENT ON COLUMN millrace.streams.kind IS 'history, pipe, aggregate, rollup, scorer or alert';
COMMENT ON COLUMN millrace.streams.source IS 'Table whose batches it handles';
COMMENT ON COLUMN millrace.streams.target IS 'Table that a pipe or scorer fills, or view of a continuous aggregate or alert; of a history its table of folded rows';
COMMENT ON COLUMN millrace.streams.owner IS 'Role whose rights it uses';
COMMENT ON COLUMN millrace.streams.definition IS 'Its command or query; arguments of a scorer; ratings of a history';
COMMENT ON COLUMN millrace.streams.status IS 'running; stopped by stop_stream; failed, with the error; filling: not all rows from before it was created are in it';
COMMENT ON COLUMN millrace.streams.error IS 'Why it failed: the SQLSTATE; the message, which may quote rows, is in the server''s log';
COMMENT ON COLUMN millrace.streams.watermark IS 'Event time before which the next batch''s rows are late: the greatest one so far less the delay';
COMMENT ON COLUMN millrace.streams.closed_to IS 'Event time up to which windows are final for this reader; behind the watermark until the next batch or millrace.maintain';
COMMENT ON COLUMN millrace.streams.late_policy IS 'What becomes of late rows: update, drop or divert; NULL without a watermark';
COMMENT ON COLUMN millrace.streams.retained_from IS 'Event time before which windows have been dropped';
COMMENT ON COLUMN millrace.streams.state_rows IS 'Rows of stored states, as the server estimated them when it last looked (ANALYZE, autovacuum); NULL: never';
COMMENT ON COLUMN millrace.streams.state_bytes IS 'Size of the stored states, folded or not, with their indexes';
COMMENT ON COLUMN millrace.streams.marks IS 'Ranges of windows that wait for millrace.refresh, because their rows were changed or not handled';
COMMENT ON COLUMN millrace.streams.rows_per_second IS 'Rows inserted into the source and given to it, over the last minute';
COMMENT ON COLUMN millrace.streams.ms_per_batch IS 'Milliseconds that it took for each batch of the last minute; NULL if there was none';
COMMENT ON COLUMN millrace.streams.last_batch IS 'When the source''s last batch began';
COMMENT ON COLUMN millrace.streams.created IS 'When it was created';
