#!/usr/bin/env bash
# A scorer between sessions: an owner who is not superuser, two writers beside a model that is trained and switched again and
# again, rows through the parent and straight into partitions, a crash in mid-batch, dump and restore.  After each, every row
# of the source that came after the scorer was made has exactly one list, of the right form.
. "$(dirname "$0")/../../lib/scenario.sh"
start_cluster

value "CREATE ROLE shop LOGIN" && value "CREATE DATABASE shop OWNER shop"
export PGDATABASE=shop PGUSER=shop PGOPTIONS="-c client_min_messages=warning"
value "CREATE EXTENSION millrace;
	CREATE TABLE sales (at timestamptz NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, customer bigint, product bigint) PARTITION BY RANGE (at);
	SELECT millrace.create_source('sales', 'at');
	SELECT millrace.ensure_partitions('sales', '2024-01-01', '2024-01-03');
	INSERT INTO sales (at, customer, product) SELECT '2024-01-01'::timestamptz + n * interval '10 seconds', n % 300, (n * n / 11) % 97 FROM generate_series(1, 9000) n;
	SELECT millrace.train_als('m', 'SELECT customer, product FROM sales', rank => 8, iterations => 3);
	SELECT millrace.set_item_features('m', 'SELECT i, ''c'' || i % 20 FROM generate_series(0, 89) i');
	SELECT millrace.create_scorer('lists', 'sales', 'm', 'customer', 'product')" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "the owner of a database creates a scorer"

wrong() { # rows of the source without a list, and with more than one; lists that break a rule
	value "SELECT (SELECT count(*) FROM (SELECT at, id, customer, product FROM sales WHERE id > 9000 EXCEPT ALL SELECT at, id, customer, product FROM lists) q),
		(SELECT count(*) FROM (SELECT at, id, customer, product FROM lists EXCEPT ALL SELECT at, id, customer, product FROM sales) q),
		(SELECT count(*) FROM lists l WHERE cardinality(items) <> 5 OR product = ANY (items) OR category IS DISTINCT FROM CASE WHEN product < 90 THEN 'c' || product % 20 END
			OR EXISTS (SELECT FROM unnest(items) i WHERE i < 90 AND 'c' || i % 20 = category)
			OR (SELECT count(DISTINCT i % 20) FROM unnest(items) i WHERE i < 90) <> (SELECT count(*) FROM unnest(items) i WHERE i < 90)),
		(SELECT count(*) - count(DISTINCT seq) FROM lists),
		(SELECT count(*) FROM lists_latest f WHERE seq <> (SELECT max(seq) FROM lists l WHERE l.customer = f.customer AND l.is_last))"
}
own() { # another batch, whose lists say wrongly what their users have
	value "INSERT INTO sales (at, customer, product) SELECT '2024-01-02', n, n % 97 FROM generate_series(0, 299) n"
	value "SELECT count(*), count(*) FILTER (WHERE precision_own <> (SELECT count(*) / 5.0 FROM unnest(items) i WHERE EXISTS
			(SELECT FROM sales s WHERE s.customer = l.customer AND s.product = i))::real), sum(precision_own) > 0
		FROM lists l WHERE scored_at = (SELECT max(scored_at) FROM lists)"
}
# A batch of 50 rows of some 50 customers: by the parent, or straight into a partition
cat >"$work/load.sql" <<'SQL'
INSERT INTO sales (at, customer, product) SELECT '2024-01-02'::timestamptz + random() * interval '1 day', (random() * 299)::int, (random() * 96)::int FROM generate_series(1, 50);
INSERT INTO sales_20240103 (at, customer, product) SELECT '2024-01-03'::timestamptz + random() * interval '1 day', (random() * 310)::int, (random() * 99)::int FROM generate_series(1, 50);
SQL
psql -AtXqc "COPY (SELECT '2024-01-02'::timestamptz + n * interval '1 second', n % 300, n % 97 FROM generate_series(1, 3000) n) TO STDOUT" >"$work/rows"
psql -qXc "\copy sales_20240102 (at, customer, product) FROM '$work/rows'" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err") $(wrong)" "0  0|0|0|0|0" "COPY into a partition"
is "$(value "SELECT streams -> 'lists' ->> 'rows', streams -> 'lists' ->> 'users', streams -> 'lists' ? 'precision_next' FROM millrace.batches ORDER BY xid DESC LIMIT 1")" "3000|300|f" "its batch tells how many"

