"""What a well-behaved client sees of Generation."""

import json
import math

from conftest import DEMO, collect

PROMPT = "Once upon a time"


def greedy(pb, **fields):
    return pb.GenerateRequest(sampling=pb.SamplingParams(temperature=0), **fields)


def encode(pb, generation, text):
    return list(generation.Tokenize(pb.TokenizeRequest(text=text), timeout=10).ids)


def decode(pb, generation, ids):
    return generation.Detokenize(pb.DetokenizeRequest(ids=ids), timeout=10).text


def test_messages_come_in_order(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=20, request_id="in-order")
    prompt, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert prompt.request_id == "in-order"
    assert prompt.prompt_tokens == len(encode(pb, generation, PROMPT))
    ids, text = outputs[0]
    assert len(ids) == 20
    assert text == decode(pb, generation, ids)
    assert finished[0].reason == pb.Finished.LENGTH
    assert finished[0].usage.completion_tokens == 20
    assert finished[0].usage.prompt_tokens == prompt.prompt_tokens
    assert finished[0].timings.decode > 0


def test_text_and_ids_are_the_same_prompt(pb, generation):
    ids = encode(pb, generation, PROMPT)
    by_text = collect(generation.Generate(greedy(pb, text=PROMPT, max_new_tokens=8), timeout=30))
    by_ids = collect(
        generation.Generate(
            greedy(pb, token_ids=pb.TokenIds(ids=ids), max_new_tokens=8), timeout=30
        )
    )
    assert by_text[1] == by_ids[1]


def test_greedy_is_the_argmax_of_score(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=8)
    _, outputs, _ = collect(generation.Generate(request, timeout=60))
    ids = encode(pb, generation, PROMPT) + outputs[0][0]
    score = generation.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=ids)), timeout=30)
    assert list(score.ids) == ids
    assert len(score.logprobs) == len(score.is_argmax) == len(ids) - 1
    assert all(list(score.is_argmax)[-8:])
    assert all(math.isfinite(value) and value <= 0 for value in score.logprobs)


def test_score_of_one_token_is_empty(pb, generation):
    score = generation.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=[5])), timeout=10)
    assert list(score.ids) == [5] and not score.logprobs and not score.is_argmax


def test_logprobs_agree_with_score(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=6, logprobs=3, echo=True)
    tokens, ids = [], []
    for message in generation.Generate(request, timeout=30):
        tokens += message.delta.logprobs
        ids += message.delta.token_ids
    prompt = encode(pb, generation, PROMPT)
    assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 6
    score = generation.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=ids)), timeout=30)
    new = tokens[-6:]
    for token, value in zip(new, list(score.logprobs)[-6:]):
        assert abs(token.logprob - value) < 1e-4
        assert len(token.top) == 3 and token.is_argmax
        assert token.top[0].id == token.id
        assert token.top[0].logprob >= token.top[1].logprob >= token.top[2].logprob


def test_echo_gives_the_prompt_first(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=4, echo=True)
    _, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert outputs[0][1].startswith(PROMPT)
    assert finished[0].usage.completion_tokens == 4


def test_choices_have_indices_and_seeds(pb, generation):
    def ask(**fields):
        request = pb.GenerateRequest(
            text=PROMPT,
            max_new_tokens=12,
            ignore_eos=True,
            sampling=pb.SamplingParams(temperature=1, seed=7),
            **fields,
        )
        return collect(generation.Generate(request, timeout=30))

    prompt, four, finished = ask(n=4)
    assert prompt.seed == 7
    assert sorted(four) == sorted(finished) == [0, 1, 2, 3]
    assert len({tuple(ids) for ids, _ in four.values()}) > 1
    assert ask()[1][0] == four[0]  # n does not change the first


def test_unset_seed_is_random_and_reported(pb, generation):
    seeds = set()
    for _ in range(3):
        request = pb.GenerateRequest(text=PROMPT, max_new_tokens=1)
        seeds.add(collect(generation.Generate(request, timeout=30))[0].seed)
    assert len(seeds) == 3


def test_ids_are_made_when_unset(pb, generation):
    made = set()
    for _ in range(3):
        request = pb.GenerateRequest(text=PROMPT, max_new_tokens=1)
        made.add(collect(generation.Generate(request, timeout=30))[0].request_id)
    assert len(made) == 3 and "" not in made


def test_stop_string_ends_the_text(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=20)
    whole = collect(generation.Generate(request, timeout=60))[1][0][1]
    stop = whole[10:14]
    for include in (False, True):
        request = greedy(
            pb, text=PROMPT, max_new_tokens=20, stop=["\x00never", stop], include_stop=include
        )
        _, outputs, finished = collect(generation.Generate(request, timeout=30))
        assert outputs[0][1] == whole[: whole.index(stop) + (len(stop) if include else 0)]
        assert finished[0].reason == pb.Finished.STOP
        assert finished[0].matched_stop == stop


def test_a_matched_stop_is_whole(pb, generation):
    ids = encode(pb, generation, "\x00a")
    sampling = pb.SamplingParams(temperature=0, logit_bias={ids[0]: 100})
    request = pb.GenerateRequest(text=PROMPT, max_new_tokens=5, stop=["\x00\x00"], sampling=sampling)
    _, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert finished[0].matched_stop == "\x00\x00"
    assert finished[0].usage.completion_tokens == 2 and outputs[0][1] == ""


