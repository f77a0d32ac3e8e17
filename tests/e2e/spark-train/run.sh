#!/usr/bin/env bash
# docker/spark/train.py: a model is trained by Spark (local[2]) from ratings that are here, and served here with Spark's own lists;
# what is wrong is told in a line; the password is nowhere to be seen.
. "$(dirname "$0")/../../lib/scenario.sh"
job=$(cd "$lib/../../docker/spark" && pwd)
venv=$("$lib/venv" spark-venv "$job/requirements.txt") || exit 1
jars=${MILLRACE_CACHE:-$lib/../../build}/spark-jdbc
mkdir -p "$jars"
(flock 9 && { [ -e "$jars/complete" ] || mvn -B -q -f "$job/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars"; } && touch "$jars/complete") \
	9>"$jars/lock" >"$work/mvn" 2>&1 || { diag <"$work/mvn"; exit 1; }
start_cluster

# A role that needs a password; ids that MLlib cannot take as they are: users beyond 32 bits, items that are texts; pairs that come twice
secret="pass word:with\\signs $RANDOM" asked=$PGPORT
value "CREATE ROLE trainer LOGIN PASSWORD '$secret'; CREATE ROLE guest LOGIN" -c "CREATE DATABASE \"a shop\" OWNER trainer"
{ echo "host all trainer 127.0.0.1/32 scram-sha-256"; cat "$work/cluster/data/pg_hba.conf"; } >"$work/hba"
cat "$work/hba" >"$work/cluster/data/pg_hba.conf"
value "SELECT pg_reload_conf()" >/dev/null
export PGDATABASE="a shop" PGUSER=trainer PGPASSFILE=$work/pass
printf '# of a shop\n127.0.0.1:1:*:*:wrong\n127.0.0.1:%s:*:trainer:%s\n' "$asked" "$(sed 's/[\\:]/\\&/g' <<<"$secret")" >"$PGPASSFILE"
chmod 600 "$PGPASSFILE"
printf '%s\n' "$secret" >"$work/secret"
value "SET client_min_messages = warning; CREATE EXTENSION millrace;
	CREATE TABLE events (at timestamptz NOT NULL, customer bigint, item text, amount numeric) PARTITION BY RANGE (at);
	SELECT millrace.create_source('events', 'at', '1 day'), millrace.ensure_partitions('events', '2024-06-01', '2024-06-05');
	GRANT USAGE ON SCHEMA millrace TO guest;
	INSERT INTO events SELECT timestamptz '2024-06-01' + i * interval '60 s', 10000000000 + i % 61 * 97, 'it''em ' || (i * i + i / 61) % (i % 61 + 9), 1 + i % 5 FROM generate_series(1, 6000) i;
	CREATE TABLE numbers AS SELECT customer % 1000 AS u, length(item) * 10 + at::date - '2024-06-01' AS i, amount AS value FROM events" >/dev/null
query="SELECT customer, item, amount, at FROM events"

# One job as it is meant
export SPARK_LOCAL_DIRS=$work SPARK_LOCAL_IP=127.0.0.1
submit() {
	"$venv/bin/spark-submit" --master 'local[2]' --jars "$(printf '%s\n' "$jars"/*.jar | paste -sd,)" --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=2 \
		--driver-java-options '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC' --conf spark.sql.adaptive.enabled=false --conf spark.driver.memory=1g --conf spark.sql.warehouse.dir="$work/warehouse" "$@"
}
export PYSPARK_PYTHON=$venv/bin/python
mkdir "$work/spark-events"
submit --conf spark.eventLog.enabled=true --conf spark.eventLog.dir="$work/spark-events" \
	"$job/train.py" --model shop --ratings "$query" --split-by at --rank 8 --iterations 5 --connections 3 >"$work/out" 2>"$work/err" &
pid=$!
while kill -0 $pid 2>/dev/null; do
	cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | LC_ALL=C grep -cF -f "$work/secret" >>"$work/seen"
	sleep 0.1
done
wait $pid
is $? 0 "spark-submit trains a model"
like "$(cat "$work/out")" '6,000 ratings read by 3 connections: .*rank 8, 5 iterations trained on 2 cores: .*model "shop" has version 1, 61 users and [0-9]+ items, served from now on' "and tells what it does"
is "$(value "SELECT users, items, active, parameters->>'imported' FROM millrace.models WHERE name = 'shop'")" "$(value "SELECT count(DISTINCT customer), count(DISTINCT item), true, 'true' FROM events")" "of all users and items"
is "$(value "SELECT count(*) FROM (SELECT DISTINCT customer FROM events) c, millrace.recommend_top_k('shop', customer, 5) r, events e WHERE e.customer = c.customer AND e.item = r.item")" 0 "which lists nothing that the user has"
is "$(value "SELECT count(*) FROM pg_class WHERE relname LIKE 'millrace spark%'")" 0 "and leaves no table"
is "$(sort -u "$work/seen")" 0 "the password is on no command line"
is "$(grep -rlF "$secret" "$work"/out "$work"/err "$work/spark-events" "$work/cluster/log")" "" "and in no log, of Spark's events either"
[ -n "$(ls "$work/spark-events")" ] || ok 1 "there are Spark's events"

