#!/usr/bin/env bash
# Clusters of a shop's sales lines (tests/e2e/recipes) beside scikit-learn, in parallel queries, while lines stream in and the
# model is retrained, in a copy restored by parallel jobs, on a standby, and after a crash.
. "$(dirname "$0")/../../lib/scenario.sh"
venv=$("$lib/venv" clustering-venv "$here/requirements.txt") || exit 1
recipes=$here/../recipes
trap '"$lib/cluster" stop "$work/standby" immediate; scenario_end' EXIT
start_cluster
createdb shop
export PGDATABASE=shop PGOPTIONS='-c client_min_messages=warning'
value "CREATE EXTENSION millrace"
script() { psql -AtXq -v ON_ERROR_STOP=1 -f "$1" 2>&1; }
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }

# Lines until September are there, those of the rest come later.
mkdir "$work/later" "$work/arrived"
tar -xJf "$data/retail-by-day.tar.xz" -C "$work" --strip-components=1
mv "$work"/2011-1*.csv "$work/later"
script "$recipes/retail.sql" >"$work/out"
value "SELECT millrace.ensure_partitions('retail', '2010-12-01', '2012-01-01')" >/dev/null
value "CREATE TEMP TABLE file (invoice_no text, stock_code text, description text, quantity int, invoice_date timestamptz, unit_price numeric, customer_id text, country text)" \
	-c "\\copy file FROM PROGRAM 'tail -qn +2 $work/*.csv' CSV" -c "INSERT INTO retail SELECT invoice_no, stock_code, quantity, invoice_date, unit_price, country FROM file"
