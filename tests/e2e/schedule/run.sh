#!/usr/bin/env bash
# Scheduled work by a real pg_cron, in one of its minutes: a model is retrained while events flow in and readers read, one whose
# data is bad fails, another one waits all the time and holds up nobody; maintenance, partitions, retention, lists and
# the log of runs are seen to.  What a job is from a database where pg_cron does not work.
. "$(dirname "$0")/../../lib/scenario.sh"
patience=100 # the next minute, and what jobs take on a busy machine

start_cluster shared_preload_libraries=pg_cron cron.database_name=shop cron.use_background_workers=off "cron.host='127.0.0.1'"
value "CREATE ROLE shop LOGIN; CREATE ROLE away" && value "CREATE DATABASE shop OWNER shop" && value "CREATE DATABASE elsewhere"
export PGOPTIONS="-c client_min_messages=error"
PGDATABASE=elsewhere value "CREATE EXTENSION millrace"
export PGDATABASE=shop
value "CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO shop, away"
admin() { PGUSER=postgres value "$@"; }
export PGUSER=shop

# What there is to do.  The owner of the database is no superuser.
psql -qX -v ON_ERROR_STOP=1 >"$work/out" 2>"$work/err" <<'SQL'
CREATE EXTENSION millrace;
CREATE TABLE events (id bigint, event_time timestamptz NOT NULL, event_type text, product_id bigint, price numeric, user_id bigint) PARTITION BY RANGE (event_time);
SELECT millrace.create_source('events', 'event_time', retention => '3 days');
SELECT millrace.ensure_partitions('events', now() - interval '6 days', now());

-- A window that waits to be computed anew
CREATE TABLE quiet (at timestamptz NOT NULL, n int);
SELECT millrace.create_continuous_aggregate('calm', $$SELECT millrace.tumble(at, '1 minute') AS window_start, sum(n) AS n FROM quiet GROUP BY 1$$);
INSERT INTO quiet VALUES (now() - interval '1 hour', 3), (now() - interval '1 hour', 4);
DELETE FROM quiet WHERE n = 3;

-- A model that fails
CREATE TABLE spring AS SELECT n % 30 AS u, (n * n / 7) % 20 AS i, 1 AS times FROM generate_series(1, 400) n;
SELECT millrace.train_als('broken', 'SELECT u, i, times FROM spring', rank => 4, iterations => 2, track_history => false);
SELECT millrace.set_baseline('broken', 'SELECT DISTINCT product_id FROM events UNION SELECT 1');
CREATE TABLE before AS SELECT (SELECT refreshed FROM millrace.custom_baseline) AS refreshed,
	ARRAY(SELECT r::text FROM millrace.recommend_top_k('broken', 7::bigint, 5) r) AS list;

-- A model whose training takes as long as somebody holds this lock
CREATE FUNCTION gate() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN true; END $$;
CREATE TABLE summer AS TABLE spring;
SELECT millrace.train_als('slow', 'SELECT u, i FROM (SELECT gate() OFFSET 0) g, summer', rank => 4, iterations => 2, track_history => false);
SQL
is "$? $(cat "$work/err")" "0 " "the owner of a database, who is no superuser, has streams and models"

# Events of the past, then live ones.
printf '[source]\ntype = stdin\nformat = json\n[json]\nnan = text\n[target]\nconnection = \ntable = events\nmaintain = 0\n[batch]\nmax_age = 50ms\n' >"$work/events.ini"
mkfifo "$work/pipe"
tee "$work/sent" <"$work/pipe" | millrace run "$work/events.ini" >"$work/ingest.log" 2>&1 &
ingester=$!
millrace produce --simulate=shop --seed=8 --past=4000:1d --rate=100 >"$work/pipe" 2>"$work/produce.log" &
producer=$!
until_true answers "SELECT count(*) >= 4000 FROM events" t
is "$?" 0 "the past is in"
value "SELECT millrace.train_als('shop', 'SELECT user_id, product_id FROM events', rank => 8, iterations => 3)" >/dev/null
value "SELECT count(DISTINCT (user_id, product_id)) FROM events" >"$work/pairs_before"
value "INSERT INTO spring VALUES (11, 11, -5)"

# Somebody reads all the time: the version, and ten lists of five.
value "SELECT array_agg(user_id) FROM (SELECT user_id FROM events GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 10) u" >"$work/users"
until [ -e "$work/stop" ]; do
	value "SELECT (SELECT version FROM millrace.models WHERE name = 'shop' AND active), count(*) FROM unnest('$(cat "$work/users")'::bigint[]) u, LATERAL millrace.recommend_top_k('shop', u, 5)"
done >"$work/reads" 2>&1 &
reader=$!

# A lock that is held until the others have done.
mkfifo "$work/lock"
psql -AtXq <"$work/lock" >"$work/locked" 2>&1 &
locker=$!
exec 7>"$work/lock"
echo "SELECT pg_advisory_lock(42);" >&7
until_true answers "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND granted" 1

