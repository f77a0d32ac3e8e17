#!/usr/bin/env bash
# The recipes of README.md beside this file, as files that a user would copy, over input with known answers.
# `run.sh --write` puts what they print into that page; without it the page is compared with it.
. "$(dirname "$0")/../../lib/scenario.sh"
start_cluster
createdb recipes
export PGDATABASE=recipes
value "SET client_min_messages = warning; CREATE EXTENSION millrace"

mkdir "$work/page"
recipe() { # recipe NAME.sql [psql options]: its rows, without heading; what psql prints goes into $work/page/NAME
	local name=${1%.sql} file=$here/$1
	shift
	if [ ! -f "$file" ]; then
		file=$work/block.sql
		python3 "$here/page.py" "$here/README.md" --sql "$name" >"$file"
	fi
	psql -Xq -v ON_ERROR_STOP=1 -P pager=off -P linestyle=ascii "$@" -f "$file" >"$work/page/$name" 2>&1 || cat "$work/page/$name"
	awk '/^[-+]+$/ { rows = 1; next } /^\([0-9]+ rows?\)$/ { rows = 0 } rows { gsub(/ *\| */, "|"); gsub(/^ +| +$/, ""); print }' "$work/page/$name"
}
ingest() { # ingest NAME ADDRESS: millrace run NAME.ini to its end
	sed -e "s|@DIR@|$2|; s|@FILE@|$2|" "$here/$1.ini" >"$work/$1.ini"
	millrace run "$work/$1.ini" --once >"$work/log" 2>&1
	is $? 0 "$1 are ingested"
	grep -E 'error|warning' "$work/log" | diag
}
# Rows in which view $1 (without its column final) and query $2 differ; keys $3 identify a row, numbers may differ by 1e-9 of their value.
differences() {
	value "SELECT count(*) FROM (SELECT to_jsonb(a) - 'final' AS a, to_jsonb(b) AS b FROM $1 a FULL JOIN ($2) b
		ON jsonb_build_array(${3//@/a.}) = jsonb_build_array(${3//@/b.})) rows
		WHERE a IS NULL OR b IS NULL OR EXISTS (SELECT FROM jsonb_each(a) x FULL JOIN jsonb_each(b) y USING (key) WHERE x.value IS DISTINCT FROM y.value AND
			CASE WHEN jsonb_typeof(x.value) = 'number' AND jsonb_typeof(y.value) = 'number'
				THEN abs(x.value::numeric - y.value::numeric) > 1e-9 * abs(y.value::numeric) ELSE true END)"
}

# 100,000 events with known hourly counts, in 50 files
for file in counts alert; do is "$(recipe $file.sql | grep -v '^$')" "" "$file.sql"; done
is "$(recipe stream.sql -v query="$(cat "$here/query.sql")" | grep -v '^$')" "" "stream.sql"
mkfifo "$work/fifo"
psql -AtXq <"$work/fifo" >"$work/listened" 2>&1 &
listener=$!
exec 9>"$work/fifo"
echo "LISTEN millrace; SELECT 'listening';" >&9
until_true grep -q listening "$work/listened"
mkdir "$work/events"
python3 "$here/events.py" events "$data/events-hourly-counts.csv" "$work/events"
ingest events "$work/events"
is "$(value "SELECT count(*), sum(rows) FROM millrace.batches WHERE source = 'events'::regclass")" "50|100000" "one file is one batch"

value "CREATE TABLE known (window_start timestamptz, window_end timestamptz, action text, n bigint)"
psql -Xq -c "\\copy known FROM '$data/events-hourly-counts.csv' CSV HEADER"
is "$(value "SELECT count(*) FROM (SELECT action, window_start, n FROM per_hour EXCEPT ALL SELECT action, window_start, n FROM known) d")|$(value "SELECT count(*) FROM per_hour")" "0|104" "the hourly counts are the published ones"
recipe counts-shown.sql >"$work/shown"
is "$(sed -n '1,4p' "$work/shown" | cut -d'|' -f1-3)" "$(value "SELECT action, window_start, n FROM known ORDER BY 2, 1 LIMIT 4")" "as shown"
is "$(value "SELECT max(n), min(n), count(DISTINCT window_start) FROM per_hour")" "1036|11|53" "largest and smallest hourly count, hours"
is "$(value "SELECT action, sum(n) FROM per_day GROUP BY 1 ORDER BY 1")" $'Close|50000\nOpen|50000' "events of each action"
is "$(value "SELECT count(*) FROM (SELECT millrace.tumble(window_start, '1 hour'), sum(n) FROM per_minute GROUP BY 1 EXCEPT SELECT window_start, sum(n) FROM per_hour GROUP BY 1) d")" 0 "minutes add up to hours"
is "$(value "SELECT * FROM per_day ORDER BY window_start, action" | cut -d'|' -f1-3)" "$(value "SELECT action, date_trunc('day', at), count(*) FROM events GROUP BY 1, 2 ORDER BY 2, 1")" "hours add up to days"
for aggregate in per_minute per_hour per_day six_hours; do
	is "$(differences $aggregate "TABLE ${aggregate}_query" "@action, @window_start")" 0 "$aggregate equals its query"
	is "$(value "SELECT count(*) FROM millrace.verify('$aggregate')")" 0 "and is verified"
done

recipe busiest-hour.sql >"$work/hours"
is "$(head -1 "$work/hours" | cut -c1-19)" "2016-07-26 20:00:00" "the busiest hour"
is "$(grep -E '^2016-07-28 0[23]' "$work/hours" | sort | sed 's/00000*$//')" $'2016-07-28 02:00:00+00|16.725\n2016-07-28 03:00:00+00|16.575' "average over the actions, then over the minutes"

recipe moving-average.sql >"$work/moving"
is "$(wc -l <"$work/moving") $(cut -d'|' -f1,2,4 "$work/moving" | sed -n '1p;31p;62p;2000p;$p' | md5sum)" \
	"$(value "SELECT count(*) FROM (SELECT DISTINCT action, date_trunc('minute', at) FROM events) d") $(value "
		WITH minutes AS (SELECT action, date_trunc('minute', at) AS window_start, count(*) AS n FROM events GROUP BY 1, 2)
		SELECT action, window_start, (SELECT avg(b.n) FROM minutes b WHERE b.action = a.action AND b.window_start BETWEEN a.window_start - interval '30 minutes' AND a.window_start)
		FROM minutes a ORDER BY 1, 2" | sed -n '1p;31p;62p;2000p;$p' | md5sum)" "moving average over 30 minutes"

recipe variance.sql >"$work/variance"
is "$(for action in Close Open; do grep "^$action" "$work/variance" | tail -1 | cut -d'|' -f1,4; done)" \
	"$(value "SELECT action, var_samp(n) FROM (SELECT action, date_trunc('minute', at), count(*) AS n FROM events GROUP BY 1, 2) m GROUP BY 1 ORDER BY 1")" "online variance, at the end"
is "$(sed -n 100p "$work/variance" | cut -d'|' -f4)" \
	"$(value "SELECT var_samp(n) FROM (SELECT count(*) AS n FROM events WHERE action = 'Close' GROUP BY date_trunc('minute', at) ORDER BY date_trunc('minute', at) LIMIT 100) m")" "and on the way"

# Alerts: rows, and notifications
unbalanced=$(value "SELECT date_trunc('minute', at) FROM events GROUP BY 1 HAVING abs(count(*) FILTER (WHERE action = 'Open') - count(*) FILTER (WHERE action = 'Close')) > 20 ORDER BY 1")
is "$(wc -l <<<"$unbalanced")" 4 "minutes with a difference of more than 20"
is "$(value "SELECT window_start FROM millrace.alerts WHERE alert = 'unbalanced' ORDER BY 1")" "$unbalanced" "each is in millrace.alerts, once"
echo "SELECT 'heard';" >&9
exec 9>&-
wait "$listener"
is "$(grep -c 'notification "millrace" with payload "{.*unbalanced' "$work/listened")" 4 "and was notified"
sed -n 's/ received from server process.*//; /notification/p' "$work/listened" >"$work/page/notifications"
recipe alerts.sql >"$work/shown"
is "$(cut -d'|' -f2 "$work/shown")" "$unbalanced" "as shown"
value "INSERT INTO events SELECT '2016-07-28 06:58:30', 'Close' FROM generate_series(1, 50)"
is "$(value "SELECT count(*) FROM millrace.alerts")" 5 "another batch, another alert"
value "INSERT INTO events SELECT '2016-07-28 06:58:45', 'Close' FROM generate_series(1, 50)"
is "$(value "SELECT count(*) FROM millrace.alerts")" 5 "which is not repeated"

# The same text as a batch and as a stream: what the stream holds is what psql -f query.sql prints
is "$(differences six_hours "$(cat "$here/query.sql")" "@action, @window_start") $(value "SELECT count(*) FROM six_hours")" "0 20" "query.sql as a batch and as a stream"
is "$(recipe six-hours.sql | tail -1)" 0 "as shown, without differences"

# Trending words
is "$(recipe hashtags.sql | grep -v '^$')" "" "hashtags.sql"
python3 "$here/events.py" tweets "$work/tweets"
ingest tweets "$work/tweets"
is "$(value "SELECT count(*) FROM tweets") $(value "SELECT count(*) FROM millrace.batches WHERE source = 'tweets'::regclass")" "3000 12" "in batches of 250"
is "$(differences trending "TABLE trending_query" "@kind, @word, @window_start")" 0 "three hours, every five minutes: equal to the query"
value "CREATE VIEW split AS SELECT created_at::timestamptz AS at, unnest(string_to_array(translate(text, E'\t\n', '  '), ' ')) AS word FROM tweets"
is "$(value "SELECT kind, word, n FROM trending WHERE window_start = '2021-04-08 17:05+00' ORDER BY kind, word COLLATE \"C\"")" \
	"$(value "SELECT CASE WHEN word LIKE '%#%' THEN 'hashtag' WHEN word LIKE '%@%' THEN 'mention' ELSE 'retweet' END, word, count(*) FROM split
		WHERE (word LIKE '%#%' OR word LIKE '%@%' OR word = 'RT') AND at >= '2021-04-08 17:05+00' AND at < '2021-04-08 20:05+00' GROUP BY 1, 2 ORDER BY 1, word COLLATE \"C\"")" \
	"hashtags, mentions and retweets of one window, counted from the texts"
is "$(value "SELECT sum(n) > 0 FROM trending WHERE word = 'L’#emploi'")" t "L’#emploi is one"
value "CALL millrace.maintain('trending')"
recipe top-hashtags.sql >"$work/top"
is "$(cut -d'|' -f1 "$work/top" | sort | uniq -c | tr -s ' ')" " 20 2021-04-08 23:40:00+02" "twenty, of the last three hours, in the time of Paris"
is "$(cut -d'|' -f2,3 "$work/top")" "$(value "SELECT word, count(*) FROM split WHERE word LIKE '%#%' AND at >= '2021-04-08 21:40+00' AND at < '2021-04-09 00:40+00' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20")" "the current top twenty"

# Cost for each customer and day: a shop's sales until 2011-03-29, one file per batch
is "$(recipe cost.sql | grep -v '^$')" "" "cost.sql"
tar -xJf "$data/retail-by-day.tar.xz" -C "$work"
rm "$work"/by-day/2011-0[4-9]*.csv "$work"/by-day/2011-1*.csv "$work"/by-day/2011-03-3*.csv
ingest sales "$work/by-day"
is "$(value "SELECT count(*), sum(rows) FROM millrace.batches WHERE source = 'sales'::regclass")" "$(ls "$work/by-day" | wc -l)|$(value "SELECT count(*) FROM sales")" "one file is one batch"
is "$(recipe top-costs.sql)" $'(none)|2011-03-29|33521.40\n(none)|2010-12-21|31347.48\n18102|2010-12-07|25920.37\n(none)|2010-12-10|25399.56\n(none)|2010-12-17|25371.77' "the five largest, known"
is "$(differences cost_per_day "TABLE cost_per_day_query" "@customer, @window_start")" 0 "equal to the query"

# A grocer's purchases: 400 households, 6,000 products in 60 categories and 8 departments, some products sold much more than others
export PGOPTIONS='-c client_min_messages=warning'
value "CREATE TABLE products AS SELECT p AS product, 'department ' || p % 60 % 8 AS department, 'category ' || p % 60 AS category,
		CASE WHEN p % 4 = 0 THEN 'Private' ELSE 'National' END AS brand FROM generate_series(1, 6000) AS p"
value "CREATE TABLE purchases (household int, product int, quantity int, sales_value numeric, at timestamptz NOT NULL)"
buy() { # buy FIRST LAST: purchases with these numbers, a thousand a day, some of them returns or without a price
	value "INSERT INTO purchases SELECT n % 400, 1 + CASE WHEN n % 2 = 0 THEN ((n * 7919) % 6000)::bigint ^ 2 / 6000 ELSE (n * 7919 + n / 6000 * 13) % 6000 END::int % 6000, CASE WHEN n % 97 = 0 THEN 0 ELSE 1 + n % 3 END,
		CASE WHEN n % 89 = 0 THEN 0 ELSE 0.8 + n % 5 END, timestamptz '2021-01-01' + n * interval '86.4 seconds' FROM generate_series($1, $2) AS n"
}
buy 1 30000
recipe item-features.sql >"$work/features"
truth="SELECT product FROM purchases WHERE quantity > 0 AND sales_value >= quantity GROUP BY 1 ORDER BY sum(quantity) DESC, 1 LIMIT 5000"
is "$(cat "$work/features")" "$(value "SELECT count(*), count(DISTINCT department), count(DISTINCT category) FROM products WHERE product IN ($truth)")" "products, departments and categories"
is "$(value "SELECT count(*) FROM ((TABLE item_features EXCEPT SELECT product, department, category FROM products) UNION ALL (SELECT product, '', '' FROM ($truth) t EXCEPT SELECT product, '', '' FROM item_features)) d")" 0 "those with the greatest quantity"

is "$(recipe own-purchases.sql | grep -v '^$')" "" "own-purchases.sql"
own="SELECT household, array_agg(DISTINCT product ORDER BY product) FROM purchases GROUP BY 1"
is "$(value "SELECT count(*) FROM (TABLE own_purchases EXCEPT $own) d") $(value "SELECT count(*) FROM own_purchases")" "0 400" "what each household has bought"
is "$(recipe own-purchases-shown.sql)" "$(value "SELECT household, count(DISTINCT product), (array_agg(DISTINCT product ORDER BY product))[:5] FROM purchases GROUP BY 1 ORDER BY 1 LIMIT 3")" "as shown"

recipe categories.sql >"$work/categories"
is "$(sed -n 1,2p "$work/categories")" "$(value "SELECT count(DISTINCT household), count(DISTINCT product), count(DISTINCT (household, product)) FROM purchases JOIN item_features USING (product)")
$(cut -d'|' -f1,3 "$work/features")" "a model, and its categories"
bought="SELECT product, count(DISTINCT household) AS n FROM purchases JOIN item_features USING (product) GROUP BY 1"
is "$(sed -n 3,7p "$work/categories" | cut -d'|' -f2-)" "$(value "SELECT product, n, category FROM (SELECT product, n, category, row_number() OVER (PARTITION BY category ORDER BY n DESC, product) AS place FROM ($bought) b JOIN products USING (product)) c
	WHERE place = 1 ORDER BY n DESC, product LIMIT 5")" "top_5: the most bought of five categories"
is "$(sed -n 8,12p "$work/categories" | cut -d'|' -f3 | sort -u | wc -l)" 5 "random_5: five categories"
is "$(value "SELECT count(DISTINCT category), count(DISTINCT product), sum((household IS NOT NULL)::int) FROM products LEFT JOIN (SELECT DISTINCT household, product FROM purchases WHERE household = 7) h USING (product)
	WHERE product IN ($(sed -n '13,$p' "$work/categories" | cut -d'|' -f2 | paste -sd,))")" "5|5|0" "recommended: five categories, nothing that it has"

recipe store-brand.sql >"$work/brand"
is "$(wc -l <"$work/brand") $(value "SELECT count(DISTINCT product), min(brand), max(brand) FROM products WHERE product IN ($(cut -d'|' -f2 "$work/brand" | paste -sd,))")" "5 5|Private|Private" "products of the store's own brand"
is "$(cut -d'|' -f2 "$work/brand")" "$(value "SELECT item_id FROM millrace.recommend_top_k('shop', 7, 6000) JOIN products ON product = item_id WHERE brand = 'Private' ORDER BY rank LIMIT 5")" "the best of them"

recipe week-baseline.sql | tail -5 >"$work/week"
week="SELECT product, count(*) FROM purchases WHERE at >= (SELECT date_trunc('day', max(at), 'UTC') FROM purchases) - interval '6 days' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
is "$(cut -d'|' -f2- "$work/week")" "$(value "$week")" "the baseline of a week"
before=$(value "$week")
buy 30001 36000
is "$(value "SELECT count(*) FROM (TABLE own_purchases EXCEPT $own) d")" 0 "own_purchases has what was bought since"
is "$(value "SELECT item_id, score FROM millrace.baseline('shop', 'week') WHERE rank <= 5")" "$before" "the baseline is as it was read"
is "$(value "SELECT millrace.refresh_lists('shop')")" 2 "until it is refreshed"
is "$(value "SELECT item_id, score FROM millrace.baseline('shop', 'week') WHERE rank <= 5")" "$(value "$week")" "the baseline of the last week"
[ "$before" != "$(value "$week")" ]
ok $? "which is another"
files="SELECT count(*) FROM pg_ls_dir('base/' || (SELECT oid FROM pg_database WHERE datname = current_database())) AS f WHERE f LIKE 'pgsql_tmp_millrace.%'"
is "$(value "$files")" 2 "one file serves the version, one the lists: those of earlier lists are gone"

# All of it in another database
pg_dump -Fc -f "$work/dump" recipes 2>"$work/err" && createdb copy && pg_restore --exit-on-error -d copy "$work/dump" 2>>"$work/err"
is "$? $(cat "$work/err")" "0 " "dump and restore"
lists="SELECT 'top', t::text FROM millrace.baseline('shop', 'top') t UNION ALL SELECT 'random', t::text FROM millrace.baseline('shop', 'random_5') t UNION ALL SELECT 'week', t::text FROM millrace.baseline('shop', 'week') t"
is "$(PGDATABASE=copy value "$lists" | md5sum)" "$(value "$lists" | md5sum)" "the same lists there"
is "$(PGDATABASE=copy value "SELECT millrace.refresh_lists('shop')")" 2 "which can be refreshed"
value "SELECT millrace.drop_model('shop')" >/dev/null
is "$(value "$files") $(value "SELECT (SELECT count(*) FROM millrace.item_features_block) + (SELECT count(*) FROM millrace.custom_baseline_block)")" "0 0" "drop_model leaves neither files nor rows"
# Kinds of sales lines: learnt from the days before July 2011, then each later day is clustered in the transaction that stores it
createdb retail
export PGDATABASE=retail
value "CREATE EXTENSION millrace"
is "$(recipe retail.sql | grep -v '^$')" "" "retail.sql"
rm -r "$work/by-day"
tar -xJf "$data/retail-by-day.tar.xz" -C "$work"
mkdir "$work/later"
mv "$work"/by-day/2011-0[7-9]*.csv "$work"/by-day/2011-1*.csv "$work/later"
n_later=$(ls "$work/later" | wc -l)
ingest retail "$work/by-day"
recipe retail-clusters.sql >"$work/clusters"
mv "$work"/later/*.csv "$work/by-day"
ingest retail "$work/by-day"
recipe retail-silhouette.sql >>"$work/clusters"
is "$(grep -E '^[0-5]\|[A-Z]' "$work/clusters" | cut -d'|' -f2 | paste -sd' ')" "Thursday Tuesday Monday Wednesday Friday Sunday" "days by how often they come, as in Spark"
is "$(value "SELECT count(*) FILTER (WHERE invoice_date < '2011-07-01'), count(*) FILTER (WHERE invoice_date >= '2011-07-01') FROM features")" "245903|296006" "lines to learn from, and later ones"
is "$(value "SELECT (metrics->>'cost')::float8 <= 72.5e6 FROM millrace.models WHERE name = 'lines'")" t "the cost is below that of Spark"
assigned="SELECT invoice_no, stock_code, invoice_date, millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days) FROM features WHERE invoice_date >= '2011-07-01'"
is "$(value "SELECT (SELECT count(*) FROM ($assigned EXCEPT ALL TABLE clustered) d) + (SELECT count(*) FROM (TABLE clustered EXCEPT ALL $assigned) d)")" 0 "clusters in the stream are those that are assigned afterwards"
is "$(value "SELECT count(*), count(DISTINCT c.xmin::text) FROM clustered c")|$(value "SELECT count(*) FROM (SELECT xmin::text, count(*) FROM clustered GROUP BY 1 EXCEPT SELECT xmin::text, count(*) FROM retail GROUP BY 1) d")" "296006|$n_later|0" "a day in one transaction, with its clusters"
# The same in SQL, from the definitions; lines that are the same count together.
value "CREATE TABLE x AS SELECT id, train, n, cluster, i, v FROM (SELECT row_number() OVER () AS id, f.* FROM (SELECT invoice_date < '2011-07-01' AS train, unit_price, quantity, days, count(*) AS n FROM features GROUP BY 1, 2, 3, 4) f) f,
		LATERAL (SELECT millrace.kmeans_assign('lines', ARRAY[unit_price, quantity] || days)) k (cluster), unnest(ARRAY[unit_price, quantity] || days::numeric[]) WITH ORDINALITY u (v, i);
	CREATE TABLE near AS SELECT id, train, min(n) AS n, c.cluster, x.cluster = c.cluster AS own, sum((v::float8 - center[i]) ^ 2) AS d FROM x, millrace.cluster_centers('lines') c GROUP BY id, train, c.cluster, x.cluster;
	CREATE TABLE sums AS SELECT cluster, i, sum(n) AS m, sum(n * v) AS s, sum(n * v * v) AS q FROM x WHERE NOT train GROUP BY 1, 2;
	CREATE TABLE apart AS SELECT id, min(n) AS n, x.cluster = s.cluster AS own, sum(v * v - 2 * v * s / m + q / m) * CASE WHEN x.cluster = s.cluster THEN min(m) / nullif(min(m) - 1, 0) ELSE 1 END AS d
		FROM x JOIN sums s USING (i) WHERE NOT train GROUP BY id, x.cluster, s.cluster"
is "$(value "SELECT count(*) FROM (SELECT min(d) FILTER (WHERE own) AS d, min(d) AS least FROM near GROUP BY id) n WHERE d > least * (1 + 1e-12)")" 0 "each line is in the cluster of the nearest center"
is "$(value "SELECT abs(sum(n * d) / (SELECT (metrics->>'cost')::float8 FROM millrace.models WHERE name = 'lines') - 1) < 1e-12 FROM near WHERE own AND train")" t "the cost is the sum of squared distances"
is "$(value "SELECT round(sum(n * CASE WHEN a IS NULL OR greatest(a, b) = 0 THEN 0 ELSE (b - a) / greatest(a, b) END) / sum(n), 6) FROM (SELECT min(n) AS n, min(d) FILTER (WHERE own) AS a, min(d) FILTER (WHERE NOT own) AS b FROM apart GROUP BY id) s")" \
	"$(value "SELECT round(millrace.silhouette('lines', \$\$SELECT unit_price, quantity, days FROM features WHERE invoice_date >= '2011-07-01'\$\$)::numeric, 6)")" "the silhouette is that of mean squared distances"

# The page
if [ "${1:-}" = --write ]; then python3 "$here/page.py" "$here/README.md" "$work/page" --write; fi
python3 "$here/page.py" "$here/README.md" "$work/page" >"$work/differences"
ok $? "README.md shows the files, and what they print"
diag <"$work/differences"
done_testing
