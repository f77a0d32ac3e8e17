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
		FROM millrace.stream s LEFT JOIN pg_catalog.pg_class c ON c.oid = s.state
		WHERE maintain.name IS NULL AND pg_catalog.pg_has_role(CASE WHEN s.kind = 'history' THEN s.owner::oid ELSE c.relowner END, 'USAGE');
	IF maintain.name IS NOT NULL THEN
		names := ARRAY[maintain.name];
	END IF;
	FOREACH stream IN ARRAY coalesce(names, '{}') LOOP
		FOREACH step IN ARRAY ARRAY['_advance_idle($1)', '_close_windows($1)', '_drop_expired($1)', 'refresh($1)', '_compact($1, false)'] LOOP
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
	PERFORM millrace._sweep_cache();
END $$;
COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates, and for what users have, from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, refreshes what is
marked, merges states, settles rollups, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT millrace.schedule(''maintain'');';

REVOKE EXECUTE ON FUNCTION millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._compact(text, bool), millrace._advance_idle(text), millrace._close_windows(text),
	millrace._drop_expired(text), millrace._prune_batches(), millrace._check_maintain(), millrace.compact(text)
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
