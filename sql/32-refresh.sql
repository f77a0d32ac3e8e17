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

/*
 * Partitions of sources, to know when one is gone; and the ranges of time whose rows went with one, of which the windows
 * are kept as they are.
 */
CREATE TABLE millrace.known_partition (
	source regclass NOT NULL,
	partition regclass NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL,
	PRIMARY KEY (partition)
);
SELECT pg_catalog.pg_extension_config_dump('millrace.known_partition', '');
GRANT SELECT ON millrace.known_partition TO PUBLIC;
COMMENT ON TABLE millrace.known_partition IS 'Partitions of sources that are partitioned by time, as they were last seen';
COMMENT ON COLUMN millrace.known_partition.source IS 'The source';
COMMENT ON COLUMN millrace.known_partition.partition IS 'Its partition';
COMMENT ON COLUMN millrace.known_partition.from_time IS 'Start of the range of time that it holds';
COMMENT ON COLUMN millrace.known_partition.to_time IS 'End of the range';
CREATE TABLE millrace.gone_range (
	source regclass NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.gone_range', '');
GRANT SELECT ON millrace.gone_range TO PUBLIC;
COMMENT ON TABLE millrace.gone_range IS 'Ranges of time whose rows were detached or dropped with a partition; refresh and verify leave their windows alone';
COMMENT ON COLUMN millrace.gone_range.source IS 'The source';
COMMENT ON COLUMN millrace.gone_range.from_time IS 'Start of the range';
COMMENT ON COLUMN millrace.gone_range.to_time IS 'End of the range';

CREATE FUNCTION millrace.refresh(name text, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL) RETURNS bigint
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_refresh';
COMMENT ON FUNCTION millrace.refresh(text, timestamptz, timestamptz) IS
'Computes anew, from the rows of the source, the windows of a continuous aggregate that were touched by UPDATE, DELETE or TRUNCATE,
came with a partition, or had rows while it was stopped or had failed; a stream that has failed then runs again.  Of a pipe: passes the rows
that it did not take through its command.  Returns the number of states (of a pipe: rows) written.  Writers are not kept out.
from_time, to_time: compute the windows of event times from_time <= time < to_time, whether touched or not, also where partitions are gone.
A final window keeps in NAME_final what it has shown.';
REVOKE EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz) TO @extowner@ WITH GRANT OPTION;
