#!/usr/bin/env bash
# millrace produce: what it sends arrives as it was in the file, changed as asked, at the pace that was asked for; the ingester
# takes each message exactly once, and the damaged ones as dead letters.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
start_cluster
start_kafka

produce() { "$millrace" produce "$@" 2>"$work/log"; } # its status is the answer
to_topic() { local topic=$1; shift; produce --brokers="$BROKERS" --topic="$topic" "$@"; }
in_topic() { kcat -C -e -q -b "$BROKERS" -t "$1" -o beginning "${@:2}"; }
summary() { sed -n 's/.* info \(done\|stopped by a signal\): //p' "$work/log" | sed 's/ in [0-9.]* s, seed .*//'; }
ingest() { "$millrace" run "$work/events.ini" --once --source.topic="$1" --source.name="$1" >"$work/ingest.log" 2>&1; }

"$here/events.py" 5000 >"$work/events.csv"
psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE TABLE file (id text, event_time timestamptz, kind text, note text, price numeric, code text);
CREATE TABLE events (id text, event_time timestamptz NOT NULL, kind text, note text, price numeric, code text,
	kafka_key text, kafka_time timestamptz, kafka_partition int, kafka_offset bigint);
SQL
psql -qX -c "\\copy file FROM '$work/events.csv' CSV HEADER"
cat >"$work/events.ini" <<INI
[source]
type = kafka
brokers = $BROKERS
topic = whole

[target]
table = events

[columns]
note = note, with a comma
kafka_key = \$key
kafka_time = \$timestamp
kafka_partition = \$partition
kafka_offset = \$offset
INI

# ---- command line ----

produce >/dev/null
is $? 2 "no file: status 2"
produce "$work/events.csv" --rate=fast --burts=3 --times=now --brokers=x --sample=200% --kafka.acks
is $? 2 "wrong values: status 2"
is "$(sed 's/^command line: //' "$work/log")" "option \"--kafka.acks\" needs a value: --kafka.acks=VALUE
\"fast\" is no value of --rate=NUMBER|max
unknown option \"--burts\"; did you mean \"--burst\"?
\"200%\" is no value of --sample=N|PERCENT%
--brokers and --topic belong together
--times and --late need --time=COLUMN" "each of them is told"
produce "$work/none.csv" --once
is $? 3 "a file that is not there: status 3"
produce "$work/events.csv" --once --id=nothing
is $? 3 "a column that is not there: status 3"
like "$(cat "$work/log")" 'there is no column "nothing"' "with its name"
[ "$("$millrace" produce --help | grep -c '^  --')" -ge 30 ]
ok $? "--help lists the options"

# ---- to a file and standard output ----

