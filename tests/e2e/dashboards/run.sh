#!/usr/bin/env bash
# What people see: the shop of docker/ with Superset, in headless Chromium.  Every chart of every tab is waited for and looked at,
# numbers grow by themselves while events flow, and are compared with SQL over raw rows; filters filter.
# Pictures are kept in build/screenshots: sales-before.png and sales-after.png (some refreshes apart), one of each tab, failed.png.
. "$(dirname "$0")/../../lib/scenario.sh"
docker=$lib/../../docker
shots=$lib/../../build/screenshots
export DEMO_HOME=$work/home
browser=
finish() {
	[ -z "$browser" ] || kill "$browser" 2>/dev/null
	"$docker/shop/demo" stop >/dev/null 2>&1
	scenario_end
}
trap finish EXIT
mkdir -p "$shots"
rm -f "$shots"/*.png

modules=$("$lib/npm" browser-npm "$here") || exit 1
WAIT=0 RATE=${RATE:-10} PAST=${PAST:-60000:1d} "$docker/shop/demo" >"$work/out" 2>"$work/err"
status=$?
ok $status "the shop and its dashboards run"
[ $status = 0 ] || { tail -30 "$work/err" | diag; done_testing; exit 1; }
echo "# after $SECONDS s"
dir=$(cat "$DEMO_HOME/dir")
. "$DEMO_HOME/env"

# ---- a person before it ----

mkfifo "$work/to" "$work/from"
node "$here/browse.mjs" "$modules" 1600 <"$work/to" >"$work/from" 2>"$work/browser.log" &
browser=$!
exec 7>"$work/to" 8<"$work/from"
ask() { # ask WORD …: what the browser answers; its status is 0 if it could
	local line IFS=$'\t'
	echo "$*" >&7
	while read -r line <&8; do
		case $line in
		'= ok') return 0 ;;
		'= '*) echo "# $line" >&2; return 1 ;;
		*) echo "$line" ;;
		esac
	done
	echo "# the browser has ended" >&2
	tail -5 "$work/browser.log" >&2
	return 1
}
digits() { tr -cd '0-9.\n'; }
number() { ask number "$1" | digits; }
look() { # look TITLE COMMAND …: all charts that the command looks at are well
	local title=$1 charts bad
	shift
	charts=$(ask "$@") && [ -n "$charts" ]
	local asked=$?
	bad=$(grep -v $'^ok\t' <<<"$charts")
	[ "$asked" = 0 ] && [ -z "$bad" ]
	ok $? "$title: each of its $(wc -l <<<"$charts") charts shows something" || :
	[ -z "$bad" ] || { diag <<<"$bad"; ask shot "$shots/failed.png"; }
	printf '%s\n' "$charts" >>"$work/charts"
}

ask login "$SUPERSET_URL" "$SUPERSET_USER" "$SUPERSET_PASSWORD" && ask open shop
status=$?
ok $status "log in and open the dashboard"
[ $status = 0 ] || { ask shot "$shots/failed.png"; done_testing; exit 1; }
is "$(ask tabs)" $'Sales now\nProducts\nRecommendations\nPipeline' "its tabs"
# One message that is none, for the chart of those.
echo '{"id": 1, "event_time": "now", ' | kcat -P -b "$BROKERS" -t operations
look "Sales now" look
shown=$(number Events) refreshes=$(ask refreshes)
ask shot "$shots/sales-before.png"
stored=$(value "SELECT count(*) FROM operations_raw")
ask await $((refreshes + 2)) && [ "$(number Events)" -gt "$shown" ]
ok $? "the number of events grows by itself: $shown, $(number Events)"
[ "$(number Events)" -ge "$stored" ]
ok $? "and is no older than two refreshes: $stored were stored before them"
ask shot "$shots/sales-after.png"
! cmp -s "$shots/sales-before.png" "$shots/sales-after.png"
ok $? "the pictures differ"
look "Products" tab Products
ask shot "$shots/products.png"
look "Recommendations" tab Recommendations
ask shot "$shots/recommendations.png"
look "Pipeline" tab Pipeline
ask shot "$shots/pipeline.png"
is "$(ask complaints)" "" "no request fails, and no script"

charts=$(wc -l <"$work/charts") kinds=$(cut -f 2 "$work/charts" | sort -u | wc -l)
[ "$charts" -ge 12 ] && [ "$kinds" -ge 5 ]
ok $? "$charts charts of $kinds kinds: $(cut -f 2 "$work/charts" | sort -u | paste -sd ' ')"

relations=$(sed -nE 's/^table_name: (.*)/\1/p; s/.*\b(FROM|JOIN) (millrace\.)?([a-z_]+)( .*)?$/\3/p' "$docker"/superset/assets/datasets/*/*.yaml | sort -u |
	while read -r name; do value "SELECT c.oid::regclass FROM pg_class AS c WHERE relname = '$name' AND relnamespace IN ('public'::regnamespace, 'millrace'::regnamespace)"; done)
