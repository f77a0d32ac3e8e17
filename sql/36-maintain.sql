/*
 * Maintenance: compaction, retention, windows of quiet streams (maintain.c).
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

CREATE FUNCTION millrace.compact(name text) RETURNS bigint
	LANGUAGE sql STRICT AS $$
		SELECT coalesce((SELECT millrace._settle(s.state) FROM millrace.stream s WHERE s.name = $1 AND s.kind = 'rollup'), millrace._compact($1, true))
	$$;
COMMENT ON FUNCTION millrace.compact(text) IS
'Merges the states that batches have left to a continuous aggregate, to one for each group, and returns how many it wrote.
Of a rollup, the rows of windows that have become final are stored.  Nothing that the aggregate shows changes.  Only of use to read it faster at once: batches and millrace.maintain do the same by and by.';

CREATE PROCEDURE millrace.maintain(name text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	names text[];
	stream text;
	step text;
BEGIN
	PERFORM millrace._check_maintain();
	SELECT pg_catalog.array_agg(s.name ORDER BY s.seq) INTO names
		FROM millrace.stream s JOIN pg_catalog.pg_class c ON c.oid = s.state
		WHERE maintain.name IS NULL AND pg_catalog.pg_has_role(c.relowner, 'USAGE');
	IF maintain.name IS NOT NULL THEN
		names := ARRAY[maintain.name];
	END IF;
	FOREACH stream IN ARRAY coalesce(names, '{}') LOOP
		FOREACH step IN ARRAY ARRAY['_advance_idle($1)', '_close_windows($1)', '_drop_expired($1)', '_compact($1, false)', 'refresh($1)'] LOOP
			IF (SELECT s.kind = 'rollup' FROM millrace.stream s WHERE s.name = stream) THEN
				CONTINUE WHEN step <> '_compact($1, false)';
				step := 'compact($1)';
			END IF;
			/* A stream that has failed is healed by its owner. */
			CONTINUE WHEN step = 'refresh($1)' AND NOT EXISTS (
				SELECT FROM millrace.stream s JOIN millrace.mark m USING (state) WHERE s.name = stream AND s.status = 'running');
			CONTINUE WHEN (SELECT s.status = 'failed' FROM millrace.stream s WHERE s.name = stream);
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
END $$;
COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, merges states, settles rollups, refreshes
what is marked, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT cron.schedule(''millrace'', ''* * * * *'', ''CALL millrace.maintain()'');';

REVOKE EXECUTE ON FUNCTION millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text)
	TO @extowner@ WITH GRANT OPTION;
REVOKE EXECUTE ON PROCEDURE millrace.maintain(text) FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE millrace.maintain(text) TO @extowner@ WITH GRANT OPTION;