# What the database that is not pg_cron's is told to do does it.
hint() { PGUSER=postgres PGDATABASE=elsewhere psql -AtXqc "$1" 2>&1 | sed -n 's/^HINT:  There, a superuser calls: //p'; }
hint "SELECT millrace.schedule('maintain')" >"$work/hint"
like "$(cat "$work/hint")" "^SELECT cron.schedule_in_database\('millrace maintain in elsewhere', '\* \* \* \* \*', 'CALL millrace.maintain\(\)', 'elsewhere', 'postgres'\);$" \
	"where pg_cron does not work, it is said what to call where it does"
admin "$(cat "$work/hint")" >/dev/null

value "GRANT USAGE ON SCHEMA millrace TO away; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA millrace TO away"
value "CREATE TABLE expired AS SELECT partition::text FROM millrace.expired_partitions('events')"
is "$(value "SELECT count(*) >= 2, (SELECT count(*) FROM millrace.partitions('events') WHERE from_time > now()), (SELECT sum(n) FROM calm) FROM expired")" "t|0|7" "there is something to do"
# In one transaction, so that a minute begins with all of them or none.
admin "SET ROLE away; SELECT millrace.schedule('maintain'); SET ROLE shop;
	SELECT millrace.schedule('retrain', '* * * * *', 'slow'), millrace.schedule('retrain', '* * * * *', 'broken'), millrace.schedule('retrain', '* * * * *', 'shop'),
		millrace.schedule('lists', '* * * * *', 'broken'), millrace.schedule('maintain'), millrace.schedule('partitions', '* * * * *'), millrace.schedule('retention', '* * * * *'),
		millrace.schedule('runs', '* * * * *');
	RESET ROLE; INSERT INTO cron.job_run_details (jobid, runid, database, username, status, end_time)
	SELECT jobid, -1 - n, 'shop', 'shop', 'failed', now() - n * interval '6 days' FROM cron.job, generate_series(1, 2) n WHERE jobname = 'millrace maintain' AND username = 'shop'" >"$work/jobs" 2>&1
like "$(cat "$work/jobs")" $'^[0-9]+\n[0-9]+(\\|[0-9]+){7}$' "nine tasks are scheduled"

state="SELECT task, name, last_status, runs, failures, last_seconds BETWEEN 0 AND 60 FROM millrace.jobs ORDER BY task COLLATE \"C\", name COLLATE \"C\""
until_true answers "$state" "lists|broken|succeeded|1|0|t
maintain||succeeded|2|1|t
partitions||succeeded|1|0|t
retention||succeeded|1|0|t
retrain|broken|failed|1|1|t
retrain|shop|succeeded|1|0|t
retrain|slow|running|1|0|t
runs||succeeded|1|0|t"
ok $? "the view shows what became of them, seven while a long one is still running"
value "$state" | diag
admin "SELECT cron.alter_job(jobid, active => false) FROM cron.job WHERE jobname <> 'millrace retrain slow'" >/dev/null # one minute is enough

# The one that was retrained
value "SELECT count(DISTINCT (user_id, product_id)) FROM events" >"$work/pairs_after"
is "$(value "SELECT count(*) > 0, bool_and(v.ratings BETWEEN $(cat "$work/pairs_before") AND $(cat "$work/pairs_after")), bool_and(v.created BETWEEN j.last_start AND j.last_start + j.last_seconds * interval '1 second'), bool_or(v.active)
	FROM millrace.models v JOIN millrace.jobs j ON j.task = 'retrain' AND j.name = v.name
	WHERE v.name = 'shop' AND v.version > 1")" "t|t|t|t" "the job made a new version of the model, of the events that had come, and it is served"
until_true grep -qE '^([2-9]|1[0-9])\|50$' "$work/reads"
touch "$work/stop"
wait "$reader"
like "$(uniq "$work/reads" | tr '\n' ' ')" '^1\|50( ([2-9]|1[0-9])\|50)+ $' "readers had full lists all the time, first of the old version, then of the new one"

# The one that failed
like "$(value "SELECT last_status = 'failed', last_message FROM millrace.jobs WHERE task = 'retrain' AND name = 'broken'")" '^t\|ERROR:  ratings: a negative value, .*: -5.*It belongs to user "11"' "the view says what went wrong"
is "$(value "SELECT string_agg(version || ' ' || active, ',') FROM millrace.models WHERE name = 'broken'") $(value "SELECT list = ARRAY(SELECT r::text FROM millrace.recommend_top_k('broken', 7::bigint, 5) r) FROM before")" "1 true t" "and the old version is served as before"
value "DELETE FROM spring WHERE times < 0"
value "$(value "SELECT command FROM millrace.jobs WHERE task = 'retrain' AND name = 'broken'")" >/dev/null
is "$(value "SELECT version >= 2 FROM millrace.models WHERE name = 'broken' AND active")" t "its command does it once the data is right"