# Several more, in one session of Spark
export JOBS_FOLDER=$work
submit --py-files "$job/train.py" "$here/jobs.py" >"$work/out" 2>"$work/err" </dev/null
is $? 0 "more jobs"
diag <"$work/out"
tail -5 "$work/err" | diag
said() { sed -n "s/^$1: //p" "$work/told"; }

# Its lists are Spark's: scores are sums of 8 products in single precision, added in another order
for model in shop numbers; do
	value "CREATE TABLE spark_$model (customer text, rank int, item text, score real)"
	psql -Xqc "\\copy spark_$model FROM '$work/$model.csv' CSV"
	value "CREATE TABLE list_$model AS SELECT c.customer, t.rank, t.item, t.score FROM (SELECT DISTINCT customer FROM spark_$model) c,
		LATERAL millrace.recommend_top_k('$model', c.customer$([ $model = shop ] && echo ::bigint), 10, exclude_seen => false) t" 2>"$work/bad" || diag <"$work/bad"
	is "$(value "SELECT count(*) > 100, count(*) FILTER (WHERE (abs(l.score - s.score) <= 1e-5 * greatest(1, abs(s.score))) IS NOT TRUE) FROM list_$model l FULL JOIN spark_$model s USING (customer, rank)")" "t|0" "$model: Spark's scores, rank by rank"
	is "$(value "SELECT count(*) * 100 >= (SELECT count(*) * 99 FROM spark_$model) FROM list_$model JOIN spark_$model USING (customer, rank, item)")" t "$model: Spark's items, but for ties"
done
is "$(value "SELECT count(*) FROM millrace.user_factors('numbers') WHERE id = '999'") $(value "SELECT count(*) FROM numbers WHERE u = 999")" "0 100" "all connections read the same moment"
is "$(value "SELECT string_agg(version || ' ' || active, ',' ORDER BY version) FROM millrace.models WHERE name = 'shop'")" "1 false,2 true,3 false" "each job makes a version, --no-activate serves the old one"
value "SELECT millrace.activate('shop', 3)"
is "$(value "SELECT count(*) FROM factors_users FULL JOIN (SELECT id::bigint, factor FROM millrace.user_factors('shop')) f USING (id, factor)") $(value "SELECT count(*) FROM factors_items FULL JOIN millrace.item_factors('shop') USING (id, factor)")" \
	"$(value "SELECT users || ' ' || items FROM millrace.models WHERE name = 'shop' AND version = 3")" "--tables has the factors of the newest"

is "$(said kept)" 'train.py: --tables: "pets_users" is no table of factors, but has id bigint, name text; it would be replaced' "a table of something else is not replaced by factors"
is "$(said password)" 'train.py: FATAL: password authentication failed for user "trainer"' "a wrong password"
like "$(said table)" 'train.py: ERROR: relation "nowhere" does not exist' "no such table"
is "$(said null)" 'train.py: --ratings: the value is NULL (of user "42" and item "1"); leave such rows out with WHERE … IS NOT NULL' "a rating that is NULL"
is "$(said nobody)" 'train.py: --ratings: the user is NULL (of item "a" and value "1.0"); leave such rows out with WHERE … IS NOT NULL' "a user that is NULL"
is "$(said negative)" 'train.py: --ratings: the value -2 of user "1" and item "2" is negative, which implicit feedback cannot have: leave such rows out, or say --explicit' "a negative rating"
is "$(said nan)" 'train.py: --ratings: the value nan of user "1" and item "2" is no finite number in single precision' "no number"
is "$(said none)" 'train.py: --ratings: there are no rows' "no rating"
is "$(said float)" 'train.py: --ratings: column "c", the user, is neither an integer nor text but float8; cast it' "ids of another type"
is "$(said split)" 'train.py: --split-by: the ratings have no column "when" but "customer", "item", "amount", "at"' "no such column"
is "$(said busy)" 'train.py: another job is training model "shop"' "two jobs for one model"
is "$(said rights)" 'train.py: role "guest" needs EXECUTE on millrace.import_als and CREATE on schema public' "who may not import"
is "$(said extension)" 'train.py: this database has no Millrace: CREATE EXTENSION millrace' "a database without Millrace"
is "$(said kind)" 'train.py: model "kinds" is of kind indexer' "a model of another kind"
is "$(said socket)" "train.py: PGHOST is a socket's folder: executors connect by TCP, so name a host" "a socket"
like "$(said seen)" 'train.py: ERROR: relation "nowhere" does not exist' "nothing that tells what users have"
is "$(value "SELECT max(version) FROM millrace.models WHERE name = 'shop'") $(value "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")" "3 0" "none of which leaves a version or a lock"
done_testing