rm "$work"/*.csv
script "$recipes/retail-clusters.sql" >>"$work/out" && script "$here/stream.sql" >>"$work/out"
is "$? $(grep -c ERROR "$work/out")" "0 0" "two models"
value "ANALYZE retail"

# scikit-learn, from the same centers
train="SELECT * FROM features WHERE invoice_date < '2011-07-01'"
test="SELECT * FROM features WHERE invoice_date >= '2011-07-01'"
sample="SELECT * FROM ($test) t WHERE millrace.split(invoice_no || stock_code, 0.05)"
columns="SELECT unit_price, quantity, days FROM"
label="SELECT concat_ws(',', millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days), unit_price, quantity, array_to_string(days, ',')) FROM"
for name in train test sample; do value "$label (${!name}) q" >"$work/$name.csv"; done
value "SELECT array_to_string(center, ',') FROM millrace.cluster_centers('lines') ORDER BY cluster" >"$work/centers.csv"
value "SELECT concat_ws(',', unit_price, quantity, array_to_string(millrace.scale('sizes', ARRAY[unit_price, quantity]), ',')) FROM features
	WHERE abs(quantity) < 1000 AND unit_price < 100" >"$work/scaled.csv"
value "SELECT millrace.train_kmeans('fixed', \$\$$columns ($train) q\$\$, 20, seed => 2, tolerance => 0, max_iterations => 1000)" >/dev/null
value "SELECT array_to_string(center, ',') FROM millrace.cluster_centers('fixed') ORDER BY cluster" >"$work/fixed.csv"
"$venv/bin/python" "$here/check.py" "$work" >"$work/theirs" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "scikit-learn"
diag <"$work/theirs"
theirs() { awk -v name="$1" '$1 == name { print $2 }' "$work/theirs"; }
near() { # near SQL NAME TOLERANCE TEXT: is the value theirs, but for a part of it
	local ours
	ours=$(value "$1")
	is "$ours $(value "SELECT abs($ours - $(theirs "$2")) <= $3 * abs($(theirs "$2"))")" "$ours t" "$4"
}
is "$(theirs train_rows) $(theirs train_not_nearest) $(theirs train_other_label)" "245903 0 0" "each line of the training has the label of the nearest center, as scikit-learn's"
is "$(theirs test_rows) $(theirs test_not_nearest) $(theirs test_other_label)" "$(value "SELECT count(*) FROM ($test) t") 0 0" "and so has each that came after"
is "$(theirs fixed_iterations) $(value "SELECT $(theirs fixed_moved) < 1e-6")" "2 t" "from the centers of a training that has ended scikit-learn goes nowhere"
near "SELECT (metrics->>'cost')::float8 FROM millrace.models WHERE name = 'fixed'" fixed_cost 1e-12 "where the cost is the same"
is "$(value "SELECT cost < $(theirs one_start_cost) AND cost <= 72.5e6 FROM (SELECT (metrics->>'cost')::float8 AS cost FROM millrace.models WHERE name = 'lines') c")" t "which is below that of a start of its own"
near "SELECT millrace.kmeans_cost('lines', \$\$$columns ($train) q\$\$)" train_cost 1e-12 "cost of the training"
near "SELECT (metrics->>'cost')::float8 FROM millrace.models WHERE name = 'lines'" train_cost 1e-12 "the metric is that"
near "SELECT millrace.kmeans_cost('lines', \$\$$columns ($test) q\$\$)" test_cost 1e-12 "cost of the others"
near "SELECT millrace.silhouette('lines', \$\$$columns ($test) q\$\$)" silhouette 1e-6 "silhouette by squared distances is that of all pairs"
near "SELECT millrace.silhouette('lines', \$\$$columns ($sample) q\$\$)" sample_sqeuclidean 1e-6 "of fewer lines it is scikit-learn's"
near "SELECT millrace.silhouette('lines', \$\$$columns ($sample) q\$\$, 'euclidean', sample => 1000000)" sample_euclidean 1e-6 "and so is that by distances, of all of them"
is "$(value "SELECT $(theirs scaled_differ) < 1e-9")" t "scaled features are scikit-learn's"

# Parallel queries
parallel="SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 3; SET enable_partitionwise_aggregate = off"
serial="SET max_parallel_workers_per_gather = 0"
counts="SELECT string_agg(cluster || ' ' || n || ' ' || cost, ',' ORDER BY cluster) FROM (SELECT cluster, count(*) AS n, round(sum(d * d)::numeric, 3) AS cost
	FROM (SELECT millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days) AS cluster, millrace.kmeans_distance('lines', ARRAY[unit_price, quantity] || days) AS d FROM features) f GROUP BY 1) g"
like "$(value "$parallel; EXPLAIN (ANALYZE, COSTS OFF) $counts")" "Workers Launched: [1-9]" "a query has workers"
is "$(value "$parallel; $counts")" "$(value "$serial; $counts")" "which give each line its cluster"

# The rest streams in while the model is retrained.
sed -e "s|@DIR@|$work/arrived|" "$recipes/retail.ini" >"$work/retail.ini"
arrive() { mv "$work"/later/"$1"*.csv "$work/arrived/"; }
stored() { [ "$(value "SELECT count(*) FROM millrace.ingest_offsets WHERE next_offset > 0")" = "$(find "$work/arrived" -name '*.csv' | wc -l)" ]; }
# Lines whose cluster is not that of the nearest center of the version they name, their batches with two versions, and lines that are not there once
wrong() {
	value "SELECT (SELECT count(*) FROM (SELECT DISTINCT unit_price, quantity, version, cluster FROM kinds) k, LATERAL
			(SELECT array_agg(s.x) AS x FROM (SELECT unnest(ARRAY[unit_price, quantity]) AS v, generate_series(1, 2) AS i) f,
				LATERAL (SELECT (f.v - mean) / stddev AS x FROM millrace.scale_column c WHERE c.model = 'sizes' AND c.version = 1 AND c.position = f.i) s) f
			WHERE (SELECT min((x[1] - center[1]) ^ 2 + (x[2] - center[2]) ^ 2) * (1 + 1e-9) + 1e-12 FROM millrace.cluster c WHERE c.model = 'kinds' AND c.version = k.version)
				< (SELECT (x[1] - center[1]) ^ 2 + (x[2] - center[2]) ^ 2 FROM millrace.cluster c WHERE c.model = 'kinds' AND c.version = k.version AND c.cluster = k.cluster)),
		(SELECT count(*) FROM (SELECT FROM kinds GROUP BY xmin::text HAVING count(DISTINCT version) > 1) b),
		(SELECT count(*) FROM ((SELECT invoice_date, unit_price, quantity FROM retail WHERE invoice_date >= '2011-10-01' EXCEPT ALL SELECT invoice_date, unit_price, quantity FROM kinds)
			UNION ALL (SELECT invoice_date, unit_price, quantity FROM kinds EXCEPT ALL SELECT invoice_date, unit_price, quantity FROM retail)) d),
		(SELECT count(*) FROM ((SELECT invoice_no, stock_code, invoice_date, millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days) FROM features WHERE invoice_date >= '2011-10-01'
			EXCEPT ALL SELECT invoice_no, stock_code, invoice_date, cluster FROM clustered) UNION ALL (SELECT invoice_no, stock_code, invoice_date, cluster FROM clustered
			EXCEPT ALL SELECT invoice_no, stock_code, invoice_date, millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days) FROM features)) d)"
}
millrace run "$work/retail.ini" >"$work/log" 2>&1 &
ingester=$!
arrive 2011-10
until_true stored
value "SELECT version FROM millrace.retrain('kinds')" -c "SELECT version FROM millrace.retrain('kinds')" >"$work/trained" 2>&1 &
training=$!
arrive 2011-11
wait "$training"
is "$(paste -sd ' ' "$work/trained")" "2 3" "the model is retrained, twice"
until_true stored
arrive 2011-12-01
until_true stored
is "$(value "SELECT to_char(invoice_date, 'MM'), min(version), max(version) FROM kinds GROUP BY 1 ORDER BY 1" | sed '2d')" $'10|1|1\n12|3|3' "batches have the version that is active when they come"
is "$(wrong)" "0|0|0|0" "each line has the cluster that its version gives it, and a batch one version"
is "$(value "SELECT count(*) FROM millrace.cluster a WHERE model = 'kinds' AND version = 1 AND cluster <> (SELECT cluster FROM millrace.cluster b WHERE model = 'kinds' AND version = 3
	ORDER BY (a.center[1] - b.center[1]) ^ 2 + (a.center[2] - b.center[2]) ^ 2 LIMIT 1)")" 0 "the clusters keep their numbers"

# A crash between batches and trainings
(while value "SELECT millrace.retrain('kinds')" >/dev/null 2>&1; do :; done) &
training=$!
arrive 2011-12
until_true answers "SELECT count(*) > 0 FROM kinds WHERE invoice_date >= '2011-12-04'" t
"$lib/cluster" kill "$work/cluster"
wait "$training"
kill -KILL "$ingester"
wait "$ingester" 2>/dev/null
"$lib/cluster" again "$work/cluster"
millrace run "$work/retail.ini" --once >>"$work/log" 2>&1
is "$? $(value "SELECT count(*) FROM retail")" "0 541909" "after a crash the rest is ingested"
is "$(wrong)" "0|0|0|0" "and clustered, line by line"
is "$(value "SELECT (SELECT count(*) FROM millrace.models WHERE name = 'kinds' AND active), (SELECT count(*) FROM millrace.cluster c WHERE NOT EXISTS (SELECT FROM millrace.model_version v WHERE (v.model, v.version) = (c.model, c.version))),
	(SELECT count(*) FROM millrace.model_version v WHERE model = 'kinds' AND 8 <> (SELECT count(*) FROM millrace.cluster c WHERE (v.model, v.version) = (c.model, c.version)))")" "1|0|0" "versions are whole"

# A copy, restored by parallel jobs
state="SELECT md5(string_agg(t, ',' ORDER BY t)) FROM (
	SELECT m::text AS t FROM millrace.models m UNION ALL SELECT t::text FROM millrace.trainings t UNION ALL SELECT c::text FROM millrace.cluster c
	UNION ALL SELECT i::text FROM millrace.index_label i UNION ALL SELECT s::text FROM millrace.scale_column s UNION ALL SELECT p::text FROM millrace.pipelines p
	UNION ALL SELECT sum(hashtextextended(concat_ws(' ', invoice_no, stock_code, millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days),
		millrace.kmeans_assign('kinds', millrace.scale('sizes', ARRAY[unit_price, quantity]))), 0))::text FROM features) s"
pg_dump -Fc -f "$work/dump" shop 2>"$work/err" && createdb copy && pg_restore -j 4 --exit-on-error -d copy "$work/dump" 2>>"$work/err"
is "$? $(cat "$work/err")" "0 " "dump and restore"
was=$(value "$state")
is "$(PGDATABASE=copy value "$state")" "$was" "models, indexes, scales, centers, pipelines and clusters are the same there"
is "$(PGDATABASE=copy value "SELECT version = (SELECT last_version FROM millrace.model WHERE name = 'kinds') - 1 OR version > 3 FROM millrace.retrain('kinds')")" t "where the model can be retrained"
is "$(PGDATABASE=copy value "INSERT INTO retail SELECT '1', 'x', 6, '2011-12-09 12:00', 2.55, 'France'" -c "SELECT count(*) FROM kinds k, clustered c WHERE c.invoice_no = '1' AND stock_code = 'x' AND (k.unit_price, k.quantity) = (2.55, 6)
	AND k.version = (SELECT active FROM millrace.model WHERE name = 'kinds')")" 1 "and lines stream in"
dropdb copy

# A standby
mkdir "$work/standby"
[ "$(id -u)" != 0 ] || chown postgres: "$work/standby"
(cd / && as_postgres pg_basebackup -U postgres -D "$work/standby/data" -R -c fast --no-sync) >"$work/err" 2>&1
is "$? $(cat "$work/err")" "0 " "a base backup"
primary_port=$PGPORT
standby_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
echo "port = $standby_port" >>"$work/standby/data/postgresql.auto.conf"
"$lib/cluster" again "$work/standby"
on_standby() { PGPORT=$standby_port value "$@"; }
is "$(on_standby "$state")" "$was" "a standby has all of it"
is "$(on_standby "$parallel; $counts")" "$(value "$serial; $counts")" "also by parallel queries"
sizes="SELECT millrace.silhouette('kinds', 'SELECT millrace.scale(''sizes'', ARRAY[unit_price, quantity]) FROM features')"
is "$(on_standby "$sizes")" "$(value "$sizes")" "and computes silhouettes"
# A transaction there sees one version, whatever the primary does; the next sees the new one.
version="SELECT active || ' ' || (SELECT sum(hashtextextended(millrace.kmeans_assign('kinds', millrace.scale('sizes', ARRAY[unit_price, quantity]))::text || invoice_no, 0)) FROM features) FROM millrace.model WHERE name = 'kinds'"
cat >"$work/next.sh" <<EOF
PGPORT=$primary_port psql -AtXqc "SELECT millrace.train_kmeans('kinds', 'SELECT millrace.scale(''sizes'', ARRAY[unit_price, quantity]) AS sizes FROM features', 8, seed => 9)" >/dev/null
lsn=\$(PGPORT=$primary_port psql -AtXqc "SELECT pg_current_wal_lsn()")
until [ "\$(PGPORT=$standby_port psql -AtXqc "SELECT pg_last_wal_replay_lsn() >= '\$lsn'")" = t ]; do sleep 0.05; done
EOF
timeout 60 psql -AtXq -p "$standby_port" >"$work/versions" 2>&1 <<EOF
BEGIN ISOLATION LEVEL REPEATABLE READ;
$version;
\\! bash $work/next.sh
$version;
COMMIT;
$version;
EOF
is "$(wc -l <"$work/versions") $(uniq "$work/versions" | wc -l) $(tail -1 "$work/versions")" "3 2 $(value "$version")" "a transaction on it keeps its version, the next has the new one"
done_testing
