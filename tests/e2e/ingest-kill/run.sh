#!/usr/bin/env bash
# Two ingesters, a topic of four partitions, and everything dies around them (kill.py).  Every message is there exactly
# once, what cannot be stored is a dead letter, and aggregate and pipe equal a recomputation.  Then what a topic can do wrong.
# MILLRACE_SEED=N sets another seed: an odd one deals partitions out cooperatively, and of four in turn the last two let a
# crash of PostgreSQL lose what it has committed.  MILLRACE_LONG=1: 200,000 messages, and the broker stays away for 30 s once.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
seed=${MILLRACE_SEED:-5}
if [ -n "${MILLRACE_LONG:-}" ]; then n_events=200000 n_faults=60 OUTAGE=30; else n_events=30000 n_faults=21 OUTAGE=0; fi
export OUTAGE
start_cluster $([ $((seed % 4)) -lt 2 ] || echo synchronous_commit=off wal_writer_delay=10s)
# A killed member's partitions move on after the session timeout: short, so that the test does not wait.
start_kafka group.min.session.timeout.ms=500
"$lib/kafka" topic "$work/kafka" events 4 || exit 1

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE TABLE events (id bigint, event_time timestamptz NOT NULL, action text, amount numeric, user_id bigint,
	kafka_partition int, kafka_offset bigint) PARTITION BY RANGE (event_time);
SELECT millrace.create_source('events', 'event_time');
SELECT millrace.create_continuous_aggregate('events_per_minute', $$
	SELECT action, millrace.tumble(event_time, '1 minute') AS window_start, count(*) AS n, sum(amount) AS total
	FROM events GROUP BY 1, 2$$);
CREATE TABLE views (id bigint, cents int);
SELECT millrace.create_pipe('views', 'events', $$INSERT INTO views SELECT id, amount * 100 FROM new_rows WHERE action = 'view'$$);
CREATE TABLE at_broker (partition int, "offset" bigint, message text);
CREATE VIEW sent AS SELECT partition, "offset", (m->>'id')::bigint AS id, (m->>'event_time')::timestamptz AS event_time,
		m->>'action' AS action, (m->>'amount')::numeric AS amount, (m->'user'->>'id')::bigint AS user_id
	FROM (SELECT partition, "offset", message::jsonb AS m FROM at_broker WHERE message NOT LIKE '%"bad"%' OFFSET 0) b;
SQL

cat >"$work/events.ini" <<INI
[source]
type = kafka
name = events
brokers = $BROKERS
topic = events
kafka.session.timeout.ms = 1000
kafka.heartbeat.interval.ms = 300
kafka.partition.assignment.strategy = $([ $((seed % 2)) = 0 ] && echo range || echo cooperative-sticky)

[target]
table = events

[columns]
user_id = user.id
kafka_partition = \$partition
kafka_offset = \$offset

[batch]
max_rows = 400
max_age = 200ms
INI

# ---- the faults ----

while read -r verdict name; do
	case $verdict in
	ok) ok 0 "$name" ;;
	not) ok 1 "${name#ok }" ;;
	*) echo "$verdict $name" ;;
	esac
done < <("$here/kill.py" "$seed" $n_events $n_faults "$work" "$work/events.ini" 2>&1)

# ---- exactly once ----

kcat -C -e -q -b "$BROKERS" -t events -o beginning -f '%p\t%o\t%s\n' >"$work/at-broker.tsv"
psql -qX -c "\\copy at_broker FROM '$work/at-broker.tsv'" || exit 1
ok "$([ "$(value 'SELECT count(*) FROM at_broker')" -ge $n_events ]; echo $?)" "the broker has at least the $n_events messages that were sent"
is "$(value 'SELECT count(*) FROM (
	(SELECT kafka_partition, kafka_offset, id, event_time, action, amount, user_id FROM events EXCEPT ALL TABLE sent)
	UNION ALL (TABLE sent EXCEPT ALL SELECT kafka_partition, kafka_offset, id, event_time, action, amount, user_id FROM events)) d')" 0 \
	"the table holds each good message of the broker exactly once"
