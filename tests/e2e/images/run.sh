#!/usr/bin/env bash
# The images: built by buildah as the Dockerfiles say, started with exactly the commands, environment, volumes and health checks of
# docker/compose.yaml in namespaces of their own, with a real broker for Kafka's image.  Rows flow from one to the other, through
# crashes and restarts.
if [ "$(id -u)" != 0 ] && [ -z "${MILLRACE_UNSHARED:-}" ]; then
	MILLRACE_UNSHARED=1 exec buildah unshare bash "$0" "$@" # root of a user namespace will do
fi
. "$(dirname "$0")/../../lib/scenario.sh"
root=$(cd "$lib/../.." && pwd)
docker=$root/docker
state=$work/state
export MILLRACE_CACHE=${MILLRACE_CACHE:-$root/build} PYTHONDONTWRITEBYTECODE=1
export BUILDAH_ISOLATION=chroot BUILDAH_FORMAT=docker CONTAINERS_STORAGE_CONF=$work/storage.conf TMPDIR=$work
printf '[storage]\ndriver = "vfs"\nrunroot = "%s/run"\ngraphroot = "%s/storage"\n' "$work" "$work" >"$CONTAINERS_STORAGE_CONF"
compose() { "$here/compose.py" "$@"; }

images_end() { # containers first: nothing may be mounted when the folder is removed
	[ -z "${holder:-}" ] || { kill -KILL "$holder"; wait "$holder"; } 2>/dev/null
	buildah rm -a >/dev/null 2>&1
	scenario_end
}
trap images_end EXIT

# ---- the compose file ----

is "$(compose check "$docker/compose.yaml")" "" "the compose file: everything that it names is there"
is "$(cd "$docker" && set -a && . ./env.example && compose check compose.yaml)" "" "with env.example as .env"
is "$(grep -o '\${[A-Z_]*:-[^}]*}' "$docker/compose.yaml" | sed 's/^..//; s/}$//; s/:-/=/' | sort -u)" "$(grep '^[A-Z]' "$docker/env.example" | sort)" \
	"which lists all variables, with their defaults"
broken() { # broken SED REGEX: such a fault is found
	sed "$1" "$docker/compose.yaml" >"$docker/.broken.yaml"
	cmp -s "$docker/compose.yaml" "$docker/.broken.yaml" && ok 1 "nothing to break: $1"
	like "$(compose check "$docker/.broken.yaml")" "$2" "a fault is found: $2"
	rm "$docker/.broken.yaml"
}
broken '0,/condition: service_healthy/s/condition: service_healthy/condition: service_well/' 'unknown condition'
broken '0,/^      kafka:/s/^      kafka:/      kafak:/' 'kafak, which is no service'
broken 's/^  producer:$/  producers:/; s/^      - producer:/      - producer:/' 'volume'
broken 's|\./shop:/shop:ro|./shop:/shop|' 'can be written'
broken 's|\./compose/produce:|./compose/product:|' 'there is no ./compose/product'
broken 's|127\.0\.0\.1|0.0.0.0|' 'is open to others'
broken 's|docker/ingester/Dockerfile|docker/ingester/Dockerfiel|' 'there is no docker/ingester/Dockerfiel'
broken 's/^    restart: on-failure/    restarts: on-failure/' 'unknown key restarts'

# ---- building ----

base=$("$here/base") || exit 1
container=$(buildah from scratch) && buildah add -q "$container" "$base" / >/dev/null &&
	buildah commit -q --rm "$container" localhost/debian:bookworm-slim >/dev/null || exit 1
build() { # packages are kept between runs
	mkdir -p "$MILLRACE_CACHE/deb-$1"
	buildah bud --pull=never -q -v "$MILLRACE_CACHE/deb-$1:/var/cache/apt/archives" -t "millrace-$1" -f "$docker/$1/Dockerfile" "$root" >"$work/build-$1.log" 2>&1
}
builds=()
for image in ingester postgres; do
	build "$image" &
	builds+=($!)
