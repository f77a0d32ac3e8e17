/* Rollups: continuous aggregates over the windows of others (rollup.c). */
CREATE TABLE millrace.rollup (
	state regclass PRIMARY KEY,
	settled_to timestamptz NOT NULL,
	since xid8 NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.rollup', '');
GRANT SELECT ON millrace.rollup TO PUBLIC;
COMMENT ON TABLE millrace.rollup IS 'How far the windows of rollups are settled';
COMMENT ON COLUMN millrace.rollup.state IS 'NAME_state of the rollup';
COMMENT ON COLUMN millrace.rollup.settled_to IS 'Start of the last window whose rows NAME_state holds; -infinity: none';
COMMENT ON COLUMN millrace.rollup.since IS 'Transactions from here on may have changed what they were computed from';

CREATE FUNCTION millrace._rollup_restored() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.since := '0';
	RETURN NEW;
END $$;
COMMENT ON FUNCTION millrace._rollup_restored() IS 'Internal: a restored row of millrace.rollup loses its transaction id, so that all windows are looked at again';
CREATE TRIGGER restored BEFORE INSERT ON millrace.rollup FOR EACH ROW EXECUTE FUNCTION millrace._rollup_restored();

CREATE FUNCTION millrace._rollup_parts(definition regclass, OUT input regclass, OUT columns text)
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_rollup_parts';
COMMENT ON FUNCTION millrace._rollup_parts(regclass) IS 'Internal: view of the continuous aggregate that a query rolls up, NULL if none, and the columns of NAME_state';
CREATE FUNCTION millrace._rollup_texts(definition regclass, state regclass, input_final regclass, OUT live text, OUT final_text text, OUT changes text)
	LANGUAGE c STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'mr_rollup_texts';
COMMENT ON FUNCTION millrace._rollup_texts(regclass, regclass, regclass) IS 'Internal: queries of the views and the function of a rollup';
CREATE FUNCTION millrace._rollup_last_before(state regclass, "time" timestamptz) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_last_before';
COMMENT ON FUNCTION millrace._rollup_last_before(regclass, timestamptz) IS 'Internal: start of the last window of a rollup that ended at or before a time';
CREATE FUNCTION millrace._rollup_final_to(state regclass) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_final_to';
COMMENT ON FUNCTION millrace._rollup_final_to(regclass) IS 'Internal: start of the last window of a rollup that is final';
CREATE FUNCTION millrace._rollup_settled_to(state regclass) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_settled_to';
COMMENT ON FUNCTION millrace._rollup_settled_to(regclass) IS 'Internal: start of the last window of a rollup that is settled';
CREATE FUNCTION millrace._rollup_open_from(state regclass) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_open_from';
COMMENT ON FUNCTION millrace._rollup_open_from(regclass) IS 'Internal: start of the first window of a rollup that is not settled';
CREATE FUNCTION millrace._rollup_redo(state regclass) RETURNS SETOF timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'mr_rollup_redo';
COMMENT ON FUNCTION millrace._rollup_redo(regclass) IS 'Internal: settled windows of a rollup whose stored rows are out of date';
CREATE FUNCTION millrace._rollup_redo_inputs(state regclass) RETURNS SETOF timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'mr_rollup_redo_inputs';
COMMENT ON FUNCTION millrace._rollup_redo_inputs(regclass) IS 'Internal: the windows in them of what the rollup reads';
CREATE FUNCTION millrace._rollup_changed(state regclass, since xid8, before xid8) RETURNS SETOF timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'mr_rollup_changed';
COMMENT ON FUNCTION millrace._rollup_changed(regclass, xid8, xid8) IS 'Internal: windows of a rollup that were changed by a transaction from since on, before another';
CREATE FUNCTION millrace._rollup_window(definition regclass) RETURNS int
	LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_rollup_window';
COMMENT ON FUNCTION millrace._rollup_window(regclass) IS 'Internal: number of the column of a definition that holds the start of the window';
CREATE FUNCTION millrace._rollup_put(state regclass, settled_to timestamptz, since xid8) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_rollup_put';
COMMENT ON FUNCTION millrace._rollup_put(regclass, timestamptz, xid8) IS 'Internal: writes millrace.rollup';
CREATE FUNCTION millrace._rollup_cut(state regclass, input regclass, input_window name) RETURNS timestamptz
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_rollup_cut';
COMMENT ON FUNCTION millrace._rollup_cut(regclass, regclass, name) IS 'Internal: deletes, as its owner, the stored rows of windows that are to be computed anew';
CREATE FUNCTION millrace._settle(state regclass) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_settle';
COMMENT ON FUNCTION millrace._settle(regclass) IS 'Internal: stores the rows of the windows of a rollup that have become final, or have changed since, and drops those that are kept no longer; returns the number of rows stored';

/* Names are qualified, so that the texts mean the same whatever the caller's search_path. */
CREATE FUNCTION millrace._rollup_build(target text, definition text, final text, state text, changes text, input regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	texts record;
BEGIN
	texts := millrace._rollup_texts(definition::regclass, state::regclass, (SELECT s.final FROM millrace.stream s WHERE s.target = input));
	PERFORM millrace._replace_view(target, texts.live, 'Rollup of ' || input::text);
	PERFORM millrace._replace_view(final, texts.final_text, 'Final windows of rollup ' || target || ', each as it was when it closed');
	EXECUTE (SELECT format('CREATE FUNCTION %s(after xid8) RETURNS TABLE (cursor xid8, %s) LANGUAGE sql STABLE BEGIN ATOMIC %s; END',
		changes, string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum), texts.changes)
		FROM pg_attribute a WHERE a.attrelid = target::regclass AND a.attnum > 0 AND NOT a.attisdropped);
	EXECUTE format('COMMENT ON FUNCTION %s(xid8) IS %L', changes, 'Rows of rollup ' || target
		|| ' in windows that have changed since the given cursor, as they are now.  Start with NULL; then pass the cursor of the answer.');
END $$;
COMMENT ON FUNCTION millrace._rollup_build(text, text, text, text, text, regclass) IS 'Internal: makes the views and the function of a rollup';

/* The second half of create_continuous_aggregate, which has made the view of the definition; all names are qualified. */
CREATE FUNCTION millrace._rollup_create(name text, query text, retain interval, target text, definition text, final text, state text, changes text,
	input regclass, columns text, before regclass, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	base millrace.stream;
	target_rel regclass;
	definition_rel regclass;
	state_rel regclass;
	final_rel regclass;
BEGIN
	EXECUTE 'CREATE TABLE ' || state || ' (' || columns || ')';
	EXECUTE 'CREATE INDEX ON ' || state || ' (window_start)';
	EXECUTE 'CREATE INDEX ON ' || state || ' (xid) WHERE xid > ''0''';
	EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', state, 'Rows of the windows of rollup ' || target || ' that are settled');
	PERFORM millrace._rollup_build(target, definition, final, state, changes, input);
	SELECT * INTO base FROM millrace.stream s WHERE s.target = input;
	target_rel := target::regclass;
	definition_rel := definition::regclass;
	state_rel := state::regclass;
	final_rel := final::regclass;
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'rollup', base.source, target_rel, NULL, definition_rel, state_rel, NULL,
		final_rel, query, NULL, 'update', retain, NULL, 'fail', ARRAY[input], before IS NOT NULL);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	PERFORM millrace._rollup_put(state::regclass, '-infinity', '0');
	IF before IS NOT NULL THEN
		PERFORM millrace._rollup_put(before, NULL, NULL);
		EXECUTE 'DROP TABLE ' || before;
		PERFORM millrace._rollup_renew(target::regclass);
	END IF;
	IF pg_catalog.current_setting('transaction_isolation') = 'read committed' THEN
		PERFORM millrace._settle(state::regclass);
	END IF;
END $$;
COMMENT ON FUNCTION millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass, text) IS 'Internal: makes a rollup';

