#!/usr/bin/env bash
# The life of a process: several streams in it, how it ends, SIGHUP, a table that changes under it, and a database that is
# gone while there is more to read than fits into memory.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
n_backlog=${MILLRACE_LONG:+400000}
n_backlog=${n_backlog:-120000}
start_cluster
start_kafka
mkdir "$work/a" "$work/b"

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE TABLE a (id int PRIMARY KEY, name text);
CREATE TABLE b (id int PRIMARY KEY, name text);
CREATE TABLE events (id int, name text, body text, kafka_partition int, kafka_offset bigint);
SQL
for name in a b; do
	printf '[source]\ntype = directory\npath = %s\npoll = 50ms\n[target]\ntable = %s\nretry = 1s\n' "$work/$name" $name >"$work/$name.ini"
done
cat >"$work/k.ini" <<INI
[source]
type = kafka
brokers = $BROKERS
topic = events
group = events

[target]
table = events

[columns]
kafka_partition = \$partition
kafka_offset = \$offset

[batch]
max_age = 1h
INI

says() { grep -q "$1" "$work/log"; }
start() { # start FILE.ini … [flags]: in the background, as $pid
	: >"$work/log"
	"$millrace" run "$@" >>"$work/log" 2>&1 &
	pid=$!
}
ends() { # ends [SIGNAL]: its status is the answer
	[ -z "${1:-}" ] || kill -"$1" $pid
	wait $pid
}
put() { # put DIRECTORY NAME FIRST LAST: a file of rows, all at once
	{ echo id,name; seq -f '%.0f,fine' "$3" "$4"; } >"$work/$1/.new" && mv "$work/$1/.new" "$work/$1/$2.csv"
}
clean() {
	value 'TRUNCATE a, b, events, millrace.dead_letters, millrace.ingest_offsets'
	rm -f "$work"/a/* "$work"/b/*
}
counts() { value 'SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)'; }
sessions="SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace'"
no_session() { answers "$sessions" 0; }
hold() { # hold TABLE: keeps writers out until release
	psql -qX -c "BEGIN; LOCK TABLE $1 IN SHARE MODE; SELECT pg_sleep(600)" >/dev/null 2>&1 &
	until_true answers "SELECT count(*) FROM pg_locks WHERE relation = '$1'::regclass AND mode = 'ShareLock' AND granted" 1
}
release() { value "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'ShareLock' AND granted" >/dev/null; }
hangs() { answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND wait_event_type = 'Lock'" "${1:-1}"; }
sent() { # sent FIRST LAST [BYTES]: messages of that much text
	seq "$1" "$2" | awk -v n="${3:-10}" 'BEGIN { while (length(x) < n) x = x "x" } { printf "{\"id\":%d,\"name\":\"n%d\",\"body\":\"%s\",\"more\":%d}\n", $1, $1, x, $1 }' |
		kcat -P -b "$BROKERS" -t events -p -1
}

# ---- several streams ----

put a one 1 1000
put b one 1 2000
"$millrace" run "$work/a.ini" "$work/b.ini" --once >"$work/log" 2>&1
is "$? $(counts)" "0 1000|2000" "two streams in one process"
is "$(value 'SELECT count(DISTINCT source), count(*) FROM millrace.ingest_offsets')" "2|2" "each with its own positions"
"$millrace" check "$work/a.ini" "$work/b.ini" >"$work/log" 2>&1
is "$? $(cat "$work/log")" "0 $work/a.ini: no errors
$work/b.ini: no errors" "check of both"
sed 's/^retry.*/nonsense = 1/' "$work/b.ini" >"$work/wrong.ini"
"$millrace" run "$work/wrong.ini" "$work/a.ini" --once >"$work/log" 2>&1
is $? 2 "nothing runs when one file is wrong"
{ cat "$work/b.ini"; printf '[log]\nlevel = debug\n'; } >"$work/other.ini"
"$millrace" run "$work/a.ini" "$work/other.ini" --once >"$work/log" 2>&1
is "$? $(cat "$work/log")" "2 $work/other.ini:9: \"log.level\" is of the whole process: it is another in $work/a.ini" "what is the process's must agree"
cp "$work/a.ini" "$work/again.ini"
"$millrace" run "$work/a.ini" "$work/again.ini" --once >"$work/log" 2>&1
like "$? $(cat "$work/log")" "^2 .*again.ini: stream \".*/a\" is read by .*/a.ini: give one of them another name" "no stream twice"

clean
hold a
start "$work/a.ini" "$work/b.ini"
until_true answers "$sessions" 2
put a one 1 1000
until_true hangs
value 'ALTER TABLE b RENAME TO gone'
put b one 1 1000
until_true says 'still refuses after target.retry'
release
ends
is "$? $(value 'SELECT count(*) FROM a')" "7 1000" "one stream fails: the process ends with its status, the other one stores what it has"
value 'ALTER TABLE gone RENAME TO b'

# ---- how it ends ----

"$lib/kafka" topic "$work/kafka" events 2 || exit 1
clean
start "$work/k.ini" --metrics.interval=50ms
sent 1 5000
until_true answers "SELECT value FROM millrace.ingest_metrics WHERE metric = 'messages_total' AND instance LIKE '%:$pid'" 5000
ends TERM
is "$? $(value 'SELECT count(*), count(DISTINCT id), sum(id) FROM events')" "0 5000|5000|12502500" "SIGTERM: the batch that fills is stored, an hour before it is due"

clean
put a one 1 1000
hold a
start "$work/a.ini" --batch.drain=500ms
until_true hangs
started=$(date +%s%N)
ends TERM
is $? 0 "batch.drain is over while the batch waits for a lock: status 0"
took=$((($(date +%s%N) - started) / 1000000))
[ $took -ge 500 ] && [ $took -lt 3000 ]
ok $? "after that time"
like "$(cat "$work/log")" "1000 rows were read and not stored; they are read again next time" "it says what is not stored"
until_true no_session
ok $? "nobody waits for the lock any more"
release
"$millrace" run "$work/a.ini" --once >"$work/log" 2>&1
is "$? $(counts)" "0 1000|0" "the next run stores the rows"

clean
put a one 1 1000
hold a
start "$work/a.ini" --batch.drain=200ms
until_true hangs
backend=$(value "SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace'")
kill -STOP "$backend"
started=$(date +%s%N)
ends TERM
is $? 8 "the server does not even answer: status 8"
[ $((($(date +%s%N) - started) / 1000000)) -lt 6000 ]
ok $? "a few seconds later"
kill -CONT "$backend"
until_true no_session
release
is "$(counts)" "0|0" "and nothing is stored"

# ---- SIGHUP ----

clean
sed "s/group = events/&\nname = hup/; s/max_age = 1h/max_age = 1h\ndrain = 9s\n[metrics]\ninterval = 50ms/" "$work/k.ini" >"$work/hup.ini"
start "$work/hup.ini"
until_true says 'reading from offset'
sent 5001 5100
until_true answers "SELECT value FROM millrace.ingest_metrics WHERE source = 'hup' AND metric = 'messages_total'" 5100
is "$(value 'SELECT count(*) FROM events')" 0 "a batch that is due in an hour"
sed -i 's/max_age = 1h/max_age = 50ms/; s/topic = events/topic = others/; s/drain = 9s/drain = never/' "$work/hup.ini"
kill -HUP $pid
until_true says 'has errors: the stream goes on as before'
is "$(grep -c 'hup.ini:[0-9]*: "never" is not a valid value of "drain"' "$work/log") $(value 'SELECT count(*) FROM events')" "1 0" "a file with an error changes nothing"
sed -i 's/drain = never/drain = 8s/' "$work/hup.ini"
value 'ALTER TABLE events ADD COLUMN more int'
kill -HUP $pid
until_true answers 'SELECT count(*) >= 100 FROM events' t
ok $? "SIGHUP: a new max_age is taken over"
is "$(value 'SELECT count(*), count(more), sum(more) - sum(id) FROM events WHERE id > 5000')" "100|100|0" "a new column is filled, also in the rows that were read before"
says '"batch.max_age" is 50ms now' && says '"batch.drain" is 8s now'
ok $? "the log says so"
like "$(cat "$work/log")" 'another "source.topic" is used only after a restart' "and what has to wait for a restart"
ends TERM
is $? 0 "SIGTERM"

# ---- the table changes ----

value 'ALTER TABLE events DROP COLUMN more'
clean
start "$work/k.ini" --batch.max_age=50ms --source.name=change
until_true says 'reading from offset'
until_true answers 'SELECT count(*) FROM events WHERE id <= 5100' 5100
value 'ALTER TABLE events DROP COLUMN body'
sent 6001 6100
until_true answers 'SELECT count(*) FROM events WHERE id > 6000' 100
ok $? "a column is dropped: the rows are stored without it"
value 'ALTER TABLE events ADD COLUMN more int; UPDATE events SET more = id; ALTER TABLE events ALTER more SET NOT NULL'
sent 7001 7100
until_true answers 'SELECT count(*) FROM events WHERE id > 7000 AND more = id' 100
ok $? "a column that must not be null is added: the message has a field for it"
value 'ALTER TABLE events RENAME name TO label'
sent 8001 8100
until_true answers 'SELECT count(*) FROM events WHERE id > 8000 AND label IS NULL' 100
ok $? "a column is renamed: it is filled by its new name only"
value 'ALTER TABLE events RENAME kafka_offset TO place'
sent 8201 8300
until_true says 'has no column "kafka_offset" that can be written'
value 'ALTER TABLE events RENAME place TO kafka_offset'
until_true answers 'SELECT count(*) FROM events WHERE id > 8200 AND kafka_offset IS NOT NULL' 100
ok $? "a column that [columns] names is away for a while: the batch waits for it"
psql -qX -c 'BEGIN; DROP TABLE events; CREATE TABLE events (id bigint, event_time timestamptz NOT NULL DEFAULT now(), name json,
	kafka_partition int, kafka_offset bigint) PARTITION BY RANGE (event_time)' \
	-c "SELECT millrace.create_source('events', 'event_time')" -c COMMIT >/dev/null
