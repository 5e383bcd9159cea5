"""Fixtures through the gRPC API on every mesh: Score and greedy Generate against float64."""

import json
import signal

import pytest
from conftest import DEMO, SOURCE
from fixture import Answers

FIXTURES = SOURCE / "tests/data/fixtures"
TOLERANCE = 2e-4

THREADS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (2, 4)]
FEW = [(1, 1), (2, 1), (1, 2), (2, 2)]
CASES = (
    [("tiny-f32", "threads", *mesh) for mesh in THREADS]
    + [("tiny-f32", "mpi", *mesh) for mesh in FEW]
    + [("tiny-bf16-sharded", fabric, *mesh) for fabric in ("threads", "mpi") for mesh in FEW]
)


def launch(start, model, fabric, tensor, pipeline, *options):
    mesh = ["--device", "cpu", "--tensor-parallel-size", str(tensor)]
    mesh += ["--pipeline-parallel-size", str(pipeline), *options]
    if fabric == "mpi":
        return start(*mesh, model=model, ranks=tensor * pipeline)
    return start("--fabric", "threads", *mesh, model=model)


def check_score(response, ids, logprobs):
    assert list(response.ids) == ids
    assert len(response.logprobs) == len(ids) - 1 == len(response.is_argmax)
    worst = max(abs(a - b) for a, b in zip(response.logprobs, logprobs))
    assert worst <= TOLERANCE, worst


def greedy(pb, stub, prompt, count):
    """Greedy ids with their log-probabilities."""
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0),
        max_new_tokens=count,
        ignore_eos=True,
        logprobs=5,
    )
    ids, entries = [], []
    for message in stub.Generate(request):
        if message.WhichOneof("event") == "delta":
            ids += message.delta.token_ids
            entries += message.delta.logprobs
    return ids, entries


@pytest.mark.parametrize("name,fabric,tensor,pipeline", CASES)
def test_fixture(pb, start, name, fabric, tensor, pipeline):
    answers = Answers(FIXTURES / name)
    # 64 tokens a step: the prompt of 200 is read in ragged chunks.
    daemon = launch(
        start, FIXTURES / name, fabric, tensor, pipeline, "--max-num-batched-tokens", "64"
    )
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        response = stub.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=answers.prompt)))
        check_score(response, answers.prompt, answers.logprobs)
        for t, flag in enumerate(response.is_argmax):
            row = answers.rows[t]
            ordered = sorted(row, reverse=True)
            if ordered[0] - ordered[1] > 2 * TOLERANCE:
                assert flag == (row[answers.prompt[t + 1]] == ordered[0]), t
        ids, entries = greedy(pb, stub, answers.prompt, len(answers.greedy))
        assert ids == answers.greedy
        # The first new token's distribution is the last row of the fixture.
        row = answers.rows[-1]
        best = sorted(range(len(row)), key=lambda i: -row[i])[:5]
        assert [top.id for top in entries[0].top] == best
        for top in entries[0].top:
            assert abs(top.logprob - row[top.id]) <= TOLERANCE
    assert daemon.stop(signal.SIGUSR1) == 0, daemon.text()


@pytest.mark.parametrize("fabric,tensor,pipeline", [("threads", 1, 1), ("mpi", 2, 2)])
def test_demo_model(pb, start, fabric, tensor, pipeline):
    expected = json.loads((DEMO / "expected.json").read_text())
    daemon = launch(start, DEMO, fabric, tensor, pipeline)
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        for case in [*expected["prompts"], expected["heldout"]]:
            tokens = stub.Tokenize(pb.TokenizeRequest(text=case["text"]))
            assert list(tokens.ids) == case["ids"]
            response = stub.Score(pb.ScoreRequest(text=case["text"]))
            check_score(response, case["ids"], case["logprobs"])
            if case["greedy"]:
                ids, _ = greedy(pb, stub, case["ids"], len(case["greedy"]))
                assert ids == case["greedy"]
    assert daemon.stop(signal.SIGUSR1) == 0, daemon.text()
