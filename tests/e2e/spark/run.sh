#!/usr/bin/env bash
# Spark MLlib trains on the same data: its implicit factors, imported, are served with Spark's own answers, and explicit
# trainings here predict as well as Spark's.  A pipeline of features and clusters is Spark's, stage by stage.
. "$(dirname "$0")/../../lib/scenario.sh"
venv=$("$lib/venv" spark-venv "$lib/../../docker/spark/requirements.txt") || exit 1
start_cluster
createdb spark
export PGDATABASE=spark
value "SET client_min_messages = warning; CREATE EXTENSION millrace" >/dev/null

# What customers of Online Retail bought: 80 of 100 pairs to train, the others to test.  Spark wants integers for ids.
tar -xJf "$data/retail-by-day.tar.xz" -C "$work" --strip-components=1
value "CREATE TABLE sales (invoice_no text, stock_code text, description text, quantity int, invoice_date text, unit_price text, customer_id numeric, country text)"
for day in "$work"/*.csv; do echo "\\copy sales FROM '$day' CSV HEADER"; done | psql -Xq -v ON_ERROR_STOP=1
rm "$work"/*.csv
value "CREATE TABLE pairs AS SELECT customer, item, ln(1 + sum(quantity))::real AS value, millrace.split(customer || ' ' || item, 0.8) AS train
		FROM (SELECT customer_id::int AS customer, dense_rank() OVER (ORDER BY stock_code)::int AS item, quantity FROM sales WHERE customer_id IS NOT NULL AND quantity > 0) s GROUP BY 1, 2;
	CREATE VIEW train AS SELECT customer, item, value FROM pairs WHERE train;
	CREATE VIEW test AS SELECT customer, item, value FROM pairs WHERE NOT train
		AND customer IN (SELECT customer FROM train) AND item IN (SELECT item FROM train)"
for name in train test; do value "COPY (SELECT * FROM $name) TO STDOUT CSV" >"$work/$name.csv"; done

# Clusters of the lines before July 2011, for Spark to judge on the later ones
value "SET client_min_messages = warning;
	CREATE VIEW lines AS SELECT invoice_date < '2011-07-01' AS train, to_char(invoice_date::timestamp, 'FMDay') AS day, unit_price::float8, quantity FROM sales;
	SELECT millrace.fit_indexer('day', 'SELECT day FROM lines WHERE train');
	CREATE VIEW features AS SELECT *, millrace.one_hot(millrace.index_of('day', day), millrace.index_size('day')) AS days FROM lines;
	SELECT millrace.fit_scaler('scaled', 'SELECT unit_price, quantity, days FROM features WHERE train'),
		millrace.train_kmeans('lines', 'SELECT unit_price, quantity, days FROM features WHERE train', 20)" >/dev/null
value "COPY (SELECT train, day, unit_price, quantity, millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days) FROM features) TO STDOUT CSV" |
	sed 's/^t,/true,/; s/^f,/false,/' >"$work/lines.csv"
"$venv/bin/python" "$here/spark.py" "$work" >"$work/log" 2>&1
is $? 0 "Spark trains"
[ -s "$work/rmse" ] || diag <"$work/log"

# Spark's factors here
value "CREATE TABLE spark_users (id int, factor real[]); CREATE TABLE spark_items (id int, factor real[]);
	CREATE TABLE spark_lists (customer int, rank int, item int, score real)"
for name in users items lists; do psql -Xqc "\\copy spark_$name FROM '$work/$name.csv' CSV"; done
is "$(value "SELECT users || ' ' || items FROM millrace.import_als('spark', 'spark_users', 'SELECT id, factor FROM spark_items')")" \
	"$(value "SELECT count(DISTINCT customer) || ' ' || count(DISTINCT item) FROM train")" "the factors of all users and items of the training are imported"
value "CREATE TABLE lists AS SELECT u.id AS customer, t.rank, t.item_id AS item, t.score FROM spark_users u, LATERAL millrace.recommend_top_k('spark', u.id, 10, exclude_seen => false) t"
is "$(value "SELECT count(*) || ' ' || count(DISTINCT customer) FROM lists")" "$(value "SELECT count(*) || ' ' || count(DISTINCT customer) FROM spark_lists")" "as many recommendations as Spark's"
# Scores are sums of 16 products in single precision, added in another order: 1e-5 is far above their rounding, far below their distances.
is "$(value "SELECT count(*) FROM lists l FULL JOIN spark_lists s USING (customer, rank) WHERE (abs(l.score - s.score) <= 1e-5) IS NOT TRUE")" 0 "with Spark's scores, rank by rank"
is "$(value "SELECT count(*) FROM lists l JOIN spark_lists s USING (customer, rank)
	WHERE l.item <> s.item AND NOT EXISTS (SELECT FROM lists o WHERE o.customer = l.customer AND o.item = s.item AND abs(o.score - s.score) <= 1e-5)
	AND abs(s.score - (SELECT min(score) FROM lists o WHERE o.customer = l.customer)) > 1e-5")" 0 "and of Spark's items, ties aside"
is "$(value "SELECT count(*) * 1000 >= (SELECT count(*) * 999 FROM spark_lists) FROM lists JOIN spark_lists USING (customer, rank, item)")" t "in Spark's order, but for a tie in a thousand"

# Explicit trainings
value "CREATE FUNCTION rmse(model text) RETURNS float8 LANGUAGE sql AS \$\$
	SELECT sqrt(avg((value - (SELECT sum(x * y) FROM unnest(u.factor, i.factor) AS f (x, y))) ^ 2))
	FROM test JOIN millrace.user_factors(model) u ON u.id::int = customer JOIN millrace.item_factors(model) i ON i.id::int = item \$\$"
reaches() { # reaches MODEL: its RMSE is not above Spark's by more than 1 %
	local ours theirs
	ours=$(value "SELECT rmse('$1')") theirs=$(awk -v name="$1" '$1 == name { print $2 }' "$work/rmse")
	echo "# $1: RMSE $ours, Spark's $theirs"
	is "$(value "SELECT $ours <= $theirs * 1.01")" t "$1: Spark's RMSE within 1 %"
	is "$(value "SELECT abs(value - $ours) < 1e-6 FROM millrace.evaluate('$1', 'test') WHERE metric = 'rmse'")" t "$1: as evaluate() has it"
}
train() { value "SET client_min_messages = warning; SELECT millrace.train_als('$1', 'train', implicit => false, rank => 10, iterations => 10, regularization => 0.1$2)" >/dev/null; }
train explicit ""
reaches explicit
train nonnegative ", nonnegative => true"
is "$(value "SELECT min(x) >= 0 FROM (SELECT factor FROM millrace.user_factors('nonnegative') UNION ALL SELECT factor FROM millrace.item_factors('nonnegative')) f, unnest(factor) x")" t "nonnegative: no factor is below zero"
reaches nonnegative

# Features and clusters
theirs() { awk -v name="$1" '$1 == name { print $2 }' "$work/clusters"; }
is "$(value "SELECT string_agg(value, ',' ORDER BY index) FROM millrace.index_label WHERE model = 'day'")" "$(theirs labels)" "an indexer has StringIndexer's labels"
is "$(value "SELECT max(2 + cardinality(days)) FROM features")" "$(theirs size)" "features are as many as OneHotEncoder's and VectorAssembler's"
is "$(value "SELECT count(*), max(abs(s.mean - t.mean)) < 1e-9, max(abs(s.stddev / t.deviation - 1)) < 1e-9 FROM millrace.scale_column s
	JOIN unnest('{$(theirs mean)}'::float8[], '{$(theirs deviation)}'::float8[]) WITH ORDINALITY t (mean, deviation, position) USING (position)")" "7|t|t" "a scaler has StandardScaler's means and deviations"
silhouette=$(value "SELECT millrace.silhouette('lines', 'SELECT unit_price, quantity, days FROM features WHERE NOT train')")
is "$silhouette $(value "SELECT abs($silhouette - $(theirs silhouette)) <= 1e-6")" "$silhouette t" "the silhouette is ClusteringEvaluator's"
cost=$(value "SELECT (metrics->>'cost')::float8 FROM millrace.models WHERE name = 'lines'")
echo "# silhouette $silhouette, Spark's $(theirs silhouette); cost $cost, Spark's $(theirs cost)"
is "$(value "SELECT $cost < $(theirs cost)")" t "the cost is below that of Spark's k-means"
done_testing
