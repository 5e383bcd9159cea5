"""Greedy answers of 64 mixed requests, each alone and then all together, staggered.

    check_batch.py MODEL [--invariant] [jetd options]

MODEL: demo, or a built-in shape with made-up weights. Reports how many answers differ; with
--invariant (the daemon runs --batch-invariant) ids and log-probabilities must be the same bits.
Without it the first token that differs, of an answer, must be one of two that are nearly as good:
each among the TOPS best of the other's step. (What follows has another history.) Of a request that
was mixed up with another, no more than one token in 100 would be.
"""

import concurrent.futures
import random
import sys
import time

from service import DEMO, Daemon, need_gpu

REQUESTS, TOPS = 64, 20


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


def answer(daemon, request):
    """Ids, log-probabilities, the ids of the best of each step."""
    entries = daemon.entries(request[0], request[1], TOPS)
    ids, logprobs = [e.id for e in entries], [e.logprob for e in entries]
    return ids, logprobs, [[best.id for best in e.top] for e in entries]


def first_difference(one, other):
    """Their length: there is none."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((t for t, (a, b) in pairs if a != b), len(one))


def parting(one, other):
    """Where two answers part (their length: nowhere), and whether they may."""
    first = first_difference(one[0], other[0])
    if first == len(one[0]):
        return first, True
    return first, one[0][first] in other[2][first] and other[0][first] in one[2][first]


def together(daemon, requests):
    def run(request):
        time.sleep(request[2])
        return answer(daemon, request)

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
        alone = [answer(daemon, request) for request in requests]
        middle = time.time()
        batched = together(daemon, requests)
        ended = time.time()
    assert all(len(a[0]) == r[1] for a, r in zip(alone, requests, strict=True))
    pairs = list(zip(alone, batched, strict=True))
    bits = [i for i, (a, b) in enumerate(pairs) if a[:2] != b[:2]]
    parted = [parting(a, b) for a, b in pairs]
    wrong = [i for i, (_, allowed) in enumerate(parted) if not allowed]
    apart = max(
        (
            abs(x - y)
            for (a, b), (first, _) in zip(pairs, parted, strict=True)
            for x, y in zip(a[1][:first], b[1][:first], strict=True)
        ),
        default=0.0,
    )
    print(
        f"{name}{' --batch-invariant' if invariant else ''}: of {REQUESTS} requests "
        f"{sum(a[0] != b[0] for a, b in pairs)} differ in tokens, {len(wrong)} of them where they "
        f"may not, {len(bits)} in bits; until then log-probabilities differ by {apart:.1e} at most; "
        f"alone {middle - started:.1f} s, together {ended - middle:.1f} s"
    )
    wrong = bits if invariant else wrong
    for i in wrong[:8]:
        first = parted[i][0]
        if invariant:
            first = min(first, first_difference(alone[i][1], batched[i][1]))
        print(f"  request {i}: prompt {len(requests[i][0])}, differs from new token {first} on")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
