#!/usr/bin/env python3
"""Writes rope_vectors.h: inverse frequencies and scales as the transformers package computes them.

    pip install numpy transformers==4.57.1
    python3 rope_vectors.py > rope_vectors.h

Its module modeling_rope_utils.py runs as it is, over a stand-in for torch that computes with numpy
in float64 (the package itself would use float32).
"""

import importlib.util
import pathlib
import sys
import types

import numpy


class Tensor(numpy.ndarray):
    def to(self, device=None, dtype=None):
        return self.astype(numpy.float64).view(Tensor)


def stand_in():
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    torch.float = torch.float32 = numpy.float64
    torch.int64 = numpy.int64
    torch.arange = lambda *range_, dtype=None: numpy.arange(*range_, dtype=dtype).view(Tensor)
    torch.clamp = numpy.clip
    torch.where = numpy.where
    return torch


def rope_functions():
    sys.modules["torch"] = stand_in()
    folder = pathlib.Path(importlib.util.find_spec("transformers").origin).parent
    package = types.ModuleType("rope")
    package.__path__ = []
    configuration = types.ModuleType("rope.configuration_utils")
    configuration.PretrainedConfig = object
    utils = types.ModuleType("rope.utils")
    utils.is_torch_available = lambda: True
    utils.logging = types.SimpleNamespace(get_logger=lambda name: None)
    sys.modules |= {"rope": package, "rope.configuration_utils": configuration,
                    "rope.utils": utils}
    spec = importlib.util.spec_from_file_location("rope.m", folder / "modeling_rope_utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ROPE_INIT_FUNCTIONS


# head_dim, theta, max_position_embeddings, length of the run, rope_scaling as in config.json
CASES = [
    (16, 1e6, 4096, 4096, 'null'),
    (128, 1e6, 131072, 131072, '{"rope_type": "default"}'),
    (128, 1e4, 2048, 2048, '{"type": "linear", "factor": 4.0}'),
    (64, 1e4, 2048, 2048, '{"rope_type": "dynamic", "factor": 2.0}'),
    (64, 1e4, 2048, 1000, '{"rope_type": "dynamic", "factor": 2.0}'),
    (64, 1e4, 2048, 8192, '{"type": "dynamic", "factor": 2.5}'),
    (32, 1e6, 4096, 4096,
     '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}'),
    (128, 1e6, 131072, 131072,
     '{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'),
    (128, 1e6, 32768, 32768, '{"rope_type": "yarn", "factor": 2.5}'),
    (128, 1e4, 4096, 4096,
     '{"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, '
     '"beta_fast": 24, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.2}'),
    (64, 1.5e5, 131072, 131072,
     '{"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, '
     '"truncate": false}'),
    (64, 1e4, 4096, 4096,
     '{"rope_type": "yarn", "factor": 8, "attention_factor": 0.75, "mscale": 2}'),
    (64, 1e4, 64, 64, '{"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 4}'),
    (128, 5e5, 131072, 131072,
     '{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, '
     '"original_max_position_embeddings": 8192}'),
    (32, 1e4, 4096, 4096,
     '{"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 0.5, "high_freq_factor": 16.0, '
     '"original_max_position_embeddings": 512}'),
]


def main():
    import json

    functions = rope_functions()
    print("/* Written by rope_vectors.py; not by hand. */\n/* clang-format off */")
    print("static const struct rope_vector rope_vectors[] = {")
    for head_dim, theta, max_position, length, text in CASES:
        scaling = json.loads(text)
        kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
        config = types.SimpleNamespace(
            head_dim=head_dim, hidden_size=head_dim, num_attention_heads=1, rope_theta=theta,
            max_position_embeddings=max_position, rope_scaling=scaling)
        frequencies, scale = functions[kind](config, None, seq_len=length)
        quoted = json.dumps(text)
        print(f"    {{{head_dim}, {theta!r}, {max_position}, {length},\n     {quoted},\n"
              f"     {float(scale)!r},\n     {{", end="")
        print(", ".join(repr(float(value)) for value in frequencies) + "}},")
    print("};")


main()
