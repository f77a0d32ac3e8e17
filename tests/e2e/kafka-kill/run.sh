#!/usr/bin/env bash
# 100,000 events through a real broker; the ingester is killed twice in mid-batch.  Every event arrives exactly once,
# and the aggregate that the batches kept equals a recomputation.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
n_events=100000
start_cluster
# A killed member's partitions move on after the session timeout: short, so that the test does not wait.
start_kafka group.min.session.timeout.ms=500

at_broker() { # messages of a topic by its high watermarks; all begin at 0
	local sum=0 p high
	for ((p = 0; p < $2; p++)); do
		high=$(kcat -Q -b "$BROKERS" -t "$1:$p:-1" | awk '{ print $NF }')
		sum=$((sum + high))
	done
	echo "$sum"
}

"$lib/kafka" topic "$work/kafka" events 4 || exit 1
"$here/events.py" $n_events >"$work/events.json" 2> >(cat >&2)
kcat -P -b "$BROKERS" -t events -X sticky.partitioning.linger.ms=0 -l "$work/events.json" || exit 1
is "$(at_broker events 4)" $n_events "the broker has $n_events messages"
kcat -C -e -q -b "$BROKERS" -t events -o beginning -f '%p\t%o\t%s\n' >"$work/at-broker.tsv"

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE TABLE events (id bigint, event_time timestamptz NOT NULL, action text, amount numeric, user_id bigint,
	kafka_partition int, kafka_offset bigint) PARTITION BY RANGE (event_time);
SELECT millrace.create_source('events', 'event_time');
SELECT millrace.create_continuous_aggregate('events_per_minute', $$
	SELECT action, millrace.tumble(event_time, '1 minute') AS window_start, count(*) AS n, sum(amount) AS total
	FROM events GROUP BY 1, 2$$);
CREATE TABLE at_broker (partition int, "offset" bigint, message jsonb);
SQL
psql -qX -c "\\copy at_broker FROM '$work/at-broker.tsv'" || exit 1

cat >"$work/events.ini" <<INI
[source]
type = kafka
name = events
brokers = $BROKERS
topic = events
kafka.session.timeout.ms = 1000
kafka.heartbeat.interval.ms = 300

[target]
table = events

[columns]
user_id = user.id
kafka_partition = \$partition
kafka_offset = \$offset

[batch]
max_rows = 2000
INI

# ---- kill it twice ----

