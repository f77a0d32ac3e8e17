/*
 * Streams: what is kept up to date from the batches of a source, in the transaction that inserts them.
 */
CREATE TABLE millrace.stream (
	name text PRIMARY KEY,
	seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
	kind text NOT NULL CHECK (kind IN ('history', 'pipe', 'aggregate', 'rollup', 'scorer', 'alert')),
	source regclass NOT NULL,
	target regclass NOT NULL,
	command text,
	definition regclass,
	state regclass,
	delta regclass,
	final regclass,
	owner regrole NOT NULL,
	settings text[] NOT NULL,
	created timestamptz NOT NULL DEFAULT pg_catalog.now(),
	query text,
	status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'stopped', 'failed', 'filling')),
	error text,
	on_error text NOT NULL DEFAULT 'fail' CHECK (on_error IN ('fail', 'suspend')),
	watermark interval,
	late_policy text NOT NULL DEFAULT 'update' CHECK (late_policy IN ('update', 'drop', 'divert')),
	retain interval,
	retained_from timestamptz,
	idle_after interval,
	inputs regclass[],
	window_text text,
	late_since timestamptz
);
CREATE INDEX stream_source ON millrace.stream (source);
SELECT pg_catalog.pg_extension_config_dump('millrace.stream', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.stream_seq_seq', '');
GRANT SELECT ON millrace.stream, millrace.stream_seq_seq TO PUBLIC;
COMMENT ON TABLE millrace.stream IS 'Catalog of streams; read millrace.streams instead';
COMMENT ON COLUMN millrace.stream.name IS 'Name, unique in the database';
COMMENT ON COLUMN millrace.stream.seq IS 'Order in which the streams of a source run; those of kind history come before the others, scorers and alerts after them';
COMMENT ON COLUMN millrace.stream.kind IS 'pipe, aggregate, scorer, alert; rollup: a continuous aggregate over another; history: what users have by the ratings of a model';
COMMENT ON COLUMN millrace.stream.source IS 'Table whose batches it handles';
COMMENT ON COLUMN millrace.stream.target IS 'Table that a pipe or scorer fills, or view of a continuous aggregate or alert; of a history its table of folded rows';
COMMENT ON COLUMN millrace.stream.command IS 'Command of a pipe; arguments of a scorer, as JSON; ratings of a history';
COMMENT ON COLUMN millrace.stream.definition IS 'View with the query of a continuous aggregate; of an alert its view; of a scorer NAME_hourly';
COMMENT ON COLUMN millrace.stream.state IS 'Table with the folded states of a continuous aggregate, NAME_state';
COMMENT ON COLUMN millrace.stream.delta IS 'Table to which batches append states, NAME_delta; of a history rows';
COMMENT ON COLUMN millrace.stream.final IS 'View of the final windows, NAME_final; of a scorer NAME_latest';
COMMENT ON COLUMN millrace.stream.query IS 'Query of a continuous aggregate or alert as it was given';
COMMENT ON COLUMN millrace.stream.status IS 'running; stopped by stop_stream; failed, with the error; filling: not all rows from before it was created are in it';
COMMENT ON COLUMN millrace.stream.error IS 'Why it failed: the SQLSTATE; the message, which may quote rows, is in the server''s log';
COMMENT ON COLUMN millrace.stream.on_error IS 'When it cannot handle a batch: fail the batch, or suspend the stream';
COMMENT ON COLUMN millrace.stream.watermark IS 'How late a row may come; NULL: windows are never final';
COMMENT ON COLUMN millrace.stream.late_policy IS 'What becomes of later rows: update, drop or divert';
COMMENT ON COLUMN millrace.stream.retain IS 'How long its windows are kept; NULL: for ever';
COMMENT ON COLUMN millrace.stream.retained_from IS 'Time before which its windows have been dropped';
COMMENT ON COLUMN millrace.stream.idle_after IS 'Time without batches after which the watermark follows the clock';
COMMENT ON COLUMN millrace.stream.inputs IS 'Views of continuous aggregates that a rollup or alert reads';
COMMENT ON COLUMN millrace.stream.window_text IS 'Two expressions over a row of the source: from and to which window it is marked, should the definition be gone; of a history what its ratings meant when it was filled, and a sum over the partitions';
COMMENT ON COLUMN millrace.stream.late_since IS 'When a row first came too late for it and was not taken (late_policy drop or divert); NULL: none has';
COMMENT ON COLUMN millrace.stream.owner IS 'Role whose rights a pipe uses; a continuous aggregate uses those of its state table''s owner, a scorer and an alert those of their target''s';
COMMENT ON COLUMN millrace.stream.settings IS 'Settings that give its text a meaning, as they were when it was created';
COMMENT ON COLUMN millrace.stream.created IS 'When it was created';

CREATE TABLE millrace.batches (
	xid xid8 NOT NULL,
	source regclass NOT NULL,
	started timestamptz NOT NULL,
	rows bigint NOT NULL,
	ms float8 NOT NULL,
	late_rows bigint NOT NULL,
	streams jsonb NOT NULL,
	PRIMARY KEY (xid, source)
);
/* Not dumped: transaction ids mean nothing to another server, where they would come again. */
GRANT SELECT ON millrace.batches TO PUBLIC;
COMMENT ON TABLE millrace.batches IS 'One row for each committed transaction and source that it wrote, the newest millrace.keep_batches of each source';
COMMENT ON COLUMN millrace.batches.xid IS 'Transaction';
COMMENT ON COLUMN millrace.batches.source IS 'Table that was written';
COMMENT ON COLUMN millrace.batches.started IS 'When its first statement on the source ended';
COMMENT ON COLUMN millrace.batches.rows IS 'Rows inserted into the source';
COMMENT ON COLUMN millrace.batches.ms IS 'Milliseconds that all streams took';
COMMENT ON COLUMN millrace.batches.late_rows IS 'Rows that came too late for a stream, summed over the streams';
COMMENT ON COLUMN millrace.batches.streams IS 'For each stream: rows written and milliseconds, as in {"purchases": {"ms": 0.4, "rows": 12}}; also rows that were late and the watermark they were held against; of a scorer the users (once for each statement), the mean of precision_own over them, those of them who had a list before (judged), and the mean of precision_next over those';

/*
 * How far the event time of continuous aggregates has come (watermark.c).  A restored row counts as settled for ever:
 * transaction ids of another server mean nothing here.
 */
CREATE TABLE millrace.progress (
	state regclass NOT NULL,
	xid xid8 NOT NULL,
	max_time timestamptz,
	closed_to timestamptz,
	horizon xid8 NOT NULL,
	arrived timestamptz
);
CREATE INDEX progress_state ON millrace.progress (state);
SELECT pg_catalog.pg_extension_config_dump('millrace.progress', '');
GRANT SELECT ON millrace.progress TO PUBLIC;
COMMENT ON TABLE millrace.progress IS 'What batches told of event time; millrace.streams shows the watermarks that follow from it';
COMMENT ON COLUMN millrace.progress.state IS 'NAME_state of the continuous aggregate';
COMMENT ON COLUMN millrace.progress.xid IS 'Transaction that wrote the row';
COMMENT ON COLUMN millrace.progress.max_time IS 'Greatest event time that it inserted';
COMMENT ON COLUMN millrace.progress.closed_to IS 'Watermark that it saw: rows of windows before it were late';
COMMENT ON COLUMN millrace.progress.horizon IS 'Transactions from here on have seen as much';
COMMENT ON COLUMN millrace.progress.arrived IS 'When the row was written';

CREATE FUNCTION millrace._restored() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.xid := '0';
	NEW.horizon := '0';
	NEW.arrived := clock_timestamp();
	RETURN NEW;
END $$;
COMMENT ON FUNCTION millrace._restored() IS 'Internal: a restored row of millrace.progress loses its transaction ids (C code, which writes them, fires no triggers)';
CREATE TRIGGER restored BEFORE INSERT ON millrace.progress FOR EACH ROW EXECUTE FUNCTION millrace._restored();

CREATE FUNCTION millrace._closed_to(state regclass) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_closed_to';
COMMENT ON FUNCTION millrace._closed_to(regclass) IS 'Internal: event time up to which the windows of a continuous aggregate are final';

CREATE FUNCTION millrace._larger_xid(xid8, xid8) RETURNS xid8
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_max_xid';
COMMENT ON FUNCTION millrace._larger_xid(xid8, xid8) IS 'Internal: transition function of _max_xid';
CREATE AGGREGATE millrace._max_xid(xid8) (SFUNC = millrace._larger_xid, STYPE = xid8, PARALLEL = SAFE);
COMMENT ON AGGREGATE millrace._max_xid(xid8) IS 'Internal: greatest transaction id';

/* Rows that streams did not take. */
CREATE TABLE millrace.late_row (
	stream text NOT NULL,
	xid xid8 NOT NULL,
	arrived timestamptz NOT NULL,
	reason text NOT NULL,
	"row" jsonb NOT NULL
);
CREATE INDEX late_row_stream ON millrace.late_row (stream);
SELECT pg_catalog.pg_extension_config_dump('millrace.late_row', '');
GRANT SELECT ON millrace.late_row TO @extowner@;
COMMENT ON TABLE millrace.late_row IS 'Rows of sources that a stream did not take; read millrace.late_rows instead';
COMMENT ON COLUMN millrace.late_row.stream IS 'Name of the stream';
COMMENT ON COLUMN millrace.late_row.xid IS 'Transaction that inserted the row into the source';
COMMENT ON COLUMN millrace.late_row.arrived IS 'Start of that transaction';
COMMENT ON COLUMN millrace.late_row.reason IS 'Why: late, stopped, or the error with which the stream failed';
COMMENT ON COLUMN millrace.late_row."row" IS 'The row, by names of columns';

CREATE FUNCTION millrace._stream_put(name text, kind text, source regclass, target regclass, command text,
	definition regclass, state regclass, delta regclass, final regclass, query text, watermark interval, late_policy text,
	retain interval, idle_after interval, on_error text, inputs regclass[], replace bool) RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'mr_stream_put';
COMMENT ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass, regclass, regclass, text, interval, text, interval, interval, text, regclass[], bool) IS 'Internal: writes millrace.stream';
CREATE FUNCTION millrace._stream_drop(name text, kind text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_stream_drop';
COMMENT ON FUNCTION millrace._stream_drop(text, text) IS 'Internal: drops a stream and what was made for it';

CREATE FUNCTION millrace._stream_lock(name text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_lock_stream';
COMMENT ON FUNCTION millrace._stream_lock(text) IS 'Internal: takes the lock under which a stream is compacted, refreshed and replaced';
CREATE FUNCTION millrace._stream_lift(name text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_stream_lift';
COMMENT ON FUNCTION millrace._stream_lift(text) IS 'Internal: takes a continuous aggregate that is about to be replaced off its relations, and drops its function NAME_changes';

/* After a restore two are its own: that of CREATE EXTENSION, and behind it that of the dump, which other databases may know. */
CREATE TABLE millrace.state_key (
	key bytea NOT NULL CHECK (octet_length(key) = 32),
	own bool NOT NULL DEFAULT false
);
INSERT INTO millrace.state_key VALUES (pg_catalog.sha256(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()) || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())), true);
SELECT pg_catalog.pg_extension_config_dump('millrace.state_key', '');
GRANT SELECT ON millrace.state_key TO @extowner@; -- pg_dump reads it
COMMENT ON TABLE millrace.state_key IS 'Keys by which states of other extensions'' aggregates are sealed, so that nobody hands made-up ones to their functions, which trust them; for nobody but pg_dump to read';
COMMENT ON COLUMN millrace.state_key.key IS '32 random bytes';
COMMENT ON COLUMN millrace.state_key.own IS 'Whether this database seals with it; false: it is that of a node whose states are trusted';

/* Pipes. */
CREATE FUNCTION millrace._pipe_target(source regclass, command text) RETURNS regclass
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_pipe_target';
COMMENT ON FUNCTION millrace._pipe_target(regclass, text) IS 'Internal: checks the command of a pipe and returns the table it fills';

/*
 * Functions that create streams are given a text that means what it does by the caller's search_path; what they do besides must
 * not.  So each is two: the first passes the path on, the second has its own and goes to the caller's for single steps.
 */
CREATE FUNCTION millrace._create_pipe(name text, source regclass, command text, on_error text, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target regclass;
BEGIN
	IF name IS NULL OR source IS NULL OR command IS NULL THEN
		RAISE EXCEPTION 'name, source and command of a pipe must not be null' USING ERRCODE = '22004';
	END IF;
	IF on_error IS NULL OR on_error NOT IN ('fail', 'suspend') THEN
		RAISE EXCEPTION 'on_error "%" of "%" is not known', on_error, name USING ERRCODE = '22023', HINT = 'It is fail or suspend.';
	END IF;
	PERFORM millrace._lock_source(source);
	PERFORM pg_catalog.set_config('search_path', path, true);
	target := millrace._pipe_target(source, command);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	IF EXISTS (
		WITH RECURSIVE fed(rel) AS (
			SELECT target::oid
			UNION
			SELECT r.rel FROM fed f JOIN LATERAL (
				SELECT s.target::oid FROM millrace.stream s WHERE s.source = f.rel AND s.kind IN ('pipe', 'scorer')
				UNION ALL SELECT a.relid::oid FROM pg_partition_ancestors(f.rel::regclass) a) r(rel) ON true)
		SELECT FROM fed WHERE fed.rel = _create_pipe.source)
	THEN
		RAISE EXCEPTION 'pipe "%" would feed its own source %', name, source USING ERRCODE = '42P17',
			HINT = 'The target of a pipe must not lead back to its source.';
	END IF;
	PERFORM millrace._source_put(source, NULL, NULL, NULL);
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'pipe', source, target, command, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, on_error, NULL, false);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	PERFORM millrace._install_triggers(source);
	PERFORM millrace._follow_partitions(target);
END $$;
COMMENT ON FUNCTION millrace._create_pipe(text, regclass, text, text, text) IS 'Internal: create_pipe; path: the caller''s search_path';
CREATE FUNCTION millrace.create_pipe(name text, source regclass, command text, on_error text DEFAULT 'fail') RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_pipe($1, $2, $3, $4, pg_catalog.current_setting('search_path')) $$;
COMMENT ON FUNCTION millrace.create_pipe(text, regclass, text, text) IS
'Creates a pipe: a command that runs for each batch of a source, in the same transaction.
command: one INSERT INTO target SELECT … FROM new_rows; new_rows has the columns of the source and the rows of the batch.
It sees rows inserted from now on; insert older ones yourself.  It runs with the rights and search_path of its creator.
A target that is a source has its partitions made beside those of this source, here and by ensure_partitions.
on_error: fail (the batch) or suspend (the pipe: its rows are kept, and millrace.refresh passes them on).';

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

CREATE FUNCTION millrace._fold_state_final(internal, aggregate regprocedure, state anyelement) RETURNS anyelement
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_fold_state_final';
COMMENT ON FUNCTION millrace._fold_state_final(internal, regprocedure, anyelement) IS 'Internal: final function of fold_state';
CREATE FUNCTION millrace._fold_state_trans(internal, aggregate regprocedure, state anyelement) RETURNS internal
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_merge_state_trans';
COMMENT ON FUNCTION millrace._fold_state_trans(internal, regprocedure, anyelement) IS 'Internal: transition function of fold_state';
CREATE AGGREGATE millrace.fold_state(aggregate regprocedure, state anyelement) (
	SFUNC = millrace._fold_state_trans, STYPE = internal, SSPACE = 256,
	FINALFUNC = millrace._fold_state_final, FINALFUNC_EXTRA, FINALFUNC_MODIFY = READ_WRITE, PARALLEL = SAFE
);
COMMENT ON AGGREGATE millrace.fold_state(regprocedure, anyelement) IS
'Combines the partial states of an aggregate into one state; compaction uses it.
aggregate: the aggregate that made the states; state: the state.';
CREATE FUNCTION millrace.final_state(aggregate regprocedure, result anyelement, state "any") RETURNS anyelement
	LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_final_state';
COMMENT ON FUNCTION millrace.final_state(regprocedure, anyelement, "any") IS
'The value of an aggregate whose only partial state is the given one; views of continuous aggregates use it.
aggregate: the aggregate that made the state; result: a value of its result type, only for the type; state: the state.';

CREATE FUNCTION millrace._aggregate_parts(definition regclass, OUT source regclass, OUT columns text, OUT time_text text)
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_parts';
COMMENT ON FUNCTION millrace._aggregate_parts(regclass) IS 'Internal: checks the query of a continuous aggregate; returns its source, the columns of its states, and the event time as an expression';
CREATE FUNCTION millrace._aggregate_texts(definition regclass, state regclass, delta regclass, OUT live text, OUT final text, OUT changes text)
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_texts';
COMMENT ON FUNCTION millrace._aggregate_texts(regclass, regclass, regclass) IS 'Internal: queries over the states: what the definition returns, its final windows, and what has changed';
CREATE FUNCTION millrace._aggregate_keys(definition regclass, OUT window_column name, OUT keys name[])
	LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_keys';
COMMENT ON FUNCTION millrace._aggregate_keys(regclass) IS 'Internal: columns of a continuous aggregate that hold the window''s start (NULL: none does) and the other keys';
CREATE FUNCTION millrace._aggregate_backfill(definition regclass, state regclass) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_backfill';
COMMENT ON FUNCTION millrace._aggregate_backfill(regclass, regclass) IS 'Internal: writes the states of the rows that the source has';

CREATE FUNCTION millrace._progress_start(state regclass, max_time timestamptz) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_progress_start';
COMMENT ON FUNCTION millrace._progress_start(regclass, timestamptz) IS 'Internal: the event time to which the rows go that a new continuous aggregate has been filled with';

CREATE FUNCTION millrace._qualified_name(rel regclass) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT rel::text $$;
COMMENT ON FUNCTION millrace._qualified_name(regclass) IS 'Internal: name of a relation with its schema, quoted';

/* CREATE OR REPLACE VIEW, but a view whose columns change is made anew, which fails if others depend on it. */
CREATE FUNCTION millrace._replace_view(view text, query text, comment text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE pg_catalog.format('CREATE OR REPLACE VIEW %s AS %s', view, query);
	EXCEPTION WHEN invalid_table_definition THEN
		EXECUTE pg_catalog.format('DROP VIEW %s', view);
		EXECUTE pg_catalog.format('CREATE VIEW %s AS %s', view, query);
	END;
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', view, comment);
END $$;
COMMENT ON FUNCTION millrace._replace_view(text, text, text) IS 'Internal: creates or replaces a view, as the caller';

CREATE FUNCTION millrace._create_continuous_aggregate(name text, query text, watermark interval, late_policy text,
	retain interval, idle_after interval, on_error text, with_data bool, schema text, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	target text := pg_catalog.format('%s.%I', schema, name);
	definition text := pg_catalog.format('%s.%I', schema, name || '_query');
	state text := pg_catalog.format('%s.%I', schema, name || '_state');
	delta text := pg_catalog.format('%s.%I', schema, name || '_delta');
	final text := pg_catalog.format('%s.%I', schema, name || '_final');
	changes text := pg_catalog.format('%s.%I', schema, name || '_changes');
	before millrace.stream;
	rollup record;
	parts record;
	texts record;
	max_time timestamptz;
	target_rel regclass;
	definition_rel regclass;
	state_rel regclass;
	delta_rel regclass;
	final_rel regclass;
	given_query text := query;
	partial text;
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
	IF late_policy IS NULL OR late_policy NOT IN ('update', 'drop', 'divert') THEN
		RAISE EXCEPTION 'late_policy "%" of "%" is not known', late_policy, name USING ERRCODE = '22023',
			HINT = 'It is update, drop or divert.';
	END IF;
	IF on_error IS NULL OR on_error NOT IN ('fail', 'suspend') THEN
		RAISE EXCEPTION 'on_error "%" of "%" is not known', on_error, name USING ERRCODE = '22023', HINT = 'It is fail or suspend.';
	END IF;
	IF with_data IS NULL THEN
		RAISE EXCEPTION 'with_data of "%" must not be null', name USING ERRCODE = '22004';
	END IF;
	IF watermark < '0' OR retain <= '0' OR idle_after <= '0' THEN
		RAISE EXCEPTION 'watermark, retain and idle_after of "%" must be positive', name USING ERRCODE = '22023';
	END IF;
	IF watermark IS NULL AND idle_after IS NOT NULL THEN
		RAISE EXCEPTION 'idle_after of "%" needs a watermark', name USING ERRCODE = '22023';
	END IF;
	IF EXISTS (SELECT FROM millrace.stream s WHERE s.name = _create_continuous_aggregate.name) THEN
		PERFORM millrace._stream_lock(name);
	END IF;
	SELECT * INTO before FROM millrace.stream s WHERE s.name = _create_continuous_aggregate.name;
	IF before.kind NOT IN ('aggregate', 'rollup') THEN
		RAISE EXCEPTION 'stream "%" already exists and is a %', name, before.kind USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	END IF;
	IF before.name IS NOT NULL THEN
		IF EXISTS (SELECT FROM millrace.federated_aggregates f WHERE f.aggregate = before.name) THEN
			RAISE EXCEPTION 'continuous aggregate "%" is read by federated aggregate "%"', name,
				(SELECT pg_catalog.min(f.name) FROM millrace.federated_aggregates f WHERE f.aggregate = before.name) USING ERRCODE = '2BP01', HINT = 'Drop that first.';
		END IF;
		/* Replaced where it stands; its tables make room, and go at the end. */
		SELECT pg_catalog.quote_ident(n.nspname) INTO schema FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.oid = before.target;
		target := millrace._qualified_name(before.target);
		definition := millrace._qualified_name(before.definition);
		final := millrace._qualified_name(before.final);
		state := pg_catalog.format('%s.%I', schema, name || '_state');
		delta := pg_catalog.format('%s.%I', schema, name || '_delta');
		changes := pg_catalog.format('%s.%I', schema, name || '_changes');
		IF before.kind = 'aggregate' THEN
			PERFORM millrace._lock_source(before.source);
			EXECUTE pg_catalog.format('ALTER TABLE %s RENAME TO %I', before.delta, 'old_' || before.delta::oid);
		END IF;
		PERFORM millrace._stream_lift(name);
		EXECUTE pg_catalog.format('ALTER TABLE %s RENAME TO %I', before.state, 'old_' || before.state::oid);
	END IF;
	query := rtrim(query, E'; \n\t');
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._replace_view(definition, query, pg_catalog.format('Query of continuous aggregate %s, computed from the source', target));
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	rollup := millrace._rollup_parts(definition::regclass);
	IF before.kind <> (CASE WHEN rollup.input IS NULL THEN 'aggregate' ELSE 'rollup' END) THEN
		RAISE EXCEPTION 'continuous aggregate "%" reads %, its new query %', name,
			CASE before.kind WHEN 'rollup' THEN 'another' ELSE 'a table' END, CASE before.kind WHEN 'rollup' THEN 'a table' ELSE 'another' END
			USING ERRCODE = '42710', HINT = 'Drop it first.';
	END IF;
	IF rollup.input IS NOT NULL THEN
		IF watermark IS NOT NULL OR idle_after IS NOT NULL OR late_policy <> 'update' OR on_error <> 'fail' THEN
			RAISE EXCEPTION 'rollup "%" cannot have a watermark, late_policy, idle_after or on_error of its own', name USING ERRCODE = '22023',
				HINT = 'They are those of the continuous aggregate that it reads.';
		END IF;
		PERFORM millrace._rollup_create(name, given_query, retain, target, definition, final, state, changes, rollup.input, rollup.columns, before.state, path);
		RETURN;
	END IF;
	parts := millrace._aggregate_parts(definition::regclass);
	PERFORM millrace._lock_source(parts.source);
	EXECUTE 'CREATE TABLE ' || state || ' (' || parts.columns || ')';
	EXECUTE 'CREATE INDEX ON ' || state || ' (window_start)';
	EXECUTE 'CREATE INDEX ON ' || state || ' (xid)';
	IF parts.columns LIKE '%, window_last %' THEN
		EXECUTE 'CREATE INDEX ON ' || state || ' (window_last)';
	END IF;
	EXECUTE 'CREATE TABLE ' || delta || ' (' || parts.columns || ')';
	texts := millrace._aggregate_texts(definition::regclass, state::regclass, delta::regclass);
	PERFORM millrace._replace_view(target, texts.live, 'Continuous aggregate of ' || parts.source::text);
	PERFORM millrace._replace_view(final, texts.final, 'Final windows of continuous aggregate ' || target || ', each as it was when it closed');
	EXECUTE (SELECT pg_catalog.format('CREATE FUNCTION %s(after xid8) RETURNS TABLE (cursor xid8, %s) LANGUAGE sql STABLE BEGIN ATOMIC %s; END',
		changes, pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum), texts.changes)
		FROM pg_catalog.pg_attribute a WHERE a.attrelid = target::regclass AND a.attnum > 0 AND NOT a.attisdropped);
	EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s(xid8) IS %L', changes, 'Groups of continuous aggregate ' || target
		|| ' that have changed since the given cursor, as they are now.  Start with NULL; then pass the cursor of the answer.');
	EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', state, 'Folded states of continuous aggregate ' || target);
	EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', delta, 'States of continuous aggregate ' || target || ' that are not folded yet');
	PERFORM millrace._source_put(parts.source, NULL, NULL, NULL);
	target_rel := target::regclass;
	definition_rel := definition::regclass;
	state_rel := state::regclass;
	delta_rel := delta::regclass;
	final_rel := final::regclass;
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'aggregate', parts.source, target_rel, NULL, definition_rel, state_rel, delta_rel,
		final_rel, given_query, watermark, late_policy, retain, idle_after, on_error, NULL, before.name IS NOT NULL);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	IF before.name IS NOT NULL THEN
		SELECT millrace._qualified_name(h.partial) INTO partial FROM millrace.shared h JOIN pg_catalog.pg_class c ON c.oid = h.partial WHERE h.name = before.name;
		IF partial IS NOT NULL THEN
			PERFORM millrace._replace_view(partial, millrace._partial_text(definition_rel, state_rel, delta_rel), pg_catalog.obj_description(partial::regclass, 'pg_class'));
			PERFORM millrace._shared_put(name, partial::regclass);
		END IF;
		PERFORM millrace._progress_start(before.state, NULL);
		EXECUTE pg_catalog.format('DROP TABLE %s, %s', before.state, before.delta);
	END IF;
	PERFORM millrace._install_triggers(parts.source);
	PERFORM millrace._stream_set(name, CASE WHEN with_data THEN 'running' ELSE 'filling' END,
		(millrace._aggregate_window(definition::regclass)).window_text, NOT with_data);
	IF NOT with_data THEN
		PERFORM millrace._rollup_renew(target::regclass);
		RETURN;
	END IF;
	PERFORM millrace._aggregate_backfill(definition::regclass, state::regclass);
	IF watermark IS NOT NULL THEN
		EXECUTE pg_catalog.format('SELECT max(t) FROM (SELECT %s AS t FROM %s) q WHERE isfinite(t) AND t <= now() + current_setting(''millrace.max_future'')::interval',
			parts.time_text, parts.source) INTO max_time;
		PERFORM millrace._progress_start(state::regclass, max_time);
	END IF;
	PERFORM millrace._rollup_renew(target::regclass);
