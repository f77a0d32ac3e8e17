#!/usr/bin/env bash
# Members of a consumer group come, go, stop and wake up as zombies while messages arrive; topics have aborted
# transactions, are compacted, lose messages, are made anew, get partitions.  Each message of the broker is in the table
# exactly once, by (topic, partition, offset).  MILLRACE_SEED=N sets another seed; MILLRACE_LONG=1: longer storms.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
RANDOM=${MILLRACE_SEED:-7}
echo "# seed ${MILLRACE_SEED:-7}"
if [ -n "${MILLRACE_LONG:-}" ]; then n_storm=200000 n_acts=60; else n_storm=12000 n_acts=8; fi
start_cluster
start_kafka group.min.session.timeout.ms=500 log.cleaner.backoff.ms=100 message.max.bytes=20000000 \
	log.retention.check.interval.ms=500 log.initial.task.delay.ms=500

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE EXTENSION millrace;
CREATE TABLE messages (topic text, partition int, "offset" bigint, id text, key text, headers jsonb, sent timestamptz);
CREATE TABLE slow (LIKE messages);
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
CREATE TRIGGER slowly AFTER INSERT ON slow EXECUTE FUNCTION slowly();
CREATE TABLE at_broker (topic text, partition int, "offset" bigint, id text);
SQL

cat >"$work/messages.ini" <<INI
[source]
type = kafka
name = groups
brokers = $BROKERS
group = groups
kafka.session.timeout.ms = 1000
kafka.heartbeat.interval.ms = 300
kafka.topic.metadata.refresh.interval.ms = 500

[target]
table = messages

[columns]
topic = \$topic
partition = \$partition
offset = \$offset
key = \$key
headers = \$headers
sent = \$timestamp

[batch]
max_rows = 500
max_age = 100ms

[metrics]
interval = 100ms
INI

# ---- tools ----

