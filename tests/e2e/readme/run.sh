#!/usr/bin/env bash
# What README.md shows works: its SQL, its configuration file, and the names in its table.
. "$(dirname "$0")/../../lib/scenario.sh"
readme=$lib/../../README.md
start_cluster
createdb shop
export PGDATABASE=shop
block() { awk -v kind="$1" '$0 == "```" kind { inside = 1; next } $0 == "```" { inside = 0 } inside' "$readme"; }

block sql >"$work/tour.sql"
ok $(($(grep -c . "$work/tour.sql") >= 10 ? 0 : 1)) "the tour has ten lines or more"
psql -X -v ON_ERROR_STOP=1 -f "$work/tour.sql" >"$work/out" 2>"$work/err"
is $? 0 "the tour runs"
grep ERROR "$work/err" | diag
is "$(value "SELECT name, (SELECT count(*) FROM millrace.verify(name)) FROM millrace.streams WHERE kind IN ('aggregate', 'rollup') ORDER BY name COLLATE \"C\"")" "sales_per_day|0
sales_per_hour|0
sales_per_minute|0
trend|0
visits|0" "its aggregates equal their queries"
is "$(value "SELECT (SELECT count(*) FROM millrace.alerts) > 0, (SELECT count(*) FROM sales_per_minute_final) > 0")" "t|t" "an alert was raised, and windows are final"
is "$(value "SELECT count(*) FROM millrace.recommend_top_k('shop', 17, 3)")" 3 "it recommends"
is "$(value "SELECT count(DISTINCT millrace.kmeans_assign('kinds', millrace.scale('amounts', ARRAY[amount]) || items)) FROM features")" 5 "it clusters"
value "SELECT sql FROM millrace.pipelines WHERE name = 'kinds'" >"$work/pipeline.sql"
psql -AtXq -v ON_ERROR_STOP=1 -f "$work/pipeline.sql" >"$work/out" 2>&1
is $? 0 "its pipeline is a script"

# What there is: each statement of the table; what it gives is there, but where there is nothing to give
awk '/^## What there is/ { on = 1; next } /^$/ && rows { exit } on && /^\| / { rows = 1; print }' "$readme" | grep -oE '`(SELECT|CREATE|CALL|LISTEN) [^`]*`' | tr -d '`' >"$work/tasks"
ok $(($(wc -l <"$work/tasks") >= 45 ? 0 : 1)) "tasks in SQL"
while read -r task; do
	psql -AtXq -c "SET client_min_messages = error" -c "$task" >"$work/out" 2>&1
	status=$?
	case $task in
	*millrace.late_rows | *millrace.revisions | *millrace.verify* | *millrace.jobs | *millrace.ingest_* | *millrace.dead_letters | CREATE* | CALL* | LISTEN*) found=$([ -s "$work/out" ] && echo rows) ;;
	*create_* | *start_stream* | *stop_stream* | *activate*) found=$([ "$(grep -vc '^$' "$work/out")" = 0 ] || echo rows) ;;
	*) found=$([ "$(grep -vc '^$' "$work/out")" != 0 ] || echo nothing) ;;
	esac
	is "$status $found" "0 " "${task:0:75}"
	[ "$status $found" = "0 " ] || diag <"$work/out"
done <"$work/tasks"
is "$(value "SELECT count(*) FROM millrace.verify('spent')")|$(value "SELECT count(*) FROM spent")" "0|37" "what was filled beside its writers is right"
value "INSERT INTO events VALUES ('2024-06-02 23:00:30', 5, 'item 1', 45)" >"$work/out" 2>&1
is "$(value "SELECT (SELECT count(*) FROM large_sales), (SELECT cardinality(items) FROM recommended)")" "1|5" "a pipe and a scorer have the next row"

block ini >"$work/events.ini"
sed -i "s/^connection = .*/connection = dbname=shop/" "$work/events.ini"
millrace check "$work/events.ini" >"$work/out" 2>&1
like "$(cat "$work/out")" "localhost:9092|topic" "the configuration is understood up to the broker, which is not there"
[[ $(cat "$work/out") =~ unknown ]]; is $? 1 "and has no unknown keys"
for name in $(grep -oE '\bmillrace\.[a-z_]+[a-z]\b' "$readme" | sort -u); do
	is "$(value "SELECT (to_regproc('$name') IS NOT NULL OR to_regclass('$name') IS NOT NULL OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'millrace'::regnamespace AND 'millrace.' || proname = '$name'))")" t "$name exists"