done
for image in ingester postgres; do
	wait "${builds[0]}"
	ok $? "docker/$image/Dockerfile builds"
	[ "$tap_failed" = 0 ] || tail -20 "$work/build-$image.log" | diag
	builds=("${builds[@]:1}")
done
[ "$tap_failed" = 0 ] || { done_testing; exit 1; }

mib() { echo $(($(buildah images --json "localhost/$1" | python3 -c '
import json, re, sys
number, unit = json.load(sys.stdin)[0]["size"].split()
print(round(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]))') >> 20)); }
added() { echo $(($(mib "millrace-$1") - $(mib debian:bookworm-slim))); }
echo "# over a Debian of $(mib debian:bookworm-slim) MiB: ingester $(added ingester) MiB, postgres $(added postgres) MiB"
[ "$(added ingester)" -le 30 ]
ok $? "the ingester's image adds 30 MiB at most to Debian's"
[ "$(added postgres)" -le 350 ]
ok $? "PostgreSQL's 350 MiB at most"
config() { buildah inspect --type image "localhost/millrace-$1" | python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Docker"]["config"][sys.argv[1]]))' "$2"; }
is "$(config ingester User)" '"10001:10001"' "the ingester's image is nobody's who may do anything"
like "$(config ingester Healthcheck) $(config postgres Healthcheck)" 'healthy.*pg_isready' "both images know how to ask for their health"

# ---- starting ----

# Another network, another list of processes, other names of hosts: all end with the holder.
unshare -n -p -m --fork --kill-child=KILL --mount-proc sleep infinity &
holder=$!
until_true eval 'inner=$(pgrep -P "$holder" -x sleep)' || exit 1
inside() { nsenter -t "$inner" -n -p -m -- "$@"; }
mkdir -p "$state"
printf '127.0.0.1 localhost %s\n' "$(uname -n)" >"$state/hosts"
for service in $(sed -n '/^services:/,/^volumes:/s/^  \([a-z]*\):$/\1/p' "$docker/compose.yaml"); do echo "127.0.0.1 $service" >>"$state/hosts"; done
inside mount --bind "$state/hosts" /etc/hosts
inside ip link set lo up
export PGPASSWORD=millrace PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=shop
value() { inside psql -AtXqc "$@" 2>>"$work/psql.log"; }
until_true() { # machines that build images elsewhere at the same time are slow
	local deadline=$((SECONDS + 180))
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || { echo "# never true: $*"; return 1; }
		sleep 0.1
	done
}
give_up() { # give_up SERVICE: nothing that follows can succeed
	for service in kafka postgres ingester producer "$1"; do logs "$service"; done
	tail -5 "$work/psql.log" 2>/dev/null | diag
	ok 1 "without it the rest is pointless"
	done_testing
	exit 1
}

# As a user's .env.
export SHOP_PAST=6000:2d SHOP_RATE=100
declare -A supervisor
start() { # start SERVICE [-- PROGRAM …]
	inside "$here/compose.py" run "$docker/compose.yaml" "$state" "$@" >>"$state/$1.compose.log" 2>&1 &
	supervisor[$1]=$!
}
known() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get(sys.argv[2]))' "$state/$1.json" "$2" 2>/dev/null; }
known_is() { [ "$(known "$1" "$2")" = "$3" ]; }
stop() { # stop SERVICE: by its image's signal, within its time
	inside "$here/compose.py" stop "$state" "$1"
	wait "${supervisor[$1]}"
}
logs() { for log in "$state/$1".*log; do echo "--- $log"; grep -i 'error\|fatal' "$log" | head -5; tail -10 "$log"; done | diag; }

"$lib/kafka" fetch || exit 1
mkdir -p "$state"
start kafka -- "$here/kafka" "$state/kafka-data"
for service in postgres ingester producer model; do start "$service"; done
for service in kafka postgres ingester; do
	until_true known_is "$service" health healthy
	ok $? "$service is healthy"
	known_is "$service" health healthy || give_up "$service"
done

# ---- what runs ----

until_true known_is model status 0
is "$(known model status) $(known model running) $(known model starts)" "0 False 1" "the model is trained, at the first attempt"
known_is model status 0 || give_up model
is "$(known ingester user)" 10001 "the ingester's process is nobody's who may do anything"
is "$(inside stat -c %u "/proc/$(known postgres pid)")" "$(stat -c %u "$state/volumes/postgres/15/data")" "the server's is the owner's of its files"
is "$(value 'SHOW shared_preload_libraries'),$(value 'SHOW cron.database_name'),$(value "SELECT extversion FROM pg_extension WHERE extname = 'millrace'")" \
	"pg_cron,shop,$(sed -n "s/^default_version = '\(.*\)'/\1/p" "$root/extension/millrace.control")" "pg_cron is preloaded, and Millrace is this tree's"
is "$(value "SELECT pg_get_userbyid(datdba), (SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE oid = datdba) FROM pg_database WHERE datname = 'shop'")" "shop|f" \
	"the database's owner is no superuser"
value "SET ROLE shop; SELECT cron.schedule('probe', '* * * * *', 'CREATE TABLE probe AS SELECT current_user::text AS who')" >/dev/null
as() { # as ROLE PASSWORD SQL
	PGPASSWORD=$2 inside psql -AtXq -U "$1" -c "$3" 2>&1
}
is "$(as dashboard dashboard 'SELECT count(*) > 0 FROM operations_per_minute') $(as dashboard dashboard 'SELECT count(*) >= 0 FROM recommended_latest')" "t t" "role dashboard reads"
like "$(PGOPTIONS='-c default_transaction_read_only=off' as dashboard dashboard 'DELETE FROM operations')" 'permission denied' "and cannot write"
like "$(as ingester wrong 'SELECT 1')" 'password authentication failed' "a wrong password is refused, also from the same machine"
like "$(as ingester ingester 'DELETE FROM millrace.stream')" 'permission denied' "the ingester's role may not touch what is Millrace's own"

# ---- rows flow ----

ids() { inside kcat -C -b kafka:9092 -t operations -o beginning -e -q 2>/dev/null | python3 -c '
import json, sys
print(*sorted(json.loads(line)["id"] for line in sys.stdin), sep="\n")'; }
rows_above() { answers "SELECT count(*) > $1 FROM operations_raw" t; }
same_ids() { # the topic and the table, when the producer has been stopped
	ids >"$work/topic"
	in_time() { value 'SELECT id FROM operations_raw ORDER BY id' >"$work/table" && cmp -s "$work/topic" "$work/table"; }
	until_true in_time
}
before=$(value 'SELECT count(*) FROM operations_raw')
[ "$before" -ge 6000 ]
ok $? "the past is stored"
until_true rows_above "$before"
ok $? "and what happens now"
[ "$tap_failed" = 0 ] || give_up ingester
starts=$(known ingester starts)
inside "$here/compose.py" signal "$state" ingester KILL
crashed() { [ "$(known ingester starts)" -ge $((starts + 1)) ] && known_is ingester health healthy; }
until_true crashed
ok $? "an ingester that is killed is started again, and healthy"
pid=$(known ingester pid)
inside kill -STOP "$pid"
until_true known_is ingester health unhealthy
ok $? "one that does not answer is unhealthy"
inside kill -CONT "$pid"
until_true known_is ingester health healthy
ok $? "until it does"

# ---- the database's container ends and begins; its volume stays ----

oid=$(value "SELECT 'operations_raw'::regclass::oid")
stop postgres
like "$(tail -5 "$state/postgres.log")" 'database system is shut down' "it ends in order, within its time"
buildah rm postgres-container >/dev/null
start postgres
until_true known_is postgres health healthy
ok $? "another container on the same volume is healthy"
is "$(value "SELECT 'operations_raw'::regclass::oid") $(grep -c '^entrypoint: database "shop" is there' "$state/postgres.log")" "$oid 1" "the database is the one that was, made once"
before=$(value 'SELECT count(*) FROM operations_raw')
until_true rows_above "$before"
ok $? "and rows flow into it again"
stop producer
same_ids
ok $? "after a killed ingester and a new database container: each event of the topic is in the table, once"
diff "$work/topic" "$work/table" | head -5 | diag
is "$(sort -n "$work/topic" | uniq -d | head -3)" "" "no two events have one id, although the producer counts anew whenever it starts"
start producer
until_true known_is producer running True
before=$(wc -l <"$work/topic")
until_true rows_above "$before"
stop producer
same_ids
ok $? "a producer that is started again goes on"
is "$(uniq -d "$work/topic" | wc -l) $(($(wc -l <"$work/topic") - before < 6000))" "0 1" "and sends the past no second time"
is "$(value "SELECT count(*) FROM millrace.verify('operations_per_minute')") $(value 'SELECT count(*) FROM millrace.dead_letters')" "0 0" "the windows are right, and nothing was refused"
job_ran() { answers "SELECT count(*) > 0 FROM cron.job_run_details WHERE command LIKE 'CREATE TABLE probe%' AND status = 'succeeded'" t; }
until_true job_ran
ok $? "pg_cron reaches the server without a password"
is "$(value 'SELECT DISTINCT who FROM probe')" shop "and runs a job as who scheduled it"
is "$(for service in ingester producer; do find "$(buildah mount "$service-container")" -xdev -newer "$state/hosts" -type f ! -path '*/compose/produce' ! -path '*/etc/hosts' ! -path '*/etc/resolv.conf' ! -path '*/run/.containerenv'; done)" "" \
	"ingester and producer write nothing in their containers"
for service in ingester kafka postgres; do stop "$service"; done
is "$(cat "$state"/*.compose.log)" "" "all end within their time"

# ---- the first start ----

first() { # first OPTION …: the database's image on an empty folder
	timeout 60 nsenter -t "$inner" -n -p -m -- buildah run "${@:2}" -v "$work/$1:/var/lib/postgresql" -v "$work/init:/docker-entrypoint-initdb.d:ro" -v "$state/hosts:/etc/hosts:ro" postgres-container -- entrypoint postgres >"$work/first.log" 2>&1
}
mkdir "$work/one" "$work/init"
first one
is "$? $(cat "$work/first.log" | head -1)" "1 entrypoint: the first start needs POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" "without a password there is no first start"
echo 'SELECT 1/0;' >"$work/init/1.sql"
first one -e POSTGRES_PASSWORD=x
like "$(cat "$work/first.log")" 'division by zero' "initial SQL that fails is told"
[ ! -e "$work/one/15/data" ]
ok $? "and leaves no half-made cluster"
echo 'CREATE TABLE made AS SELECT current_database()::text AS here;' >"$work/init/1.sql"
first one -e POSTGRES_PASSWORD=x -e 'POSTGRES_DB=a "b" c' -e POSTGRES_USER=Boss &
second=$!
boss() { PGPASSWORD=x inside psql -AtXq -U Boss -d 'a "b" c' -c "$1" 2>/dev/null; }
made() { [ "$(boss 'SELECT here FROM made')" = 'a "b" c' ]; }
until_true made
ok $? "the next one makes all of it, whatever the names"
made || tail -20 "$work/first.log" | diag
is "$(boss 'CREATE EXTENSION millrace; SELECT extname FROM pg_extension ORDER BY 1' | tr '\n' ' ')" 'millrace pg_cron plpgsql ' "pg_cron is there, and Millrace one statement away"
kill "$second" 2>/dev/null
done_testing