produce "$work/events.csv" --once --rate=max >"$work/out"
cmp -s "$work/events.csv" "$work/out"
ok $? "CSV to standard output: the same bytes"
gzip -k "$work/events.csv"
produce - --once --rate=max <"$work/events.csv.gz" >"$work/out"
cmp -s "$work/events.csv" "$work/out"
ok $? "gzipped, from standard input: the same"
produce "$work/events.csv" --once --rate=max --output="$work/whole.csv" && produce "$work/events.csv" --rate=max --count=3 --output="$work/whole.csv"
{ cat "$work/events.csv"; produce "$work/events.csv" --rate=max --count=3 | sed 1d; } | cmp -s - "$work/whole.csv"
ok $? "to a file: appended, the header only once"
produce "$work/events.csv" --rate=max --count=5001 --output-format=json >"$work/out"
is "$(sed -n '1p;5001p' "$work/out" | uniq | wc -l)" 1 "the file begins anew until --count is reached"
printf '{"id": 1.10, "user": {"id": 7, "at": "2024-03-01T10:00:00+02:00"}, "big": 12345678901234567890123, "list": [{"id": 3}]}\n{ }\n' >"$work/in.json"
is "$(produce "$work/in.json" --once --rate=max --id=user.id --time=user.at --times=-1d --first-id=500)" \
	'{"id": 1.10, "user": {"id": 500, "at": "2024-02-29T08:00:00.000000Z"}, "big": 12345678901234567890123, "list": [{"id": 3}]}
{ "user.id": 501}' "JSON keeps its bytes but for what is changed"
cat >"$work/nan.json" <<'JSON'
{"id": 1, "price": NaN, "who": NaN, "note": "NaN, \" -Infinity", "a": [NaN, {"id": Infinity}], "at": "2024-01-01T00:00:00Z"}
{"id": NaN, "price":-Infinity , "who": "x", "at": "2024-01-01T00:00:01Z"}
{"who":Infinity}
{"id": 4, "who": NaNs}
{"id": 5, NaN: 1}
JSON
is "$(produce "$work/nan.json" --once --rate=max --id=id --first-id=7 --time=at --times=1h)" \
	'{"id": 7, "price": NaN, "who": NaN, "note": "NaN, \" -Infinity", "a": [NaN, {"id": Infinity}], "at": "2024-01-01T01:00:00.000000Z"}
{"id": 8, "price":-Infinity , "who": "x", "at": "2024-01-01T01:00:01.000000Z"}
{"who":Infinity, "id": 9}' "NaN and Infinity, as Python writes them, stay as they are; elsewhere they are a fault"
like "$(cat "$work/log")" '2 records could not be taken apart' "which is told"
is "$(printf 'n,t\n007,1709287200\n1e5,1709287200123\n,\n"",x\n' | produce - --once --rate=max --output-format=json --time=t --times=1h)" \
	'{"n": "007", "t": 1709290800}
{"n": 1e5, "t": 1709290800123}
{"n": null, "t": null}
{"n": "", "t": "x"}' "numbers, times in seconds and milliseconds, NULL and empty text"

# ---- seeds and samples ----

chances=(--once --rate=max --output-format=json --sample=10% --shuffle --id=id:uuid --time=event_time --times=365d --late=20%:1h --duplicates=10% --bad=5%)
produce "$work/events.csv" "${chances[@]}" --seed=1 >"$work/a"
produce "$work/events.csv" "${chances[@]}" --seed=1 >"$work/b"
produce "$work/events.csv" "${chances[@]}" --seed=2 >"$work/c"
cmp -s "$work/a" "$work/b"
ok $? "the same seed repeats a run"
cmp -s "$work/a" "$work/c"
is $? 1 "another does not"
produce "$work/events.csv" --once --rate=max --sample=500 --stratify=kind --seed=7 --output="$work/sample.csv"
psql -qX -c "CREATE TABLE sample (LIKE file)" -c "\\copy sample FROM '$work/sample.csv' CSV HEADER"
is "$(value "SELECT kind, count(*) FROM sample GROUP BY 1 ORDER BY 1")" "a|300
b|150
c|45
d|5" "a stratified sample keeps each kind's share"
is "$(value "SELECT count(*) FROM (SELECT * FROM sample EXCEPT ALL SELECT * FROM file) s")" 0 "and takes no row twice"
is "$(value "SELECT bool_and(n > 50) FROM (SELECT count(*) AS n FROM sample GROUP BY id::int / 1000) s")" t "from everywhere"

# ---- to Kafka, and through the ingester ----

to_topic whole "$work/events.csv" --once --rate=max
is $? 3 "a topic that is not there: status 3"
like "$(cat "$work/log")" 'topic "whole" at .*: Broker: Unknown topic or partition; --create-topic creates it' "with what would help"
produce "$work/events.csv" --to="$work/events.ini" --once --rate=max --create-topic --partitions=4 --retention=2h --key=kind
is $? 0 "to what the ingester reads, the topic is created"
is "$(summary)" "5000 messages (0 late, 0 duplicates, 0 bad)" "the summary counts"
describe() { CLASSPATH="${MILLRACE_CACHE:-$lib/../../build}/kafka/libs/*" java -Dlog4j.configuration="file:$work/kafka/log4j.properties" org.apache.kafka.tools.TopicCommand --bootstrap-server "$BROKERS" --describe --topic "$1"; }
like "$(describe whole)" 'PartitionCount: 4.*ReplicationFactor: 1.*retention.ms=7200000' "with partitions and retention as asked"
ingest whole
is "$(value "SELECT count(*) FROM ((SELECT id, event_time, kind, note, price, code FROM events EXCEPT ALL TABLE file) UNION ALL (TABLE file EXCEPT ALL SELECT id, event_time, kind, note, price, code FROM events)) d")" 0 \
	"what the ingester stores from there is what psql reads from the file"
