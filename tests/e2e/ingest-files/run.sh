#!/usr/bin/env bash
# Files of a directory: known by what was read of them, under whatever name; growing, replaced, packed, damaged, removed.
# Every row is stored exactly once: count, distinct count and sum of the ids say so.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
start_cluster
in=$work/in
mkdir "$in" "$work/archive"
psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE EXTENSION millrace;
CREATE TABLE t (id int, name text, file text);
SQL
cat >"$work/in.ini" <<INI
[source]
type = directory
name = files
path = $in
poll = 50ms

[target]
table = t

[columns]
file = \$file
INI

run() { "$millrace" run "$work/in.ini" "$@" >>"$work/log" 2>&1; }
start() { "$millrace" run "$work/in.ini" "$@" >>"$work/log" 2>&1 & pid=$!; }
stop() { kill -TERM "$pid"; wait "$pid"; }
clean() { value 'TRUNCATE t, millrace.dead_letters, millrace.ingest_offsets' && rm -rf "${in:?}"/* "$work"/archive/* "$work/log"; touch "$work/log"; }
ids() { value 'SELECT count(*), count(DISTINCT id), coalesce(sum(id), 0) FROM t'; } # of 1 … n: see sums
sums() { echo "$1|$1|$(($1 * ($1 + 1) / 2))"; }
rows() { seq -f "%.0f,row of $3" "$1" "$2"; } # rows FROM TO NAME
csv() { echo id,name; rows "$@"; }
batches() { grep -c ': committed' "$work/log"; }
says() { grep -q "$1" "$work/log"; }
letters() { value "SELECT topic, \"offset\", stage, convert_from(payload, 'UTF8') FROM millrace.dead_letters ORDER BY id"; }
is_empty() { [ -z "$(ls "$in")" ]; }
# Nothing more is stored while so many searches of the directory pass.
settled() { sleep 0.5; }

# ---- what is wrong with the options ----

clean
"$millrace" check "$work/in.ini" --source.clean_source=archive >"$work/log" 2>&1
is "$? $(grep -c '"archive" is missing in \[source\]' "$work/log")" "2 1" "clean_source = archive wants a directory"
"$millrace" check "$work/in.ini" --source.clean_source=archive --source.archive="$in" >"$work/log" 2>&1
is "$? $(grep -c 'is the directory that is read' "$work/log")" "3 1" "and another one than it reads"
"$millrace" check "$work/in.ini" --source.clean_source=archive --source.archive=/dev/shm >"$work/log" 2>&1
is "$? $(grep -c 'is on another file system' "$work/log")" "3 1" "on the same file system"
"$millrace" check "$work/in.ini" --source.type=stdin --source.min_age=1s >"$work/log" 2>&1
is "$? $(grep -c '"min_age" belongs to type = directory' "$work/log")" "2 1" "options of directories are refused elsewhere"

# ---- several files a batch ----

clean
for n in {1..25}; do csv $((n * 10 - 9)) $((n * 10)) "$n" >"$in/$(printf %02d "$n").csv"; done
mkdir "$in/below" && csv 9000 9010 below >"$in/below/x.csv" && csv 9000 9010 hidden >"$in/.hidden.csv"
run --once --source.max_files_per_batch=10
is "$? $(ids) $(batches)" "0 $(sums 250) 3" "25 files in batches of ten; folders below and names with a dot are not read"
is "$(value "SELECT string_agg(file, ' ' ORDER BY file) FROM (SELECT file FROM t GROUP BY file HAVING count(*) = 10) f")" "$(cd "$in" && ls -- *.csv | paste -sd' ')" "each row knows its file"
run --once --source.max_files_per_batch=10
is "$? $(ids) $(batches)" "0 $(sums 250) 3" "a second run reads nothing"
rows 251 255 more >>"$in/07.csv"; { echo name,id; echo other,256; } >"$in/26.csv"; printf 'id,name\n257,a\n258,\n2x,b\n259,c' >"$in/27.csv"
run --once --source.max_files_per_batch=10
is "$? $(ids) $(batches)" "0 $(sums 259) 4" "what was appended, and new files with another header, in one"
is "$(letters)" "27.csv|19|store|2x,b" "the bad row of one file is a dead letter of that file"
is "$(value "SELECT sum(next_offset) = sum(file_size) FROM millrace.ingest_offsets")" t "and all are read to their ends"

# ---- order ----

clean
for n in 1 2 3 4; do csv "$n" "$n" "$n" >"$in/$n.csv"; touch -d "2024-01-0$((5 - n))" "$in/$n.csv"; done
run --once --source.latest_first=true --log.level=debug
is "$(grep -o 'reading ".*"' "$work/log" | grep -o '[0-9].csv' | paste -sd' ')" "1.csv 2.csv 3.csv 4.csv" "the latest file first"
clean
for n in 1 2 3 4; do csv "$n" "$n" "$n" >"$in/$n.csv"; touch -d "2024-01-0$n" "$in/$n.csv"; done
run --once --source.latest_first=true --log.level=debug
is "$(grep -o 'reading ".*"' "$work/log" | grep -o '[0-9].csv' | paste -sd' ')" "4.csv 3.csv 2.csv 1.csv" "whatever its name"

# ---- ages ----

clean
csv 1 10 a >"$in/a.csv"; csv 11 20 b >"$in/b.csv"; touch -d '2 days ago' "$in/b.csv"; csv 21 30 c >"$in/c.csv"; touch -d '2099-01-01' "$in/c.csv"
run --once --source.max_file_age=1d
is "$? $(value 'SELECT min(id), max(id), count(*) FROM t')" "0 1|30|20" "a file older than max_file_age is not begun; one of the future is read"
like "$(cat "$work/log")" '"b.csv" is older than source.max_file_age' "with a warning"
rows 31 40 c >>"$in/c.csv"; touch -d '2 days ago' "$in/c.csv"
run --once --source.max_file_age=1d
is "$? $(value 'SELECT max(id), count(*) FROM t')" "0 40|30" "one that was begun is read to its end"
rm "$in/a.csv" "$in/c.csv"
run --once --source.max_file_age=1d
is "$(value 'SELECT topic FROM millrace.ingest_offsets')" "a.csv" "the position of an old file that is gone is forgotten, that of a young one is not"
run --once
is "$? $(ids)" "0 40|40|$((40 * 41 / 2))" "without max_file_age the old file is read"
clean
csv 1 10 a >"$in/a.csv"
run --once --source.min_age=1h
is "$? $(ids)" "0 0|0|0" "a file younger than min_age is not read yet"
touch -d '2 hours ago' "$in/a.csv"
run --once --source.min_age=1h
is "$? $(ids)" "0 $(sums 10)" "and later is"

# ---- files that are being written ----

clean
start --source.last_line_age=1h
printf 'id,na' >"$in/a.csv"
csv 1 10 b >"$in/b.csv"
until_true answers 'SELECT count(*) FROM t' 10
settled
is "$(ids)" "$(sums 10)" "half a header keeps no other file waiting"
printf 'me\n11,whole\n12,ha' >>"$in/a.csv"
until_true answers 'SELECT count(*) FROM t' 11
settled
is "$(ids)" "$(sums 11)" "half a line waits"
printf 'lf\n13,"in\nquotes' >>"$in/a.csv"
until_true answers 'SELECT count(*) FROM t' 12
printf '"\n14,' >>"$in/a.csv"
until_true answers 'SELECT count(*) FROM t' 13
is "$(value "SELECT string_agg(name, ',' ORDER BY id) FROM t WHERE id > 10")" "whole,half,in
quotes" "until the rest of it comes"
kill -KILL "$pid"; wait "$pid" 2>/dev/null
printf 'end\n15,last' >>"$in/a.csv"
start --source.last_line_age=300ms
until_true answers 'SELECT count(*) FROM t' 15
is "$(ids) $(value 'SELECT name FROM t WHERE id = 15') $(letters)" "$(sums 15) last " "a last line without an end is read when the file has come to rest, after a crash, too"
stop
is $? 0 "and it stops"

clean
start --batch.max_rows=700
(for n in {0..49}; do csv_part=$(rows $((n * 100 + 1)) $((n * 100 + 100)) grown); [ "$n" != 0 ] || echo id,name; printf '%s\n' "$csv_part"; sleep 0.02; done) >"$in/grows.csv" &
writer=$!
for n in {1..6}; do
	sleep 0.15
	kill -KILL "$pid"; wait "$pid" 2>/dev/null
	start --batch.max_rows=700
done
wait "$writer"
until_true answers 'SELECT count(*) FROM t' 5000
stop
is "$(ids) $(letters)" "$(sums 5000) " "a growing file, read by a process that is killed six times"

# ---- the same file under another name, another one under the same ----

clean
csv 1 2000 a >"$in/a.csv"; csv 2001 2002 b >"$in/b.csv"; csv 2003 2003 c >"$in/c.csv"
run --once
mv "$in/a.csv" "$in/x.csv"; mv "$in/b.csv" "$in/y.csv"; rows 2004 2010 a >>"$in/x.csv"
run --once
is "$? $(ids)" "0 $(sums 2010)" "renamed files are read on"
like "$(cat "$work/log")" '"y.csv" was "b.csv"' "and it says so"
is "$(value "SELECT topic, next_offset > 0 FROM millrace.ingest_offsets ORDER BY 1" | paste -sd' ')" "c.csv|t x.csv|t y.csv|t" "their old positions are gone"
mv "$in/x.csv" "$in/z"; mv "$in/y.csv" "$in/x.csv"; mv "$in/z" "$in/y.csv"
run --once
is "$? $(ids)" "0 $(sums 2010)" "two that have changed names"
mv "$in/x.csv" "$in/b.csv"
run --once
is "$? $(ids)" "0 $(sums 2010)" "one that has its first name again"
gzip "$in/y.csv"
run --once
is "$? $(ids)" "0 $(sums 2010)" "one that was packed"

clean
csv 1 1000 log >"$in/log"
start --source.last_line_age=1h
until_true answers 'SELECT count(*) FROM t' 1000
for n in 1 2 3 4 5; do
	[ ! -e "$in/log.2" ] || mv "$in/log.2" "$in/log.3"
	[ ! -e "$in/log.1" ] || mv "$in/log.1" "$in/log.2"
	rows $((n * 1000 - 999 + 1000)) $((n * 1000 + 500)) "tail $n" >>"$in/log"
	mv "$in/log" "$in/log.1"
	{ echo id,name; rows $((n * 1000 + 501)) $((n * 1000 + 1000)) "log $n"; } >"$in/log"
	[ "$n" != 3 ] || { kill -KILL "$pid"; wait "$pid" 2>/dev/null; start --source.last_line_age=1h; }
	until_true answers 'SELECT count(*) FROM t' $((n * 1000 + 1000))
done
stop
is "$(ids) $(letters)" "$(sums 6000) " "a log that is rotated by renaming, five times, with a crash: every line once"

clean
csv 1 1000 a >"$in/a.csv"
run --once
{ echo id,name; rows 1001 3000 new; } >"$in/a.csv"
run --once
is "$? $(ids)" "0 $(sums 3000)" "a file with other bytes under a known name is read from its beginning"
like "$(cat "$work/log")" '"a.csv" is another one than was read' "with a warning"
{ echo id,name; rows 3001 3010 less; } >"$in/a.csv"
run --once
is "$? $(ids)" "0 $(sums 3010)" "a shorter one, too"
touch "$in/a.csv"
cp "$in/a.csv" "$work/copy" && rm "$in/a.csv" && cp "$work/copy" "$in/a.csv"
run --once
is "$? $(ids)" "0 $(sums 3010)" "the same bytes in a new file of the name are not read again"
truncate -s 30 "$in/a.csv"
start
settled
is "$(ids)" "$(sums 3010)" "a file that is being written once more is waited for"
cp "$work/copy" "$in/a.csv"
rows 3011 3020 more >>"$in/a.csv"
until_true answers 'SELECT count(*) FROM t' 3020
stop
is "$(ids)" "$(sums 3020)" "and read on behind what is known"
clean
csv 1 1000 a >"$in/a.csv"
run --once
sed -e '900s/.*/5000,changed/' "$in/a.csv" >"$work/a" && rows 1001 1100 a >>"$work/a" && cp "$work/a" "$in/a.csv"
run --once
is "$? $(value 'SELECT count(*) FROM t')" "0 1100" "bytes changed far from the last ones read are not noticed"
sed -e '1095s/.*/6000,row of x/' "$work/a" >"$in/a.csv"
run --once
is "$? $(value 'SELECT count(*) FROM t')" "0 2200" "those just before the position are"
value "UPDATE millrace.ingest_offsets SET next_offset = next_offset - $(printf '1100,row of a\n' | wc -c)"
run --once
touch "$in/a.csv"
run --once
is "$? $(value 'SELECT count(*) FROM t')" "0 2201" "a position set by hand is believed"

# ---- gzip ----

clean
csv 1 5000 packed | gzip >"$in/a.csv.gz"; csv 5001 5010 plain >"$in/b.csv"; { csv 5011 5020 one | gzip; rows 5021 5030 two | gzip; } >"$in/c"; : | gzip >"$in/empty.gz"
run --once --batch.max_rows=1500
is "$? $(ids)" "0 $(sums 5030)" "packed files, told by their bytes, of one member and of two, and an empty one"
is "$(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = 'a.csv.gz'") $(value "SELECT bool_and(file_size > 0) FROM millrace.ingest_offsets")" "$(csv 1 5000 packed | wc -c) t" "the position counts the bytes unpacked"
run --once --batch.max_rows=1500
rows 5031 5040 three | gzip >>"$in/c"
run --once
is "$? $(ids)" "0 $(sums 5040)" "a member that is appended is read on"
value "DELETE FROM t WHERE id > 2499; UPDATE millrace.ingest_offsets SET next_offset = $(csv 1 2499 packed | wc -c), file_size = NULL WHERE topic = 'a.csv.gz'; UPDATE millrace.ingest_offsets SET next_offset = 0, file_size = NULL WHERE topic <> 'a.csv.gz'"
run --once
is "$? $(ids)" "0 $(sums 5040)" "and so is a packed file in its middle"

