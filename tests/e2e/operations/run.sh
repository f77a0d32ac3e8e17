#!/usr/bin/env bash
# extension/OPERATIONS.md: each trouble is made, its query finds it, and what is to be done about it helps.
. "$(dirname "$0")/../../lib/scenario.sh"
page=$lib/../../extension/OPERATIONS.md
start_cluster "shared_preload_libraries = 'pg_cron'" "cron.database_name = 'shop'" "cron.use_background_workers = off" "cron.host = '127.0.0.1'"
createdb shop
export PGDATABASE=shop PGOPTIONS='-c client_min_messages=error'

# Lines of the table: symptom | look | do.  look WORDS: the query of the symptom with these words.  remedy N WORDS: the Nth text in backquotes of what to do.
rows=$(awk '/^## Troubleshooting/ { on = 1 } /^## / && !/Troubleshooting/ { on = 0 } on && /^\| .* \| `/' "$page")
row() { grep -F -- "$1" <<<"$rows" | awk -F ' [|] ' -v words="$1" 'index($1, words)'; }
cell() { row "$1" | awk -F ' [|] ' -v n="$2" '{ print $n }' | grep -o '`[^`]*`' | tr -d '`' | sed -n "$3p"; }
remedy() { cell "$2" 3 "$1"; }
looked=()
look() { # look WORDS: what the query of that symptom prints, in $found; a line of the table has been looked at
	local query
	query=$(cell "$1" 2 1)
	[ -n "$query" ] || echo "# no query for: $1"
	looked+=("$(row "$1")")
	found=$(value "$query" 2>&1)
}
error() { psql -AtXq -v VERBOSITY=verbose -c "$1" 2>&1; }

value "CREATE EXTENSION millrace;
	CREATE TABLE events (at timestamptz NOT NULL, customer bigint, item text, amount numeric) PARTITION BY RANGE (at)"
value "SELECT millrace.create_source('events', 'at', '1 day'); SELECT millrace.ensure_partitions('events', '2024-06-01', '2024-06-04')" >"$work/out"
value "SELECT millrace.create_continuous_aggregate('sales_per_minute', \$\$
	SELECT item, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, sum(amount) AS total FROM events GROUP BY 1, 2\$\$, watermark => '10 minutes', late_policy => 'divert')"
value "SELECT millrace.create_continuous_aggregate('ratio', \$\$SELECT item, millrace.tumble(at, '1 hour') AS window_start, sum(1 / amount) AS x FROM events GROUP BY 1, 2\$\$)"
value "SELECT millrace.create_alert('rush', \$\$SELECT window_start, sum(n) AS n FROM sales_per_minute GROUP BY 1 HAVING sum(n) > 2\$\$)"
value "INSERT INTO events SELECT '2024-06-01'::timestamptz + i * interval '83 s', i % 37, 'item ' || (i * i) % (i % 37 + 3), i % 50 + 1 FROM generate_series(1, 2000) i"

# The first look; links of the page
awk '/^```sql/ { on = 1; next } /^```/ { on = 0 } on && /^## Trou/ { exit } on' "$page" >"$work/first.sql"
psql -AtXq -v ON_ERROR_STOP=1 -f "$work/first.sql" >"$work/first" 2>&1
is "$? $(grep -cE '^create_(alert|pipe|scorer|source|continuous_aggregate)\|[A-Z]' "$work/first")" "0 5" "the first look, and functions with their comments"
is "$(psql -Xqc '\df millrace.[a-z]*' | awk -F'|' '{ print $2 }' | grep -cE '^ +_') $(psql -AtXqc '\df millrace.[a-z]*' | wc -l)" \
	"0 $(value "SELECT count(*) FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace AND proname !~ '^_'")" "\\df millrace.[a-z]* lists the functions to call, all of them"

