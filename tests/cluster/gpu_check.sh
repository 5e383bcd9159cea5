#!/bin/sh
# gpu_check.sh BUILD [check|model|bench ...]: ranks on GPUs, by hand on a machine with two, or with
# one that they share: `check` over nccl all the same (nccl_device.h), the others over mpi.
# `check`: collectives, faults and fixtures over nccl, and over mpi; `model`: the daemon on two ranks
# with a checkpoint of the 4B's shape ($SHAPE), random weights, against the oracle (tests/gpu);
# `bench`: the 4B with one rank, two tensor ranks and two stages. Without a word: all. Logs lie in
# $OUT (default: a temporary folder), the checkpoint (8 GB) in $SCRATCH (default: /tmp), the table is
# printed last.
set -u
build=$1
shift
parts=${*:-check model bench}
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d -p "${SCRATCH:-/tmp}")
trap 'rm -rf "$scratch"' EXIT
out=${OUT:-$(mktemp -d)}
table=$out/gpu_check.txt
: >"$table"
failures=0
fixtures=${FIXTURES:-tiny-f32 tiny-bf16-sharded}
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OPENBLAS_NUM_THREADS=1
export OMPI_MCA_mca_base_component_show_load_errors=0 NCCL_NVLS_ENABLE=0

ranks="mpirun --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none \
    --mca btl self,vader -n 2"

# check NAME command ...: a line with the verdict; the end of the log where it failed.
check() {
    name=$1
    shift
    begin=$(date +%s)
    timeout "${LIMIT:-60}" "$@" >"$out/$name.log" 2>&1
    code=$?
    case $code in
    0) verdict=passed ;;
    77) verdict=skipped ;;
    *) verdict="FAILED ($code)" ;;
    esac
    printf '%-28s %s, %s s%s\n' "$name" "$verdict" "$(($(date +%s) - begin))" \
        "$(sed -n 's/^\(.*draws are those of one rank\)$/; \1/p' "$out/$name.log" | head -1)" >>"$table"
    if [ $code -ne 0 ]; then
        echo "---- $name"
        tail -15 "$out/$name.log"
        [ $code -eq 77 ] || failures=$((failures + 1))
    fi
}

# fault PATTERN FAULT RANK: the job ends with a line that says why, and soon.
fault() {
    begin=$(date +%s)
    timeout 40 $ranks "$build/tests/cluster/fault_ranks" "$2" \
        "$3" nccl >"$out/fault-$2.log" 2>&1
    code=$?
    verdict=passed
    grep -Eq "$1" "$out/fault-$2.log" || verdict=FAILED
    [ "$2" = clean ] && [ $code -ne 0 ] && verdict=FAILED
    [ "$2" != clean ] && [ $code -eq 0 ] && verdict=FAILED
    [ $code -eq 124 ] && verdict="FAILED (hung)"
    printf '%-28s %s, %s s, exit code %s\n' "fault: $2 $3" "$verdict" "$(($(date +%s) - begin))" $code \
        >>"$table"
    if [ "$verdict" != passed ]; then
        failures=$((failures + 1))
        echo "---- fault $2"
        tail -15 "$out/fault-$2.log"
    fi
}

# bench NAME command ...: the lines that jetbench prints.
bench() {
    name=$1
    shift
    timeout 90 "$@" >"$out/$name.log" 2>&1 || {
        failures=$((failures + 1))
        echo "---- $name"
        tail -15 "$out/$name.log"
    }
    printf '%-8s %s\n' "$name" "$(grep -E '^(decode|prefill) ' "$out/$name.log" || echo 'no result')" |
        cut -c1-150 >>"$table"
}

run_check() {
    check fabric_nccl $ranks "$build/tests/cluster/test_fabric" nccl
    fault "rank 1 of 2" clean -1
    fault "rank 1 died in step 7" kill 1
    fault "rank 1 stalled in step 7" stop 1
    fault "rank 1 stalled in step 7 .it has been" slow 1
    fault "rank asked for the end" abort 1
    for fixture in $fixtures; do
        for mesh in "2 1" "1 2"; do
            cut=$(echo "$mesh" | tr ' ' x)
            # shellcheck disable=SC2086
            check "$fixture-$cut-nccl" $ranks "$build/tests/golden/golden_mpi" $fixture $mesh nccl
            # shellcheck disable=SC2086
            CUDA_VISIBLE_DEVICES=0 check "$fixture-$cut-one-gpu" $ranks \
                "$build/tests/golden/golden_mpi" $fixture $mesh mpi
        done
    done
}

# Over nccl where there are two GPUs, else both ranks on one, over mpi.
run_model() {
    shape=${SHAPE:-jet-nemotron-4b}
    python=${JETD_PYTHON:-python3}
    export JETD_SOURCE=${JETD_SOURCE:-$(cd "$here/../.." && pwd)} PYTHONDONTWRITEBYTECODE=1
    export JETD_BINARY=${JETD_BINARY:-$build/daemon/jetd}
    fabric=nccl
    [ "$gpus" -lt 2 ] && fabric=mpi
    LIMIT=120 check "write-$shape" "$python" "$here/../gpu/oracle.py" "$scratch/$shape" --write \
        --config "$shape"
    LIMIT=180 check "daemon-$shape-$fabric" "$python" "$here/../gpu/check_ranks.py" \
        "$scratch/$shape" --fabric $fabric
    grep 'relative error' "$out/daemon-$shape-$fabric.log" | sed 's/^/    /' >>"$table"
}

run_bench() {
    jetbench=$build/tests/perf/jetbench
    for job in "decode --batch 1 --context 4096" "decode --batch 64 --context 65536" \
        "prefill --context 65536 --chunk 8192 --steps 3"; do
        # shellcheck disable=SC2086
        bench "tp 1" "$jetbench" $job
        # shellcheck disable=SC2086
        bench "tp 2" $ranks "$jetbench" $job --tp 2
        # shellcheck disable=SC2086
        bench "pp 2" $ranks "$jetbench" $job --pp 2
    done
}

for part in $parts; do
    case $part in
    check) run_check ;;
    model) run_model ;;
    bench) run_bench ;;
    *) echo "unknown part $part" >&2 && exit 2 ;;
    esac
done
echo "==== $gpus GPUs"
cat "$table"
if [ $failures -gt 0 ]; then
    echo "$failures failed"
    exit 1
fi
