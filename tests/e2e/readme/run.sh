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
block ini >"$work/events.ini"
sed -i "s/^connection = .*/connection = dbname=shop/" "$work/events.ini"
millrace check "$work/events.ini" >"$work/out" 2>&1
like "$(cat "$work/out")" "localhost:9092|topic" "the configuration is understood up to the broker, which is not there"
[[ $(cat "$work/out") =~ unknown ]]; is $? 1 "and has no unknown keys"
for name in $(grep -oE '`millrace\.[a-z_]+' "$readme" | tr -d '`' | sort -u); do
	is "$(value "SELECT (to_regproc('$name') IS NOT NULL OR to_regclass('$name') IS NOT NULL OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'millrace'::regnamespace AND 'millrace.' || proname = '$name'))")" t "$name exists"
done
is "$(value "SELECT string_agg(o, ' ') FROM (
	SELECT 'function ' || p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'millrace'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
	UNION ALL SELECT 'relation ' || c.oid::regclass FROM pg_class c WHERE relnamespace = 'millrace'::regnamespace AND relkind IN ('r', 'v', 'S', 'c') AND obj_description(c.oid, 'pg_class') IS NULL
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'i')
	UNION ALL SELECT 'column ' || c.oid::regclass || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE relnamespace = 'millrace'::regnamespace AND relkind IN ('r', 'v') AND col_description(c.oid, a.attnum) IS NULL) u(o)")" "" "every function, table and column has a comment"
done_testing
