#!/usr/bin/env bash
# Rows that the database refuses: what each costs, that a fault of anything but the row makes no dead letter, and that
# dead letters can be listed, replayed and limited.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
# Every COPY stands in the server's log: that is where they are counted.
start_cluster log_statement=all
mkdir "$work/in"

says() { grep -q "$1" "$work/log"; }
run() { # run OPTION …; its status is the answer; sets n_copies
	local n_before
	n_before=$(copies)
	"$millrace" run "$work/in.ini" --once "$@" >"$work/log" 2>&1
	local status=$?
	n_copies=$(($(copies) - n_before))
	return $status
}
copies() { grep -c 'LOG:  statement: .*COPY public' "$work/cluster/log"; }
start() { "$millrace" run "$work/in.ini" --once "$@" >"$work/log" 2>&1 & pid=$!; }
clean() { value 'TRUNCATE t, millrace.dead_letters, millrace.ingest_offsets' && rm -f "$work"/in/*; }
at_all() { value 'SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM millrace.dead_letters)'; }
dead() { value "SELECT convert_from(payload, 'UTF8'), stage, sqlstate FROM millrace.dead_letters ORDER BY id"; }
at_most() { # at_most NUMBER LIMIT NAME
	[ "$1" -le "$2" ]
	ok $? "$3 ($1, at most $2)"
}
rows() { # rows N [SED …]: N good rows, changed by sed; line 1 is the header
	local n=$1
	shift
	{ echo id,name,parent; seq -f '%.0f,fine,' 1 "$n"; } | if [ $# -gt 0 ]; then sed "$@"; else cat; fi
}
broken() { value "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS '$1'"; }

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE EXTENSION millrace;
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO other VALUES (7);
CREATE TABLE t (id int, name text, parent int REFERENCES other);
CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF EXISTS (SELECT FROM new_rows WHERE name = 'picked') THEN RAISE EXCEPTION 'no such name here'; END IF;
	RETURN NULL; END $$;
CREATE TRIGGER picky AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION picky();
CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SQL
cat >"$work/in.ini" <<INI
[source]
type = directory
path = $work/in

[target]
table = t
retry = 300ms
INI

# ---- what one bad row of 50,000 costs ----

for line in 2 17003 50001; do
	clean
	rows 50000 "${line}s/.*/bad,fine,/" >"$work/in/a.csv"
	run
	is "$? $(at_all) $(dead)" "0 49999|1 bad,fine,|store|22P02" "a value that is no integer in line $line"
	at_most $((n_copies - 1)) 2 "COPYs more than without it"
	clean
	rows 50000 "${line}s/.*/0,fine,8/" >"$work/in/a.csv"
	run
	is "$? $(at_all) $(dead)" "0 49999|1 0,fine,8|store|23503" "a foreign key in line $line, which the error does not name"
	at_most $((n_copies - 1)) 20 "COPYs more than without it"
	clean
	rows 50000 "${line}s/.*/0,picked,/" >"$work/in/a.csv"
	run
	is "$? $(at_all) $(dead)" "0 49999|1 0,picked,|store|P0001" "an exception of a statement trigger over line $line"
	at_most $((n_copies - 1)) 20 "COPYs more than without it"
done
clean
rows 50000 -e '2~5000s/.*/bad,fine,/' >"$work/in/a.csv"
run
is "$? $(at_all)" "0 49990|10" "ten bad values"
at_most $((n_copies - 1)) 20 "COPYs more, two each"
clean
rows 50000 -e '2~5000s/.*/0,fine,8/' >"$work/in/a.csv"
run
is "$? $(at_all)" "0 49990|10" "ten foreign keys"
at_most $((n_copies - 1)) 200 "COPYs more, twenty each"
clean
rows 20000 -e '2~2s/.*/0,fine,8/' >"$work/in/a.csv"
run
is "$? $(at_all)" "0 10000|10000" "a foreign key in every second of 20,000 rows"
at_most "$n_copies" 40000 "COPYs"

value "CREATE TABLE days (id int, name text, at timestamptz) PARTITION BY RANGE (at); SELECT millrace.create_source('days', 'at', '1 day')" >/dev/null
clean
for day in 1 2 3 4 5; do seq -f "%.0f,fine,2024-03-0${day}T12:00Z" $((day * 1000)) $((day * 1000 + 999)); done |
	sed -e '1i id,name,at' -e '4500s/^[0-9]*/bad/' >"$work/in/a.csv"
run --target.table=days
is "$? $(value 'SELECT count(*) FROM days') $(dead | cut -d, -f1)" "0 4999 bad" "a bad value in the fifth of five partitions"
at_most $((n_copies - 5)) 2 "COPYs more than one a partition"

# ---- a table that refers to itself ----

value 'CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree)'
tree() { value 'SELECT count(*), (SELECT count(*) FROM millrace.dead_letters) FROM tree'; }
clean
{ echo id,parent; seq 1 1999 | sed -e 's/$/,2000/' -e '700s/.*/bad,2000/'; echo 2000,; } >"$work/in/a.csv"
run --target.table=tree
is "$? $(tree) $(dead)" "0 1999|1 bad,2000|store|22P02" "one bad row among rows that refer to the last one costs itself"
at_most "$n_copies" 3 "COPYs"
value 'TRUNCATE tree'
clean
{ echo id,parent; seq 1 600 | awk '{ print $1 "," $1 + 1 }' | sed -e '100s/.*/100,/' -e '600s/.*/600,/' -e '200s/.*/200,77777/'; } >"$work/in/a.csv"
run --target.table=tree
is "$? $(tree)" "0 500|100" "of a chain that is broken just the rows are lost that hang on nothing"

# ---- only the data makes dead letters ----

nothing() { # nothing STATUS NAME: not a row and no letter of 10,000 good rows
	is "$1 $(at_all) $(value 'SELECT count(*) FROM millrace.ingest_offsets WHERE next_offset > 0')" "7 0|0 0" "$2: status 7, nothing stored, no dead letter"
}
clean
rows 10000 >"$work/in/a.csv"
for when in "BEFORE INSERT ON t FOR EACH ROW" "AFTER INSERT ON t FOR EACH ROW" "AFTER INSERT ON t FOR EACH STATEMENT"; do
	value "CREATE TRIGGER z $when EXECUTE FUNCTION broken()"
	broken 'BEGIN PERFORM 1 / 0; RETURN NEW; END'
	run
	nothing $? "a division by zero in a trigger ($when)"
	broken 'BEGIN RAISE EXCEPTION $$never$$; END'
	run
	nothing $? "an exception"
	broken 'BEGIN PERFORM * FROM nowhere; RETURN NEW; END'
	run
	nothing $? "a missing table"
	broken 'BEGIN INSERT INTO other VALUES (7); RETURN NEW; END'
	run
	nothing $? "a key of another table"
	value 'DROP TRIGGER z ON t'
done
value 'ALTER TABLE t ADD CONSTRAINT divides CHECK (1 / (id - id) IS NULL) NOT VALID'
run
nothing $? "a CHECK that divides by zero"
value 'ALTER TABLE t DROP CONSTRAINT divides'
value "ALTER TABLE t ADD seen int DEFAULT 1 / (random() * 0)::int"
run
nothing $? "a DEFAULT that does"
value 'ALTER TABLE t DROP seen'
psql -qX -c 'BEGIN; LOCK TABLE t; SELECT pg_sleep(600)' >/dev/null 2>&1 &
until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock' AND granted" 1
PGOPTIONS='-c lock_timeout=100ms' run --source.name=locked
status=$?
value "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'" >/dev/null
nothing $status "a lock"
value 'ALTER TABLE t RENAME TO gone'
"$millrace" run "$work/in.ini" --once --target.table=gone >"$work/log" 2>&1 &
wait $!
value 'ALTER TABLE gone RENAME TO t; TRUNCATE millrace.ingest_offsets; TRUNCATE t'
run
is "$? $(at_all)" "0 10000|0" "when all is mended the same rows are stored"

clean
rows 10000 >"$work/in/a.csv"
broken 'BEGIN PERFORM pg_sleep(0.0002); RETURN NEW; END'
value 'CREATE TRIGGER z BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION broken()'
PGOPTIONS='-c statement_timeout=700ms' run --target.retry=1min
is "$? $(at_all)" "0 10000|0" "a batch that takes longer than statement_timeout is stored in smaller statements"
ok "$(grep -q 'statement timeout' "$work/log"; echo $?)" "after the first did not come through"
value 'DROP TRIGGER z ON t'

# ---- a row alone ----

clean
broken 'BEGIN IF NEW.name = $$poison$$ THEN PERFORM 1 / 0; END IF; RETURN NEW; END'
value 'CREATE TRIGGER z BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION broken()'
rows 1 's/fine/poison/' >"$work/in/a.csv"
run
nothing $? "a row alone that a trigger fails for: nobody knows whose fault it is"
rows 1 >"$work/in/0.csv"
run
is "$? $(at_all) $(dead)" "0 1|1 1,poison,|store|22012" "with a row before it that is accepted, it is the row's"
clean
rows 1 's/fine/poison/' >"$work/in/a.csv"
mkfifo "$work/pipe"
"$millrace" run "$work/in.ini" --source.type=stdin --csv.header=false --csv.columns=id,name --batch.max_age=20ms --target.retry=1min >"$work/log" 2>&1 <"$work/pipe" &
pid=$!
exec 9>"$work/pipe"
echo 1,poison >&9
until_true says 'fault is not in the data'
is "$(at_all)" "0|0" "a row alone waits"
echo 2,fine >&9
until_true answers 'SELECT count(*) FROM t' 1
is "$(at_all) $(dead)" "1|1 1,poison|store|22012" "a row that comes later and is accepted shows that it is the row's fault"
value 'DROP TRIGGER z ON t'
exec 9>&-
wait $pid
clean
broken 'BEGIN IF NEW.id > 100 THEN RAISE EXCEPTION $$full$$; END IF; RETURN NEW; END'
value 'CREATE TRIGGER z BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION broken()'
for n in $(seq 100 140); do printf 'id,name\n%s,fine\n' "$n" >"$work/in/$n.csv"; done
run
is "$? $(at_all)" "7 1|16" "a trigger that accepts nothing any more stops the stream, be the batches ever so small"
value 'DROP TRIGGER z ON t'

# ---- errors that are the row's although their class is not that of data ----

clean
value 'CREATE INDEX t_name ON t (name)'
{ rows 2000; printf '7777,"%s",\n' "$(head -c 30000 /dev/urandom | base64 -w0)"; seq -f '%.0f,fine,' 3000 5000; } >"$work/in/a.csv"
run
is "$? $(at_all) $(value 'SELECT sqlstate FROM millrace.dead_letters')" "0 4001|1 54000" "a value too large for an index"
value 'DROP INDEX t_name'
clean
value 'CREATE TABLE kinds (id int, kind regclass)'
printf 'id,kind\n1,t\n2,nowhere\n3,other\n' >"$work/in/a.csv"
run --target.table=kinds
is "$? $(value 'SELECT count(*) FROM kinds') $(dead)" "0 2 2,nowhere|store|42P01" "a regclass that does not exist"

# ---- a disk that is full ----

if [ "$(id -u)" = 0 ] && mkdir "$work/disk" && mount -t tmpfs -o size=4m tmpfs "$work/disk" 2>/dev/null; then
	trap 'umount -l "$work/disk"; scenario_end' EXIT
	chown postgres: "$work/disk"
	chmod 700 "$work/disk"
	value "CREATE TABLESPACE small LOCATION '$work/disk'" && value 'CREATE TABLE full_up (id int, name text) TABLESPACE small; CREATE TABLE filler TABLESPACE small AS SELECT 1'
	clean
	value "INSERT INTO filler SELECT g FROM generate_series(1, 70000) g"
	{ echo id,name; seq -f '%.0f,a row of some fifty bytes, so that the disk is full of them' 1 50000 | sed 's/, so/ so/'; } >"$work/in/a.csv"
	run --target.table=full_up
	is "$? $(value 'SELECT count(*) FROM full_up') $(dead)" "7 0 " "a full disk: status 7, nothing stored, no dead letter"
	like "$(cat "$work/log")" 'SQLSTATE 53100' "and says so"
	start --target.table=full_up --target.retry=1min
	until_true says 'SQLSTATE 53100'
	mount -o remount,size=64m "$work/disk"
	wait $pid
	is "$? $(value 'SELECT count(*) FROM full_up') $(dead)" "0 50000 " "when there is room the rows are stored, without a restart"
	value 'DROP TABLE full_up, filler' && value 'DROP TABLESPACE small'
else
	ok 0 "a full disk # SKIP no tmpfs can be mounted here"
fi

# ---- list and replay ----

letters() { "$millrace" dead-letters "$@" 2>"$work/err"; }
clean
printf 'id,name,parent\n1,one,\n2,two,8\nx,three,\n4,"f"our,\n5,five,9\n6,six,\n' >"$work/in/a.csv"
printf 'name,id\nseven,7\neight,y\n' >"$work/in/b.csv"
run
is "$? $(at_all)" "0 3|5" "five rows of two files with different headers are refused"
is "$(letters list "$work/in.ini" --payload | cut -f3- | tr '\t' ' ')" 'a.csv[0]@22 store 23503 insert or update on table "t" violates foreign key constraint "t_parent_fkey"; Key (parent)=(8) is not present in table "other". 2,two,8
a.csv[0]@30 store 22P02 invalid input syntax for type integer: "x" x,three,
a.csv[0]@39 decode - text behind the closing quote of a field 4,"f"our,
a.csv[0]@49 store 23503 insert or update on table "t" violates foreign key constraint "t_parent_fkey"; Key (parent)=(9) is not present in table "other". 5,five,9
b.csv[0]@16 store 22P02 invalid input syntax for type integer: "y" eight,y' "they are listed with their bytes"
is "$(letters list "$work/in.ini" --sqlstate=22P02 --limit=1 | cut -f3-5 | tr '\t' ' ')" 'a.csv[0]@30 store 22P02' "or some of them"
rm "$work"/in/*
value 'INSERT INTO other VALUES (8)'
python3 -c "import socket, sys, time; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(600)" >"$work/busy" &
busy=$!
until_true test -s "$work/busy"
letters replay "$work/in.ini" --metrics.listen="127.0.0.1:$(cat "$work/busy")"
is "$? $(at_all) $(value 'SELECT id, name, parent FROM t ORDER BY id' | tr '\n' ' ')" "0 4|4 1|one| 2|two|8 6|six| 7|seven| " "replay stores what is accepted now, although the file is gone"
is "$(letters list "$work/in.ini" | cut -f3-5 | tr '\t' ' ')" 'a.csv[0]@30 store 22P02
a.csv[0]@39 decode -
a.csv[0]@49 store 23503
b.csv[0]@16 store 22P02' "the others stay"
kill $busy
value "ALTER TABLE t ALTER id TYPE text"
letters list "$work/in.ini" --stage=stor --ids=7-3 >/dev/null
is "$? $(cat "$work/err")" '2 command line: "stor" is no stage: read, decode, partition or store
command line: "7-3" is no list of ids: write 7,20-40' "filters that choose nothing are told"
letters replay "$work/in.ini" --stage=store --sqlstate=22P02
is "$? $(at_all)" "0 6|2" "only some, with the table as it is now"
is "$(value "SELECT name FROM t WHERE id IN ('x', 'y') ORDER BY id" | tr '\n' ' ')" "three eight " "by the names in the header of its own file"
value "UPDATE millrace.dead_letters SET reason = 'old'"
letters replay "$work/in.ini"
is "$? $(value "SELECT count(*) FROM millrace.dead_letters WHERE reason <> 'old'")" "0 2" "what fails again has its new reason"
is "$(value 'SELECT count(*) FROM t')" 6 "and nothing is stored twice"
letters replay "$work/in.ini" --ids=1-
is $? 2 "a list of ids that is none: status 2"
value "DELETE FROM t; DELETE FROM millrace.dead_letters; ALTER TABLE t ALTER id TYPE int USING id::int"

# Two at once: each letter is stored once.
value "INSERT INTO millrace.dead_letters (source, topic, partition, \"offset\", payload, csv_header, stage, reason)
	SELECT '$(realpath "$work/in")', 'f.csv', 0, g, convert_to(g || ',fine', 'UTF8'), 'id,name', 'store', 'once' FROM generate_series(1, 20000) g"
for i in 1 2 3; do "$millrace" dead-letters replay "$work/in.ini" --batch.max_rows=500 >"$work/log$i" 2>&1 & pids[i]=$!; done
for i in 1 2 3; do wait "${pids[i]}"; done
letters replay "$work/in.ini"
is "$(value 'SELECT count(*), count(DISTINCT id), sum(id) FROM t')" "20000|20000|200010000" "three replays at once store each letter once"

# What Kafka gave besides the message.
value 'CREATE TABLE events (id int, at timestamptz, key text, topic text, part int, pos bigint)'
value "INSERT INTO millrace.dead_letters (source, topic, partition, \"offset\", key, payload, headers, message_time, stage, reason)
	VALUES ('k', 'events', 3, 77, 'the key', '{\"id\": 5}', '{\"h\": \"v\"}', '2024-03-01 12:00Z', 'store', 'once')"
cat >"$work/k.ini" <<INI
[source]
type = kafka
brokers = 127.0.0.1:1
topic = events
name = k
[target]
table = events
[columns]
at = \$timestamp
key = \$key
topic = \$topic
part = \$partition
pos = \$offset
INI
letters replay "$work/k.ini"
is "$? $(value 'SELECT * FROM events')" "0 5|2024-03-01 12:00:00+00|the key|events|3|77" "a replayed message keeps its key, time and place, and needs no broker"

# ---- a limit ----

clean
for n in 1 2 3 4 5; do printf 'id,name\n%s,fine\nx,bad\ny,bad\n' $n >"$work/in/$n.csv"; done
run --dead_letters.limit=5
is "$? $(at_all)" "9 3|6" "more dead letters than the limit: status 9"
run --dead_letters.limit=5
is "$? $(at_all)" "9 3|6" "and it does not start again"
value "DELETE FROM millrace.dead_letters"
run --dead_letters.limit=5
is "$? $(at_all)" "0 5|4" "before they are gone"
run --dead_letters.limit=0
is "$?" 0 "no limit"
clean
printf 'id,name,parent\n1,fine,\nx,bad,\ny,bad,\n' | run --source.type=stdin --dead_letters.limit=1
is "$? $(at_all)" "9 1|2" "standard input: status 9"
ok "$(! grep -q 'could be stored' "$work/log"; echo $?)" "and what is stored is not told to be lost"

# ---- offsets ----

clean
rows 3 >"$work/in/a.csv"
run
offsets() { "$millrace" offsets "$work/in.ini" "$@" 2>"$work/err" | cut -f1-3 | tr '\t' ' '; }
is "$(offsets)" "a.csv 0 $(stat -c %s "$work/in/a.csv")" "positions are listed"
is "$(offsets --set a.csv:0=23 --set=new:4=77)" "a.csv 0 23
new 4 77" "and set"
run
is "$? $(value 'SELECT id, count(*) FROM t GROUP BY 1 ORDER BY 1' | tr '\n' ' ')" "0 1|1 2|2 3|2 " "and it goes on from there"
"$millrace" offsets "$work/in.ini" --set a.csv=5 >"$work/log" 2>&1
is "$? $(cat "$work/log")" '2 command line: "a.csv=5" is not of the form TOPIC:PARTITION=OFFSET' "a wrong one: status 2"
sed -i /^name/d "$work/k.ini"
for table in events public.events '"public"."events"'; do
	"$millrace" offsets "$work/k.ini" --target.table="$table" --set e:0=5
done >"$work/log" 2>&1
is "$(value "SELECT source FROM millrace.ingest_offsets WHERE topic = 'e'")" "millrace-public.events" "the name of a stream does not depend on how its table is spelled"

# ---- a session that the server does not know to be lost ----

value 'CREATE TABLE keyed (id int PRIMARY KEY)'
clean
{ echo id; seq 1 1000; } >"$work/in/a.csv"
value "INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset) VALUES ('half', 'a.csv', 0, 0)"
psql -qX -c "BEGIN; UPDATE millrace.ingest_offsets SET updated = now() WHERE source = 'half'; SELECT pg_sleep(600)" >/dev/null 2>&1 &
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND wait_event = 'PgSleep'" 1
"$here/half.py" "$work/port" "$work/cut" "$PGHOST" "$PGPORT" &
until_true test -s "$work/port"
PGOPTIONS="-c idle_in_transaction_session_timeout=1h" start --target.table=keyed --source.name=half --target.connection="host=127.0.0.1 port=$(cat "$work/port")"
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace' AND wait_event_type = 'Lock'" 1
touch "$work/cut"
value "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()" >/dev/null
until_true says 'done:\|stopped' || kill -KILL $pid
wait $pid
is "$? $(value 'SELECT count(*) FROM keyed')" "0 1000" "its locks go when the next session is there, and the batch is stored"

# ---- what cannot be said in the database's encoding ----

value "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0" && psql -qX -d latin -c 'CREATE EXTENSION millrace' -c 'CREATE TABLE t (id int, name text, parent int)'
rm "$work"/in/*
printf 'id,name,日本\n1,one,\n2,日本,\n' >"$work/in/a.csv"
run --target.connection=dbname=latin
is "$? $(psql -AtXq -d latin -c "SELECT (SELECT count(*) FROM t), count(*), min(sqlstate), min(encode(payload, 'hex')), min(csv_header) FROM millrace.dead_letters")" \
	"0 1|1|22P05|322ce697a5e69cac2c|" "a dead letter keeps its bytes where its header cannot be kept"
done_testing
