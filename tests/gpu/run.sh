#!/bin/bash
# run.sh BUILD [PART ...]: the whole model on one GPU, and the kernels; a table last.
#
#   golden    fixtures through a stage: log-probabilities, greedy tokens, states, bits in any batch
#   fixtures  fixtures and the demo model through the daemon
#   oracle    2B and 4B shapes, a checkpoint of random weights, against oracle.py, in several ways
#   dummy     the same with --load-format dummy, whose weights amplify rounding
#   repeat    the same logits from two processes
#   batch     64 mixed requests alone and together: demo and 2B, with and without --batch-invariant
#   cost      4B decode of 64 at 4K with and without --batch-invariant
#   kernels   every kernel test on cuda
#   sanitize  compute-sanitizer memcheck and racecheck over the kernel tests
#
# Without a part: all of them. 0: all passed; 77: no GPU; else something failed. Logs lie in $OUT
# (default: a temporary folder), logits and weights (12 GB at most) in $SCRATCH (default: /tmp).
# SHAPES (default: jet-nemotron-2b jet-nemotron-4b) chooses what oracle and dummy run, MODELS (default: demo
# jet-nemotron-2b) what batch runs.
set -u
build=$1
shift
parts=${*:-golden fixtures oracle dummy repeat batch cost kernels sanitize}
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(mktemp -d)}
scratch=$(mktemp -d -p "${SCRATCH:-/tmp}")
trap 'rm -rf "$scratch"' EXIT
python=${JETD_PYTHON:-python3}
export JETD_SOURCE=${JETD_SOURCE:-$(cd "$here/../.." && pwd)}
export JETD_BINARY=${JETD_BINARY:-$build/daemon/jetd}
export PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
shapes=${SHAPES:-jet-nemotron-2b jet-nemotron-4b}
failures=0
table=$out/table.txt
: >"$table"

if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "no GPU: skipped"
    exit 77
fi

# check NAME SECONDS command ...: a line with the verdict; the end of the log where it failed.
check() {
    name=$1 limit=$2
    shift 2
    begin=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    case $code in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    *) verdict="FAILED ($code)" failures=$((failures + 1)) ;;
    esac
    printf '%-34s %s, %s s\n' "$name" "$verdict" "$(($(date +%s) - begin))" >>"$table"
    if [ "$verdict" != passed ]; then
        echo "---- $name"
        tail -25 "$out/$name.log" | cut -c1-300
    fi
    return $code
}

# say NAME PATTERN: lines of a log that the table shows.
say() {
    grep -E "$2" "$out/$1.log" | cut -c1-170 | sed 's/^/    /' >>"$table"
}

part_golden() {
    check golden 60 "$build/tests/gpu/golden_cuda" "$JETD_SOURCE/tests/data"
    say golden '^golden'
}

part_fixtures() {
    check fixtures 90 "$python" "$here/check_fixtures.py"
    say fixtures 'relative error'
}

# against PART MODEL "oracle options" "jetd options" TOKENS:ROWS ...: dumps logits and compares them.
against() {
    name=$1-$2 model=$2 how=$3 options=$4
    shift 4
    mkdir -p "$scratch/$name"
    # shellcheck disable=SC2086
    check "dump-$name" 120 "$build/tests/gpu/logits_dump" "$scratch/$name" "$@" -- --device cuda \
        --gpu-memory-utilization 0.5 $options
    say "dump-$name" 'tokens: again|tokens whole'
    for prompt in "$@"; do
        # shellcheck disable=SC2086
        check "$name-${prompt%:*}" 120 "$python" "$here/oracle.py" "$scratch/$name" \
            "${prompt%:*}" "${prompt#*:}" $how
        say "$name-${prompt%:*}" 'relative error|arg-max|oracle of'
    done
    rm -rf "${scratch:?}/$name"
}

