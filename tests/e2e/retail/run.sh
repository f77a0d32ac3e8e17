#!/usr/bin/env bash
# The demo prints the known answers, from its input: with one row changed, the total changes.
. "$(dirname "$0")/../../lib/scenario.sh"
export DEMO_HOME=$work/demo
trap '"$here/demo" stop; scenario_end' EXIT

# Values of the last column of the table that follows a heading.
totals_after() { sed 's/\x1b\[[0-9;]*m//g' "$work/out" | awk -v heading="$1" '
	index($0, heading) == 1 { found = 1; next }
	found && /^ / && !/total_cost/ { print $NF }
	found && /^\(/ { exit }' | paste -sd' '; }

SECONDS=0
"$here/demo" >"$work/out" 2>"$work/err"
is $? 0 "the demo ends with status 0"
[ -s "$work/out" ] || diag <"$work/err"
ok $((SECONDS < 300 ? 0 : 1)) "in under five minutes"
is "$(totals_after 'Five largest totals of a customer and day, after 2010-12-21')" "31347.48 25920.37 25399.56 25371.77 23395.10" "totals after 2010-12-21"
is "$(totals_after 'Five largest totals of a customer and day, after 2011-03-29')" "33521.40 31347.48 25920.37 25399.56 25371.77" "totals after 2011-03-29"
is "$(totals_after 'Five largest totals at the end')" "71601.44 55316.08 42939.17 33521.40 31975.59" "totals at the end"

dir=$(cat "$DEMO_HOME/dir")
. "$dir/cluster/env"
export PGDATABASE=demo
is "$(value 'SELECT count(*) FROM online_retail')" 541909 "all rows are there"
is "$(value 'SELECT count(*) FROM customer_cost_per_day')" 19573 "groups of customer and day"
is "$(value "SELECT count(*) FROM millrace.verify('customer_cost_per_day')")" 0 "the aggregate equals its query"
is "$(value "SELECT count(*) || ' ' || sum(rows) FROM millrace.batches WHERE source = 'online_retail'::regclass")" "305 541909" "one file is one batch"
is "$(value 'SELECT count(*) FROM purchases')" "$(value 'SELECT count(*) FROM online_retail WHERE customer_id IS NOT NULL AND quantity > 0')" "the pipe passed on what it should"
is "$(value 'SELECT count(*) FROM millrace.dead_letters')" 0 "no dead letters"
like "$(value "SELECT m.value || ' > ' || p.value FROM millrace.evaluate('half', 'SELECT customer, item FROM purchases WHERE NOT millrace.split(customer || '' '' || item, 0.5)', 5) m,
	millrace.evaluate('half', 'SELECT customer, item FROM purchases WHERE NOT millrace.split(customer || '' '' || item, 0.5)', 5, method => 'baseline') p
	WHERE m.metric = 'precision' AND p.metric = 'precision' AND m.value > p.value")" ">" "precision@5 of the model exceeds popularity's"
like "$(cat "$work/err")" "305" "a progress line counted the files"
like "$(cat "$work/out")" "psql 'host=127.0.0.1 port=[0-9]+" "it says how to go on"

# A second run starts clean, on input in which the largest total of 2010-12-21 or before is larger by 1000 x 1.
mkdir "$work/days"
tar -xJf "$data/retail-by-day.tar.xz" -C "$work/days"
largest=$(value "SELECT to_char(window_start, 'YYYY-MM-DD') FROM customer_cost_per_day WHERE window_start < '2010-12-22' ORDER BY total_cost DESC LIMIT 1")
customer=$(value "SELECT coalesce(customer_id::text, '') FROM customer_cost_per_day WHERE window_start < '2010-12-22' ORDER BY total_cost DESC LIMIT 1")
printf '999999,X,ONE MORE ROW,1000,%s 23:59:00,1.0,%s,Nowhere\n' "$largest" "$customer" >>"$work/days/by-day/$largest.csv"
rm "$work"/days/by-day/2011-0[4-9]*.csv "$work"/days/by-day/2011-1*.csv
tar -cJf "$work/changed.tar.xz" -C "$work/days" by-day
DEMO_DATA=$work/changed.tar.xz "$here/demo" >"$work/out" 2>"$work/err"
is $? 0 "a second run ends with status 0"
[ -e "$dir" ]; is $? 1 "the first one is gone"
is "$(totals_after 'Five largest totals of a customer and day, after 2010-12-21')" "32347.48 25920.37 25399.56 25371.77 23395.10" "one more row changes the total"
"$here/demo" stop
[ -e "$DEMO_HOME" ]; is $? 1 "demo-stop leaves nothing"
done_testing
