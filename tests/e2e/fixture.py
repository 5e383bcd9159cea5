"""Reads the float64 answers beside a fixture checkpoint, without any of jetd's code."""

import json
import math
import pathlib
import struct

SIZES = {"I32": "i", "F32": "f"}


def safetensors(path):
    """name -> (shape, flat tuple)."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        code = SIZES[entry["dtype"]]
        flat = struct.unpack_from(f"<{(end - begin) // 4}{code}", data, 8 + length + begin)
        tensors[name] = (entry["shape"], flat)
    return tensors


def log_softmax(row):
    top = max(row)
    total = math.log(math.fsum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


class Answers:
    """prompt ids, log-probabilities of ids[1:], arg-maxima, greedy continuation and margins."""

    def __init__(self, folder):
        tensors = safetensors(pathlib.Path(folder) / "expected.safetensors")
        self.prompt = list(tensors["prompt_ids"][1])
        tokens, vocab = tensors["logits"][0]
        flat = tensors["logits"][1]
        rows = [log_softmax(flat[t * vocab : (t + 1) * vocab]) for t in range(tokens)]
        self.rows = rows
        self.logprobs = [rows[t][self.prompt[t + 1]] for t in range(tokens - 1)]
        self.greedy = list(tensors["greedy_ids"][1])
        self.margin = list(tensors["greedy_margin"][1])
