#!/usr/bin/env bash
# Running the ingester for a year: what it tells (HTTP, database, JSON log), what it never tells (passwords), partitions
# that come and go beside readers and writers, and a primary that is replaced by its standby.
. "$(dirname "$0")/../../lib/scenario.sh"
millrace=${MILLRACE:-millrace}
start_cluster wal_level=replica wal_keep_size=64MB
mkdir "$work/in"

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE EXTENSION millrace;
CREATE TABLE t (id int PRIMARY KEY, name text);
SQL

from_pipe() { # from_pipe NAME OPTION …: an ingester that reads JSON lines from $work/NAME.pipe, which stays open as fd 7
	local name=$1
	shift
	mkfifo "$work/$name.pipe"
	printf '[source]\ntype = stdin\nformat = json\nname = %s\n[target]\ntable = t\n[batch]\nmax_age = 10ms\n' "$name" >"$work/$name.ini"
	"$millrace" run "$work/$name.ini" "$@" <"$work/$name.pipe" >"$work/log" 2>&1 &
	pid=$!
	exec 7>"$work/$name.pipe"
}
port_known() { port=$(sed -n 's/.*served on port \([0-9]*\).*/\1/p' "$work/log") && [ -n "$port" ]; }
get() { curl -s -o "$work/page" -w '%{http_code}' "http://127.0.0.1:$port$1" "${@:2}"; }
metric() { get /metrics >"$work/code" && sed -n "s/^millrace_$1{stream=\"[^\"]*\"${2:-}} //p" "$work/page"; }
metric_is() { [ "$(metric "$1" "${3:-}")" = "$2" ]; }
page_is() { [ "$(get "$1") $(cat "$work/page")" = "$2" ]; }
end() { # end NAME: the input ends, so does the ingester; its status is in $?
	exec 7>&-
	wait "$pid"
}

# ---- what it tells ----

from_pipe live --metrics.listen=127.0.0.1:0 --metrics.interval=50ms
until_true port_known
until_true page_is /readyz "200 live: ready"
ok $? "/readyz: ready"
printf '{"id": 1, "name": "one"}\n{"id": 2}\nbad\n{"id": "x"}\n' >&7
until_true metric_is dead_letters_total 2
printf '{"id": 3}\n' >&7
until_true metric_is rows_total 3
ok $? "/metrics: rows"
is "$(metric messages_total) $(metric dead_letters_total) $(metric bytes_total)" "5 2 $((24 + 9 + 3 + 11 + 9))" "messages, dead letters, bytes"
is "$(metric batch_seconds_bucket ',le="+Inf"') $(metric batch_seconds_count)" "$(metric batches_total) $(metric batches_total)" "the histogram counts the batches"
"$here/prometheus.py" <"$work/page" >"$work/families"
is "$?" 0 "the page is what Prometheus reads"
is "$(get /metrics -o /dev/null -w '%{http_code} %{content_type}')" "200 text/plain; version=0.0.4; charset=utf-8" "its type"
is "$(get /healthz) $(get /nowhere) $(get /metrics -X POST -d x) $(get /metrics -I)" "200 404 405 200" "/healthz, no such page, POST, HEAD"
rows_in_database() {
	answers "SELECT (SELECT value FROM millrace.ingest_metrics WHERE source = 'live' AND metric = 'rows_total'),
		(SELECT value FROM millrace.ingest_metrics WHERE source = 'live' AND metric = 'batch_seconds_bucket' AND labels ->> 'le' = '+Inf')" "3|$(metric batches_total)"
}
until_true rows_in_database
ok $? "the same in millrace.ingest_metrics"
is "$(value "SELECT count(DISTINCT metric), bool_and(instance = '$(uname -n):$pid') FROM millrace.ingest_metrics")" "$(cut -d' ' -f1 "$work/families" | sort -u | grep -c '^millrace_')|t" "every one of them, with host and process"
"$lib/cluster" kill "$work/cluster"
printf '{"id": 4}\n' >&7
until_true page_is /readyz "503 live: waiting for the database"
ok $? "/readyz while the database is away"
is "$(get /healthz)" 200 "/healthz"
"$lib/cluster" again "$work/cluster" 7>&- # or the server would keep the pipe open
until_true metric_is rows_total 4
until_true page_is /readyz "200 live: ready"
ok $? "ready again"
is "$(metric reconnects_total)" 1 "a reconnect"
value "INSERT INTO millrace.ingest_metrics VALUES ('live', 'gone', 'm', '{}', 1, now() - interval '2 days')"
end live
is "$? $(value 'SELECT count(*) FROM t')" "0 4" "all is stored"
is "$(value "SELECT (SELECT value FROM millrace.ingest_metrics WHERE metric = 'rows_total'), (SELECT count(*) FROM millrace.ingest_metrics WHERE instance = 'gone')")" "4|0" "the last figures stay, those of processes long gone do not"
"$millrace" run "$work/live.ini" --metrics.listen=nonsense >"$work/log" 2>&1 </dev/null
like "$? $(cat "$work/log")" '^2 command line: "nonsense" is no address' "a wrong address: status 2"
"$millrace" run "$work/live.ini" --metrics.listen=127.0.0.1:"$PGPORT" >"$work/log" 2>&1 </dev/null
like "$? $(cat "$work/log")" '^2 command line: cannot listen on' "a port that is in use: status 2"

