#!/usr/bin/env bash
# What serving keeps on a machine: one file a version that all sessions share, on a primary and on a replica; what becomes of
# it when it is damaged, cannot be written or is no longer wanted; and of a model with a block that is corrupt on disk.
. "$(dirname "$0")/../../lib/scenario.sh"
trap '"$lib/cluster" stop "$work/replica" immediate; scenario_end' EXIT
start_cluster

as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
folder() { value "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database WHERE datname = current_database()"; }
# All but those of the lists that models have now, which come when they are needed.
files() { as_postgres find "$1" -name 'pgsql_tmp_millrace.*' -printf '%f\n' | LC_ALL=C sort | LC_ALL=C comm -23 - <(value "SELECT 'pgsql_tmp_millrace.' || lists FROM millrace.model ORDER BY lists::text COLLATE \"C\""); }
files_of() { value "SELECT 'pgsql_tmp_millrace.' || uuid FROM millrace.model_version WHERE model IN ($1) ORDER BY uuid::text COLLATE \"C\""; }
answer() { value "SELECT string_agg(item || ' ' || score, ',' ORDER BY rank) FROM millrace.recommend_top_k('$1', $2, 20)"; }
prepared() { grep -c "preparing model \"$1\"" "$2"; }

createdb shop
export PGDATABASE=shop
value "CREATE EXTENSION millrace" \
	-c "CREATE TABLE bought AS SELECT i % 30000 AS u, (i * 7919::bigint) % 20011 AS i FROM generate_series(1, 300000) AS i" \
	-c "CREATE INDEX ON bought (u); CREATE TABLE little AS TABLE bought LIMIT 3000; CREATE INDEX ON little (u)" \
	-c "CREATE TABLE happens (at timestamptz NOT NULL, n int) PARTITION BY RANGE (at)" \
	-c "SELECT millrace.create_source('happens', 'at', '1 day'), millrace.create_continuous_aggregate('per_hour', \$\$SELECT millrace.tumble(at, '1 hour') AS window_start, sum(n) AS n FROM happens GROUP BY 1\$\$)" \
	-c "SELECT millrace.train_als('m', 'bought', rank => 96, iterations => 1), millrace.train_als('little', 'little', rank => 4, iterations => 1)" >/dev/null 2>"$work/err"
is $? 0 "two models"
primary=$(folder)
is "$(files "$primary")" "$(files_of "'m', 'little'")" "each has its file"
file=$primary/$(value "SELECT 'pgsql_tmp_millrace.' || uuid FROM millrace.model_version WHERE model = 'm'")
mb=$(($(as_postgres stat -c %s "$file") >> 20))
ok $((mb >= 18 ? 0 : 1)) "of 18 MB for the larger ($mb MB)"
before=$(answer m 7 2>"$work/err")
is "$(cat "$work/err")" "" "who recommends first has nothing to wait for"

# Memory of two sessions, from smaps
session() { # session N: a psql that reads $work/in.N; its pid is in pid[N], its answers in $work/out.N
	mkfifo "$work/in.$1"
	: >"$work/out.$1"
	psql -AtXq <"$work/in.$1" >"$work/out.$1" 2>"$work/err.$1" 11>&- 12>&- &
	job[$1]=$!
	eval "exec $((10 + $1))>\"$work/in.$1\""
	say "$1" "SELECT pg_backend_pid()"
	pid[$1]=$(cat "$work/out.$1")
}
end_session() {
	eval "exec $((10 + $1))>&-"
	wait "${job[$1]}"
	rm -f "$work/in.$1" "$work/out.$1"
}
say() { # say N SQL: and wait for its last row
	local n
	n=$(wc -l <"$work/out.$1")
	echo "$2;" >&$((10 + $1))
	until_true eval "[ \$(wc -l <'$work/out.$1') -gt $n ]"
}
anonymous_kb() { as_postgres awk '/^Anonymous:/ { n += $2 } END { print n }' "/proc/$1/smaps"; }
of_file_kb() { as_postgres awk -v name="$2" -v field="$3:" '/^[0-9a-f]+-[0-9a-f]+ / { mine = index($0, name) } mine && $1 == field { n += $2 } END { print n + 0 }' "/proc/$1/smaps"; }
declare -a pid job
all_users="SELECT count(*) FROM generate_series(0, 29999, 100) AS u, millrace.recommend_top_k('%s', u, 5, false)"
for n in 1 2; do
	session $n
	# shellcheck disable=SC2059
	say $n "$(printf "$all_users" little)"
	small[n]=$(anonymous_kb "${pid[n]}")