is "$(own)" "300|0|t" "and what users have is right"

# Two writers beside trainings and switches
pgbench -n -c 2 -t 60 -f "$work/load.sql" shop >"$work/load" 2>&1 &
load=$!
for i in 1 2 3 4 5 6; do
	value "SELECT millrace.retrain('m', iterations => 1, gate_tolerance => 1000)" >/dev/null || echo failed
	value "SELECT millrace.refresh_lists('m')" >/dev/null || echo failed
	value "SELECT count(*) FROM lists_latest" >/dev/null || echo failed
done >"$work/trained" 2>&1
is "$(cat "$work/trained")" "" "trainings beside writers"
wait "$load"
is "$? $(grep -c "number of failed transactions: 0" "$work/load") $(value "SELECT count(*) FROM lists")" "0 1 15300" "no writer failed"
is "$(wrong)" "0|0|0|0|0" "every row has its list"
is "$(value "SELECT precision_next IS NOT NULL AND judged > 0 FROM lists_hourly ORDER BY hour DESC LIMIT 1")" t "the running precision"

# A crash in the middle of batches
pgbench -n -c 2 -T 60 -f "$work/load.sql" shop >/dev/null 2>&1 &
load=$!
n=$(value "SELECT count(*) FROM lists")
until_true answers "SELECT count(*) > $n + 2000 FROM lists" t
"$lib/cluster" kill "$work/cluster"
wait "$load" 2>/dev/null
"$lib/cluster" again "$work/cluster"
is "$(wrong)" "0|0|0|0|0" "after a crash"
is "$(own)" "300|0|t" "what users have is right"
pgbench -n -c 2 -t 5 -f "$work/load.sql" shop >/dev/null 2>"$work/err"
is "$? $(wrong)" "0 0|0|0|0|0" "and it goes on"

# Dump by the owner; restore by a superuser
pg_dump -Fc -f "$work/dump" shop 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_dump by the owner"
PGUSER=postgres value "CREATE DATABASE copy OWNER shop"
pg_restore -U postgres --exit-on-error -d copy "$work/dump" 2>"$work/err"
is "$? $(cat "$work/err")" "0 " "pg_restore into a new database"
PGUSER=postgres PGDATABASE=copy value "GRANT USAGE ON SCHEMA millrace TO shop; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA millrace TO shop"
n=$(value "SELECT count(*), max(seq) FROM lists")
export PGDATABASE=copy
is "$(value "SELECT count(*), max(seq) FROM lists") $(wrong)" "$n 0|0|0|0|0" "the lists are restored"
value "INSERT INTO sales (at, customer, product) SELECT '2024-01-02', customer, items[2] FROM lists_latest WHERE customer < 300" 2>"$work/err"
is "$? $(cat "$work/err") $(wrong)" "0  0|0|0|0|0" "and batches go on"
is "$(value "SELECT count(*), min(precision_next) >= 0.2 FROM lists WHERE scored_at = (SELECT max(scored_at) FROM lists)")" "300|t" "which find the lists from before the dump"
is "$(own)" "300|0|t" "and know what users have"
is "$(value "SELECT name, kind, status FROM millrace.streams WHERE kind = 'scorer'")" "lists|scorer|running" "it is listed"
value "SELECT millrace.drop_scorer('lists')" >/dev/null 2>"$work/err"
is "$? $(cat "$work/err") $(value "SELECT count(*) FROM pg_class WHERE relname LIKE 'lists%'") $(value "SELECT count(*) FROM millrace.stream WHERE kind = 'scorer'")" "0  0 0" "and dropped without a trace"
export PGDATABASE=shop
PGUSER=postgres value "DROP EXTENSION millrace CASCADE" >/dev/null 2>&1
n=$(value "SELECT count(*) FROM lists")
value "INSERT INTO sales (at, customer, product) VALUES ('2024-01-01', 1, 1)" 2>"$work/err"
is "$? $(cat "$work/err") $(value "SELECT count(*) - $n FROM lists")" "0  0" "without the extension its table is left as it was"
done_testing
