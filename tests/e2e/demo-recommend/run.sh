#!/usr/bin/env bash
# The demo of recommendations in the stream prints what it should, what it stored is right, and nothing is left of it.
. "$(dirname "$0")/../../lib/scenario.sh"
export DEMO_HOME=$work/demo
trap '"$here/demo" clean >/dev/null 2>&1; scenario_end' EXIT

# The cells of the first row of the table under a heading (its first words).
row_of() { sed 's/\x1b\[[0-9;]*m//g' "$work/out" | awk -F' *[|] *' -v heading="$1" '
	{ sub(/^ +/, ""); sub(/ +$/, "") }
	found == 2 { for (i = 1; i <= NF; i++) printf "%s%s", (i > 1 ? "|" : ""), $i; exit }
	found == 1 && /^-+[+-]*$/ { found = 2; next }
	index($0, heading) == 1 { found = 1 }'; }

SECONDS=0
"$here/demo" >"$work/out" 2>"$work/err"
is $? 0 "the demo ends with status 0"
tail -5 "$work/err" | diag
echo "# it took $SECONDS s"
is "$(row_of 'rows before cleaning')" "1469307|8869|11226|1458032" "rows before and after cleaning"
is "$(row_of 'products |')" "5000|20|198" "products, departments, categories"
is "$(row_of 'first half')" "728734|411134|729298" "two halves"
like "$(grep -E '^ (train|validation)' "$work/out" | tr -s ' \n' ' ')" "train \| 0\.[4-9][0-9]* validation \| 0\.[2-9]" "precision of training and validation"
like "$(row_of produced)" "^729298\|729298\|729298\|729298\|7[3-9]\|" "messages produced = rows stored = that half = rows scored"
like "$(cat "$work/out")" "key -1 bytes, partition 0, offset 0" "messages have no key"
like "$(cat "$work/out")" "meanwhile [0-9]+ rows were stored and scored, and [0-9]+ readers answered" "nobody waited for the retraining"
for phase in before after; do
	is "$(awk -F'|' -v phase=" $phase" 'index($1, phase) == 1 && NF == 9 { print ($4 > $5 + 0.05 && $5 > $6 + 0.05 && $7 > $8 * 1.5 && $8 > $9) ? "t" : $0 }' "$work/out")" t "precision is above the baselines $phase the retraining"
done

dir=$(cat "$DEMO_HOME/dir")
. "$dir/cluster/env"
. "$dir/kafka/env"
export PGDATABASE=demo
is "$(value "SELECT count(*) FROM ((SELECT row, household, basket, product, quantity, sales_value, at FROM transactions EXCEPT ALL TABLE to_stream)
	UNION ALL (TABLE to_stream EXCEPT ALL SELECT row, household, basket, product, quantity, sales_value, at FROM transactions)) d")" 0 "what is stored is that half, row by row"
is "$(value "SELECT count(DISTINCT topic_offset), min(topic_offset), max(topic_offset) FROM transactions")" "729298|0|729297" "each message once"
is "$(value "SELECT count(*) FROM millrace.dead_letters")" 0 "no dead letters"
is "$(value "SELECT max(rows) FROM millrace.batches WHERE source = 'transactions'::regclass")" 10000 "batches are bounded"
is "$(value "SELECT count(*) FROM (SELECT row, topic_offset FROM recommended EXCEPT ALL SELECT row, topic_offset FROM transactions) d")" 0 "one scored row an event"
is "$(value "SELECT count(*) FROM purchases")" "$(value "SELECT count(*) FROM raw JOIN item_features USING (product)")" "the model's ratings have all of it"
sample="(SELECT * FROM recommended WHERE topic_offset % 1000 = 7) r"
is "$(value "SELECT count(*) FROM $sample LEFT JOIN item_features f USING (product) WHERE r.category IS DISTINCT FROM f.category")" 0 "the category of what was bought"
is "$(value "SELECT count(*) FROM $sample, unnest(items) AS i (product) JOIN item_features f ON f.product = i.product WHERE f.category = r.category OR i.product = r.product")" 0 "nothing of it is recommended"
is "$(value "SELECT count(*) FROM $sample, LATERAL (SELECT count(*) AS n, count(DISTINCT coalesce(f.category, i.product::text)) AS different FROM unnest(items) AS i (product) LEFT JOIN item_features f USING (product)) l
	WHERE n <> 5 OR different <> 5")" 0 "but five of five categories"
is "$(value "SELECT count(*) FROM (SELECT * FROM recommended WHERE topic_offset >= 729298 - 2000) r WHERE abs(precision_own - (SELECT count(*) FROM unnest(items) AS i (product) WHERE EXISTS (
	SELECT FROM purchases p WHERE p.household = r.household AND p.product = i.product)) / 5.0) > 1e-6")" 0 "precision_own of the last batch, counted"
# A batch is a range of offsets.
is "$(value "WITH b AS (SELECT row_number() OVER (ORDER BY xid) AS batch, sum(rows) OVER (ORDER BY xid) - rows AS first_offset, streams->'recommended' AS said FROM millrace.batches WHERE source = 'transactions'::regclass)
	SELECT count(*) FROM b JOIN (SELECT width_bucket(topic_offset, (SELECT array_agg(first_offset::bigint ORDER BY batch) FROM b)) AS batch, avg(precision_own) AS own, count(*) AS users FROM recommended WHERE is_last GROUP BY 1) r USING (batch)
	WHERE abs((said->>'precision_own')::float8 - own) < 1e-5 AND (said->>'users')::int = users")" "$(value "SELECT count(*) FROM millrace.batches WHERE source = 'transactions'::regclass")" \
	"the running precision stands in millrace.batches"
is "$(value "SELECT count(*) FROM recommended_latest")" "$(value "SELECT count(DISTINCT household) FROM transactions")" "recommended_latest has one row a household"

is "$("$here/demo" clean 2>&1)" "dropped topic, tables and model; left of them: 0 topics, 0 rows, tables and files" "demo-recommend-clean leaves nothing"
[ -e "$dir" ] || [ -e "$DEMO_HOME" ]; is $? 1 "nor anything running"
is "$("$here/demo" clean 2>&1)" "nothing to clean" "a second time it says so"
done_testing