clean
csv 1 3000 cut | gzip >"$work/cut.gz"
head -c 4000 "$work/cut.gz" >"$in/cut.gz"
csv 3001 3010 behind >"$in/d.csv"
start --source.last_line_age=1h
until_true answers 'SELECT count(*) FROM t WHERE id > 3000' 10
settled
n_cut=$(value 'SELECT count(*) FROM t')
tail -c +4001 "$work/cut.gz" >>"$in/cut.gz"
until_true answers 'SELECT count(*) FROM t' 3010
stop
is "$(ids) $(letters) $((n_cut > 100 && n_cut < 3010))" "$(sums 3010)  1" "a packed file that is still being written waits at a whole line"
clean
head -c 4000 "$work/cut.gz" >"$in/cut.gz"
{ csv 3001 3100 spoilt | gzip; printf 'not gzip\n'; } >"$in/spoilt.gz"
csv 3101 3110 behind >"$in/z.csv"
run --once
is "$? $(value 'SELECT count(*) FROM t WHERE id > 3000')" "0 110" "damaged files do not stop the others"
is "$(value "SELECT topic, stage, reason LIKE 'damaged gzip file%' FROM millrace.dead_letters ORDER BY topic" | paste -sd' ')" "cut.gz|read|t spoilt.gz|read|t" "they are dead letters, with what is no whole line"
is "$(value "SELECT count(*) FROM t JOIN generate_series(1, 3000) g ON id = g WHERE name <> 'row of cut'")" 0 "and half a line is no row"
run --once
is "$? $(value 'SELECT count(*) FROM millrace.dead_letters')" "0 2" "once"
cp "$work/cut.gz" "$in/cut.gz"
run --once
is "$? $(value 'SELECT count(*), count(DISTINCT id) FROM t')" "0 3110|3110" "the whole file in its place is read on"

