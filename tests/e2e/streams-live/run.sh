#!/usr/bin/env bash
# Streams between sessions: an owner who is not superuser, creation under load, old snapshots, writers side by side,
# a crash in mid-batch, dump and restore.  After each, the continuous aggregate equals its query over the raw rows.
. "$(dirname "$0")/../../lib/scenario.sh"
start_cluster

differences() { # rows in which aggregate $1 differs from its query
	value "SELECT count(*) FROM ((TABLE $1 EXCEPT ALL TABLE $1_query) UNION ALL (TABLE $1_query EXCEPT ALL TABLE $1)) d"
}
# One other session, fed line by line: begin_session, say SQL, end_session; its answers are in $work/session.
begin_session() {
	rm -f "$work/fifo"
	: >"$work/session"
	mkfifo "$work/fifo"
	psql -AtXq -v ON_ERROR_STOP=1 <"$work/fifo" >"$work/session" 2>&1 &
	session=$!
	exec 9>"$work/fifo"
}
say() { echo "$1" >&9; }
end_session() { exec 9>&-; wait "$session"; }

# An owner who is not superuser: the extension is trusted
value "CREATE ROLE shop LOGIN" && value "CREATE DATABASE shop OWNER shop"
export PGDATABASE=shop PGUSER=shop
value "CREATE EXTENSION millrace" >/dev/null 2>"$work/err"
is $? 0 "the owner of a database creates the extension"
value "CREATE TABLE events (at timestamptz NOT NULL, action text, amount int, id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
	SELECT millrace.create_source('events', 'at');
	SELECT millrace.ensure_partitions('events', '2024-01-01', '2024-01-02');
	CREATE TABLE kept (at timestamptz, amount int);
	SELECT millrace.create_pipe('kept', 'events', 'INSERT INTO kept SELECT at, amount FROM new_rows WHERE amount % 2 = 0')" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "and uses it"

# Roles that have nothing to do with it are not disturbed; a writer needs nothing but INSERT
PGUSER=postgres value "CREATE ROLE stranger LOGIN; GRANT CREATE ON SCHEMA public TO stranger; GRANT INSERT ON events TO stranger"
PGUSER=stranger value "CREATE TABLE mine (a int); ALTER TABLE mine ADD b int; CREATE VIEW mine2 AS TABLE mine; DROP TABLE mine CASCADE" 2>"$work/err"
is "$? $(grep ERROR "$work/err")" "0 " "a role without rights on schema millrace creates and drops tables"
PGUSER=stranger value "INSERT INTO events VALUES ('2024-01-01', 'stranger', 2)" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "and writes into a source"
is "$(value "SELECT amount FROM kept")" 2 "the pipe runs with its owner's rights"
value "TRUNCATE events, kept"
PGUSER=postgres value "TRUNCATE millrace.batches"

# Created while four writers write: each batch is either backfilled or seen, never both
cat >"$work/load.sql" <<'EOF'
\set k random(1, 40)
INSERT INTO events SELECT '2024-01-01'::timestamptz + random() * interval '2 days', 'a' || (i + :k) % 5, (random() * 100)::int FROM generate_series(1, :k) i;
EOF
pgbench -n -c 4 -T 4 -f "$work/load.sql" shop >"$work/pgbench.out" 2>&1 &
load=$!
until_true answers "SELECT count(*) > 1000 FROM events" t
value "SELECT millrace.create_continuous_aggregate('live', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, action, count(*), sum(amount) FROM events GROUP BY 1, 2')" >/dev/null
before=$(value "SELECT count(*) FROM events")
wait "$load"
is $? 0 "writers are not disturbed when an aggregate is created"
is "$(differences live)" 0 "created under load, it misses nothing and counts nothing twice"
is "$(value "SELECT count(*) > $before FROM events")" t "rows arrived before and after"
is "$(value "SELECT sum(rows) FROM millrace.batches")" "$(value "SELECT count(*) FROM events")" "each row is in one batch"
is "$(value "SELECT count(*) FROM kept")" "$(value "SELECT count(*) FROM events WHERE amount % 2 = 0")" "the pipe passed each row on once"

