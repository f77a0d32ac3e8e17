#!/usr/bin/env bash
# Events sharded by partition of a topic over three servers, each with an ingester of source.partitions, and a fourth that reads them all:
# federated aggregates beside SQL over all that the topic has, while each server is killed once.
. "$(dirname "$0")/../../lib/scenario.sh"
nodes="1 2 3"
part=([1]=0-1 [2]=2,3 [3]=4-5)
declare -A port running
trap 'for n in $nodes; do "$lib/cluster" stop "$work/node$n" immediate; done; scenario_end' EXIT
start_kafka
"$lib/kafka" topic "$work/kafka" shop 6
for n in $nodes; do "$lib/cluster" start "$work/node$n" autovacuum=off shared_buffers=32MB || exit 1; done &
start_cluster
wait $!
for n in $nodes; do
	port[$n]=$(. "$work/node$n/env" && echo "$PGPORT")
	"$lib/../../ingest/millrace" --version >/dev/null || exit 1
	psql -AtXqd postgres -p "${port[$n]}" -c "CREATE ROLE reader LOGIN PASSWORD 'federated'" -f "$here/schema.sql" -c "GRANT USAGE ON SCHEMA millrace TO reader" -c "GRANT SELECT ON counts_partial, trend_partial, visits_partial, events TO reader" >"$work/out" 2>&1 || cat "$work/out"
done
psql -AtXqv ON_ERROR_STOP=1 -f "$here/schema.sql" >"$work/out" 2>&1
is $? 0 "the same schema on three nodes and here"
at() { psql -AtXq -p "${port[$1]}" "${@:2}"; }

