#!/bin/bash
# run.sh BUILD [PART ...]: the whole model on one GPU, and the kernels; a table last.
#
#   shapes    the kernels' fast forms against the cpu table, at the shapes they serve (shapes_check)
#   kernels   every kernel test on cuda, fast and batch-invariant
#   state     long_state: the fp32 state after 10,000 decoded tokens, fast and batch-invariant
#   golden    fixtures through a stage: log-probabilities, greedy tokens, states, bits in any batch
#   fixtures  fixtures and the demo model through the daemon
#   oracle    2B and 4B shapes, a checkpoint of random weights, against oracle.py, in several ways
#   dummy     the same with --load-format dummy, whose weights amplify rounding
#   repeat    the same logits from two processes
#   batch     64 mixed requests alone and together: demo and 2B, with and without --batch-invariant
#   cost      4B decode of 64 at 4K with and without --batch-invariant
#   sanitize  compute-sanitizer memcheck and racecheck over the kernel tests and shapes_check
#   races     racecheck over the kernel tests that outlast sanitize's clock, each test by itself
#   bench     jetbench decode and prefill: the lines of ops/PERFORMANCE.md
#   serve     jetbench serve with 256 streams, beside jetbench decode of as many sequences
#
# Without a part: all but races. `first` and `second` are the parts of half an hour on a GPU, most
# important first, each within ten minutes: $TIME seconds (520 and 340), after which nothing begins.
#
# 0: all passed; 77: no GPU, or a part lacks a Python module or a tool (the table names it); else
# something failed or found no time. Logs lie in $OUT (default: a temporary folder), logits and
# weights (12 GB at most) in $SCRATCH (default: /tmp). SHAPES (default: jet-nemotron-2b
# jet-nemotron-4b) chooses what oracle and dummy run, MODELS (default: demo jet-nemotron-2b) what
# batch runs, SANITIZE_SECONDS (40) and RACE_SECONDS (120) for how long sanitizers run, and
# SANITIZE_AT_ONCE (14) how many beside each other.
set -u
build=$1
shift
parts=${*:-shapes kernels state golden fixtures oracle dummy repeat batch cost sanitize bench serve}
case $parts in
first) parts="small oracle repeat batch dummy cost" TIME=${TIME:-520} ;;
second) parts="races bench serve" TIME=${TIME:-340} ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(mktemp -d)}
scratch=$(mktemp -d -p "${SCRATCH:-/tmp}")
trap 'rm -rf "$scratch"' EXIT
python=${JETD_PYTHON:-python3}
export JETD_SOURCE=${JETD_SOURCE:-$(cd "$here/../.." && pwd)}
export JETD_BINARY=${JETD_BINARY:-$build/daemon/jetd}
export PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
export XDG_CACHE_HOME=$scratch/cache # one file of choices for all that runs here, and no other
mkdir -p "$XDG_CACHE_HOME"
unset JETD_TEST_FAST
shapes=${SHAPES:-jet-nemotron-2b jet-nemotron-4b}
ends=$(($(date +%s) + ${TIME:-1000000}))
table=$out/table.txt failed=$out/failed.txt skipped=$out/skipped.txt
: >"$table"
: >"$skipped"
: >"$failed"

if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "no GPU: skipped"
    exit 77
fi

# line NAME TEXT: of the table.
line() {
    printf '%-36s %s\n' "$1" "$2" >>"$table"
}

fail() {
    echo "$1" >>"$failed"
}

# limited SECONDS: as many, or what is left; 1: nothing is.
limited() {
    local left=$((ends - $(date +%s)))
    echo $((left < $1 ? left : $1))
    [ $left -ge 5 ]
}

# needs NAME MODULE ...: Python's; without them a part is skipped.
needs() {
    local name=$1 module
    shift
    for module in "$@"; do
        if ! "$python" -c "import $module" 2>/dev/null; then
            line "$name" "skipped: $python has no $module"
            echo "$name" >>"$skipped"
            return 1
        fi
    done
}

# check NAME SECONDS command ...: a line with the verdict; the end of the log where it failed.
check() {
    local name=$1 limit begin code verdict
    if ! limit=$(limited "$2"); then
        line "$name" "NOT RUN: no time left"
        fail "$name"
        : >"$out/$name.log"
        return 1
    fi
    shift 2
    begin=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    case $code in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    124) verdict="FAILED: longer than $limit s" ;;
    *) verdict="FAILED ($code)" ;;
    esac
    line "$name" "$verdict, $(($(date +%s) - begin)) s"
    case $verdict in FAILED*) fail "$name" ;; esac
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

# beside FUNCTION ...: all at once; their lines stand together.
beside() {
    for each in "$@"; do
        : >"$scratch/$each.table"
        table=$scratch/$each.table "$each" &
    done
    wait
    for each in "$@"; do
        cat "$scratch/$each.table" >>"$table"
    done
}