# ---- one file ----

clean
cp "$work/cut.gz" "$work/one.gz"
run --source.type=file --source.path="$work/one.gz"
is "$? $(ids)" "0 $(sums 3000)" "one packed file"
{ csv 1 10 one; printf 11,last; } >"$work/one.csv"
clean
run --source.type=file --source.path="$work/one.csv"
is "$? $(ids)" "0 $(sums 11)" "one file, its last line at once"
printf '\n12,more\n' >>"$work/one.csv"
run --source.type=file --source.path="$work/one.csv"
is "$? $(ids)" "0 $(sums 12)" "and what is appended"
{ echo id,name; rows 13 20 'new one'; } >"$work/one.csv"
run --source.type=file --source.path="$work/one.csv"
is "$? $(ids)" "0 $(sums 20)" "and another file in its place"
clean
mkfifo "$work/fifo"
run --source.type=file --source.path="$work/fifo"
is $? 3 "a named pipe is not read as a file: it has no positions"
like "$(tail -n 1 "$work/log")" "is no regular file; use type = stdin and <" "but as standard input"
cat >"$work/stdin.ini" <<INI
[source]
type = stdin
[target]
table = t
INI
csv 1 10 fifo >"$work/fifo" &
"$millrace" run "$work/stdin.ini" <"$work/fifo" >>"$work/log" 2>&1
csv 11 20 stdin | "$millrace" run "$work/stdin.ini" >>"$work/log" 2>&1
csv 21 30 stdin | "$millrace" run "$work/stdin.ini" >>"$work/log" 2>&1
is "$? $(ids) $(value "SELECT next_offset FROM millrace.ingest_offsets WHERE topic = '-'")" "0 $(sums 30) $( (csv 1 10 fifo; csv 11 20 stdin; csv 21 30 stdin) | wc -c)" "standard input, whose position goes on counting"

