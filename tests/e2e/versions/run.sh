#!/usr/bin/env bash
# PostgreSQL 15, 16 and 18 beside each other (16 and 18 of tests/lib/postgres): the extension builds for each without a word from the compiler and passes the
# SQL tests; put into a database that has long been in use, by its owner, who is no superuser, it rewrites no row, gives the same everywhere, and goes without a trace.
. "$(dirname "$0")/../../lib/scenario.sh"
root=$(cd "$lib/../.." && pwd)
pg15=$(command -v "${PG_CONFIG:-pg_config}")
for version in 16 18; do "$lib/postgres" $version "$work/$version" millrace >"$work/config$version" 2>"$work/err$version" & done
wait
for version in 16 18; do is "$(cat "$work/err$version")" "" "the extension is built for PostgreSQL $version"; done
pg16=$(cat "$work/config16") pg18=$(cat "$work/config18")
[ -n "$pg16" ] && [ -n "$pg18" ] || exit 1
ended() {
	for version in 15 16 18; do PG_CONFIG=$(config $version) "$lib/cluster" stop "$work/server$version" immediate; done
	scenario_end
}
config() { local name=pg$1; echo "${!name}"; }
trap ended EXIT

# The SQL tests of both run while the rest goes on.
sql_tests() {
	cd "$root" || exit
	PG_CONFIG=$(config "$1") setsid tests/lib/with-cluster pg_prove -d millrace_test --ext .sql tests/sql/ >"$work/sql$1" 2>&1
}
[ -n "${MILLRACE_NO_SQL_TESTS:-}" ] || { sql_tests 16 & sql_tests 18 & }

relations() { # files, rows' places and writers of all tables that were there before; and their rows
	value "SELECT c.oid::regclass, c.relfilenode, c.relkind FROM pg_class c WHERE c.relnamespace = '\"Verkauf\"'::regnamespace AND c.oid < $1::oid AND c.relkind IN ('r', 'p') ORDER BY 1" \
		-c "SELECT md5(string_agg(concat_ws(' ', s.tableoid, s.ctid, s.xmin, s::text), ',' ORDER BY s.tableoid, s.ctid)) FROM \"Verkauf\".sales s" \
		-c "SELECT md5(string_agg(concat_ws(' ', s.ctid, s.xmin, s::text), ',' ORDER BY s.ctid)) FROM \"Verkauf\".plain s"
}
catalog() { # all that there is in the database, by name
	value "SELECT 'relation ' || relkind::text || ' ' || oid::regclass FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc
		UNION ALL SELECT 'type ' || oid::regtype FROM pg_type WHERE typname !~ '^pg_toast' UNION ALL SELECT 'schema ' || nspname FROM pg_namespace UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
		UNION ALL SELECT 'trigger ' || tgname || ' ' || tgrelid::regclass FROM pg_trigger UNION ALL SELECT 'extension ' || extname FROM pg_extension
		UNION ALL SELECT 'dependency ' || classid::regclass || ' ' || count(*) FROM pg_depend GROUP BY classid ORDER BY 1"
}
shown() { # what there is to see
	local name
	for name in hours hours_final sliding visits days lists; do value "SELECT '$name ' || (to_jsonb(a) - 'scored_at')::text FROM \"Verkauf\".$name a ORDER BY 1"; done
	value "SELECT c || ' ' || r::text FROM generate_series(0, 60) c, millrace.recommend_top_k('m', c, 5) r ORDER BY 1" \
		-c "SELECT n || ' ' || millrace.kmeans_assign('groups', ARRAY[n / 3.0, n]::float8[]) FROM generate_series(0, 30) n" \
		-c "SELECT 'index ' || n || ' ' || millrace.index_of('index', n::text) FROM generate_series(0, 40) n" -c "SELECT 'alert ' || key::text FROM millrace.alerts ORDER BY 1"
}
caches() { find "$work/server$version/data/base" -name 'pgsql_tmp_millrace*' | wc -l; }

for version in 15 16 18; do
	PG_CONFIG=$(config $version) "$lib/cluster" start "$work/server$version" autovacuum=off || exit 1
