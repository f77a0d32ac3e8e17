/*
 * Sources: ordinary tables, usually partitioned by time, whose inserts are batches.
 *
 * A trigger on the table and on each of its partitions hands every statement's new rows to millrace.on_batch()
 * (only the table that a statement names fires).  PostgreSQL does not pass statement triggers on to partitions,
 * so event triggers put them on a partition that is created or attached later.
 */
CREATE TABLE millrace.sources (
	source regclass PRIMARY KEY,
	time_column name,
	partition_interval interval,
	retention interval
);
SELECT pg_catalog.pg_extension_config_dump('millrace.sources', '');
GRANT SELECT ON millrace.sources TO PUBLIC;
COMMENT ON TABLE millrace.sources IS 'Tables whose inserts keep streams up to date';
COMMENT ON COLUMN millrace.sources.source IS 'The table; for a partitioned one its root';
COMMENT ON COLUMN millrace.sources.time_column IS 'Column with the event time; NULL where a stream was created over the table without create_source';
COMMENT ON COLUMN millrace.sources.partition_interval IS 'Width of the partitions that ensure_partitions makes; NULL: it makes none';
COMMENT ON COLUMN millrace.sources.retention IS 'Age after which a partition may be dropped; NULL: never';

CREATE FUNCTION millrace.on_batch() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_on_batch';
COMMENT ON FUNCTION millrace.on_batch() IS 'Trigger function on sources: runs the streams of the table over the rows of one INSERT or COPY; UPDATE, DELETE and TRUNCATE mark the windows that they touch';

CREATE FUNCTION millrace._source_put(source regclass, time_column name, partition_interval interval, retention interval)
	RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'mr_source_put';
COMMENT ON FUNCTION millrace._source_put(regclass, name, interval, interval) IS 'Internal: writes millrace.sources for the owner of the table';

CREATE FUNCTION millrace._lock_source(source regclass) RETURNS void
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_lock_source';
COMMENT ON FUNCTION millrace._lock_source(regclass) IS 'Internal: checks that a table can be a source, keeps writers of it and all its partitions out until the transaction ends, and makes every session read its streams anew';

CREATE FUNCTION millrace._lock_partitions(source regclass) RETURNS void
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_lock_partitions';
COMMENT ON FUNCTION millrace._lock_partitions(regclass) IS 'Internal: until the transaction ends nobody else makes partitions of a table; for its owner';

/* For everybody: a member of a role may act for it anyway. */
CREATE FUNCTION millrace._as_owner(rel regclass, command text, argument jsonb DEFAULT NULL) RETURNS SETOF jsonb
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_as_owner';
COMMENT ON FUNCTION millrace._as_owner(regclass, text, jsonb) IS 'Internal: runs a command as the owner of a relation, for a member of that role, so that what the owner wrote does not run with more rights than his';