done
for n in 1 2; do
	# shellcheck disable=SC2059
	say $n "$(printf "$all_users" m)"
done
for n in 1 2; do
	grown=$(($(anonymous_kb "${pid[n]}") - small[n]))
	echo "# session $n: ${small[n]} kB of its own with the little model, $grown kB more with one of $mb MB; of that file $(of_file_kb "${pid[n]}" "$(basename "$file")" Rss) kB mapped, $(of_file_kb "${pid[n]}" "$(basename "$file")" Private_Dirty) kB dirty"
	ok $((grown < 1500 ? 0 : 1)) "session $n: a model of $mb MB takes little memory of its own ($grown kB)"
	ok $(($(of_file_kb "${pid[n]}" "$(basename "$file")" Rss) > 4000 ? 0 : 1)) "it maps the file"
	is "$(($(of_file_kb "${pid[n]}" "$(basename "$file")" Private_Dirty) + $(of_file_kb "${pid[n]}" "$(basename "$file")" Anonymous)))" 0 "of which no page is its own"
done
end_session 1
end_session 2

# A machine that was started again: the file is on the disk only
as_postgres dd of="$file" oflag=nocache conv=notrunc,fdatasync count=0 status=none
if [ "$(as_postgres fincore -bnro RES "$file")" -lt 2000000 ]; then
	like "$(answer m 7 2>&1)" 'NOTICE:  reading model "m" for serving: [0-9.]+ MB' "who comes when it is on the disk only is told"
fi
is "$(answer m 7 2>&1)" "$before" "once"

