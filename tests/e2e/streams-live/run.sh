#!/usr/bin/env bash
# Streams between sessions: an owner who is not superuser, creation under load, old snapshots, writers side by side,
# changes of the tables, a crash in mid-batch, a replica that is promoted, dump and restore.  After each, the continuous
# aggregates equal their queries over the raw rows, and what was final stays.
. "$(dirname "$0")/../../lib/scenario.sh"
trap '"$lib/cluster" stop "$work/replica" immediate; scenario_end' EXIT
start_cluster "millrace.keep_batches = 1000000"

as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
differences() { # rows in which each aggregate differs from its query
	local name
	for name; do value "SELECT differences('$name')"; done | paste -sd ' '
}
verified() { # what millrace.verify finds in all of them
	value "SELECT count(*) FROM unnest('{$1}'::text[]) n, millrace.verify(n)"
}
final() { # the final windows of aggregates, sorted
	local name
	for name; do value "SELECT '$name ' || f::text FROM ${name}_final f"; done | LC_ALL=C sort
}
maintain() { value "CALL millrace.maintain()"; }
ten_thousand() { # more rows, of all times, and the last of them the latest: $1 is their action
	value "INSERT INTO events SELECT '2024-01-01'::timestamptz + random() * interval '2 days', '$1', i FROM generate_series(1, 9999) i;
		INSERT INTO events SELECT max(at) + interval '10 minutes', '$1', 1 FROM events"
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
psql -qX -f "$lib/streams.sql"

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

# With a watermark: what has been final once is final afterwards, too
value "SELECT millrace.create_continuous_aggregate('hours', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, action, count(*), sum(amount) FROM events GROUP BY 1, 2', watermark => '10 minutes', idle_after => '1 hour');
	SELECT millrace.create_continuous_aggregate('slides', 'SELECT millrace.hop(at, ''3 hours'', ''1 hour'') AS window_start, action, count(*), avg(amount) FROM events GROUP BY 1, 2', watermark => '10 minutes');
	SELECT millrace.create_continuous_aggregate('visits', 'SELECT action, window_start, count(*), max(amount) FROM (SELECT *, millrace.session(at, ''1 minute'') OVER (PARTITION BY action ORDER BY at) AS window_start FROM events) e GROUP BY 1, 2', watermark => '10 minutes')" >/dev/null
all=(live later hours slides visits)
zeros="0 0 0 0 0"
value "INSERT INTO events SELECT '2024-01-01'::timestamptz + i * interval '20 seconds', 'a' || i % 5, i % 100 FROM generate_series(1, 4000) i"
maintain
final hours slides visits >"$work/final"
is "$(cut -d ' ' -f 1 "$work/final" | uniq | paste -sd ' ')" "hours slides visits" "there are final windows"
stays() { # stays NAME: what was final is; from now on, also what has become so
	final hours slides visits >"$work/now"
	is "$(LC_ALL=C comm -23 "$work/final" "$work/now" | head -3)" "" "$1"
	mv "$work/now" "$work/final"
}

# Changes of the tables
value "ALTER TABLE events RENAME TO happenings; ALTER TABLE happenings RENAME action TO kind;
	INSERT INTO happenings (at, kind, amount) VALUES ('2024-01-02', 'renamed', 1);
	ALTER TABLE happenings RENAME TO events; ALTER TABLE events RENAME kind TO action;
	INSERT INTO events VALUES ('2024-01-02', 'renamed', 2)" 2>"$work/err"
is "$? $(cat "$work/err") $(value "SELECT sum FROM live WHERE action = 'renamed'")" "0  3" "ALTER TABLE RENAME, of the table and of a column"
is "$(differences "${all[@]}")" "$zeros" "each row counts"
value "CREATE TABLE more PARTITION OF events FOR VALUES FROM ('2024-01-03') TO ('2024-01-04'); INSERT INTO more VALUES ('2024-01-03', 'added', 1, 1)"
is "$(differences "${all[@]}")" "$zeros" "a partition is added"
value "CREATE TABLE full_one (amount int, id bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY, gone int, at timestamptz NOT NULL, action text); ALTER TABLE full_one DROP gone;
	INSERT INTO full_one (at, action, amount) VALUES ('2024-01-04', 'attached', 1), ('2024-01-04 05:00', 'attached', 2);
	ALTER TABLE events ATTACH PARTITION full_one FOR VALUES FROM ('2024-01-04') TO ('2024-01-05');
	INSERT INTO full_one (at, action, amount) VALUES ('2024-01-04', 'attached', 4)" 2>"$work/err" && maintain 2>"$work/err"
is "$? $(cat "$work/err") $(differences "${all[@]}")" "0  $zeros" "one that has rows is attached, with its columns in another order"
value "ALTER TABLE events DETACH PARTITION full_one; INSERT INTO full_one (at, action, amount) VALUES ('2024-01-04', 'attached', 8)" && maintain
is "$(value "SELECT sum(sum) FROM live WHERE action = 'attached'") $(value "SELECT count(*) FROM events WHERE action = 'attached'")" "7 0" "a partition that is detached leaves its windows, and is no longer a source"
value "DELETE FROM full_one WHERE amount = 8; ALTER TABLE events ATTACH PARTITION full_one FOR VALUES FROM ('2024-01-04') TO ('2024-01-05')" && maintain
is "$(differences "${all[@]}")" "$zeros" "and can be attached again"
stays "what was final before stays"
value "CREATE TABLE short (at timestamptz, v int);
	SELECT millrace.create_pipe('onwards', 'short', 'INSERT INTO kept SELECT at, v FROM new_rows');
	SELECT millrace.create_continuous_aggregate('brief', 'SELECT millrace.tumble(at, ''1 hour'') AS window_start, count(*) FROM short GROUP BY 1', watermark => '1 minute');
	INSERT INTO short VALUES ('2024-01-01', 1); DELETE FROM short" >/dev/null
states=$(value "SELECT count(DISTINCT state) FROM millrace.progress")
value "DROP TABLE short CASCADE" 2>"$work/err" && maintain
is "$? $(grep -c ERROR "$work/err") $(value "SELECT count(*) FROM pg_class WHERE relname LIKE 'brief%'") $(value "SELECT count(*) FROM millrace.streams WHERE name IN ('brief', 'onwards')")" "0 0 0 0" "DROP TABLE CASCADE takes its streams away"
is "$(value "SELECT count(DISTINCT state) FROM millrace.progress") $(value "SELECT count(*) FROM millrace.batches WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = source)") $(value "SELECT count(*) FROM millrace.mark WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = state)")" \
	"$((states - 1)) 0 0" "and what was kept of them"

