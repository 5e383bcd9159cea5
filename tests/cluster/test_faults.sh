#!/bin/sh
# test_faults.sh MPIRUN... -- PROGRAM : each fault ends the whole job within seconds, with a message
# that names rank and step; no fault ends it with 0.
set -u
launch=
while [ "$1" != -- ]; do launch="$launch $1"; shift; done
program=$2
failures=0

# expect NAME STATUS(zero|other) PATTERN FAULT... : runs 3 ranks
expect() {
    name=$1 wanted=$2 pattern=$3
    shift 3
    begin=$(date +%s)
    output=$(timeout -k 1 40 $launch -n 3 "$program" "$@" 2>&1)
    code=$?
    seconds=$(($(date +%s) - begin))
    verdict=ok
    [ "$wanted" = zero ] && [ $code -ne 0 ] && verdict="exit code $code"
    [ "$wanted" = other ] && [ $code -eq 0 ] && verdict="exit code 0"
    [ $code -eq 124 ] && verdict="it hung"
    printf '%s\n' "$output" | grep -Eq "$pattern" || verdict="no line with '$pattern'"
    echo "$name: $verdict ($seconds s, exit code $code)"
    if [ "$verdict" != ok ]; then
        printf '%s\n' "$output"
        failures=$((failures + 1))
    fi
}

expect "clean" zero "rank 2 of 3" clean
expect "idle ranks rest" zero "rank 2 idle: 1?[0-9]\\.[0-9] %" idle
expect "a follower stops" other "rank 2 stalled in step 7 \(no sign of life" stop 2
expect "its peer logs it too" other "rank 1.*rank 2 stalled in step 7|rank.:1.*rank 2 stalled" stop 2
expect "rank 0 stops" other "rank 0 stalled in step 7 \(no sign of life" stop 0
expect "a follower is killed" other "rank 1 died in step 7" kill 1
expect "rank 0 is killed" other "rank 0 died in step 7" kill 0
expect "a follower exits" other "rank 2 died in step 7" exit 2
expect "a follower computes on and on" other "rank 1 stalled in step 7 \(it has been in it" slow 1
expect "rank 0 computes on and on" other "rank 0 stalled in step 7 \(it has been in it" slow 0
expect "a follower aborts" other "rank asked for the end" abort 1
exit $failures
