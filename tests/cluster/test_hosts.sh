#!/bin/sh
# test_hosts.sh MPIRUN PROGRAM CHECKS : ranks on two emulated hosts. 77: not possible here.
# The hosts' names and network are the machine's: one run at a time, the others wait for it.
set -u
here=$(cd "$(dirname "$0")" && pwd)
mpirun=$1 program=$2 checks=$3
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
mpi="timeout -k 1 60 $mpirun --mca plm_rsh_agent $agent --mca oob_tcp_if_include 10.78.0.0/24
    --mca btl_tcp_if_include 10.78.0.0/24 --mca btl_vader_single_copy_mechanism none
    --oversubscribe --bind-to none -x ASAN_OPTIONS --host jet1:2,jet2:2 -n 4"

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