# The others
is "$(value "SELECT array_agg(n), (SELECT array_agg(marks) FROM millrace.streams WHERE name = 'calm') FROM calm")" "{4}|{0}" "what was deleted is no longer counted"
is "$(value "SELECT (SELECT count(*) FROM expired), count(*), (SELECT count(*) FROM millrace.expired_partitions('events')) FROM expired WHERE to_regclass(partition) IS NOT NULL")" "$(value "SELECT count(*) FROM expired")|0|0" "expired partitions are dropped"
is "$(value "SELECT bool_and(EXISTS (SELECT FROM millrace.partitions('events') p WHERE p.from_time <= last_start + n * interval '1 day' AND p.to_time > last_start + n * interval '1 day')) FROM millrace.jobs, generate_series(0, 3) n WHERE task = 'partitions'")" t \
	"there are partitions for today and the next three days"
is "$(value "SELECT refreshed > (SELECT refreshed FROM before), items > 100 FROM millrace.custom_baseline")" "t|t" "lists are refreshed"
is "$(admin "SELECT array_agg(runid) FROM cron.job_run_details WHERE runid < 0")" "{-2}" "old runs are forgotten, others are kept"
is "$(admin "SELECT DISTINCT status, return_message FROM cron.job_run_details WHERE database = 'elsewhere' AND command = 'CALL millrace.maintain()'")" "succeeded|CALL" "the other database is maintained"
is "$(PGUSER=postgres PGDATABASE=elsewhere value "SELECT count(*) FROM millrace.jobs")" 0 "but its view cannot see that"
hint "SELECT millrace.unschedule('maintain')" >"$work/hint"
admin "$(cat "$work/hint")" >/dev/null
is "$(cat "$work/hint") $(admin "SELECT count(*) FROM cron.job WHERE database = 'elsewhere'")" "SELECT cron.unschedule('millrace maintain in elsewhere'); 0" "and it is said how that ends"

# The long one
is "$(value "SELECT max(version) FROM millrace.models WHERE name = 'slow'")" 1 "the long one has not got there yet"
echo "SELECT pg_advisory_unlock(42);" >&7
until_true answers "SELECT last_status FROM millrace.jobs WHERE name = 'slow'" succeeded
is "$(value "SELECT max(version) >= 2 FROM millrace.models WHERE name = 'slow'")" t "it ends when it can"
exec 7>&-
wait "$locker"

# Nothing was lost meanwhile.
value "SELECT count(*) FROM (SELECT millrace.unschedule(task, name) FROM millrace.jobs) u" >"$work/unscheduled"
is "$(admin "SELECT last_status, last_message, last_start IS NULL FROM millrace.jobs WHERE owner = 'away'")" "failed|connection failed|t" "one whose owner may not log in says so, to a superuser"
is "$(admin "SELECT cron.unschedule(job) FROM millrace.jobs") $(admin "SELECT count(*) FROM millrace.jobs")" "t 0" "who ends whatever calls Millrace"
is "$(cat "$work/unscheduled") $(value "SELECT count(*) FROM millrace.jobs")" "8 0" "all tasks are ended"
kill "$producer"
wait "$producer"
wait "$ingester"
is "$? $(value "SELECT count(*), count(DISTINCT id) FROM events")" "0 $(wc -l <"$work/sent")|$(wc -l <"$work/sent")" "every event is there once"
is "$(value "SELECT (SELECT count(*) FROM millrace.verify('calm'))")" 0 "aggregates equal their queries"

# Partitions of several sources: one that fails is told, and does not keep the others from it.
value "CREATE TABLE first (at timestamptz) PARTITION BY RANGE (at); SELECT millrace.create_source('first', 'at', '1 month');
	CREATE TABLE second (at timestamptz) PARTITION BY RANGE (at); CREATE TABLE rest PARTITION OF second DEFAULT; SELECT millrace.create_source('second', 'at');
	INSERT INTO second VALUES (now() + interval '1 day');
	CREATE TABLE third (at timestamptz) PARTITION BY RANGE (at); SELECT millrace.create_source('third', 'at', '1 hour')" >/dev/null
value "CALL millrace.ensure_partitions('1 hour')" >"$work/out" 2>"$work/err"
like "$? $(cat "$work/err")" '^1 .*could not make partitions of public.second: updated partition constraint for default partition "rest" would be violated by some row' "one that fails is told"
is "$(value "SELECT (SELECT count(*) FROM millrace.partitions('first')), (SELECT count(*) FROM millrace.partitions('second')), (SELECT count(*) FROM millrace.partitions('third'))")" "2|1|2" "the others have theirs, and always the next"
value "BEGIN; CALL millrace.ensure_partitions()" >"$work/out" 2>"$work/err"
like "$? $(cat "$work/err")" "^1 .*invalid transaction termination" "not in a transaction"
done_testing