is "$(value "SELECT count(*) FROM (
	(SELECT partition, \"offset\", convert_from(payload, 'UTF8') FROM millrace.dead_letters
	EXCEPT ALL SELECT partition, \"offset\", message FROM at_broker WHERE message LIKE '%\"bad\"%')
	UNION ALL (SELECT partition, \"offset\", message FROM at_broker WHERE message LIKE '%\"bad\"%'
	EXCEPT ALL SELECT partition, \"offset\", convert_from(payload, 'UTF8') FROM millrace.dead_letters)) d")" 0 \
	"the dead letters are the $(value "SELECT count(*) FROM at_broker WHERE message LIKE '%\"bad\"%'") bad ones, once"
is "$(value "SELECT count(*) FROM (
	(SELECT action, window_start, n, total FROM events_per_minute
	EXCEPT ALL SELECT action, date_trunc('minute', event_time), count(*), sum(amount) FROM events GROUP BY 1, 2)
	UNION ALL
	(SELECT action, date_trunc('minute', event_time), count(*), sum(amount) FROM events GROUP BY 1, 2
	EXCEPT ALL SELECT action, window_start, n, total FROM events_per_minute)) d")" 0 \
	"the windows equal a recomputation from the raw table"
is "$(value "SELECT count(*) FROM (
	(TABLE views EXCEPT ALL SELECT id, amount * 100 FROM events WHERE action = 'view')
	UNION ALL (SELECT id, amount * 100 FROM events WHERE action = 'view' EXCEPT ALL TABLE views)) d")" 0 \
	"so does what the pipe made"
is "$(value "SELECT string_agg(to_char(day, 'YYYYMMDD'), ' ' ORDER BY day) FROM (SELECT DISTINCT date_trunc('day', event_time) AS day FROM events) d")" \
	"$(value "SELECT string_agg(substr(p::text, 8), ' ' ORDER BY p::text) FROM (SELECT DISTINCT tableoid::regclass AS p FROM events) d")" \
	"in the partitions that the event times asked for"

# ---- what a topic can do wrong ----

"$millrace" run "$work/events.ini" --once --source.topic=nowhere >"$work/log.nowhere" 2>&1
is $? 3 "an unknown topic: status 3"
like "$(cat "$work/log.nowhere")" 'topic "nowhere": Broker: Unknown topic or partition' "in librdkafka's words"

"$lib/kafka" topic "$work/kafka" faulty 1 || exit 1
printf '{"id": 1, "event_time": "2024-03-01T00:00:00Z"}\n{"id": oops}\n{"id": 2, "event_time": "infinity"}\n{"id": 3, "event_time": "9999-01-01T00:00:00Z"}\n{"id": 4, "event_time": "2024-03-01T00:00:01Z"}\n' |
	kcat -P -b "$BROKERS" -t faulty -k "key" || exit 1
"$millrace" run "$work/events.ini" --once --source.topic=faulty >"$work/log.faulty" 2>&1
is $? 0 "bad messages do not stop the stream"
is "$(value "SELECT topic, partition, \"offset\", convert_from(key, 'UTF8'), convert_from(payload, 'UTF8'), stage, sqlstate FROM millrace.dead_letters WHERE topic = 'faulty' ORDER BY id")" \
	'faulty|0|1|key|{"id": oops}|decode|
faulty|0|2|key|{"id": 2, "event_time": "infinity"}|partition|
faulty|0|3|key|{"id": 3, "event_time": "9999-01-01T00:00:00Z"}|partition|' "they are dead letters with their bytes"
is "$(value 'SELECT count(*) FROM events')" $(($(value 'SELECT count(*) FROM sent') + 2)) "the others are stored"
is "$(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = 'faulty'")" 5 "and the position is behind them"

# ---- stop and go on ----

"$millrace" run "$work/events.ini" --source.topic=faulty >"$work/log.stop" 2>&1 &
pid=$!
until_true grep -q 'reading from offset 5' "$work/log.stop"
echo '{"id": 5, "event_time": "2024-03-01T00:00:02Z"}' | kcat -P -b "$BROKERS" -t faulty
until_true eval '[ "$(value "SELECT count(*) FROM events WHERE id = 5 AND kafka_offset = 5")" = 1 ]'
is $? 0 "a waiting ingester stores what comes"
kill -TERM $pid
wait $pid
is $? 0 "SIGTERM: status 0"

# ---- a server that comes back without what it had committed, and nothing new to read ----

value "ALTER SYSTEM SET synchronous_commit = off" && value "ALTER SYSTEM SET wal_writer_delay = '10s'" && value "SELECT pg_reload_conf()" >/dev/null
until_true answers "SHOW synchronous_commit" off
forget() { # crashes once the row is committed
	until_true answers "SELECT count(*) FROM events WHERE id = $1" 1
	"$lib/cluster" kill "$work/cluster"
	"$lib/cluster" again "$work/cluster"
}
"$millrace" run "$work/events.ini" --source.topic=faulty >"$work/log.lost" 2>&1 &
pid=$!
until_true grep -q 'reading from offset 6' "$work/log.lost"
echo '{"id": 1000006, "event_time": "2024-03-01T00:00:03Z"}' | kcat -P -b "$BROKERS" -t faulty
forget 1000006
until_true answers "SELECT count(*) FROM events WHERE id = 1000006" 1
is $? 0 "a message whose commit was lost is read again"
like "$(cat "$work/log.lost")" "the database does not have the positions that were stored" "because the positions were compared"
kill -TERM $pid
wait $pid

mkdir "$work/in"
printf 'id,event_time\n1000007,2024-03-01T00:00:04Z\n' >"$work/in/7.csv"
printf '[source]\ntype = directory\npath = %s\n[target]\ntable = events\n' "$work/in" >"$work/files.ini"
"$millrace" run "$work/files.ini" >"$work/log.files" 2>&1 &
pid=$!
forget 1000007
wait $pid
is $? 6 "files: status 6"
"$millrace" run "$work/files.ini" --once >"$work/log.again" 2>&1
is "$? $(value 'SELECT count(*) FROM events WHERE id = 1000007')" "0 1" "and the next run reads what is missing"
done_testing