/* Puts the triggers on a source and every partition of it that lacks them. */
CREATE FUNCTION millrace._install_triggers(source regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	leaf record;
BEGIN
	FOR leaf IN
		SELECT r.rel::regclass, w.event, w.tables
		FROM (SELECT source AS rel UNION SELECT t.relid FROM pg_partition_tree(source) t) r
		JOIN pg_class c ON c.oid = r.rel AND c.relkind IN ('r', 'p') -- a foreign table cannot have the triggers
		CROSS JOIN (VALUES (4, 'INSERT', 'REFERENCING NEW TABLE AS new_rows'), (8, 'DELETE', 'REFERENCING OLD TABLE AS old_rows'),
			(16, 'UPDATE', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'), (32, 'TRUNCATE', '')) w(bit, event, tables)
		WHERE NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = r.rel AND g.tgfoid = 'millrace.on_batch()'::regprocedure AND g.tgtype & w.bit <> 0)
		ORDER BY r.rel, w.bit
	LOOP
		EXECUTE format('CREATE TRIGGER millrace_on_%s AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION millrace.on_batch()',
			lower(leaf.event), leaf.event, leaf.rel, leaf.tables);
	END LOOP;
END $$;
COMMENT ON FUNCTION millrace._install_triggers(regclass) IS 'Internal: puts the triggers on a source and its partitions';

CREATE FUNCTION millrace.create_source(source regclass, time_column name, partition_interval interval DEFAULT '1 day',
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

CREATE FUNCTION millrace._partitions(source regclass, chosen regclass[])
	RETURNS TABLE (partition regclass, from_time timestamptz, to_time timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO' AS $$
	SELECT i.inhrelid::regclass,
		CASE WHEN b.bound LIKE 'FOR VALUES FROM (MINVALUE)%' THEN '-infinity'
			ELSE (regexp_match(b.bound, '^FOR VALUES FROM \(''([^'']+)''\)'))[1]::timestamptz END,
		CASE WHEN b.bound LIKE '% TO (MAXVALUE)' THEN 'infinity'
			ELSE (regexp_match(b.bound, ' TO \(''([^'']+)''\)$'))[1]::timestamptz END
	FROM pg_inherits i
		JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
		CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) OFFSET 0) b(bound)
	WHERE i.inhparent = source AND NOT i.inhdetachpending AND (chosen IS NULL OR i.inhrelid = ANY (chosen))
	ORDER BY 2 NULLS FIRST, 3
$$;
COMMENT ON FUNCTION millrace._partitions(regclass, regclass[]) IS 'Internal: what partitions shows, of some of them; NULL: of all';
CREATE FUNCTION millrace.partitions(source regclass)
	RETURNS TABLE (partition regclass, from_time timestamptz, to_time timestamptz)
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM millrace._partitions(source, NULL) $$;
COMMENT ON FUNCTION millrace.partitions(regclass) IS
'Partitions of a table and the range of time that each holds: from_time <= time < to_time.
MINVALUE and MAXVALUE are infinite times; both NULL: the default partition.  Times without a zone are read in the session''s TimeZone.';

CREATE FUNCTION millrace._grantee(grantee oid) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END $$;
COMMENT ON FUNCTION millrace._grantee(oid) IS 'Internal: a role of aclexplode as GRANT takes it';

CREATE FUNCTION millrace.ensure_partitions(source regclass, from_time timestamptz, to_time timestamptz) RETURNS int
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
	PERFORM millrace._lock_partitions(source);
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
			/* Constraints and indexes are looked at, and with them functions that the owner wrote. */
			PERFORM millrace._as_owner(source, format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', source, leaf,
				CASE WHEN is_zoned THEN lower(gap)::text ELSE (lower(gap) AT TIME ZONE 'UTC')::text END,
				CASE WHEN is_zoned THEN upper(gap)::text ELSE (upper(gap) AT TIME ZONE 'UTC')::text END));
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
		EXCEPTION WHEN check_violation OR program_limit_exceeded THEN
			NULL; -- its default partition has rows of this time, and takes these, too; or its partitions are far narrower
		END;
	END LOOP;
	RETURN n_made;
END $$;
COMMENT ON FUNCTION millrace.ensure_partitions(regclass, timestamptz, timestamptz) IS
'Makes the partitions that are missing for event times from from_time to to_time inclusive, and returns their number.
Partitions are aligned to UTC.  They are created beside the table and attached, so writers are not kept out.
Tables that pipes fill from it get theirs as well, if they are sources and the caller may use the rights of their owners.';

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

CREATE FUNCTION millrace.expired_partitions(source regclass)
	RETURNS TABLE (partition regclass, from_time timestamptz, to_time timestamptz)
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
	SELECT p.* FROM millrace.partitions(source) p JOIN millrace.sources s ON s.source = expired_partitions.source
	WHERE p.to_time <= now() - s.retention
$$;
COMMENT ON FUNCTION millrace.expired_partitions(regclass) IS
'Partitions of a source whose newest possible time is older than its retention, by the clock.  None without a retention; never the default partition.';

CREATE FUNCTION millrace.drop_expired_partitions(source regclass DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
	chosen regclass;
	expired regclass[];
	leaf regclass;
	n_dropped int := 0;
BEGIN
	IF source IS NOT NULL AND NOT EXISTS (SELECT FROM millrace.sources s WHERE s.source = drop_expired_partitions.source) THEN
		RAISE EXCEPTION 'table % is not a source', source USING ERRCODE = '42704',
			HINT = 'Call millrace.create_source first.';
	END IF;
	FOR chosen IN
		SELECT s.source FROM millrace.sources s JOIN pg_class c ON c.oid = s.source
		WHERE s.retention IS NOT NULL AND (s.source = drop_expired_partitions.source
			OR drop_expired_partitions.source IS NULL AND pg_has_role(c.relowner, 'USAGE'))
		ORDER BY s.source
	LOOP
		BEGIN
			SELECT array_agg(p.partition ORDER BY p.to_time) INTO expired FROM millrace.expired_partitions(chosen) p;
			CONTINUE WHEN expired IS NULL;
			/* As DROP of a partition does; first, because everybody else comes from the table to its partitions. */
			EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', chosen);
			FOREACH leaf IN ARRAY expired LOOP
				/* Somebody else may have dropped it while this waited. */
				CONTINUE WHEN NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = leaf AND i.inhparent = chosen);
				EXECUTE format('DROP TABLE %s', leaf);
				n_dropped := n_dropped + 1;
			END LOOP;
		EXCEPTION WHEN lock_not_available THEN
			IF source IS NOT NULL THEN
				RAISE EXCEPTION 'partitions of % are in use', chosen USING ERRCODE = '55P03',
					HINT = 'Try again, or let the ingester do it, which detaches them concurrently.';
			END IF;
			/* Another table's must not wait for it. */
			RAISE WARNING 'partitions of % are in use', chosen USING ERRCODE = '55P03';
		WHEN OTHERS THEN
			IF source IS NOT NULL THEN
				RAISE;
			END IF;
			RAISE WARNING 'could not drop partitions of %: %', chosen, SQLERRM USING ERRCODE = SQLSTATE;
		END;
	END LOOP;
	RETURN n_dropped;
END $$;
COMMENT ON FUNCTION millrace.drop_expired_partitions(regclass) IS
'Drops the partitions that are older than the retention of their source, and returns their number.  Windows of streams are kept.
source: the table; NULL: every source with a retention that the caller owns.
Locks the table for a moment, and waits for that lock no longer than two seconds (55P03).
With pg_cron: SELECT millrace.schedule(''retention'');';

/*
 * Keeps triggers complete when partitions come, and catalogs clean when tables go.  In C, because they run for
 * every role that creates or drops a table, also for one without USAGE on schema millrace.
 */
CREATE FUNCTION millrace._on_ddl() RETURNS event_trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_on_ddl';
COMMENT ON FUNCTION millrace._on_ddl() IS 'Internal: puts the batch trigger on partitions that were created or attached';
CREATE EVENT TRIGGER millrace_on_ddl ON ddl_command_end
	WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'CREATE SCHEMA') EXECUTE FUNCTION millrace._on_ddl();