# Events of all kinds: as keys of the topic customers, some of them NULL, so that a customer's events are on one node but an item's on all
cat >"$work/produce.py" <<'PY'
import json, random, sys, time
rng, first, count, pause = random.Random(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), float(*sys.argv[4:])
for i in range(first, first + count):
    if pause and i % 50 == 0:
        sys.stdout.flush()
        time.sleep(50 * pause)
    customer = None if i % 97 == 0 else "c%d" % rng.randrange(400)
    minutes = 60 + i / 6 - (rng.random() * 30 if i % 50 == 0 else 0)  # some come late, but not too late
    at = None if i % 1009 == 0 else "2024-03-%02dT%02d:%02d:%02d.%03dZ" % (1 + minutes // 1440, minutes // 60 % 24, minutes % 60, i % 60, i % 1000)
    event = {"id": i, "at": at, "customer": customer, "item": None if i % 83 == 0 else rng.randrange(20), "amount": None if i % 71 == 0 else rng.randrange(10000) / 100, "weight": rng.random()}
    print("%s\t%s" % (customer if i % 3 else "k%d" % i, json.dumps(event)))
PY
produce() { python3 "$work/produce.py" "$@" | kcat -b "$BROKERS" -t shop -P -K '	' -X partitioner=murmur2_random -X linger.ms=5; }
for n in $nodes; do
	printf '%s\n' '[source]' 'type = kafka' "brokers = $BROKERS" 'topic = shop' 'group = shards' 'start = 2024-01-01' "partitions = ${part[$n]}" 'format = json' "kafka.topic.metadata.refresh.interval.ms = $([ $n = 3 ] && echo -1 || echo 1000)" \
		'[target]' "connection = host=127.0.0.1 port=${port[$n]} dbname=postgres user=postgres" 'table = events' '[batch]' 'max_age = 50ms' 'max_rows = 500' >"$work/node$n.ini"
done
ingest() { millrace run "$work/node$1.ini" >"$work/ingest$1.log" 2>&1 & running[$1]=$!; }

# What it says of a list that is wrong
refused() { millrace check "$work/node1.ini" --source.partitions="$1" 2>&1 | grep -o 'source.partitions.*\|"[^"]*" is .*\|topic .*'; }
is "$(refused 0-6)" 'topic "shop" has no partition 6: it has 0 to 5' "a partition that the topic does not have"
is "$(for list in x 1- 3-1 1,,2 1,2x -1 99999999999 1,; do refused "$list"; done | grep -c 'is no list of partitions: write 0-3,7')" 8 "what is no list"
is "$(refused 1,0) $(refused 1-3,3)" '"1,0" is not in ascending order: write 0-3,7 "1-3,3" is not in ascending order: write 0-3,7' "a partition twice, or out of order"

# The database that reads them all
psql -AtXqv ON_ERROR_STOP=1 >"$work/out" 2>&1 <<SQL
CREATE EXTENSION postgres_fdw;
$(for n in $nodes; do echo "CREATE SERVER node$n FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '${port[$n]}', dbname 'postgres');
	CREATE USER MAPPING FOR CURRENT_USER SERVER node$n OPTIONS (user 'reader', password 'federated');
	CREATE FOREIGN TABLE events$n (id bigint, at timestamptz, customer text, item bigint, amount numeric(10,2), weight float8) SERVER node$n OPTIONS (table_name 'events');"; done)
SELECT millrace.create_federated_aggregate(a || '_everywhere', a, '{node1,node2,node3}') FROM unnest('{counts,trend,visits,per_day}'::text[]) a;
CREATE VIEW all_events AS TABLE events1 UNION ALL TABLE events2 UNION ALL TABLE events3;
SQL
is "$? $(cat "$work/out")" "0 " "federated aggregates, read by a role that may read no more than the states"

# Events flow; each node is killed and started again
for n in $nodes; do ingest $n; done
produce 1 1 3000
stored() { [ "$(for n in $nodes; do at $n -c 'SELECT count(*) FROM events'; done | awk '{ s += $1 } END { print s }')" = "$1" ]; }
until_true stored 3000
like "$(value "SELECT count(*), sum(n) FROM counts_everywhere")" '^[1-9][0-9]+\|[0-9]+$' "read while they come"
again() { "$lib/cluster" again "$work/node$1" 2>/dev/null; }
rows() { at "$1" -c "SELECT count(*) FROM events"; }
more() { [ "$(rows "$1")" -gt "$2" ]; }
export PGOPTIONS="-c client_min_messages=warning"
first=3001
for n in $nodes; do
	before=$(rows $n)
	(produce $n $first 2500 0.001) & # not all at once: they still come when the node is killed
	producer=$!
	first=$((first + 2500))
	until_true more $n "$before"
	at_kill=$(rows $n)
	kill -KILL "$(head -1 "$work/node$n/data/postmaster.pid")"
	until_true eval "! at $n -c 'SELECT 1' >/dev/null 2>&1"
	answer=$(value "SELECT sum(n) FROM counts_everywhere" 2>&1)
	like "$answer" "could not connect to server \"node$n\"" "without node $n there is no partial answer, but its name"
	until_true again $n
	wait $producer
	until_true stored $((first - 1))
	[ "$(rows $n)" -gt "$at_kill" ]; ok $? "events came when node $n was killed: it had $at_kill rows, and has $(rows $n)"
	like "$(value "SELECT sum(n) FROM counts_everywhere" 2>&1)" '^[0-9]+$' "node $n is back"
done
until_true stored 10500
like "$(cat "$work"/ingest*.log)" 'of which source.partitions = 2,3 reads 2' "each ingester says what it reads of the topic"
is "$(for n in $nodes; do at $n -c "SELECT string_agg(partition::text, ',' ORDER BY partition) FROM millrace.ingest_offsets"; done | paste -sd ' ')" "0,1 2,3 4,5" "and has read that"

# All of the topic, once, and every aggregate as over all rows
kcat -b "$BROKERS" -t shop -C -o beginning -e -q 2>/dev/null >"$work/topic"
psql -AtXqv ON_ERROR_STOP=1 >"$work/out" 2>&1 <<SQL
CREATE SCHEMA truth;
CREATE UNLOGGED TABLE truth.message (m jsonb);
\copy truth.message FROM '$work/topic' CSV QUOTE E'\x01' DELIMITER E'\x02'
CREATE TABLE truth.events AS SELECT (m->>'id')::bigint AS id, (m->>'at')::timestamptz AS at, m->>'customer' AS customer, (m->>'item')::bigint AS item, (m->>'amount')::numeric(10,2) AS amount, (m->>'weight')::float8 AS weight FROM truth.message;
SET search_path = truth, public;
$(for a in counts trend visits per_day; do echo "SELECT format('CREATE TABLE truth.%I AS %s', name, query) FROM millrace.stream WHERE name = '$a' \\gexec"; done)
SQL
is "$? $(cat "$work/out")" "0 " "the queries over all messages of the topic"
is "$(value "SELECT count(*), count(DISTINCT id), (SELECT count(*) FROM (TABLE all_events EXCEPT ALL TABLE truth.events) d), (SELECT count(*) FROM truth.events) FROM all_events")" "10500|10500|0|10500" "the nodes have each message once"
for a in counts trend visits per_day; do
	is "$(value "SELECT count(*) FROM ((SELECT to_jsonb(e) - 'final' FROM ${a}_everywhere e EXCEPT ALL SELECT to_jsonb(t) FROM truth.$a t) UNION ALL (SELECT to_jsonb(t) FROM truth.$a t EXCEPT ALL SELECT to_jsonb(e) - 'final' FROM ${a}_everywhere e)) d") $(value "SELECT count(*) > 1 FROM truth.$a")" \
		"0 t" "$a of all nodes equals SQL over all messages"
done
is "$(for n in $nodes; do at $n -c "SELECT count(*) FROM unnest('{counts,trend,visits,per_day}'::text[]) a, millrace.verify(a)"; done | paste -sd ' ')" "0 0 0" "and each node's own are right"

# Finality
for n in $nodes; do at $n -c 'CALL millrace.maintain()'; done
closed() { at "$1" -c "SELECT closed_to FROM millrace.streams WHERE name = 'counts'"; }
is "$(value "SELECT max(window_start) + interval '10 minutes' <= least('$(closed 1)'::timestamptz, '$(closed 2)', '$(closed 3)'), count(*) > 100 FROM counts_everywhere WHERE final")" "t|t" "final is what is so on every node"
is "$(value "SELECT count(*) FROM counts_everywhere WHERE NOT final AND window_start + interval '10 minutes' <= least('$(closed 1)'::timestamptz, '$(closed 2)', '$(closed 3)')")" 0 "all of it"

# A model of all nodes' ratings, trained and served where they are read
is "$(value "SELECT users = (SELECT count(DISTINCT customer) FROM truth.events WHERE item IS NOT NULL AND customer IS NOT NULL), items FROM millrace.train_als('shop', 'SELECT customer, item, count(*) FROM all_events WHERE customer IS NOT NULL AND item IS NOT NULL GROUP BY 1, 2', rank => 4, iterations => 3)")" \
	"t|20" "a model learns from the rows of all nodes"
is "$(value "SELECT count(*) FROM millrace.recommend_top_k('shop', 'c1', 3, exclude_seen => false)")" 3 "and is served here"

# pg_dump of what reads, and what the topic gets later
pg_dump -Fc -f "$work/dump" postgres && createdb restored && pg_restore -d restored "$work/dump" >"$work/out" 2>&1
is "$? $(psql -AtXqd restored -c "SELECT count(*) FROM counts_everywhere" -c "SELECT string_agg(name, ' ' ORDER BY name) FROM millrace.federated_aggregates")" \
	"0 $(value "SELECT count(*) FROM counts_everywhere")
counts_everywhere per_day_everywhere trend_everywhere visits_everywhere" "dumped and restored, it reads the same"
psql -Xqd restored -c "CALL millrace.maintain()" -c "SET client_min_messages = warning" -c "DROP EXTENSION millrace CASCADE" >"$work/out" 2>&1
is "$? $(cat "$work/out") $(psql -AtXqd restored -c "SELECT count(*) FROM pg_class WHERE relname ~ '_(everywhere|partial|states?_|info_)'")" "0  0" "maintained once, it goes with the extension"
"$lib/kafka" partitions "$work/kafka" shop 7 >"$work/out" 2>&1
until_true grep -q 'warning.*topic "shop" has 7 partitions, of which source.partitions = 0-1 reads 2' "$work/ingest1.log"
is $? 0 "a partition that comes is told, and not read"
until_true grep -q 'topic "shop" has 7 partitions' "$work/ingest2.log"
is "$(grep -c 'topic "shop" has 7 partitions' "$work/ingest3.log")" 0 "nor asked for, where nothing of the topic is asked again"
for n in $nodes; do kill "${running[$n]}"; done
for n in $nodes; do wait "${running[$n]}" 2>/dev/null; echo $?; done >"$work/out"
is "$(paste -sd ' ' "$work/out")" "0 0 0" "the ingesters end"
is "$(value "DROP EXTENSION millrace CASCADE" 2>&1; at 1 -c "DROP EXTENSION millrace CASCADE" 2>&1)$(left="SELECT count(*) FROM pg_class WHERE relname ~ '_(everywhere|partial|states?_|info_)'"; value "$left"; at 1 -c "$left")" "0
0" "the extension takes along what it has made"
done_testing