is "$(grep -oE '\]\([^)#]+' "$page" | cut -c3- | sort -u | while read -r file; do [ -e "$(dirname "$page")/$file" ] || echo "$file"; done)" "" "files that it points to are there"
is "$(grep -oE '\(#[^)]+' "$page" | cut -c3- | sort -u | while read -r anchor; do grep -E '^##+ ' "$page" | tr 'A-Z ' 'a-z-' | grep -qx -- "##*-$anchor" || echo "$anchor"; done)" "" "and sections"

# Streams
like "$(error "INSERT INTO events VALUES ('2024-06-02 22:30', 1, 'zero', 0)")" '22012.*CONTEXT:.*millrace stream "ratio"' "a stream that fails fails the batch"
look "the error's CONTEXT"
is "$found" "ratio|aggregate|postgres|running" "which it is"
value "$(remedy 1 "the error's CONTEXT")" >"$work/out"
value "INSERT INTO events VALUES ('2024-06-02 22:30', 1, 'zero', 0)"
look "results stand still"
is "$found" "ratio|stopped|" "it is stopped, and rows go in"
value "UPDATE events SET amount = 4 WHERE amount = 0"
value "$(remedy 3 "results stand still")" >"$work/out"
is "$(value "SELECT x FROM ratio WHERE item = 'zero'")|$(value "SELECT status FROM millrace.streams WHERE name = 'ratio'")" "0.25000000000000000000|running" "repaired and started it has them"

look "stays empty or ends early"
is "$(grep -c "^ratio||$" <<<"$found") $(grep -c '^sales_per_minute|2024-06-02 22:20' <<<"$found")" "1 1" "ratio has no watermark"
value "INSERT INTO events VALUES ('2024-06-03 00:00', 1, 'item 1', 5)"
look "stays empty or ends early"
like "$found" "sales_per_minute.2024-06-02 23:50:00.00.2024-06-02 2[12]:" "closed_to is behind the watermark"
mkfifo "$work/fifo"
PGAPPNAME=forgotten psql -AtXq <"$work/fifo" >"$work/open" 2>&1 &
exec 9>"$work/fifo"
echo "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'open' FROM txid_current();" >&9
until_true grep -q open "$work/open"
value "$(remedy 3 "stays empty or ends early")"
look "stays empty or ends early"
like "$found" "sales_per_minute.2024-06-02 23:50:00.00.2024-06-02 2[12]:" "an open transaction keeps it"
look "does not move, states and tables grow"
like "$found" "^[0-9]+.forgotten.idle in transaction" "the query finds it"
value "SELECT $(remedy 1 "does not move, states and tables grow" | sed "s/\$/(${found%%|*})/")" >"$work/out"
exec 9>&-
value "$(remedy 3 "stays empty or ends early")"
value "$(remedy 3 "stays empty or ends early")"
look "stays empty or ends early"
like "$found" "sales_per_minute.2024-06-02 23:50:00.00.2024-06-02 23:50" "without it maintain closes windows"

value "INSERT INTO events VALUES ('2024-06-01 12:00', 1, 'late', 5)"
look "fewer rows than the source"
is "$found" "events|1" "late rows are counted"
is "$(value "SELECT count(*) FROM sales_per_minute WHERE item = 'late'")" 0 "a window lacks one"
is "$(value "$(remedy 4 "fewer rows than the source")") $(value "SELECT n FROM sales_per_minute WHERE item = 'late'")" "1 1" "replayed it is there"

value "CREATE TABLE clock (at timestamptz NOT NULL, n int)"
value "SELECT millrace.create_source('clock', 'at', NULL); SELECT millrace.create_continuous_aggregate('ahead', \$\$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM clock GROUP BY 1\$\$, watermark => '1 minute')" >"$work/out"
value "INSERT INTO clock VALUES (now() + interval '59 minutes', 1)"
look "Everything is late"
like "$found" "^ahead\|" "a watermark ahead of the clock"
value "SELECT millrace.drop_continuous_aggregate('ahead'); DROP TABLE clock"
look "Everything is late"
is "$found" "" "which is gone with it"

