#!/usr/bin/env bash
# A training beside other sessions: they write the ratings and read the version before; it ends soon after it is cancelled,
# in whatever phase, and leaves nothing behind.  Factors first, then clusters.
. "$(dirname "$0")/../../lib/scenario.sh"
start_cluster
createdb shop
export PGDATABASE=shop
export PGOPTIONS='-c client_min_messages=notice'
value "CREATE EXTENSION millrace" \
	-c "CREATE TABLE ratings AS SELECT i % 5000 AS u, (i * 7919::bigint) % 3001 AS i FROM generate_series(1, 400000) AS i" \
	-c "SELECT version FROM millrace.train_als('m', 'ratings', rank => 8, iterations => 2)" >"$work/first" 2>&1
is "$(tail -1 "$work/first")" 1 "a first version"
before=$(value "SELECT t::text FROM millrace.models AS t")

running="SELECT pid FROM pg_stat_activity WHERE application_name = 'training' AND state = 'active'"
started() { [ -n "$(value "$running")" ] || ! kill -0 "$job" 2>/dev/null; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
start() { # start SQL: in the background, its messages in $work/err; job and pid are set
	: >"$work/err"
	PGAPPNAME=training psql -AtXqc "$1" >"$work/out" 2>"$work/err" &
	job=$!
	until_true started
	pid=$(value "$running")
}
worked() { # prints what the backend has worked so far, all its threads, in ms; nothing when it is gone
	local stat
	{ read -r stat <"/proc/$pid/stat"; } 2>/dev/null || return 0
	[[ $stat =~ \)\ ([^\ ]+\ ){11}([0-9]+)\ ([0-9]+) ]] && echo $(((BASH_REMATCH[2] + BASH_REMATCH[3]) * 1000 / $(getconf CLK_TCK)))
}
end() { # end FUNCTION: pg_cancel_backend or pg_terminate_backend; most_ms becomes the most that was worked on afterwards
	local from_ms till_ms now_ms
	from_ms=$(worked)
	till_ms=$from_ms
	value "SELECT $1($pid)" >/dev/null
	while now_ms=$(worked) && [ -n "$now_ms" ]; do till_ms=$now_ms; done
	wait "$job" 2>/dev/null
	[ $((till_ms - from_ms)) -le "$most_ms" ] || most_ms=$((till_ms - from_ms))
}
most_ms=0

start "SELECT millrace.train_als('m', 'ratings', rank => 64, iterations => 10000, tolerance => 0, holdout => 0.1)"
until_true grep -q "iteration 3 of 10000" "$work/err"
like "$(cat "$work/err")" 'model "m": iteration 2 of 10000: loss [0-9.e+]+, ndcg [0-9.]+, [0-9.]+ s, [0-9.]+ s left' "each iteration is told as it ends"
begin_ms=$(now_ms)
value "INSERT INTO ratings SELECT 6000, i FROM generate_series(1, 100) AS i; UPDATE ratings SET i = 3002 WHERE u = 6000 AND i = 1; DELETE FROM ratings WHERE u = 6000 AND i = 2"
is $? 0 "ratings can be written meanwhile"
is "$(value "SELECT count(*) FROM millrace.recommend_top_k('m', 7)")" 10 "the version before is served"
is "$(value "SELECT string_agg(version || ' ' || active, ',') FROM millrace.models")" "1 true" "and the only one to be seen"
like "$(value "SELECT millrace.retrain('m')" 2>&1)" 'model "m" is being changed by another session' "a second training of the model is refused"
is "$(value "SELECT version FROM millrace.train_als('n', 'SELECT u, i FROM ratings WHERE u < 100', rank => 4, iterations => 1)" 2>/dev/null)" 1 "one of another model is not"
is "$(value "SELECT (version, active)::text FROM millrace.retrain('n', iterations => 1)" 2>/dev/null)" "(2,t)" "nor its retraining"
value "VACUUM ratings" -c "ALTER TABLE ratings SET (fillfactor = 90); SELECT millrace.activate('m', 1), millrace.drop_model('n')" >/dev/null
is $? 0 "neither is maintenance of the table, or activating a version"
echo "# other sessions took $(($(now_ms) - begin_ms)) ms in all"
kill -0 "$job"
ok $? "all that while it trains"
end pg_cancel_backend
like "$(tail -1 "$work/err")" "canceling statement due to user request" "it is cancelled"

