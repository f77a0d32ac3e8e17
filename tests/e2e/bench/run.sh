#!/usr/bin/env bash
# The benchmark's own promises: whatever happens, all that is asked gets a row; nothing stays running; what was measured is kept; the pages have its figures.
. "$(dirname "$0")/../../lib/scenario.sh"
bench=$lib/../bench
export ROUNDS=1 BENCH_CASES=$here/cases.py BENCH_RESULTS=$work/results MILLRACE_CACHE=$work/cache
# No peer can be had.
export PIP_NO_INDEX=1 PIP_FIND_LINKS=
row() { grep "^\"\?$1" "$work/results/bench.csv"; }
running() { pgrep -fx "sleep $1"; }

"$bench/run" --no-pictures loss hop scatter rmse late10k >"$work/out" 2>&1
is $? 1 "what is not measured makes it fail"
is "$(head -1 "$work/results/bench.csv")" "case,unit,ours,peer,ratio,target,met" "figures with their columns"
is "$(row late10k)" "late10k: continuous aggregate / plain COPY,s,10,4,2.5,<= 5,yes" "a case that works is measured, whatever went before"
is "$(row "loss: rank 64, unobserved 0.3")" '"loss: rank 64, unobserved 0.3, exponent 1.0: ours / float64",loss,1.0005,1,1.0005,1 +- 0.001,yes' "what a case gives before it fails is kept"
is "$(row "loss: rank 64, unobserved 1.0")" '"loss: rank 64, unobserved 1.0, exponent 0.5: ours / float64",,,,,1 +- 0.001,no' "the rest is not met"
is "$(row "loss: failed")" "loss: failed: 'of any kind',,,,,,no" "and there is the reason"
like "$(row "hop: failed")" "does not give sliding aggregate / plain COPY" "so it is of a case that gives nothing"
is "$(row "scatter: failed")" "scatter: failed: given up after 1800 s,,,,,,no" "of one that takes too long"
is "$(row "rmse: explicit" | sed 's/.*ours/ours/')" "ours / Spark,,,,,<= 1.01,no
ours / Spark\",,,,,<= 1.01,no" "and of one whose peer cannot be had"
like "$(row "rmse: failed")" "the peers cannot be installed" "which is told"
is "$(cut -d, -f1,5- "$work/results/bench.csv" | grep -c "^copy100.*no$")" "$(grep -c ",copy100," "$bench/points.csv")" "what was never run is not met"
is "$(row "grow_k")" "grow_k: not run,,,,,,no" "nor is a case of which nothing is asked by name"
like "$(cat "$work/out")" "late10k +continuous aggregate .*2\.5 .*yes" "the table has it"
is "$(cat "$work/results/curves.csv")" "curve,series,x,x_unit,value,unit
the curve,ours,10,rows,1.5,s" "and the curve its point"
is "$(running 86399)" "" "what a case has left is ended"

"$bench/run" --no-pictures late10k files >"$work/out" 2>&1 &
until_true grep -q "it runs" "$work/out"
run=$(pgrep -f "^python3 .*bench/run --no-pictures late10k files")
until_true running 86398 >"$work/pid"
kill "$run"
wait $!
is $? 143 "an interrupted run says so"
is "$(running 86398)$(pgrep -P "$run")" "" "leaves nothing running"
like "$(row late10k)" "yes$" "and keeps what it had"
[[ $(cat "$work/results/machine.json") =~ '"late10k"'.*'"rounds": 1' ]]; ok $? "with its rounds"

# On another machine it begins anew.
sed -i 's/"processors": [0-9]*/"processors": 1024/' "$work/results/machine.json"
"$bench/run" --no-pictures late10k >"$work/out" 2>&1
[ -s "$work/results/bench.csv.old" ]; ok $? "figures of another machine are kept aside"
is "$(row "loss: rank 64, unobserved 0.3")" "\"loss: rank 64, unobserved 0.3, exponent 1.0: ours / float64\",,,,,1 +- 0.001,no" "and are no figures of this one"

# Pages
"$bench/report" --check >"$work/out" 2>&1
is "$?" 1 "other figures than the pages'"
like "$(cat "$work/out")" "README.md differs from tests/bench/results" "are told"
mkdir "$work/tree" && cp -r "$lib/../../README.md" "$work/tree/" && mkdir "$work/tree/tests" && cp -r "$bench" "$work/tree/tests/"
sed -i '/^late10k/s/2.5,<= 5,yes/7.5,<= 5,no/' "$work/results/bench.csv"
"$work/tree/tests/bench/report" >"$work/out" && "$work/tree/tests/bench/report" --check
is $? 0 "until they are written there"
like "$(cat "$work/tree/README.md")" "late10k: continuous aggregate / plain COPY . 7\.5 . ≤ 5 ." "with a list of what is missed"
unset BENCH_RESULTS
"$bench/report" --check
is $? 0 "the pages of this tree have its figures"
done_testing