value 'CREATE ROLE plain LOGIN; GRANT USAGE ON SCHEMA millrace TO plain; GRANT SELECT ON millrace.sources TO plain; GRANT INSERT ON t, millrace.dead_letters TO plain;
	GRANT SELECT, INSERT, UPDATE ON millrace.ingest_offsets TO plain; GRANT USAGE ON SEQUENCE millrace.dead_letters_id_seq TO plain'
"$millrace" check "$work/live.ini" --target.connection=user=plain >"$work/log" 2>&1
is "$? $(sort "$work/log" | sed 's/.*plain //' | tr '\n' ' ')" "5 lacks DELETE on millrace.ingest_metrics lacks INSERT on millrace.ingest_metrics lacks UPDATE on millrace.ingest_metrics " "rights that are missing for the figures"
"$millrace" run "$work/live.ini" --target.connection=user=plain --metrics.interval=0 --source.name=plain --target.maintain=10ms >"$work/log" 2>&1 <<<'{"id": 5}'
is "$? $(value 'SELECT count(*) FROM t') $(grep -c 'warning\|error' "$work/log")" "0 5 0" "are not needed without them, and maintenance that it may not do is left alone"

# ---- JSON log, two streams ----

value 'TRUNCATE t'
printf '{"id": 1, "name": "line\\nend \\u00e9 \\"quoted\\""}\nbad "line"\n' >"$work/in/a.json"
printf '{"id": 2}\n' >"$work/in/b.json"
for k in a b; do
	printf '[source]\ntype = file\nformat = json\npath = %s\nname = stream "%s"\n[target]\ntable = t\n[log]\nformat = json\n' "$work/in/$k.json" $k >"$work/$k.ini"
done
"$millrace" run "$work/a.ini" "$work/b.ini" --once >"$work/log" 2>&1
is "$? $(value 'SELECT count(*) FROM t')" "0 2" "two streams in one process"
python3 - "$work/log" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
assert all(line["level"] in ("info", "warning") and line["message"] and line["time"].endswith("Z") for line in lines)
assert {line.get("stream") for line in lines} >= {'stream "a"', 'stream "b"'}
assert any('dead letter' in line["message"] and line["stream"] == 'stream "a"' for line in lines)
PY
is "$?" 0 "each line of the log is a JSON object that names its stream"
"$millrace" run "$work/a.ini" "$work/b.ini" --once --log.format=text >"$work/log" 2>&1
like "$(cat "$work/log")" ' info \[stream "b"\] done' "text names it too, where there are several"
"$millrace" run "$work/a.ini" --once --target.table=nowhere >"$work/log" 2>&1
is "$? $(python3 -c 'import json, sys; print(json.loads(sys.stdin.read())["message"])' <"$work/log")" '5 command line: table "nowhere" does not exist' "errors of the configuration, too"

# ---- check: all at once ----

