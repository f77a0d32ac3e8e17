#!/usr/bin/env bash
# Fields to columns: JSON and CSV, values of every built-in type, arrays, headers and the other things that come with a
# message, formats of time, unknown fields, NaN; and bad input of every kind through a real broker, byte for byte.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
start_cluster
start_kafka message.max.bytes=20000000

sql() { psql -qAtX -v ON_ERROR_STOP=1 "$@" >/dev/null || exit 1; }
# run FORMAT [flags]: standard input into the table t, made anew before by the caller
run() {
	local format=$1
	shift
	"$millrace" run "$work/in.ini" --once --source.format="$format" "$@" >"$work/log" 2>&1
}
table() { value "SET client_min_messages = warning; DROP TABLE IF EXISTS t; CREATE TABLE t ($1); TRUNCATE millrace.dead_letters, millrace.ingest_offsets"; }
rows() { value "SELECT * FROM t ORDER BY 1"; }
letters() { value "SELECT stage, sqlstate, reason, convert_from(payload, 'UTF8') FROM millrace.dead_letters ORDER BY id"; }
n_letters() { value "SELECT count(*) FROM millrace.dead_letters"; }
fails() { # fails STATUS TEXT NAME flags …: a configuration that check refuses
	local status=$1 text=$2 name=$3
	shift 3
	"$millrace" check "$work/in.ini" "$@" >"$work/log" 2>&1
	is $? "$status" "$name: status $status"
	like "$(cat "$work/log")" "$text" "$name: the reason"
}

sql -c 'CREATE EXTENSION millrace'
cat >"$work/in.ini" <<'INI'
[source]
type = stdin

[target]
table = t
retry = 1s
INI

# ---- JSON ----

table "id int, city text, tags text[], grid int[], docs jsonb[], doc jsonb, raw json, n text, note text DEFAULT 'by default', level int DEFAULT 7"
run json --columns.city=user.address.city --columns.level='user.level default:3' <<'JSON'
{"id": 1, "user": {"address": {"city": "Wien"}, "level": 9}, "tags": ["a", "b\"\\c", null, "NULL", "", "é, {}"], "grid": [[1, 2], [3, 4]], "doc": {"a": [1, 2.50]}, "raw": [1,  "x\u00e9"], "n": 12345678901234567890.50}
{"id": 2, "user": {"level": null}, "tags": [], "docs": [{"a": "b\"c"}, [1, 2], "s", 5, null, true], "doc": null, "n": true, "note": null}
{"id": 3, "user": 5, "tags": "{x,y}", "grid": [1, 2], "n": {"deep": [1]}, "note": "", "docs": [["",""],"",""]}
JSON
is $? 0 "JSON: status 0"
is "$(rows)" '1|Wien|{a,"b\"\\c",NULL,"NULL","","é, {}"}|{{1,2},{3,4}}||{"a": [1, 2.50]}|[1,  "x\u00e9"]|12345678901234567890.50|by default|9
2||{}||{"{\"a\": \"b\\\"c\"}","[1, 2]","\"s\"",5,NULL,true}|||true||
3||{x,y}|{1,2}|{"[\"\", \"\"]","\"\"","\"\""}|||{"deep": [1]}||3' "paths, arrays, jsonb, json as it stands, missing and null, defaults, numbers in text columns"
is "$(n_letters)" 0 "no dead letter"
table "id int, tags int[]"
run json <<'JSON'
{"id": 1, "tags": [[[[[[[1]]]]]]]}
{"id": 2, "tags": [1, [2]]}
{"id": 3, "tags": ["\ud800"]}
{"id": 4, "tags": ["x"]}
{"id": 5, "tags": [5]}
JSON
is "$? $(rows)" "0 5|{5}" "of arrays that cannot be stored only themselves are refused"
is "$(letters | cut -d'|' -f1-3 | cut -d: -f1)" 'decode||array of more than 6 dimensions
store|22P02|malformed array literal
decode||lone surrogate in a string
store|22P02|invalid input syntax for type integer' "with their reasons"