COMMENT ON EVENT TRIGGER millrace_on_ddl IS 'Puts the batch trigger on new partitions of sources';

CREATE FUNCTION millrace._on_drop() RETURNS event_trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_on_drop';
COMMENT ON FUNCTION millrace._on_drop() IS 'Internal: removes sources and streams whose table or view is gone, with what they leave behind';
CREATE EVENT TRIGGER millrace_on_drop ON sql_drop EXECUTE FUNCTION millrace._on_drop();
COMMENT ON EVENT TRIGGER millrace_on_drop IS 'Removes the streams of dropped tables and views';

REVOKE EXECUTE ON FUNCTION millrace.create_source(regclass, name, interval, interval),
	millrace._source_put(regclass, name, interval, interval), millrace._lock_source(regclass),
	millrace._install_triggers(regclass), millrace.ensure_partitions(regclass, timestamptz, timestamptz), millrace._follow_partitions(regclass),
	millrace.drop_expired_partitions(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.create_source(regclass, name, interval, interval),
	millrace._source_put(regclass, name, interval, interval), millrace._lock_source(regclass),
	millrace._install_triggers(regclass), millrace.ensure_partitions(regclass, timestamptz, timestamptz), millrace._follow_partitions(regclass),
	millrace.drop_expired_partitions(regclass) TO @extowner@ WITH GRANT OPTION;