printf '[source]\ntype = directory\npath = %s/nowhere\n[target]\ntable = nowhere\n[batch]\nmax_age = soon\n' "$work" >"$work/c.ini"
printf '[source]\ntype = kafka\nbrokers = 127.0.0.1:1\ntopic = x\nkafka.nonsense = 1\n[target]\ntable = t\ntimezone = Nowhere\nmin_time = x\n[batch]\nmax_rows = many\n[columns]\nnam = name\n' >"$work/d.ini"
"$millrace" check "$work/c.ini" "$work/d.ini" "$work/a.ini" --log.format=text >"$work/log" 2>&1
is "$?" 2 "check of three files, two of them wrong: status 2"
for error in 'c.ini:3: cannot read' 'c.ini:5: table "nowhere" does not exist' 'c.ini:7: "soon" is not a valid value' \
	'd.ini:5: No such configuration property: "nonsense"' 'd.ini:8: the server knows no time zone' 'd.ini:9: "x" is not a time' \
	'd.ini:11: "many" is not a valid value' 'd.ini:13: table public.t has no column "nam"' 'a.ini: no errors'; do
	like "$(cat "$work/log")" "$error" "$error"
done

# ---- passwords ----

secret=swordfish
mkdir "$work/told"
tellers=()
tell() { # tell OPTION …: an ingester with a secret in its configuration, at the level that says most; a broker that is not there is waited for
	local log=$work/told/${#tellers[@]}
	{
		timeout 5 "$millrace" run "$work/a.ini" --once --log.level=debug --target.reconnect=1ms "$@"
		timeout 5 "$millrace" check "$work/a.ini" "$@"
	} >"$log" 2>&1 &
	tellers+=($!)
}
for connection in "host=127.0.0.1 port=1 password=$secret" "host=127.0.0.1 password=$secret dbname=nowhere" "postgresql://me:$secret@127.0.0.1:1/x" \
	"postgresql://me:$secret@[bad/x?y" "postgresql://me:sword@fish@127.0.0.1/x" "postgresql://me:sword/fish@127.0.0.1/x" "password='$secret" \
	"host=127.0.0.1 pasword=$secret" "postgresql://me:sword%zfish@127.0.0.1/x" "user=me $secret" "host=127.0.0.1 sslmode=verify-full sslpassword=$secret"; do
	tell --target.connection="$connection"
done
PGPASSWORD=$secret tell --target.connection="host=127.0.0.1 port=1"
MILLRACE_TARGET_CONNECTION="password=$secret host=127.0.0.1 port=1" tell
kafka="--source.type=kafka --source.brokers=127.0.0.1:1 --source.topic=x --source.kafka.security.protocol=sasl_ssl --source.kafka.sasl.mechanisms=PLAIN --source.kafka.debug=all"
for property in sasl.password ssl.key.password sasl.pasword ssl.key.pem sasl.oauthbearer.client.secret ssl.keystore.password sasl.oauthbearer.config sasl.jaas.config; do
	# shellcheck disable=SC2086
	tell $kafka --source.kafka.sasl.username=me --source.kafka.$property=$secret
done
# shellcheck disable=SC2086
MILLRACE_SOURCE_KAFKA_SASL_PASSWORD=$secret tell $kafka
wait "${tellers[@]}"
is "$(find "$work/told" -size +0 | sed 1d | wc -l)" "${#tellers[@]}" "${#tellers[@]} configurations with a password: something is said about each"
is "$(grep -h "$secret\|fish" "$work"/told/*)" "" "which never tells it"

# ---- partitions come ----

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
SET client_min_messages = warning;
CREATE TABLE ev (at timestamptz, id int, file text) PARTITION BY RANGE (at);
SELECT millrace.create_source('ev', 'at', retention => '400 days');
SELECT millrace.create_continuous_aggregate('per_day', $$
	SELECT millrace.tumble(at, '1 day') AS day, count(*) AS n FROM ev GROUP BY 1$$);
SQL
days() { # days FIRST LAST: n lines in random order, one a day
	seq "$1" "$2" | shuf --random-source=<(yes) | while read -r d; do echo "$(date -u -d "$d days ago" +%F)T12:00:00Z,$d"; done
}
maker() { # maker NAME: an ingester of $work/NAME/*.csv
	mkdir -p "$work/$1"
	printf '[source]\ntype = directory\npath = %s\nname = %s\n[csv]\nheader = false\ncolumns = at, id\n[target]\ntable = ev\nmaintain = 0\n[batch]\nmax_rows = 20\n[columns]\nfile = $file\n' "$work/$1" "$1" >"$work/$1.ini"
}
for k in m1 m2 m3; do
	maker $k
	days 1 60 >"$work/$k/$k.csv"
done
# Somebody reads the table all the time.
psql -qX -c 'BEGIN' -c 'SELECT count(*) FROM ev' -c 'SELECT pg_sleep(600)' >/dev/null 2>&1 &
until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 'ev'::regclass AND mode = 'AccessShareLock' AND granted" 1
makers=()
for k in m1 m2 m3; do
	timeout 60 "$millrace" run "$work/$k.ini" --once >"$work/$k.log" 2>&1 &
	makers+=($!)
done
statuses=
for p in "${makers[@]}"; do
	wait "$p"
	statuses+="$? "
done
is "$statuses" "0 0 0 " "three ingesters make the same 60 partitions at once, while the table is read"
is "$(value 'SELECT count(*), count(DISTINCT (id, file)), (SELECT count(*) FROM millrace.partitions($$ev$$)) FROM ev')" "180|180|60" "every row is stored once, every partition is made once"
is "$(grep -h 'warning\|error' "$work"/m?.log)" "" "without a complaint"
is "$(value 'SELECT count(*) FROM millrace.dead_letters WHERE source LIKE $$m_$$')" 0 "or a dead letter"
maker far
printf '%s\n' 9999-01-01T00:00Z,1 1969-12-31T23:59:59Z,2 infinity,3 "$(date -u -d '500 days ago' +%FT%TZ),4" "$(date -u -d '390 days ago' +%FT%TZ),5" "$(date -u -d '500 days' +%FT%TZ),6" >"$work/far/far.csv"
"$millrace" run "$work/far.ini" --once >"$work/log" 2>&1
is "$? $(value "SELECT string_agg(id::text, ' ') FROM ev WHERE file = 'far.csv'") $(value 'SELECT count(*) FROM millrace.partitions($$ev$$)')" "0 5 61" "times outside the sane range make no partition"
is "$(value "SELECT stage, regexp_replace(reason, '^event time [^ ]* [^ ]* ', '') FROM millrace.dead_letters WHERE source = 'far' AND stage = 'partition' ORDER BY \"offset\"")" \
	'partition|is further in the future than target.max_future