topic() { # topic NAME PARTITIONS: an empty one
	"$millrace" produce /dev/null --format=json --brokers="$BROKERS" --topic="$1" --create-topic --partitions="$2" --once >"$work/produce.log" 2>&1 ||
		{ diag <"$work/produce.log"; exit 1; }
}
send() { # send TOPIC FIRST LAST: messages with these ids
	seq -f '{"id": %.0f}' "$2" "$3" | kcat -P -b "$BROKERS" -t "$1" -X sticky.partitioning.linger.ms=0
}
run() { # run LOG TOPIC [FLAG …]: an ingester in the background, $pid
	local log=$1 topic=$2
	shift 2
	"$millrace" run "$work/messages.ini" --source.topic="$topic" --source.group="$topic" "$@" 2>>"$work/$log" &
	pid=$!
	until_true grep -q '^SigCgt:.*[4-7c-f]...$' /proc/$pid/status # it handles SIGTERM
}
once() { # once LOG TOPIC [FLAG …]: reads all there is; its status
	local log=$1 topic=$2
	shift 2
	"$millrace" run "$work/messages.ini" --source.topic="$topic" --source.group="$topic" --once "$@" 2>>"$work/$log"
}
end() { # end PID …: SIGTERM; succeeds if each ends with status 0
	local status=0 one
	kill -TERM "$@"
	for one; do wait "$one" 2>/dev/null || { status=$?; echo "# $one: status $status"; }; done
	return $status
}
status_of() { # status_of PID: of one that ends by itself; 137 if it does not
	until_true eval "! kill -0 $1 2>/dev/null" || kill -KILL "$1"
	wait "$1" 2>/dev/null
}
n_stored() { value "SELECT count(*) FROM messages WHERE topic = '$1'"; }
has_stored() { [ "$(n_stored "$1")" = "$2" ]; }
is_exact() { # is_exact TOPIC N NAME [TABLE]: the table has the N messages that a reader of the topic sees, each once
	kcat -C -e -q -b "$BROKERS" -t "$1" -o beginning -f '%t\t%p\t%o\t%s\n' 2>/dev/null | sed 's/{"id": \(.*\)}$/\1/' >"$work/at-broker.tsv"
	value "TRUNCATE at_broker" >/dev/null
	psql -qX -c "\\copy at_broker FROM '$work/at-broker.tsv'"
	is "$(value "SELECT (SELECT count(*) FROM at_broker), count(*) FROM (
		(SELECT topic, partition, \"offset\", id FROM ${4:-messages} WHERE topic = '$1' EXCEPT ALL TABLE at_broker)
		UNION ALL (TABLE at_broker EXCEPT ALL SELECT topic, partition, \"offset\", id FROM ${4:-messages} WHERE topic = '$1')) d")" "$2|0" "$3"
}
figure() { # figure PID METRIC: what an ingester says of itself
	value "SELECT coalesce(sum(value), -1) FROM millrace.ingest_metrics WHERE metric = '$2' AND instance ~ '[^0-9]$1\$'"
}
says() { [ "$(figure "$1" "$2")" = "$3" ]; }

# ---- a storm ----

# Four members; one at a time is killed, ended, or stopped for longer than the session lasts and woken up again.
storm() { # storm TOPIC STRATEGY
	local topic=$1 strategy=$2 i act producer acts='' pids=()
	topic "$topic" 6
	member() {
		run "log.$topic.$1" "$topic" --source.kafka.partition.assignment.strategy="$strategy"
		pids[$1]=$pid
	}
	for i in 0 1 2 3; do member $i; done
	seq -f '{"id": %.0f}' 1 "$n_storm" >"$work/storm"
	"$millrace" produce "$work/storm" --brokers="$BROKERS" --topic="$topic" --rate=$((n_storm / (n_acts - 2))) --once 2>"$work/produce.log" &
	producer=$!
	for ((act = 0; act < n_acts; act++)); do
		i=$((RANDOM % 4))
		case $((RANDOM % 3)) in
		0)
			acts+=" kill"
			kill -KILL "${pids[$i]}"
			wait "${pids[$i]}" 2>/dev/null
			member $i
			;;
		1)
			acts+=" end"
			end "${pids[$i]}" || return 1
			member $i
			;;
		2)
			acts+=" stop"
			kill -STOP "${pids[$i]}"
			sleep 1.3
			kill -CONT "${pids[$i]}"
			;;
		esac
		sleep 0.$((RANDOM % 7 + 2))
	done
	wait $producer
	until_true has_stored "$topic" "$n_storm"
	end "${pids[@]}"
	ok $? "$strategy: every member that was ended or outlived the storm: status 0"
	echo "# $topic:$acts; $(cat "$work/log.$topic".* | grep -c 'taken away') times a partition was taken away, $(cat "$work/log.$topic".* | grep -c 'has moved the position') batches were fenced"
	is_exact "$topic" "$n_storm" "$strategy: each message is stored exactly once"
}
part_storms() {
	storm storm-eager range
	storm storm-cooperative cooperative-sticky
}

# ---- what is read is stored before its partition goes ----

part_revoke() {
	topic given 4
	send given 1 400
	run log.given.1 given --batch.max_age=1h
	first=$pid
	until_true says $first open_rows 400
	is "$(n_stored given)" 0 "400 messages are read and not yet due"
	run log.given.2 given --batch.max_age=1h
	until_true has_stored given 400
	is $? 0 "when partitions are taken away, what was read of them is stored first"
	until_true grep -q 'reading from' "$work/log.given.2"
	end $first $pid
	is $? 0 "both end with status 0"
	ok "$(! grep -q 'has moved the position' "$work"/log.given.*; echo $?)" "and nobody was fenced"
	is_exact given 400 "each message once"

	topic dropped 4
	send dropped 1 400
	run log.dropped.1 dropped --source.name=dropped --batch.max_age=1h --source.revoke_wait=0s
	first=$pid
	until_true says $first open_rows 400
	run log.dropped.2 dropped --source.name=dropped --batch.max_age=1h --source.revoke_wait=0s
	until_true grep -q 'reading from' "$work/log.dropped.2"
	is "$(n_stored dropped)" 0 "with no time for it they are dropped"
	until_true eval '[ $(($(figure $first open_rows) + $(figure $pid open_rows))) = 400 ]'
	end $first $pid
	is_exact dropped 400 "and read again by their next owners, each once"
}

# ---- a zombie ----