sent 9001 9100
until_true answers "SELECT count(*) FROM events WHERE id > 9000 AND name::text = '\"n' || id || '\"'" 100
ok $? "a table of the same name with other types, partitioned"
is "$(value 'SELECT count(*) FROM millrace.dead_letters')" 0 "none of it makes a dead letter"
ends TERM
is $? 0 "SIGTERM"
like "$(grep -c 'its columns were read anew' "$work/log")" '^[45]$' "as often the columns were read anew"

# ---- a database that is gone, and a long backlog ----

psql -qX -c 'DROP TABLE events' -c 'CREATE TABLE events (id int, name text, body text, kafka_partition int, kafka_offset bigint)' 2>/dev/null
"$lib/kafka" drop "$work/kafka" events && "$lib/kafka" topic "$work/kafka" events 2 || exit 1
clean
# A sanitizer has its own memory.
limit=256
[ -z "${MILLRACE_SANITIZED:-}" ] || limit=2048
peak() { awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/$pid/status"; }
sent 1 "$n_backlog" 2000
start "$work/k.ini" --source.name=backlog --batch.max_age=1s
until_true answers 'SELECT count(*) > 0 FROM events' t
"$lib/cluster" kill "$work/cluster"
until_true says 'connection to the database lost'
ticks() { awk '{ print $14 + $15 }' "/proc/$pid/stat"; }
sleep 2
before=$(ticks)
sleep 2
spent=$(($(ticks) - before))
echo "# ticks of 200 spent in waiting: $spent"
[ "$spent" -lt 40 ]
ok $? "while the database is gone it waits, and does not spin"
peak | sed 's/^/# MiB at most while the database is gone: /'
[ "$(peak)" -lt "$limit" ]
ok $? "with less than $limit MiB"
"$lib/cluster" again "$work/cluster"
until_true answers 'SELECT count(*) FROM events' "$n_backlog"
is "$(value 'SELECT count(*), count(DISTINCT id), count(DISTINCT (kafka_partition, kafka_offset)) FROM events')" "$n_backlog|$n_backlog|$n_backlog" "then everything is there once"
peak | sed 's/^/# MiB at most: /'
[ "$(peak)" -lt "$limit" ]
ok $? "still"
ends TERM
is $? 0 "SIGTERM"
done_testing