partition|is before target.min_time
partition|event time is infinite
partition|is older than the retention of the table
partition|is further in the future than target.max_future' "they are dead letters that say why"

# ---- and go ----

expire() { value "SELECT millrace.create_source('ev', 'at', retention => '$1')" >/dev/null; }
n_left() { answers "SELECT count(*) FROM millrace.partitions('ev')" "$1"; }
keep() { # keep OPTION …: an ingester that has nothing to read and maintains all the time
	maker idle
	"$millrace" run "$work/idle.ini" --target.maintain=100ms "$@" >>"$work/idle.log" 2>&1 &
	keeper=$!
}
n_windows=$(value 'SELECT count(*) FROM per_day')
expire '50 days'
keep
pending() { answers "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass AND inhdetachpending" 1; }
until_true pending
ok $? "an expired partition is being detached; the reader's transaction is waited for"
maker more
days 0 2 >"$work/more/more.csv"
timeout 10 "$millrace" run "$work/more.ini" --once >"$work/log" 2>&1
is "$? $(value "SELECT count(*) FROM ev WHERE file = 'more.csv'")" "0 3" "meanwhile others write, and make partitions"
is "$(timeout 5 psql -AtXqc 'SELECT count(*) > 0 FROM ev')" t "and read"
kill -KILL $keeper
wait $keeper 2>/dev/null
value "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()" >/dev/null
PGOPTIONS='-c log_statement=all' keep
until_true n_left 51
ok $? "an ingester that was killed in the midst of it: the next one goes on"
forgets() { grep -A1 'statement: RESET lock_timeout\|execute.*RESET lock_timeout' "$work/cluster/log" | grep -q 'millrace.maintain'; }
until_true forgets
ok $? "after it maintain runs once more, and what is kept of users' items forgets those rows"
detached_left() { answers "SELECT count(*) FROM pg_class WHERE relname LIKE 'ev\_%' AND relkind = 'r' AND NOT relispartition" 0; }
until_true detached_left
ok $? "no detached table is left"
is "$(value 'SELECT count(*) FROM per_day')" $((n_windows + 1)) "the windows of the gone rows are kept"
is "$(value "SELECT count(*) FROM ev WHERE at >= date_trunc('day', now(), 'UTC') - interval '48 days'")" $((3 * 48 + 3)) "no younger row is gone"
value 'CREATE TABLE ev_rest PARTITION OF ev DEFAULT'
expire '40 days'
until_true n_left 42
ok $? "with a default partition, too"
kill -TERM $keeper
wait $keeper
is "$?" 0 "and it stops when told to"
is "$(grep -c 'older than the retention of its table: dropped' "$work/idle.log")" 11 "each partition that it drops is in the log"
expire '30 days'
psql -qX -c 'BEGIN' -c 'SELECT count(*) FROM ev' -c 'SELECT pg_sleep(600)' >/dev/null 2>&1 &
until_true answers "SELECT count(*) FROM pg_locks WHERE relation = 'ev'::regclass AND mode = 'AccessShareLock' AND granted" 1
keep
until_true grep -q 'are in use' "$work/idle.log"
ok $? "a table that is in use is not locked for long: tried again later"
kill -TERM $keeper
wait $keeper
is "$?" 0 "a stop does not wait for it"
value "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()" >/dev/null

