# TAP for shell scenarios: . tests/lib/tap.sh, then ok/is/like, then done_testing.  Sourced, not run.
tap_n=0 tap_failed=0
ok() { # ok STATUS NAME: passes if STATUS is 0
	tap_n=$((tap_n + 1))
	if [ "$1" = 0 ]; then echo "ok $tap_n - $2"; else echo "not ok $tap_n - $2"; tap_failed=$((tap_failed + 1)); fi
}
is() { # is GOT WANTED NAME
	if [ "$1" = "$2" ]; then ok 0 "$3"; else
		ok 1 "$3"
		printf '#      got: %s\n#   wanted: %s\n' "${1//$'\n'/$'\n#           '}" "${2//$'\n'/$'\n#           '}"
	fi
}
like() { # like TEXT REGEX NAME
	if [[ $1 =~ $2 ]]; then ok 0 "$3"; else
		ok 1 "$3"
		printf '#      got: %s\n#  wanted: %s\n' "${1//$'\n'/$'\n#           '}" "$2"
	fi
}
diag() { sed 's/^/# /'; }
done_testing() { echo "1..$tap_n"; [ "$tap_failed" = 0 ]; }
