/*
 * Rows that a stream did not take, and windows that changed after they were final (late.c).
 */
CREATE FUNCTION millrace._restored_xid() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.xid := '0';
	RETURN NEW;
END $$;
COMMENT ON FUNCTION millrace._restored_xid() IS 'Internal: a restored row loses its transaction id (C code, which writes them, fires no triggers)';
CREATE TRIGGER restored BEFORE INSERT ON millrace.late_row FOR EACH ROW EXECUTE FUNCTION millrace._restored_xid();

CREATE VIEW millrace.late_rows WITH (security_barrier) AS
	SELECT l.stream, l.xid, l.arrived, l.reason, l."row"
	FROM millrace.late_row l JOIN millrace.stream s ON s.name = l.stream
	WHERE pg_catalog.has_table_privilege(s.source::oid, 'SELECT') AND NOT pg_catalog.row_security_active(s.source::oid);
GRANT SELECT ON millrace.late_rows TO PUBLIC;
COMMENT ON VIEW millrace.late_rows IS 'Rows that a stream did not take, of sources that the reader may SELECT (and on which no row security holds for him)';
COMMENT ON COLUMN millrace.late_rows.stream IS 'Name of the stream';
COMMENT ON COLUMN millrace.late_rows.xid IS 'Transaction that inserted the row into the source; 0: restored from a dump';
COMMENT ON COLUMN millrace.late_rows.arrived IS 'Start of that transaction';
COMMENT ON COLUMN millrace.late_rows.reason IS 'Why: late, stopped, or the error with which the stream failed';
COMMENT ON COLUMN millrace.late_rows."row" IS 'The row, by names of columns; arrays, composites and types of extensions as text';

CREATE FUNCTION millrace.replay_late(name text) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_replay_late';
COMMENT ON FUNCTION millrace.replay_late(text) IS
'Merges the late rows that a continuous aggregate has diverted into it, and removes them from millrace.late_rows; returns how many.
The source, which has them already, is not written.  Windows that are closed change in NAME only; windows that retention has dropped stay so.
Columns are found by name: one that was added or renamed since then is NULL; a JSON null is NULL, too.  For the owner of the continuous aggregate.';

CREATE FUNCTION millrace._revised(stream text, OUT window_start timestamptz, OUT key jsonb, OUT final jsonb, OUT current jsonb)
	RETURNS SETOF record LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_revised';
COMMENT ON FUNCTION millrace._revised(text) IS 'Internal: the rows of millrace.revisions of one continuous aggregate, if the caller may SELECT it';

CREATE VIEW millrace.revisions AS
	SELECT s.name AS stream, r.window_start, r.key, r.final, r.current
	FROM millrace.stream s, LATERAL millrace._revised(s.name) r
	WHERE s.kind = 'aggregate' AND s.watermark IS NOT NULL
		AND pg_catalog.has_table_privilege(s.target::oid, 'SELECT') AND pg_catalog.has_table_privilege(s.final::oid, 'SELECT');
GRANT SELECT ON millrace.revisions TO PUBLIC;
COMMENT ON VIEW millrace.revisions IS
'Groups of final windows that NAME_final shows as they were when the window closed, and NAME otherwise: late rows came, or the window was computed anew';
COMMENT ON COLUMN millrace.revisions.stream IS 'Name of the continuous aggregate';
COMMENT ON COLUMN millrace.revisions.window_start IS 'Start of the window; NULL if the query does not show it';
COMMENT ON COLUMN millrace.revisions.key IS 'Other columns of GROUP BY, by name';
COMMENT ON COLUMN millrace.revisions.final IS 'What NAME_final shows in the other columns; NULL: the group is not there.  Groups that differ in hidden keys only: an array';
COMMENT ON COLUMN millrace.revisions.current IS 'What NAME shows; NULL: the group is not there';

REVOKE EXECUTE ON FUNCTION millrace.replay_late(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.replay_late(text) TO @extowner@ WITH GRANT OPTION;