# ---- the session, and the primary that is replaced ----

psql -qAtX -v ON_ERROR_STOP=1 <<'SQL' >/dev/null || exit 1
CREATE TABLE session (name text, value text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO session SELECT s.name, s.setting FROM pg_settings s WHERE s.name IN ('idle_in_transaction_session_timeout', 'client_connection_check_interval', 'tcp_keepalives_idle', 'TimeZone');
	RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION note();
TRUNCATE t, millrace.ingest_offsets, millrace.dead_letters;
SQL
standby=$work/standby
mkdir "$standby"
[ "$(id -u)" != 0 ] || chown postgres: "$standby"
as_postgres() { if [ "$(id -u)" = 0 ]; then (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); else "$@"; fi; }
bin=$("${PG_CONFIG:-pg_config}" --bindir)
port2=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
as_postgres "$bin/pg_basebackup" -h 127.0.0.1 -p "$PGPORT" -U postgres -D "$standby/data" -R -X stream -c fast --no-sync || exit 1
as_postgres "$bin/pg_ctl" -D "$standby/data" -s -w -o "-p $port2 -k $standby" -l "$standby/log" start || exit 1
stop_standby() { as_postgres "$bin/pg_ctl" -D "$standby/data" -s -m immediate stop; }
trap 'stop_standby; scenario_end' EXIT
from_pipe over --target.connection="host=127.0.0.1,127.0.0.1 port=$port2,$PGPORT" --metrics.listen=127.0.0.1:0
for i in 1 2 3; do
	printf '{"id": %s}\n' $i >&7
	until_true answers 'SELECT count(*) FROM t' $i
done
ok $? "of two hosts the one that takes writes is used, although it is the second"
is "$(value 'SELECT name, value FROM session GROUP BY 1, 2 ORDER BY name COLLATE "C"')" 'TimeZone|UTC
client_connection_check_interval|10000
idle_in_transaction_session_timeout|60000
tcp_keepalives_idle|30' "the server's side of the connection does not outlive the ingester"
hex=$(printf ':%04X' "$PGPORT")
# local address, remote address, state, queues, timer: 02 is keepalive's
timer=$(awk -v port="$hex" '$3 ~ port "$" && $4 == "01" && $6 ~ /^02:/ { print "keepalive" }' /proc/net/tcp | sort -u)
is "$timer" keepalive "nor does the ingester's outlive the server"
caught_up() { answers "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()" 1; }
until_true caught_up
"$lib/cluster" kill "$work/cluster"
for i in 4 5 6; do printf '{"id": %s}\n' $i >&7; done
as_postgres "$bin/pg_ctl" -D "$standby/data" -s -w promote
for i in 7 8 9; do printf '{"id": %s}\n' $i >&7; done
PGPORT=$port2
until_true answers "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t" "1 2 3 4 5 6 7 8 9"
ok $? "the standby has become the primary, and the ingester goes on there: each row once"
end over
is "$?" 0 "to its end"

# ---- service ----

make -s -C "$here/../../../ingest" install DESTDIR="$work/root" PREFIX=/usr 2>"$work/log" >/dev/null
is "$?" 0 "make install with a DESTDIR"
unit=$work/root/usr/lib/systemd/system/millrace@.service
like "$(cat "$unit")" "ExecStart=/usr/bin/millrace run /etc/millrace/%i.ini" "the unit is installed"
if command -v systemd-analyze >/dev/null; then
	sed -i "s|/usr/bin/millrace|$work/root/usr/bin/millrace|" "$unit"
	is "$(systemd-analyze verify "$unit" 2>&1)" "" "systemd has nothing to say against it"
fi
done_testing