END $$;
COMMENT ON FUNCTION millrace._create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool, text, text) IS
'Internal: create_continuous_aggregate; schema, path: the first schema of the caller''s search_path, quoted, and all of it';
CREATE FUNCTION millrace.create_continuous_aggregate(name text, query text, watermark interval DEFAULT NULL, late_policy text DEFAULT 'update',
	retain interval DEFAULT NULL, idle_after interval DEFAULT NULL, on_error text DEFAULT 'fail', with_data bool DEFAULT true) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_continuous_aggregate($1, $2, $3, $4, $5, $6, $7, $8,
		pg_catalog.quote_ident(pg_catalog.current_schema()), pg_catalog.current_setting('search_path')) $$;
COMMENT ON FUNCTION millrace.create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool) IS
'Creates a continuous aggregate: view NAME always holds what the query returns, kept up to date in the transaction of each batch.
query: SELECT keys, millrace.tumble(time, size) AS window_start, aggregates FROM source [JOIN …] [WHERE …] GROUP BY keys, window;
millrace.hop(time, size, slide) in its place slides; sessions: FROM (SELECT *, millrace.session(time, gap) OVER (PARTITION BY keys
ORDER BY time) AS window_start FROM source [WHERE …]) s GROUP BY keys, window_start.
Any aggregate may be used that PostgreSQL can compute in parallel.  Rows that the source has already are included.
A query over the view of a continuous aggregate and its window, as millrace.tumble(window_start, ''1 hour'') … FROM per_minute, makes
a rollup, which may use any aggregate: its windows are final when those in them are, and then kept apart from what they were made of.
watermark: how late a row may come, against the greatest event time of earlier batches; NULL: windows are never final.
late_policy: what becomes of later rows: update (NAME changes, NAME_final does not), drop (counted in millrace.batches),
divert (kept in millrace.late_rows).
retain: how long windows are kept, by event time.  idle_after: time without batches after which the watermark follows the clock.
on_error: fail (the batch) or suspend (the stream; millrace.refresh heals it).
with_data: false leaves the rows that the source has to CALL millrace.backfill(name), which does not keep writers out.
Also made: NAME_final, the final windows; NAME_changes(cursor), the groups that have changed; NAME_query, the query itself over
the source; NAME_state and NAME_delta, the states.  Called again with the name of a continuous aggregate, it replaces it.';