look "Is an aggregate right"
is "$found" "" "it is"
value "UPDATE events SET amount = 7 WHERE item = 'late'"
look "Is an aggregate right"
is "$found" "marked (update), not refreshed|1" "an update"
look "does not show"
is "$found" "sales_per_minute|1
ratio|1" "marks"
value "$(remedy 1 "does not show")"
look "does not show"
is "$found" "" "which maintain works off"
value "UPDATE events SET amount = 8 WHERE item = 'late'"
value "$(remedy 2 "Is an aggregate right")" >"$work/out"
look "Is an aggregate right"
is "$found" "" "so does refresh"
value "SET session_replication_role = replica; INSERT INTO events VALUES ('2024-06-02 23:55', 1, 'unseen', 5)"
look "Is an aggregate right"
is "$found" "defect|1" "rows that came without triggers"
value "$(remedy 8 "Is an aggregate right")" >"$work/out"
look "Is an aggregate right"
is "$found" "" "refreshed by a range"

value "CREATE TABLE copies (LIKE events)"
value "SELECT millrace.create_pipe('slow', 'events', 'INSERT INTO copies SELECT n.* FROM new_rows n, pg_sleep(0.05)')"
value "INSERT INTO events VALUES ('2024-06-03 00:00:01', 1, 'item 1', 5)"
look "Writing is slow"
like "$found" "^slow.1.[1-9][0-9]" "the slow stream is the first"
value "SELECT millrace.drop_pipe('slow')"
mkfifo "$work/fifo2"
psql -AtXq <"$work/fifo2" >"$work/open2" 2>&1 &
exec 9>"$work/fifo2"
echo "BEGIN; LOCK events IN SHARE MODE; SELECT 'locked';" >&9
until_true grep -q locked "$work/open2"
psql -Xqc "INSERT INTO events VALUES ('2024-06-03 00:00:02', 1, 'item 1', 5)" &
writer=$!
waits() { look "Writers wait"; [[ $found =~ \{[0-9]+\}.INSERT ]]; }
until_true waits
ok $? "who waits for whom"
echo "ROLLBACK;" >&9
exec 9>&-
wait "$writer"
value "ANALYZE"
look "Reading"
is "$(sed -n '1s/|.*//p' <<<"$found") $(grep -c '|' <<<"$found")" "sales_per_minute 2" "states by size"
before=$(value "SELECT count(*) FROM sales_per_minute_delta")
value "$(remedy 1 "Reading")" >"$work/out"
is "$((before > 0)) $(value "SELECT count(*) FROM sales_per_minute_delta")" "1 0" "compact merges what batches left"
look "The disk fills"
like "$found" "^events..4.[0-9]+ kB" "four partitions, no retention"
value "$(remedy 1 "The disk fills")" >"$work/out"
is "$(value "$(remedy 2 "The disk fills")")" 4 "with one they are dropped"
like "$(error "INSERT INTO events VALUES (now(), 1, 'item 1', 5)")" 'no partition of relation "events" found for row' "a partition that is missing"
look "no partition of relation"
is "$found" "" "the query lists those there are"
value "$(remedy 1 "no partition of relation")" >"$work/out"
value "INSERT INTO events SELECT now() + i * interval '1 second', i % 37, 'item ' || (i * i) % (i % 37 + 3), i % 50 + 1 FROM generate_series(1, 2000) i"
look "no partition of relation"
is "$(grep -c 'events' <<<"$found") $(value "SELECT count(*) FROM events")" "3 2000" "made ahead"
look "alert did not come"
like "$found" "^rush.[0-9]+" "what alerts have reported"