part_zombie() {
	topic zombie 1
	send zombie 1 2000
	run log.zombie.1 zombie --target.table=slow --batch.max_rows=100
	zombie=$pid
	until_true eval '[ "$(tail -n 1 "$work/log.zombie.1" | grep -c "copying")" = 1 ] && [ "$(grep -c committed "$work/log.zombie.1")" -ge 2 ]'
	kill -STOP $zombie
	before=$(value 'SELECT count(*) FROM slow')
	run log.zombie.2 zombie --target.table=slow --batch.max_rows=100
	until_true eval '[ "$(grep -c committed "$work/log.zombie.2")" -ge 2 ]'
	is $? 0 "a member is stopped in mid-batch; after the session timeout another one goes on at row $((before + 1))"
	kill -CONT $zombie
	until_true grep -q 'taken away' "$work/log.zombie.1"
	ok "$(grep -q 'has moved the position' "$work/log.zombie.1"; echo $?)" "the zombie's batch is refused when it wakes up"
	until_true eval '[ "$(value "SELECT count(*) FROM slow")" -ge 2000 ]'
	end $zombie $pid
	is $? 0 "neither ends by itself"
	is_exact zombie 2000 "each message once" slow
}

# ---- transactions ----

part_transactions() {
	topic transactions 1
	cc -o "$work/transactions" "$here/transactions.c" -lrdkafka || exit 1
	run log.transactions transactions
	n=$("$work/transactions" "$BROKERS" transactions 10 -20 10 -5) # committed, aborted, …; the number of offsets
	until_true eval '[ "$(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = '"'transactions'"'")" = '"$n"' ]'
	is $? 0 "the position is behind the last transaction, an aborted one"
	until_true says $pid lag 0
	is $? 0 "and nothing waits"
	end $pid
	is_exact transactions 20 "what was committed is stored, once; what was aborted is not"
	is "$(value "SELECT string_agg(id, ' ' ORDER BY \"offset\") FROM messages WHERE topic = 'transactions'")" "$(echo $(seq 1 10) $(seq 31 40))" "in order"
	once log.transactions transactions --source.name=uncommitted --source.kafka.isolation.level=read_uncommitted
	is "$(n_stored transactions)" 65 "unless isolation.level = read_uncommitted is asked for"
}

# ---- a compacted topic ----

part_compacted() {
	"$lib/kafka" topic "$work/kafka" compacted 1 cleanup.policy=compact segment.ms=200 min.cleanable.dirty.ratio=0.01 delete.retention.ms=100
	for round in 1 2 3; do
		printf '%s\n' {0..9} | sed "s/.*/&:{\"id\": $round&}/" | kcat -P -b "$BROKERS" -t compacted -K:
		sleep 0.3
	done
	seq -f '{"id": 9%.0f}' 0 2 | kcat -P -b "$BROKERS" -t compacted -k last
	until_true eval '[ "$(kcat -C -e -q -b "$BROKERS" -t compacted -o beginning | wc -l)" = 13 ]' # the last value of each key, and what no cleaner may touch yet
	once log.compacted compacted
	is $? 0 "a compacted topic is read to its end"
	is_exact compacted "$(kcat -C -e -q -b "$BROKERS" -t compacted -o beginning | wc -l)" "what it still has, once"
	is "$(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = 'compacted'")" 33 "the position counts what is gone"
}

# ---- messages that are gone ----

part_gone() {
	topic gone 1
	send gone 1 100
	once log.gone gone
	"$lib/kafka" retain "$work/kafka" gone 1
	send gone 101 200
	"$lib/kafka" retain "$work/kafka" gone 150
	once log.gone gone
	is $? 3 "messages were deleted before they were read: status 3"
	like "$(tail -n 2 "$work/log.gone")" 'the database wants offset 100, the broker has 150 to 200 \(messages were deleted before they were read\)' "and the log says which"
	once log.gone gone --source.on_lost=skip
	is $? 0 "on_lost = skip: goes on"
	is "$(n_stored gone), $(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = 'gone'")" "150, 200" "with what is left"
	like "$(cat "$work/log.gone")" 'going on from its oldest message' "the log says so"
	run log.gone gone --source.on_lost=skip --metrics.interval=100ms
	until_true eval '[ "$(grep -c "reading from offset 200" "$work/log.gone")" = 1 ]'
	end $pid
}

# ---- a topic made anew ----