# A crash in the middle of batches and of maintenance
pgbench -n -c 2 -T 30 -f "$work/load.sql" shop >/dev/null 2>&1 &
load=$!
while maintain && value "SELECT millrace.compact('hours'), millrace.compact('visits')"; do :; done >/dev/null 2>&1 &
care=$!
n=$(value "SELECT max(xid::text::bigint) FROM millrace.batches")
until_true answers "SELECT count(*) > 100 FROM millrace.batches WHERE xid > '$n'" t
final hours slides visits >"$work/final"
"$lib/cluster" kill "$work/cluster"
wait "$load" "$care" 2>/dev/null
"$lib/cluster" again "$work/cluster"
is "$(differences "${all[@]}")" "$zeros" "after a crash"
stays "what was final before the crash stays"
ten_thousand after
is "$(differences "${all[@]}") $(verified live,later,hours,slides,visits)" "$zeros 0" "and after another 10,000 rows"
stays "and another 10,000 rows"

# A replica, and its promotion
mkdir "$work/replica"
[ "$(id -u)" != 0 ] || chown postgres: "$work/replica"
(cd / && as_postgres pg_basebackup -U postgres -D "$work/replica/data" -R -c fast) >"$work/err" 2>&1
is "$? $(cat "$work/err")" "0 " "a base backup"
primary=$PGPORT
replica=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "port = $replica" >>"$work/replica/data/postgresql.auto.conf"
"$lib/cluster" again "$work/replica"
ten_thousand replicated
cursor=$(value "SELECT cursor FROM hours_changes(NULL) LIMIT 1")
value "INSERT INTO events VALUES ('2024-01-02', 'replicated', 3)" && maintain
lsn=$(value "SELECT pg_current_wal_lsn()")
for name in hours slides visits; do value "SELECT '$name ' || a::text FROM $name a"; done | LC_ALL=C sort >"$work/whole"
stays "before the replica"
changes=$(value "SELECT count(*) FROM hours_changes('$cursor')")
export PGPORT=$replica
until_true answers "SELECT pg_last_wal_replay_lsn() >= '$lsn'" t
is "$(for name in hours slides visits; do value "SELECT '$name ' || a::text FROM $name a"; done | LC_ALL=C sort | cmp - "$work/whole" 2>&1)" "" "the replica shows the same windows"
is "$(final hours slides visits | cmp - "$work/final" 2>&1)" "" "and the same final ones"
is "$(value "SELECT count(*) FROM hours_changes('$cursor')")" "$changes" "and the same changes"
value "SELECT pg_promote()" >/dev/null 2>"$work/err" || PGUSER=postgres value "SELECT pg_promote()" >/dev/null
is "$(differences "${all[@]}")" "$zeros" "promoted, it has all"
ten_thousand promoted
is "$(differences "${all[@]}") $(verified live,later,hours,slides,visits)" "$zeros 0" "and goes on for another 10,000 rows"
stays "what was final stays"
maintain 2>"$work/err"
is "$? $(cat "$work/err") $(differences "${all[@]}")" "0  $zeros" "and is maintained"
"$lib/cluster" stop "$work/replica" immediate
export PGPORT=$primary