# ---- cleaning ----

clean
for n in 1 2 3; do csv $((n * 10 - 9)) $((n * 10)) "$n" >"$in/$n.csv"; done
run --once --source.clean_source=delete
is "$? $(ids) $(ls "$in")" "0 $(sums 30) " "files that are stored are deleted"
is "$(value 'SELECT count(*) FROM millrace.ingest_offsets')" 0 "with their positions"
csv 1 10 1 >"$in/1.csv"
run --once --source.clean_source=delete
is "$? $(value 'SELECT count(*) FROM t')" "0 40" "the same bytes may come again then"
clean
csv 1 10 1 >"$in/1.csv"; csv 11 20 2 >"$in/2.csv"; echo old >"$work/archive/1.csv"
run --once --source.clean_source=archive --source.archive="$work/archive"
is "$? $(ids) $(ls "$in") $(cd "$work/archive" && ls | paste -sd' ')" "0 $(sums 20)  1.csv 1.csv.1 2.csv" "files are archived, and none is overwritten"
is "$(cat "$work/archive/1.csv" "$work/archive/1.csv.1" | wc -l)" 12 "whole"
clean
head -c 4000 "$work/cut.gz" >"$in/cut.gz"
run --once --source.clean_source=delete
is "$? $(ls "$in")" "0 cut.gz" "a damaged file stays"
clean
value "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM * FROM nowhere; RETURN NULL; END'; CREATE TRIGGER z AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION fail()"
csv 1 10 1 >"$in/1.csv"
run --once --source.clean_source=delete --target.retry=300ms
is "$? $(ids) $(ls "$in")" "7 0|0|0 1.csv" "what cannot be stored is not deleted"
value 'DROP TRIGGER z ON t'
start --source.clean_source=delete --source.last_line_age=3s
until_true answers 'SELECT count(*) FROM t' 10
rows 11 20 1 >>"$in/1.csv"
until_true answers 'SELECT count(*) FROM t' 20
until_true test ! -e "$in/1.csv"
csv 21 30 1 >"$in/1.csv"
until_true answers 'SELECT count(*) FROM t' 30
until_true test ! -e "$in/1.csv"
stop
is "$? $(ids)" "0 $(sums 30)" "a file is deleted when it has come to rest, and its name may be used again"

clean
start --source.clean_source=delete --source.last_line_age=0s --source.max_files_per_batch=7
for n in {1..60}; do
	csv $((n * 20 - 19)) $((n * 20)) "$n" >"$in/.new" && mv "$in/.new" "$in/$n.csv"
	if ((n % 12 == 0)); then kill -KILL "$pid"; wait "$pid" 2>/dev/null; start --source.clean_source=delete --source.last_line_age=0s --source.max_files_per_batch=7; fi
	sleep 0.02
done
until_true answers 'SELECT count(*) FROM t' 1200
until_true is_empty
stop
is "$(ids) $(ls "$in")" "$(sums 1200) " "60 files, deleted by a process that is killed five times: every row once"

# ---- two of one stream ----

clean
csv 1 10 a >"$in/a.csv"
start
until_true answers 'SELECT count(*) FROM t' 10
csv 11 20 b >"$in/.b" && kill -STOP "$pid" && mv "$in/.b" "$in/b.csv"
run --once
is "$? $(ids)" "0 $(sums 20)" "while a process is stopped, another one reads on"
kill -CONT "$pid"
wait "$pid"
is "$? $(ids)" "6 $(sums 20)" "the first one finds that out, and stores nothing: status 6"
done_testing
