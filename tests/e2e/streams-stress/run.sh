#!/usr/bin/env bash
# Streams under many sessions at once (stress.py), with a crash in the middle.  TAP, as tests/README.md says.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export CLUSTER=$here/../../lib/cluster
dir=$(mktemp -d /tmp/millrace-stress.XXXXXX)
trap '"$CLUSTER" stop "$dir/c" immediate; rm -rf "$dir"' EXIT
chmod 755 "$dir"
echo 1..2
"$CLUSTER" start "$dir/c" autovacuum=off
. "$dir/c/env"
n=0 failed=0
# Seconds, seed, and what is left out
for run in "9 1 nodml noddl nocrash" "14 2"; do
	n=$((n + 1))
	createdb "stress$n"
	set -- $run
	if PGDATABASE=stress$n python3 "$here/stress.py" "$1" "$2" "$dir/c" "${@:3}" >"$dir/out" 2>&1; then
		echo "ok $n - $run"
	else
		echo "not ok $n - $run"
		sed 's/^/# /' "$dir/out" >&2
		failed=1
	fi
done
exit "$failed"
