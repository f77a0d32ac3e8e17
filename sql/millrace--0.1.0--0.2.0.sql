/*
 * From 0.1.0 to 0.2.0: what has been added to or changed in the numbered parts since 0.1.0 was tagged.
 * tests/e2e/upgrade compares an upgraded database with a new one, object by object.
 */

/* Partitions of what pipes fill are made beside those of their source. */
CREATE FUNCTION millrace._follow_partitions(target regclass) RETURNS int
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	held tstzrange;
	n_made int := 0;
BEGIN
	IF NOT EXISTS (SELECT FROM millrace.sources s WHERE s.source = target AND s.partition_interval IS NOT NULL)
		OR NOT has_function_privilege('millrace.ensure_partitions(regclass, timestamptz, timestamptz)', 'EXECUTE')
		OR NOT (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = target) THEN
		RETURN 0;
	END IF;
	FOR held IN
		SELECT unnest(range_agg(tstzrange(p.from_time, p.to_time))) FROM millrace.stream s, millrace.partitions(s.source) p
		WHERE s.kind = 'pipe' AND s.target = _follow_partitions.target AND isfinite(p.from_time) AND isfinite(p.to_time)
	LOOP
		BEGIN
			n_made := n_made + millrace.ensure_partitions(target, lower(held), upper(held) - interval '1 microsecond');
		EXCEPTION WHEN check_violation OR program_limit_exceeded THEN
			NULL; -- its default partition has rows of this time; or its partitions are far narrower
		END;
	END LOOP;
	RETURN n_made;
