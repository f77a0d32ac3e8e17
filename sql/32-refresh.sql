/*
 * Corrections: windows whose rows were changed are marked, and computed anew by millrace.refresh.
 */
CREATE TABLE millrace.mark (
	state regclass NOT NULL,
	xid xid8 NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL,
	reason text NOT NULL
);
CREATE INDEX mark_state ON millrace.mark (state);
SELECT pg_catalog.pg_extension_config_dump('millrace.mark', '');
GRANT SELECT ON millrace.mark TO PUBLIC;
COMMENT ON TABLE millrace.mark IS 'Windows of continuous aggregates that millrace.refresh has to compute anew';
COMMENT ON COLUMN millrace.mark.state IS 'NAME_state of the continuous aggregate';
COMMENT ON COLUMN millrace.mark.xid IS 'Transaction that touched them';
COMMENT ON COLUMN millrace.mark.from_time IS 'Start of the first window (of a sliding one: of the slide); for sessions a range of event times';
COMMENT ON COLUMN millrace.mark.to_time IS 'Start of the last one.  -infinity to infinity: all windows; infinity to -infinity: that of rows without a time';
COMMENT ON COLUMN millrace.mark.reason IS 'update, delete, truncate, attach, filling, stopped, or the error with which the stream failed';

CREATE FUNCTION millrace._restored_mark() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.xid := '0';
	RETURN NEW;
END $$;
COMMENT ON FUNCTION millrace._restored_mark() IS 'Internal: a restored row of millrace.mark loses its transaction id (C code, which writes them, fires no triggers)';
CREATE TRIGGER restored BEFORE INSERT ON millrace.mark FOR EACH ROW EXECUTE FUNCTION millrace._restored_mark();