# A writer whose snapshot is older than the aggregate
begin_session
say "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'snapshot ' || count(*) FROM events;"
until_true grep -q snapshot "$work/session"
value "SELECT millrace.create_continuous_aggregate('later', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, count(*) FROM events GROUP BY 1')" >/dev/null
say "INSERT INTO events VALUES ('2024-01-01', 'old', 1), ('2024-01-02', 'old', 3); COMMIT;"
end_session
is "$(differences later)" 0 "a REPEATABLE READ writer with an older snapshot is counted"
is "$(value "SELECT count(*) FROM events WHERE action = 'old'")" 2 "its rows are there"

# A session that has written into a partition before, and holds its plans
begin_session
say "INSERT INTO events_20240101 VALUES ('2024-01-01', 'direct', 1); SELECT 'inserted';"
until_true grep -q inserted "$work/session"
value "SELECT millrace.create_continuous_aggregate('latest', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, action, count(*) FROM events GROUP BY 1, 2')" >/dev/null
say "INSERT INTO events_20240101 VALUES ('2024-01-01', 'direct', 1);"
end_session
is "$(value "SELECT count FROM latest WHERE action = 'direct'")" 2 "a session that names a partition learns of a new aggregate"

# A creator in REPEATABLE READ whose snapshot is older than some rows
begin_session
say "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'snapshot ' || count(*) FROM events;"
until_true grep -q snapshot "$work/session"
value "INSERT INTO events VALUES ('2024-01-01', 'between', 1)"
say "SELECT millrace.create_continuous_aggregate('creators', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, action, count(*) FROM events GROUP BY 1, 2'); COMMIT;"
end_session
is "$(value "SELECT count FROM creators WHERE action = 'between'")" 1 "a creator's backfill sees what was committed before its lock"
is "$(differences creators)" 0 "and nothing twice"