done
is "$(value "SELECT string_agg(o, ' ') FROM (
	SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
		WHERE e.extname = 'millrace' AND obj_description(d.objid, (SELECT relname FROM pg_class WHERE oid = d.classid)) IS NULL AND d.objid <> 'millrace.stream_seq_seq'::regclass
	UNION ALL SELECT 'column ' || c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE relnamespace = 'millrace'::regnamespace AND relkind IN ('r', 'v', 'c') AND col_description(c.oid, a.attnum) IS NULL) u(o)")" "" "every object and column has a comment"

# What it replaces: the SQL beside each thing of the old stack, over a day of the shop's events
createdb old
export PGDATABASE=old
psql -qX -v ON_ERROR_STOP=1 -f "$lib/../../docker/shop/schema.sql" >"$work/out" 2>&1
is $? 0 "the shop's tables"
printf '%s\n' '[source]' 'type = stdin' 'format = json' '[json]' 'nan = text' '[target]' 'table = operations_raw' >"$work/shop.ini"
millrace produce --simulate=shop --past=5000:1d --once 2>"$work/err" | millrace run "$work/shop.ini" --once >"$work/out" 2>&1
is "$? $(value "SELECT count(*) FROM operations_raw")" "0 5000" "a day of events"
rows=$(awk '/^## What it replaces/ { on = 1; next } /^## / { on = 0 } on && /^\| [^-]/' "$readme" | tail -n +2)
is "$(grep -vE '^\|([^|]*\|){4}$' <<<"$rows")" "" "a table of four columns"
awk -F ' [|] ' '{ print $3 }' <<<"$rows" | grep -oE '`(SELECT|CREATE) [^`]*`' | tr -d '`' >"$work/old"
ok $(($(wc -l <"$work/old") >= 14 ? 0 : 1)) "with SQL for most of it"
while read -r query; do
	printed=$(psql -AtXq -c "SET client_min_messages = error" -c "$query" 2>&1)
	[[ ! $printed =~ ERROR ]] && case $query in CREATE* | *create_* | *verify* | *dead_letters* | *jobs* | *_final*) [ -z "$printed" ] ;; *) [ -n "$printed" ] ;; esac
	is "$?" 0 "${query:0:70}"
	[[ ! $printed =~ ERROR ]] || diag <<<"$printed"
done <"$work/old"
value "CALL millrace.maintain()"
like "$(value "SELECT n FROM operations_per_minute LIMIT 1") $(value "SELECT count(*) FROM per_minute_final")" '^[0-9]+ [1-9][0-9]*$' "windows, final ones, too"
millrace produce --simulate=shop --past=500:1h --seed=2 --once 2>"$work/err" | millrace run "$work/shop.ini" --once --source.name=again >"$work/out" 2>&1
is "$? $(value "SELECT (SELECT count(*) FROM purchases), (SELECT count(*) FROM recommended), (SELECT count(*) FROM millrace.verify('per_minute'))")" \
	"0 $(value "SELECT count(*) FILTER (WHERE event_type = 'purchase'), 500, 0 FROM (SELECT event_type FROM operations_raw ORDER BY xmin::text::bigint DESC LIMIT 500) r")" "what comes then goes through all of it"

# Where it points to; scenarios and benchmarks
cd "$lib/../.." || exit 1
is "$(for name in tests/e2e/*/run.sh; do name=${name%/run.sh}; grep -qE "^\| .${name##*/}. \|" tests/README.md || echo "$name"; done)" "" "every scenario is in tests/README.md"
is "$(for name in $(tests/bench/run none 2>&1 | sed 's/.*there are: //; s/,//g'); do grep -qE "^\| [^|]*\`$name\`" tests/bench/README.md || echo "$name"; done)" "" "every case in tests/bench/README.md"
is "$(grep -oE '\]\([^)#h][^)#]*' README.md | cut -c3- | sort -u | while read -r file; do [ -e "$file" ] || echo "$file"; done)" "" "what it points to is there"
done_testing
