/*
 * From 0.1.0 to 0.2.0: what has been added to or changed in the numbered parts since 0.1.0 was tagged.
 * tests/e2e/upgrade compares an upgraded database with a new one, object by object.
 */

COMMENT ON FUNCTION millrace.drop_expired_partitions(regclass) IS
'Drops the partitions that are older than the retention of their source, and returns their number.  Windows of streams are kept.
source: the table; NULL: every source with a retention that the caller owns.
Locks the table for a moment, and waits for that lock no longer than two seconds (55P03).
With pg_cron: SELECT millrace.schedule(''retention'');';
COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates, and for what users have, from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, refreshes what is
marked, merges states, settles rollups, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT millrace.schedule(''maintain'');';

/* 90-schedule.sql, all of it. */
/*
 * Scheduled work, by the extension pg_cron where it is there.  A job is a line of SQL that its owner could have typed; nothing
 * but pg_cron's own tables keeps it.
 */
CREATE FUNCTION millrace._wants_partitions(ahead interval) RETURNS regclass[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF ahead IS NULL THEN
		RAISE EXCEPTION 'ahead must not be null' USING ERRCODE = '22004';
	ELSIF ahead < interval '0' THEN
		RAISE EXCEPTION 'ahead must not be negative: %', ahead USING ERRCODE = '22023';
	END IF;
	RETURN coalesce((SELECT array_agg(s.source ORDER BY s.source::oid) FROM millrace.sources s JOIN pg_class c ON c.oid = s.source
		WHERE s.partition_interval IS NOT NULL AND pg_has_role(c.relowner, 'USAGE')), '{}');
END $$;
COMMENT ON FUNCTION millrace._wants_partitions(interval) IS 'Internal: the sources of which the caller may make partitions';

CREATE FUNCTION millrace._ensure_next(source regclass, ahead interval, INOUT message text, INOUT state text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	until timestamptz;
BEGIN
	SELECT now() + greatest(ahead, s.partition_interval) INTO until FROM millrace.sources s WHERE s.source = _ensure_next.source;
	IF FOUND THEN -- not dropped meanwhile
		PERFORM millrace.ensure_partitions(source, now(), until);
	END IF;
EXCEPTION WHEN OTHERS THEN
	/* One that fails must not keep the others from it, and must be seen. */
	RAISE WARNING 'could not make partitions of %: %', source, SQLERRM USING ERRCODE = SQLSTATE;
	IF message IS NULL THEN
		message := format('could not make partitions of %s: %s', source, SQLERRM);
		state := SQLSTATE;
	END IF;
END $$;
COMMENT ON FUNCTION millrace._ensure_next(regclass, interval, text, text) IS 'Internal: partitions of one source; message, state: the first error that there was';

/* A procedure that commits cannot have a search_path of its own: here only what means the same with any. */
CREATE PROCEDURE millrace.ensure_partitions(ahead interval DEFAULT '3 days')
LANGUAGE plpgsql AS $$
DECLARE
	chosen pg_catalog.regclass;
	message pg_catalog.text;
	state pg_catalog.text;
BEGIN
	FOREACH chosen IN ARRAY millrace._wants_partitions(ahead) LOOP
		SELECT n.message, n.state INTO message, state FROM millrace._ensure_next(chosen, ahead, message, state) n;
		COMMIT;
	END LOOP;
	IF message IS NOT NULL THEN
		RAISE EXCEPTION USING MESSAGE = message, ERRCODE = state;
	END IF;
END $$;
COMMENT ON PROCEDURE millrace.ensure_partitions(interval) IS
'Makes the partitions that are missing from now to now + ahead (and always the next one), of every source that the caller owns.
Commits after each source, so it cannot run inside a transaction block; ends with an error if one of them failed.  With pg_cron: SELECT millrace.schedule(''partitions'');';

CREATE FUNCTION millrace._task(INOUT task text, INOUT name text, OUT job text, OUT schedule text, OUT command text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF task IS NULL THEN
		RAISE EXCEPTION 'task must not be null' USING ERRCODE = '22004';
	END IF;
	CASE task
		WHEN 'retrain' THEN
			schedule := '0 * * * *';
			command := format('SELECT millrace.retrain(%L)', name);
		WHEN 'lists' THEN
			schedule := '30 * * * *';
			command := format('SELECT millrace.refresh_lists(%L)', name);
		WHEN 'maintain' THEN
			schedule := '* * * * *';
			command := 'CALL millrace.maintain()';
		WHEN 'partitions' THEN
			schedule := '43 * * * *';
			command := 'CALL millrace.ensure_partitions()';
		WHEN 'retention' THEN
			schedule := '17 * * * *';
			command := 'SELECT millrace.drop_expired_partitions()';
		WHEN 'runs' THEN
			schedule := '7 3 * * *';
			command := 'DELETE FROM cron.job_run_details WHERE end_time < now() - interval ''7 days''';
		ELSE
			RAISE EXCEPTION 'unknown task "%"', task USING ERRCODE = '22023',
				HINT = 'Tasks are retrain and lists (of a model), maintain, partitions, retention and runs.';
	END CASE;
	IF task NOT IN ('retrain', 'lists') AND name IS NOT NULL THEN
		RAISE EXCEPTION 'task "%" takes no name, but "%" was given', task, name USING ERRCODE = '22023';
	ELSIF task IN ('retrain', 'lists') AND name IS NULL THEN
		RAISE EXCEPTION 'task "%" needs the name of a model', task USING ERRCODE = '22004',
			HINT = format('For example millrace.schedule(%L, name => ''shop'').', task);
	END IF;
	job := 'millrace ' || task || coalesce(' ' || name, '');
	/* pg_cron would cut it off. */
	IF octet_length(job) > 63 THEN
		job := 'millrace ' || task || ': ' || md5(name);
	END IF;
END $$;
COMMENT ON FUNCTION millrace._task(text, text) IS 'Internal: a task that can be scheduled: the name of its job, its usual schedule, its command';

CREATE FUNCTION millrace._has_cron() RETURNS bool LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron')
$$;
COMMENT ON FUNCTION millrace._has_cron() IS 'Internal: whether this database has the extension pg_cron';

CREATE FUNCTION millrace._check_cron(job text, schedule text, command text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	here name := current_database();
	home text := (SELECT s.setting FROM pg_settings s WHERE s.name = 'cron.database_name'); -- NULL: not preloaded, or not for this role to see
BEGIN
	IF home <> here THEN
		job := CASE WHEN octet_length(job || here) <= 59 THEN job || ' in ' || here ELSE 'millrace: ' || md5(job || here) END;
		RAISE EXCEPTION 'pg_cron works in database "%", not in "%"', home, here USING ERRCODE = '55000',
			HINT = 'There, a superuser calls: ' || CASE WHEN command IS NULL THEN format('SELECT cron.unschedule(%L);', job)
				ELSE format('SELECT cron.schedule_in_database(%L, %L, %L, %L, %L);', job, schedule, command, here, current_user) END;
	ELSIF NOT millrace._has_cron() AND home = here THEN
		RAISE EXCEPTION 'database "%" lacks the extension pg_cron', here USING ERRCODE = '55000',
			HINT = 'A superuser calls: CREATE EXTENSION pg_cron;';
	ELSIF NOT millrace._has_cron() THEN
		RAISE EXCEPTION 'pg_cron is not at work in database "%"', here USING ERRCODE = '55000',
			DETAIL = 'PostgreSQL has no scheduler of its own; anything that can call SQL will do, too.',
			HINT = format('%s postgresql.conf needs shared_preload_libraries = ''pg_cron'', cron.database_name = %L, cron.use_background_workers = off '
				'(or a long job delays the others) and cron.host = ''127.0.0.1'', for which pg_hba.conf or .pgpass must let the job''s owner in; then restart, and: CREATE EXTENSION pg_cron;',
				CASE WHEN EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = 'pg_cron') THEN 'It is installed.'
					ELSE format('Install it (Debian: postgresql-%s-cron).', current_setting('server_version_num')::int / 10000) END, here);
	ELSIF NOT has_schema_privilege('cron', 'USAGE') THEN
		RAISE EXCEPTION 'permission denied for schema cron' USING ERRCODE = '42501',
			HINT = format('A superuser calls: GRANT USAGE ON SCHEMA cron TO %I;', current_user);
	END IF;
END $$;
COMMENT ON FUNCTION millrace._check_cron(text, text, text) IS 'Internal: refuses where pg_cron cannot be used, and says what to do to schedule a job; without a command, to end it';

CREATE FUNCTION millrace.schedule(task text, schedule text DEFAULT NULL, name text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	todo record;
	trained millrace.model;
BEGIN
	SELECT * INTO todo FROM millrace._task(schedule.task, schedule.name);
	IF todo.name IS NOT NULL THEN
		SELECT * INTO trained FROM millrace.model m WHERE m.name = todo.name;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'model "%" does not exist', todo.name USING ERRCODE = '42704', HINT = 'The view millrace.models lists models.';
		ELSIF trained.kind <> 'als' AND todo.task = 'lists' THEN
			RAISE EXCEPTION 'model "%" is of kind %, which has no lists', todo.name, trained.kind USING ERRCODE = '42809';
		ELSIF NOT pg_has_role(trained.owner::oid, 'USAGE') THEN
			RAISE EXCEPTION 'must be owner of model "%"', todo.name USING ERRCODE = '42501';
		END IF;
	END IF;
	PERFORM millrace._check_cron(todo.job, coalesce(schedule.schedule, todo.schedule), todo.command);
	IF todo.task IN ('retrain', 'lists') AND (SELECT s.setting FROM pg_settings s WHERE s.name = 'cron.use_background_workers') = 'on' THEN
		RAISE WARNING 'task "%" may delay other jobs while it runs', todo.task
			USING HINT = 'Set cron.use_background_workers = off and cron.host = ''127.0.0.1''.';
	END IF;
	RETURN cron.schedule(todo.job, coalesce(schedule.schedule, todo.schedule), todo.command);
END $$;
COMMENT ON FUNCTION millrace.schedule(text, text, text) IS
'Lets pg_cron do a task from time to time, with the rights of the caller; returns the number of the job.  Scheduling a task again replaces its job.
task: retrain (a model, hourly), lists (its baselines and categories, hourly), maintain (millrace.maintain, every minute), partitions (of today and the next three days, for all sources that the caller owns, hourly),
retention (drops expired ones, hourly), runs (forgets what pg_cron noted of runs of the caller more than a week ago, daily).
schedule: when, as cron writes it (minute hour day month weekday), in UTC; NULL: as above.
name: the model of retrain and lists.
The view millrace.jobs shows what became of it.  Anything else can be given to cron.schedule: SELECT cron.schedule(''shop'', ''0 4 * * *'', $$SELECT millrace.retrain(''shop'', holdout => 0.1)$$);';

CREATE FUNCTION millrace.unschedule(task text, name text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	todo record;
	id bigint;
BEGIN
	SELECT * INTO todo FROM millrace._task(unschedule.task, unschedule.name);
	PERFORM millrace._check_cron(todo.job, NULL, NULL);
	SELECT j.jobid INTO id FROM cron.job j WHERE j.jobname = todo.job AND j.username = current_user AND j.database = current_database();
	IF id IS NULL THEN
		RAISE EXCEPTION 'task "%" is not scheduled%', todo.task, CASE WHEN todo.name IS NOT NULL THEN format(' for model "%s"', todo.name) ELSE '' END
			USING ERRCODE = '42704', HINT = 'The view millrace.jobs lists jobs; another one ends by cron.unschedule(job).';
	END IF;
	PERFORM cron.unschedule(id);
END $$;
COMMENT ON FUNCTION millrace.unschedule(text, text) IS 'Ends what millrace.schedule began, by the same role; what pg_cron noted of its runs stays in cron.job_run_details. A run that is under way goes on to its end, but is noted as failed (job canceled)';

CREATE FUNCTION millrace._jobs() RETURNS TABLE (task text, name text, schedule text, active bool, command text, runs bigint, failures bigint,
	last_start timestamptz, last_seconds float8, last_status text, last_message text, owner name, job bigint)
LANGUAGE plpgsql STABLE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT millrace._has_cron() OR NOT has_schema_privilege('cron', 'USAGE') THEN
		RETURN;
	END IF;
	RETURN QUERY
		SELECT CASE c.call[1] WHEN 'retrain' THEN 'retrain' WHEN 'refresh_lists' THEN 'lists' WHEN 'maintain' THEN 'maintain'
				WHEN 'ensure_partitions' THEN 'partitions' WHEN 'drop_expired_partitions' THEN 'retention'
				ELSE CASE WHEN j.command ~ '^DELETE FROM cron\.job_run_details' THEN 'runs' END END,
			CASE WHEN c.call[2] = '' THEN replace(c.call[3], '''''', '''') ELSE replace(replace(c.call[3], '''''', ''''), '\\', '\') END,
			j.schedule, j.active, j.command, coalesce(r.runs, 0), coalesce(r.failures, 0), d.start_time,
			extract(epoch FROM CASE WHEN d.status IN ('succeeded', 'failed') THEN d.end_time ELSE clock_timestamp() END - d.start_time)::float8,
			d.status, btrim(d.return_message, E' \n'), j.username::name, j.jobid
		FROM cron.job j
			-- The function of Millrace that is called, and the text that is its first argument.
			CROSS JOIN LATERAL (SELECT regexp_match(j.command, '\mmillrace\.([a-z_]+)\((?:\s*(?:model\s*=>\s*)?(E?)''((?:[^'']|'''')*)'')?')) c (call)
			LEFT JOIN (SELECT n.jobid, count(*) AS runs, count(*) FILTER (WHERE n.status = 'failed') AS failures, max(n.runid) AS last
				FROM cron.job_run_details n GROUP BY n.jobid) r ON r.jobid = j.jobid
			LEFT JOIN cron.job_run_details d ON d.runid = r.last
		WHERE j.database = current_database() AND (j.command ~ '\mmillrace\.' OR j.jobname LIKE 'millrace %')
		ORDER BY j.jobid;
END $$;
COMMENT ON FUNCTION millrace._jobs() IS 'Rows of millrace.jobs; none without pg_cron';

CREATE VIEW millrace.jobs AS
	SELECT j.task, j.name, j.schedule, j.active, j.command, j.runs, j.failures, j.last_start, j.last_seconds, j.last_status, j.last_message, j.owner, j.job
	FROM millrace._jobs() j;
GRANT SELECT ON millrace.jobs TO PUBLIC;
COMMENT ON VIEW millrace.jobs IS
'Jobs of pg_cron in this database that call Millrace, and what became of them; no rows where pg_cron is not in this database.
pg_cron shows a role its own jobs, a superuser all.  To let another role see them, such as that of a dashboard, a superuser calls GRANT USAGE ON SCHEMA cron TO dashboard and CREATE POLICY dashboard ON cron.job FOR SELECT TO dashboard USING (true), and the same on cron.job_run_details';
COMMENT ON COLUMN millrace.jobs.task IS 'retrain, lists, maintain, partitions, retention or runs, as millrace.schedule has them; NULL: another call';
COMMENT ON COLUMN millrace.jobs.name IS 'Model, or the text that is the first argument of the call; NULL: none';
COMMENT ON COLUMN millrace.jobs.schedule IS 'When, as cron writes it: minute hour day month weekday, in UTC';
COMMENT ON COLUMN millrace.jobs.active IS 'Whether it runs';
COMMENT ON COLUMN millrace.jobs.command IS 'What runs, as its owner';
COMMENT ON COLUMN millrace.jobs.runs IS 'How often it ran, as far as cron.job_run_details goes back';
COMMENT ON COLUMN millrace.jobs.failures IS 'How often that failed';
COMMENT ON COLUMN millrace.jobs.last_start IS 'When its last run began; NULL: it never ran, or (connection failed) could not';
COMMENT ON COLUMN millrace.jobs.last_seconds IS 'Duration of the last run; of one that is still running so far';
COMMENT ON COLUMN millrace.jobs.last_status IS 'succeeded, failed or running (before that starting, connecting, sending)';
COMMENT ON COLUMN millrace.jobs.last_message IS 'What the last run returned: its error, or how many rows';
COMMENT ON COLUMN millrace.jobs.owner IS 'Role that it runs as';
COMMENT ON COLUMN millrace.jobs.job IS 'Number of the job, for cron.unschedule and cron.alter_job';

REVOKE EXECUTE ON FUNCTION millrace._ensure_next(regclass, interval, text, text) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE millrace.ensure_partitions(interval) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION millrace.schedule(text, text, text), millrace.unschedule(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._ensure_next(regclass, interval, text, text) TO @extowner@ WITH GRANT OPTION;
GRANT EXECUTE ON PROCEDURE millrace.ensure_partitions(interval) TO @extowner@ WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION millrace.schedule(text, text, text), millrace.unschedule(text, text) TO @extowner@ WITH GRANT OPTION;
/* End of 90-schedule.sql. */
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

COMMENT ON FUNCTION millrace.ensure_partitions(regclass, timestamptz, timestamptz) IS
'Makes the partitions that are missing for event times from from_time to to_time inclusive, and returns their number.
Partitions are aligned to UTC.  They are created beside the table and attached, so writers are not kept out.
Tables that pipes fill from it get theirs as well, if they are sources and the caller may use the rights of their owners.';

COMMENT ON FUNCTION millrace.create_pipe(text, regclass, text, text) IS
'Creates a pipe: a command that runs for each batch of a source, in the same transaction.
command: one INSERT INTO target SELECT … FROM new_rows; new_rows has the columns of the source and the rows of the batch.
It sees rows inserted from now on; insert older ones yourself.  It runs with the rights and search_path of its creator.
A target that is a source has its partitions made beside those of this source, here and by ensure_partitions.
on_error: fail (the batch) or suspend (the pipe: its rows are kept, and millrace.refresh passes them on).';

/* Of what a dump brings back nothing knows that it belongs to the extension. */
CREATE FUNCTION millrace._tie(name text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_stream_tie';
COMMENT ON FUNCTION millrace._tie(text) IS 'Internal: has DROP EXTENSION CASCADE take the query and the states of a continuous aggregate along, and what was made to share and to federate it';

/* After an upgrade of the server: some aggregates keep their states in another type than before. */
CREATE FUNCTION millrace._aggregate_states(definition regclass, OUT columns name[], OUT types regtype[], OUT aggregates regprocedure[])
	LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_states';
COMMENT ON FUNCTION millrace._aggregate_states(regclass) IS 'Internal: the columns of a continuous aggregate''s tables that hold states, the types that these have on this server, and the aggregates whose they are';
CREATE FUNCTION millrace._states_differ(definition regclass, state regclass, delta regclass) RETURNS bool
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM millrace._aggregate_states(definition) d, unnest(d.columns, d.types) t(name, type)
		JOIN pg_attribute a ON a.attrelid IN (state, delta) AND a.attname = t.name AND a.atttypid <> t.type)
$$;
COMMENT ON FUNCTION millrace._states_differ(regclass, regclass, regclass) IS 'Internal: whether the tables of a continuous aggregate have states of other types than its aggregates have on this server';

CREATE FUNCTION millrace._converted_state(aggregate regprocedure, from_type regtype, to_type regtype) RETURNS text
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	/* PostgreSQL 17 counts infinite intervals apart: number, sum, number of infinite and of minus infinite ones. */
	IF to_type = 'bytea'::regtype AND aggregate = 'avg(interval)'::regprocedure AND from_type = 'interval[]'::regtype THEN
		RETURN 'int8send((extract(epoch FROM %1$s[2]) * 1000000)::bigint) || interval_send(%1$s[1]) || int8send(0) || int8send(0)';
	ELSIF to_type = 'bytea'::regtype AND aggregate = 'sum(interval)'::regprocedure AND from_type = 'interval'::regtype THEN
		RETURN 'int8send(1) || interval_send(%1$s) || int8send(0) || int8send(0)';
	END IF;
	RAISE EXCEPTION 'states of aggregate % cannot be converted from type % to %', aggregate, from_type, to_type USING ERRCODE = '0A000',
		HINT = 'Drop the continuous aggregate and create it again.';
END $$;
COMMENT ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype) IS 'Internal: an expression, for format, that makes a state of an aggregate of what another version of the server has stored';

CREATE FUNCTION millrace._rewrite_states(definition regclass, state regclass, delta regclass) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	stream millrace.stream;
	texts record;
	changes text;
	empty text;
	rel regclass;
	altered text;
	federated text;
	partial text;
	told text;
	grants text[];
	granted text;
BEGIN
	SELECT * INTO STRICT stream FROM millrace.stream s WHERE s.state = _rewrite_states.state;
	SELECT min(f.name) INTO federated FROM millrace.federated f JOIN pg_class c ON c.oid = f.view WHERE f.aggregate = stream.name;
	IF federated IS NOT NULL THEN
		RAISE EXCEPTION 'states of continuous aggregate "%" cannot be converted while federated aggregate "%" reads them', stream.name, federated USING ERRCODE = '2BP01',
			HINT = format('SELECT millrace.drop_federated_aggregate(%L), and create it again when they are converted here and on the nodes.', federated);
	END IF;
	texts := millrace._aggregate_texts(definition, state, delta);
	SELECT format('CREATE OR REPLACE FUNCTION %s(after xid8) RETURNS TABLE (cursor xid8, %s) LANGUAGE sql STABLE BEGIN ATOMIC %%s; END', p.oid::regproc,
			(SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = t.oid AND a.attnum > 0))
		INTO STRICT changes FROM pg_proc p JOIN pg_class t ON t.oid = stream.target
		WHERE p.pronamespace = t.relnamespace AND p.proargtypes = '5069' AND p.oid IN (
			SELECT d.objid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = delta);
	/* What reads the columns stands aside meanwhile; NAME_partial, which shows them, is made anew. */
	SELECT c.oid::regclass, obj_description(c.oid, 'pg_class'), ARRAY(SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass,
			CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END) FROM aclexplode(c.relacl) a)
		INTO partial, told, grants FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = stream.name;
	IF partial IS NOT NULL THEN
		EXECUTE 'DROP VIEW ' || partial;
	END IF;
	FOREACH rel IN ARRAY ARRAY[stream.final, stream.target] LOOP
		SELECT string_agg(format('NULL::%s%s AS %I', format_type(a.atttypid, a.atttypmod),
				CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', n.nspname, c.collname) END, a.attname), ', ' ORDER BY a.attnum)
			INTO empty FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			LEFT JOIN pg_collation c ON c.oid = a.attcollation LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
			WHERE a.attrelid = rel AND a.attnum > 0;
		EXECUTE format('CREATE OR REPLACE VIEW %s AS SELECT %s', rel, empty);
	END LOOP;
	EXECUTE format(changes, 'SELECT NULL::xid8, ' || empty);
	FOREACH rel IN ARRAY ARRAY[state, delta] LOOP
		SELECT string_agg(format('ALTER COLUMN %I TYPE %s USING ', t.name, t.type) || format(millrace._converted_state(t.aggregate, a.atttypid, t.type), t.name), ', ')
			INTO altered FROM millrace._aggregate_states(definition) d, unnest(d.columns, d.types, d.aggregates) t(name, type, aggregate)
			JOIN pg_attribute a ON a.attrelid = rel AND a.attname = t.name AND a.atttypid <> t.type;
		IF altered IS NOT NULL THEN
			EXECUTE format('ALTER TABLE %s %s', rel, altered);
		END IF;
	END LOOP;
	EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', stream.target, texts.live);
	EXECUTE format('CREATE OR REPLACE VIEW %s AS %s', stream.final, texts.final);
	EXECUTE format(changes, texts.changes);
	IF partial IS NOT NULL THEN
		EXECUTE format('CREATE VIEW %s AS %s', partial, millrace._partial_text(definition, state, delta));
		EXECUTE format('COMMENT ON VIEW %s IS %L', partial, told);
		PERFORM millrace._shared_put(stream.name, partial::regclass);
		FOREACH granted IN ARRAY grants LOOP
			EXECUTE granted;
		END LOOP;
	END IF;
END $$;
COMMENT ON FUNCTION millrace._rewrite_states(regclass, regclass, regclass) IS 'Internal: converts the stored states of a continuous aggregate to the types that its aggregates have on this server, as its owner';
CREATE FUNCTION millrace._convert_states(name text) RETURNS bool LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_convert_states';
COMMENT ON FUNCTION millrace._convert_states(text) IS 'Internal: converts the stored states of a continuous aggregate, where an upgrade of the server asks for it';

COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates, and for what users have, from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, refreshes what is
marked, merges states, settles rollups, converts what another major version of the server has stored, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT millrace.schedule(''maintain'');';

REVOKE EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text), millrace._tie(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._converted_state(regprocedure, regtype, regtype), millrace._rewrite_states(regclass, regclass, regclass), millrace._convert_states(text), millrace._tie(text) TO @extowner@ WITH GRANT OPTION;
SELECT millrace._tie(s.name) FROM millrace.stream s WHERE s.kind IN ('aggregate', 'rollup');

/* Whether late rows were dropped is known after millrace.batches has forgotten them, too. */
ALTER TABLE millrace.stream ADD COLUMN late_since timestamptz;
COMMENT ON COLUMN millrace.stream.late_since IS 'When a row first came too late for it and was not taken (late_policy drop or divert); NULL: none has';
UPDATE millrace.stream s SET late_since = b.started
	FROM (SELECT w.key AS name, pg_catalog.min(b.started) AS started FROM millrace.batches b, pg_catalog.jsonb_each(b.streams) w WHERE w.value ? 'late' GROUP BY 1) b
	WHERE b.name = s.name AND s.late_policy <> 'update';
/* States of other extensions' aggregates have seals. */
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
CREATE FUNCTION millrace._sealed(aggregate regprocedure, state bytea) RETURNS bytea
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_sealed';
DO $$
DECLARE
	c record;
	rel regclass;
BEGIN
	FOR c IN
		SELECT t.name AS stream, t.state, t.delta, u.name, u.aggregate, o.rolsuper AS is_ours
		FROM millrace.stream t JOIN pg_class s ON s.oid = t.state JOIN pg_roles o ON o.oid = s.relowner,
			LATERAL millrace._aggregate_states(t.definition) a, LATERAL unnest(a.columns, a.aggregates) u(name, aggregate)
			JOIN pg_aggregate g ON g.aggfnoid = u.aggregate::oid
		WHERE t.kind = 'aggregate' AND g.aggtranstype = 'internal'::regtype AND g.aggdeserialfn::oid >= 16384
	LOOP
		/* An UPDATE runs what the table's owner wrote. */
		IF NOT c.is_ours THEN
			RAISE WARNING 'continuous aggregate "%" uses %: its states cannot be read any more', c.stream, c.aggregate
				USING HINT = 'Call millrace.create_continuous_aggregate again with its name and query.';
			CONTINUE;
		END IF;
		FOREACH rel IN ARRAY ARRAY[c.state, c.delta] LOOP
			EXECUTE format('UPDATE %s SET %I = millrace._sealed(%L, %2$I)', rel, c.name, c.aggregate);
		END LOOP;
	END LOOP;
END $$;
DROP FUNCTION millrace._sealed(regprocedure, bytea);
/* End of seals. */
/* The partitions of a source, one by one. */
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
CREATE OR REPLACE FUNCTION millrace.partitions(source regclass)
	RETURNS TABLE (partition regclass, from_time timestamptz, to_time timestamptz)
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM millrace._partitions(source, NULL) $$;
CREATE OR REPLACE FUNCTION millrace._note_partitions(source regclass, attached regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	part millrace.known_partition;
	fresh regclass[];
BEGIN
	IF NOT EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
		WHERE p.partrelid = source AND p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype) THEN
		RETURN;
	END IF;
	/* One that comes when there are thousands is looked at alone. */
	IF attached IS DISTINCT FROM source THEN
		fresh := ARRAY(SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = source
			AND (i.inhrelid = attached OR NOT EXISTS (SELECT FROM millrace.known_partition k WHERE k.partition = i.inhrelid AND k.source = i.inhparent)));
	END IF;
	INSERT INTO millrace.known_partition AS k
		SELECT source, p.partition, p.from_time, p.to_time FROM millrace._partitions(source, fresh) p WHERE p.from_time IS NOT NULL
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
COMMENT ON FUNCTION millrace._note_partitions(regclass, regclass) IS 'Internal: keeps millrace.known_partition and gone_range; attached: a partition that came with rows, NULL: none did, the source: look at the bounds of all';
/* End of partitions. */
/* Functions that mean the same with any search_path; what a table's owner wrote runs with his rights. */
DROP FUNCTION millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass);
CREATE FUNCTION millrace._lock_partitions(source regclass) RETURNS void
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_lock_partitions';
COMMENT ON FUNCTION millrace._lock_partitions(regclass) IS 'Internal: until the transaction ends nobody else makes partitions of a table; for its owner';
CREATE FUNCTION millrace._as_owner(rel regclass, command text, argument jsonb DEFAULT NULL) RETURNS SETOF jsonb
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_as_owner';
COMMENT ON FUNCTION millrace._as_owner(regclass, text, jsonb) IS 'Internal: runs a command as the owner of a relation, for a member of that role, so that what the owner wrote does not run with more rights than his';
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
CREATE OR REPLACE FUNCTION millrace.drop_expired_partitions(source regclass DEFAULT NULL) RETURNS int
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
CREATE OR REPLACE FUNCTION millrace.create_pipe(name text, source regclass, command text, on_error text DEFAULT 'fail') RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_pipe($1, $2, $3, $4, pg_catalog.current_setting('search_path')) $$;
COMMENT ON FUNCTION millrace.create_pipe(text, regclass, text, text) IS
'Creates a pipe: a command that runs for each batch of a source, in the same transaction.
command: one INSERT INTO target SELECT … FROM new_rows; new_rows has the columns of the source and the rows of the batch.
It sees rows inserted from now on; insert older ones yourself.  It runs with the rights and search_path of its creator.
A target that is a source has its partitions made beside those of this source, here and by ensure_partitions.
on_error: fail (the batch) or suspend (the pipe: its rows are kept, and millrace.refresh passes them on).';
CREATE OR REPLACE FUNCTION millrace._replace_view(view text, query text, comment text) RETURNS void
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
CREATE OR REPLACE FUNCTION millrace.create_continuous_aggregate(name text, query text, watermark interval DEFAULT NULL, late_policy text DEFAULT 'update',
	retain interval DEFAULT NULL, idle_after interval DEFAULT NULL, on_error text DEFAULT 'fail', with_data bool DEFAULT true) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_continuous_aggregate($1, $2, $3, $4, $5, $6, $7, $8,
		pg_catalog.quote_ident(pg_catalog.current_schema()), pg_catalog.current_setting('search_path')) $$;
CREATE FUNCTION millrace._backfill_begin(name text) RETURNS bool
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = _backfill_begin.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.kind = 'history' THEN
		PERFORM millrace.refresh(name);
		RETURN false;
	END IF;
	IF s.status <> 'filling' THEN
		RAISE EXCEPTION 'stream "%" is %, and not to be filled', name, s.status USING ERRCODE = '55000',
			HINT = 'Only a continuous aggregate that was created with with_data => false is filled; millrace.refresh computes windows anew.';
	END IF;
	PERFORM millrace._slice_marks(name, millrace._slices(s.source, (millrace._aggregate_window(s.definition)).time_text));
	RETURN true;
END $$;
COMMENT ON FUNCTION millrace._backfill_begin(text) IS 'Internal: divides what backfill has to fill; false: nothing is left to do';
CREATE FUNCTION millrace._backfill_left(name text) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT count(*) FROM millrace.stream s JOIN millrace.mark m USING (state)
	WHERE s.name = _backfill_left.name AND m.reason = 'filling' AND m.from_time <= m.to_time
$$;
COMMENT ON FUNCTION millrace._backfill_left(text) IS 'Internal: slices that backfill has not filled';
CREATE FUNCTION millrace._backfill_next(name text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	slice record;
BEGIN
	/* The newest first: they are asked for most. */
	SELECT m.from_time, m.to_time INTO slice FROM millrace.stream s JOIN millrace.mark m USING (state)
		WHERE s.name = _backfill_next.name AND m.reason = 'filling' ORDER BY m.from_time > m.to_time, m.from_time DESC LIMIT 1;
	IF FOUND THEN
		RETURN millrace._fill(name, slice.from_time, slice.to_time);
	END IF;
	IF (SELECT t.status FROM millrace.stream t WHERE t.name = _backfill_next.name) = 'filling' THEN
		PERFORM millrace._fill(name, '-infinity', 'infinity');
	END IF;
	RETURN NULL;
END $$;
COMMENT ON FUNCTION millrace._backfill_next(text) IS 'Internal: fills a slice, and returns the states written; NULL: it was the last step';
CREATE FUNCTION millrace._backfill_tell(name text, n_slices bigint, n_states bigint, began timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n_left bigint := millrace._backfill_left(name);
BEGIN
	RAISE NOTICE 'backfill of "%": % of % slices done (% %%), % states written, about % s left', name, n_slices - n_left, n_slices,
		100 * (n_slices - n_left) / greatest(n_slices, 1), n_states,
		round((extract(epoch FROM clock_timestamp() - began) * n_left / greatest(n_slices - n_left, 1))::numeric);
END $$;
COMMENT ON FUNCTION millrace._backfill_tell(text, bigint, bigint, timestamptz) IS 'Internal: how far backfill has come';
CREATE OR REPLACE PROCEDURE millrace.backfill(name text)
LANGUAGE plpgsql AS $$
DECLARE
	n_slices pg_catalog.int8;
	n_more pg_catalog.int8;
	n_states pg_catalog.int8 := 0;
	began pg_catalog.timestamptz := pg_catalog.clock_timestamp();
BEGIN
	IF millrace._backfill_begin(name) THEN
		COMMIT;
		n_slices := millrace._backfill_left(name);
		LOOP
			n_more := millrace._backfill_next(name);
			EXIT WHEN n_more IS NULL;
			COMMIT;
			n_states := pg_catalog.int8pl(n_states, n_more);
			PERFORM millrace._backfill_tell(name, n_slices, n_states, began);
		END LOOP;
	END IF;
END $$;
CREATE OR REPLACE FUNCTION millrace.verify(name text) RETURNS TABLE (window_start timestamptz, key jsonb, stored jsonb, expected jsonb, reason text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 SET row_security = off AS $$
#variable_conflict use_column
DECLARE
	s millrace.stream;
	keys record;
	win record;
	win_size interval := '0';
	win_kind text := 'rollup';
	columns text;
	key_columns text;
	tolerances jsonb;
	longest interval := '0';
	closed_to timestamptz;
	has_late bool;
	has_join bool;
	is_owner bool;
	command text;
	diffs refcursor;
	found_diff jsonb;
	diff record;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = verify.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.state IS NULL THEN
		RAISE EXCEPTION 'stream "%" is a %, which cannot be verified', name, s.kind USING ERRCODE = '42809', HINT = 'Name a continuous aggregate.';
	END IF;
	IF s.definition IS NULL OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.definition) THEN
		RAISE EXCEPTION 'the query of continuous aggregate "%" is gone', name USING ERRCODE = '55000', DETAIL = s.error,
			HINT = format('Restore what it reads, then call millrace.refresh(%L).', name);
	END IF;
	keys := millrace._aggregate_keys(s.definition);
	IF s.kind = 'aggregate' THEN
		win := millrace._aggregate_window(s.definition);
		win_size := win.size;
		win_kind := win.kind;
		closed_to := millrace._closed_to(s.state);
	END IF;
	IF win_kind = 'session' THEN
		SELECT (a #>> '{}')::interval INTO longest FROM millrace._as_owner(s.state, format('SELECT to_jsonb(coalesce(max(q.window_last - q.window_start), ''0'')) FROM (SELECT window_start, window_last FROM %s
			UNION ALL SELECT window_start, window_last FROM %s) q WHERE isfinite(q.window_start) AND isfinite(q.window_last)', s.state, s.delta)) a;
	END IF;
	/* Everything that is neither the window nor a key is compared. */
	SELECT string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname <> ALL (keys.keys) AND a.attname IS DISTINCT FROM keys.window_column),
		string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname = ANY (keys.keys)),
		coalesce(jsonb_object_agg(a.attname, CASE WHEN e.oid = 'float4'::regtype THEN 1e-5 ELSE 1e-9 END)
			FILTER (WHERE e.oid IN ('float4'::regtype, 'float8'::regtype)), '{}')
		INTO columns, key_columns, tolerances
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_type e ON e.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END
		WHERE a.attrelid = s.definition AND a.attnum > 0 AND NOT a.attisdropped;
	has_late := s.late_policy <> 'update' AND s.late_since IS NOT NULL;
	has_join := s.kind = 'aggregate' AND EXISTS (SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
		WHERE w.ev_class = s.definition AND d.refclassid = 'pg_class'::regclass AND d.refobjid NOT IN (s.definition, s.source));
	/* As the owner: a view may call functions of his. */
	IF (SELECT count(DISTINCT c.relowner) FROM pg_class c WHERE c.oid IN (s.target, s.definition, s.state)) > 1 THEN
		RAISE EXCEPTION 'the views and the table % of "%" belong to different roles', s.state, name USING ERRCODE = '42501', HINT = 'Use ALTER TABLE … OWNER TO.';
	END IF;
	is_owner := (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = s.state);
	command := format($q$
		WITH s AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %4$s r) q),
		e AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %5$s r) q)
		SELECT jsonb_build_object('w', coalesce(s.w, e.w), 'k', coalesce(s.k, e.k), 'stored', s.v, 'expected', e.v)
		FROM s FULL JOIN e ON s.id = e.id AND s.i = e.i
		WHERE s.v IS DISTINCT FROM e.v
		ORDER BY coalesce(s.w, e.w), coalesce(s.k, e.k)$q$,
		CASE WHEN keys.window_column IS NULL THEN 'NULL::timestamptz' ELSE 'r.' || quote_ident(keys.window_column) END,
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || key_columns || ') x)', '''{}''::jsonb'),
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || columns || ') x)', '''{}''::jsonb'), s.target, s.definition);
	IF is_owner THEN
		OPEN diffs FOR SELECT a FROM millrace._as_owner(s.state, command) a;
	ELSE
		OPEN diffs FOR EXECUTE command;
	END IF;
	LOOP
		FETCH diffs INTO found_diff;
		EXIT WHEN NOT FOUND;
		SELECT (found_diff ->> 'w')::timestamptz AS w, nullif(found_diff -> 'k', 'null') AS k, nullif(found_diff -> 'stored', 'null') AS stored,
			nullif(found_diff -> 'expected', 'null') AS expected INTO diff;
		CONTINUE WHEN NOT millrace._differ(diff.stored, diff.expected, tolerances);
		/* Its rows, or its states, are gone. */
		CONTINUE WHEN s.kind = 'aggregate' AND (EXISTS (SELECT FROM millrace.gone_range g WHERE g.source = s.source
				AND g.from_time < diff.w + win_size + longest AND g.to_time > CASE win_kind WHEN 'session' THEN diff.w - win_size - longest ELSE diff.w END)
			OR diff.w + CASE win_kind WHEN 'session' THEN '0' ELSE win_size END <= s.retained_from);
		window_start := diff.w;
		key := diff.k;
		stored := diff.stored;
		expected := diff.expected;
		SELECT format('marked (%s), not refreshed', string_agg(DISTINCT m.reason, ', ')) INTO reason FROM millrace.mark m
			WHERE m.state = s.state AND CASE WHEN m.from_time = '-infinity' AND m.to_time = 'infinity' THEN true
				WHEN diff.w IS NULL THEN m.from_time > m.to_time OR keys.window_column IS NULL
				WHEN win_kind = 'session' THEN m.to_time >= diff.w AND m.from_time <= diff.w + longest + win_size
				ELSE m.to_time >= diff.w AND m.from_time < diff.w + win_size OR m.from_time = diff.w END
			HAVING count(*) > 0;
		IF reason IS NULL AND s.kind = 'rollup' AND EXISTS (SELECT FROM millrace.stream i JOIN millrace.mark m USING (state) WHERE i.target = ANY (s.inputs)) THEN
			reason := 'windows that it reads are marked, not refreshed';
		ELSIF reason IS NULL AND has_late AND diff.w + win_size <= closed_to THEN
			reason := 'late rows dropped';
		ELSIF reason IS NULL AND has_join THEN
			reason := 'a joined table may have changed';
		END IF;
		reason := coalesce(reason, 'defect');
		RETURN NEXT;
	END LOOP;
	CLOSE diffs;
END $$;
CREATE OR REPLACE FUNCTION millrace.stop_stream(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = stop_stream.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	PERFORM millrace._lock_source(s.source);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = stop_stream.name;
	IF s.kind NOT IN ('history', 'pipe', 'aggregate', 'scorer') THEN
		RAISE EXCEPTION 'stream "%" is a %, which cannot be stopped', name, s.kind USING ERRCODE = '42809', HINT = 'Stop what it reads.';
	END IF;
	IF s.status = 'filling' THEN
		RAISE EXCEPTION 'stream "%" is being filled', name USING ERRCODE = '55000', HINT = 'Let CALL millrace.backfill finish first.';
	ELSIF s.status <> 'running' THEN
		RAISE EXCEPTION 'stream "%" does not run: it is %', name, s.status USING ERRCODE = '55000',
			HINT = pg_catalog.format('millrace.start_stream(%L) starts it.', name);
	END IF;
	PERFORM millrace._stream_set(name, 'stopped', NULL, false);
END $$;
CREATE OR REPLACE FUNCTION millrace.start_stream(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = start_stream.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.status = 'running' THEN
		RAISE EXCEPTION 'stream "%" is running', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	ELSIF s.status = 'filling' THEN
		RAISE EXCEPTION 'stream "%" is being filled', name USING ERRCODE = '55000', HINT = 'CALL millrace.backfill goes on with that.';
	END IF;
	/* Most of the work while writers go on; the rest is done when they are kept out. */
	PERFORM millrace.refresh(name);
	PERFORM millrace._lock_source(s.source);
	PERFORM millrace.refresh(name);
	PERFORM millrace._stream_set(name, 'running', NULL, false);
END $$;
CREATE FUNCTION millrace._create_alert(name text, query text, schema text, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	view text := pg_catalog.format('%s.%I', schema, name);
	command text;
	view_rel regclass;
	parts record;
	source regclass;
BEGIN
	IF name IS NULL OR query IS NULL THEN
		RAISE EXCEPTION 'name and query of an alert must not be null' USING ERRCODE = '22004';
	END IF;
	IF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000', HINT = 'Set search_path.';
	END IF;
	IF name = '' OR pg_catalog.octet_length(name) > 55 THEN
		RAISE EXCEPTION '"%" is not a valid name of a stream', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 55 bytes.';
	END IF;
	IF EXISTS (SELECT FROM millrace.stream s WHERE s.name = _create_alert.name) THEN
		RAISE EXCEPTION 'stream "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	END IF;
	command := format('CREATE VIEW %s AS %s', view, rtrim(query, E'; \n\t'));
	PERFORM pg_catalog.set_config('search_path', path, true);
	EXECUTE command;
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	view_rel := view::regclass;
	parts := millrace._alert_parts(view_rel);
	FOREACH source IN ARRAY parts.sources LOOP
		PERFORM millrace._lock_source(source);
	END LOOP;
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', view, 'What alert ' || view || ' reports, as it is now');
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'alert', parts.source, view_rel, NULL, view_rel, NULL, NULL, NULL, query, NULL, NULL, NULL, NULL, NULL,
		parts.inputs, false);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	PERFORM millrace._alert_start(view_rel);
END $$;
COMMENT ON FUNCTION millrace._create_alert(text, text, text, text) IS 'Internal: create_alert; schema, path: the first schema of the caller''s search_path, quoted, and all of it';
CREATE OR REPLACE FUNCTION millrace.create_alert(name text, query text) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_alert($1, $2, pg_catalog.quote_ident(pg_catalog.current_schema()), pg_catalog.current_setting('search_path')) $$;
CREATE OR REPLACE FUNCTION millrace.compact(name text) RETURNS bigint
	LANGUAGE sql STRICT SET search_path = pg_catalog, pg_temp AS $$
		SELECT coalesce((SELECT millrace._settle(s.state) FROM millrace.stream s WHERE s.name = $1 AND s.kind = 'rollup'), millrace._compact($1, true))
	$$;
CREATE FUNCTION millrace._maintained(name text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN name IS NOT NULL THEN ARRAY[name] ELSE coalesce((SELECT array_agg(s.name ORDER BY s.seq)
		FROM millrace.stream s LEFT JOIN pg_class c ON c.oid = s.state
		WHERE pg_has_role(CASE WHEN s.kind = 'history' THEN s.owner::oid ELSE c.relowner END, 'USAGE')), '{}') END
$$;
COMMENT ON FUNCTION millrace._maintained(text) IS 'Internal: the streams that maintain works on';
CREATE FUNCTION millrace._maintain_step(stream text, step text, is_alone bool) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = _maintain_step.stream;
	/* A stream that has failed is healed by its owner. */
	IF NOT FOUND AND NOT is_alone OR s.status = 'failed' AND step <> 'convert' THEN
		RETURN;
	END IF;
	IF s.kind IN ('rollup', 'history') THEN
		IF step = 'convert' AND s.kind = 'rollup' THEN
			step := 'tie';
		ELSIF step <> 'compact' THEN
			RETURN;
		ELSE
			step := s.kind;
		END IF;
	END IF;
	IF step = 'refresh' AND (s.status = 'running' AND EXISTS (SELECT FROM millrace.mark m WHERE m.state = s.state)) IS NOT TRUE THEN
		RETURN;
	END IF;
	BEGIN
		CASE step
			WHEN 'tie' THEN PERFORM millrace._tie(stream);
			WHEN 'convert' THEN PERFORM millrace._convert_states(stream);
				PERFORM millrace._tie(stream);
			WHEN 'idle' THEN PERFORM millrace._advance_idle(stream);
			WHEN 'close' THEN PERFORM millrace._close_windows(stream);
			WHEN 'expire' THEN PERFORM millrace._drop_expired(stream);
			WHEN 'refresh' THEN PERFORM millrace.refresh(stream);
			WHEN 'compact' THEN PERFORM millrace._compact(stream, false);
			WHEN 'rollup' THEN PERFORM millrace.compact(stream);
			WHEN 'history' THEN PERFORM millrace._maintain_history(stream);
		END CASE;
	EXCEPTION WHEN OTHERS THEN
		/* One that fails must not keep the others from it. */
		IF is_alone THEN
			RAISE;
		END IF;
		RAISE WARNING 'could not maintain "%": %', stream, SQLERRM USING ERRCODE = SQLSTATE;
	END;
END $$;
COMMENT ON FUNCTION millrace._maintain_step(text, text, bool) IS 'Internal: a step of maintain, for one stream';
CREATE OR REPLACE PROCEDURE millrace.maintain(name text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	stream pg_catalog.text;
	step pg_catalog.text;
BEGIN
	PERFORM millrace._check_maintain();
	FOREACH stream IN ARRAY millrace._maintained(name) LOOP
		FOREACH step IN ARRAY ARRAY['convert', 'idle', 'close', 'expire', 'refresh', 'compact'] LOOP
			PERFORM millrace._maintain_step(stream, step, name IS NOT NULL);
			COMMIT;
		END LOOP;
	END LOOP;
	PERFORM millrace._prune_batches();
	PERFORM millrace._sweep_cache();
END $$;
COMMENT ON PROCEDURE millrace.maintain(text) IS
'What is to be done for continuous aggregates, and for what users have, from time to time: all that the caller owns, or the one of that name.
Closes the windows of streams that have become quiet (idle_after), drops what is older than retain, refreshes what is
marked, merges states, settles rollups, converts what another major version of the server has stored, and keeps the newest millrace.keep_batches rows of millrace.batches for each source.  Commits after each step, so it cannot
run inside a transaction block.  With pg_cron: SELECT millrace.schedule(''maintain'');';
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
CREATE OR REPLACE FUNCTION millrace._same_version(model text, a int, b int, at timestamptz = 'infinity') RETURNS bool
	LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM millrace.model_version AS v WHERE v.model = $1 AND v.version = $2 AND v.created <= $4) AND ($2 = $3 OR NOT EXISTS (
		-- What both versions do to a row is there twice.
		SELECT FROM (
			SELECT pg_catalog.jsonb_build_array(i.index, i.value) FROM millrace.index_label AS i WHERE i.model = $1 AND i.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.to_jsonb(s) - 'version' - 'n' FROM millrace.scale_column AS s WHERE s.model = $1 AND s.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.jsonb_build_array(c.cluster, c.center) FROM millrace.cluster AS c WHERE c.model = $1 AND c.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.jsonb_build_array(v.parameters->'on_unknown', v.parameters->'method', v.parameters->'on_null')
			FROM millrace.model_version AS v WHERE v.model = $1 AND v.version IN ($2, $3)) AS r (row)
		GROUP BY r.row HAVING pg_catalog.count(*) <> 2)) $$;
CREATE FUNCTION millrace._create_scorer(name text, source regclass, model text, user_column name, item_column name, k int,
	max_per_category int, baseline text, exclude_seen bool, on_error text, schema text, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	own constant name[] := '{category,items,scores,sources,precision_own,precision_next,scored_at,seq,is_last}';
	target text := pg_catalog.format('%s.%I', schema, name);
	latest text := pg_catalog.format('%s.%I', schema, name || '_latest');
	hourly text := pg_catalog.format('%s.%I', schema, name || '_hourly');
	item_type regtype;
	clash name;
	columns text;
	shown text;
	arguments text;
	target_rel regclass;
	hourly_rel regclass;
	latest_rel regclass;
BEGIN
	IF name IS NULL OR source IS NULL OR model IS NULL OR user_column IS NULL OR item_column IS NULL THEN
		RAISE EXCEPTION 'name, source, model, user_column and item_column of a scorer must not be null' USING ERRCODE = '22004';
	END IF;
	IF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000', HINT = 'Set search_path.';
	END IF;
	IF name = '' OR pg_catalog.octet_length(name) > 55 THEN
		RAISE EXCEPTION '"%" is not a valid name of a stream', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 55 bytes.';
	END IF;
	IF EXISTS (SELECT FROM millrace.stream s WHERE s.name = _create_scorer.name) THEN
		RAISE EXCEPTION 'stream "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	END IF;
	IF exclude_seen IS NULL THEN
		RAISE EXCEPTION 'exclude_seen of "%" must not be null', name USING ERRCODE = '22004';
	END IF;
	IF on_error IS NULL OR on_error NOT IN ('fail', 'suspend') THEN
		RAISE EXCEPTION 'on_error "%" of "%" is not known', on_error, name USING ERRCODE = '22023', HINT = 'It is fail or suspend.';
	END IF;
	PERFORM millrace._lock_source(source);
	SELECT a.attname INTO clash FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (own) ORDER BY a.attnum LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'column "%" of table % has the name of a column that scorer "%" adds', clash, source, name USING ERRCODE = '42701',
			DETAIL = pg_catalog.format('These are %s.', pg_catalog.array_to_string(own, ', ')),
			HINT = 'Rename it, or let a pipe fill a table with other names of columns and score that.';
	END IF;
	item_type := millrace._scorer_check(source, model, user_column, item_column, k, max_per_category, baseline);
	SELECT pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod))
			|| CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.format(' COLLATE %I.%I', n.nspname, c.collname) ELSE '' END, ', ' ORDER BY a.attnum)
		INTO columns
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
		WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped;
	EXECUTE pg_catalog.format('CREATE TABLE %s (%s, category text, items %s[], scores real[], sources text[], precision_own real, precision_next real,'
		' scored_at timestamptz, seq bigint GENERATED BY DEFAULT AS IDENTITY (INCREMENT BY 32), is_last bool)', target, columns, item_type);
	EXECUTE pg_catalog.format('CREATE INDEX ON %s (%I, seq DESC) WHERE is_last', target, user_column);
	EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', target, pg_catalog.format('Rows of %s with what model %s recommended to their users (scorer %s)', source, model, name));
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.category IS ''Category of the item bought; NULL: it has none''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.items IS ''What was recommended, best first: not the item bought''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.scores IS ''Score of each; those of a baseline are on a scale of their own''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.sources IS ''Where each comes from: model, fold_in, history or baseline''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.precision_own IS %L', target, pg_catalog.format('Part of the list, of %s, that the user has bought at some time', k));
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.precision_next IS %L', target,
		pg_catalog.format('Part, of %s, of the user''s last list before this batch that he buys in the batch; NULL: he had none', k));
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.scored_at IS ''When the batch was scored''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.seq IS ''Order of scoring''', target);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.is_last IS ''Is it the last row of its user in the batch?''', target);
	SELECT pg_catalog.string_agg(pg_catalog.format('t.%I', a.attname), ', ' ORDER BY a.attnum) INTO shown
		FROM pg_catalog.pg_attribute a WHERE a.attrelid = target::regclass AND a.attnum > 0 AND a.attname <> 'is_last';
	EXECUTE pg_catalog.format('CREATE VIEW %s AS SELECT DISTINCT ON (t.%I) %s FROM %s t WHERE t.is_last ORDER BY t.%2$I, t.seq DESC', latest, user_column, shown, target);
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', latest, 'The last row of each user in ' || target);
	EXECUTE pg_catalog.format('CREATE VIEW %s AS SELECT pg_catalog.date_trunc(''hour'', t.scored_at, ''UTC'') AS hour, pg_catalog.count(*) AS users,'
		' pg_catalog.avg(t.precision_own) AS precision_own, pg_catalog.count(t.precision_next) AS judged, pg_catalog.avg(t.precision_next) AS precision_next'
		' FROM %s t WHERE t.is_last GROUP BY 1', hourly, target);
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', hourly, 'Precision of the lists in ' || target || ' by the hour in which they were made: each user once for each batch');
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.users IS ''Users, once for each batch''', hourly);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.precision_own IS ''Mean of precision_own''', hourly);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.judged IS ''Those who had a list before''', hourly);
	EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.precision_next IS ''Mean of their precision_next''', hourly);
	PERFORM millrace._source_put(source, NULL, NULL, NULL);
	arguments := pg_catalog.jsonb_build_object('model', model, 'user_column', user_column, 'item_column', item_column, 'k', k, 'max_per_category', max_per_category,
			'baseline', baseline, 'exclude_seen', exclude_seen)::text;
	target_rel := target::regclass;
	hourly_rel := hourly::regclass;
	latest_rel := latest::regclass;
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'scorer', source, target_rel,
		arguments,
		hourly_rel, NULL, NULL, latest_rel, NULL, NULL, NULL, NULL, NULL, on_error, NULL, false);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	PERFORM millrace._install_triggers(source);
END $$;
COMMENT ON FUNCTION millrace._create_scorer(text, regclass, text, name, name, int, int, text, bool, text, text, text) IS
'Internal: create_scorer; schema, path: the first schema of the caller''s search_path, quoted, and all of it';
CREATE OR REPLACE FUNCTION millrace.create_scorer(name text, source regclass, model text, user_column name, item_column name, k int DEFAULT 5,
	max_per_category int DEFAULT 1, baseline text DEFAULT 'top', exclude_seen bool DEFAULT false, on_error text DEFAULT 'fail') RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_scorer($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
		pg_catalog.quote_ident(pg_catalog.current_schema()), pg_catalog.current_setting('search_path')) $$;
REVOKE EXECUTE ON FUNCTION millrace._create_pipe(text, regclass, text, text, text),
	millrace._create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool, text, text),
	millrace._backfill_begin(text),
	millrace._backfill_next(text),
	millrace._create_alert(text, text, text, text),
	millrace._maintain_step(text, text, bool),
	millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass, text),
	millrace._create_scorer(text, regclass, text, name, name, int, int, text, bool, text, text, text)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._create_pipe(text, regclass, text, text, text),
	millrace._create_continuous_aggregate(text, text, interval, text, interval, interval, text, bool, text, text),
	millrace._backfill_begin(text),
	millrace._backfill_next(text),
	millrace._create_alert(text, text, text, text),
	millrace._maintain_step(text, text, bool),
	millrace._rollup_create(text, text, interval, text, text, text, text, text, regclass, text, regclass, text),
	millrace._create_scorer(text, regclass, text, name, name, int, int, text, bool, text, text, text)
	TO @extowner@ WITH GRANT OPTION;
/* End of what has its own search_path. */

/* 39-federate.sql, all of it. */
/* Federated aggregates: states of several databases, merged when they are read (federate.c). */
CREATE TABLE millrace.shared (
	name text PRIMARY KEY,
	partial regclass NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.shared', '');
GRANT SELECT ON millrace.shared TO PUBLIC;
COMMENT ON TABLE millrace.shared IS 'Continuous aggregates whose states other databases may read; see millrace.shared_aggregates';
COMMENT ON COLUMN millrace.shared.name IS 'Name of the continuous aggregate';
COMMENT ON COLUMN millrace.shared.partial IS 'View NAME_partial of its states';

CREATE TABLE millrace.federated (
	name text PRIMARY KEY,
	view regclass NOT NULL,
	aggregate text NOT NULL,
	servers name[] NOT NULL,
	tables regclass[] NOT NULL,
	owner regrole NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.federated', '');
GRANT SELECT ON millrace.federated TO PUBLIC;
COMMENT ON TABLE millrace.federated IS 'Federated aggregates; see millrace.federated_aggregates';
COMMENT ON COLUMN millrace.federated.name IS 'Its name';
COMMENT ON COLUMN millrace.federated.view IS 'View that merges the states of all nodes and of this database';
COMMENT ON COLUMN millrace.federated.aggregate IS 'Name of the continuous aggregate, here and on all nodes; of a rollup, here';
COMMENT ON COLUMN millrace.federated.servers IS 'Foreign servers of the nodes';
COMMENT ON COLUMN millrace.federated.tables IS 'Foreign tables over the states of the nodes, then over how far these have come; of a rollup none';
COMMENT ON COLUMN millrace.federated.owner IS 'Who made it, and whose the foreign tables are that go with the view';

CREATE FUNCTION millrace._partial_text(definition regclass, state regclass, delta regclass) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_partial_text';
COMMENT ON FUNCTION millrace._partial_text(regclass, regclass, regclass) IS 'Internal: query of NAME_partial';
CREATE FUNCTION millrace._federated_text(definition regclass, state regclass, delta regclass, tables text[], closed text, retained text) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_federated_text';
COMMENT ON FUNCTION millrace._federated_text(regclass, regclass, regclass, text[], text, text) IS 'Internal: query of a federated aggregate';
CREATE FUNCTION millrace._federated_rollup_text(definition regclass, state regclass, input regclass, closed text, retained text, n_nodes int) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_federated_rollup_text';
COMMENT ON FUNCTION millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int) IS 'Internal: query of a federated rollup';
CREATE FUNCTION millrace._rollup_closed(state regclass, closed_to timestamptz) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_closed';
COMMENT ON FUNCTION millrace._rollup_closed(regclass, timestamptz) IS 'Internal: start of the last window of a rollup that is final if the aggregate at the bottom is closed up to a time';
CREATE FUNCTION millrace._rollup_gone(state regclass, retained_from timestamptz) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_gone';
COMMENT ON FUNCTION millrace._rollup_gone(regclass, timestamptz) IS 'Internal: start of the last window of the aggregate at the bottom of a rollup that ended at or before a time';
CREATE FUNCTION millrace._shared_put(name text, partial regclass) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_shared_put';
COMMENT ON FUNCTION millrace._shared_put(text, regclass) IS 'Internal: writes millrace.shared';
CREATE FUNCTION millrace._federated_put(name text, view regclass, aggregate text, servers name[], tables regclass[]) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_federated_put';
COMMENT ON FUNCTION millrace._federated_put(text, regclass, text, name[], regclass[]) IS 'Internal: writes millrace.federated';

CREATE VIEW millrace.state_key_hashes AS SELECT pg_catalog.encode(pg_catalog.sha256(k.key), 'hex') AS hash, k.own FROM millrace.state_key k;
GRANT SELECT ON millrace.state_key_hashes TO PUBLIC;
COMMENT ON VIEW millrace.state_key_hashes IS 'By what the keys in millrace.state_key can be told apart';
COMMENT ON COLUMN millrace.state_key_hashes.hash IS 'SHA-256 of a key';
COMMENT ON COLUMN millrace.state_key_hashes.own IS 'Whether this database seals with it';

/* Texts by which two databases compare: no setting of the session has a part in them. */
CREATE FUNCTION millrace._definition_text(definition regclass) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres'
	SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_monetary = 'C' SET quote_all_identifiers = off
	AS $$ SELECT pg_get_viewdef(definition) $$;
COMMENT ON FUNCTION millrace._definition_text(regclass) IS 'Internal: query of a view, the same in every session';
CREATE FUNCTION millrace._columns_text(rel regclass, first int) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
	AS $$
		SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
				|| CASE WHEN a.attcollation NOT IN (0, 100) THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END, ', ' ORDER BY a.attnum)
			FROM pg_attribute a WHERE a.attrelid = rel AND a.attnum >= first AND NOT a.attisdropped
	$$;
COMMENT ON FUNCTION millrace._columns_text(regclass, int) IS 'Internal: columns of a relation from one on, the same in every session';

/* What a database that reads the states has to know of an aggregate, and how far it has come. */
CREATE VIEW millrace.shared_aggregates AS
	SELECT h.name, n.nspname AS schema, c.relname AS partial, millrace.version() AS version,
		pg_catalog.current_setting('server_version_num')::int / 10000 AS server,
		millrace._definition_text(s.definition) AS query,
		millrace._columns_text(h.partial, 1) AS columns,
		ARRAY(SELECT k.hash FROM millrace.state_key_hashes k WHERE k.own) AS keys,
		millrace._closed_to(s.state) AS closed_to, s.retained_from
	FROM millrace.shared h JOIN millrace.stream s ON s.name = h.name AND s.kind = 'aggregate' JOIN pg_catalog.pg_class c ON c.oid = h.partial
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
GRANT SELECT ON millrace.shared_aggregates TO PUBLIC;
COMMENT ON VIEW millrace.shared_aggregates IS 'Continuous aggregates whose states other databases may read; what these go by';
COMMENT ON COLUMN millrace.shared_aggregates.name IS 'Name of the continuous aggregate';
COMMENT ON COLUMN millrace.shared_aggregates.schema IS 'Schema of NAME_partial';
COMMENT ON COLUMN millrace.shared_aggregates.partial IS 'View NAME_partial: the states';
COMMENT ON COLUMN millrace.shared_aggregates.version IS 'Version of the library';
COMMENT ON COLUMN millrace.shared_aggregates.server IS 'Major version of PostgreSQL, on which the form of serialised states depends';
COMMENT ON COLUMN millrace.shared_aggregates.query IS 'Its query';
COMMENT ON COLUMN millrace.shared_aggregates.columns IS 'Columns of NAME_partial';
COMMENT ON COLUMN millrace.shared_aggregates.keys IS 'Hashes of this database''s own keys in millrace.state_key';
COMMENT ON COLUMN millrace.shared_aggregates.closed_to IS 'Windows that ended at or before this time are final here';
COMMENT ON COLUMN millrace.shared_aggregates.retained_from IS 'Windows that ended before this time have been dropped; NULL: none has';

CREATE FUNCTION millrace.share_aggregate(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
	partial text;
BEGIN
	IF name IS NULL THEN
		RAISE EXCEPTION 'name of the continuous aggregate must not be null' USING ERRCODE = '22004';
	END IF;
	SELECT * INTO s FROM millrace.stream t WHERE t.name = share_aggregate.name;
	IF s.kind IS NULL OR s.kind NOT IN ('aggregate', 'rollup') THEN
		RAISE EXCEPTION 'continuous aggregate "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	ELSIF s.kind = 'rollup' THEN
		RAISE EXCEPTION '"%" is a rollup, which has no states to share', name USING ERRCODE = '42809',
			HINT = format('Share what it reads, %s: a federated rollup is computed where it is read.', s.inputs[1]);
	END IF;
	PERFORM millrace._stream_lock(name);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = share_aggregate.name;
	IF EXISTS (SELECT FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = share_aggregate.name) THEN
		RETURN;
	END IF;
	SELECT format('%I.%I', n.nspname, share_aggregate.name || '_partial') INTO partial
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = s.target;
	EXECUTE format('CREATE VIEW %s AS %s', partial, millrace._partial_text(s.definition, s.state, s.delta));
	EXECUTE format('COMMENT ON VIEW %s IS %L', partial, 'States of continuous aggregate ' || s.target || ', for databases that federate it');
	PERFORM millrace._shared_put(name, partial::regclass);
END $$;
COMMENT ON FUNCTION millrace.share_aggregate(text) IS
'Makes view NAME_partial: the states of a continuous aggregate, for other databases to merge with theirs (create_federated_aggregate).
GRANT SELECT on it to the role by which they come.  Shared already: nothing happens.';

CREATE FUNCTION millrace.unshare_aggregate(name text) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	partial regclass := (SELECT h.partial FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = unshare_aggregate.name);
BEGIN
	IF partial IS NULL THEN
		RAISE EXCEPTION 'continuous aggregate "%" is not shared', name USING ERRCODE = '42704', HINT = 'See millrace.shared_aggregates.';
	END IF;
	PERFORM millrace._stream_lock(name);
	EXECUTE 'DROP VIEW ' || partial;
	PERFORM millrace._shared_put(name, NULL);
END $$;
COMMENT ON FUNCTION millrace.unshare_aggregate(text) IS 'Drops view NAME_partial, the states of a continuous aggregate for other databases';

CREATE VIEW millrace.federated_aggregates AS
	SELECT f.name, f.view, f.aggregate, f.servers, c.relowner::regrole AS owner
	FROM millrace.federated f JOIN pg_catalog.pg_class c ON c.oid = f.view;
GRANT SELECT ON millrace.federated_aggregates TO PUBLIC;
COMMENT ON VIEW millrace.federated_aggregates IS 'Federated aggregates: continuous aggregates over the rows of several databases';
COMMENT ON COLUMN millrace.federated_aggregates.name IS 'Its name';
COMMENT ON COLUMN millrace.federated_aggregates.view IS 'View that merges the states of all nodes and of this database';
COMMENT ON COLUMN millrace.federated_aggregates.aggregate IS 'Name of the continuous aggregate, here and on all nodes; of a rollup, here';
COMMENT ON COLUMN millrace.federated_aggregates.servers IS 'Foreign servers of the nodes';
COMMENT ON COLUMN millrace.federated_aggregates.owner IS 'Owner of the view, by whose user mappings the nodes are read';

/* Errors unless the node has the same aggregate as this database. */
CREATE FUNCTION millrace._check_node(server name, info text, aggregate text, columns text, query text, is_sealed bool, OUT partial_schema name, OUT partial_name name)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	node record;
	state text;
	message text;
	major int := current_setting('server_version_num')::int / 10000;
BEGIN
	BEGIN
		EXECUTE format('SELECT * FROM %s WHERE name = %L', info, aggregate) INTO node;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
		RAISE EXCEPTION 'node "%" cannot be read: %', server, message USING ERRCODE = state,
			HINT = CASE WHEN message LIKE '%user mapping%' THEN format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user …, password …)', current_user, server)
				WHEN state IN ('42P01', '3F000', '42703') THEN 'It needs this version of extension millrace.'
				ELSE 'See the options of the server and of the user mapping.' END;
	END;
	IF node.name IS NULL THEN
		RAISE EXCEPTION 'node "%" does not share continuous aggregate "%"', server, aggregate USING ERRCODE = '42704',
			HINT = format('There: SELECT millrace.share_aggregate(%L), and GRANT SELECT on %I', aggregate, aggregate || '_partial');
	END IF;
	IF node.version <> millrace.version() THEN
		RAISE EXCEPTION 'node "%" has version % of millrace, this database %', server, node.version, millrace.version() USING ERRCODE = '55000',
			HINT = 'All nodes need the same version.';
	ELSIF node.columns <> columns THEN
		RAISE EXCEPTION 'node "%" keeps other states of continuous aggregate "%"', server, aggregate USING ERRCODE = '42804',
			DETAIL = format('There: %s.  Here: %s.', node.columns, columns), HINT = 'Source, types and server must be the same everywhere.';
	ELSIF node.query <> query THEN
		RAISE EXCEPTION 'node "%" has another query of continuous aggregate "%"', server, aggregate USING ERRCODE = '42804',
			DETAIL = format(E'There:\n%s\nHere:\n%s', node.query, query), HINT = 'Create it by the same text everywhere, over a source of the same name.';
	ELSIF node.server <> major AND columns ~ '\ms[0-9]+ bytea' THEN
		RAISE EXCEPTION 'node "%" is PostgreSQL %, this server %', server, node.server, major USING ERRCODE = '55000',
			DETAIL = format('Serialised states of continuous aggregate "%s" may have another form there.', aggregate), HINT = 'All nodes need the same major version.';
	ELSIF is_sealed AND NOT node.keys <@ ARRAY(SELECT k.hash FROM millrace.state_key_hashes k) THEN
		RAISE EXCEPTION 'node "%" seals the states of continuous aggregate "%" with another key', server, aggregate USING ERRCODE = '55000',
			DETAIL = 'The functions of another extension trust the states that they are given, so this server gives them only what is sealed with a key that it knows.',
			HINT = 'Who trusts the node adds its own keys to those here: INSERT INTO millrace.state_key (key) VALUES (…)';
	END IF;
	partial_schema := node.schema;
	partial_name := node.partial;
END $$;
COMMENT ON FUNCTION millrace._check_node(name, text, text, text, text, bool) IS 'Internal: errors unless a node has the same aggregate';

CREATE FUNCTION millrace._federated_of(target regclass, servers name[]) RETURNS millrace.federated
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT f FROM millrace.federated f JOIN pg_class c ON c.oid = f.view JOIN millrace.stream t ON t.name = f.aggregate
		WHERE t.target = _federated_of.target AND f.servers @> _federated_of.servers AND f.servers <@ _federated_of.servers AND pg_has_role(c.relowner, 'USAGE') ORDER BY f.name LIMIT 1
$$;
COMMENT ON FUNCTION millrace._federated_of(regclass, name[]) IS 'Internal: a federated aggregate of a continuous aggregate over these servers, of the caller''s';

CREATE FUNCTION millrace._create_federated_aggregate(name text, aggregate text, servers name[], schema text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
	bottom millrace.stream;
	input millrace.federated;
	base millrace.federated;
	server name;
	wrapper name;
	view text;
	columns text;
	query text;
	is_sealed bool;
	node record;
	closed text[];
	retained text[];
	states text[] := '{}';
	infos text[] := '{}';
	state text;
	info text;
BEGIN
	IF name IS NULL OR aggregate IS NULL OR servers IS NULL OR array_position(servers, NULL) IS NOT NULL THEN
		RAISE EXCEPTION 'name, aggregate and servers of a federated aggregate must not be null' USING ERRCODE = '22004';
	ELSIF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000', HINT = 'Set search_path.';
	ELSIF name = '' OR octet_length(name) > 63 THEN
		RAISE EXCEPTION '"%" is not a valid name of a federated aggregate', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 63 bytes.';
	ELSIF cardinality(servers) = 0 THEN
		RAISE EXCEPTION 'federated aggregate "%" needs a server', name USING ERRCODE = '22023';
	ELSIF EXISTS (SELECT FROM unnest(servers) u GROUP BY u HAVING count(*) > 1) THEN
		RAISE EXCEPTION 'servers of federated aggregate "%" are named twice', name USING ERRCODE = '22023', HINT = 'Its rows would count twice.';
	ELSIF EXISTS (SELECT FROM millrace.federated_aggregates f WHERE f.name = _create_federated_aggregate.name) THEN
		RAISE EXCEPTION 'federated aggregate "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.federated_aggregates.';
	END IF;
	SELECT * INTO s FROM millrace.stream t WHERE t.name = aggregate;
	IF s.kind IS NULL OR s.kind NOT IN ('aggregate', 'rollup') THEN
		RAISE EXCEPTION 'continuous aggregate "%" does not exist here', aggregate USING ERRCODE = '42704',
			HINT = 'Create it here as on the nodes; its source may stay empty.';
	END IF;
	PERFORM millrace._stream_lock(aggregate);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = aggregate;
	FOREACH server IN ARRAY servers LOOP
		SELECT w.fdwname INTO wrapper FROM pg_foreign_server f JOIN pg_foreign_data_wrapper w ON w.oid = f.srvfdw WHERE f.srvname = server;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'server "%" does not exist', server USING ERRCODE = '42704', HINT = concat(
				CASE WHEN NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgres_fdw') THEN 'CREATE EXTENSION postgres_fdw, then ' END,
				format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host …, port …, dbname …), and a user mapping', server));
		ELSIF wrapper <> 'postgres_fdw' THEN
			RAISE EXCEPTION 'server "%" is one of %', server, wrapper USING ERRCODE = '42809', HINT = 'Nodes are servers of postgres_fdw.';
		END IF;
	END LOOP;
	view := format('%s.%I', schema, name);

	IF s.kind = 'rollup' THEN
		input := millrace._federated_of(s.inputs[1], servers);
		IF input.name IS NULL THEN
			RAISE EXCEPTION 'rollup "%" reads %, of which there is no federated aggregate of yours over these servers', aggregate, s.inputs[1]
				USING ERRCODE = '55000', HINT = 'Create that first.';
		END IF;
		/* How far the nodes have come, the aggregate at the bottom tells. */
		SELECT * INTO bottom FROM millrace.stream t WHERE t.target = s.inputs[1];
		base := input;
		WHILE bottom.kind = 'rollup' LOOP
			SELECT * INTO bottom FROM millrace.stream t WHERE t.target = bottom.inputs[1];
			base := millrace._federated_of(bottom.target, servers);
			IF base.name IS NULL THEN
				RAISE EXCEPTION 'rollup "%" is computed from %, of which there is no federated aggregate of yours over these servers', aggregate, bottom.target
					USING ERRCODE = '55000', HINT = 'Create that first.';
			END IF;
		END LOOP;
		infos := base.tables[cardinality(servers) + 1:]::text[];
	ELSE
		bottom := s;
		columns := millrace._columns_text(s.state, 4);
		query := millrace._definition_text(s.definition);
		is_sealed := EXISTS (SELECT FROM unnest((millrace._aggregate_states(s.definition)).aggregates) u JOIN pg_aggregate a ON a.aggfnoid = u::oid WHERE a.aggdeserialfn::oid >= 16384);
		FOREACH server IN ARRAY servers LOOP
			IF octet_length(name) + octet_length(server) > 55 THEN
				RAISE EXCEPTION 'the names "%" and "%" are too long for a foreign table', name, server USING ERRCODE = '42622',
					HINT = 'Together they may have 55 bytes.';
			END IF;
			state := format('%s.%I', schema, name || '_states_' || server);
			info := format('%s.%I', schema, name || '_info_' || server);
			EXECUTE format('CREATE FOREIGN TABLE %s (name text, schema name, partial name, version text, server int, query text, columns text, keys text[],
				closed_to timestamptz, retained_from timestamptz) SERVER %I OPTIONS (schema_name ''millrace'', table_name ''shared_aggregates'', async_capable ''true'')',
				info, server);
			SELECT * INTO node FROM millrace._check_node(server, info, aggregate, columns, query, is_sealed);
			EXECUTE format('CREATE FOREIGN TABLE %s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L, async_capable ''true'', fetch_size ''10000'')',
				state, columns, server, node.partial_schema, node.partial_name);
			EXECUTE format('COMMENT ON FOREIGN TABLE %s IS %L', info, format('Node %s of federated aggregate %s: how far it has come', server, view));
			EXECUTE format('COMMENT ON FOREIGN TABLE %s IS %L', state, format('Node %s of federated aggregate %s: its states', server, view));
			states := states || state;
			infos := infos || info;
		END LOOP;
	END IF;
	/* This database holds nothing back until a batch has come here. */
	closed := ARRAY(SELECT format('SELECT i.closed_to FROM %s i WHERE i.name = %L', u, bottom.name) FROM unnest(infos) u)
		|| format('SELECT CASE WHEN EXISTS (SELECT FROM millrace.progress p WHERE p.state = %1$L::pg_catalog.regclass) THEN millrace._closed_to(%1$L::pg_catalog.regclass) ELSE ''infinity'' END', bottom.state);
	retained := ARRAY(SELECT format('SELECT i.retained_from FROM %s i WHERE i.name = %L', u, bottom.name) FROM unnest(infos) u)
		|| format('SELECT r.retained_from FROM millrace.stream r WHERE r.state = %L::pg_catalog.regclass', bottom.state);
	EXECUTE format('CREATE VIEW %s AS %s', view, CASE s.kind
		WHEN 'rollup' THEN millrace._federated_rollup_text(s.definition, s.state, input.view, array_to_string(closed, ' UNION ALL '), array_to_string(retained, ' UNION ALL '), cardinality(closed))
		ELSE millrace._federated_text(s.definition, s.state, s.delta, states, array_to_string(closed, ' UNION ALL '), array_to_string(retained, ' UNION ALL ')) END);
	EXECUTE format('COMMENT ON VIEW %s IS %L', view, format('Continuous aggregate %s of this database and of %s', s.target, array_to_string(servers, ', ')));
	PERFORM millrace._federated_put(name, view::regclass, aggregate, servers, CASE s.kind WHEN 'rollup' THEN '{}' ELSE (states || infos)::regclass[] END);
END $$;
COMMENT ON FUNCTION millrace._create_federated_aggregate(text, text, name[], text) IS 'Internal: create_federated_aggregate; schema: the first of the caller''s search_path, quoted';
CREATE FUNCTION millrace.create_federated_aggregate(name text, aggregate text, servers name[]) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_federated_aggregate($1, $2, $3, pg_catalog.quote_ident(pg_catalog.current_schema())) $$;
COMMENT ON FUNCTION millrace.create_federated_aggregate(text, text, name[]) IS
'Creates view NAME: what a continuous aggregate of this database would hold if it had the rows of all nodes as well.
aggregate: its name, here and on all nodes, where millrace.share_aggregate has been called for it; rows here count, too.
servers: those of postgres_fdw, with user mappings for the owner, by whose rights the view reads.
Windows are final when they are on every node (and here, once a batch has come); final or not, they are as NAME shows them.  A rollup is computed over the federated
aggregate of what it reads, which is created first.  A node that does not answer is an error: there is no partial answer.';

CREATE FUNCTION millrace.drop_federated_aggregate(name text) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	f millrace.federated;
	r regclass;
BEGIN
	SELECT g.* INTO f FROM millrace.federated g JOIN pg_class c ON c.oid = g.view WHERE g.name = drop_federated_aggregate.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'federated aggregate "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.federated_aggregates.';
	END IF;
	/* Before the view, which would take the tables along, with what others have made of them. */
	PERFORM millrace._federated_put(name, NULL, NULL, NULL, NULL);
	EXECUTE 'DROP VIEW ' || f.view;
	FOREACH r IN ARRAY f.tables LOOP
		EXECUTE 'DROP FOREIGN TABLE ' || r;
	END LOOP;
END $$;
COMMENT ON FUNCTION millrace.drop_federated_aggregate(text) IS 'Drops a federated aggregate: its view and its foreign tables; the nodes keep what they have';

REVOKE EXECUTE ON FUNCTION millrace._partial_text(regclass, regclass, regclass), millrace._federated_text(regclass, regclass, regclass, text[], text, text),
	millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int), millrace._shared_put(text, regclass),
	millrace._federated_put(text, regclass, text, name[], regclass[]), millrace.share_aggregate(text), millrace.unshare_aggregate(text),
	millrace._check_node(name, text, text, text, text, bool), millrace._create_federated_aggregate(text, text, name[], text),
	millrace.create_federated_aggregate(text, text, name[]), millrace.drop_federated_aggregate(text)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._partial_text(regclass, regclass, regclass), millrace._federated_text(regclass, regclass, regclass, text[], text, text),
	millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int), millrace._shared_put(text, regclass),
	millrace._federated_put(text, regclass, text, name[], regclass[]), millrace.share_aggregate(text), millrace.unshare_aggregate(text),
	millrace._check_node(name, text, text, text, text, bool), millrace._create_federated_aggregate(text, text, name[], text),
	millrace.create_federated_aggregate(text, text, name[]), millrace.drop_federated_aggregate(text)
	TO @extowner@ WITH GRANT OPTION;