# A pipe whose target is dropped by another session; an aggregate whose joined table another session locks
begin_session
say "CREATE TABLE extra (at timestamptz); SELECT millrace.create_pipe('extra', 'events', 'INSERT INTO extra SELECT at FROM new_rows');
	CREATE TABLE dim (action text PRIMARY KEY, name text); INSERT INTO dim VALUES ('joined', 'Joined');
	SELECT millrace.create_continuous_aggregate('named', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, d.name, count(*) FROM events JOIN dim d USING (action) GROUP BY 1, 2');
	INSERT INTO events VALUES ('2024-01-01', 'joined', 1); SELECT 'inserted';"
until_true grep -q inserted "$work/session"
value "DROP TABLE extra" 2>/dev/null
say "INSERT INTO events VALUES ('2024-01-01', 'joined', 1); SELECT 'again';"
until_true grep -qE 'again|ERROR' "$work/session"
is "$(grep -c ERROR "$work/session") $(value "SELECT count(*) FROM millrace.streams WHERE name = 'extra'")" "0 0" "an open session forgets a pipe whose target was dropped"
mkfifo "$work/locker"
psql -AtXq <"$work/locker" >"$work/locked" 2>&1 &
exec 8>"$work/locker"
echo "BEGIN; TRUNCATE dim; SELECT 'locked';" >&8
until_true grep -q locked "$work/locked"
say "INSERT INTO events VALUES ('2024-01-01', 'joined', 1);"
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND wait_event_type = 'Lock'" 1
ok $? "a batch waits for a joined table that another session has locked"
value "CREATE TABLE bystander (i int); DROP TABLE bystander"
echo "COMMIT;" >&8
exec 8>&-
end_session
is "$(value "SELECT sum(count) FROM named")" 2 "and does not use what was truncated meanwhile"
value "SELECT millrace.drop_continuous_aggregate('named'); DROP TABLE dim; DELETE FROM events WHERE action = 'joined';
	SELECT millrace.drop_continuous_aggregate(name) FROM (VALUES ('live'), ('later'), ('latest'), ('creators')) v(name)" >/dev/null
value "SELECT millrace.create_continuous_aggregate('live', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, action, count(*), sum(amount) FROM events GROUP BY 1, 2')" >/dev/null
value "SELECT millrace.create_continuous_aggregate('later', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, count(*) FROM events GROUP BY 1')" >/dev/null

# A partition that is locked does not stop DDL elsewhere
begin_session
say "BEGIN; LOCK TABLE events_20240102 IN ACCESS EXCLUSIVE MODE; SELECT 'locked';"
until_true grep -q locked "$work/session"
PGOPTIONS="-c lock_timeout=2s" value "CREATE TABLE bystander (i int); DROP TABLE bystander" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "a locked partition does not stop CREATE TABLE elsewhere"
say "COMMIT;"
end_session

# Writers of the same windows do not wait for each other
begin_session
say "BEGIN; INSERT INTO events VALUES ('2024-01-01 05:00', 'same', 1); SELECT 'inserted';"
until_true grep -q inserted "$work/session"
PGOPTIONS="-c lock_timeout=5s" value "INSERT INTO events VALUES ('2024-01-01 05:00', 'same', 10)" 2>"$work/err"
is "$?" 0 "a second writer of the same window does not wait for the first"
is "$(value "SELECT sum FROM live WHERE action = 'same'")" 10 "it sees its own row at once, and not what is not committed"
say "COMMIT;"
end_session
is "$(value "SELECT sum FROM live WHERE action = 'same'")" 11 "both count"

# A savepoint that was rolled back, and a transaction that was: counted in millrace.batches as they count in the table
value "BEGIN; INSERT INTO events VALUES ('2024-01-01', 'sub', 1); SAVEPOINT s; INSERT INTO events VALUES ('2024-01-01', 'sub', 2), ('2024-01-01', 'sub', 4); ROLLBACK TO s;
	SAVEPOINT t; INSERT INTO events VALUES ('2024-01-01', 'sub', 6); RELEASE t; COMMIT"
value "BEGIN; INSERT INTO events VALUES ('2024-01-01', 'gone', 1); ROLLBACK"
is "$(value "SELECT rows || ' ' || (streams -> 'kept' ->> 'rows') FROM millrace.batches ORDER BY xid DESC LIMIT 1")" "2 1" "a rolled-back savepoint does not count"
is "$(differences live)" 0 "nor in the aggregate"
PGUSER=postgres value "BEGIN; INSERT INTO events VALUES ('2024-01-01', 'prepared', 1); PREPARE TRANSACTION 'p'" && PGUSER=postgres value "COMMIT PREPARED 'p'"
is "$(value "SELECT count FROM live WHERE action = 'prepared'") $(value "SELECT rows FROM millrace.batches ORDER BY xid DESC LIMIT 1")" "1 1" "a prepared transaction counts when it is committed"

# A crash in mid-batch
pgbench -n -c 2 -T 30 -f "$work/load.sql" shop >/dev/null 2>&1 &
load=$!
n=$(value "SELECT count(*) FROM millrace.batches")
until_true answers "SELECT count(*) > $n + 50 FROM millrace.batches" t
"$lib/cluster" kill "$work/cluster"
wait "$load" 2>/dev/null
"$lib/cluster" again "$work/cluster"
is "$(differences live) $(differences later)" "0 0" "after a crash"
value "INSERT INTO events SELECT '2024-01-02', 'after', i FROM generate_series(1, 10000) i"
is "$(differences live) $(differences later)" "0 0" "and after another 10,000 rows"

# Dump by the owner; restore by a superuser, who may fill the catalog and then owns the extension
pg_dump -Fc -f "$work/dump" shop 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_dump by the owner"
PGUSER=postgres value "CREATE DATABASE copy OWNER shop"
pg_restore -U postgres --exit-on-error -j 2 -d copy "$work/dump" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_restore into a new database"
PGUSER=postgres PGDATABASE=copy value "GRANT USAGE ON SCHEMA millrace TO shop; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO shop"
whole=$(value "SELECT count(*), sum(sum) FROM live")
export PGDATABASE=copy
is "$(value "SELECT count(*), sum(sum) FROM live")" "$whole" "the aggregate is restored"
value "INSERT INTO events SELECT '2024-01-02', 'restored', i FROM generate_series(1, 10000) i"
is "$(differences live) $(differences later)" "0 0" "and goes on"
is "$(value "SELECT count(*) FROM kept WHERE at = '2024-01-02'")" "$(value "SELECT count(*) FROM events WHERE at = '2024-01-02' AND amount % 2 = 0")" "so does the pipe"
value "SELECT millrace.create_pipe('another', 'events', 'INSERT INTO kept SELECT at, amount FROM new_rows WHERE false')" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "streams can be created after a restore"
PGUSER=postgres value "DROP EXTENSION millrace CASCADE" 2>/dev/null
is "$? $(value "SELECT count(*) FROM pg_namespace WHERE nspname = 'millrace'")" "0 0" "DROP EXTENSION CASCADE"
value "INSERT INTO events VALUES ('2024-01-01', 'plain', 1)"
is "$?" 0 "after which the table is an ordinary table"
done_testing