CREATE FUNCTION millrace._rollup_renew(input regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r record;
	bound timestamptz;
BEGIN
	FOR r IN
		SELECT s.*, u.settled_to, u.since,
			(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = input AND a.attnum = millrace._rollup_window(i.definition)) AS input_window
		FROM millrace.stream s JOIN millrace.rollup u USING (state) JOIN millrace.stream i ON i.target = input
		WHERE s.kind = 'rollup' AND s.inputs[1] = input ORDER BY s.seq
	LOOP
		PERFORM millrace._rollup_put(r.state, r.settled_to, r.since);
		/* The window must still be the column over which the rollup has its own. */
		PERFORM millrace._rollup_parts(r.definition);
		bound := millrace._rollup_cut(r.state, input, r.input_window);
		PERFORM millrace._rollup_put(r.state, bound, r.since);
		PERFORM millrace._rollup_renew(r.target);
	END LOOP;
END $$;
COMMENT ON FUNCTION millrace._rollup_renew(regclass) IS 'Internal: what reads a continuous aggregate whose definition has changed is computed anew, but for windows before its first';

REVOKE EXECUTE ON FUNCTION millrace._rollup_parts(regclass), millrace._rollup_texts(regclass, regclass, regclass), 
	millrace._rollup_put(regclass, timestamptz, xid8), millrace._rollup_cut(regclass, regclass, name), millrace._rollup_build(text, text, text, text, text, regclass),
	millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass, text), millrace._rollup_renew(regclass), millrace._settle(regclass)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._rollup_parts(regclass), millrace._rollup_texts(regclass, regclass, regclass), 
	millrace._rollup_put(regclass, timestamptz, xid8), millrace._rollup_cut(regclass, regclass, name), millrace._rollup_build(text, text, text, text, text, regclass),
	millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass, text), millrace._rollup_renew(regclass), millrace._settle(regclass)
	TO @extowner@ WITH GRANT OPTION;