part_small() {
    beside part_shapes kernels_fast kernels_invariant part_state part_golden part_fixtures
}

part_shapes() {
    check shapes_check 120 "$build/tests/perf/shapes_check"
    say shapes_check 'FAIL|failed'
}

kernels() {
    local name test
    for test in "$build"/tests/kernels/kernels_*; do
        name=$(basename "$test")-$1
        check "$name" 90 "$test"
        say "$name" 'FAILED +]|drift|^ *max|worst'
    done
}

kernels_fast() {
    export JETD_TEST_DEVICE=cuda JETD_TEST_FAST=1
    kernels fast
}

kernels_invariant() {
    export JETD_TEST_DEVICE=cuda
    kernels invariant
}

part_kernels() {
    beside kernels_fast kernels_invariant
}

part_state() {
    JETD_TEST_DEVICE=cuda JETD_TEST_FAST=1 check long_state-fast 90 "$build/tests/gpu/long_state"
    say long_state-fast "^d_k"
    JETD_TEST_DEVICE=cuda check long_state-invariant 90 "$build/tests/gpu/long_state"
    say long_state-invariant "^d_k"
}

part_golden() {
    check golden 60 "$build/tests/gpu/golden_cuda" "$JETD_SOURCE/tests/data"
    say golden '^golden'
}

part_fixtures() {
    check fixtures 90 "$python" "$here/check_fixtures.py"
    say fixtures 'relative error'
}

# against PART SHAPE "oracle options" "jetd options" TOKENS:ROWS ...: dumps logits and compares them.
against() {
    local name=$1-$2 how=$3 options=$4 prompt
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
prompts() {
    case $1 in
    *2b) echo 701:701 1501:101 ;;
    *4b) echo 701:701 2401:101 ;;
    esac
}

part_oracle() {
    needs oracle numpy torch safetensors xxhash || return
    for shape in $shapes; do
        # shellcheck disable=SC2046
        check "write-$shape" 120 "$python" "$here/oracle.py" "$scratch/weights/$shape" --write \
            --config "$shape" &&
            against oracle "$shape" "--config $scratch/weights/$shape" \
                "--model $scratch/weights/$shape" $(prompts "$shape")
        rm -rf "$scratch/weights"
    done
}

# Longer sequences than these prompts are allowed for: rings are as long as the window.
part_dummy() {
    needs dummy numpy torch safetensors xxhash || return
    for shape in $shapes; do
        # shellcheck disable=SC2046
        against dummy "$shape" "--config $shape --dummy 0 --rounding" \
            "--load-format dummy --model-config $shape --max-model-len 4096" $(prompts "$shape")
    done
}

part_repeat() {
    for kind in fast invariant; do
        for turn in 1 2; do
            mkdir -p "$scratch/repeat"
            option=
            [ $kind = invariant ] && option=--batch-invariant
            check "repeat-$kind-$turn" 90 "$build/tests/gpu/logits_dump" "$scratch/repeat" 701:701 \
                -- --device cuda --load-format dummy --model-config jet-nemotron-2b \
                --gpu-memory-utilization 0.3 $option
        done
        for turn in 1 2; do
            grep 'logits' "$out/repeat-$kind-$turn.log" | sed 's/, [0-9.]* s$//' >"$scratch/$turn"
        done
        verdict=same
        cmp -s "$scratch/1" "$scratch/2" || verdict="$(diff "$scratch/1" "$scratch/2" | grep -c '^<') DIFFER"
        [ "$verdict" = same ] || fail "repeat-$kind"
        printf '    two processes, %s: hashes of %s ways of running: %s\n' $kind \
            "$(wc -l <"$scratch/1")" "$verdict" >>"$table"
    done
}