part_anew() {
	topic anew 1
	send anew 1 100
	once log.anew anew
	run log.anew.1 anew
	running=$pid
	until_true grep -q 'reading from' "$work/log.anew.1"
	"$lib/kafka" drop "$work/kafka" anew
	topic anew 1
	send anew 1001 1030
	status_of $running
	is $? 3 "the topic is made anew under a running ingester: status 3"
	once log.anew anew
	is $? 3 "and after another start"
	like "$(tail -n 3 "$work/log.anew")" 'was the topic made anew' "the log says what may have happened"
	once log.anew anew --source.on_lost=skip
	is $? 0 "on_lost = skip: goes on with the new one"
	is "$(n_stored anew), $(value "SELECT count(*) FROM messages WHERE topic = 'anew' AND id::int > 1000")" "130, 30" "all of it is read"
	run log.anew.2 anew --source.on_lost=skip
	running=$pid
	until_true grep -q 'reading from' "$work/log.anew.2"
	"$lib/kafka" drop "$work/kafka" anew
	topic anew 1
	send anew 2001 2010
	until_true has_stored anew 140
	is $? 0 "and so it does while it is running"
	end $running
	is $? 0 "with status 0"
	once log.anew anew --source.name=another
	"$lib/kafka" drop "$work/kafka" anew
	topic anew 1
	send anew 3001 3050
	once log.anew.3 anew --source.name=another
	is $? 3 "one that has more messages than the old one: status 3, too"
	like "$(cat "$work/log.anew.3")" 'was the topic made anew' "as the message before the position is another one"
	value "DELETE FROM messages WHERE topic = 'anew'" >/dev/null
	once log.anew.3 anew --source.name=another --source.on_lost=skip
	is "$?, $(n_stored anew)" "0, 50" "on_lost = skip: it is read from its beginning"
	once log.anew.3 anew --source.name=another
	is $? 0 "and the next start finds what it knows"
}

# ---- new partitions ----

part_growing() {
	topic growing 1
	send growing 1 50
	run log.growing growing --source.start=latest
	until_true grep -q 'reading from offset 50' "$work/log.growing"
	send growing 51 60
	until_true has_stored growing 10
	is $? 0 "start = latest: only what comes later"
	"$lib/kafka" partitions "$work/kafka" growing 3
	send growing 61 160
	until_true has_stored growing 110
	is $? 0 "new partitions are picked up, and read from their first message"
	end $pid
	is "$(value "SELECT count(DISTINCT id), min(id::int), count(DISTINCT partition) FROM messages WHERE topic = 'growing'")" "110|51|3" "each message once"
}

# ---- where to start ----

part_begin() {
	topic begun 2
	send begun 1 10
	sleep 1
	middle=$(date -u +%Y-%m-%dT%H:%M:%S.%6NZ)
	sleep 0.1
	send begun 11 30
	once log.begun begun --source.start=stored
	is $? 3 "start = stored: a partition without a position is an error"
	like "$(cat "$work/log.begun")" 'no position of stream "groups" is stored' "that the log names"
	is "$(value "SELECT count(*) FROM millrace.ingest_offsets WHERE topic = 'begun'")" 0 "and none is made"
	once log.begun begun --source.name=by-time --source.start="$middle"
	is "$?, $(value "SELECT count(*), min(id::int) FROM messages WHERE topic = 'begun'")" "0, 20|11" "start = a time: from the first message of that time"
	value "DELETE FROM messages WHERE topic = 'begun'" >/dev/null
	once log.begun begun --source.name=by-time --source.start=earliest
	is "$?, $(n_stored begun)" "0, 0" "a stored position is worth more than start"
	once log.begun begun --source.name=by-future --source.start=2100-01-01
	is "$?, $(n_stored begun)" "0, 0" "a time that no message has: from the end"
	once log.begun begun --source.name=by-time --source.start=stored
	is $? 0 "start = stored: goes on where there is a position"
	once log.begun begun
	is_exact begun 30 "start = earliest, the default: everything"
}

# ---- odd messages ----

