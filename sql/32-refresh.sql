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

/* attached: a partition that has come with rows, so that those of its range are there again. */
CREATE FUNCTION millrace._note_partitions(source regclass, attached regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	part millrace.known_partition;
BEGIN
	IF NOT EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
		WHERE p.partrelid = source AND p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype) THEN
		RETURN;
	END IF;
	INSERT INTO millrace.known_partition AS k
		SELECT source, p.partition, p.from_time, p.to_time FROM millrace.partitions(source) p WHERE p.from_time IS NOT NULL
		ON CONFLICT (partition) DO UPDATE SET source = excluded.source, from_time = excluded.from_time, to_time = excluded.to_time
		WHERE k.source <> excluded.source OR k.from_time <> excluded.from_time OR k.to_time <> excluded.to_time;
	WITH gone AS (
		DELETE FROM millrace.known_partition k WHERE k.source = _note_partitions.source AND NOT EXISTS (
			SELECT FROM pg_inherits i WHERE i.inhrelid = k.partition AND i.inhparent = k.source AND NOT i.inhdetachpending)
		RETURNING k.*)
	INSERT INTO millrace.gone_range SELECT g.source, g.from_time, g.to_time FROM gone g;
	SELECT * INTO part FROM millrace.known_partition k WHERE k.partition = attached;
	IF FOUND THEN
		WITH cut AS (
			DELETE FROM millrace.gone_range g WHERE g.source = part.source AND g.from_time < part.to_time AND g.to_time > part.from_time
			RETURNING g.*)
		INSERT INTO millrace.gone_range SELECT c.source, lower(r.r), upper(r.r)
			FROM cut c, unnest(tstzmultirange(tstzrange(c.from_time, c.to_time)) - tstzmultirange(tstzrange(part.from_time, part.to_time))) r(r);
	END IF;
END $$;
COMMENT ON FUNCTION millrace._note_partitions(regclass, regclass) IS 'Internal: keeps millrace.known_partition and gone_range';

CREATE FUNCTION millrace._forget_dropped() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	WITH gone AS (
		DELETE FROM millrace.known_partition k WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = k.partition)
			OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = k.source) RETURNING k.*)
	INSERT INTO millrace.gone_range SELECT g.source, g.from_time, g.to_time FROM gone g JOIN pg_class c ON c.oid = g.source;
	DELETE FROM millrace.gone_range g WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = g.source);
	DELETE FROM millrace.mark m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.state);
END $$;
COMMENT ON FUNCTION millrace._forget_dropped() IS 'Internal: notes partitions that were dropped, and removes what is kept of tables that are gone';

CREATE FUNCTION millrace.refresh(name text, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL) RETURNS bigint
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_refresh';
COMMENT ON FUNCTION millrace.refresh(text, timestamptz, timestamptz) IS
'Computes anew, from the rows of the source, the windows of a continuous aggregate that were touched by UPDATE, DELETE or TRUNCATE,
came with a partition, or had rows while it was stopped or had failed; a stream that has failed then runs again.  Of a pipe: passes the rows
that it did not take through its command.  Returns the number of states (of a pipe: rows) written.  Writers are not kept out.
from_time, to_time: compute the windows of event times from_time <= time < to_time, whether touched or not, also where partitions are gone.
A final window keeps in NAME_final what it has shown.';
REVOKE EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz), millrace._note_partitions(regclass, regclass),
	millrace._forget_dropped() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz), millrace._note_partitions(regclass, regclass),
	millrace._forget_dropped() TO @extowner@ WITH GRANT OPTION;
