"""Requests that must be refused by name, and the daemon that must serve on."""

import math

import grpc
import pytest

from conftest import DEMO, collect

NAN, INF = float("nan"), float("inf")
FLOAT_MAX = 3.4028234663852886e38
U32, U64 = 2**32 - 1, 2**64 - 1


@pytest.fixture(scope="module")
def channel(short):
    with short.channel() as open_channel:
        yield open_channel


@pytest.fixture(scope="module")
def generation(pb, channel):
    return pb.GenerationStub(channel)


@pytest.fixture(scope="module")
def control(pb, channel):
    return pb.ControlStub(channel)


def refused(call, code, *names):
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call():
            pass
    assert caught.value.code() == code, caught.value
    for name in names:
        assert name in caught.value.details(), caught.value.details()


def serves_on(pb, generation):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), max_new_tokens=2)
    _, outputs, finished = collect(generation.Generate(request, timeout=30))
    assert finished[0].reason in (pb.Finished.LENGTH, pb.Finished.STOP)


# field, values that are refused, values that are taken
SAMPLING = [
    ("temperature", [-1, -1e-9, 100.1, 1e30, FLOAT_MAX, NAN, INF, -INF], [0, 1e-30, 0.5, 100]),
    ("top_p", [0, -1, 1.001, 2, FLOAT_MAX, NAN, INF, -INF], [1e-30, 0.5, 1]),
    ("top_k", [2**31, U32], [0, 1, 50, 2**31 - 1]),
    ("min_p", [-1, 1.001, FLOAT_MAX, NAN, INF, -INF], [0, 0.5, 1]),
    ("repetition_penalty", [0, -1, 0.009, 100.1, NAN, INF, -INF, FLOAT_MAX], [0.01, 1, 100]),
    ("presence_penalty", [-2.1, 2.1, NAN, INF, -INF, FLOAT_MAX], [-2, 0, 2]),
    ("frequency_penalty", [-2.1, 2.1, NAN, INF, -INF, FLOAT_MAX], [-2, 0, 2]),
    ("seed", [], [0, 1, U64]),
]


@pytest.mark.parametrize("field,bad,good", SAMPLING, ids=[row[0] for row in SAMPLING])
def test_sampling(pb, generation, field, bad, good):
    def request(value):
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[1]),
            max_new_tokens=1,
            sampling=pb.SamplingParams(**{field: value}),
        )

    for value in bad:
        refused(
            lambda: generation.Generate(request(value), timeout=10),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sampling." + field,
        )
    for value in good:
        collect(generation.Generate(request(value), timeout=10))
    serves_on(pb, generation)


