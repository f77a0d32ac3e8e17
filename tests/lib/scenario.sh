# What every scenario begins with.  `. "$(dirname "$0")/../../lib/scenario.sh"` gives it
#   $here $lib $data     its own folder, tests/lib, tests/data
#   $work                a private folder, removed when it ends, with every process it left in the background
#   start_cluster [name=value …]   a private PostgreSQL in $work/cluster, stopped when it ends; PGHOST … are set
#   start_kafka [name=value …]     a private broker in $work/kafka, the same; BROKERS is set
#   value SQL, until_true COMMAND …, answers SQL TEXT, and TAP: ok, is, like, diag, done_testing
set -uo pipefail
lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
data=$lib/../data
work=$(mktemp -d /tmp/millrace-test.XXXXXX)
[ "$(id -u)" != 0 ] || chmod 755 "$work"

scenario_end() {
	jobs -p | xargs -r kill -KILL 2>/dev/null
	[ ! -d "$work/kafka" ] || "$lib/kafka" stop "$work/kafka"
	"$lib/cluster" stop "$work/cluster" immediate
	rm -rf "$work"
}
trap scenario_end EXIT
trap 'exit 130' INT TERM

start_cluster() { "$lib/cluster" start "$work/cluster" "$@" && . "$work/cluster/env" || exit 1; }
start_kafka() { "$lib/kafka" start "$work/kafka" "$@" && . "$work/kafka/env" || exit 1; }

value() { psql -AtXqc "$@"; }
until_true() { # until_true COMMAND …: wait until it succeeds, a minute at most, or $patience seconds
	local deadline=$((SECONDS + ${patience:-60}))
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || { echo "# never true: $*"; return 1; }
		sleep 0.02
	done
}
answers() { [ "$(value "$1")" = "$2" ]; }

tap_n=0 tap_failed=0
# What fails is told on standard error, too: prove shows that at once.
told() {
	local text
	text=$(cat)
	printf '%s\n' "$text"
	printf '%s\n' "$text" >&2
}
ok() { # ok STATUS NAME: passes if STATUS is 0
	tap_n=$((tap_n + 1))
	if [ "$1" = 0 ]; then echo "ok $tap_n - $2"; else
		echo "not ok $tap_n - $2" | told
		tap_failed=$((tap_failed + 1))
	fi
}
is() { # is GOT WANTED NAME
	[ "$1" = "$2" ]
	ok $? "$3"
	[ "$1" = "$2" ] || printf '#      got: %s\n#   wanted: %s\n' "${1//$'\n'/$'\n#           '}" "${2//$'\n'/$'\n#           '}" | told
}
like() { # like TEXT REGEX NAME
	[[ $1 =~ $2 ]]
	ok $? "$3"
	[[ $1 =~ $2 ]] || printf '#      got: %s\n#  wanted: %s\n' "${1//$'\n'/$'\n#           '}" "$2" | told
}
diag() { sed 's/^/# /'; }
done_testing() {
	echo "1..$tap_n"
	[ "$tap_failed" = 0 ]
}