part_batch() {
    for model in ${MODELS:-demo jet-nemotron-2b}; do
        for option in --invariant ""; do
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

# sanitized_name TOOL PROGRAM[:PATTERN] MODE
sanitized_name() {
    basename "$1-$(basename "$2" | tr -d '*' | tr ':' '-')-$3"
}

# sanitized TOOL SECONDS PROGRAM[:PATTERN] ...: kernel tests (all, or those that match) in both modes,
# as many at once as memory is sure to hold (29 on a host with 128 GiB were too many); those that the
# clock stops count as far as they came.
sanitized() {
    local tool=$1 limit stop quiet test only mode fast name summary found ended
    if ! command -v compute-sanitizer >"$out/$tool.log"; then
        line "$tool" "skipped: no compute-sanitizer"
        echo "$tool" >>"$skipped"
        return
    fi
    if ! limit=$(limited "$2"); then
        line "$tool" "NOT RUN: no time left"
        fail "$tool"
        return
    fi
    stop=$(($(date +%s) + limit))
    shift 2
    quiet= # what is refused on purpose is no finding
    [ "$tool" = memcheck ] && quiet="--report-api-errors no"
    for test in "$@"; do
        for mode in fast invariant; do
            fast=
            [ $mode = fast ] && fast=JETD_TEST_FAST=1
            [ "$mode$(basename "$test")" = invariantshapes_check ] && continue # it has one mode
            name=$(sanitized_name "$tool" "$test" $mode)
            only=
            [ "$test" != "${test%%:*}" ] && only="JETD_TEST_ONLY=${test#*:}"
            while [ "$(jobs -rp | wc -l)" -ge "${SANITIZE_AT_ONCE:-14}" ]; do
                wait -n
            done
            limit=$((stop - $(date +%s)))
            if [ $limit -lt 5 ]; then
                echo "NOT RUN" >"$out/$name.log"
                continue
            fi
            # shellcheck disable=SC2086
            env JETD_TEST_DEVICE=cuda $fast ${only:+"$only"} timeout "$limit" compute-sanitizer \
                --tool "$tool" $quiet "${test%%:*}" >"$out/$name.log" 2>&1 ||
                echo "exit code $?" >>"$out/$name.log" &
        done
    done
    wait
    for test in "$@"; do
        for mode in fast invariant; do
            name=$(sanitized_name "$tool" "$test" $mode)
            [ -f "$out/$name.log" ] || continue
            summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.log" | sed 's/=* //')
            # not counted: the library's own kernels, and a program that the clock stopped
            found=$(grep -E '^=+ (Invalid|Error|Program hit|Warning: Race)' "$out/$name.log" |
                grep -cvE 'at nvjet_|process didn.t terminate|^=+ Error: *$')
            ended=$(grep -cE ' OK \]| ok$' "$out/$name.log")
            if grep -q '^NOT RUN' "$out/$name.log" || ! grep -qE '\[ RUN| ok$' "$out/$name.log"; then
                line "$name" "NOT RUN: no time left, or no test of that name"
                fail "$name"
                continue
            fi
            if [ "$found" -gt 0 ] || grep -E '^exit code' "$out/$name.log" | grep -qv ' 124$'; then
                fail "$name"
            fi
            line "$name" "${summary:-stopped by the clock}; $ended tests ended, $found reports"
        done
    done
}

part_sanitize() {
    for tool in memcheck racecheck; do
        sanitized $tool "${SANITIZE_SECONDS:-40}" "$build"/tests/kernels/kernels_* \
            "$build/tests/perf/shapes_check"
    done
}

part_races() {
    local kernels=$build/tests/kernels/kernels_
    sanitized racecheck "${RACE_SECONDS:-120}" \
        "${kernels}jet:"{mixer_agrees,mixer_has}'*' "${kernels}delta:"{both,long,a_,chunks_hold}'*' \
        "$build/tests/perf/shapes_check" "${kernels}gemm:"{aligned,gemm_,every}'*' \
        "${kernels}"{logits,sample_whole} "${kernels}delta:chunks_agree*"
}

# bench NAME OPTION ...: one line of ops/PERFORMANCE.md.
bench() {
    local name=$1
    shift
    check "$name" 100 "$build/tests/perf/jetbench" "$@"
    say "$name" '^(decode|prefill) '
}

part_bench() {
    bench decode-4b-64 decode --config jet-nemotron-4b --batch 64 --context 65536
    bench decode-2b-128 decode --config jet-nemotron-2b --batch 128 --context 65536
    bench decode-4b-1 decode --config jet-nemotron-4b --batch 1 --context 4096 --steps 200
    bench decode-2b-1 decode --config jet-nemotron-2b --batch 1 --context 4096 --steps 200
    bench prefill-4b prefill --config jet-nemotron-4b --context 65536 --chunk 16384 --steps 5
    bench prefill-2b prefill --config jet-nemotron-2b --context 65536 --chunk 16384 --steps 5
    bench prefill-4b-256k prefill --config jet-nemotron-4b --context 262144 --chunk 16384 --steps 2
}

# Prompts of some tens of tokens, 64 answered: about 128 of context on average.
part_serve() {
    check serve 120 "$build/tests/perf/jetbench" serve --streams 256 --requests 1024 --least-share 90 -- \
        --device cuda --load-format dummy --model-config jet-nemotron-2b \
        --tokenizer "$JETD_SOURCE/ops/demo-model"
    say serve '^(engine|grpc|the gRPC)'
    bench decode-2b-256 decode --config jet-nemotron-2b --batch 256 --context 128
}

for part in $parts; do
    "part_$part"
done
echo "==== $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)"
cat "$table"
if [ -s "$failed" ]; then
    echo "not right: $(tr '\n' ' ' <"$failed")"
    exit 1
fi
if [ -s "$skipped" ]; then
    exit 77
fi