CREATE FUNCTION millrace.last_closed_window(name text) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_last_closed_window';
COMMENT ON FUNCTION millrace.last_closed_window(text) IS
'Start of the last window of a continuous aggregate that is final; NULL if none is.  It reads the watermark, not the windows.
As in: SELECT * FROM trending_final WHERE window_start = (SELECT millrace.last_closed_window(''trending''))';

CREATE FUNCTION millrace.drop_continuous_aggregate(name text) RETURNS void
	LANGUAGE sql STRICT AS $$ SELECT millrace._stream_drop($1, 'aggregate') $$;
COMMENT ON FUNCTION millrace.drop_continuous_aggregate(text) IS 'Drops a continuous aggregate: its views and its states';

REVOKE EXECUTE ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass, regclass, regclass, text, interval, text, interval, interval, text, regclass[], bool),
	millrace._stream_drop(text, text), millrace._pipe_target(regclass, text), millrace.create_pipe(text, regclass, text, text),
	millrace._create_pipe(text, regclass, text, text, text), millrace._create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool, text, text),
	millrace.drop_pipe(text), millrace.create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool), millrace.drop_continuous_aggregate(text),
	millrace._aggregate_parts(regclass), millrace._aggregate_texts(regclass, regclass, regclass), millrace._progress_start(regclass, timestamptz),
	millrace._replace_view(text, text, text), millrace._stream_lift(text), millrace._stream_lock(text), millrace._aggregate_backfill(regclass, regclass)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._stream_put(text, text, regclass, regclass, text, regclass, regclass, regclass, regclass, text, interval, text, interval, interval, text, regclass[], bool),
	millrace._stream_drop(text, text), millrace._pipe_target(regclass, text), millrace.create_pipe(text, regclass, text, text),
	millrace._create_pipe(text, regclass, text, text, text), millrace._create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool, text, text),
	millrace.drop_pipe(text), millrace.create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool), millrace.drop_continuous_aggregate(text),
	millrace._aggregate_parts(regclass), millrace._aggregate_texts(regclass, regclass, regclass), millrace._progress_start(regclass, timestamptz),
	millrace._replace_view(text, text, text), millrace._stream_lift(text), millrace._stream_lock(text), millrace._aggregate_backfill(regclass, regclass)
	TO @extowner@ WITH GRANT OPTION;
