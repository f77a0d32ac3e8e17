BEGIN;
SELECT plan(45);
SET LOCAL client_min_messages = error;
\ir ../lib/complaint.sql

CREATE ROLE mr_planner;
CREATE ROLE mr_guest;
GRANT USAGE ON SCHEMA millrace TO mr_planner, mr_guest;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA millrace TO mr_planner;
GRANT CREATE ON SCHEMA public TO mr_planner;
SET LOCAL ROLE mr_planner;
CREATE TABLE bought AS SELECT u % 9 AS u, u % 5 AS i FROM generate_series(1, 90) u;
SELECT millrace.train_als('shop', 'TABLE bought', rank => 2, iterations => 1);
SELECT millrace.train_als(E'it''s \\ "a\nmodel', 'TABLE bought', rank => 2, iterations => 1);
SELECT millrace.train_als(repeat('long ', 20), 'TABLE bought', rank => 2, iterations => 1);
SELECT millrace.fit_indexer('kinds', 'SELECT ''a''');

-- Without pg_cron.  This role may not see what is preloaded.
SELECT is_empty('TABLE millrace.jobs', 'without pg_cron there are no jobs');
SELECT matches(complaint($$ SELECT millrace.schedule('maintain') $$), '^55000\npg_cron is not at work in database "' || current_database() || '"\n.*\n(It is installed|Install it \(Debian: postgresql-\d+-cron\))\. '
	'postgresql\.conf needs shared_preload_libraries = ''pg_cron'', cron\.database_name = ''' || current_database() || ''', cron\.use_background_workers = off .* and cron\.host = ''127\.0\.0\.1'', .* CREATE EXTENSION pg_cron;$',
	'nothing can be scheduled, and what it takes is said');
SELECT alike(complaint($$ SELECT millrace.unschedule('maintain') $$), E'55000\npg_cron is not at work in%', 'nor ended');

-- What is wrong is said all the same.
SELECT is(complaint($$ SELECT millrace.schedule(NULL) $$), E'22004\ntask must not be null', 'no task');
SELECT is(complaint($$ SELECT millrace.schedule('retain') $$), E'22023\nunknown task "retain"\nTasks are retrain and lists (of a model), maintain, partitions, retention and runs.', 'an unknown task');
SELECT is(complaint($$ SELECT millrace.unschedule('retain') $$), E'22023\nunknown task "retain"\nTasks are retrain and lists (of a model), maintain, partitions, retention and runs.', 'to end one, too');
SELECT is(complaint($$ SELECT millrace.schedule('retrain') $$), E'22004\ntask "retrain" needs the name of a model\nFor example millrace.schedule(''retrain'', name => ''shop'').', 'no model');
SELECT is(complaint($$ SELECT millrace.schedule('retrain', name => 'ship') $$), E'42704\nmodel "ship" does not exist\nThe view millrace.models lists models.', 'an unknown model');
SELECT is(complaint($$ SELECT millrace.schedule('lists', name => 'kinds') $$), E'42809\nmodel "kinds" is of kind indexer, which has no lists', 'a model without lists');
SELECT is(complaint($$ SELECT millrace.schedule('maintain', name => 'shop') $$), E'22023\ntask "maintain" takes no name, but "shop" was given', 'a name that means nothing');
RESET ROLE;
GRANT EXECUTE ON FUNCTION millrace.schedule(text, text, text) TO mr_guest;
SET LOCAL ROLE mr_guest;
SELECT is(complaint($$ SELECT millrace.schedule('retrain', name => 'shop') $$), E'42501\nmust be owner of model "shop"', 'another one''s model');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION millrace.schedule(text, text, text) FROM mr_guest;
SET LOCAL ROLE mr_guest;
SELECT is(complaint($$ SELECT millrace.schedule('maintain') $$), E'42501\npermission denied for function schedule', 'only those to whom it was granted may schedule');
SELECT is(complaint($$ SELECT millrace.unschedule('maintain') $$), E'42501\npermission denied for function unschedule', 'or end');
SELECT is(complaint($$ CALL millrace.ensure_partitions() $$), E'42501\npermission denied for procedure ensure_partitions', 'or make partitions');
SELECT is_empty('TABLE millrace.jobs', 'anybody may look');
RESET ROLE;

-- ensure_partitions without a table, as far as it goes in a transaction
SELECT throws_ok($$ CALL millrace.ensure_partitions(NULL) $$, '22004', 'ahead must not be null', 'no time');
SELECT throws_ok($$ CALL millrace.ensure_partitions('-1 s') $$, '22023', 'ahead must not be negative: -00:00:01', 'the past');

-- With pg_cron, where it is installed.  Jobs run in tests/e2e/schedule.
SELECT current_setting('shared_preload_libraries') ~ 'pg_cron' AS has_cron \gset
\if :has_cron
SELECT is(complaint($$ SELECT millrace.schedule('maintain') $$), format(E'55000\ndatabase "%s" lacks the extension pg_cron\nA superuser calls: CREATE EXTENSION pg_cron;', current_database()), 'it is preloaded, but not created');
CREATE EXTENSION pg_cron;
SET LOCAL ROLE mr_planner;
SELECT is(complaint($$ SELECT millrace.schedule('maintain') $$), E'42501\npermission denied for schema cron\nA superuser calls: GRANT USAGE ON SCHEMA cron TO mr_planner;', 'pg_cron is for those to whom it was granted');
SELECT is_empty('TABLE millrace.jobs', 'who may not use it sees no jobs');
RESET ROLE;
GRANT USAGE ON SCHEMA cron TO mr_planner, mr_guest;
SET LOCAL ROLE mr_planner;

SELECT millrace.schedule('maintain') AS maintain \gset
SELECT results_eq('SELECT jobid, jobname::text COLLATE "default", schedule, command, username, database, active FROM cron.job',
	format($$ VALUES (%s::bigint, 'millrace maintain', '* * * * *', 'CALL millrace.maintain()', 'mr_planner', %L, true) $$, :maintain, current_database()), 'a job of the caller in this database');
SELECT is(millrace.schedule('maintain', '*/5 * * * *'), :maintain::bigint, 'scheduling again');
SELECT is((SELECT array_agg(schedule) FROM cron.job), '{*/5 * * * *}', 'replaces it');
SELECT is(complaint($$ SELECT millrace.schedule('maintain', 'often') $$), E'22023\ninvalid schedule: often', 'a schedule that pg_cron does not understand');
SELECT millrace.schedule('retrain', name => name) FROM millrace.models;
SELECT millrace.schedule('lists', '15 4 * * 0', 'shop'), millrace.schedule('partitions'), millrace.schedule('retention'), millrace.schedule('runs');
SELECT results_eq($$ SELECT task, name FROM millrace.jobs ORDER BY task COLLATE "C", name COLLATE "C" $$,
	$$ VALUES ('lists', 'shop'), ('maintain', NULL), ('partitions', NULL), ('retention', NULL), ('retrain', E'it''s \\ "a\nmodel'), ('retrain', 'kinds'), ('retrain', repeat('long ', 20)), ('retrain', 'shop'), ('runs', NULL) $$,
	'the view has all of them, with their models');
SELECT ok(bool_and(octet_length(jobname::text) < 64) AND count(DISTINCT jobname) = 9, 'no name is cut off') FROM cron.job;
SELECT results_eq($$ SELECT schedule FROM millrace.jobs WHERE task IN ('lists', 'maintain') ORDER BY 1 $$, $$ VALUES ('*/5 * * * *'), ('15 4 * * 0') $$, 'schedules as given');
SELECT ok(bool_and(active AND runs = 0 AND failures = 0 AND last_start IS NULL AND last_seconds IS NULL AND last_status IS NULL AND last_message IS NULL AND owner = 'mr_planner'), 'nothing has run') FROM millrace.jobs;
-- Each command is one that runs, and does what its task says.
SELECT lives_ok(command, 'this runs: ' || task) FROM millrace.jobs WHERE task IN ('lists', 'retrain', 'retention', 'runs') ORDER BY job;
SELECT set_eq('SELECT name, max(version) FROM millrace.models GROUP BY 1', $$ VALUES ('shop', 2), ('kinds', 2), (E'it''s \\ "a\nmodel', 2), (repeat('long ', 20), 2) $$, 'and retrains its model');

-- Runs, as pg_cron notes them
SELECT cron.schedule('mine', '0 4 * * *', $$SELECT * FROM millrace.retrain( model => 'it''s', holdout => 0.1)$$), cron.schedule('other', '0 4 * * *', 'VACUUM'), cron.schedule('millrace backup', '0 4 * * *', 'SELECT 1');
RESET ROLE;
INSERT INTO cron.job_run_details (jobid, runid, database, username, command, status, return_message, start_time, end_time)
	SELECT :maintain, r, current_database(), 'mr_planner', '', s, m, '2024-01-02 03:04:05Z'::timestamptz + r * interval '1 minute', '2024-01-02 03:04:06.5Z'::timestamptz + r * interval '1 minute'
	FROM (VALUES (101, 'succeeded', '1 row'), (102, 'failed', E'ERROR:  no such thing\n'), (103, 'failed', E'ERROR:  nor this\n'), (104, 'succeeded', 'CALL')) v (r, s, m);
INSERT INTO cron.job_run_details (jobid, runid, database, username, command, status, start_time)
	SELECT jobid, 105, database, username, command, 'running', clock_timestamp() - interval '1 hour' FROM cron.job WHERE jobname = 'mine';
SET LOCAL ROLE mr_planner;
SELECT results_eq($$ SELECT runs, failures, last_start, last_seconds, last_status, last_message FROM millrace.jobs WHERE task = 'maintain' $$,
	$$ VALUES (4::bigint, 2::bigint, '2024-01-02 04:48:05Z'::timestamptz, 1.5::float8, 'succeeded', 'CALL') $$, 'runs, failures and the last run');
DELETE FROM cron.job_run_details WHERE runid = 104;
SELECT is((runs, failures, last_status, last_message)::text, '(3,2,failed,"ERROR:  nor this")', 'an error is shown as it is') FROM millrace.jobs WHERE task = 'maintain';
SELECT results_eq($$ SELECT task, name, last_status, last_seconds BETWEEN 3600 AND 4200 FROM millrace.jobs WHERE job > (SELECT max(job) FROM millrace.jobs WHERE task = 'runs') ORDER BY job $$,
	$$ VALUES ('retrain', 'it''s', 'running', true), (NULL, NULL, NULL, NULL) $$, 'jobs of one''s own that call Millrace or bear its name are shown, too');

-- Who sees what
SET LOCAL ROLE mr_guest;
SELECT is_empty('TABLE millrace.jobs', 'others do not see them');
RESET ROLE;
SELECT is(count(*), 11::bigint, 'a superuser does') FROM millrace.jobs;
CREATE POLICY guest ON cron.job FOR SELECT TO mr_guest USING (true);
CREATE POLICY guest ON cron.job_run_details FOR SELECT TO mr_guest USING (true);
SET LOCAL ROLE mr_guest;
SELECT is((count(*), sum(runs))::text, '(11,4)', 'and who is let by a policy') FROM millrace.jobs;
RESET ROLE;

-- The end
SELECT is(complaint($$ SELECT millrace.unschedule('maintain') $$), E'42704\ntask "maintain" is not scheduled\nThe view millrace.jobs lists jobs; another one ends by cron.unschedule(job).', 'another role''s job is not one''s own');
SET LOCAL ROLE mr_planner;
SELECT millrace.drop_model('shop');
SELECT millrace.unschedule(task, name) FROM millrace.jobs WHERE task IS NOT NULL AND job < (SELECT jobid FROM cron.job WHERE jobname = 'mine');
SELECT set_eq('SELECT jobname::text FROM cron.job', $$ VALUES ('mine'), ('other'), ('millrace backup') $$, 'all are ended by their task and model, also of one that is gone');
SELECT is(complaint($$ SELECT millrace.unschedule('retrain', 'shop') $$), E'42704\ntask "retrain" is not scheduled for model "shop"\nThe view millrace.jobs lists jobs; another one ends by cron.unschedule(job).', 'once');
RESET ROLE;
\else
SELECT skip('pg_cron is not installed', 28);
\endif

SELECT * FROM finish();
ROLLBACK;
