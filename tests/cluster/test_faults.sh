#!/bin/sh
# test_faults.sh MPIRUN... -- PROGRAM : each fault ends the whole job within seconds, with a message
# that names rank and step in the survivors' logs and no other rank anywhere; no fault ends it with 0.
set -u
launch=
while [ "$1" != -- ]; do launch="$launch $1"; shift; done
program=$2
failures=0

# judge CODE WANTED LINES PATTERN : what is wrong with $output, or ok
judge() {
    case $2 in
    other) [ "$1" -ne 0 ] || { echo "exit code 0"; return; } ;;
    *) [ "$1" -eq "$2" ] || { echo "exit code not $2"; return; } ;;
    esac
    [ "$1" -ne 124 ] || { echo "it hung"; return; }
    found=$(printf '%s\n' "$output" | grep -Ec "$4")
    [ "$found" -ge "$3" ] || { echo "$found lines with '$4'"; return; }
    named=$(printf '%s\n' "$output" | grep -Eo 'rank [0-9]+ (stalled|died)' | sort -u | wc -l)
    [ "$named" -le 1 ] || { echo "several ranks are blamed"; return; }
    echo ok
}

# expect NAME CODE(number|other) LINES PATTERN FAULT... : runs 3 ranks
expect() {
    name=$1 wanted=$2 lines=$3 pattern=$4
    shift 4
    begin=$(date +%s)
    output=$(timeout -k 1 40 $launch -n 3 "$program" "$@" 2>&1)
    code=$?
    seconds=$(($(date +%s) - begin))
    verdict=$(judge $code "$wanted" "$lines" "$pattern")
    echo "$name: $verdict ($seconds s, exit code $code)"
    if [ "$verdict" != ok ]; then
        printf '%s\n' "$output"
        failures=$((failures + 1))
    fi
}

expect "clean" 0 1 "rank 2 of 3" clean
expect "idle ranks rest" 0 1 "rank 2 idle: 1?[0-9]\\.[0-9] %" idle
expect "a follower stops" other 2 "rank 2 stalled in step 7 \(no sign of life" stop 2
expect "rank 0 stops" other 2 "rank 0 stalled in step 7 \(no sign of life" stop 0
expect "a follower is killed" other 2 "rank 1 died in step 7" kill 1
expect "rank 0 is killed" other 2 "rank 0 died in step 7" kill 0
expect "a follower exits" other 2 "rank 2 died in step 7" exit 2
expect "a follower computes on and on" other 2 "rank 1 stalled in step 7 \(it has been in it" slow 1
expect "rank 0 computes on and on" other 2 "rank 0 stalled in step 7 \(it has been in it" slow 0
expect "a follower does not take a step" other 2 "rank 1 stalled after step 6" between 1
expect "a follower aborts" other 1 "rank asked for the end" abort 1
expect "a follower does not end loading" other 2 "rank 1 stalled while loading" load 1
expect "a follower loads long" 0 1 "rank 2 of 3" creep 1
expect "a follower does not close" other 2 "rank 2 stalled after step 20 \(the others" linger 2
expect "rank 0 does not close" other 2 "rank 0 stalled after step 20 \(the others" linger 0
expect "a follower does not come" other 1 "the ranks did not meet within" absent 1
expect "a follower has other options" 2 1 "launcher started 3 ranks, .* needs 6" mesh 1
exit $failures
