"""64 requests at once, of mixed lengths, arriving and leaving at odd times: what survives is bit for
bit what it is alone, and everything taken is given back."""

import json
import os
import random
import threading
import time

import grpc
import pytest
from conftest import DEMO

# Builds with sanitizers are 10 to 50 times slower: fewer and shorter requests there.
LIGHT = "JETD_TEST_LIGHT" in os.environ
COUNT = 14 if LIGHT else 64
PROMPTS = [1, 2, 3, 7, 20, 63, 64, 65] + ([] if LIGHT else [150, 300])
OUTPUTS = [1, 2, 5, 10] if LIGHT else [1, 2, 5, 16, 40]


def make_request(pb, prompts, i):
    rng = random.Random(i)
    ids = prompts[rng.randrange(0, 400) :][: rng.choice(PROMPTS)]
    greedy = i % 3 == 0
    sampling = pb.SamplingParams(temperature=0) if greedy else pb.SamplingParams(
        temperature=rng.choice([0.7, 1.0, 1.3]),
        top_p=rng.choice([0.8, 0.95, 1.0]),
        top_k=rng.choice([0, 5, 50]),
        min_p=rng.choice([0.0, 0.02]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.3]),
        seed=1000 + i,
    )
    return pb.GenerateRequest(
        request_id=f"r{i}",
        token_ids=pb.TokenIds(ids=ids),
        sampling=sampling,
        max_new_tokens=rng.choice(OUTPUTS),
        logprobs=rng.choice([0, 3]),
        n=rng.choice([1, 1, 1, 3]),
    )


def run(pb, stub, request, timeout=None, cancel_after=None):
    """(status, outputs): every token and float of every choice, as they came."""
    call = stub.Generate(request, timeout=timeout)
    outputs, seen = {}, 0
    try:
        for message in call:
            if message.WhichOneof("event") == "delta":
                delta = message.delta
                ids, floats = outputs.setdefault(delta.index, ([], []))
                ids += delta.token_ids
                for entry in delta.logprobs:
                    floats.append((entry.logprob, [(t.id, t.logprob) for t in entry.top]))
                seen += 1
            if cancel_after is not None and seen >= cancel_after:
                call.cancel()
    except grpc.RpcError as failure:
        return failure.code(), outputs
    return grpc.StatusCode.OK, outputs


def quiet(pb, control):
    """Waits until nothing runs; the load then."""
    for _ in range(200):
        load = control.GetLoad(pb.GetLoadRequest())
        if load.running == 0 and load.waiting == 0 and load.slots_used == 0:
            return load
        time.sleep(0.05)
    raise AssertionError(f"not quiet: {load}")


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("mesh", [["--tp", "1"], ["--fabric", "threads", "--tp", "2", "--pp", "2"]])
def test_mixed_load(pb, start, mesh):
    prompts = json.loads((DEMO / "expected.json").read_text())["heldout"]["ids"]
    daemon = start(
        "--device", "cpu", "--max-num-seqs", "24", "--max-num-batched-tokens", "96", *mesh, model=DEMO
    )
    pid = daemon.process.pid
    with daemon.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        requests = [make_request(pb, prompts, i) for i in range(COUNT)]
        alone = [run(pb, stub, request) for request in requests]
        assert all(status == grpc.StatusCode.OK for status, _ in alone)

        def round_of(seed):
            rng = random.Random(seed)
            results, threads = [None] * COUNT, []
            for i, request in enumerate(requests):
                fate = {"delay": rng.uniform(0, 0.6)}
                if i % 8 == 5:
                    fate["cancel_after"] = rng.randrange(0, 6)
                elif i % 8 == 6:
                    fate["timeout"] = rng.uniform(0.01, 0.7)
                def work(i=i, request=request, fate=fate):
                    time.sleep(fate.pop("delay"))
                    results[i] = run(pb, stub, request, **fate)
                threads.append(threading.Thread(target=work))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
            return results

        if not LIGHT:
            round_of(1)  # memory is taken once
        before = quiet(pb, control), descriptors(pid), resident(pid)
        ended = 0
        for seed in (2,) if LIGHT else (2, 3):
            for i, (status, outputs) in enumerate(round_of(seed)):
                if status == grpc.StatusCode.OK:
                    assert outputs == alone[i][1], f"request {i} differs from its run alone"
                    continue
                ended += 1
                assert i % 8 in (5, 6), (i, status)
                assert status in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
                for index, (ids, floats) in outputs.items():
                    whole = alone[i][1][index]
                    assert ids == whole[0][: len(ids)] and floats == whole[1][: len(floats)]
        assert ended > 0
        after = quiet(pb, control), descriptors(pid), resident(pid)
        assert after[0].blocks_used == before[0].blocks_used == 0
        assert after[1] == before[1]
        # The address sanitizer keeps freed memory; it looks for leaks itself, at the end.
        if not LIGHT:
            assert after[2] <= before[2] + (8 << 20), "memory grew"
    assert daemon.stop() == 0, daemon.text()