END $$;
COMMENT ON FUNCTION millrace._follow_partitions(regclass) IS 'Internal: makes the partitions of a table for the times of which the sources of its pipes have some';
REVOKE EXECUTE ON FUNCTION millrace._follow_partitions(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._follow_partitions(regclass) TO @extowner@ WITH GRANT OPTION;

CREATE OR REPLACE FUNCTION millrace.create_source(source regclass, time_column name, partition_interval interval DEFAULT '1 day',
	retention interval DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	rel pg_class;
	col_type regtype;
	parted pg_partitioned_table;
BEGIN
	IF source IS NULL OR time_column IS NULL THEN
		RAISE EXCEPTION 'source and time_column must not be null' USING ERRCODE = '22004';
	END IF;
	PERFORM millrace._lock_source(source);
	SELECT * INTO rel FROM pg_class c WHERE c.oid = source;
	SELECT a.atttypid INTO col_type FROM pg_attribute a
		WHERE a.attrelid = source AND a.attname = time_column AND a.attnum > 0 AND NOT a.attisdropped;
	IF col_type IS NULL THEN
		RAISE EXCEPTION 'column "%" of table % does not exist', time_column, source USING ERRCODE = '42703';
	END IF;
	IF col_type NOT IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype) THEN
		RAISE EXCEPTION 'column "%" of table % has type %, which is not a time', time_column, source, col_type
			USING ERRCODE = '42804', HINT = 'Use a column of type timestamptz, timestamp or date.';
	END IF;
	IF partition_interval <= '0' OR retention <= '0' THEN
		RAISE EXCEPTION 'partition_interval and retention of % must be positive', source USING ERRCODE = '22023';
	END IF;
	IF rel.relkind = 'p' THEN
		SELECT * INTO parted FROM pg_partitioned_table p WHERE p.partrelid = source;
		IF parted.partstrat <> 'r' OR parted.partnatts <> 1 OR parted.partattrs[0] IS DISTINCT FROM
			(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = source AND a.attname = time_column) THEN
			RAISE EXCEPTION 'table % is not partitioned by range of column "%"', source, time_column USING ERRCODE = '42P16',
				DETAIL = format('Its partition key is %s.', pg_get_partkeydef(source)),
				HINT = 'Use the partitioning column as time_column, or an unpartitioned table.';
		END IF;
		PERFORM millrace.tumble(now(), partition_interval);
		IF col_type = 'date'::regtype AND extract(epoch FROM partition_interval)::numeric % 86400 <> 0 THEN
			RAISE EXCEPTION 'partition_interval % of % is not a number of days, as its date column "%" needs', partition_interval, source, time_column
				USING ERRCODE = '22023';
		END IF;
	ELSE
		partition_interval := NULL;
	END IF;
	PERFORM millrace._source_put(source, time_column, partition_interval, retention);
	PERFORM millrace._install_triggers(source);
	PERFORM millrace._follow_partitions(source);
END $$;
COMMENT ON FUNCTION millrace.create_source(regclass, name, interval, interval) IS
'Declares a table a source of events.
source: an ordinary table, or one partitioned by range of time_column; its owner calls this.
time_column: event time, of type timestamptz, timestamp or date.
partition_interval: width of the partitions that ensure_partitions makes (ignored for an unpartitioned table).
retention: age after which partitions may be dropped; NULL keeps them.
Calling it again changes the settings.';

CREATE OR REPLACE FUNCTION millrace.ensure_partitions(source regclass, from_time timestamptz, to_time timestamptz) RETURNS int
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
	src millrace.sources;
	parent_schema text;
	parent pg_class;
	is_zoned bool;
	n_slots float8;
	held tstzmultirange;
	slot timestamptz;
	gap tstzrange;
	stem text;
	leaf text;
	id record;
	acl record;
	target regclass;
	n_made int := 0;
BEGIN
	SELECT * INTO src FROM millrace.sources s WHERE s.source = ensure_partitions.source;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'table % is not a source', source USING ERRCODE = '42704',
			HINT = 'Call millrace.create_source first.';
	END IF;
	IF src.partition_interval IS NULL THEN
		RETURN 0;
	END IF;
	IF NOT isfinite(from_time) OR NOT isfinite(to_time) OR from_time > to_time THEN
		RAISE EXCEPTION 'no partitions can be made from % to %', from_time, to_time USING ERRCODE = '22023';
	END IF;
	n_slots := extract(epoch FROM to_time - from_time) / extract(epoch FROM src.partition_interval);
	IF n_slots > 10000 THEN
		RAISE EXCEPTION '% partitions of % from % to % are too many', round(n_slots), source, from_time, to_time
			USING ERRCODE = '54000', HINT = 'At most 10000 are made in one call; check the times.';
	END IF;
	SELECT * INTO parent FROM pg_class c WHERE c.oid = source;
	parent_schema := quote_ident((SELECT nspname FROM pg_namespace WHERE oid = parent.relnamespace));
	SELECT a.atttypid = 'timestamptz'::regtype INTO is_zoned FROM pg_attribute a
		WHERE a.attrelid = source AND a.attname = src.time_column;

	/* Two callers that want the same partition: the second waits here, and then finds it. */
	PERFORM pg_advisory_xact_lock(hashtextextended('millrace partitions of ' || source::oid, 0));
	SELECT coalesce(range_agg(tstzrange(p.from_time, p.to_time)), '{}') INTO held FROM millrace.partitions(source) p
		WHERE p.from_time IS NOT NULL;

	stem := CASE WHEN octet_length(parent.relname) <= 48 THEN parent.relname ELSE 'millrace_' || md5(parent.relname) END;
	slot := millrace.tumble(from_time, src.partition_interval);
	WHILE slot <= to_time LOOP
		/* What of this slot no partition holds: all of it, unless somebody made partitions with other bounds. */
		FOR gap IN SELECT unnest(tstzmultirange(tstzrange(slot, slot + src.partition_interval)) - held) LOOP
			leaf := stem || '_' || to_char(lower(gap), CASE WHEN extract(epoch FROM lower(gap))::numeric % 86400 = 0
				THEN 'YYYYMMDD' ELSE 'YYYYMMDD_HH24MISS' END);
			/* A table that has the name, such as a detached partition, keeps it. */
			WHILE to_regclass(parent_schema || '.' || quote_ident(leaf)) IS NOT NULL LOOP
				leaf := leaf || '_';
			END LOOP;
			leaf := parent_schema || '.' || quote_ident(leaf);
			EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS EXCLUDING IDENTITY)', leaf, source);
			/* Before PostgreSQL 17 partitions do not share the identity column of their parent: let them share its sequence. */
			IF current_setting('server_version_num')::int < 170000 THEN
				FOR id IN SELECT a.attname, pg_get_serial_sequence(source::text, a.attname)::regclass AS sequence FROM pg_attribute a
					WHERE a.attrelid = source AND a.attidentity <> '' LOOP
					EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT nextval(%L)', leaf, id.attname, id.sequence);
					FOR acl IN SELECT DISTINCT a.grantee FROM aclexplode(parent.relacl) a
						WHERE a.privilege_type = 'INSERT' AND a.grantee <> parent.relowner LOOP
						EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %s', id.sequence, millrace._grantee(acl.grantee));
					END LOOP;
				END LOOP;
			END IF;
			IF parent.relowner <> current_user::regrole THEN
				EXECUTE format('ALTER TABLE %s OWNER TO %s', leaf, parent.relowner::regrole);
			END IF;
			/* Who may insert into the parent may name the partition; row security would not hold there. */
			FOR acl IN SELECT DISTINCT a.grantee FROM aclexplode(parent.relacl) a
				WHERE a.privilege_type = 'INSERT' AND a.grantee <> parent.relowner AND NOT parent.relrowsecurity LOOP
				EXECUTE format('GRANT INSERT ON %s TO %s', leaf, millrace._grantee(acl.grantee));
			END LOOP;
			EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', source, leaf,
				CASE WHEN is_zoned THEN lower(gap)::text ELSE (lower(gap) AT TIME ZONE 'UTC')::text END,
				CASE WHEN is_zoned THEN upper(gap)::text ELSE (upper(gap) AT TIME ZONE 'UTC')::text END);
			n_made := n_made + 1;
		END LOOP;
		slot := slot + src.partition_interval;
	END LOOP;

	/* Pipes insert in the transaction that stores the rows they read, most often with the times of these. */
	FOR target IN
		SELECT DISTINCT s.source::oid FROM millrace.stream p JOIN millrace.sources s ON s.source = p.target JOIN pg_class c ON c.oid = p.target
		WHERE p.kind = 'pipe' AND p.source = ensure_partitions.source AND pg_has_role(c.relowner, 'USAGE') ORDER BY 1
	LOOP
		BEGIN
			n_made := n_made + millrace.ensure_partitions(target, from_time, to_time);
		EXCEPTION WHEN check_violation THEN
			NULL; -- its default partition has rows of this time, and takes these, too
		END;
	END LOOP;
	RETURN n_made;
