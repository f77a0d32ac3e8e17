#!/usr/bin/env bash
# The shop of docker/: `make demo-shop` without Superset, its ingester killed in mid-stream.  Everything that it keeps is compared
# with what the topic holds; the SQL of docker/README.md's section about it is executed; nothing is left of it, also when it is interrupted.
. "$(dirname "$0")/../../lib/scenario.sh"
shop=$lib/../../docker/shop
export DEMO_HOME=$work/home NO_DASHBOARDS=1
trap '"$shop/demo" stop >/dev/null 2>&1; scenario_end' EXIT

SEED=8 WAIT=3 PAST=20000:3d RATE=150 "$shop/demo" >"$work/out" 2>"$work/err"
is $? 0 "the demo ends with status 0"
tail -5 "$work/err" | diag
echo "# it took $SECONDS s"
sed 's/\x1b\[[0-9;]*m//g' "$work/out" >"$work/text"
dir=$(cat "$DEMO_HOME/dir")
. "$DEMO_HOME/env"
views() { awk -F'|' -v heading="$1" 'index($0, heading) == 1 { on = 1 } on && $1 ~ /^ *all *$/ { print $2 + 0; exit }' "$work/text"; } # of all departments, under a heading
first=$(views "The last hour") second=$(views "The same 3 seconds later")
[ "${first:-0}" -gt 0 ] && [ "${second:-0}" -gt "$first" ]
ok $? "the second snapshot has more than the first: $first, $second views"
precision() { awk -F'|' -v method="$1" '$1 ~ "^ *" method " *$" { print $2 + 0 }' "$work/text"; }
ok "$(awk -v model="$(precision model)" -v baseline="$(precision baseline)" 'BEGIN { print !(baseline > 0 && model > 1.5 * baseline) }')" \
	"precision of the model is far above popularity's: $(precision model), $(precision baseline)"
like "$(tail -n 4 "$work/text")" "psql 'host=127.0.0.1 port=$PGPORT user=postgres dbname=shop'.*kcat -b $BROKERS .*make demo-shop-stop" "it says where all is and how to stop it"
if [ -e "$("${PG_CONFIG:-pg_config}" --pkglibdir)/pg_cron.so" ]; then
	is "$(value "SELECT string_agg(task || coalesce(' ' || name, ''), ', ' ORDER BY task) FROM millrace.jobs WHERE active")" \
		"lists shop, maintain, partitions, retention, retrain shop, runs" "pg_cron does the upkeep and retrains"
fi

# ---- the ingester is killed in mid-stream ----

stored() { value "SELECT count(*) FROM operations_raw"; }
more_than() { [ "$(stored)" -gt "$1" ]; }
again() {
	MILLRACE_SOURCE_BROKERS=$BROKERS SHOP_DIR=$dir setsid millrace run "$shop/shop.ini" >"$dir/ingester.log" 2>&1 </dev/null &
	echo $! >"$dir/ingester.pid"
	disown
}
for _ in 1 2 3; do
	kill -KILL "$(cat "$dir/ingester.pid")"
	again
	until_true more_than "$(stored)" || break
done
ok $? "three times SIGKILL, and it goes on"
# What Python writes where something is missing, in each column; and what is no event.
id=900000000
for field in price brand category_code; do
	for type in view cart purchase; do
		for value in NaN null ""; do
			message="{\"id\": $((id += 1)), \"event_time\": \"$(date -u +%FT%T.%3NZ)\", \"event_type\": \"$type\", \"product_id\": 1, \"category_id\": null, \"category_code\": \"toys.ball.red\", \"brand\": \"acme\", \"price\": 12.5, \"user_id\": 7, \"user_session\": NaN}"
			echo "$message" | sed -E "s/\"$field\": [^,]*/\"$field\": ${value}/; s/\"$field\": ,//"
		done
	done
done >"$work/messages"
sed -E 's/"category_code": "[^"]*"/"category_code": "books"/; s/"id": 9/"id": 8/' "$work/messages" >>"$work/messages.single"
for field in id event_time product_id user_id category_id; do
	sed -nE "1s/\"$field\": [^,]*/\"$field\": NaN/p" "$work/messages"
done >"$work/messages.bad"
echo '{"id": 1,' >>"$work/messages.bad"
cat "$work/messages" "$work/messages.single" "$work/messages.bad" | kcat -P -b "$BROKERS" -t operations -X linger.ms=5
kill -TERM "$(cat "$dir/producer.pid")"
until_true grep -q 'stopped by a signal' "$dir/producer.log"
produced=$(sed -n 's/.*stopped by a signal: \([0-9]*\) messages.*/\1/p' "$dir/producer.log")
in_topic=$(kcat -Q -b "$BROKERS" -t operations:0:-1 -t operations:1:-1 -t operations:2:-1 -t operations:3:-1 | awk '{ n += $NF } END { print n }')
is "$in_topic" "$((produced + $(cat "$work"/messages* | wc -l)))" "the topic has what was produced: $in_topic messages"
until_true answers "SELECT coalesce(sum(next_offset), 0) FROM millrace.ingest_offsets" "$in_topic"
ok $? "and all of them are taken"

