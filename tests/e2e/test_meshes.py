"""The published models' head counts at every tensor size they must run at: small models with 16 and
12 heads and made-up weights give the answers of one rank, on ranks that hold one head each, on
uneven spans, and where a rank's query heads straddle two kv heads."""

import json
import signal

import pytest

# heads, MLP columns and vocabulary that do not divide evenly, as in the 2B at 12 ranks
SHAPES = {
    "4b": dict(heads=16, intermediate=344, vocab=600, meshes=[(2, 1), (4, 1), (8, 1), (16, 1), (8, 2)]),
    "2b": dict(heads=12, intermediate=280, vocab=601, meshes=[(2, 1), (3, 1), (4, 1), (6, 1), (12, 1), (5, 1)]),
}
TOLERANCE = 2e-4
PROMPT = [(7 * i + 3) % 600 for i in range(70)]


def write_config(folder, heads, intermediate, vocab):
    config = {
        "architectures": ["JetNemotronForCausalLM"], "model_type": "jet_nemotron",
        "vocab_size": vocab, "hidden_size": 16 * heads, "intermediate_size": intermediate,
        "num_hidden_layers": 4, "layer_types": ["jet", "attn", "swa", "jet"],
        "num_attention_heads": heads, "num_key_value_heads": 2, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
        "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": 0,
        "efficient_attention_config": {
            "jet": {"conv_size": 4, "dconv_generator_reduction": 8, "expand_v": 2, "head_dim": 8,
                    "mode": "chunk", "norm_eps": "1e-5", "num_heads": heads},
            "swa": {"window_size": 24},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


def answers(pb, start, folder, tensor, pipeline):
    daemon = start("--device", "cpu", "--fabric", "threads", "--load-format", "dummy", "--seed", "5",
                   "--max-num-seqs", "2", "--max-num-batched-tokens", "64",
                   "--tp", str(tensor), "--pp", str(pipeline), model=folder)
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        score = stub.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=PROMPT)), timeout=120)
        ids = []
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), max_new_tokens=12,
                                     sampling=pb.SamplingParams(temperature=1, seed=9), ignore_eos=True)
        for message in stub.Generate(request, timeout=120):
            ids += message.delta.token_ids
    assert daemon.stop(signal.SIGUSR1) == 0, daemon.text()
    return list(score.logprobs), ids


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_size(pb, start, tmp_path, name):
    shape = dict(SHAPES[name])
    meshes = shape.pop("meshes")
    write_config(tmp_path, **shape)
    logprobs, ids = answers(pb, start, tmp_path, 1, 1)
    assert len(logprobs) == len(PROMPT) - 1 and len(ids) == 12
    assert max(logprobs) - min(logprobs) > 0.01, "the model says something"
    for tensor, pipeline in meshes:
        other, other_ids = answers(pb, start, tmp_path, tensor, pipeline)
        worst = max(abs(a - b) for a, b in zip(logprobs, other))
        assert worst <= TOLERANCE, (tensor, pipeline, worst)
        assert other_ids == ids, (tensor, pipeline)