def cases(pb, vocab, room):
    """name in the message, fields of the request."""
    ids = lambda *values: pb.TokenIds(ids=values)
    chat = lambda *messages: pb.Chat(messages=[pb.Message(role=r, content=c) for r, c in messages])
    one = {"token_ids": ids(1), "max_new_tokens": 1}
    bias = lambda pairs: {**one, "sampling": pb.SamplingParams(logit_bias=pairs)}
    return [
        ("prompt", {}),
        ("text", {"text": ""}),
        ("token_ids", {"token_ids": ids()}),
        ("token_ids", {"token_ids": ids(vocab)}),
        ("token_ids", {"token_ids": ids(1, 2, vocab + 1)}),
        ("token_ids", {"token_ids": ids(2**31 - 1)}),
        ("token_ids", {"token_ids": ids(2**31)}),
        ("token_ids", {"token_ids": ids(U32)}),
        ("token_ids", {"token_ids": ids(*[1] * room)}),
        ("token_ids", {"token_ids": ids(*[1] * (room + 1))}),
        ("token_ids", {"token_ids": ids(*[1] * 1000000)}),
        ("text", {"text": "word " * (room + 1)}),
        ("text: 4000000 bytes are at least", {"text": "word " * 800000}),
        ("chat: 4000000 bytes are at least", {"chat": chat(("user", "word " * 800000))}),
        ("chat", {"chat": chat()}),
        ("chat", {"chat": chat(("", "Hi"))}),
        ("chat", {"chat": chat(("user", "word " * room))}),
        ("max_new_tokens", {**one, "max_new_tokens": room}),
        ("max_new_tokens", {**one, "max_new_tokens": 2**31}),
        ("max_new_tokens", {**one, "max_new_tokens": U32}),
        ("min_new_tokens", {**one, "min_new_tokens": 2}),
        ("min_new_tokens", {**one, "min_new_tokens": 2**31}),
        ("min_new_tokens", {**one, "min_new_tokens": U32}),
        ("stop", {**one, "stop": [""]}),
        ("stop", {**one, "stop": ["x" * 1025]}),
        ("stop", {**one, "stop": [str(i) for i in range(17)]}),
        ("stop_token_ids", {**one, "stop_token_ids": [vocab]}),
        ("stop_token_ids", {**one, "stop_token_ids": [U32]}),
        ("stop_token_ids", {**one, "stop_token_ids": [1] * 64}),
        ("n", {**one, "n": 129}),
        ("n", {**one, "n": 2**31}),
        ("n", {**one, "n": U32}),
        ("logprobs", {**one, "logprobs": 21}),
        ("logprobs", {**one, "logprobs": 2**31}),
        ("logprobs", {**one, "logprobs": U32}),
        ("request_id", {**one, "request_id": "x" * 129}),
        ("request_id", {**one, "request_id": "a\0b"}),
        ("cache_salt", {**one, "cache_salt": "x" * 257}),
        ("sampling.logit_bias", bias({vocab: 1})),
        ("sampling.logit_bias", bias({U32: 1})),
        ("sampling.logit_bias", bias({1: NAN})),
        ("sampling.logit_bias", bias({1: INF})),
        ("sampling.logit_bias", bias({1: 100.5})),
        ("sampling.logit_bias", bias({1: -100.5})),
        ("sampling.logit_bias", bias({i: 1 for i in range(1025)})),
    ]


def taken(pb, vocab, room):
    """The last value on the right side of each limit."""
    ids = lambda *values: pb.TokenIds(ids=values)
    one = {"token_ids": ids(1), "max_new_tokens": 1}
    bias = lambda pairs: {**one, "sampling": pb.SamplingParams(logit_bias=pairs)}
    return [
        {**one, "token_ids": ids(0, vocab - 1)},
        {**one, "token_ids": ids(*[1] * (room - 1))},
        {**one, "min_new_tokens": 1},
        {**one, "stop": ["x" * 1024] * 16},
        {**one, "stop_token_ids": [0, vocab - 1] * 31 + [5]},
        {**one, "n": 0},
        {**one, "n": 128},
        {**one, "logprobs": 20},
        {**one, "request_id": "x" * 128},
        {**one, "request_id": "é\n\x1b[31m"},
        {**one, "cache_salt": "x" * 256},
        {**one, "priority": 2**31 - 1},
        {**one, "priority": -(2**31)},
        bias({vocab - 1: 100, 0: -100}),
        bias({i: 1 for i in range(1024)}),
    ]


def test_fields(pb, generation, control):
    info = control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    for name, fields in cases(pb, info.vocab_size, info.max_model_len):
        refused(
            lambda: generation.Generate(pb.GenerateRequest(**fields), timeout=20),
            grpc.StatusCode.INVALID_ARGUMENT,
            name,
        )
    for fields in taken(pb, info.vocab_size, info.max_model_len):
        collect(generation.Generate(pb.GenerateRequest(**fields), timeout=60))
    serves_on(pb, generation)


def test_sessions_are_unimplemented_by_name(pb, generation, control):
    for field in ("session", "save_session"):
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), **{field: "x"})
        refused(
            lambda: generation.Generate(request, timeout=10),
            grpc.StatusCode.UNIMPLEMENTED,
            field,
        )
    for method, request in (
        (control.ListSessions, pb.ListSessionsRequest()),
        (control.DeleteSession, pb.DeleteSessionRequest(session="x")),
        (control.ForkSession, pb.ForkSessionRequest(session="x", save_session="y")),
    ):
        refused(lambda: [method(request, timeout=10)], grpc.StatusCode.UNIMPLEMENTED, "session")