done
for version in 15 16 18; do
	. "$work/server$version/env"
	PGUSER=postgres PGDATABASE=postgres value "CREATE ROLE shop LOGIN" -c "CREATE DATABASE shop OWNER shop"
	export PGUSER=shop PGDATABASE=shop PGOPTIONS="-c client_min_messages=warning"
	psql -qX -v ON_ERROR_STOP=1 -f "$here/database.sql" || exit 1
	catalog >"$work/catalog$version"
	value "CREATE EXTENSION millrace" 2>"$work/err"
	is "$? $(cat "$work/err") $(value "SELECT current_setting('server_version_num')::int / 10000, rolsuper FROM pg_roles WHERE rolname = current_user")" "0  $version|f" "PostgreSQL $version: the owner of a database, no superuser, creates the extension"
	newest=$(value "SELECT max(oid::bigint) + 1 FROM pg_class")
	relations "$newest" >"$work/before"
	like "$(wc -l <"$work/catalog$version") $(wc -l <"$work/before")" '^[0-9]{4,} 7$' "… which finds so many objects there, and tables with rows"
	psql -AtXq -v ON_ERROR_STOP=1 -f "$here/use.sql" >"$work/out" 2>"$work/err"
	is "$? $(cat "$work/err")" "0 " "… and has sources, aggregates, a model and a scorer over populated tables"
	relations "$newest" >"$work/after"
	is "$(diff "$work/before" "$work/after")" "" "… without a row rewritten or moved"
	is "$(value "SELECT name, count(v) FROM millrace.streams, millrace.verify(name) v WHERE kind IN ('aggregate', 'rollup') GROUP BY 1")" "" "… and what the tables had is in them"
	value "SET search_path = \"Verkauf\"; INSERT INTO sales (at, customer, product, price, took) SELECT '2024-01-04'::timestamptz + n * interval '20 seconds', n % 60, n % 43, n, '1 s' FROM generate_series(1, 500) n;
		INSERT INTO \"Second \"\"Half\"\"\" (at, id, customer, product, price, took) VALUES ('2024-01-03 23:59', 1, 1, 2, 3, '4 s'); INSERT INTO plain SELECT * FROM sales WHERE at >= '2024-01-03 23:59'" 2>"$work/err" &&
		value "CALL millrace.maintain()" 2>>"$work/err"
	is "$? $(cat "$work/err") $(value "SELECT name, v.reason, count(v) FROM millrace.streams, millrace.verify(name) v WHERE kind IN ('aggregate', 'rollup') GROUP BY 1, 2") $(value "SELECT count(*) FROM \"Verkauf\".lists WHERE cardinality(items) = 5")" "0   501" \
		"… and batches go on"
	shown >"$work/shown$version" 2>&1
done
like "$(grep -cE 'ERROR' "$work/shown15") $(wc -l <"$work/shown15")" '^0 [0-9]{4,}$' "there is much to see"
for version in 16 18; do is "$(diff "$work/shown15" "$work/shown$version" | head -5)" "" "PostgreSQL $version shows the same as 15"; done

# The end: of each version
for version in 15 16 18; do
	. "$work/server$version/env"
	export PGUSER=shop PGDATABASE=shop
	value "DROP EXTENSION millrace" 2>"$work/err"
	like "$? $(cat "$work/err")" '^1 ERROR:  cannot drop extension millrace because other objects depend on it.*trigger millrace_on_insert' "PostgreSQL $version: DROP EXTENSION is refused while there are streams"
	value "DROP EXTENSION millrace CASCADE" 2>"$work/err"
	is "$? $(cat "$work/err") $(value "SELECT count(*) FROM \"Verkauf\".lists")" "0  501" "… CASCADE drops them with it, but the table that a scorer has filled"
	value "DROP TABLE \"Verkauf\".lists CASCADE"
	catalog >"$work/after"
	is "$(diff "$work/catalog$version" "$work/after")" "" "… and leaves no object, trigger or event trigger"
	value "INSERT INTO \"Verkauf\".sales (at, customer, product) VALUES ('2024-01-01', 1, 1)" 2>"$work/err"
	is "$? $(cat "$work/err")" "0 " "… the tables go on"
	like "$(caches)" '^[1-9]' "… cache files are left"
	value "CREATE EXTENSION millrace" -c "CALL millrace.maintain()" >/dev/null 2>"$work/err"
	is "$? $(cat "$work/err") $(caches)" "0  0" "… and swept by the next who uses it"
	PG_CONFIG=$(config $version) "$lib/cluster" stop "$work/server$version" immediate
done

wait
for version in 16 18; do is "$(tail -1 "$work/sql$version")" "Result: PASS" "the SQL tests pass on PostgreSQL $version"; grep -vE '^\[?.*\bok\b|^All' "$work/sql$version" | diag; done
done_testing