# Every built-in type: what the server writes as JSON and CSV comes back as it was.
sql <<'SQL'
CREATE TYPE mood AS ENUM ('sad', 'so so');
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN tags AS text[];
CREATE TABLE every (id int, c_bool bool, c_bytea bytea, c_char "char", c_name name, c_int8 int8, c_int2 int2, c_oid oid, c_text text, c_float4 float4,
	c_float8 float8, c_money money, c_bpchar char(5), c_varchar varchar(9), c_date date, c_time time, c_timetz timetz, c_ts timestamp, c_tstz timestamptz,
	c_interval interval, c_numeric numeric, c_uuid uuid, c_xml xml, c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_point point, c_line line, c_lseg lseg,
	c_box box, c_path path, c_polygon polygon, c_circle circle, c_inet inet, c_cidr cidr, c_mac macaddr, c_mac8 macaddr8, c_bit bit(3), c_varbit varbit,
	c_tsvector tsvector, c_tsquery tsquery, c_lsn pg_lsn, c_snapshot pg_snapshot, c_regclass regclass, c_int4range int4range, c_tstzrange tstzrange,
	c_multi nummultirange, c_ints int[], c_texts text[], c_times timestamptz[], c_boxes box[], c_jsonbs jsonb[], c_jsons json[], c_numerics numeric[],
	c_byteas bytea[], c_mood mood, c_moods mood[], c_positive positive, c_tags tags, c_grid float8[]);
INSERT INTO every VALUES (1, true, '\x00ff5c', 'c', 'a name', 9223372036854775807, -32768, 4294967295, E'tab\t line\n return\r back\\ quote" \\N é 😀', 1e-30,
	'NaN', 12.34, 'ab', 'x"y', '2024-02-29', '23:59:59.999999', '04:05:06+05:30', '0044-03-15 12:00:00 BC', '2024-05-06 07:08:09.123456+02',
	'1 year 2 mons -3 days 04:05:06.7', 123456789012345678901234567890.123456789, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '<a b="c">d</a>',
	'{"b": [1,  2], "b": "\u00e9"}', '{"a": {"b": null}, "c": "\\ \" \n"}', '$.a[*] ? (@ > 1)', '(1,2)', '{1,2,3}', '[(1,2),(3,4)]', '(3,4),(1,2)',
	'[(1,2),(3,4)]', '((1,2),(3,4))', '<(1,2),3>', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '101', '10',
	'a:1A fat:2', 'a & !b', '16/B374D848', '10:20:10,14,15', 'every', '[1,5)', '["2024-01-01 00:00:00+00","2024-02-01 00:00:00+00")', '{[1.5,2),[3,4)}',
	'{1,NULL,3}', '{"a b",NULL,"NULL","","\"\\"}', '{2024-05-06 07:08:09+00}', '{(3,4),(1,2);(7,8),(5,6)}', '{"{\"a\": 1}","[1, 2]",null}',
	'{"{\"a\":  1}","\"s\""}', '{1.50,-2}', '{"\\x00ff"}', 'so so', '{sad,"so so"}', 5, '{x,y}', '{{1,2.5},{-Infinity,NaN}}');
INSERT INTO every (id) VALUES (2);
INSERT INTO every (id, c_text, c_ints, c_tags) VALUES (3, repeat($$x$$, 100000), ARRAY(SELECT generate_series(1, 20000)), ARRAY[]::text[]);
SQL
differs='SELECT count(*) FROM ((SELECT t::text FROM t EXCEPT ALL SELECT e::text FROM every e) UNION ALL (SELECT e::text FROM every e EXCEPT ALL SELECT t::text FROM t)) d'
like_every() { value "DROP TABLE IF EXISTS t; CREATE TABLE t (LIKE every); TRUNCATE millrace.dead_letters, millrace.ingest_offsets"; }
like_every
psql -AtXqc 'SELECT row_to_json(e) FROM every e' | run json
is "$? $(n_letters) $(value "$differs")" "0 0 0" "JSON: a value of every built-in type comes back as it was"
like_every
psql -AtXqc '\copy every TO STDOUT (FORMAT csv, HEADER)' | run csv
is "$? $(n_letters) $(value "$differs")" "0 0 0" "CSV: the same"
like_every
psql -AtXqc "\\copy every TO STDOUT (FORMAT csv, HEADER, DELIMITER '|', QUOTE '''', ESCAPE '\\', NULL '(none)')" |
	run csv --csv.delimiter='|' --csv.quote="'" --csv.escape='\' --csv.null='(none)'
