#!/usr/bin/env python3
"""Prints the element counts and sums of |w| of the shipped checkpoints for test_checkpoint.c, read
with nothing but the standard library: python3 checkpoint_sums.py REPOSITORY"""

import array
import glob
import json
import math
import struct
import sys

for name, folder in (("TINY_F32", "tests/data/fixtures/tiny-f32"),
                     ("TINY_BF16", "tests/data/fixtures/tiny-bf16-sharded"),
                     ("DEMO", "ops/demo-model")):
    count, sums = 0, []
    for path in sorted(glob.glob(f"{sys.argv[1]}/{folder}/model*.safetensors")):
        data = open(path, "rb").read()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            raw = data[8 + length + begin:8 + length + end]
            if tensor["dtype"] == "BF16":
                raw = b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2))
            values = array.array("f", raw)
            count += len(values)
            sums.append(math.fsum(map(abs, values)))
    print(f"#define {name}_ELEMENTS {count}\n#define {name}_SUM {math.fsum(sums)!r}")
