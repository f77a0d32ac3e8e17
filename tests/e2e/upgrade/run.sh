#!/usr/bin/env bash
# What outlives an upgrade, with all that Millrace has in use (shop.sql): ALTER EXTENSION UPDATE from 0.1.0, pg_dump and pg_restore into the next major
# version, and pg_upgrade to it.  Servers 16 and 18 of tests/lib/postgres.
. "$(dirname "$0")/../../lib/scenario.sh"
pg16=$("$lib/postgres" 16 "$work/16" millrace) && pg18=$("$lib/postgres" 18 "$work/18" millrace) || exit 1
bin16=$(dirname "$pg16") bin18=$(dirname "$pg18")
share16=$("$pg16" --sharedir)/extension
xz -dc "$data/millrace--0.1.0.sql.xz" >"$share16/millrace--0.1.0.sql"
trap '"$lib/cluster" stop "$work/dumped" immediate; PG_CONFIG=$pg18 "$lib/cluster" stop "$work/upgraded" immediate; scenario_end' EXIT
export PG_CONFIG=$pg16
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }
start_cluster autovacuum=off
value "CREATE ROLE shop LOGIN" -c "CREATE DATABASE shop OWNER shop" -c "CREATE DATABASE fresh OWNER shop"
export PGUSER=shop PGDATABASE=shop PGOPTIONS="-c client_min_messages=warning"

# All that can be read of the shop: the same before and after
aggregates="per_minute durations sliding visits per_town per_hour"
everything() {
	local name
	for name in $aggregates; do value "SELECT '$name ' || a::text FROM $name a UNION ALL SELECT '${name}_final ' || a::text FROM ${name}_final a ORDER BY 1"; done
	value "SELECT 'cleaned ' || c::text FROM cleaned c ORDER BY 1" -c "SELECT 'alert ' || (a.name, a.key)::text FROM millrace.alerts a ORDER BY 1" \
		-c "SELECT 'late ' || (stream, reason, \"row\")::text FROM millrace.late_rows ORDER BY 1" \
		-c "SELECT 'list ' || (customer, product, items, scores, sources, precision_own, precision_next, seq)::text FROM lists ORDER BY seq" \
		-c "SELECT 'letter ' || (id, source, payload, reason)::text FROM millrace.dead_letters ORDER BY 1" \
		-c "SELECT 'offset ' || (source, topic, partition, next_offset)::text FROM millrace.ingest_offsets ORDER BY 1" \
		-c "SELECT 'stream ' || (name, kind, source, target, owner, status, late_policy, retained_from, closed_to)::text FROM millrace.streams ORDER BY 1" \
		-c "SELECT 'model ' || (name, kind, version, active, owner, parameters, metrics, uses)::text FROM millrace.models ORDER BY 1"
	served
}
served() { # what the models say
	value "SELECT 'recommended ' || c::text || r::text FROM generate_series(0, 60) c, millrace.recommend_top_k('shop', c, 4) r ORDER BY 1" \
		-c "SELECT 'repeats ' || c::text || r::text FROM generate_series(0, 60, 7) c, millrace.recommend_top_k('shop', c, 4, exclude_seen => false, max_per_category => 1) r ORDER BY 1" \
		-c "SELECT 'texts ' || c::text || r::text FROM generate_series(0, 60, 7) c, millrace.recommend_top_k('texts', 'u' || c, 4) r ORDER BY 1" \
		-c "SELECT 'similar ' || r::text FROM millrace.similar_items('shop', 7, 5) r" \
		-c "SELECT 'group ' || n || ' ' || millrace.kmeans_assign('groups', ARRAY[n / 10.0, n / 20.0, (n % 2)::float8, 0, 1, 0, 0]) FROM generate_series(-20, 20) n" \
		-c "SELECT 'index ' || i || ' ' || millrace.index_of('shops', 's' || i) FROM generate_series(0, 4) i"
}
reasons() { # why aggregates differ from their queries
	local name
	for name in $aggregates; do value "SELECT '$name', reason, count(*) FROM millrace.verify('$name') GROUP BY 2 ORDER BY 2"; done
}
objects() { psql -AtXqf "$here/objects.sql" 2>&1; }
dropped="durations|late rows dropped|2
sliding|late rows dropped|30"
# What was waiting is done, and nothing differs but what was late by the streams' own rules; the stream goes on: n, the next number of sell()
goes_on() {
	local n=$1
	value "CALL millrace.maintain()" 2>"$work/err"
	is "$? $(cat "$work/err") $(reasons)" "0  $dropped" "maintain refreshes what waited; verify finds nothing but what is late"
	value "SELECT sell($n, $((n + 200)))" 2>"$work/err" >/dev/null
	is "$? $(cat "$work/err") $(reasons)" "0  $dropped" "and batches go on"
	is "$(value "SELECT count(*) = count(DISTINCT id) AND count(*) = count(id) FROM sales") $(value "SELECT count(*) FROM lists l JOIN sales s USING (id) WHERE s.at > '2024-01-01'::timestamptz + $((n - 1)) * interval '20 seconds' AND cardinality(items) = 5")" \
		"t 201" "with numbers of their own and recommendations"
	value "SELECT DISTINCT version, active FROM millrace.retrain('shop', gate_tolerance => 1000) UNION ALL SELECT version, active FROM millrace.retrain('groups')" >"$work/out" 2>"$work/err"
	is "$? $(cat "$work/err") $(paste -sd ' ' "$work/out")" "0  3|t 2|t" "models are trained again"
	value "SELECT millrace.create_continuous_aggregate('another', 'SELECT millrace.tumble(at, ''1 day'') AS window_start, sum(took) AS took, count(*) FROM sales GROUP BY 1');
		SELECT millrace.drop_continuous_aggregate('another')" >/dev/null 2>"$work/err"
	is "$? $(cat "$work/err")" "0 " "streams are created and dropped"
	PGUSER=postgres value "DROP EXTENSION millrace CASCADE" 2>"$work/err"
	is "$? $(cat "$work/err") $(value "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'p', 'v') AND relnamespace IN ('public'::regnamespace, '\"Other Schema\"'::regnamespace)")" \
		"0  Shop's cleaned lists lists_hourly lists_latest sales sales_20240101 sales_20240102 sales_20240103 sales_20240104" "and the extension goes with what it has made, but not with what a pipe or a scorer has filled"
}

