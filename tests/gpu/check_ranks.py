"""A checkpoint through the daemon on two ranks, against the oracle.

    check_ranks.py DIR [TOKENS] [jetd options]

For two tensor ranks and for two stages: the log-probabilities of a random prompt within 2e-2 of
oracle.py's (relative, Frobenius norm), with the prompt read in several steps; and the best 20 after
decoded tokens within 2e-2 of what the daemon gives when it reads the same text as a prompt (with
these weights the best one's alone is 0). TOKENS (default 701) is the prompt's length."""

import json
import math
import pathlib
import random
import sys

from service import Daemon, need_gpu

TOLERANCE, BEGIN, DECODED, TOPS = 2e-2, 96, 32, 20


def error(ours, expected):
    difference = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(ours, expected, strict=True)))
    return difference / math.sqrt(math.fsum(b * b for b in expected))


def oracle_logprobs(folder, ids):
    """[tokens - 1], of each token after those before it."""
    import torch
    from oracle import Checkpoint, Config, Model

    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, tokens = Config(folder), torch.tensor(ids, device=device)
    weights = Checkpoint(folder, torch.float32, device)
    logits = Model(config, weights, torch.float32, device).logits(tokens, len(ids))
    logprobs = logits[:-1].double().log_softmax(-1)
    return logprobs.gather(1, tokens[1:, None]).flatten().tolist()


def decoded_error(daemon, ids):
    """Of the decoded distributions against those read, where they name the same tokens."""
    decoded = daemon.entries(ids, DECODED, TOPS)
    text, pairs = ids + [entry.id for entry in decoded], []
    for at in (1, DECODED // 2, DECODED - 1):
        (read,) = daemon.entries(text[: len(ids) + at], 1, TOPS)
        expected = {top.id: top.logprob for top in read.top}
        same = [(top.logprob, expected[top.id]) for top in decoded[at].top if top.id in expected]
        assert len(same) >= TOPS // 2, f"token {at}: only {len(same)} of the best {TOPS} are the same"
        pairs += same
    return error(*zip(*pairs, strict=True))


def check(name, options, folder, ids, expected):
    with Daemon("--model", folder, "--max-num-seqs", 8, "--max-num-batched-tokens", 256,
                "--max-model-len", 4096, "--gpu-memory-utilization", "0.4", *options,
                ranks=2) as daemon:  # fmt: skip
        scored = daemon.score(ids)
        errors = error(scored[-len(expected) :], expected), decoded_error(daemon, ids[:BEGIN])
    right = max(errors) <= TOLERANCE
    print(
        f"{name}: log-probabilities' relative error {errors[0]:.2e}; "
        f"decoded against read {errors[1]:.2e}: {'ok' if right else 'WRONG'}"
    )
    return 0 if right else 1


def main():
    need_gpu()
    folder, *options = sys.argv[1:]
    tokens = int(options.pop(0)) if options and options[0].isdigit() else 701
    rng = random.Random(11)
    vocab = json.loads((pathlib.Path(folder) / "config.json").read_text())["vocab_size"]
    ids = [rng.randrange(vocab) for _ in range(tokens)]
    expected = oracle_logprobs(folder, ids)
    failures = 0
    for name, cut in (("tensor 2", ["--tp", 2]), ("pipeline 2", ["--pp", 2])):
        failures += check(f"{pathlib.Path(folder).name}, {name}", [*cut, *options], folder, ids, expected)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
