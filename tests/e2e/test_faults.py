"""Ranks that die or hang under a live stream: the whole job ends within seconds, the client's stream
ends, and the log names the rank."""

import os
import re
import signal
import subprocess
import time

import grpc
import pytest
from conftest import BINARY, DEMO, TINY, endless


def rank_pids(daemon):
    """World ranks in order: the children of mpirun, started in rank order."""
    out = subprocess.run(
        ["pgrep", "-P", str(daemon.process.pid), "-x", "jetd"], capture_output=True, text=True
    ).stdout
    return sorted(int(pid) for pid in out.split())


def own_rank(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        return int(re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", file.read()).group(1))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def expect_gone(pids):
    end = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "a rank outlived mpirun"
        time.sleep(0.1)


@pytest.mark.parametrize("fault,victim", [
    (signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1), (signal.SIGSTOP, 2)])
def test_rank_fault(pb, start, fault, victim):
    daemon = start("--device", "cpu", "--tp", "2", "--pp", "2", "--heartbeat-timeout", "2",
                   model=DEMO, ranks=4)
    pids = {own_rank(pid): pid for pid in rank_pids(daemon)}
    assert sorted(pids) == [0, 1, 2, 3]
    time.sleep(0.5)  # every rank's beat has told of the warm-up's steps
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        stream = stub.Generate(pb.GenerateRequest(text="Once", max_new_tokens=2000, ignore_eos=True),
                               timeout=60)
        seen = 0
        with pytest.raises(grpc.RpcError) as failure:
            for message in stream:
                seen += 1
                if seen == 5:
                    subprocess.run(["kill", f"-{fault.value}", str(pids[victim])], check=True)
                    struck = time.monotonic()
        assert failure.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
        assert daemon.process.wait(20) != 0
        assert time.monotonic() - struck < 15
    daemon.reader.join(5)
    expect_gone(pids.values())
    if fault == signal.SIGSTOP:
        assert re.search(rf"rank {victim} stalled (in|after) step \d+", daemon.text()), daemon.text()


def test_mpirun_hands_a_drain_on(pb, start):
    """SIGUSR1 to mpirun, as systemd sends it: what is live ends well, and so do all ranks."""
    tokens = 60 if "JETD_TEST_LIGHT" in os.environ else 300
    daemon = start("--device", "cpu", "--tp", "2", model=DEMO, ranks=2)
    with daemon.channel() as channel:
        live = pb.GenerationStub(channel).Generate(
            pb.GenerateRequest(text="Once", max_new_tokens=tokens, ignore_eos=True), timeout=60)
        next(live)
        daemon.process.send_signal(signal.SIGUSR1)
        *_, last = live
        assert last.finished.usage.completion_tokens == tokens
    assert daemon.stop(signal.SIGUSR1) == 0, daemon.text()
    assert "every request finished" in daemon.text(), daemon.text()


def test_mpirun_that_is_ended_leaves_nothing(pb, start):
    """SIGTERM to mpirun gives ranks one second: the client hears of the end, and no rank stays."""
    daemon = start("--device", "cpu", "--tp", "2", model=DEMO, ranks=2)
    pids = rank_pids(daemon)
    assert len(pids) == 2
    with daemon.channel() as channel:
        live = pb.GenerationStub(channel).Generate(endless(pb, n=8), timeout=60)
        next(live)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as failure:
            for _ in live:
                pass
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
        daemon.process.wait(20)
    expect_gone(pids)
    assert time.monotonic() - began < 15
    assert "draining:" in daemon.text(), daemon.text()


def run_pair(*options):
    """Two ranks, each with its own options, until they end."""
    command = ["mpirun", "--oversubscribe"]
    for own in options:
        command += ["-n", "1", BINARY, "--device", "cpu", "--port", "0", *own, ":"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(command[:-1], capture_output=True, text=True, timeout=60, env=environment)


def test_ranks_with_different_models_refuse():
    result = run_pair(["--model", str(DEMO)], ["--model", str(TINY)])
    assert result.returncode != 0
    assert "rank 1" in result.stderr and "differ" in result.stderr, result.stderr


def test_impossible_options_of_one_rank_are_code_2():
    wrong = ["--model", str(TINY), "--model-config", "jet-nemotron-2b"]
    result = run_pair(["--model", str(TINY)], wrong)
    assert result.returncode == 2, result.stderr
    assert "rank 1: --model and --model-config exclude each other" in result.stderr, result.stderr


def test_ranks_that_lose_step_while_loading():
    """Rank 0 compares devices, which rank 1 was told not to: their next messages do not match."""
    common = ["--model", str(TINY), "--load-timeout", "10"]
    result = run_pair([*common, "--fabric", "auto"], [*common, "--fabric", "mpi"])
    assert result.returncode != 0
    assert re.search(r"rank \d sent \d+ bytes .*where \d+ were expected", result.stderr), result.stderr


def test_ranks_of_which_one_is_batch_invariant_refuse():
    common = ["--model", str(TINY)]
    result = run_pair([*common, "--batch-invariant"], common)
    assert result.returncode != 0
    assert "rank 1" in result.stderr and "--batch-invariant" in result.stderr, result.stderr


def test_limit_on_steps_follows_device_and_tokens(start):
    daemon = start("--device", "cpu", "--max-num-batched-tokens", "1024", "--log-level", "debug")
    assert "a step of more than 600 s is a stall" in daemon.text(), daemon.text()
    assert daemon.stop() == 0
