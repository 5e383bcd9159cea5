#!/bin/sh
# test_hosts.sh MPIRUN PROGRAM CHECKS JETD JETCTL EXPECTED : ranks on two emulated hosts, at last the
# daemon with the demo model, whose answers are EXPECTED. 77: not possible here.
# The hosts' names and network are the machine's: one run at a time, the others wait for it.
set -u
here=$(cd "$(dirname "$0")" && pwd)
mpirun=$1 program=$2 checks=$3 jetd=$4 jetctl=$5 expected=$6
skip() {
    echo "SKIPPED: $1"
    exit 77
}
[ "$(id -u)" = 0 ] || skip "not root: no network namespaces"
command -v ip >/dev/null || skip "no ip command"
command -v flock >/dev/null || skip "no flock command"
exec 9>"${TMPDIR:-/tmp}/jet-hosts.lock"
flock -w 200 9 || { echo "another run has held the hosts for 200 s"; exit 1; }
ip netns add jetprobe 2>/dev/null || skip "no network namespaces here"
ip netns del jetprobe
unshare --uts --ipc true 2>/dev/null || skip "no UTS namespaces here"
"$here/hosts.sh" down 2 >/dev/null 2>&1
trap '"$here/hosts.sh" down 2 >/dev/null 2>&1' EXIT
"$here/hosts.sh" up 2 || skip "no bridge or veth here"

agent=$(mktemp)
printf '#!/bin/sh\nexec "%s" rsh "$@"\n' "$here/hosts.sh" >"$agent"
chmod +x "$agent"
trap '"$here/hosts.sh" down 2 >/dev/null 2>&1; rm -f "$agent"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0
# Without the lock: what outlives this script must not hold it.
launch() {
    $mpi "$@" 9>&-
}
over="$mpirun --mca plm_rsh_agent $agent --mca oob_tcp_if_include 10.78.0.0/24
    --mca btl_tcp_if_include 10.78.0.0/24 --mca btl_vader_single_copy_mechanism none
    --oversubscribe --bind-to none -x ASAN_OPTIONS"
mpi="timeout -k 1 60 $over --host jet1:2,jet2:2 -n 4"

output=$(launch "$program" clean 2>&1)
code=$?
printf '%s\n' "$output"
[ $code -eq 0 ] || exit 1
printf '%s\n' "$output" | grep -q "rank 3 of 4 on jet2" || exit 1
echo "four ranks on two hosts: ok"

launch "$checks" mpi-square || exit 1
echo "all collectives over TCP: ok"

for fault in "stop 3" "kill 3" "kill 0"; do
    output=$(launch "$program" $fault 2>&1)
    code=$?
    printf '%s\n' "$output"
    [ $code -ne 0 ] && [ $code -ne 124 ] || exit 1
    printf '%s\n' "$output" | grep -Eq "rank [03] (stalled|died) in step 7" || exit 1
    echo "$fault: ok"
done

# Rank 0 listens on the loopback of jet1; rank 1 is on jet2.
ask() {
    command=$1
    shift
    ip netns exec jet1 "$jetctl" "$command" --address 127.0.0.1:50999 "$@"
}
$over --host jet1:1,jet2:1 -n 2 "$jetd" --device cpu --tp 2 --port 50999 9>&- &
server=$!
for _ in $(seq 200); do
    ask health >/dev/null 2>&1 && break
    kill -0 $server 2>/dev/null || exit 1
    sleep 0.1
done
ask generate --json --temperature 0 --max-new-tokens 20 "Once upon a time" | python3 -c '
import json, sys
ids = []
for line in sys.stdin:
    message = json.loads(line)
    ids += message.get("token_ids", []) if message["event"] == "delta" else []
case = json.load(open(sys.argv[1]))["prompts"][0]
assert case["text"] == "Once upon a time" and ids == case["greedy"][:20], ids
' "$expected" || exit 1
kill -USR1 $server # mpirun hands it on: drain
wait $server || exit 1
echo "jetd on two hosts: ok"
