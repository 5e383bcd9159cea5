#!/bin/sh
# hosts.sh up N | down N | rsh HOST COMMAND... : N emulated hosts jet1 .. jetN, each a network and UTS
# namespace on one bridge, whose names are fixed: the caller sees to it that no other uses them.
# `rsh` is the agent that mpirun starts its daemons with.
set -e
network=10.78.0
bridge=jetbr0
case $1 in
up)
    ip link add $bridge type bridge
    ip addr add $network.254/24 dev $bridge
    ip link set $bridge up
    for i in $(seq 1 "$2"); do
        ip netns add jet$i
        ip link add jetv$i type veth peer name eth0 netns jet$i
        ip link set jetv$i master $bridge up
        ip -n jet$i addr add $network.$i/24 dev eth0
        ip -n jet$i link set eth0 up
        ip -n jet$i link set lo up
        mkdir -p /etc/netns/jet$i
        {
            echo 127.0.0.1 localhost
            for j in $(seq 1 "$2"); do echo $network.$j jet$j; done
            echo $network.254 head
        } >/etc/netns/jet$i/hosts
    done
    ;;
down)
    for i in $(seq 1 "$2"); do
        ip netns pids jet$i | xargs -r kill -9 || true
        ip link del jetv$i || true # else it stays until the last process has ended
        ip netns del jet$i || true
        rm -rf /etc/netns/jet$i
    done
    ip link del $bridge || true
    ;;
rsh)
    host=$2
    shift 2
    # A name of its own, else Open MPI takes all hosts for one.
    exec ip netns exec "$host" unshare --uts --ipc \
        sh -c 'hostname "$0"; HOSTNAME=$0; export HOSTNAME; exec sh -c "$*"' "$host" "$@"
    ;;
esac
