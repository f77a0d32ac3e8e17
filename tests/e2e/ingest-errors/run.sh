#!/usr/bin/env bash
# Bad input, bad configuration, and a database that goes away: each gets a clear error and its own exit status, or a dead
# letter with the bytes unchanged, and every other row is stored exactly once.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
start_cluster
mkdir "$work/in"

says() { grep -q "$1" "$work/log"; }
run() { "$millrace" run "$work/in.ini" "$@" >"$work/log" 2>&1; } # its status is the answer
clean() { value 'TRUNCATE t, millrace.dead_letters, millrace.ingest_offsets' && rm -f "$work"/in/*; }
letters() { value "SELECT \"offset\", convert_from(payload, 'UTF8'), stage, sqlstate FROM millrace.dead_letters ORDER BY id"; }

# ---- command line and configuration ----

is "$("$millrace" --version)" "millrace $(sed -n "s/^default_version = '\(.*\)'/\1/p" "$here/../../../extension/millrace.control")" "--version"
is "$(sed -n '/^```options$/,/^```$/p' "$here/../../../ingest/README.md" | sed '1d;$d')" "$("$millrace" run --help | sed -n '/^  --source.type/,/^$/p' | sed '$d')" "README.md has the options of --help"
is "$(sed -n '/^```status$/,/^```$/p' "$here/../../../ingest/README.md" | sed '1d;$d')" "$("$millrace" --help | sed -n '/^Exit codes:/,$p' | sed 1d)" "and its exit codes"
"$millrace" walk >"$work/log" 2>&1
is $? 2 "unknown command: status 2"
"$millrace" run >"$work/log" 2>&1
is $? 2 "no configuration file: status 2"
"$millrace" run "$work/none.ini" >"$work/log" 2>&1
is "$? $(cat "$work/log")" "2 $work/none.ini: cannot read: No such file or directory" "configuration file missing: status 2, and nothing else is said"
cat >"$work/bad.ini" <<INI
[source]
type = directory
path = $work/nowhere
patern = *.csv

[target]
table = nowhere

[batch]
max_rows = many
INI
"$millrace" check "$work/bad.ini" --onc >"$work/log" 2>&1
is $? 2 "check of a wrong configuration: status 2"
like "$(cat "$work/log")" "bad.ini:4: unknown key \"patern\" in \[source\]; did you mean \"pattern\"?" "unknown key, with line and hint"
like "$(cat "$work/log")" "bad.ini:10: \"many\" is not a valid value of \"max_rows\"" "wrong value"
like "$(cat "$work/log")" "bad.ini:3: cannot read \"$work/nowhere\": No such file or directory" "missing directory, at once"
like "$(cat "$work/log")" "extension millrace is not in database \"postgres\"" "missing extension, at once"
like "$(cat "$work/log")" 'unknown option "--onc"; did you mean "--once"\?' "unknown flag"

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE EXTENSION millrace;
CREATE TABLE t (id int PRIMARY KEY, name text CHECK (name <> 'refused'), amount numeric, note text DEFAULT 'by default');
CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF EXISTS (SELECT FROM new_rows WHERE name = 'statement') THEN RAISE EXCEPTION 'no such name here'; END IF;
	RETURN NULL; END $$;
CREATE TRIGGER picky AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION picky();
SQL
cat >"$work/in.ini" <<INI
[source]
type = directory
path = $work/in
pattern = *.csv

[target]
table = t
retry = 1s
INI
"$millrace" check "$work/in.ini" >"$work/log" 2>&1
is $? 0 "check of a good one"
is "$(cat "$work/log")" "$work/in.ini: no errors" "says so"
"$millrace" check --source.pattern=x.csv "$work/in.ini" >"$work/log" 2>&1
is "$? $(cat "$work/log")" "0 $work/in.ini: no errors" "flags may stand before the file"
"$millrace" run --once "$work/in.ini" --show >"$work/log" 2>&1
is "$? $(cat "$work/log")" "2 command line: --show needs a number of rows: --show 10" "--show without a number"
"$millrace" run --target.connection password=swordfish "$work/in.ini" >"$work/log" 2>&1
is "$? $(grep -c swordfish "$work/log")" "2 0" "but what follows one without its value is not taken for a file"
run --once --target.table=nowhere
is "$? $(cat "$work/log")" '5 command line: table "nowhere" does not exist' "unknown table: status 5"
run --once --columns.nam=x
is "$? $(cat "$work/log")" '5 command line: table public.t has no column "nam" that can be written; did you mean "name"?' "unknown column: status 5"
"$millrace" check "$work/in.ini" --columns.id='x default:many' --columns.note='y default:few' --columns.amount='z default:1e5' >"$work/log" 2>&1
is "$? $(cat "$work/log")" '5 command line: column "id" cannot have the default: invalid input syntax for type integer: "many"' "a default that its column cannot have"
run --once --source.path="$work/nowhere"
is $? 3 "missing directory: status 3"
run --once --source.type=file --source.path="$work/nowhere.csv"
is $? 3 "missing file: status 3"
run --once --target.connection="host=127.0.0.1 port=1 password=swordfish"
is $? 4 "no server: status 4"
ok "$(grep -q swordfish "$work/log"; echo $((1 - $?)))" "the password is not in the log"
run --once --target.connection="postgresql://me:swordfish@[bad/x?y"
is $? 2 "a connection string that cannot be parsed: status 2"
ok "$(grep -q swordfish "$work/log"; echo $((1 - $?)))" "nor is it then"
run --once --target.timezone=Nowhere/City
is $? 2 "unknown time zone: status 2"
run --once --source.type=kafka --source.brokers=127.0.0.1:1 --source.topic=x --source.kafka.nonsense=1
is $? 2 "unknown librdkafka property: status 2"
like "$(cat "$work/log")" 'No such configuration property: "nonsense"' "in librdkafka's words"

# ---- bad rows ----

printf 'id,name,amount\n1,one,1.5\n2,two\n3,"th"ree,3\n4,"fo""ur\nlines",4\n5,\xff,5\n6,six,6\n' >"$work/in/a.csv"
run --once
is $? 0 "malformed CSV does not stop the run"
is "$(value "SELECT id, name, amount, note FROM t ORDER BY id")" '1|one|1.5|by default
4|fo"ur
lines|4|by default
6|six|6|by default' "the good rows are stored, a column that the file has not got takes its default"
is "$(value "SELECT \"offset\", encode(payload, 'escape'), stage, sqlstate IS NULL, reason FROM millrace.dead_letters ORDER BY id")" \
	'25|2,two|decode|t|2 fields where 3 are expected
31|3,"th"ree,3|decode|t|text behind the closing quote of a field
62|5,\377,5|decode|t|invalid UTF-8 at byte 2' "the bad ones are dead letters with their bytes"

clean
printf '{"ID": 1, "Name": "one"}\n{"id": 2}\n{"Id": 3}\n' >"$work/in/b.csv"
"$millrace" run "$work/in.ini" --source.format=json --show 3 >"$work/shown" 2>"$work/log"
is "$(grep -c 'the first message has no field that a column takes' "$work/log") $(wc -l <"$work/shown")" "1 3" "names of another case are told, once"
clean
printf '{"id": 1, "name": "one"}\n{"id": 2\n{"id": NaN}\n{"id": 3, "name": "\\u0000"}\n[]\n{"id": 4, "note": null}\n{"id": 5, "note": "n"}\n' >"$work/in/b.csv"
run --once --source.format=json
is $? 0 "malformed JSON does not stop the run"
is "$(grep -c 'the first message has no field' "$work/log")" 0 "the first message has fields of the columns"
is "$(value "SELECT id, name, note FROM t ORDER BY id")" '1|one|by default
4||
5||n' "the good rows are stored; missing and null are not the same"
is "$(value "SELECT \"offset\", convert_from(payload, 'UTF8'), stage FROM millrace.dead_letters ORDER BY id")" \
	'25|{"id": 2|decode
34|{"id": NaN}|decode
46|{"id": 3, "name": "\u0000"}|decode
74|[]|decode' "the bad ones are dead letters"

clean
{
	echo id,name,amount
	seq -f '%.0f,fine,1.5' 1 5000
} | sed -e '11s/.*/ten,fine,1/' -e '2001s/.*/2000,refused,1/' -e '3001s/.*/3000,statement,1/' -e '4001s/.*/7,again,1/' \
	-e '5001s/.*/5000,fine,1e999999/' >"$work/in/c.csv"
run --once
is $? 0 "rows that the table refuses do not stop the run"
is "$(letters | cut -d'|' -f2-)" "ten,fine,1|store|22P02
2000,refused,1|store|23514
3000,statement,1|store|P0001
7,again,1|store|23505
5000,fine,1e999999|store|22003" "exactly they are dead letters: bad integer, CHECK, exception of a statement trigger, key, overflow"
is "$(value 'SELECT count(*), count(DISTINCT id), sum(id) FROM t')" "4995|4995|$((5000 * 5001 / 2 - 10 - 2000 - 3000 - 4000 - 5000))" "all others are stored"
is "$(value 'SELECT count(*), sum(next_offset) FROM millrace.ingest_offsets')" "1|$(stat -c %s "$work/in/c.csv")" "in one batch"
run --once
is "$? $(value 'SELECT count(*) FROM t')" "0 4995" "nothing is read a second time"

clean
value "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1 / 0; RETURN NULL; END'; CREATE TRIGGER z AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION broken()"
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/d.csv"
run --once
is "$?" 7 "a handler that fails for every row: status 7"
is "$(value 'SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM millrace.dead_letters), (SELECT coalesce(sum(next_offset), 0) FROM millrace.ingest_offsets)')" "0|0|0" "and no dead letter"
like "$(cat "$work/log")" "the fault is not in the data: division by zero" "with the reason"
value "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM * FROM nowhere; RETURN NULL; END'"
run --once
is "$?" 7 "an error that is not of the data is retried, then status 7"
is "$(value 'SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM millrace.dead_letters)')" "0|0" "and no dead letter"
value 'DROP TRIGGER z ON t'
run --once
is "$? $(value 'SELECT count(*) FROM t')" "0 10000" "when it is mended the same rows are stored"

clean
value 'CREATE TABLE child (id int REFERENCES t DEFERRABLE INITIALLY DEFERRED)'
{ echo id; seq 1 300; } >"$work/in/e.csv"
value "INSERT INTO t SELECT g FROM generate_series(1, 299) g"
run --once --target.table=child --source.name=child
is "$? $(letters | cut -d'|' -f2-) $(value 'SELECT count(*) FROM child')" "0 300|store|23503 299" "a deferred constraint that fails at COMMIT costs one row"
value 'DROP TABLE child'

# ---- whose fault it is ----

dead() { value 'SELECT sqlstate, count(*) FROM millrace.dead_letters GROUP BY 1 ORDER BY 1'; }
at_all() { value 'SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM millrace.dead_letters)'; }
clean
value "CREATE TABLE customer (id int PRIMARY KEY); CREATE TABLE sale (id int, customer int REFERENCES customer)"
{ echo id,customer; seq 1 30 | sed 's/$/,7/'; } >"$work/in/a.csv"
run --once --target.table=sale
is "$? $(dead)" "0 23503|30" "a foreign key that no row satisfies: dead letters"
clean
value "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0" && psql -qX -d latin -c 'CREATE EXTENSION millrace' -c 'CREATE TABLE t (id int, name text)'
{ echo id,name; seq 1 30 | sed 's/$/,日本/'; } >"$work/in/a.csv"
run --once --target.connection=dbname=latin
is "$? $(psql -AtXq -d latin -c 'SELECT sqlstate, count(*) FROM millrace.dead_letters GROUP BY 1')" "0 22P05|30" "what the database's encoding has not: dead letters"
for when in BEFORE AFTER; do
	clean
	value "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1 / 0; RETURN NEW; END'; CREATE TRIGGER z $when INSERT ON t FOR EACH ROW EXECUTE FUNCTION broken()"
	{ echo id,name; echo 1,fine; } >"$work/in/d.csv"
	run --once
	is "$? $(at_all)" "7 0|0" "a broken $when trigger stops a batch of one row"
	{ echo id,name; seq -f '%.0f,fine' 1 600; } >"$work/in/d.csv"
	run --once
	is "$? $(at_all)" "7 0|0" "and a large one"
	value "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1 / (NEW.id - 7); RETURN NEW; END'"
	run --once
	is "$? $(at_all)" "0 599|1" "one that fails for the value of a single row costs this row"
	value "TRUNCATE t, millrace.dead_letters, millrace.ingest_offsets"
	value "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION \$\$never\$\$; END'"
	rm "$work"/in/*
	for n in 1 2 3 4 5; do { echo id,name; echo $n,fine; } >"$work/in/$n.csv"; done
	run --once
	is "$? $(at_all)" "7 0|0" "one that raises for every row stops the stream at the first of many small batches"
	value 'DROP TRIGGER z ON t'
done
clean
{ echo id,name; yes x,y | head -20000; } >"$work/in/e.csv"
start=$SECONDS
run --once
is "$? $(dead)" "0 22P02|20000" "a file of nothing but bad rows"
ok "$((SECONDS - start > 15))" "in a few seconds"

# ---- times that only the server can read ----

leaves() { value "SELECT string_agg(to_char(from_time, 'YYYYMMDD'), ' ' ORDER BY from_time) FROM millrace.partitions('$1')"; }
psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE TABLE zoned (id int, at timestamptz DEFAULT '2024-08-15 00:00+00') PARTITION BY RANGE (at);
CREATE TABLE plain (id int, at timestamp) PARTITION BY RANGE (at);
CREATE TABLE days (id int, at date) PARTITION BY RANGE (at);
SELECT millrace.create_source(t, 'at', '1 day') FROM unnest('{zoned,plain,days}'::regclass[]) t;
SQL
clean
printf 'id,at\n1,2024-03-01 00:30\n2,"March 5, 2024 10:00"\n3,nonsense\n4,infinity\n5,2024-03-01 00:30\n' >"$work/in/a.csv"
run --once --target.table=zoned --target.timezone=Europe/Berlin
is "$? $(leaves zoned) $(value 'SELECT count(*) FROM zoned') $(dead)" "0 20240229 20240305 3 22007|1
|1" "times without a zone in a zone, and in words: partitions are made"
clean
printf 'id\n1\n' >"$work/in/b.csv"
run --once --target.table=zoned
is "$? $(leaves zoned) $(dead)" "0 20240229 20240305 20240815 " "a partition for the DEFAULT"
clean
printf 'id,at\n1,2024-03-01T23:30:00-05:00\n2,1969-12-31 05:00\n' >"$work/in/a.csv"
run --once --target.table=plain --target.min_time=1900-01-01
is "$? $(leaves plain) $(dead)" "0 19691231 20240301 " "a zone that the column ignores"
clean
printf 'id,at\n1,1969-12-30 05:00\n' >"$work/in/a.csv"
run --once --target.table=days --target.min_time=1900-01-01
is "$? $(leaves days) $(dead)" "0 19691230 " "a date before 1970"
clean
value "TRUNCATE zoned; CREATE TABLE zoned_rest PARTITION OF zoned DEFAULT; INSERT INTO zoned VALUES (1, '2024-06-01 12:00Z')"
printf 'id,at\n1,2024-06-01T13:00Z\n2,2024-06-01T14:00Z\n3,2024-06-02T14:00Z\n' >"$work/in/a.csv"
run --once --target.table=zoned
is "$? $(value 'SELECT tableoid::regclass, count(*) FROM zoned GROUP BY 1 ORDER BY 1') $(grep -c 'no partition can be made' "$work/log")" "0 zoned_rest|3
zoned_20240602|1 1" "a default partition that holds rows of the time keeps them, with one warning"

# ---- standard input, when it cannot be stored ----

clean
mkfifo "$work/pipe"
"$millrace" run "$work/in.ini" --source.type=stdin --csv.header=false --csv.columns=id --target.retry=10min >"$work/log" 2>&1 <"$work/pipe" &
pid=$!
exec 9>"$work/pipe"
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND query LIKE '%ingest_offsets%'" 1
value 'ALTER TABLE t RENAME TO gone'
seq 1 10 >&9
until_true says 'server refuses'
kill -TERM $pid
wait $pid
is $? 7 "stopped while standard input cannot be stored: status 7"
like "$(cat "$work/log")" "before the last 10 rows of standard input could be stored" "and says how many rows were not"
exec 9>&-
value 'ALTER TABLE gone RENAME TO t'

# ---- odd files ----

clean
printf '\xef\xbb\xbf1,one\n2,two\n' >"$work/in/a.csv"
run --once --csv.header=false --csv.columns=id,name
is "$? $(value 'SELECT id, name FROM t ORDER BY 1' | tr '\n' ' ')$(dead)" "0 1|one 2|two " "a byte-order mark without a header"
clean
printf '\xef\xbb\xbf' >"$work/in/a.csv"
run --once
is "$? $(at_all)" "0 0|0" "a file of nothing but a byte-order mark is empty"
clean
printf 'id,name\n1,one\n' >"$work/in/a.csv"
printf 'id,name\n2,two\n' >"$work/in/b.csv"
printf 'id,name\n3,three\n' >"$work/in/"$'\xff.csv'
run --once
is "$? $(value 'SELECT array_agg(id ORDER BY id) FROM t')" "0 {1,2}" "a name that is not UTF-8 is passed over"
like "$(cat "$work/log")" "is not UTF-8: it is not read" "with a warning"
printf 'id,name\n' >"$work/in/a.csv"
run --once
like "$? $(grep -a 'a.csv' "$work/log")" "^0 .*\"a.csv\" is another one than was read up to byte 14" "a file that became shorter is another one, with a warning"
clean
printf 'id,name\n21,"a\n22,b\n23,",z\n24,d\n' >"$work/in/a.csv"
run --once
is "$? $(value 'SELECT array_agg(id ORDER BY id) FROM t') $(value "SELECT encode(payload, 'escape') FROM millrace.dead_letters ORDER BY id" | tr '\n' ' ')" '0 {22,24} 21,"a 23,",z ' "a quote that joins lines to a record with too many fields costs the line it stands in"
run --once -X target.connection=password=swordfish --target.connection
is "$? $(grep -c swordfish "$work/log")" "2 0" "an argument in the wrong place is not printed"
run --once password=swordfish --tarket.connection=swordfish --passwrod=swordfish
is "$? $(grep -c swordfish "$work/log")" "2 0" "nor a value behind ="

# ---- a role that may do no more than it needs ----

clean
psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE ROLE owner;
CREATE ROLE ingester LOGIN;
GRANT CREATE ON SCHEMA public TO owner;
CREATE TABLE events (id int, at timestamptz) PARTITION BY RANGE (at);
SELECT millrace.create_source('events', 'at', '1 day');
ALTER TABLE events OWNER TO owner;
SQL
printf 'id,at\n1,2024-03-01 00:30Z\nx,2024-03-01 00:30Z\n' >"$work/in/a.csv"
as_ingester() { run --once --target.table=events --target.connection=user=ingester; }
as_ingester
like "$? $(cat "$work/log")" "^5 .*role ingester lacks USAGE on schema millrace" "without USAGE: status 5"
value 'GRANT USAGE ON SCHEMA millrace TO ingester'
as_ingester
like "$? $(cat "$work/log")" "^5 .*lacks INSERT on .*lacks USAGE on sequence" "without the others: status 5, all named"
sed -n '/^```sql grants$/,/^```$/p' "$here/../../../ingest/README.md" | sed '1d;$d' >"$work/grants.sql"
grep -v '^GRANT owner\|ensure_partitions' "$work/grants.sql" | psql -qAtX -v ON_ERROR_STOP=1
as_ingester
like "$? $(cat "$work/log")" "^5 .*role ingester cannot make partitions of public.events" "a partition that it may not make: a warning, then status 5"
psql -qAtX -v ON_ERROR_STOP=1 -f "$work/grants.sql"
as_ingester
is "$? $(value 'SELECT count(*) FROM events') $(dead)" "0 1 22P02|1" "the grants in README.md are enough"
MILLRACE_BATCH_MAXROWS=3 run --once
like "$? $(cat "$work/log")" "^2 .*unknown variable MILLRACE_BATCH_MAXROWS" "an unknown environment variable: status 2"

# ---- fields and names ----

clean
printf '1,one\n' >"$work/in/a.csv"
run --once --csv.header=false --csv.columns=id,label --columns.name=lable
like "$? $(cat "$work/log")" "^5 .*there is no field \"lable\": without a header csv.columns names them" "an unknown field where there is no header"
run --once --csv.header=false --csv.columns='id, label' --columns.name=label
is "$? $(value 'SELECT id, name FROM t')" "0 1|one" "a known one"
clean
value 'CREATE TABLE dotted (id int, "a.b" text, c text)'
printf '{"id": 1, "a.b": "x", "a": {"b": "y"}}\n' >"$work/in/a.csv"
run --once --source.format=json --target.table=dotted --columns.c=a.b
is "$? $(value 'SELECT * FROM dotted')" "0 1|x|y" "a dot splits only where a rule gives a path"
printf 'one\n[source]\ntype = stdin\ntwo\n[target]\nthree\ntable = t\n' >"$work/bad.ini"
"$millrace" check "$work/bad.ini" >"$work/log" 2>&1
is "$? $(grep -c 'neither \[section\] nor key' "$work/log")" "2 3" "every malformed line is reported"

# ---- the database goes away ----

hold() { # keeps writers of t out until release: the batch hangs in COPY
	psql -qX -c 'BEGIN; LOCK TABLE t IN SHARE MODE; SELECT pg_sleep(600)' >/dev/null 2>&1 &
	until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'ShareLock' AND granted" 1
}
release() { value "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'ShareLock'" >/dev/null; }
hangs() { answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND wait_event_type = 'Lock'" 1; }
start() {
	: >"$work/log"
	"$millrace" run "$work/in.ini" "$@" >>"$work/log" 2>&1 &
	pid=$!
}
exactly_once() { is "$(value 'SELECT count(*), count(DISTINCT id), sum(id) FROM t')" "10000|10000|50005000" "$1"; }

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/f.csv"
hold
start --once
until_true hangs
value "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'millrace'" >/dev/null
until_true says 'connection to the database lost'
release
wait $pid
is $? 0 "its session is terminated in mid-batch: it connects again"
exactly_once "and all rows are there once"

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/g.csv"
hold
start --once
until_true hangs
"$lib/cluster" kill "$work/cluster"
until_true says 'cannot connect'
"$lib/cluster" again "$work/cluster"
wait $pid
is $? 0 "the server crashes in mid-batch and comes back"
exactly_once "and all rows are there once"

clean
value "CREATE TABLE closed (); CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
	IF (SELECT count(*) > 0 FROM closed) THEN RAISE ''not now'' USING ERRCODE = ''55P03''; END IF; RETURN NULL; END';
	CREATE TRIGGER closed AFTER INSERT ON t EXECUTE FUNCTION closed(); INSERT INTO closed DEFAULT VALUES"
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/r.csv"
start --once --target.retry=4s
until_true says 'server refuses: not now'
"$lib/cluster" kill "$work/cluster"
sleep 4.5
: >"$work/log"
"$lib/cluster" again "$work/cluster"
until_true says 'server refuses: not now'
value 'DROP TRIGGER closed ON t; DROP TABLE closed'
wait $pid
is $? 0 "a server that refuses, is away for longer than target.retry and refuses once more"
exactly_once "and all rows are there once"

# A stream is created between the COPY into one leaf and that through the parent
value "CREATE TABLE parted (id int, at timestamptz) PARTITION BY RANGE (at); CREATE TABLE piped (id int);
	SELECT millrace.create_source('parted', 'at', '1 day');
	SELECT millrace.create_pipe('piped', 'parted', 'INSERT INTO piped SELECT id FROM new_rows')" >/dev/null
clean
{ echo id,at; seq -f '%.0f,2024-03-01T12:00Z' 1 1000; seq -f '%.0f,2024-03-02T12:00Z' 1001 1010; } >"$work/in/p.csv"
psql -qX -c 'BEGIN; LOCK TABLE piped IN SHARE MODE; SELECT pg_sleep(600)' >/dev/null 2>&1 &
until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 'piped'::regclass AND mode = 'ShareLock' AND granted" 1
start --once --target.table=parted
until_true hangs
value "SELECT millrace.create_continuous_aggregate('per_day', 'SELECT millrace.tumble(at, ''1 day'') AS day, count(*) FROM parted GROUP BY 1')" >"$work/created" 2>&1 &
creator=$!
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT millrace.create%' AND wait_event_type = 'Lock'" 1
value "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'piped'::regclass AND mode = 'ShareLock'" >/dev/null
wait $creator
is "$? $(grep -c ERROR "$work/created")" "0 0" "a stream is created in mid-batch"
wait $pid
is "$? $(grep -c 'deadlock' "$work/cluster/log") $(value 'SELECT sum(count) FROM per_day')" "0 0 1010" "without a deadlock, and has all rows"

for point in before-commit commit-lost; do
	clean
	{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/h.csv"
	rm -f "$work/port"
	"$lib/pgproxy.py" "$work/port" "$PGHOST" "$PGPORT" $point >/dev/null 2>&1 &
	proxy=$!
	until_true test -s "$work/port"
	run --once --target.connection="host=127.0.0.1 port=$(cat "$work/port")"
	is $? 0 "cut at $point"
	like "$(cat "$work/log")" "the answer to COMMIT was lost; the batch was $([ $point = commit-lost ] && echo stored || echo "not stored")" "the position tells what happened"
	exactly_once "and all rows are there once"
	kill -KILL $proxy
	wait $proxy 2>/dev/null
done

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/i.csv"
"$lib/cluster" kill "$work/cluster"
run --once --target.reconnect=1s
is $? 4 "no server at the start: status 4"
"$lib/cluster" again "$work/cluster"
hold
start --once --target.reconnect=1s
until_true hangs
"$lib/cluster" kill "$work/cluster"
wait $pid
is $? 4 "gone for longer than target.reconnect: status 4"
"$lib/cluster" again "$work/cluster"
run --once
exactly_once "and the next run stores the rows"

# ---- two on one stream, signals, new files ----

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/j.csv"
hold
start --once
first=$pid
until_true hangs
"$millrace" run "$work/in.ini" --once >"$work/log2" 2>&1 &
second=$!
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND wait_event_type = 'Lock'" 2
release
wait $first; one=$?
wait $second; two=$?
is "$((one < two ? one : two)) $((one < two ? two : one))" "0 6" "two ingesters on one stream: one stores, one stops with status 6"
exactly_once "and all rows are there once"

clean
start
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace'" 1
{ echo id,name; seq -f '%.0f,fine' 1 5000; } >"$work/in/.new" && mv "$work/in/.new" "$work/in/k.csv"
until_true answers 'SELECT count(*) FROM t' 5000
is $? 0 "without --once it waits for new files"
{ echo id,name; seq -f '%.0f,fine' 5001 10000; } >"$work/in/.new" && mv "$work/in/.new" "$work/in/a-later.csv"
until_true answers 'SELECT count(*) FROM t' 10000
kill -TERM $pid
wait $pid
is $? 0 "SIGTERM while it waits: status 0"
exactly_once "and all rows are there once"

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/l.csv"
hold
start --once
until_true hangs
kill -TERM $pid
release
wait $pid
is $? 0 "SIGTERM in mid-batch: status 0"
exactly_once "the batch in hand is finished"
clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/l.csv"
hold
start --once
until_true hangs
kill -TERM $pid
# Two that are pending at once count as one: wait until the first is delivered.
until_true grep -qE '^ShdPnd:[[:space:]]*0+$' "/proc/$pid/status"
kill -TERM $pid
wait $pid
is $? 8 "a second signal: status 8 at once"
release
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace'" 0
is "$(value 'SELECT count(*) FROM t')" 0 "and nothing is stored"

clean
seq -f '%.0f,fine,1' 1 10000 | run --source.type=stdin --csv.header=false --csv.columns=id,name,amount --batch.max_rows=3000
is $? 0 "standard input"
exactly_once "is read to its end"
is "$(grep -c ': committed' "$work/log")" 4 "in batches of max_rows"

clean
{ echo id,name; seq -f '%.0f,fine' 1 10000; } >"$work/in/m.csv"
run --once --batch.max_bytes=64kB
exactly_once "a file that needs more memory than a batch may have is read in several"
ok "$(test "$(grep -c ': committed' "$work/log")" -gt 5; echo $?)" "indeed several"
seq -f '%.0f,fine' 10001 10010 >>"$work/in/m.csv"
run --once
is "$(value 'SELECT count(*), max(id) FROM t')" "10010|10010" "what is appended to a file is read, and only that"

# ---- real data ----

tar -xJf "$data/retail-by-day.tar.xz" -C "$work" || exit 1
psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE TABLE retail (InvoiceNo text, StockCode text, Description text, Quantity int, InvoiceDate timestamp, UnitPrice numeric,
	CustomerID numeric, Country text) PARTITION BY RANGE (InvoiceDate);
SELECT millrace.create_source('retail', 'invoicedate', '1 month');
SQL
run --once --source.path="$work/by-day" --target.table=retail --progress --log.level=info
is $? 0 "a year of a shop, 305 files"
is "$(value 'SELECT count(*), count(DISTINCT tableoid), sum(Quantity) FROM retail')" "541909|13|$(tail -q -n +2 "$work"/by-day/*.csv | python3 -c '
import csv, sys
print(sum(int(row[3]) for row in csv.reader(sys.stdin)))')" "541,909 rows in 13 months, as Python's csv module counts them"
is "$(grep -c ': committed' "$work/log")" 305 "one file is one batch"
is "$(value "SELECT count(*), sum(next_offset) FROM millrace.ingest_offsets WHERE source = '$(realpath "$work/by-day")'")" \
	"305|$(cat "$work"/by-day/*.csv | wc -c)" "the positions are the ends of the files"
like "$(cat "$work/log")" "541909 rows, .* 305 of 305 files" "the progress line counts rows and files"
done_testing
