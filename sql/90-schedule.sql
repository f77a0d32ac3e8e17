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