# The ingester
printf '%s\n' '[source]' 'type = stdin' 'name = till' 'format = json' '[target]' 'table = events' '[columns]' 'at =' '[metrics]' 'interval = 1s' >"$work/till.ini"
sed -i '/^at =$/d' "$work/till.ini"
printf '{"at": "%s", "customer": 1, "item": "item 1", "amount": %s}\n' "$(date -u +%FT%TZ)" 5 "$(date -u +%FT%TZ)" '"x"' "$(date -u +%FT%TZ)" 6 | millrace run "$work/till.ini" --once >"$work/log" 2>&1
is $? 0 "the ingester runs"
look "No rows arrive"
like "$found" "till.database_lost.0.00:00" "its metrics, and their age"
look "Rows are missing"
like "$found" '^till.store.22P02.*"x".*1$' "what could not be stored, and why"
value "UPDATE millrace.dead_letters SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '\"x\"', '7'), 'UTF8')"
$(remedy 1 "Rows are missing" | sed "s|FILE.ini|$work/till.ini|") >"$work/log" 2>&1
look "Rows are missing"
is "$found $(value "SELECT sum(amount) FROM events WHERE customer = 1 AND amount IN (5, 6, 7) AND item = 'item 1' AND at < now() - interval '0 s'" | grep -c .)" " 1" "repaired and replayed"
look "It ends with status 6"
like "$found" "^till.-.0.[0-9]+" "positions"

awk '/^```ini encryption/ { on = 1; next } /^```/ { on = 0 } on' "$page" >"$work/encryption.ini"
MILLRACE_SOURCE_KAFKA_SASL_PASSWORD=x millrace check "$work/encryption.ini" >"$work/log" 2>&1
[ "$(wc -l <"$work/encryption.ini")" -ge 10 ] && ! grep -qE 'unknown|No such configuration property|must be set' "$work/log"
is "$?" 0 "the options of encrypted connections are known"

# Models
like "$(error "SET millrace.max_memory = '1MB'; SELECT millrace.train_als('shop', 'SELECT i % 1000, i FROM generate_series(1, 100000) i')")" "needs more memory than millrace.max_memory.*Set millrace.max_memory to" "a training that is too large"
look "needs more memory"
like "$found" "millrace.max_memory.2097152.kB" "the limit"
value "CREATE ROLE trainer"
value "$(remedy 1 "needs more memory")"
is "$(value "SELECT unnest(setconfig) FROM pg_db_role_setting WHERE setrole = 'trainer'::regrole")" "millrace.max_memory=8GB" "another one for a role"
value "SELECT millrace.train_als('shop', 'SELECT customer, item FROM events', rank => 8, holdout => 0.1)" >"$work/out"
psql -AtXqc "SELECT millrace.train_als('shop', 'SELECT customer, item FROM events, pg_sleep(60)')" >"$work/train" 2>&1 &
training=$!
trains() { look "ends with 55006"; [[ $found == *train_als* ]]; }
until_true trains
ok $? "who trains"
like "$(error "SELECT millrace.retrain('shop')")" "55006" "meanwhile another training is refused"
value "SELECT $(remedy 1 "ends with 55006")(${found%%|*})" >"$work/out"
wait "$training"
is "$? $(value "SELECT count(*) FROM millrace.models WHERE name = 'shop'")" "1 1" "cancelled it leaves nothing"
value "SELECT millrace.retrain('shop', gate_tolerance => 0, iterations => 1, warm_start => false)" >"$work/out"
look "lists stay the old ones"
like "$found" "^2.f.[0-9.]+.[a-z].*
1.t." "the gate, and why"
value "$(remedy 1 "lists stay the old ones")" >"$work/out"
is "$(value "SELECT version FROM millrace.models WHERE name = 'shop' AND active")" 2 "activated all the same"
look "what everybody gets"
is "$found" baseline "an unknown user"
is "$(value "$(remedy 2 "what everybody gets")")" "" "of whom nothing is known"
value "INSERT INTO events VALUES (now(), 999999, 'item 1', 5), (now(), 999999, 'item 3', 5)"
look "what everybody gets"
is "$found|$(value "$(remedy 2 "what everybody gets")" | wc -l)" "fold_in|2" "and then something is"
value "SELECT millrace.create_scorer('recommended', 'events', 'shop', 'customer', 'item')"
for i in 1 2; do value "INSERT INTO events SELECT now(), i, 'item ' || i + $i, 3 FROM generate_series(1, 9) i"; done
look "Lists get worse"
like "$found" ".+.9.[01]\.[0-9]{4}" "precision by the hour"
is "$(value "$(remedy 2 "Lists get worse")" | grep -c precision)" 1 "and of the model"
look "The first call after a restore"
is "$found" "shop|2|$(value "SELECT items FROM millrace.models WHERE name = 'shop' AND active")" "models to warm"
value "SELECT millrace.prune('shop', 1)" >"$work/out"
rm "$work"/cluster/data/base/*/pgsql_tmp_millrace.*
files() { ls "$work"/cluster/data/base/*/pgsql_tmp_millrace.* 2>/dev/null | wc -l; }
is "$(files) $(value "$(remedy 1 "The first call after a restore")" | grep -c .) $(($(files) > 0))" "0 1 1" "warm makes the cache files"
look "kept in each session's memory"
is "$found" "4194304|kB" "room for cache files"
value "SELECT millrace.fit_indexer('item', 'SELECT item FROM events')" >"$work/out"
value "SELECT millrace.train_kmeans('kinds', 'SELECT amount, millrace.one_hot(millrace.index_of(''item'', item), millrace.index_size(''item'')) FROM events', 3)" >"$work/out"
look "Clusters look wrong"
is "$found" "" "clusters of what is active now"
value "INSERT INTO events SELECT now(), 1, 'item new', 5 FROM generate_series(1, 1000)"
value "SELECT millrace.fit_indexer('item', 'SELECT item FROM events')" >"$work/out"
look "Clusters look wrong"
like "$found" '^kinds.kmeans.."item": 1.$' "clusters of an older indexer"
value "SELECT millrace.retrain('kinds', warm_start => false)" >"$work/out"
look "Clusters look wrong"
is "$found" "" "retrained"