END $$;
COMMENT ON FUNCTION millrace.ensure_partitions(regclass, timestamptz, timestamptz) IS
'Makes the partitions that are missing for event times from from_time to to_time inclusive, and returns their number.
Partitions are aligned to UTC.  They are created beside the table and attached, so writers are not kept out.
Tables that pipes fill from it get theirs as well, if they are sources and the caller may use the rights of their owners.';

CREATE OR REPLACE FUNCTION millrace.create_pipe(name text, source regclass, command text, on_error text DEFAULT 'fail') RETURNS void
LANGUAGE plpgsql AS $$
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
	target := millrace._pipe_target(source, command);
	IF EXISTS (
		WITH RECURSIVE fed(rel) AS (
			SELECT target::oid
			UNION
			SELECT r.rel FROM fed f JOIN LATERAL (
				SELECT s.target::oid FROM millrace.stream s WHERE s.source = f.rel AND s.kind IN ('pipe', 'scorer')
				UNION ALL SELECT a.relid::oid FROM pg_catalog.pg_partition_ancestors(f.rel::regclass) a) r(rel) ON true)
		SELECT FROM fed WHERE fed.rel = create_pipe.source)
	THEN
		RAISE EXCEPTION 'pipe "%" would feed its own source %', name, source USING ERRCODE = '42P17',
			HINT = 'The target of a pipe must not lead back to its source.';
	END IF;
	PERFORM millrace._source_put(source, NULL, NULL, NULL);
	PERFORM millrace._stream_put(name, 'pipe', source, target, command, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, on_error, NULL, false);
	PERFORM millrace._install_triggers(source);
	PERFORM millrace._follow_partitions(target);
END $$;
COMMENT ON FUNCTION millrace.create_pipe(text, regclass, text, text) IS
'Creates a pipe: a command that runs for each batch of a source, in the same transaction.
command: one INSERT INTO target SELECT … FROM new_rows; new_rows has the columns of the source and the rows of the batch.
It sees rows inserted from now on; insert older ones yourself.  It runs with the rights and search_path of its creator.
A target that is a source has its partitions made beside those of this source, here and by ensure_partitions.
on_error: fail (the batch) or suspend (the pipe: its rows are kept, and millrace.refresh passes them on).';