# A replica: its file is its own, made once
mkdir "$work/replica"
[ "$(id -u)" != 0 ] || chown postgres: "$work/replica"
(cd / && as_postgres pg_basebackup -U postgres -D "$work/replica/data" -R -c fast --no-sync) >"$work/err" 2>&1
is "$? $(cat "$work/err")" "0 " "a base backup"
replica=${primary/"$work/cluster"/"$work/replica"}
is "$(as_postgres find "$work/replica/data" -name "pgsql_tmp_*")" "" "does not carry the files"
primary_port=$PGPORT
replica_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "port = $replica_port" >>"$work/replica/data/postgresql.auto.conf"
"$lib/cluster" again "$work/replica"
export PGPORT=$replica_port
for n in 1 2 3 4; do answer m 7 >"$work/answer.$n" 2>"$work/first.$n" & jobs[n]=$!; done
wait "${jobs[@]}"
is "$(cat "$work"/answer.[1234] | uniq)" "$before" "four sessions that come to it at once all have the primary's answer"
is "$(cat "$work"/first.[1234] | grep -c "preparing model")" 1 "which one of them had to prepare"
like "$(cat "$work"/first.[1234])" 'NOTICE:  preparing model "m" version 1 for serving: [0-9.]+ MB' "and said so"
is "$(answer m 7 2>&1)" "$before" "the next session says nothing"
is "$(value "SELECT millrace.warm('m')" 2>&1)" "$(as_postgres stat -c %s "$file")" "warm tells what is shared"
like "$(value "SELECT millrace.warm()" 2>&1)" 'preparing model "little"' "warm, for all models"
is "$(files "$replica")" "$(files_of "'m', 'little'")" "each has its file there"
PGPORT=$primary_port value "SELECT millrace.train_als('m', 'bought', rank => 16, iterations => 1), millrace.prune('m', 1), pg_switch_wal()" >/dev/null 2>&1
lsn=$(PGPORT=$primary_port value "SELECT pg_current_wal_lsn()")
until_true answers "SELECT pg_last_wal_replay_lsn() >= '$lsn'" t
like "$(answer m 7 2>&1)" 'preparing model "m" version 2' "a version that the primary activates is served there"
before=$(answer m 7 2>/dev/null)
is "$before" "$(PGPORT=$primary_port answer m 7)" "with its answers"
is "$(files "$replica")" "$(files_of "'m', 'little'")" "the one that was pruned there has no file any more"
is "$(value "DROP TABLE bought" 2>&1)" "ERROR:  cannot execute DROP TABLE in a read-only transaction" "it is still a replica"
for command in "train_als('x', 'bought')" "retrain('m')" "import_als('x', 'little', 'little')" "tune_als('m', 'bought', '{\"rank\": [4]}')" "activate('m', 1)" "prune('m', 1)" "drop_model('m')" \
	"track_history('m')" "ensure_partitions('happens', now(), now())" "compact('per_hour')" \
	"INSERT INTO happens VALUES (now(), 1)"; do
	[[ $command = *\(\'* ]] && command="SELECT millrace.$command"
	is "$(value "\\set VERBOSITY sqlstate" -c "$command" 2>&1)" "ERROR:  25006" "which refuses $command"
done
like "$(value "\\set VERBOSITY sqlstate" -c "CALL millrace.maintain()" 2>&1)" '^(ERROR|WARNING):  25006' "maintain does nothing either"
export PGPORT=$primary_port
is "$(files "$primary")" "$(files_of "'m', 'little'")" "nor on the primary"
file=$primary/$(files_of "'m'")

# No room for the file, and a folder that cannot be written: served all the same
rm -f "$file"
session 1
as_postgres prlimit --pid "${pid[1]}" --fsize=1000000
say 1 "SELECT string_agg(item || ' ' || score, ',' ORDER BY rank) FROM millrace.recommend_top_k('m', 7, 20)"
is "$(tail -1 "$work/out.1")" "$before" "no room for the file: the answer is the same"
say 1 "SELECT millrace.warm('m')"
is "$(tail -1 "$work/out.1")" 0 "nothing is shared"
like "$(cat "$work/err.1")" 'WARNING:  model "m" cannot be kept for all sessions: could not write file "base/[0-9]+/pgsql_tmp_millrace[^"]*": File too large' "which is told"
is "$(files "$primary")" "$(files_of "'little'")" "and nothing is left of the attempt"
end_session 1
as_postgres chmod 500 "$primary"
session 1
for name in m m little; do
	say 1 "SELECT count(*) FROM millrace.recommend_top_k('$name', 7)"
done
as_postgres chmod 700 "$primary"
is "$(tail -n +2 "$work/out.1" | paste -sd ' ')" "10 10 10" "a folder that cannot be written: every model is served"
is "$(grep -c WARNING "$work/err.1")" 1 "and the session is told once"
like "$(cat "$work/err.1")" 'Permission denied' "why"
end_session 1
like "$(answer m 7 2>&1)" "preparing model" "when it can be written again"
is "$(answer m 7 2>&1)" "$before" "the next session shares"

# Damage, as sessions that come later find it
byte_at() { printf X | as_postgres dd of="$file" bs=1 seek="$1" conv=notrunc status=none; }
for harm in "byte_at 100000" "as_postgres truncate -s 100000 $file" "byte_at 9" "as_postgres rm $file"; do
	$harm
	is "$(answer m 7 2>"$work/err") $(prepared m "$work/err")" "$before 1" "${harm%% "$file"}: prepared again, the same answer"
	is "$(answer m 7 2>&1)" "$before" "once"
done
like "$(cat "$work/cluster/log")" 'cache file "base/[0-9]+/pgsql_tmp_millrace[^"]*" is not used: section [0-9]+ fails its checksum' "the server's log says what was wrong"

# A block that is corrupt on disk
toast=$(value "CHECKPOINT" -c "SELECT current_setting('data_directory') || '/' || pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'millrace.factors'::regclass")
bytes=$(value "SELECT encode(substr(data, 100001, 64), 'hex') FROM millrace.factors WHERE model = 'm' AND side = 'item' AND block = 1")
"$lib/cluster" kill "$work/cluster"
python3 - "$toast" "$bytes" <<'PYTHON'
import sys
path, wanted = sys.argv[1], bytes.fromhex(sys.argv[2])
with open(path, 'r+b') as f:
    at = f.read().find(wanted)
    assert at >= 0
    f.seek(at)
    f.write(bytes([wanted[0] ^ 1]))
PYTHON
is $? 0 "a byte of a block is changed on disk"
"$lib/cluster" again "$work/cluster"
is "$(answer m 7 2>&1)" "$before" "the server is started again: the file is still there, and nobody waits"
as_postgres rm "$file"
value "\\set VERBOSITY verbose" -c "SELECT * FROM millrace.recommend_top_k('m', 7)" 2>"$work/err" >/dev/null
like "$(cat "$work/err")" 'ERROR:  XX001: block 1 of side "item" of model "m" version 2 is corrupt: its checksum is wrong' "without the file the block is found corrupt, and named"
is "$(value "SELECT count(*) FROM millrace.recommend_top_k('little', 7)" 2>&1)" 10 "the other model goes on"
value "SELECT millrace.warm()" >"$work/out" 2>"$work/err"
is "$(cat "$work/out")" "$(as_postgres stat -c %s "$primary/$(files_of "'little'")")" "and is warmed"
like "$(cat "$work/err")" 'WARNING:  model "m" cannot be served: block 1 of side "item"' "with a warning about the first"
is "$(PGPORT=$replica_port answer m 7 2>&1)" "$before" "the replica serves it"
is "$(value "SELECT version FROM millrace.train_als('m', 'bought', rank => 8, iterations => 1)" 2>"$work/err") $(value "SELECT count(*) FROM millrace.recommend_top_k('m', 7)" 2>&1)" "3 10" "a new training heals it"

# Two sessions activate at once
value "SELECT version FROM millrace.train_als('m', 'bought', rank => 8, iterations => 2, activate => false)" >/dev/null 2>&1
session 1
session 2
say 1 "BEGIN; SELECT millrace.activate('m', 4)"
echo "BEGIN; SELECT millrace.activate('m', 3); COMMIT; SELECT 'done';" >&12
until_true answers "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'" 1
is "$(value "SELECT count(*) FROM millrace.recommend_top_k('m', 7)")" 10 "one session activates, another waits for it, readers do not"
say 1 "COMMIT; SELECT 'done'"
until_true grep -q done "$work/out.2"
is "$(grep -hc ERROR "$work/err.1" "$work/err.2" | paste -sd ' ') $(value "SELECT active FROM millrace.model WHERE name = 'm'")" "0 0 3" "the last one's version is active"
end_session 1
end_session 2

# Clean-up
value "DROP EXTENSION millrace CASCADE; CREATE EXTENSION millrace" 2>/dev/null
is "$(value "SELECT count(*) FROM millrace.model_version")" 0 "DROP EXTENSION CASCADE leaves no row"
ok $(($(files "$primary" | wc -l) > 0 ? 0 : 1)) "stray files stay"
value "SELECT millrace.train_als('m', 'little', rank => 4, iterations => 1)" >/dev/null 2>&1
is "$(files "$primary")" "$(files_of "'m'")" "until the extension is used again"
PGDATABASE=postgres value "DROP DATABASE shop"
ok $([ ! -e "$primary" ] && echo 0 || echo 1) "they go with the database"
done_testing
