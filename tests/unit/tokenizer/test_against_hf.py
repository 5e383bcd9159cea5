"""Random Unicode text, encoded and decoded by the `tokenizers` package and by tokenizer_cli.

argv of tokenizer_cli and the checkpoint folders come from the environment: JETD_TOKENIZER_CLI,
JETD_TOKENIZER_FOLDERS (separated by colons). JETD_SEED repeats a run.
"""

import functools
import json
import os
import random
import subprocess
import sys
import time

try:
    import pytest
    from tokenizers import Tokenizer
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

SEED = int(os.environ.get("JETD_SEED", time.time_ns() % 2**32))
CLI = os.environ["JETD_TOKENIZER_CLI"]
FOLDERS = os.environ["JETD_TOKENIZER_FOLDERS"].split(":")
# Each run takes every eighth code point, another eighth by the seed; 1 takes all (a minute).
CODE_STRIDE = int(os.environ.get("JETD_CODE_STRIDE", 8))
PIECES = [
    "'s", "'S", "'\u017f", "'re", "'LL", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_end",
    "<tool_call>", "  ", "\r\n", "\n", "\n\n", "\t", "\u00a0", "\u0301", "\u0323", "\u0345",
    "\u180e", "\u0085", "\ufeff", "123", "9", "the", " The", "\u1100\u1161\u11a8", "\uac00\u11a8",
    "\u212b", "\u0958", "\U0001f469\u200d\U0001f680", "\u6f22", "...", "!!", " (", "_", "\u0000",
]


@functools.cache
def judge_of(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def ask(folder, questions):
    lines = "\n".join(json.dumps(question) for question in questions) + "\n"
    run = subprocess.run([CLI, folder], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def code_point(source):
    while True:
        kind = source.random()
        limit = 0x80 if kind < 0.25 else 0x3000 if kind < 0.6 else 0x20000 if kind < 0.9 else 0x110000
        code = source.randrange(limit)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def random_text(source):
    return "".join(
        source.choice(PIECES) if source.random() < 0.4 else code_point(source)
        for _ in range(source.randrange(1, 40))
    )


def code_point_texts(stride, offset):
    """Texts in which code points meet letters, marks, quotes and signs."""
    codes = [chr(code) for code in range(offset, 0x110000, stride) if not 0xD800 <= code < 0xE000]
    for at in range(0, len(codes), 64):
        yield "".join(f"!{c}'s{c}\u0301\u0334 a{c}" for c in codes[at : at + 64])


def compare(folder, texts):
    judge = judge_of(folder)
    answers = ask(folder, [{"text": text, "specials": True} for text in texts])
    assert len(answers) == len(texts)
    for text, answer, wanted in zip(texts, answers, judge.encode_batch(texts, add_special_tokens=False)):
        assert answer.get("ids") == wanted.ids, f"seed {SEED}: {ascii(text)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_encode_random(folder):
    source = random.Random(SEED)
    compare(folder, [random_text(source) for _ in range(3000)])


def test_encode_code_points():
    compare(FOLDERS[0], list(code_point_texts(CODE_STRIDE, SEED % CODE_STRIDE)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_decode_random(folder):
    source = random.Random(SEED + 1)
    judge = judge_of(folder)
    size = judge.get_vocab_size()
    questions = [
        {
            "ids": [source.randrange(256 if source.random() < 0.6 else size) for _ in range(source.randrange(1, 24))],
            "skip_special": source.random() < 0.5,
        }
        for _ in range(2000)
    ]
    for question, answer in zip(questions, ask(folder, questions), strict=True):
        wanted = judge.decode(question["ids"], skip_special_tokens=question["skip_special"])
        assert answer.get("text") == wanted, f"seed {SEED}: {question}"


if __name__ == "__main__":
    print(f"JETD_SEED={SEED}", flush=True)
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", __file__]))