# Everything
look "A scheduled job"
is "$found" "" "no jobs where pg_cron is absent, and no error"
awk '/^## Scheduled work/ { on = 1; next } /^## / { on = 0 } on' "$page" | grep -oE '`SELECT millrace\.schedule\([^`]*`' | tr -d '`' >"$work/schedules"
like "$(error "$(head -1 "$work/schedules")")" '55000.*HINT:.*CREATE EXTENSION pg_cron' "nothing is scheduled without it"
value "CREATE EXTENSION pg_cron"
while read -r call; do value "$call" >>"$work/jobs" 2>&1 || echo "# $call"; done <"$work/schedules"
look "A scheduled job"
is "$(wc -l <"$work/schedules") $(cut -d'|' -f1,2,4 <<<"$found" | sort | paste -sd' ')" "7 lists|shop|t maintain||t partitions||t retention||t retrain|shop|t runs||t" "with it all of these calls"
is "$(grep -F 'maintain|' <<<"$found" | cut -d'|' -f3)" "*/5 * * * *" "and a schedule of one's own"
value "DROP EXTENSION pg_cron"
value "CREATE ROLE keeper"; createdb -O keeper kept
(
	export PGDATABASE=kept
	value "SET ROLE keeper; CREATE EXTENSION millrace"
	pg_dump -f "$work/dump" && createdb restored && psql -Xqf "$work/dump" restored >"$work/restored" 2>&1
)
is "$(grep -c ERROR "$work/restored")" 0 "a dump is restored by a superuser"
export PGDATABASE=restored
like "$(error "SET ROLE keeper; SELECT millrace.retrain('shop')")" "42501" "what the creator of the extension could do"
look "for a function of Millrace"
is "$(grep -c keeper <<<"$found")" 0 "is that of who restored it"
value "$(remedy 1 "for a function of Millrace")"
look "for a function of Millrace"
is "$(grep -c keeper <<<"$found")" 1 "until he grants it"
export PGDATABASE=shop
# Rights
value "CREATE ROLE anybody; GRANT USAGE ON SCHEMA millrace TO anybody"
is "$(value "SET ROLE anybody; SELECT count(*) FROM millrace.recommend_top_k('shop', 3, 2)") $(value "SET ROLE anybody; SELECT count(*) > 0 FROM millrace.streams, millrace.batches, millrace.models, millrace.ingest_offsets")" "2 t" "with USAGE anybody gets recommendations, and sees what runs"
is "$(value "SET ROLE anybody; SELECT (SELECT count(*) FROM millrace.late_rows), (SELECT count(*) FROM millrace.alerts), (SELECT count(*) FROM millrace.jobs)")" "0|0|0" "but not what is in rows"
like "$(error "SET ROLE anybody; TABLE millrace.dead_letters")$(error "SET ROLE anybody; SELECT millrace.user_history('shop', '{3}')")$(error "SET ROLE anybody; SELECT millrace.retrain('shop')")" "42501.*42501.*42501" "nor payloads, nor what users have, nor may he train"