# ---- every table beside what the topic holds ----

kcat -C -e -q -b "$BROKERS" -t operations -o beginning | python3 "$here/clean.py" "$work" >"$work/counts"
read -r n_good n_bad <"$work/counts"
chmod 644 "$work"/*.csv
psql -qX -v ON_ERROR_STOP=1 <<SQL
CREATE SCHEMA truth;
CREATE TABLE truth.raw (LIKE operations_raw);
CREATE TABLE truth.clean (LIKE operations);
\copy truth.raw FROM '$work/raw.csv' CSV NULL '\N'
\copy truth.clean FROM '$work/clean.csv' CSV NULL '\N'
SQL
differences() { value "SELECT (SELECT count(*) FROM ($1 EXCEPT ALL $2) a) + (SELECT count(*) FROM ($2 EXCEPT ALL $1) b)"; }
is "$(differences "SELECT * FROM operations_raw" "SELECT * FROM truth.raw")" 0 "operations_raw is the topic, each message once"
is "$(value "SELECT count(*), count(DISTINCT id) FROM operations_raw")" "$n_good|$n_good" "no id is there twice: $n_good"
is "$(differences "SELECT * FROM operations" "SELECT * FROM truth.clean")" 0 "operations follows the cleaning rule in every row"
is "$(value "SELECT count(*) FROM operations WHERE 'NaN' IN (brand, department, product, price::text, revenue::text)")" 0 "and has no NaN in any column"
is "$(value "SELECT brand, department, product, price, revenue FROM operations WHERE id BETWEEN 900000000 AND 900000027 AND event_type = 'purchase' ORDER BY id")" "acme|toys|red||0.00
acme|toys|red||0.00
acme|toys|red||0.00
other|toys|red|12.50|12.50
other|toys|red|12.50|12.50
other|toys|red|12.50|12.50
acme|other|other|12.50|12.50
acme|other|other|12.50|12.50
acme|other|other|12.50|12.50" "NaN, null and nothing, of price, brand, category"
is "$(value "SELECT DISTINCT department, product FROM operations WHERE id BETWEEN 800000000 AND 800000018")" "books|books" "a category of one part is department and product"
is "$(value "SELECT count(*) FROM millrace.dead_letters")" "$n_bad" "what is no event is a dead letter: $n_bad"
is "$(value "SELECT count(*) FROM millrace.verify('operations_per_minute')")|$(value "SELECT count(*) FROM millrace.verify('operations_per_hour')")" "0|0" "verify finds nothing"
for unit in minute hour; do
	is "$(differences "SELECT event_type, department, brand, window_start, n::bigint, revenue FROM operations_per_$unit" \
		"SELECT event_type, department, brand, date_trunc('$unit', event_time), count(*), sum(revenue) FROM truth.clean GROUP BY 1, 2, 3, 4")" 0 "operations_per_$unit: counts and revenue of every window and group"
done
is "$(value "SELECT sum(revenue) FROM operations_per_hour")" "$(value "SELECT sum(price) FROM truth.raw WHERE event_type = 'purchase' AND price <> 'NaN'")" "revenue is the price of all purchases"
psql -qAtX -v ON_ERROR_STOP=1 -c BEGIN -c "\\o $work/shown" -f "$shop/snapshot.sql" -c "\\o $work/counted" -c "
	WITH c AS (SELECT * FROM truth.clean WHERE date_trunc('minute', event_time) > now() - interval '1 hour'), a AS (SELECT *, 'all' FROM c UNION ALL SELECT *, department FROM c)
	SELECT d, count(*) FILTER (WHERE event_type = 'view'), nullif(count(*) FILTER (WHERE event_type = 'cart'), 0), nullif(count(*) FILTER (WHERE event_type = 'purchase'), 0), sum(revenue) AS revenue
	FROM a AS a (id, event_time, event_type, brand, price, department, product, revenue, d) GROUP BY d ORDER BY 5 DESC, d <> 'all', d LIMIT 7"
is "$(cat "$work/shown")" "$(cat "$work/counted")" \
	"the dashboard's query, over raw rows"
is "$(value "SELECT count(*) > 500, count(*) - count(DISTINCT id), count(*) - (SELECT count(*) FROM operations_raw WHERE xmin::text::bigint >= (SELECT min(xmin::text::bigint) FROM recommended)) FROM recommended")" "t|0|0" \
	"each event of a transaction since the scorer was made is answered once"
rush="SELECT department, date_trunc('minute', event_time) AS window_start FROM truth.clean GROUP BY 1, 2 HAVING count(*) >= 50"
is "$(value "SELECT count(*) > 0, count(*) FILTER (WHERE (key->>'department', window_start) NOT IN ($rush)) FROM millrace.alerts WHERE alert = 'rush'")" "t|0" "alerts were raised, for minutes with 50 events of a department"
is "$(value "SELECT count(*) FROM ($rush AND max(event_time) > (SELECT created + interval '2 s' FROM millrace.stream WHERE name = 'rush')) r
	WHERE NOT EXISTS (SELECT FROM millrace.alerts a WHERE a.alert = 'rush' AND a.key->>'department' = r.department AND a.window_start = r.window_start)")" 0 "and for all of them"
is "$(value "SELECT (SELECT array_agg(from_time ORDER BY from_time) FROM millrace.partitions('operations')) = (SELECT array_agg(from_time ORDER BY from_time) FROM millrace.partitions('operations_raw'))")" t \
	"the partitions of the pipe's target were made beside the source's"

# ---- the page ----

python3 - "$lib/../../docker/README.md" "$shop" "$work/page.sql" <<'PY' >"$work/page"
import glob, re, sys
page, shop, out = sys.argv[1:]
section = re.search(r"^## The shop\n(.*?)(?=^## |\Z)", open(page).read(), re.S | re.M).group(1)
files = [open(name).read() for name in glob.glob(shop + "/*.sql") + glob.glob(shop + "/*.ini")]
blocks = re.findall(r"^```(sql|ini)\n(.*?)^```", section, re.S | re.M)
shown = [any(text in file for file in files) for _, text in blocks]
print(sum(shown), sum(not s for s in shown))
print([text for (kind, text), s in zip(blocks, shown) if kind == "ini" and not s])
open(out, "w").write("\n".join(text for (kind, text), s in zip(blocks, shown) if not s))
PY
like "$(cat "$work/page")" $'^([5-9]|1[0-9]) ([3-9]|1[0-9])\n\\[\\]$' "docker/README.md shows parts of the files, and SQL to try: $(head -n 1 "$work/page")"
psql -qX -v ON_ERROR_STOP=1 -f "$work/page.sql" >"$work/page.out" 2>&1
is $? 0 "which runs"
tail -3 "$work/page.out" | grep ERROR | diag

# ---- it ends ----

ours() { grep -lzsFx "SHOP_DIR=$1" /proc/[0-9]*/environ | wc -l; }
is "$(ours "$dir" | sed 's/^[1-9]$/some/')" some "processes of the demo are known by their environment"
"$shop/demo" stop >"$work/out" 2>&1
is "$? $(cat "$work/out")" "0 " "stop: status 0"
[ ! -e "$dir" ] && [ ! -e "$DEMO_HOME" ]
is "$? $(ours "$dir") $(pgrep -cf "$dir")" "0 0 0" "nothing of it is left"
like "$("$shop/demo" stop; echo "status $?")" '^no demo runs.*status 0$' "a second time: it says that there is none"
MILLRACE_CACHE=/dev/null "$shop/demo" >"$work/out" 2>&1
is "$? $(grep -c "mkdir: .*/dev/null" "$work/out")" "1 1" "one that cannot start says why"
like "$(cat "$work/out")" 'demo failed; last lines of the logs' "with the log's last lines"
[ ! -e "$DEMO_HOME" ]
ok $? "and leaves nothing"
"$shop/demo" >"$work/out" 2>&1 &
demo=$!
until_true test -e "$DEMO_HOME/dir"
dir=$(cat "$DEMO_HOME/dir")
until_true test -e "$dir/cluster/env"
kill -TERM $demo
wait $demo
is $? 143 "interrupted: its status says so"
[ ! -e "$dir" ] && [ ! -e "$DEMO_HOME" ]
is "$? $(pgrep -cf "$dir")" "0 0" "and nothing is left"
PAST=1000:1h "$shop/demo" >"$work/out" 2>&1 &
demo=$!
until_true test -e "$DEMO_HOME/env"
dir=$(cat "$DEMO_HOME/dir")
until rm -rf "$dir" 2>/dev/null; do :; done
wait $demo
[ $? != 0 ] && [ ! -e "$dir" ] && [ ! -e "$DEMO_HOME" ]
is "$? $(ours "$dir") $(pgrep -cf "$dir")" "0 0 0" "its folder is removed: nothing goes on"
WAIT=soon "$shop/demo" >"$work/out" 2>&1
is "$? $(cat "$work/out")" "2 WAIT=soon is no number of seconds" "a wrong WAIT is told"
done_testing
