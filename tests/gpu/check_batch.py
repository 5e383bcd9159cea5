"""Greedy answers of 64 mixed requests, each alone and then all together, staggered.

    check_batch.py MODEL [--invariant] [jetd options]

MODEL: demo, or a built-in shape with made-up weights. Reports how many answers differ; with
--invariant (the daemon runs --batch-invariant) ids and log-probabilities must be the same bits."""

import concurrent.futures
import random
import sys
import time

from service import DEMO, Daemon, need_gpu

REQUESTS = 64


def requests_make(vocab, longest, beyond):
    """(prompt ids, new tokens, start delay): lengths from 1 to `longest`, chunk edges among them,
    and those in `beyond`."""
    rng = random.Random(5)
    lengths = [1, 2, 15, 63, 64, 65, 127, 128, 129, 191, 257, *beyond]
    lengths += [rng.randint(1, longest) for _ in range(REQUESTS - len(lengths))]
    rng.shuffle(lengths)
    return [
        ([rng.randrange(vocab) for _ in range(n)], rng.randint(8, 40), rng.random() * 0.25)
        for n in lengths
    ]


def together(daemon, requests):
    def run(request):
        time.sleep(request[2])
        return daemon.greedy(request[0], request[1])

    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(run, requests))


def main():
    need_gpu()
    invariant = "--invariant" in sys.argv
    name, *options = [a for a in sys.argv[1:] if a != "--invariant"]
    demo = name == "demo"
    model = ["--model", DEMO] if demo else ["--load-format", "dummy", "--model-config", name]
    options += ["--batch-invariant"] if invariant else []
    # Longer sequences are allowed than any window, so that rings are as long as it; some prompts
    # are longer than the window (demo: 128, 2B: 1152, 4B: 2048), one as long as it.
    beyond = [] if demo else [1100, 1151, 1152, 1153, 1700, 2047, 2100, 3000]
    requests = requests_make(4000 if demo else 150000, 400 if demo else 700, beyond)
    with Daemon(*model, "--max-num-seqs", REQUESTS, "--max-num-batched-tokens", 512,
                "--max-model-len", 2048 if demo else 4096, "--gpu-memory-utilization", "0.25",
                *options) as daemon:  # fmt: skip
        started = time.time()
        alone = [daemon.greedy(ids, count) for ids, count, _ in requests]
        middle = time.time()
        batched = together(daemon, requests)
        ended = time.time()
    assert all(len(a[0]) == r[1] for a, r in zip(alone, requests, strict=True))
    tokens = [i for i in range(REQUESTS) if alone[i][0] != batched[i][0]]
    bits = [i for i in range(REQUESTS) if alone[i] != batched[i]]
    print(
        f"{name}{' --batch-invariant' if invariant else ''}: of {REQUESTS} requests {len(tokens)} "
        f"differ in tokens, {len(bits)} in bits of log-probabilities; "
        f"alone {middle - started:.1f} s, together {ended - middle:.1f} s"
    )
    for i in bits[:8] if invariant else []:
        first = next(
            t for t, pair in enumerate(zip(*alone[i], *batched[i])) if pair[:2] != pair[2:]
        )
        print(f"  request {i}: prompt {len(requests[i][0])}, differs from new token {first} on")
    return 1 if invariant and bits else 0


if __name__ == "__main__":
    sys.exit(main())