is "$(value "SELECT count(*), count(DISTINCT (kafka_key, kafka_partition)), bool_and(kafka_key = kind) FROM events")" "5000|4|t" "the key is the column, and decides the partition"
is "$(value "SELECT count(*) FROM millrace.dead_letters")" 0 "no dead letters"

to_topic nan "$work/nan.json" --once --rate=max --create-topic --key=who
is "$(in_topic nan -f '%k|%s\n')" "$(sed 's/^/|/; 2s/^/x/; 3q' "$work/nan.json")" "NaN is no key; the message keeps its bytes"

value "TRUNCATE events"
to_topic faulty "$work/events.csv" --create-topic --rate=max --count=20000 --seed=11 --id=id:uuid --key=id --time=event_time --times=now --late=5%:2h --duplicates=2% --bad=1%
[[ $(summary) =~ ^20000\ messages\ \(([0-9]+)\ late,\ ([0-9]+)\ duplicates,\ ([0-9]+)\ bad\)$ ]]
ok $? "endless, up to --count: $(summary)"
late=${BASH_REMATCH[1]} duplicates=${BASH_REMATCH[2]} bad=${BASH_REMATCH[3]}
[ "$late" -gt 800 ] && [ "$late" -lt 1200 ] && [ "$duplicates" -gt 300 ] && [ "$duplicates" -lt 500 ] && [ "$bad" -gt 140 ] && [ "$bad" -lt 260 ]
ok $? "late ones, duplicates and damaged ones in the shares asked for"
ingest faulty
is "$(value "SELECT count(*), (SELECT count(*) FROM millrace.dead_letters WHERE stage = 'decode') FROM events")" "$((20000 - bad))|$bad" "each damaged message is a dead letter, each other a row"
is "$(value "SELECT count(DISTINCT id), bool_and(id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' AND id = kafka_key) FROM events")" "$((20000 - bad - duplicates))|t" \
	"new ids are unique but for the duplicates"
is "$(value "SELECT bool_and(event_time BETWEEN kafka_time - interval '2 hours 1 minute' AND kafka_time + interval '1 second') FROM events")" t "event times are those of sending, or up to two hours before"
# Of the late ones some are damaged or sent twice, and a few are less late than the machine is slow.
n_late=$(value "SELECT count(DISTINCT id) FROM events WHERE event_time < kafka_time - interval '1 minute'")
[ "$n_late" -gt $((late * 9 / 10)) ] && [ "$n_late" -le "$late" ]
ok $? "$late of them are late"

# ---- a simulated shop ----

shop() { produce --simulate=shop "$@"; }
shop --past=5 --once --output-format=csv --key=user "$work/events.csv" >/dev/null
is "$? $(cat "$work/log")" '2 command line: "5" is no value of --past=NUMBER:DURATION
command line: --create-topic, --key and --kafka.* belong to --topic
command line: either files or --simulate
command line: simulated events are JSON
command line: --once ends with the files, or with --past=NUMBER:DURATION
command line: simulated events have no "user"' "what does not go with a simulation is told"
began=$(date +%s)
shop --past=4000:3d --count=4100 --rate=max --seed=5 --first-id=100 >"$work/shop.json"
ended=$(date +%s)
python3 - "$work/shop.json" "$began" "$ended" <<'PY' >"$work/seen"
import collections, datetime, json, math, sys
lines = open(sys.argv[1]).read().splitlines()
events = [json.loads(line) for line in lines]
times = [datetime.datetime.fromisoformat(e["event_time"].replace("Z", "+00:00")).timestamp() for e in events]
began, ended = float(sys.argv[2]), float(sys.argv[3]) + 1
missing = lambda value: isinstance(value, float) and math.isnan(value)
print([json.dumps(e) for e in events] == lines, [e["id"] for e in events] == list(range(100, 4200)))
print(times == sorted(times), began - 3 * 86400 <= times[0] <= ended - 3 * 86400 + 60, all(began <= t <= ended for t in times[4000:]),
    all(times[0] <= t < ended for t in times), times[3999] > began - 1200)
print({e["event_type"] for e in events} == {"view", "cart", "purchase"}, {0 if missing(e["category_code"]) else e["category_code"].count(".") + 1 for e in events} == {0, 1, 2, 3},
    0.02 < sum(missing(e["category_code"]) for e in events) / 4100 < 0.3, 0.02 < sum(missing(e["brand"]) for e in events) / 4100 < 0.3)
products = collections.defaultdict(set)
for e in events:
    products[e["product_id"]].add((e["category_id"], str(e["category_code"]), str(e["brand"]), e["price"]))
print(len(products) > 300, all(len(about) == 1 for about in products.values()), all(e["price"] > 0 for e in events))
steps = collections.defaultdict(list)
for e in events:
    steps[e["user_session"]].append((e["user_id"], e["event_type"], e["product_id"]))
# Who puts something into the cart or purchases it has looked at it before in this session.
print(len({s[0][0] for s in steps.values()}) > 300, all(len({u for u, _, _ in s}) == 1 for s in steps.values()),
    all(kind == "view" or (user, "view", product) in s[:i] for s in steps.values() for i, (user, kind, product) in enumerate(s)))
PY
is "$(cat "$work/seen")" "True True
True True True True True
True True True True
True True True
True True True" "JSON as Python writes it, with NaN; a past, then events of now; products with one category, brand and price; sessions"
shop --past=100:3d --once --seed=5 | sed 's/"event_time": "[^"]*"//' >"$work/a"
shop --past=100:5d --once --seed=5 | sed 's/"event_time": "[^"]*"//' >"$work/b"
cmp -s "$work/a" "$work/b" && [ "$(wc -l <"$work/a")" = 100 ]
ok $? "the same seed repeats its events, at other times; --once ends with the past"
shop --past=3000:1h --once --seed=6 | grep -o '"product_id.*"price": [0-9.]*' | sort -u >"$work/b"
is "$(grep -o '"product_id.*"price": [0-9.]*' "$work/shop.json" | sort -u | comm -12 - "$work/b" | wc -l)" \
	"$(grep -o '"product_id": [0-9]*' "$work/shop.json" | sort -u | comm -12 - <(grep -o '"product_id": [0-9]*' "$work/b" | sort -u) | wc -l)" "another seed sells the same products"
shop --brokers="$BROKERS" --topic=shop --create-topic --partitions=2 --past=20000:2d --once --seed=11 --key=user_id --late=5%:2h --duplicates=2% --bad=1% --id=id
like "$(summary)" '^20[0-9]{3} messages \((9|10)[0-9]{2} late, [34][0-9]{2} duplicates, [12][0-9]{2} bad\)$' "into a topic with key, late ones, duplicates and damaged ones: $(summary)"
is "$(in_topic shop -f '%k %s\n' | awk '/brand": NaN/ { n++ } { split($0, a, "user_id\": "); split(a[2], b, ","); if (/"}$/ && b[1] ~ /^[0-9]+$/ && b[1] != $1) wrong++ } END { print (n > 100), wrong + 0 }')" "1 0" "the key is the user"

# ---- a table for a sample ----

# Makes the table that is proposed for a file, and brings the file in with the proposed [columns].
by_suggestion() { # by_suggestion FILE TABLE FORMAT
	"$millrace" check --suggest-table "$1" --table="$2" >"$work/suggested.sql" || return 1
	psql -qAtX -v ON_ERROR_STOP=1 -f "$work/suggested.sql" >/dev/null || return 1
	{
		printf '[source]\ntype = file\npath = %s\nformat = %s\n[target]\ntable = %s\n' "$1" "$3" "$2"
		sed -n '/^-- \[columns\]/,$s/^-- //p' "$work/suggested.sql"
	} >"$work/suggested.ini"
	"$millrace" run "$work/suggested.ini" --once 2>"$work/log"
}
types() { value "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$1'::regclass AND attnum > 0"; }

by_suggestion "$work/events.csv" from_csv csv
is $? 0 "the table proposed for CSV takes the CSV"
is "$(types from_csv)" "id bigint, event_time timestamp with time zone not null, kind text, note_with_a_comma text, price numeric, code text" "with the types it needs; a code that begins with 0 is text"
is "$(value "SELECT count(*) FROM ((SELECT id::text, event_time, kind, note_with_a_comma, price, code FROM from_csv EXCEPT ALL TABLE file) UNION ALL (TABLE file EXCEPT ALL SELECT id::text, event_time, kind, note_with_a_comma, price, code FROM from_csv)) d")" 0 \
	"and all rows"
is "$(value "SELECT partition_interval FROM millrace.sources WHERE source = 'from_csv'::regclass")" "1 day" "it is partitioned by the event time, and a source"
cat >"$work/sample.json" <<'JSON'
{"id": 1, "user": {"ID": 12345678901, "tags": ["a", "b"]}, "order": true, "price": 12.50, "session": "74fd9bb4-5d2a-4d7c-9c65-0d7a6a3d3a3e", "day": "2024-03-01", "at": "2024-03-01T10:00:00Z", "code": "12", "ratio": 1e-3, "any": {"x": 1}}
{"id": 2, "user": {"ID": 7, "tags": []}, "order": false, "price": 3, "session": "74fd9bb4-5d2a-4d7c-9c65-0d7a6a3d3a3f", "day": "2024-03-02", "at": "2024-03-01 10:00:01", "code": "7", "ratio": 2, "any": 5, "note": null}
JSON
by_suggestion "$work/sample.json" from_json json
is $? 0 "the table proposed for JSON takes the JSON"
is "$(types from_json)" 'id bigint, user_id bigint, user_tags jsonb, order boolean, price numeric, session uuid, day date, at timestamp with time zone not null, code text, ratio double precision, any jsonb, note text' \
	"with types and nested values as columns"
is "$(value "SELECT * FROM from_json ORDER BY id")" '1|12345678901|["a", "b"]|t|12.50|74fd9bb4-5d2a-4d7c-9c65-0d7a6a3d3a3e|2024-03-01|2024-03-01 10:00:00+00|12|0.001|{"x": 1}|
2|7|[]|f|3|74fd9bb4-5d2a-4d7c-9c65-0d7a6a3d3a3f|2024-03-02|2024-03-01 10:00:01+00|7|2|5|' "and all rows"

printf 'ID;"a,b";$x\n1;2;3\n' >"$work/bars.csv"
is "$("$millrace" check --suggest-table "$work/bars.csv" --table='shop."T"' 2>&1)" "-- Proposed by millrace from 1 records of $work/bars.csv.
CREATE TABLE shop.\"T\" (
	id bigint,
	a_b bigint
);
-- Left out, because no line of [columns] can name it: \"\$x\"

-- In the ingester's file:
-- [csv]
-- delimiter = ;
-- [columns]
-- a_b = a,b" "the delimiter is found out, the table is named as in SQL, and what [columns] cannot name is told"
printf '[\n{"a": 1},\n{"a": "\377"},\n{"a": 2}\n]\n' | "$millrace" check --suggest-table - >"$work/suggested.sql" 2>"$work/log"
is "$? $(head -n 1 "$work/suggested.sql")" "0 -- Proposed by millrace from 1 records of standard input; 4 could not be read." "what is no JSON object on one line is counted"
"$millrace" check --suggest-table "$millrace" >"$work/suggested.sql" 2>"$work/log"
is "$? $(cat "$work/suggested.sql")" "3 " "for a file that is no text nothing is proposed"
{ printf 'a,b\n1,"stray\n'; yes '2,text' | head -n 6000000; } >"$work/stray.csv"
timeout 60 "$millrace" produce "$work/stray.csv" --once --rate=max --output="$work/strayed.csv" >"$work/log" 2>&1
is "$? $(wc -l <"$work/strayed.csv")" "0 6000001" "a quote that is never closed costs its line, and little time"
rm "$work/stray.csv" "$work/strayed.csv"

# ---- rows are shown ----

ingest whole # so that a position is stored
printf '{"id": 1, "event_time": "2024-03-01", "note": "ignored"}\n{"id": oops}\n' | produce - --once --rate=max --brokers="$BROKERS" --topic=few --create-topic
value "ALTER TABLE events ALTER price SET DEFAULT 0" >/dev/null
before=$(value "SELECT * FROM millrace.ingest_offsets ORDER BY source, topic, partition")
"$millrace" run "$work/events.ini" --source.topic=few --source.name=few --show 5 >"$work/shown" 2>"$work/log"
is $? 0 "--show: status 0"
is "$(sed 's/kafka_time=[^\t]*/kafka_time=T/' "$work/shown")" 'few[0] 0	id=1	event_time=2024-03-01	kind=\N	note=\N	price=DEFAULT	code=\N	kafka_key=\N	kafka_time=T	kafka_partition=0	kafka_offset=0
few[0] 1	dead letter of stage decode: '"$(sed -n 's/.*stage decode: //p' "$work/shown")" "it prints rows and dead letters with their offsets"
is "$("$millrace" run "$work/events.ini" --source.topic=whole --source.name=other --show=7 2>"$work/log" | grep -c 'whole\[[0-3]\] [0-9]*	id=')" 7 "as many as were asked for"
is "$("$millrace" run "$work/events.ini" --source.topic=whole --source.name=whole --show=7 2>"$work/log")" "" "of those that are not stored yet"
is "$("$millrace" run "$work/suggested.ini" --source.name=other --show 2 2>"$work/log" | cut -f 1,2,12)" "sample.json 0	id=1	any={\"x\": 1}
sample.json $(head -n 1 "$work/sample.json" | wc -c)	id=2	any=5" "of a file, too"
is "$(value "SELECT * FROM millrace.ingest_offsets ORDER BY source, topic, partition")" "$before" "and stores nothing"

# ---- pace ----

start=$(date +%s%N)
to_topic pace "$work/events.csv" --create-topic --rate=1000 --jitter=50% --count=2000
took=$(($(date +%s%N) - start))
[ $took -gt 1950000000 ]
ok $? "2000 messages at 1000 a second take two seconds or more: $((took / 1000000)) ms"
produce "$work/events.csv" --duration=4s --output="$work/bursts.csv" &
pid=$!
: >"$work/seen"
while kill -0 $pid 2>/dev/null; do
	[ ! -e "$work/bursts.csv" ] || grep -c UTC "$work/bursts.csv" >>"$work/seen"
	sleep 0.05
done
wait $pid
is $? 0 "bursts by default, for a time"
n=$(uniq "$work/seen" | wc -l)
[ "$n" -ge 2 ] && [ "$n" -le 6 ] && [ "$(sort -n "$work/seen" | tail -n 1)" -le 50 ]
ok $? "of 1 to 10 messages every 1 to 3 s: $(uniq "$work/seen" | tr '\n' ' ')in the file"

# ---- faults ----

has_more() { [ "0$(kcat -Q -b "$BROKERS" -t "$1:0:-1" 2>/dev/null | awk '{ print $NF }')" -gt "$2" ]; } # than so many in partition 0

"$millrace" produce "$work/events.csv" --brokers="$BROKERS" --topic=crash --create-topic --partitions=2 --rate=2000 --count=8000 --id=id 2>"$work/log" &
pid=$!
until_true grep -q 'is created' "$work/log"
until_true has_more crash 500
"$lib/kafka" kill "$work/kafka"
"$lib/kafka" again "$work/kafka"
wait $pid
is $? 0 "the broker is killed and comes back: status 0"
is "$(in_topic crash | grep -o '"id": [0-9]*' | sort | uniq -c | awk '$1 == 1' | wc -l)" 8000 "every message arrives exactly once"

"$millrace" produce "$work/events.csv" --brokers="$BROKERS" --topic=stopped --create-topic --rate=500 2>"$work/log" &
pid=$!
until_true has_more stopped 100
kill -TERM $pid
wait $pid
is $? 0 "SIGTERM: status 0"
is "$(summary)" "$(in_topic stopped -f '%o\n' | wc -l) messages (0 late, 0 duplicates, 0 bad)" "and the summary has as many messages as arrived"
done_testing