# Every position of an odd prompt; then one longer than the window, its end alone.
oracle() {
    check "write-$1" 120 "$python" "$here/oracle.py" "$scratch/weights/$1" --write --config "$1" &&
        against oracle "$1" "--config $scratch/weights/$1" "--model $scratch/weights/$1" 701:701 "$2"
    rm -rf "$scratch/weights"
}

part_oracle() {
    for shape in $shapes; do
        case $shape in
        *2b) oracle "$shape" 1501:101 ;;
        *4b) oracle "$shape" 2401:101 ;;
        esac
    done
}

part_dummy() {
    for shape in $shapes; do
        against dummy "$shape" "--config $shape --dummy 0 --rounding" \
            "--load-format dummy --model-config $shape" 701:701
    done
}

part_repeat() {
    for kind in fast invariant; do
        for turn in 1 2; do
            mkdir -p "$scratch/repeat"
            option=
            [ $kind = invariant ] && option=--batch-invariant
            check "repeat-$kind-$turn" 60 "$build/tests/gpu/logits_dump" "$scratch/repeat" 701:701 \
                -- --device cuda --load-format dummy --model-config jet-nemotron-2b \
                --gpu-memory-utilization 0.3 $option
        done
        for turn in 1 2; do
            grep 'logits' "$out/repeat-$kind-$turn.log" | sed 's/, [0-9.]* s$//' >"$scratch/$turn"
        done
        verdict=same
        cmp -s "$scratch/1" "$scratch/2" || verdict="$(diff "$scratch/1" "$scratch/2" | grep -c '^<') DIFFER"
        [ "$verdict" = same ] || failures=$((failures + 1))
        printf '    two processes, %s: hashes of %s ways of running: %s\n' $kind \
            "$(wc -l <"$scratch/1")" "$verdict" >>"$table"
    done
}

part_batch() {
    for model in ${MODELS:-demo jet-nemotron-2b}; do
        for option in "" --invariant; do
            # shellcheck disable=SC2086
            check "batch-$model$option" 120 "$python" "$here/check_batch.py" $model $option
            say "batch-$model$option" 'requests|request '
        done
    done
}

part_cost() {
    for option in "" --batch-invariant; do
        # shellcheck disable=SC2086
        check "decode$option" 90 "$build/tests/perf/jetbench" decode --config jet-nemotron-4b \
            --batch 64 --context 4096 --steps 30 $option
        say "decode$option" '^decode'
    done
}

part_kernels() {
    JETD_TEST_DEVICE=cuda check long_state 60 "$build/tests/gpu/long_state"
    say long_state "^d_k"
    for test in "$build"/tests/kernels/kernels_*; do
        JETD_TEST_DEVICE=cuda check "$(basename "$test")" 60 "$test"
        say "$(basename "$test")" 'FAILED +]|drift|^ *max|worst'
    done
}

# The long ones run out of their time: what was seen until then counts.
part_sanitize() {
    for tool in memcheck racecheck; do
        quiet= # what is refused on purpose is no finding
        [ $tool = memcheck ] && quiet="--report-api-errors no"
        for test in "$build"/tests/kernels/kernels_*; do
            name=$tool-$(basename "$test")
            # shellcheck disable=SC2086
            JETD_TEST_DEVICE=cuda timeout "${SANITIZE_SECONDS:-40}" compute-sanitizer --tool $tool \
                $quiet "$test" >"$out/$name.log" 2>&1 &
        done
        wait
        for test in "$build"/tests/kernels/kernels_*; do
            name=$tool-$(basename "$test")
            summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.log" | sed 's/=* //')
            found=$(grep -cE '^=+ (Invalid|Error|Program hit|Warning: Race)' "$out/$name.log")
            [ "$found" -gt 0 ] && failures=$((failures + 1))
            printf '%-34s %s; %s tests ended, %s reports\n' "$name" "${summary:-stopped by the clock}" \
                "$(grep -c ' OK \]' "$out/$name.log")" "$found" >>"$table"
        done
    done
}

for part in $parts; do
    "part_$part"
done
echo "==== $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)"
cat "$table"
[ $failures -eq 0 ]
