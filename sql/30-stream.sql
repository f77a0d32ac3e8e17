/*
 * Streams: what is kept up to date from the batches of a source, in the transaction that inserts them.
 */
CREATE TABLE millrace.stream (
	name text PRIMARY KEY,
	seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
	kind text NOT NULL CHECK (kind IN ('pipe', 'aggregate')),
	source regclass NOT NULL,
	target regclass NOT NULL,
	command text,
	definition regclass,
	state regclass,
	owner regrole NOT NULL,
	settings text[] NOT NULL,
	created timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX stream_source ON millrace.stream (source);
SELECT pg_catalog.pg_extension_config_dump('millrace.stream', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.stream_seq_seq', '');
GRANT SELECT ON millrace.stream, millrace.stream_seq_seq TO PUBLIC;
COMMENT ON TABLE millrace.stream IS 'Catalog of streams; read millrace.streams instead';
COMMENT ON COLUMN millrace.stream.name IS 'Name, unique in the database';
COMMENT ON COLUMN millrace.stream.seq IS 'Order in which the streams of a source run';
COMMENT ON COLUMN millrace.stream.kind IS 'pipe or aggregate';
COMMENT ON COLUMN millrace.stream.source IS 'Table whose batches it handles';
COMMENT ON COLUMN millrace.stream.target IS 'Table that a pipe fills, or view of a continuous aggregate';
COMMENT ON COLUMN millrace.stream.command IS 'Command of a pipe';
COMMENT ON COLUMN millrace.stream.definition IS 'View with the query of a continuous aggregate';
COMMENT ON COLUMN millrace.stream.state IS 'Table with the partial states of a continuous aggregate';
COMMENT ON COLUMN millrace.stream.owner IS 'Role whose rights a pipe uses; a continuous aggregate uses those of its state table''s owner';
COMMENT ON COLUMN millrace.stream.settings IS 'Settings that give its text a meaning, as they were when it was created';
COMMENT ON COLUMN millrace.stream.created IS 'When it was created';

CREATE VIEW millrace.streams AS
	SELECT s.name, s.kind, s.source, s.target, coalesce(c.relowner::regrole, s.owner) AS owner,
		coalesce(s.command, pg_catalog.pg_get_viewdef(s.definition)) AS definition,
		CASE WHEN s.state IS NOT NULL THEN pg_catalog.pg_total_relation_size(s.state) END AS state_bytes, s.created
	FROM millrace.stream s LEFT JOIN pg_catalog.pg_class c ON c.oid = s.state
	ORDER BY s.source, s.seq;
GRANT SELECT ON millrace.streams TO PUBLIC;
COMMENT ON VIEW millrace.streams IS 'Pipes and continuous aggregates, in the order in which they run';
COMMENT ON COLUMN millrace.streams.name IS 'Name, unique in the database';
COMMENT ON COLUMN millrace.streams.kind IS 'pipe or aggregate';
COMMENT ON COLUMN millrace.streams.source IS 'Table whose batches it handles';
COMMENT ON COLUMN millrace.streams.target IS 'Table that a pipe fills, or view of a continuous aggregate';
COMMENT ON COLUMN millrace.streams.owner IS 'Role whose rights it uses';
COMMENT ON COLUMN millrace.streams.definition IS 'Its command or query';
COMMENT ON COLUMN millrace.streams.state_bytes IS 'Size of the stored states';
COMMENT ON COLUMN millrace.streams.created IS 'When it was created';

CREATE TABLE millrace.batches (
	xid xid8 NOT NULL,
	source regclass NOT NULL,
	started timestamptz NOT NULL,
	rows bigint NOT NULL,
	ms float8 NOT NULL,
	streams jsonb NOT NULL,
	PRIMARY KEY (xid, source)
);
/* Not dumped: transaction ids mean nothing to another server, where they would come again. */
GRANT SELECT ON millrace.batches TO PUBLIC;
COMMENT ON TABLE millrace.batches IS 'One row for each committed transaction and source that it wrote';
COMMENT ON COLUMN millrace.batches.xid IS 'Transaction';
COMMENT ON COLUMN millrace.batches.source IS 'Table that was written';
COMMENT ON COLUMN millrace.batches.started IS 'When its first statement on the source ended';
COMMENT ON COLUMN millrace.batches.rows IS 'Rows inserted into the source';
COMMENT ON COLUMN millrace.batches.ms IS 'Milliseconds that all streams took';
COMMENT ON COLUMN millrace.batches.streams IS 'For each stream: rows written and milliseconds, as in {"purchases": {"ms": 0.4, "rows": 12}}';

CREATE FUNCTION millrace._stream_put(name text, kind text, source regclass, target regclass, command text,
	definition regclass, state regclass) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'mr_stream_put';
COMMENT ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass) IS 'Internal: writes millrace.stream';
CREATE FUNCTION millrace._stream_drop(name text, kind text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_stream_drop';
COMMENT ON FUNCTION millrace._stream_drop(text, text) IS 'Internal: drops a stream and what was made for it';

/* Pipes. */
CREATE FUNCTION millrace._pipe_target(source regclass, command text) RETURNS regclass
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_pipe_target';
COMMENT ON FUNCTION millrace._pipe_target(regclass, text) IS 'Internal: checks the command of a pipe and returns the table it fills';

CREATE FUNCTION millrace.create_pipe(name text, source regclass, command text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	target regclass;
BEGIN
	IF name IS NULL OR source IS NULL OR command IS NULL THEN
		RAISE EXCEPTION 'name, source and command of a pipe must not be null' USING ERRCODE = '22004';
	END IF;
	PERFORM millrace._lock_source(source);
	target := millrace._pipe_target(source, command);
	IF EXISTS (
		WITH RECURSIVE fed(rel) AS (
			SELECT target::oid
			UNION
			SELECT r.rel FROM fed f JOIN LATERAL (
				SELECT s.target::oid FROM millrace.stream s WHERE s.source = f.rel AND s.kind = 'pipe'
				UNION ALL SELECT a.relid::oid FROM pg_catalog.pg_partition_ancestors(f.rel::regclass) a) r(rel) ON true)
		SELECT FROM fed WHERE fed.rel = create_pipe.source)
	THEN
		RAISE EXCEPTION 'pipe "%" would feed its own source %', name, source USING ERRCODE = '42P17',
			HINT = 'The target of a pipe must not lead back to its source.';
	END IF;
	PERFORM millrace._source_put(source, NULL, NULL, NULL);
	PERFORM millrace._stream_put(name, 'pipe', source, target, command, NULL, NULL);
	PERFORM millrace._install_triggers(source);
END $$;
COMMENT ON FUNCTION millrace.create_pipe(text, regclass, text) IS
'Creates a pipe: a command that runs for each batch of a source, in the same transaction.
command: one INSERT INTO target SELECT … FROM new_rows; new_rows has the columns of the source and the rows of the batch.
It sees rows inserted from now on; insert older ones yourself.  It runs with the rights and search_path of its creator.';

CREATE FUNCTION millrace.drop_pipe(name text) RETURNS void
	LANGUAGE sql STRICT AS $$ SELECT millrace._stream_drop($1, 'pipe') $$;
COMMENT ON FUNCTION millrace.drop_pipe(text) IS 'Drops a pipe; its target keeps its rows';

/* Continuous aggregates. */
CREATE FUNCTION millrace._merge_state_trans(internal, aggregate regprocedure, result anyelement, state "any") RETURNS internal
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_merge_state_trans';
COMMENT ON FUNCTION millrace._merge_state_trans(internal, regprocedure, anyelement, "any") IS 'Internal: transition function of merge_state';
CREATE FUNCTION millrace._merge_state_final(internal, aggregate regprocedure, result anyelement, state "any") RETURNS anyelement
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_merge_state_final';
COMMENT ON FUNCTION millrace._merge_state_final(internal, regprocedure, anyelement, "any") IS 'Internal: final function of merge_state';
CREATE AGGREGATE millrace.merge_state(aggregate regprocedure, result anyelement, state "any") (
	SFUNC = millrace._merge_state_trans, STYPE = internal, SSPACE = 256,
	FINALFUNC = millrace._merge_state_final, FINALFUNC_EXTRA, FINALFUNC_MODIFY = READ_WRITE, PARALLEL = SAFE
);
COMMENT ON AGGREGATE millrace.merge_state(regprocedure, anyelement, "any") IS
'Combines the partial states of an aggregate and returns its value; views of continuous aggregates use it.
aggregate: the aggregate that made the states; result: a value of its result type, only for the type; state: the state.';

CREATE FUNCTION millrace._aggregate_parts(definition regclass, OUT source regclass, OUT columns text)
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_parts';
COMMENT ON FUNCTION millrace._aggregate_parts(regclass) IS 'Internal: checks the query of a continuous aggregate; returns its source and the columns of its states';
CREATE FUNCTION millrace._aggregate_view(definition regclass, state regclass) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_view';
COMMENT ON FUNCTION millrace._aggregate_view(regclass, regclass) IS 'Internal: query over the states that returns what the definition returns';
CREATE FUNCTION millrace._aggregate_backfill(definition regclass, state regclass) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_backfill';
COMMENT ON FUNCTION millrace._aggregate_backfill(regclass, regclass) IS 'Internal: writes the states of the rows that the source has';

CREATE FUNCTION millrace.create_continuous_aggregate(name text, query text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	schema text := pg_catalog.quote_ident(pg_catalog.current_schema());
	target text := pg_catalog.format('%s.%I', schema, name);
	definition text := pg_catalog.format('%s.%I', schema, name || '_query');
	state text := pg_catalog.format('%s.%I', schema, name || '_state');
	parts record;
BEGIN
	IF name IS NULL OR query IS NULL THEN
		RAISE EXCEPTION 'name and query of a continuous aggregate must not be null' USING ERRCODE = '22004';
	END IF;
	IF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000',
			HINT = 'Set search_path.';
	END IF;
	IF name = '' OR pg_catalog.octet_length(name) > 55 THEN
		RAISE EXCEPTION '"%" is not a valid name of a stream', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 55 bytes.';
	END IF;
	IF EXISTS (SELECT FROM millrace.stream s WHERE s.name = create_continuous_aggregate.name) THEN
		RAISE EXCEPTION 'stream "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	END IF;
	EXECUTE 'CREATE VIEW ' || definition || ' AS ' || pg_catalog.rtrim(query, E'; \n\t');
	parts := millrace._aggregate_parts(definition::regclass);
	PERFORM millrace._lock_source(parts.source);
	EXECUTE 'CREATE TABLE ' || state || ' (' || parts.columns || ')';
	EXECUTE 'CREATE INDEX ON ' || state || ' (window_start)';
	EXECUTE 'CREATE VIEW ' || target || ' AS ' || millrace._aggregate_view(definition::regclass, state::regclass);
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', target, 'Continuous aggregate of ' || parts.source::text);
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', definition, 'Query of continuous aggregate ' || target || ', computed from the source');
	EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', state, 'Partial states of continuous aggregate ' || target);
	PERFORM millrace._source_put(parts.source, NULL, NULL, NULL);
	PERFORM millrace._stream_put(name, 'aggregate', parts.source, target::regclass, NULL, definition::regclass, state::regclass);
	PERFORM millrace._install_triggers(parts.source);
	PERFORM millrace._aggregate_backfill(definition::regclass, state::regclass);
END $$;
COMMENT ON FUNCTION millrace.create_continuous_aggregate(text, text) IS
'Creates a continuous aggregate: view NAME always holds what the query returns, kept up to date in the transaction of each batch.
query: SELECT keys, millrace.tumble(time, size) AS window_start, aggregates FROM source [JOIN …] [WHERE …] GROUP BY keys, window.
Any aggregate may be used that PostgreSQL can compute in parallel.  Rows that the source has already are included.
Also made: NAME_query, the query itself as a view over the source, and NAME_state, the table of partial states.
It covers inserted rows.  UPDATE, DELETE and TRUNCATE on the source, and partitions attached with rows or detached, are not followed.';

CREATE FUNCTION millrace.drop_continuous_aggregate(name text) RETURNS void
	LANGUAGE sql STRICT AS $$ SELECT millrace._stream_drop($1, 'aggregate') $$;
COMMENT ON FUNCTION millrace.drop_continuous_aggregate(text) IS 'Drops a continuous aggregate: its views and its states';

REVOKE EXECUTE ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass),
	millrace._stream_drop(text, text), millrace._pipe_target(regclass, text), millrace.create_pipe(text, regclass, text),
	millrace.drop_pipe(text), millrace.create_continuous_aggregate(text, text), millrace.drop_continuous_aggregate(text),
	millrace._aggregate_parts(regclass), millrace._aggregate_view(regclass, regclass), millrace._aggregate_backfill(regclass, regclass)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass),
	millrace._stream_drop(text, text), millrace._pipe_target(regclass, text), millrace.create_pipe(text, regclass, text),
	millrace.drop_pipe(text), millrace.create_continuous_aggregate(text, text), millrace.drop_continuous_aggregate(text),
	millrace._aggregate_parts(regclass), millrace._aggregate_view(regclass, regclass), millrace._aggregate_backfill(regclass, regclass)
	TO @extowner@ WITH GRANT OPTION;