def test_score_fields(pb, generation, control):
    info = control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    ids = lambda *values: {"token_ids": pb.TokenIds(ids=values)}
    for name, fields in (
        ("prompt", {}),
        ("text", {"text": ""}),
        ("token_ids", ids()),
        ("token_ids", ids(info.vocab_size)),
        ("token_ids", ids(U32)),
        ("token_ids", ids(*[1] * (info.max_model_len + 1))),
        ("request_id", {**ids(1), "request_id": "x" * 129}),
    ):
        refused(
            lambda: [generation.Score(pb.ScoreRequest(**fields), timeout=10)],
            grpc.StatusCode.INVALID_ARGUMENT,
            name,
        )
    whole = pb.ScoreRequest(**ids(*[1] * info.max_model_len))
    assert len(generation.Score(whole, timeout=60).ids) == info.max_model_len


def test_text_methods(pb, generation, control):
    vocab = control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10).vocab_size
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    refused(lambda: [generation.Tokenize(pb.TokenizeRequest(), timeout=10)], invalid, "prompt")
    for value in (vocab, 2**31, U32):
        request = pb.DetokenizeRequest(ids=[1, value])
        refused(lambda: [generation.Detokenize(request, timeout=10)], invalid, "ids[1]")
    for ids in ([""], ["x" * 129], ["x"] * 1025, ["x", "a\0b"]):
        request = pb.AbortRequest(request_ids=ids)
        refused(lambda: [generation.Abort(request, timeout=10)], invalid, "request_ids")
    for value in (-1, NAN, INF, 1e7):
        request = pb.DrainRequest(timeout=value)
        refused(lambda: [control.Drain(request, timeout=10)], invalid, "timeout")
    assert not list(generation.Tokenize(pb.TokenizeRequest(text=""), timeout=10).ids)
    assert generation.Detokenize(pb.DetokenizeRequest(), timeout=10).text == ""
    serves_on(pb, generation)


def test_detokenize_is_bounded(pb, start):
    """Ids of two bytes whose tokens are long: the answer would be many times the request."""
    daemon = start("--max-message-bytes", "200000", model=DEMO)
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        words = stub.Tokenize(pb.TokenizeRequest(text=" understanding" * 3), timeout=10).ids
        longest = max(words, key=lambda i: len(stub.Detokenize(pb.DetokenizeRequest(ids=[i])).text))
        size = len(stub.Detokenize(pb.DetokenizeRequest(ids=[longest]), timeout=10).text)
        fits = 200000 // size
        assert len(stub.Detokenize(pb.DetokenizeRequest(ids=[longest] * fits), timeout=10).text) == fits * size
        request = pb.DetokenizeRequest(ids=[longest] * (fits + 1))
        text = f"ids: their text has {(fits + 1) * size} bytes"
        refused(lambda: [stub.Detokenize(request, timeout=10)], grpc.StatusCode.INVALID_ARGUMENT, text)
        broken = stub.Tokenize(pb.TokenizeRequest(text="\u0390"), timeout=10).ids[:1]
        assert stub.Detokenize(pb.DetokenizeRequest(ids=broken), timeout=10).text == "\ufffd"
        request = pb.DetokenizeRequest(ids=list(broken) * 70000)  # three bytes for each of one
        refused(lambda: [stub.Detokenize(request, timeout=10)], grpc.StatusCode.INVALID_ARGUMENT, "ids")
    assert daemon.stop() == 0