# At other moments: reading, sorting, iterating, measuring, storing.
for at in 0 0.1 0.2 0.4 0.6 0.8 1.1 1.5 2; do
	start "SELECT millrace.train_als('m', 'SELECT u, i FROM ratings, generate_series(1, 3) AS times', rank => 32, iterations => 3, tolerance => 0, holdout => 0.2) FROM generate_series(1, 1000)"
	sleep "$at"
	end pg_cancel_backend
	grep -q "canceling statement" "$work/err" || { ok 1 "cancelled after $at s"; tail -3 "$work/err" | diag; }
done
start "SELECT millrace.retrain('m') FROM generate_series(1, 1000)"
sleep 0.5
end pg_terminate_backend
echo "# the most that a backend worked from just before the cancel to its end: $most_ms ms"
ok $((most_ms < 1000 ? 0 : 1)) "each ended soon"
is "$(value "SELECT regexp_replace(t::text, '(,[^,]*){3}$', '') FROM millrace.models AS t")" "$(sed -E 's/(,[^,]*){3}$//' <<<"$before")" "the models are as they were"
is "$(value "SELECT count(*) FROM millrace.factors WHERE version > 1")|$(value "SELECT count(*) FROM millrace.training_iteration WHERE version > 1")" "0|0" "nothing is left in the tables"
is "$(value "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")" 0 "no lock is left"
is "$(value "SELECT version FROM millrace.train_als('m', 'ratings', rank => 8, iterations => 2)" 2>/dev/null)" 2 "the next training makes the next version"

# Clusters
value "CREATE TABLE points AS SELECT i AS id, sin(i) AS x, cos(i * 0.7) * 9 AS y, sqrt(i) AS z FROM generate_series(1, 300000) AS i" \
	-c "SELECT version FROM millrace.train_kmeans('c', 'SELECT x, y, z FROM points', 7, max_iterations => 2, tolerance => 0)" >"$work/first" 2>&1
is "$(tail -1 "$work/first")" 1 "clusters: a first version"
like "$(cat "$work/first")" 'NOTICE:  model "c": iteration 1 of 2: cost [0-9.e+]+, [0-9.]+ s, [0-9.]+ s left' "each iteration is told"
like "$(cat "$work/first")" 'NOTICE:  model "c": iteration 2 of 2: cost [0-9.e+]+, [0-9.]+ s, 0.0 s left' "the last too"
start "SELECT millrace.train_kmeans('c', 'SELECT x, y, z FROM points', 50, max_iterations => 10000, tolerance => 0) FROM generate_series(1, 1000)"
until_true grep -q "iteration 3 of 10000" "$work/err"
is "$(value "UPDATE points SET x = 1 WHERE id < 100; SELECT count(DISTINCT millrace.kmeans_assign('c', ARRAY[x, y, z])) FROM points")" 7 "rows can be written, and are assigned by the version before"
like "$(value "SELECT millrace.retrain('c')" 2>&1)" 'model "c" is being changed by another session' "a second training of the model is refused"
kill -0 "$job"
ok $? "all that while it trains"
most_ms=0
end pg_cancel_backend
like "$(tail -1 "$work/err")" "canceling statement due to user request" "it is cancelled"
many="SELECT x, y, z, x + 1, y * 2, x * y, x * z, y * z FROM points"
for at in 0 0.1 0.2 0.4 0.6 1 1.5; do
	start "SELECT millrace.train_kmeans('c', '$many', 1000, starts => 10) FROM generate_series(1, 1000)"
	sleep "$at"
	end pg_cancel_backend
	grep -q "canceling statement" "$work/err" || { ok 1 "cancelled after $at s"; tail -3 "$work/err" | diag; }
	start "SELECT millrace.silhouette('c', 'SELECT x, y, z FROM points', 'euclidean', 200000), millrace.kmeans_cost('c', '$many')"
	sleep "$at"
	end pg_cancel_backend
	grep -q "canceling statement" "$work/err" || { ok 1 "a silhouette cancelled after $at s"; tail -3 "$work/err" | diag; }
done
echo "# the most that a backend worked from just before the cancel to its end: $most_ms ms"
ok $((most_ms < 1000 ? 0 : 1)) "each ended soon"
is "$(value "SELECT count(*), max(version) FROM millrace.models WHERE name = 'c'")|$(value "SELECT count(*) FROM millrace.cluster")" "1|1|7" "nothing is left in the tables"
is "$(value "SELECT (version, active)::text FROM millrace.retrain('c')" 2>/dev/null)" "(2,t)" "the next training makes the next version"
done_testing
