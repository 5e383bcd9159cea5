"""A checkpoint through the daemon on two ranks, against the oracle.

    check_ranks.py DIR [TOKENS] [jetd options]

For two tensor ranks and for two stages: the log-probabilities of a random prompt within 2e-2 of
oracle.py's (relative, Frobenius norm), with the prompt read in several steps; and tokens decoded
from its beginning: their log-probabilities within 2e-2 of those that the daemon gives when the same
text is read as a prompt. TOKENS (default 701) is the prompt's length."""

import json
import math
import pathlib
import random
import sys

from service import Daemon, need_gpu

TOLERANCE, DECODED = 2e-2, 32


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


def check(name, options, folder, ids, expected):
    with Daemon("--model", folder, "--max-num-seqs", 8, "--max-num-batched-tokens", 256,
                "--max-model-len", 4096, "--gpu-memory-utilization", "0.4", *options,
                ranks=2) as daemon:  # fmt: skip
        scored = daemon.score(ids)
        out, decoded = daemon.greedy(ids[:96], DECODED)
        read = daemon.score(ids[:96] + out)
    errors = error(scored[-len(expected) :], expected), error(decoded, read[-DECODED:])
    right = max(errors) <= TOLERANCE
    print(
        f"{name}: log-probabilities' relative error {errors[0]:.2e}; "
        f"{DECODED} decoded against read {errors[1]:.2e}: {'ok' if right else 'WRONG'}"
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