# ---- bytes that no protobuf library would send ----


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def length_delimited(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def strings_of(descriptor):
    """(path, wire function) of each string field that a request can hold, however deep."""
    for field in descriptor.fields:
        if field.message_type is None:
            if field.type == field.TYPE_STRING:
                yield field.name, lambda data, n=field.number: length_delimited(n, data)
        elif field.message_type is not descriptor:
            for path, wire in strings_of(field.message_type):
                yield f"{field.name}.{path}", lambda data, n=field.number, w=wire: (
                    length_delimited(n, w(data))
                )


REQUESTS = [
    ("Generation/Generate", "GenerateRequest"),
    ("Generation/Score", "ScoreRequest"),
    ("Generation/Tokenize", "TokenizeRequest"),
    ("Generation/Abort", "AbortRequest"),
    ("Control/DeleteSession", "DeleteSessionRequest"),
    ("Control/ForkSession", "ForkSessionRequest"),
]


def raw(channel, method):
    return channel.unary_stream(
        "/jet.v1." + method, request_serializer=bytes, response_deserializer=bytes
    )


@pytest.mark.parametrize("method,message", REQUESTS)
def test_broken_utf8_names_the_field(pb, channel, generation, method, message):
    found = 0
    for path, wire in strings_of(getattr(pb, message).DESCRIPTOR):
        for bad in (b"\xff\xfe", b"ok\xc0\x80", b"\xed\xa0\x80", b"cut \xe6\xbc", b"\xf4\x90\x80\x80"):
            with pytest.raises(grpc.RpcError) as caught:
                list(raw(channel, method)(wire(bad), timeout=10))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
            for part in path.split("."):
                assert part in caught.value.details(), (path, caught.value.details())
            found += 1
    assert found
    serves_on(pb, generation)


def test_bytes_that_are_no_message(pb, channel, generation):
    good = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), max_new_tokens=1)
    for bad in (
        b"\x07",
        b"\xff" * 40,
        b"\x12\xff\xff\xff\xff\x0f",  # a string of 4 GiB
        good.SerializeToString()[:-1],
        varint(3 << 3 | 2) + b"\x05\x0a\x03\x80\x80\x80",  # an id that never ends
        length_delimited(5, b"\x0d\x00"),  # half a float
    ):
        refused(
            lambda: raw(channel, "Generation/Generate")(bad, timeout=10),
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    serves_on(pb, generation)


def test_small_bytes_cannot_take_much_memory(pb, channel, generation):
    entries = length_delimited(9, b"") * 2_000_000  # 2 bytes each, 40 when unpacked
    refused(
        lambda: raw(channel, "Generation/Generate")(length_delimited(5, entries), timeout=30),
        grpc.StatusCode.INVALID_ARGUMENT,
        "unpack",
    )
    serves_on(pb, generation)


def test_unknown_fields_are_ignored(pb, channel, generation):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), max_new_tokens=1)
    extra = request.SerializeToString() + length_delimited(1000, b"\xff\xfe") + varint(999 << 3) + b"\x01"
    assert len(list(raw(channel, "Generation/Generate")(extra, timeout=10))) >= 2


def test_without_a_tokenizer(pb, ids_only):
    with ids_only.channel() as channel:
        stub = pb.GenerationStub(channel)
        info = pb.ControlStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        assert info.tokenizer_size == 0
        failed = grpc.StatusCode.FAILED_PRECONDITION
        chat = pb.Chat(messages=[pb.Message(role="user", content="Hi")])
        for name, fields in (
            ("text", {"text": "Hi"}),
            ("chat", {"chat": chat}),
            ("stop", {"token_ids": pb.TokenIds(ids=[1]), "stop": ["x"]}),
        ):
            refused(
                lambda: stub.Generate(pb.GenerateRequest(**fields), timeout=10), failed, name
            )
        refused(lambda: [stub.Score(pb.ScoreRequest(text="Hi"), timeout=10)], failed, "text")
        refused(lambda: [stub.Tokenize(pb.TokenizeRequest(text="Hi"), timeout=10)], failed, "text")
        refused(lambda: [stub.Detokenize(pb.DetokenizeRequest(ids=[1]), timeout=10)], failed, "text")
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), max_new_tokens=3)
        _, outputs, _ = collect(stub.Generate(request, timeout=10))
        assert len(outputs[0][0]) == 3 and outputs[0][1] == ""
        score = stub.Score(pb.ScoreRequest(token_ids=pb.TokenIds(ids=[1, 2, 3])), timeout=10)
        assert len(score.logprobs) == 2 and all(math.isfinite(x) for x in score.logprobs)
