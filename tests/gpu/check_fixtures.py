"""Fixtures and the demo model through the daemon with --device cuda, against float64.

A bf16 run is right when the relative error (Frobenius norm) of the scored log-probabilities is at
most 2e-2, and each greedy token is float64's, or the first that is not lies where float64's own
margin between the two best logits is below 0.2: the fixtures' logits have a deviation of 3, of which
2e-2 in each of two logits turns margins of up to 0.2. What follows a turned token has another
history and is not compared."""

import json
import math
import sys

from service import DEMO, FIXTURES, Daemon, need_gpu

TOLERANCE, CLOSE = 2e-2, 0.2


def error(ours, expected):
    difference = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(ours, expected, strict=True)))
    return difference / math.sqrt(math.fsum(b * b for b in expected))


def agreed(ours, greedy, margin):
    """How many greedy tokens agree, and whether the first that differs may."""
    for i, (mine, theirs) in enumerate(zip(ours, greedy, strict=True)):
        if mine != theirs:
            return i, margin[i] < CLOSE
    return len(greedy), True


def check(daemon, name, ids, logprobs, greedy, margin):
    scored = error(daemon.score(ids), logprobs)
    right, count = scored <= TOLERANCE, 0
    if greedy:
        out, _ = daemon.greedy(ids, len(greedy))
        count, allowed = agreed(out, greedy, margin)
        right = right and allowed
    print(
        f"{name}: log-probabilities' relative error {scored:.2e}; "
        f"{count} of {len(greedy)} greedy tokens: {'ok' if right else 'WRONG'}"
    )
    return 0 if right else 1


def main():
    from fixture import Answers

    need_gpu()
    failures = 0
    small = ["--gpu-memory-utilization", "0.1"]
    for name in ("tiny-f32", "tiny-bf16-sharded"):
        answers = Answers(FIXTURES / name)
        case = (answers.prompt, answers.logprobs, answers.greedy, answers.margin)
        for tokens in (512, 96):  # whole, and in chunks
            with Daemon("--model", FIXTURES / name, "--max-num-seqs", 8,
                        "--max-num-batched-tokens", tokens, *small) as daemon:  # fmt: skip
                failures += check(daemon, f"{name}, steps of {tokens}", *case)
    expected = json.loads((DEMO / "expected.json").read_text())
    with Daemon("--model", DEMO, *small) as daemon:
        for i, case in enumerate([*expected["prompts"], expected["heldout"]]):
            failures += check(
                daemon, f"demo {i}", case["ids"], case["logprobs"], case["greedy"], case["margin"]
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
