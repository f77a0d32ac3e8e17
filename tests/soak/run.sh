#!/usr/bin/env bash
# The shop of docker/ for an hour: a real broker, late, double and damaged messages, pipe, aggregates, rollup, alert, scorer,
# retraining, upkeep by pg_cron, readers and writers whose sessions stay, come and go; the ingester, its session, a backend and
# the broker are ended now and then.  All of it is sampled (soak.py).  At the end the tables are what the topic holds, nothing
# has grown that should not, and nothing is left behind.  build/soak gets samples.csv, soak.svg and summary.json.
#   SOAK=3600        seconds; 120 is enough to try
#   SOAK_RATE=1000   events a second
#   SOAK_EVERY=10    seconds between samples
#   SOAK_OUT=FOLDER  instead of build/soak
. "$(dirname "$0")/../lib/scenario.sh"
shop=$lib/../../docker/shop out=${SOAK_OUT:-$lib/../../build/soak}
seconds=${SOAK:-3600} rate=${SOAK_RATE:-1000} every=${SOAK_EVERY:-10}
for given in "SOAK=$seconds" "SOAK_RATE=$rate" "SOAK_EVERY=$every"; do
	[[ ${given#*=} =~ ^[1-9][0-9]{0,8}$ ]] || { echo "$given is no whole number above 0" >&2; exit 2; }
done
python=$("$lib/venv" soak-venv "$here/requirements.txt")/bin/python || exit 1
mkdir -p "$out"
export SOAK_MARK=$work
driver=
soak_end() {
	[ -z "$driver" ] || { kill -TERM "$driver" 2>/dev/null && wait "$driver"; }
	scenario_end
}
trap soak_end EXIT
scripts() { psql -qAtX -v ON_ERROR_STOP=1 "$@"; }

echo "# $seconds s with $rate events a second, a sample each $every s; retraining each $((seconds < 600 ? 40 : 300)) s"
start_cluster "shared_preload_libraries = 'pg_cron'" "cron.database_name = 'shop'" "cron.use_background_workers = off" "cron.host = '127.0.0.1'" \
	"millrace.keep_batches = $((seconds < 600 ? 50 : 500))" "log_min_messages = warning" "work_mem = 32MB"
start_kafka
createdb shop
export PGDATABASE=shop MILLRACE_SOURCE_BROKERS=$BROKERS
scripts -c "CREATE EXTENSION pg_cron" -f "$shop/schema.sql" >/dev/null && scripts -v retain="$((seconds < 600 ? 45 : seconds / 12)) seconds" -f "$here/soak.sql" >/dev/null
is $? 0 "the shop's tables, pipe, aggregates and rollup, and windows that are dropped soon"

# The past, a model of it, then what happens now.
millrace produce --simulate=shop --to="$shop/shop.ini" --create-topic --partitions=4 --past=20000:1h --once --seed=8 >"$work/past.log" 2>&1 &&
	millrace run "$shop/shop.ini" --once >"$work/first.log" 2>&1 &&
	scripts -f "$shop/model.sql" >"$work/model.log" 2>&1 && scripts -c "SELECT millrace.unschedule('retrain', 'shop')" >/dev/null
is "$? $(value "SELECT count(*) FROM operations_raw")" "0 20000" "20,000 events of the past, and a model of them"
scorer_from=$(value "SELECT coalesce(max(xmin::text::bigint), 0) FROM operations_raw")

nice -n "${SOAK_NICE:-0}" "$python" -B "$here/soak.py" "$work" "$out" "$seconds" "$rate" "$every" &
driver=$!
wait "$driver"
is $? 0 "it ran to its end"
driver=

# ---- everything is there, once ----

in_topic=$(kcat -Q -b "$BROKERS" -t operations:0:-1 -t operations:1:-1 -t operations:2:-1 -t operations:3:-1 | awk '{ n += $NF } END { print n }')
is "$(value "SELECT sum(next_offset) FROM millrace.ingest_offsets")" "$in_topic" "all messages of the topic are taken: $in_topic"
kcat -C -e -q -b "$BROKERS" -t operations -o beginning | python3 "$here/../e2e/shop/clean.py" "$work" >"$work/counts"
read -r n_good n_bad <"$work/counts"
chmod 644 "$work"/*.csv
"$lib/kafka" stop "$work/kafka"
scripts <<SQL
CREATE SCHEMA truth;
CREATE UNLOGGED TABLE truth.raw (LIKE operations_raw);
CREATE UNLOGGED TABLE truth.clean (LIKE operations);
\copy truth.raw FROM '$work/raw.csv' CSV NULL '\N'
\copy truth.clean FROM '$work/clean.csv' CSV NULL '\N'
INSERT INTO truth.raw TABLE direct;
INSERT INTO truth.clean SELECT id, event_time, event_type, brand, price, split_part(category_code, '.', 1), split_part(category_code, '.', -1),
	CASE WHEN event_type = 'purchase' THEN price ELSE 0 END FROM direct;
SQL
rm -f "$work"/*.csv
differences() { value "SELECT (SELECT count(*) FROM ($1 EXCEPT ALL $2) a) + (SELECT count(*) FROM ($2 EXCEPT ALL $1) b)"; }
is "$(differences "SELECT * FROM operations_raw" "SELECT * FROM truth.raw")" 0 "operations_raw is the topic and what sessions inserted, each row once: $n_good and $(value "SELECT count(*) FROM direct")"
is "$(differences "SELECT * FROM operations" "SELECT * FROM truth.clean")" 0 "operations follows the cleaning rule in every row"
is "$(value "SELECT count(*) FROM millrace.dead_letters")" "$n_bad" "each damaged message is a dead letter: $n_bad"
for unit in minute hour; do
	is "$(differences "SELECT event_type, department, brand, window_start, n::bigint, revenue FROM operations_per_$unit" \
		"SELECT event_type, department, brand, date_trunc('$unit', event_time), count(*), sum(revenue) FROM truth.clean GROUP BY 1, 2, 3, 4")" 0 "operations_per_$unit: counts and revenue of every window and group"
done
for name in operations_per_minute operations_per_hour soak_recent soak_trend soak_visits; do
	is "$(value "SELECT count(*) FROM millrace.verify('$name')")" 0 "verify finds nothing in $name"
done
is "$(value "SELECT count(*) - (SELECT count(*) FROM operations_raw WHERE xmin::text::bigint > $scorer_from) FROM recommended")" 0 \
	"each event since the scorer was made is answered once: $(value "SELECT count(*) FROM recommended")"
is "$(value "SELECT count(*) FROM millrace.streams WHERE status <> 'running'")" 0 "no stream has failed"

# ---- nothing has grown ----

while IFS=$'\t' read -r status text; do ok "$status" "$text"; done <"$work/verdicts"
value "CALL millrace.maintain()" && value "VACUUM"
is "$(value "SELECT count(*) FROM millrace.stream s, LATERAL (SELECT count(*) AS n FROM pg_stat_user_tables t WHERE t.relid IN (s.state, s.delta) AND t.n_dead_tup > 0) d WHERE d.n > 0")" 0 \
	"maintain and VACUUM leave no dead row in any state table"
is "$(value "SELECT max(n) <= current_setting('millrace.keep_batches')::int FROM (SELECT count(*) AS n FROM millrace.batches GROUP BY source) b")" t "millrace.batches keeps what it should"
files() { find "$work/cluster/data/base" -name 'pgsql_tmp*' -type f | grep -c "${1:-.}"; }
is "$(files 'pgsql_tmp_millrace\.')" "$(files)" "no temporary file is left but the models' cache: $(files)"
is "$(grep -cE 'PANIC|TRAP|not closed|leak' "$work/cluster/log")" 0 "the server's log has no panic and no leak"
is "$(sed -n 's/.*terminated by signal \([0-9]*\).*/\1/p' "$work/cluster/log" | paste -sd ' ')" "9 9" "of the server's processes two have died by a signal: those that the soak has killed"
grep -hE 'ERROR|FATAL' "$work/cluster/log" | sed -E 's/^.*(ERROR|FATAL)/\1/; s/[0-9]+/N/g' | sort | uniq -c | sort -rn | head -12 | diag
"$lib/cluster" stop "$work/cluster"
cp "$work/ingester.log" "$out/ingester.log"

# Processes that still have this run's mark, but this script and what it asks with.
left() { grep -lzsFx "SOAK_MARK=$work" /proc/[0-9]*/environ | cut -d/ -f3 | while read -r pid; do [ "$pid" = $$ ] || [ "$(ps -o ppid= -p "$pid" | tr -d ' ')" = $$ ] || [ ! -e "/proc/$pid" ] || tr '\0' ' ' <"/proc/$pid/cmdline"; done; }
is "$(left | grep -vE '^ *(grep|cut|bash) ')" "" "no process is left"
[ ! -e "$work/kafka" ] && [ ! -e "$work/cluster/data" ]
ok $? "no broker and no cluster"
done_testing