# Dump by the owner, in the middle of the stream; restore by a superuser, who may fill the catalog and then owns the extension
value "INSERT INTO events SELECT max(at), 'late', 1 FROM events; INSERT INTO events VALUES ('2024-01-01', 'late', 1); UPDATE events SET amount = amount + 1 WHERE action = 'replicated' AND at < '2024-01-01 03:00'"
is "$(value "SELECT count(*) > 0 FROM millrace.mark")" t "some windows wait for a refresh"
stays "before the dump"
pg_dump -Fc -f "$work/dump" shop 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_dump by the owner"
PGUSER=postgres value "CREATE DATABASE copy OWNER shop"
pg_restore -U postgres --exit-on-error -j 2 -d copy "$work/dump" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_restore into a new database"
PGUSER=postgres PGDATABASE=copy value "GRANT USAGE ON SCHEMA millrace TO shop; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA millrace TO shop"
whole=$(value "SELECT count(*), sum(sum) FROM live")
late=$(value "SELECT '$(cat "$work/final" | wc -l) ' || count(*) FROM hours")
export PGDATABASE=copy
is "$(value "SELECT count(*), sum(sum) FROM live")" "$whole" "the aggregate is restored"
is "$(value "SELECT '$(final hours slides visits | wc -l) ' || count(*) FROM hours")" "$late" "with its windows, final or not"
stays "those that were final are"
cursor=$(value "SELECT cursor FROM hours_changes(NULL) LIMIT 1")
is "$(value "SELECT count(*) FROM hours_changes(NULL)")" "$(value "SELECT count(*) FROM hours")" "all windows are changes to who has no cursor"
kept=$(value "SELECT count(*) FROM kept")
value "INSERT INTO events VALUES ('2024-01-02', 'restored', 1)"
is "$(value "SELECT count(*) FROM hours_changes('$cursor') WHERE action = 'restored'")" 1 "the cursor of the restored server goes on"
ten_thousand restored
stays "what was final stays, after another 10,000 rows"
maintain 2>"$work/err" && maintain 2>"$work/err"
is "$? $(cat "$work/err") $(differences "${all[@]}") $(verified live,later,hours,slides,visits)" "0  $zeros 0" "what waited is refreshed, and nothing differs"
stays "nor has what was final"
is "$(value "SELECT count(*) FROM hours_state WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())")" 0 "no transaction id of the other server is left"
is "$(value "SELECT count(*) - $kept FROM kept")" "$(value "SELECT count(*) FROM events WHERE action = 'restored' AND amount % 2 = 0")" "the pipe goes on, too"
value "SELECT millrace.create_pipe('another', 'events', 'INSERT INTO kept SELECT at, amount FROM new_rows WHERE false')" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "streams can be created after a restore"
PGUSER=postgres value "DROP EXTENSION millrace CASCADE" 2>/dev/null
is "$? $(value "SELECT count(*) FROM pg_namespace WHERE nspname = 'millrace'")" "0 0" "DROP EXTENSION CASCADE"
value "INSERT INTO events VALUES ('2024-01-01', 'plain', 1)"
is "$?" 0 "after which the table is an ordinary table"
done_testing