# From 0.1.0 to this version
PGDATABASE=fresh value "CREATE EXTENSION millrace" 2>"$work/err" && value "CREATE EXTENSION millrace VERSION '0.1.0'" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "the owner of a database installs this version, and 0.1.0"
psql -qX -v ON_ERROR_STOP=1 -f "$here/shop.sql" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "0.1.0 with everything in use"
served >/dev/null 2>&1
everything >"$work/before" 2>&1
waiting=$(reasons)
like "$(wc -l <"$work/before")" '^[0-9]{5}$' "there is much of it"
value "ALTER EXTENSION millrace UPDATE" 2>"$work/err"
is "$? $(cat "$work/err") $(value "SELECT extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'millrace') FROM pg_extension WHERE extname = 'millrace'")" "0  t" "ALTER EXTENSION UPDATE"
like "$(objects | grep -c '^function millrace\.')" '^[0-9]{3,}$' "hundreds of functions are compared"
is "$(diff <(objects) <(PGDATABASE=fresh objects))" "" "the updated extension has the objects, comments and rights of a new one"
everything >"$work/after" 2>&1
is "$(diff "$work/before" "$work/after" | head -5)" "" "everything reads as before"
is "$(reasons)" "$waiting" "what waited to be refreshed still waits"
value "CREATE DATABASE used TEMPLATE shop" -c "ALTER DATABASE used OWNER TO shop" -d postgres -U postgres
PGDATABASE=used goes_on 9100
value "SELECT millrace.share_aggregate('durations')" -c "GRANT SELECT ON durations_partial TO PUBLIC" -c "CREATE VIEW everywhere AS SELECT 1" -c "SELECT millrace._federated_put('everywhere', 'everywhere', 'durations', '{node1}', '{}')" >/dev/null
# What reads the states, too: a federated aggregate is in the way, the view for others is not
shared() {
	value "SELECT millrace._convert_states('durations')" 2>"$work/err"
	like "$? $(cat "$work/err")" 'states of continuous aggregate "durations" cannot be converted while federated aggregate "everywhere" reads them.*HINT:  SELECT millrace.drop_federated_aggregate' "what a federated aggregate reads is not converted"
	value "SELECT millrace.drop_federated_aggregate('everywhere')" >/dev/null
	value "SELECT millrace._convert_states(name) FROM millrace.streams WHERE kind = 'aggregate'" >/dev/null 2>"$work/err"
	is "$? $(cat "$work/err")" "0 " "its states are converted"
	is "$(value "SELECT has_table_privilege('public', h.partial, 'SELECT'), obj_description(h.partial, 'pg_class') ~ '^States of', (SELECT count(*) > 0 FROM durations_partial), s.columns ~ 's1 bytea' FROM millrace.shared h JOIN millrace.shared_aggregates s USING (name) WHERE name = 'durations'")" "t|t|t|t" "and what is shared stays shared"
}