is "$? $(n_letters) $(value "$differs")" "0 0 0" "CSV with another delimiter, quote, escape and NULL: the same"

# ---- CSV ----

table "id int, name text"
printf 'id\tname\n1\t"a\n2\tb"c\n' | run csv --csv.delimiter='\t' --csv.quote=
is "$? $(rows)" '0 1|"a
2|b"c' "CSV without quotes"
fails 2 '"quote" and "delimiter" must differ' "quote = delimiter" --csv.quote=,
fails 2 '"escape" must be one character' "escape of two characters" --csv.escape='\\'

# ---- NaN ----

nan='{"brand": NaN, "category_code": NaN, "user_id": 520088904}'
nans='{"id": 2, "name": "NaN, Infinity", "x": -Infinity, "a": [NaN, 1, Infinity], "doc": {"a": NaN}}'
table "user_id bigint, brand text, category_code text"
run json <<<"$nan"
is "$? $(rows) $(letters)" "0  decode||not JSON: lexical error: invalid char in json text.|$nan" "NaN is refused by default"
table "user_id bigint, brand text, category_code text"
run json --json.nan=text <<<"$nan"
is "$? $(rows) $(n_letters)" "0 520088904|NaN|NaN 0" "json.nan = text: as text"
table "user_id bigint, brand text, category_code text"
run json --json.nan=null <<<"$nan"
is "$? $(rows) $(n_letters)" "0 520088904|| 0" "json.nan = null: NULL"
for policy in text null; do
	table "id int, name text, x float8, a float8[], doc jsonb, whole json, line text"
	run json --json.nan=$policy --columns.whole=$ --columns.line=$ <<<"$nans"
	echo "$policy $(rows) $(n_letters)"