[ "$(wc -l <<<"$relations")" -ge 8 ]
ok $? "on $(wc -l <<<"$relations") relations: $(paste -sd ' ' <<<"$relations")"
echo "# after $SECONDS s"

# ---- numbers, beside SQL over raw rows ----

kill -TERM "$(cat "$dir/producer.pid")"
all_taken() {
	local in_topic
	in_topic=$(kcat -Q -b "$BROKERS" -t operations:0:-1 -t operations:1:-1 -t operations:2:-1 -t operations:3:-1 | awk '{ n += $NF } END { print n }')
	! kill -0 "$(cat "$dir/producer.pid")" 2>/dev/null && answers "SELECT sum(next_offset) FROM millrace.ingest_offsets" "$in_topic"
}
until_true all_taken
ok $? "the producer is stopped, and all it sent is taken"
shows() { # shows TITLE SQL NAME: a number on the page is what SQL says, at the next refresh at the latest
	local wanted deadline=$((SECONDS + 30))
	wanted=$(value "$2")
	while [ "$(number "$1")" != "$wanted" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
	is "$(number "$1")" "$wanted" "$3"
}
# Anew, so that no more than a tab's charts are refreshed: all of them keep two cores busy.
ask open shop
ok $? "open it anew"
shows Events "SELECT count(*) FROM operations_raw" "the number of events"
shows Purchases "SELECT count(*) FROM operations_raw WHERE event_type = 'purchase'" "the number of purchases"
shows Revenue "SELECT sum(price) FROM operations_raw WHERE event_type = 'purchase' AND price <> 'NaN'" "the revenue"

ask choose Department electronics
ok $? "a department is chosen"
shows Events "SELECT count(*) FROM operations_raw WHERE category_code LIKE 'electronics.%'" "the number of its events"
ask choose Event purchase
shows Events "SELECT count(*) FROM operations_raw WHERE category_code LIKE 'electronics.%' AND event_type = 'purchase'" "and of its purchases"
ask clear
ask choose Brand samsung
shows Events "SELECT count(*) FROM operations_raw WHERE brand = 'samsung'" "those of a brand"
ask clear
ask choose Time "Last day"
{ read -r from; read -r to; } < <(ask range Events)
shows Events "SELECT count(*) FROM operations_raw WHERE date_trunc('minute', event_time) >= '$from' AND date_trunc('minute', event_time) < '$to'" "those of a time: $from to $to"
ask clear
shows Events "SELECT count(*) FROM operations_raw" "no filter: all again"

ask tab Recommendations >/dev/null
shows "Version served" "SELECT version FROM millrace.models WHERE name = 'shop' AND active" "Recommendations shows the version that serves"

# ---- who reads ----

like "$(psql -AtXq -U dashboard -c "SET default_transaction_read_only = off" -c "DELETE FROM operations" 2>&1)" "permission denied" "the dashboards' role may not write"

# ---- what is wrong is seen ----

psql -qX -c "REVOKE SELECT ON operations FROM dashboard" -c "DELETE FROM millrace.dead_letters"
ask open shop
found=$(ask tab Products)
like "$found" $'says: [^\n]*\ttable\tProducts that sell' "a chart that may not read its table any more is told"
like "$(grep -c $'^ok\t' <<<"$found")" "^[1-9]" "and the others are well"
found=$(ask tab Pipeline)
like "$found" $'says: No results[^\n]*\ttable\tDead letters' "an empty chart is told"

"$docker/shop/demo" stop >/dev/null 2>&1
{ [ ! -e "$dir" ] && ! curl -fs -m 5 "$SUPERSET_URL/health" >/dev/null; }
ok $? "demo-shop-stop ends Superset, too, and leaves nothing"
echo "# after $SECONDS s"
done_testing