# Row security
value "CREATE ROLE tenant; CREATE ROLE landlord; GRANT USAGE ON SCHEMA millrace TO tenant, landlord; GRANT ALL ON ALL ROUTINES IN SCHEMA millrace TO landlord; GRANT CREATE ON SCHEMA public TO landlord"
value "SET ROLE landlord; CREATE TABLE rooms (at timestamptz, tenant text); SELECT millrace.create_source('rooms', 'at', NULL);
	SELECT millrace.create_continuous_aggregate('per_tenant', 'SELECT tenant, millrace.tumble(at, ''1 hour'') AS window_start, count(*) AS n FROM rooms GROUP BY 1, 2');
	ALTER TABLE rooms ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON rooms USING (tenant = current_user); GRANT SELECT, INSERT ON rooms TO tenant" >"$work/out"
value "SET ROLE landlord; $(grep -o 'CREATE VIEW mine[^`]*' <(paste -sd' ' "$page")); GRANT SELECT ON mine TO tenant; INSERT INTO rooms VALUES ('2024-06-01', 'somebody')"
value "SET ROLE tenant; INSERT INTO rooms VALUES ('2024-06-01', 'tenant')"
like "$(error "SET ROLE tenant; INSERT INTO rooms VALUES ('2024-06-01', 'somebody')")$(error "SET ROLE tenant; SELECT * FROM per_tenant")" "42501.*42501" "policies hold for writers, rights for readers"
is "$(value "SELECT tenant, n FROM per_tenant ORDER BY 1") $(value "SET ROLE tenant; SELECT tenant, n FROM mine")" "somebody|1
tenant|1 tenant|1" "an aggregate has all rows, a view each tenant's"
value "SET ROLE landlord; ALTER TABLE rooms FORCE ROW LEVEL SECURITY"
like "$(error "SET ROLE landlord; SELECT millrace.refresh('per_tenant', '2024-06-01', '2024-06-02')")$(error "SET ROLE landlord; SELECT millrace.verify('per_tenant')")" "row security hides rows.*row-level security policy" "nothing is computed from a part of the rows"

like "$(error "DROP EXTENSION millrace")" "2BP01|cannot drop" "DROP EXTENSION is refused"
look "is refused"
is "$(grep -c 'aggregate|events' <<<"$found")" 2 "because of these"
kept=$(value "SELECT count(*) FROM events")
value "$(remedy 1 "is refused")"
is "$(value "SELECT count(*) FROM events")" "$kept" "CASCADE leaves the rows"

is "$(printf '%s\n' "${looked[@]}" | sort -u | grep -c .)" "$(wc -l <<<"$rows")" "every line of the table was looked at"
printf '%s\n' "${looked[@]}" | sort -u | diff - <(sort -u <<<"$rows") | diag
done_testing