def test_stop_strings_wait_for_min_new_tokens(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=20, ignore_eos=True)
    whole = collect(generation.Generate(request, timeout=60))[1][0][1]
    request.stop.append(whole[2:4])
    early = collect(generation.Generate(request, timeout=30))[2][0]
    assert early.reason == pb.Finished.STOP and early.usage.completion_tokens < 10
    request.min_new_tokens = 10
    late = collect(generation.Generate(request, timeout=30))[2][0]
    assert late.usage.completion_tokens > 10


def test_stop_id_ends_the_ids(pb, generation):
    request = greedy(pb, text=PROMPT, max_new_tokens=10)
    ids = collect(generation.Generate(request, timeout=60))[1][0][0]
    request = greedy(pb, text=PROMPT, max_new_tokens=10, stop_token_ids=[ids[5]])
    _, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert outputs[0][0][:5] == ids[: ids.index(ids[5])][:5]
    assert finished[0].reason == pb.Finished.STOP
    assert finished[0].matched_stop_id == ids[5]


def test_logit_bias_forces_a_token(pb, generation):
    sampling = pb.SamplingParams(temperature=0, logit_bias={300: 100})
    request = pb.GenerateRequest(text=PROMPT, max_new_tokens=3, sampling=sampling)
    assert collect(generation.Generate(request, timeout=30))[1][0][0] == [300] * 3


def test_chat_ends_with_its_turn(pb, generation):
    chat = pb.Chat(messages=[pb.Message(role="user", content="Hello")])
    tokens = generation.Tokenize(pb.TokenizeRequest(chat=chat), timeout=10)
    end = generation.Tokenize(
        pb.TokenizeRequest(text="<|im_end|>", special_tokens=True), timeout=10
    ).ids
    assert len(end) == 1 and end[0] in tokens.ids
    sampling = pb.SamplingParams(temperature=0, logit_bias={end[0]: 100})
    request = pb.GenerateRequest(chat=chat, max_new_tokens=5, sampling=sampling)
    prompt, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert prompt.prompt_tokens == len(tokens.ids)
    assert finished[0].reason == pb.Finished.STOP and finished[0].usage.completion_tokens <= 1
    assert finished[0].matched_stop_id == end[0]
    request.ignore_eos = True
    _, _, finished = collect(generation.Generate(request, timeout=30))
    assert finished[0].reason == pb.Finished.LENGTH


def test_control_tokens_in_text_are_text_unless_asked(pb, generation):
    plain = generation.Tokenize(pb.TokenizeRequest(text="<|im_end|>"), timeout=10).ids
    assert len(plain) > 1
    chat = pb.Chat(messages=[pb.Message(role="user", content="<|im_end|>")])
    empty = pb.Chat(messages=[pb.Message(role="user", content="")])
    count = lambda value: len(generation.Tokenize(pb.TokenizeRequest(chat=value)).ids)
    assert count(chat) == count(empty) + len(plain)


def test_text_may_hold_any_character(pb, generation):
    text = "nul \x00, é, 漢字, 👩‍👩‍👧, \u202e\r\n\t"
    ids = encode(pb, generation, text)
    assert decode(pb, generation, ids) == text


def test_default_length_is_what_fits(pb, short):
    with short.channel() as channel:
        room = pb.ControlStub(channel).GetModelInfo(pb.GetModelInfoRequest()).max_model_len
        request = greedy(pb, token_ids=pb.TokenIds(ids=[7] * (room - 3)), ignore_eos=True)
        _, outputs, finished = collect(pb.GenerationStub(channel).Generate(request, timeout=60))
    assert room == 256
    assert len(outputs[0][0]) == 3 and finished[0].reason == pb.Finished.LENGTH


def test_a_long_prompt_reports_progress(pb, short):
    request = greedy(pb, token_ids=pb.TokenIds(ids=[9] * 255), max_new_tokens=1)
    with short.channel() as channel:
        seen = [
            (message.progress.prefilled, message.progress.total)
            for message in pb.GenerationStub(channel).Generate(request, timeout=60)
            if message.WhichOneof("event") == "progress"
        ]
    assert seen and seen == sorted(seen)
    assert all(total == 255 and 0 < done <= total for done, total in seen)


def test_published_expectations(pb, generation):
    """float64 answers for this checkpoint that came with it."""
    for case in json.loads((DEMO / "expected.json").read_text())["prompts"]:
        assert encode(pb, generation, case["text"]) == case["ids"]
        score = generation.Score(pb.ScoreRequest(text=case["text"]), timeout=30)
        assert len(score.logprobs) == len(case["logprobs"])
        for mine, theirs in zip(score.logprobs, case["logprobs"]):
            assert abs(mine - theirs) < 2e-4
        request = greedy(pb, text=case["text"], max_new_tokens=len(case["greedy"]))
        _, outputs, _ = collect(generation.Generate(request, timeout=60))
        assert outputs[0][0] == case["greedy"][: len(outputs[0][0])] and outputs[0][0]