done >"$work/nans"
is "$(cat "$work/nans")" "text 2|NaN, Infinity|-Infinity|{NaN,1,Infinity}|{\"a\": \"NaN\"}|{\"id\": 2, \"name\": \"NaN, Infinity\", \"x\": \"-Infinity\", \"a\": [\"NaN\", 1, \"Infinity\"], \"doc\": {\"a\": \"NaN\"}}|$nans 0
null 2|NaN, Infinity||{NULL,1,NULL}|{\"a\": null}|{\"id\": 2, \"name\": \"NaN, Infinity\", \"x\": null, \"a\": [null, 1, null], \"doc\": {\"a\": null}}|$nans 0" \
	"numbers, arrays and json columns take it, too; strings and the whole message as text stay as they are"
table "id int"
run json --json.nan=text <<<'{NaN: 1}
{"id": NaN NaN}
{"id": 1, NaN: 2}
{"id": NaNa}
[NaN'
is "$? $(rows) $(n_letters)" "0  5" "where no value may stand it is a fault"

# ---- time ----

table "id int, at timestamptz, plain timestamp, day date, clock time, words text"
run json --columns.at='at format:epoch_ms' --columns.plain='plain format:epoch_s' --columns.day='day format:%d.%m.%Y' \
	--columns.clock='clock format:%I:%M %p' --columns.words='words format:epoch_us default:never' <<'JSON'
{"id": 1, "at": 1323338706123, "plain": 1323338706.5, "day": "8.12.2011", "clock": "10:05 PM", "words": -1}
{"id": 2, "at": "1323338706123", "plain": "1.323338706e9", "day": "29.02.2012", "clock": "12:00 AM"}
{"id": 3, "at": null, "plain": -62135596800, "day": null}
{"id": 4, "at": 1767225600000000}
{"id": 5, "at": "infinity"}
{"id": 6, "at": "12 monkeys"}
{"id": 7, "at": true}
{"id": 8, "at": 1e300}
{"id": 9, "plain": 99999999999999999999}
{"id": 10, "day": "31.02.2012"}
{"id": 11, "day": "1.1.2012x"}
{"id": 12, "clock": "13:00 PM"}
JSON
is "$? $(value "SET timezone = 'UTC'; SELECT * FROM t ORDER BY 1")" '0 1|2011-12-08 10:05:06.123+00|2011-12-08 10:05:06.5|2011-12-08|22:05:00|1969-12-31 23:59:59.999999+00
2|2011-12-08 10:05:06.123+00|2011-12-08 10:05:06|2012-02-29|00:00:00|never
3||0001-01-01 00:00:00|||never
4|57971-02-25 00:00:00+00||||never' "times as counts since 1970 and by pattern"
is "$(n_letters) $(value "SELECT count(*) FROM millrace.dead_letters WHERE stage = 'decode' AND reason LIKE '%does not fit format:%'")" "8 8" "what does not fit is a dead letter"
table "id int, at timestamptz"
run json --target.timezone=Europe/Berlin --columns.at='at format:%Y/%m/%d %H.%M.%S,%f' <<<'{"id": 1, "at": "2024/07/01 12.00.00,25"}'
run json --target.timezone=Europe/Berlin --columns.at='at format:%Y-%m-%d %H:%M:%S.%f %z' <<<'{"id": 2, "at": "2024-07-01 12:00:00.25 -0530"}
{"id": 3, "at": "now"}'
run json --target.timezone=Europe/Berlin --columns.at='at format:iso' <<<'{"id": 4, "at": "2024-07-01T12:00"}
{"id": 5, "at": "now"}
{"id": 6, "at": "2024-07-01T12:00Z"}'
is "$(value "SET timezone = 'UTC'; SELECT * FROM t ORDER BY 1") $(n_letters)" '1|2024-07-01 10:00:00.25+00
2|2024-07-01 17:30:00.25+00
4|2024-07-01 10:00:00+00
6|2024-07-01 12:00:00+00 2' "fractions, zones, and the time zone of what comes without one"
fails 5 '"epoch_ns" is no format' "unknown format" --columns.at='at format:epoch_ns'
fails 5 '"%Q" is no format' "unknown pattern" --columns.at='at format:%Q'

# ---- unknown fields ----

unknown='{"id": 1, "user": {"id": 5, "name": "x"}, "colour": "r\u00e9d", "size": 7}
{"id": 2, "user": {"id": 6}}
{"id": 3, "size": null, "list": [1, {"a": 2}], "user": 9}'
table "id int, user_id int, others jsonb"
run json --columns.user_id=user.id --target.on_unknown_field=jsonb --target.unknown_column=others <<<"$unknown"
is "$? $(rows)" '0 1|5|{"size": 7, "user": {"id": 5, "name": "x"}, "colour": "réd"}
2|6|
3||{"list": [1, {"a": 2}], "size": null, "user": 9}' "on_unknown_field = jsonb keeps every value that no column takes"
table "id int, user_id int, others jsonb NOT NULL DEFAULT '{}', whole text"
run json --columns.user_id=user.id --columns.others='$rest' --columns.whole='$' <<<"$unknown"
is "$? $(value "SELECT id, others FROM t ORDER BY 1")" '0 1|{"size": 7, "user": {"id": 5, "name": "x"}, "colour": "réd"}
2|{}
3|{"list": [1, {"a": 2}], "size": null, "user": 9}' "so does \$rest; without any the column takes its default"
table "id int, others jsonb"
printf 'id,a "b",c\n1,"x ""y""",\n' | run csv --target.on_unknown_field=jsonb --target.unknown_column=others
is "$? $(rows)" '0 1|{"c": null, "a \"b\"": "x \"y\""}' "CSV: the same"
table "id int, user_id int"
run json --columns.user_id=user.id --target.on_unknown_field=dead_letter <<<"$unknown"
is "$? $(rows) $(letters | cut -d'|' -f1-3)" '0 2|6 decode||unknown field "size"
decode||unknown field "user"' "on_unknown_field = dead_letter"
table "id int"
printf 'id,x\n1,2\n' | run csv --target.on_unknown_field=dead_letter
is "$? $(rows) $(letters)" '0  decode||unknown field "x"|1,2' "CSV: the same"
fails 5 "unknown_column" "jsonb without a column" --target.on_unknown_field=jsonb
fails 5 'has no column "nowhere"' "jsonb into an unknown column" --target.on_unknown_field=jsonb --target.unknown_column=nowhere
fails 5 'needs on_unknown_field = jsonb' "unknown_column alone" --target.unknown_column=id

table "id int, user_id int, gone int GENERATED ALWAYS AS (1) STORED"
run json --columns.user_id=user.id --target.on_unknown_field=add_column <<<"$unknown
{\"id\": 4, \"colour\": 5, \"Größe \\\"x\\\"\": true, \"when\": null}
{\"id\": 5, \"ctid\": 1}
{\"id\": 6, \"gone\": 1}
{\"id\": 7, \"$(printf 'x%.0s' {1..64})\": 1}
{\"id\": 8, \"\": 1}
{\"id\": 9, \"\\ud800\": 1}
{\"id\": 10, \"size\": 1.5}
{\"id\": 11, \"size\": \"large\"}"
is $? 0 "on_unknown_field = add_column: status 0"
is "$(value "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 3")" \
	'user jsonb, colour text, size text, list jsonb, Größe "x" boolean' "it makes columns of types that take the values"
is "$(rows)" '1|5|1|{"id": 5, "name": "x"}|réd|7||
2|6|1|{"id": 6}||||
3||1|9|||[1, {"a": 2}]|
4||1||5|||t
10||1|||1.5||
11||1|||large||' "with every row"
is "$(letters | cut -d'|' -f1-3)" "decode||no column for field \"ctid\": it has the name of a system column
decode||no column for field \"gone\": one was asked for before
decode||no column for field \"$(printf 'x%.0s' {1..63})\": its name is empty, too long, or no text
decode||no column for field \"\": its name is empty, too long, or no text
decode||no column for field \"\": its name is empty, too long, or no text" "what cannot be a column is a dead letter"
table "id int"
printf 'id,name,Other\n1,a,b\n' >"$work/1.csv"
printf 'name,id,third\nc,2,d\n' >"$work/2.csv"
"$millrace" run "$work/in.ini" --once --source.type=directory --source.path="$work" --source.pattern='?.csv' --source.max_files_per_batch=2 \
	--target.on_unknown_field=add_column >"$work/log" 2>&1
is "$? $(rows)" '0 1|a|b|
2|c||d' "CSV: the columns of each file's own header"
table "id int"
sql <<'SQL'
CREATE ROLE guest LOGIN;
GRANT USAGE ON SCHEMA millrace TO guest;
GRANT ALL ON ALL TABLES IN SCHEMA millrace TO guest;
GRANT ALL ON ALL SEQUENCES IN SCHEMA millrace TO guest;
GRANT INSERT ON t TO guest;
SQL
fails 5 "role guest cannot add columns to public.t" "add_column without the right to" --target.on_unknown_field=add_column --target.connection=user=guest

# Several ingesters at once, into partitions that a stream looks at.
sql <<'SQL'
DROP TABLE t;
CREATE TABLE t (id int, at timestamptz) PARTITION BY RANGE (at);
SELECT millrace.create_source('t', 'at');
SELECT millrace.create_continuous_aggregate('per_day', $$
	SELECT millrace.tumble(at, '1 day') AS window_start, count(*) AS n FROM t GROUP BY 1$$);
SQL
for i in 1 2 3 4; do
	for j in {1..50}; do
		echo "{\"id\": $i$j, \"at\": \"2024-01-0$((j % 5 + 1))\", \"x$((j / 10))\": $j, \"own$i\": [$j]}"
	done | "$millrace" run "$work/in.ini" --once --source.format=json --source.name="s$i" --target.on_unknown_field=add_column --batch.max_rows=7 >"$work/log$i" 2>&1 &
done
wait $(jobs -p)
is "$(value "SELECT count(*), count(x0) + count(x1) + count(x2) + count(x3) + count(x4) + count(x5), count(own1), count(own2), count(own3), count(own4) FROM t") $(n_letters)" \
	"200|200|50|50|50|50 0" "four ingesters add columns at once: nothing is lost"
is "$(value "SELECT sum(n), (SELECT count(*) FROM t) FROM per_day")" "200|200" "and the stream has counted every row once"
value "DROP TABLE t CASCADE" 2>/dev/null

# A lock that is held for a while only delays it.
table "id int"
psql -qX -c 'BEGIN; LOCK TABLE t IN ACCESS SHARE MODE; SELECT pg_sleep(1); COMMIT' >/dev/null &
holder=$!
until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessShareLock' AND granted" 1
run json --target.on_unknown_field=add_column --target.lock_timeout=100ms --target.retry=20s <<<'{"id": 1, "late": "x"}'
is "$? $(rows)" "0 1|x" "a column is added when the lock is free"
like "$(cat "$work/log")" "lock timeout" "after trying in vain"
wait $holder

# A column that is dropped while the ingester runs: rows that were decoded for it get it back.
table "id int, x text"
mkfifo "$work/fifo"
"$millrace" run "$work/in.ini" --source.format=json --target.on_unknown_field=add_column --batch.max_age=50ms <"$work/fifo" >"$work/log" 2>&1 &
runs=$!
exec 7>"$work/fifo"
echo '{"id": 1, "x": "a"}' >&7
until_true answers "SELECT count(x) FROM t" 1
value "ALTER TABLE t DROP COLUMN x"
echo '{"id": 2, "x": "b"}' >&7
until_true answers "SELECT count(*) FROM t" 2
exec 7>&-
wait $runs
is "$? $(value "SELECT id, x FROM t ORDER BY 1") $(n_letters)" '0 1|
2|b 0' "a column that is dropped under way is added again for the rows that want it"

# ---- what comes with a message ----

"$lib/kafka" topic "$work/kafka" odd 1 max.message.bytes=20000000
"$lib/kafka" topic "$work/kafka" suite 1
put() { kcat -P -b "$BROKERS" -X message.max.bytes=20000000 -t "$@"; }
cat >"$work/kafka.ini" <<INI
[source]
type = kafka
brokers = $BROKERS
topic = odd

[target]
table = t

[columns]
topic = \$topic
part = \$partition
off = \$offset
at = \$timestamp
key = \$key
key_bytes = \$key
trace = \$header.trace
trace_json = \$header.trace
trace_list = \$header.trace
headers = \$headers
INI
consume() { "$millrace" run "$work/kafka.ini" --once "$@" >"$work/log" 2>&1; }

echo '{"id": 1}' | put odd -k key1 -H trace=a -H 'other=x"y'
echo '{"id": 2}' | put odd -H trace=a -H trace='b"'
printf '\377\001:{"id": 3}\n' | put odd -K :
printf '{"id": 4}\n' | put odd -H $'trace=\xff\xfe'
table "id int, topic text, part int, off bigint, at timestamptz, key text, key_bytes bytea, trace text, trace_json jsonb, trace_list text[], headers jsonb"
consume
is $? 0 "Kafka: status 0"
is "$(value "SELECT id, topic, part, off, at BETWEEN now() - interval '5 min' AND now() + interval '5 s', key, key_bytes, trace, trace_json, trace_list, headers FROM t ORDER BY off")" \
	'1|odd|0|0|t|key1|\x6b657931|a|"a"|{a}|{"other": "x\"y", "trace": "a"}
2|odd|0|1|t|||["a","b\""]|["a", "b\""]|{a,"b\""}|{"trace": ["a", "b\""]}
4|odd|0|3|t|||\xfffe|"\\xfffe"|{"\\xfffe"}|{"trace": "\\xfffe"}' "topic, partition, offset, timestamp, key and headers as columns"
is "$(value "SELECT \"offset\", encode(key, 'hex'), reason FROM millrace.dead_letters")" "2|ff01|key is not valid UTF-8" "a key that is no text cannot go into a text column"
table "id int, off bigint, key bytea"
sed -i '/^part =/,$d; s/^topic = \$topic/off = $offset\nkey = $key/' "$work/kafka.ini"
consume
is "$? $(value "SELECT id, key FROM t WHERE off = 2") $(n_letters)" '0 3|\xff01 0' "but into bytea"

# ---- bad input, as messages ----

"$lib/kafka" topic "$work/kafka" bad 1 max.message.bytes=20000000
mkdir "$work/bad" "$work/suite"
python3 - "$work/bad" <<'PY'
import sys
cases = [
    ('{"id": 1, "s": "\\u0000"}'), ('{"id": 2, "s": "\x00"}'), (b'{"id": 3, "s": "\xff"}'), (b'{"id": 4, "s": "\xed\xa0\x80"}'),
    ('{"id": 5, "s": "\\ud800"}'), ('{"id": 6, "s": "\\udc00\\ud800"}'), ('{"id": 7, "i": 2147483648}'), ('{"id": 8, "i": 1e400}'),
    ('{"id": 9, "f": 1e400}'), ('{"id": 10, "n": 1e200000}'), ('{"id": 11, "i": 1.5}'), ('{"id": 12, "at": "57971-01-01 00:00:00"}'),
    ('{"id": 13, "at": "infinity"}'), ('{"id": 14, "at": "now"}'), ('{"id": 15, "at": "tomorrow"}'), ('{"id": 16, "at": "294277-01-01"}'),
    ('{"id": 17, "at": 1323338706}'), ('[' * 100000), ('[' * 100000 + ']' * 100000), ('{"a":' * 100000), ('{"id": 20, "j": ' + '[' * 900 + ']' * 900 + '}'),
    ('{"id": 21, "s": "' + 'x' * 10000000 + '"}'), ('{"id": 22, "s": "' + '\\u00e9' * 1500000 + '"}'), ('{' + ','.join('"k%d":%d' % (i, i) for i in range(200000)) + '}'),
    ('"' + 'x' * 1000000), ('{"id": 25, "id": 26}'), ('\ufeff{"id": 27}'), ('{"id": 28}{"id": 29}'), ('{"id": 30}\n'), (' '), ('null'), ('{}'),
    ('{"id": 31, "s": "\\ud83d\\ude00 \U0001f600"}'), ('{"id": 32, "at": "2011-12-08 10:05:06"}'), ('{"id": 33, "j": "\\ud800"}'), ('{"id": 34, "j": "\\u0000"}'),
    ('{"id": 35, "d": "0000-00-00"}'), ('{"id": 36, "i": " 5 "}'), ('{"id": 37, "s": "\\\\.\\n\\t\\r\\\\N"}'), ('{"id": 38, "at": "1500-01-01"}')]
for i, case in enumerate(cases):
    with open('%s/%03d' % (sys.argv[1], i), 'wb') as f:
        f.write(case if isinstance(case, bytes) else case.encode())
PY
put bad "$work"/bad/*
printf 'empty:\n' | put bad -K :
printf 'tombstone:\n' | put bad -K : -Z
table "id int, s text, i int, f float8, n numeric, at timestamptz NOT NULL DEFAULT '2011-12-08', d date, j json, off bigint) PARTITION BY RANGE (at"
value "SELECT millrace.create_source('t', 'at')" >/dev/null
sed -i 's/^topic = odd/topic = bad/; s/^key =.*//' "$work/kafka.ini"
consume
is "$?" 0 "bad input: status 0"
is "$(value "SELECT off, id, CASE WHEN length(s) > 99 THEN length(s)::text || left(s, 1) ELSE to_json(s)::text END, left(j::text, 8) FROM t ORDER BY off")" '13|14||
14|15||
20|20||[[[[[[[[
21|21|10000000x|
22|22|1500000é|
23|||
25|26||
28|30||
31|||
32|31|"😀 😀"|
33|32||
34|33||"\ud800"
35|34||"\u0000"
37|36||
38|37|"\\.\n\t\r\\N"|' "what is stored"
is "$(value "SELECT \"offset\", stage, sqlstate, reason FROM millrace.dead_letters ORDER BY \"offset\"")" '0|decode||\u0000 cannot be stored in text
1|decode||NUL character at byte 16
2|decode||invalid UTF-8 at byte 16
3|decode||invalid UTF-8 at byte 16
4|decode||lone surrogate in a string
5|decode||lone surrogate in a string
6|store|22003|value "2147483648" is out of range for type integer
7|store|22P02|invalid input syntax for type integer: "1e400"
8|store|22003|"1e400" is out of range for type double precision
9|store|22003|value overflows numeric format
10|store|22P02|invalid input syntax for type integer: "1.5"
11|partition||event time 57971-01-01 00:00:00.000000+00 is further in the future than target.max_future
12|partition||event time is infinite
15|store|22008|timestamp out of range: "294277-01-01"
16|store|22008|date/time field value out of range: "1323338706"
17|decode||nested too deep
18|decode||nested too deep
19|decode||nested too deep
24|decode||not JSON: lexical error: invalid character inside string.
26|decode||not JSON: lexical error: invalid char in json text.
27|decode||not JSON: more than one value
29|decode||not JSON: it ends too early
30|decode||not a JSON object
36|store|22008|date/time field value out of range: "0000-00-00"
39|partition||event time 1500-01-01 00:00:00.000000+00 is before target.min_time
40|decode||empty message
41|decode||tombstone: no value' "what is not"
is "$(value 'SELECT "offset", key FROM millrace.dead_letters WHERE payload IS NULL')" '41|\x746f6d6273746f6e65' "a tombstone has no bytes"
for f in "$work"/bad/*; do md5sum <"$f" | cut -c1-32; done >"$work/sums"
is "$(value 'SELECT count(DISTINCT o), count(*), min(o), max(o) FROM (SELECT off AS o FROM t UNION ALL SELECT "offset" FROM millrace.dead_letters) x')" "$(ls "$work/bad" | awk 'END { print NR + 2, NR + 2, 0, NR + 1 }' OFS='|')" "each message is in one of them, once"
is "$(value "SELECT count(*) FROM millrace.dead_letters WHERE md5(payload) <> (string_to_array('$(paste -sd, "$work/sums"),d41d8cd98f00b204e9800998ecf8427e,d41d8cd98f00b204e9800998ecf8427e', ','))[\"offset\" + 1]")" 0 "with its bytes unchanged"

# ---- JSONTestSuite ----

tar -xf "$data/JSONTestSuite.tar.xz" -C "$work"
# kcat sends no empty file: the one there is comes last, as an empty value with a key.
find "$work/JSONTestSuite/test_parsing" -name '*.json' -size +0 | sort >"$work/files"
put suite $(cat "$work/files")
printf 'empty:\n' | put suite -K :
find "$work/JSONTestSuite/test_parsing" -name '*.json' -size 0 >>"$work/files"
table "doc json, off bigint"
sed -i 's/^topic = bad/topic = suite/; /^off = /i doc = $' "$work/kafka.ini"
consume
is "$?" 0 "JSONTestSuite: status 0"
psql -AtXqc 'COPY (SELECT off, true, md5(doc::text) FROM t UNION ALL SELECT "offset", false, md5(payload) FROM millrace.dead_letters ORDER BY 1) TO STDOUT' >"$work/got"
n=0
while read -r f; do
	name=${f##*/} sum=$(md5sum <"$f")
	echo "$n ${name:0:1} ${sum:0:32}"
	n=$((n + 1))
done <"$work/files" >"$work/wanted"
is "$(wc -l <"$work/got")" 318 "every file is a row or a dead letter"
is "$(join "$work/wanted" <(tr '\t' ' ' <"$work/got") | awk '$3 != $5' | wc -l)" 0 "with its bytes unchanged"
is "$(join <(sort "$work/wanted") <(tr '\t' ' ' <"$work/got" | sort) | awk '$2 != "i" { n[$2 $4]++ } $2 == "i" { n["i"]++ } END { print n["yt"], n["yf"] + 0, n["nt"] + 0, n["nf"], n["i"] }')" \
	"95 0 0 188 35" "95 are stored, 188 are not, 35 are either"
done_testing