backends_gone() { [ "$(value "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace'")" = 0 ]; }
committed_by_log() { cat "$work"/log.* | sed -n 's/.*batch [0-9]*: committed \([0-9]*\) rows.*/\1/p' | awk '{ s += $1 } END { print s + 0 }'; }
last_batch_line() { grep -E 'batch [0-9]+: (copying|committed)' "$1" | tail -1; }
n_runs=0
# Starts the ingester and kills it in a batch, after it has committed five.  Succeeds if the kill hit uncommitted rows.
kill_in_batch() {
	n_runs=$((n_runs + 1))
	local log=$work/log.$n_runs
	: >"$log"
	"$millrace" run "$work/events.ini" 2>>"$log" &
	pid=$!
	# The newest line is "copying": rows are on their way, and not committed.
	until_true eval 'tail -n 1 "'"$log"'" | grep -q "batch [0-9][0-9]*: copying" && [ "$(grep -c ": committed" "'"$log"'")" -ge 5 ] || ! kill -0 $pid 2>/dev/null' || return 1
	kill -KILL $pid 2>/dev/null
	wait $pid 2>/dev/null
	until_true backends_gone || return 1
	last_batch_line "$log" | grep -q copying || return 1
	# What the log calls committed is all that the database has: the rows being copied were not.
	[ "$(value 'SELECT sum(next_offset) FROM millrace.ingest_offsets')" = "$(committed_by_log)" ] || return 1
	[ "$(value 'SELECT count(*) FROM events')" = "$(committed_by_log)" ] || return 1
	echo "# killed: $(last_batch_line "$log")"
}
# A batch that takes its time gives the kill something to hit.
value "CREATE TABLE slow (n int);
	SELECT millrace.create_pipe('slow', 'events', 'INSERT INTO slow SELECT 1 FROM (SELECT pg_sleep(0.1) FROM (SELECT FROM new_rows LIMIT 1) r) s')" >/dev/null
n_hits=0
deadline=$((SECONDS + 120))
while [ $n_hits -lt 2 ] && [ $SECONDS -lt $deadline ]; do
	if kill_in_batch; then n_hits=$((n_hits + 1)); else echo "# run $n_runs: the kill hit no open batch"; fi
	[ "$(value 'SELECT sum(next_offset) FROM millrace.ingest_offsets')" -lt $n_events ] || break
done
value "SELECT millrace.drop_pipe('slow')" >/dev/null
is $n_hits 2 "two kills hit rows that were copied and not committed"
ok "$(test "$(value 'SELECT count(*) FROM events')" -lt $n_events; echo $?)" "both in mid-stream"

"$millrace" run "$work/events.ini" --once >"$work/log.last" 2>&1
is $? 0 "the last run reads the rest and ends with status 0"
diag <<<"$(grep -c committed "$work/log.last") batches in the last run"

# ---- exactly once ----

is "$(value 'SELECT count(*) FROM at_broker')" $n_events "all messages of the broker are known to the test"
is "$(value "SELECT count(*) FROM (
	(SELECT kafka_partition, kafka_offset, id, event_time, action, amount, user_id FROM events
	EXCEPT ALL SELECT partition, \"offset\", (message->>'id')::bigint, (message->>'event_time')::timestamptz, message->>'action',
		(message->>'amount')::numeric, (message->'user'->>'id')::bigint FROM at_broker)
	UNION ALL
	(SELECT partition, \"offset\", (message->>'id')::bigint, (message->>'event_time')::timestamptz, message->>'action',
		(message->>'amount')::numeric, (message->'user'->>'id')::bigint FROM at_broker
	EXCEPT ALL SELECT kafka_partition, kafka_offset, id, event_time, action, amount, user_id FROM events)) d")" 0 \
	"the table holds each message of the broker exactly once"
is "$(value 'SELECT count(*) FROM (SELECT FROM events GROUP BY kafka_partition, kafka_offset HAVING count(*) > 1) d')" 0 "no duplicates"
is "$(value "SELECT count(*) FROM millrace.dead_letters")" 0 "no dead letters"
is "$(value "SELECT count(*) FROM (
	(SELECT action, window_start, n, total FROM events_per_minute
	EXCEPT ALL SELECT action, date_trunc('minute', event_time), count(*), sum(amount) FROM events GROUP BY 1, 2)
	UNION ALL
	(SELECT action, date_trunc('minute', event_time), count(*), sum(amount) FROM events GROUP BY 1, 2
	EXCEPT ALL SELECT action, window_start, n, total FROM events_per_minute)) d")" 0 \
	"the aggregate equals a recomputation from the raw table"
is "$(value 'SELECT sum(n) FROM events_per_minute')" $n_events "and counts $n_events events"
is "$(value 'SELECT string_agg(tableoid::regclass::text, $$ $$ ORDER BY tableoid::regclass::text) FROM (SELECT DISTINCT tableoid FROM events) p')" \
	"events_20240301 events_20240302 events_20240303" "in the partitions that the event times asked for"

# ---- what a topic can do wrong ----

"$millrace" run "$work/events.ini" --once --source.topic=nowhere >"$work/log.nowhere" 2>&1
is $? 3 "an unknown topic: status 3"
like "$(cat "$work/log.nowhere")" 'topic "nowhere": Broker: Unknown topic or partition' "in librdkafka's words"

"$lib/kafka" topic "$work/kafka" faulty 1 || exit 1
printf '{"id": 1, "event_time": "2024-03-01T00:00:00Z"}\n{"id": oops}\n{"id": 2, "event_time": "infinity"}\n{"id": 3, "event_time": "9999-01-01T00:00:00Z"}\n{"id": 4, "event_time": "2024-03-01T00:00:01Z"}\n' |
	kcat -P -b "$BROKERS" -t faulty -k "key" || exit 1
"$millrace" run "$work/events.ini" --once --source.topic=faulty >"$work/log.faulty" 2>&1
is $? 0 "bad messages do not stop the stream"
is "$(value "SELECT topic, partition, \"offset\", convert_from(key, 'UTF8'), convert_from(payload, 'UTF8'), stage, sqlstate FROM millrace.dead_letters ORDER BY id")" \
	'faulty|0|1|key|{"id": oops}|decode|
faulty|0|2|key|{"id": 2, "event_time": "infinity"}|store|23514
faulty|0|3|key|{"id": 3, "event_time": "9999-01-01T00:00:00Z"}|partition|' "they are dead letters with their bytes"
is "$(value 'SELECT count(*) FROM events')" $((n_events + 2)) "the others are stored"
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
done_testing