# Dump by the owner, restore into the next major version.  The owner creates the extension there, so that it is his; the catalog is filled by a superuser.
"$bin18/pg_dump" -Fc -f "$work/dump" shop 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_dump by the owner"
source_port=$PGPORT
PG_CONFIG=$pg18 "$lib/cluster" start "$work/dumped" autovacuum=off || exit 1
. "$work/dumped/env"
PGUSER=postgres PGDATABASE=postgres value "CREATE ROLE shop LOGIN" -c "CREATE DATABASE shop OWNER shop"
export PGUSER=shop PGDATABASE=shop
value "CREATE EXTENSION millrace"
"$bin18/pg_restore" -U postgres --exit-on-error -j 2 -d shop "$work/dump" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_restore into PostgreSQL 18"
value "SELECT sell(9100, 9101)" 2>"$work/err"
like "$? $(cat "$work/err")" 'state table "durations_delta" does not have the columns.*HINT:  After an upgrade of the server CALL millrace.maintain\(\) once' "an aggregate whose state has another type there waits for maintain"
shared
served >/dev/null 2>&1
everything >"$work/after" 2>&1
is "$(diff "$work/before" "$work/after" | head -5)" "" "everything reads as before the dump"
goes_on 9100
PG_CONFIG=$pg18 "$lib/cluster" stop "$work/dumped" immediate

# pg_upgrade, of the same cluster
cp "$work/cluster/conf" "$work/conf"
. "$work/cluster/env"
(cd / && as_postgres "$bin16/pg_ctl" -D "$work/cluster/data" -s -m fast -w stop)
mkdir "$work/upgraded"
[ "$(id -u)" != 0 ] || chown postgres: "$work/upgraded"
(cd "$work/upgraded" && as_postgres "$bin18/initdb" -D "$work/upgraded/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync --no-data-checksums >"$work/err" 2>&1 &&
	as_postgres "$bin18/pg_upgrade" -b "$bin16" -B "$bin18" -d "$work/cluster/data" -D "$work/upgraded/data" -U postgres -s "$work/upgraded" --no-sync --link) >"$work/out" 2>&1
is "$? $(grep -E '^(fatal|failure)|fatal$|FAILED' "$work/out")" "0 " "pg_upgrade"
as_postgres cp "$work/conf" "$work/upgraded/data/postgresql.auto.conf"
export PG_CONFIG=$pg18 PGUSER=shop PGDATABASE=shop
"$lib/cluster" again "$work/upgraded" || exit 1
value "SELECT sell(9100, 9101)" 2>"$work/err"
like "$? $(cat "$work/err")" 'HINT:  After an upgrade of the server CALL millrace.maintain\(\) once' "what has to be converted says so"
shared
served >/dev/null 2>&1
everything >"$work/after" 2>&1
is "$(diff "$work/before" "$work/after" | head -5)" "" "everything reads as before pg_upgrade"
PGUSER=postgres value "CREATE DATABASE anew OWNER shop"
PGDATABASE=anew value "CREATE EXTENSION millrace"
is "$(diff <(objects) <(PGDATABASE=anew objects))" "" "its extension has the objects, comments and rights of a new one"
goes_on 9100
done_testing