part_odd() {
	topic odd 1
	printf '{"id": 1}' | kcat -P -b "$BROKERS" -t odd -k schlüssel -H source=web -H empty= -H 'tags=a' -H 'tags="b"' -H none -H bytes=$'\xff\x01' -H 'größe=1'
	printf '{"id": 2}' | kcat -P -b "$BROKERS" -t odd
	echo tombstone: | kcat -P -b "$BROKERS" -t odd -Z -K:
	python3 -c 'import sys; sys.stdout.write("{\"id\": \"" + "x" * 10_000_000 + "\"}")' >"$work/large"
	kcat -P -b "$BROKERS" -t odd -X message.max.bytes=20000000 "$work/large"
	printf '{"id": oops}' | kcat -P -b "$BROKERS" -t odd -H why=bad -H why=worse
	once log.odd odd
	is $? 0 "headers, a message without a value, one of 10 MB, a bad one"
	is "$(value "SELECT key, headers FROM messages WHERE topic = 'odd' AND id = '1'")" \
		'schlüssel|{"none": null, "tags": ["a", "\"b\""], "bytes": "\\xff01", "empty": "", "source": "web", "größe": "1"}' "headers are one JSON object"
	is "$(value "SELECT headers IS NULL, key IS NULL, now() - sent < '1 min' FROM messages WHERE topic = 'odd' AND id = '2'")" "t|t|t" "a message without any has none; it has a time"
	is "$(value "SELECT length(id) FROM messages WHERE topic = 'odd' AND length(id) > 2")" 10000000 "the large one is stored"
	is "$(value "SELECT key, octet_length(payload), reason, headers FROM millrace.dead_letters WHERE topic = 'odd' ORDER BY \"offset\"" | sed 's/not JSON:.*|/not JSON|/')" \
		'\x746f6d6273746f6e65||tombstone: no value|
|12|not JSON|{"why": ["bad", "worse"]}' "the others are dead letters, with their headers"
}

# ---- the database is slower, or away ----

part_held() {
	local held=3
	[ -z "${MILLRACE_SANITIZED:-}" ] || held=10
	topic held 4
	run log.held held --source.kafka.max.poll.interval.ms=${held}000
	until_true eval '[ "$(grep -c "reading from" "$work/log.held")" = 4 ]'
	psql -qX -c "BEGIN" -c "LOCK TABLE messages" -c "SELECT pg_sleep($((2 * held + 1)))" -c "COMMIT" >/dev/null &
	locker=$!
	until_true eval '[ "$(value "SELECT count(*) FROM pg_locks WHERE relation = '"'messages'::regclass"' AND mode = '"'AccessExclusiveLock'"' AND granted")" = 1 ]'
	send held 1 30000
	wait $locker
	until_true has_stored held 30000
	is $? 0 "a table that is locked for longer than max.poll.interval.ms"
	ok "$(! grep -q 'taken away' "$work/log.held"; echo $?)" "does not cost the member its partitions"
	end $pid
	is_exact held 30000 "each message once"
}

part_paused() {
	topic paused 2
	run log.paused.1 paused --source.revoke_wait=100ms --batch.max_rows=100
	first=$pid
	until_true eval '[ "$(grep -c "reading from" "$work/log.paused.1")" = 2 ]'
	psql -qX -c "BEGIN" -c "LOCK TABLE messages IN SHARE MODE" -c "SELECT pg_sleep(600)" >/dev/null 2>&1 &
	locker=$!
	until_true eval '[ "$(value "SELECT count(*) FROM pg_locks WHERE relation = '"'messages'::regclass"' AND mode = '"'ShareLock'"' AND granted")" = 1 ]'
	send paused 1 4000
	until_true eval '[ "$(value "SELECT count(*) FROM pg_locks WHERE relation = '"'messages'::regclass"' AND NOT granted")" = 1 ]'
	sleep 2 # the reader waits for longer than it goes on fetching
	run log.paused.2 paused
	until_true grep -q 'taken away' "$work/log.paused.1"
	value "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'ShareLock' AND granted" >/dev/null
	wait $locker
	until_true has_stored paused 4000
	end $pid
	send paused 4001 5000
	until_true has_stored paused 5000
	is $? 0 "partitions that are taken away while nothing is fetched are read when they come back"
	end $first
	is_exact paused 5000 "each message once"
}

# ---- no broker ----

part_lonely() {
	topic lonely 1
	run log.lonely lonely --source.reconnect=2s
	until_true grep -q 'reading from' "$work/log.lonely"
	"$lib/kafka" kill "$work/kafka"
	status_of $pid
	is $? 3 "no broker for longer than source.reconnect: status 3"
	like "$(cat "$work/log.lonely")" 'no broker of .* answers within source.reconnect' "the log says so"
	once log.lonely lonely
	is $? 3 "and at the start"
}

# All parts, or those that are named.
[ $# -gt 0 ] || set -- storms revoke zombie transactions compacted gone anew growing begin odd held paused lonely
for part; do "part_$part"; done
done_testing
