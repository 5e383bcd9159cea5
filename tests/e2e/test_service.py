"""The port itself: health, reflection, limits, cancels, slow readers, drains, who may connect."""

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from google.protobuf.descriptor_pool import DescriptorPool

from conftest import BINARY, DEMO, Daemon, collect, endless

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "jet.v1.Control",
    "jet.v1.Generation",
]
# Builds with sanitizers are 10 times slower.
LIGHT = "JETD_TEST_LIGHT" in os.environ
LETTERS = 400_000 if LIGHT else 4_000_000  # of one word: two seconds
LONG = 400 if LIGHT else 2000  # tokens: far from done when a test has looked at them
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def eventually(condition, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


PING, GOAWAY = 6, 7  # HTTP/2 frames


def frame(kind, payload=b"", flags=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags, 0, 0, 0, 0]) + payload


def frames(link):
    """(type, flags) of what comes."""
    with link.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            file.read(int.from_bytes(head[:3], "big"))
            yield head[3], head[4]


@pytest.fixture(scope="module", autouse=True)
def pinging(shared):
    """A client without a call that pings every 5.5 s, beside the tests of this file. The fourth ping
    is more than gRPC forgives by itself where they are less than minutes apart. Joined, the thread
    has in `heard` what came back."""
    heard = []

    def ping():
        host, port = shared.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 30) as link:
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4) + frame(4, flags=1))
            for index in range(4):
                time.sleep(5.5 if index else 0)
                link.sendall(frame(PING, bytes(8)))
            link.settimeout(30)
            with contextlib.suppress(TimeoutError):
                for each in frames(link):
                    heard.append(each)
                    if heard.count((PING, 1)) == 4:
                        link.settimeout(1)  # a GOAWAY comes behind the last answer

    thread = threading.Thread(target=ping, daemon=True)
    thread.heard = heard
    thread.start()
    return thread


def idle(pb, control):
    load = control.GetLoad(pb.GetLoadRequest(), timeout=10)
    return load.running == load.waiting == load.slots_used == load.blocks_used == 0


# ---- health and reflection ----


def test_health_check(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in [""] + SERVICES:
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request, timeout=10).status == SERVING
    for service in ("nobody", "jet.v1", "x" * 5000, "jet.v1.Generation\0"):
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_watch(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service, status in (
        ("", SERVING),
        ("jet.v1.Generation", SERVING),
        ("nobody", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN),
    ):
        watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert next(watch).status == status
        watch.cancel()


def test_reflection(channel, pb):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == SERVICES
    pool = DescriptorPool(database)
    generate = pool.FindServiceByName("jet.v1.Generation").FindMethodByName("Generate")
    assert generate.output_type.full_name == "jet.v1.GenerateResponse"
    mine = {field.name: field.number for field in pb.GenerateRequest.DESCRIPTOR.fields}
    theirs = pool.FindMessageTypeByName("jet.v1.GenerateRequest").fields
    assert {field.name: field.number for field in theirs} == mine
    assert pool.FindEnumTypeByName("jet.v1.Finished.Reason").values_by_name["STOP"].number == 1
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("jet.v1.Nothing")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_answers_each_question(channel, version):
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    question = reflection_pb2.ServerReflectionRequest
    extension = reflection_pb2.ExtensionRequest(containing_type="jet.v1.Delta", extension_number=1)
    questions = [
        question(host="h", list_services=""),
        question(file_by_filename="jet/v1/generation.proto"),
        question(file_by_filename="nothing.proto"),
        question(file_containing_symbol="jet.v1.Generation.Score"),
        question(file_containing_symbol="jet.v1.SamplingParams.temperature"),
        question(file_containing_symbol="jet.v1.Sampl"),
        question(file_containing_extension=extension),
        question(all_extension_numbers_of_type="jet.v1.Delta"),
    ] + [question(list_services="")] * 50
    answers = list(ask(iter(questions), timeout=20))
    kinds = [answer.WhichOneof("message_response") for answer in answers]
    services, file, error = (
        "list_services_response",
        "file_descriptor_response",
        "error_response",
    )
    assert kinds == [services, file, error, file, file, error, error, error] + [services] * 50
    assert answers[0].valid_host == "h"
    assert answers[0].original_request == questions[0]
    assert answers[2].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_answers_no_large_question(channel):
    """They are answered, and echoed, where others wait for the thread."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="x" * size)
        for size in (65_000, 66_000)
    ]
    answers = ask(iter(questions), timeout=20)
    assert next(answers).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value


# ---- what it says of itself, and where its options come from ----


def test_server_info(pb, shared, control):
    info = control.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
    version = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.split()[1] == info.version
    assert info.grpc_version and info.device in ("cpu", "cuda") and info.fabric == "self"
    assert (info.mesh.tensor, info.mesh.pipeline, info.mesh.context) == (1, 1, 1)
    assert 0 < info.uptime < 3600
    assert info.limits.max_num_seqs == 8
    assert info.limits.max_message_bytes == 64 << 20
    assert info.limits.max_queued == 1024
    assert info.limits.kv_blocks > 0 and info.limits.block_tokens == 64
    model = control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    assert info.limits.max_model_len == model.max_model_len
    assert (info.limits.max_choices, info.limits.max_logprobs) == (128, 20)
    assert (info.limits.max_stop_strings, info.limits.max_stop_token_ids) == (16, 63)
    assert info.limits.max_logit_bias == 1024


def test_options_from_file_and_environment(pb, start, tmp_path):
    """Command line before environment before file; a Kubernetes Service's variable is no option. And
    without --model it is the demo model."""
    file = tmp_path / "jetd.yaml"
    file.write_text("max-num-seqs: 3\nmax-model-len: 100\nmax-queued-requests: 5\n")
    environment = {
        "JETD_MAX_MODEL_LEN": "200",
        "JETD_MAX_QUEUED_REQUESTS": "6",
        "JETD_MAX_NUM_BATCHED_TOKENS": "77",
        "JETD_BLOCK_SIZE": "tcp://10.0.0.1:50051",
    }
    options = ["--config", str(file), "--max-queued-requests", "7"]
    daemon = start(*options, model=None, environment=environment)
    with daemon.channel() as channel:
        control = pb.ControlStub(channel)
        limits = control.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).limits
        assert (limits.max_num_seqs, limits.max_model_len) == (3, 200)
        assert (limits.max_queued, limits.max_num_batched_tokens) == (7, 77)
        assert limits.block_tokens == 64
        info = control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        assert info.name == "demo-model" and info.tokenizer_size > 0
    assert daemon.stop() == 0
    assert "JETD_BLOCK_SIZE" in daemon.text() and "Kubernetes" in daemon.text()


def test_a_length_without_room_is_named():
    refused = Daemon("--max-model-len", "1")
    assert refused.process.wait(60) == 2
    refused.reader.join(5)
    assert "--max-model-len" in refused.text() and "room" in refused.text(), refused.text()


# ---- what is not there ----


@pytest.mark.parametrize(
    "path", ["/jet.v1.Generation/Nothing", "/nobody.Here/Call", "/", "/jet.v1.Generation/generate"]
)
def test_unknown_methods_answer_at_once(channel, path):
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        call(b"x" * 1000, timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert time.monotonic() - began < 5
    stream = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"x"] * 10), timeout=20))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# ---- ends that are not the model's ----


def test_deadline(pb, generation, control):
    with pytest.raises(grpc.RpcError) as caught:
        collect(generation.Generate(endless(pb), timeout=0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: idle(pb, control))


def test_cancel_gives_everything_back(pb, generation, control):
    calls = [generation.Generate(endless(pb, n=2)) for _ in range(6)]
    for call in calls[:3]:
        next(call)
    for call in calls:
        call.cancel()
    assert eventually(lambda: idle(pb, control))


def test_abort(pb, generation, control):
    call = generation.Generate(endless(pb, request_id="to-abort"))
    assert next(call).prompt.request_id == "to-abort"
    gone = pb.AbortRequest(request_ids=["to-abort", "nobody"])
    assert generation.Abort(gone, timeout=10).aborted == 1
    reasons = []
    with pytest.raises(grpc.RpcError) as caught:
        for message in call:
            if message.WhichOneof("event") == "finished":
                reasons.append(message.finished.reason)
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    assert reasons == [pb.Finished.CANCELLED]
    assert generation.Abort(gone, timeout=10).aborted == 0
    assert eventually(lambda: idle(pb, control))


def test_abort_takes_whole_ids(pb, generation, control):
    call = generation.Generate(endless(pb, request_id="whole"))
    next(call)
    with pytest.raises(grpc.RpcError) as caught:
        generation.Abort(pb.AbortRequest(request_ids=["whole\0more"]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "request_ids[0]" in caught.value.details()
    next(call)
    call.cancel()
    assert eventually(lambda: idle(pb, control))


def test_an_id_is_taken_while_it_lives(pb, generation, control):
    call = generation.Generate(endless(pb, request_id="twin"))
    next(call)
    with pytest.raises(grpc.RpcError) as caught:
        collect(generation.Generate(endless(pb, request_id="twin"), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in caught.value.details()
    call.cancel()
    assert eventually(lambda: idle(pb, control))


def test_many_streams_come_and_go(pb, generation, control):
    failures = []

    def one(index):
        try:
            request = endless(pb, max_new_tokens=20, n=1 + index % 3)
            call = generation.Generate(request, timeout=0.05 if index % 5 == 4 else 60)
            if index % 4 == 3:
                next(call)
                call.cancel()
            else:
                collect(call)
        except grpc.RpcError as error:
            wanted = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
            if error.code() not in wanted or index % 5 != 4 and index % 4 != 3:
                failures.append((index, error))
        except Exception as error:  # an assert in a thread ends nothing by itself
            failures.append((index, error))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert eventually(lambda: idle(pb, control))


def waits(pb, stub, control, request, count, **options):
    """Starts a call and returns it when so many wait."""
    call = stub.Generate(request, **options)
    assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).waiting == count)
    return call


@pytest.fixture(scope="module")
def single(start):
    """One sequence at a time: everything else waits."""
    daemon = start("--max-num-seqs", "1")
    yield daemon
    assert daemon.stop() == 0, daemon.text()


def test_priority_goes_before_arrival(pb, single):
    with single.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        running = stub.Generate(endless(pb))
        next(running)
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).running == 1)
        low = waits(pb, stub, control, endless(pb, max_new_tokens=1), 1)
        high = waits(pb, stub, control, endless(pb, priority=1), 2)
        running.cancel()
        while next(high).WhichOneof("event") != "delta":
            pass
        load = control.GetLoad(pb.GetLoadRequest(), timeout=10)
        assert (load.running, load.waiting) == (1, 1)  # the one that came first
        high.cancel()
        assert collect(low)[2][0].reason == pb.Finished.LENGTH
        assert eventually(lambda: idle(pb, control))


def test_deadline_in_the_queue(pb, single):
    with single.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        running = stub.Generate(endless(pb))
        next(running)
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).running == 1)
        late = waits(pb, stub, control, endless(pb), 1, timeout=2)
        with pytest.raises(grpc.RpcError) as caught:
            collect(late)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).waiting == 0)
        assert control.GetLoad(pb.GetLoadRequest()).running == 1
        running.cancel()
        assert eventually(lambda: idle(pb, control))


# ---- limits ----


def test_a_message_over_the_limit(pb, start):
    daemon = start("--max-message-bytes", "1000000", model=DEMO)
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Tokenize(pb.TokenizeRequest(text="x" * 1_000_000), timeout=10)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        text = "word " * 199_000
        assert len(stub.Tokenize(pb.TokenizeRequest(text=text), timeout=30).ids) >= 199_000
    assert daemon.stop() == 0


def test_large_texts_do_not_hold_up_health(pb, start):
    """More of them at once than there are pollers, and clients that leave in the middle."""
    daemon = start(model=DEMO)
    options = {"grpc.max_receive_message_length": -1}
    with daemon.channel(**options) as busy, daemon.channel() as other:
        stub, health = pb.GenerationStub(busy), health_pb2_grpc.HealthStub(other)
        health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        text = "".join(random.Random(1).choices("etaoinshrdlu", k=LETTERS))
        request = pb.TokenizeRequest(text=text)
        began = time.monotonic()
        assert len(stub.Tokenize(request, timeout=120).ids) > 100
        alone = time.monotonic() - began
        calls = [stub.Tokenize.future(request, timeout=seconds) for seconds in (alone / 10, 120, 120, 120)]
        slowest = 0
        while not all(call.done() for call in calls):
            began = time.monotonic()
            health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)
        assert [len(call.result().ids) > 100 for call in calls[1:]] == [True] * 3
        assert calls[0].code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert slowest < alone, (slowest, alone)  # without the workers it is more
    assert daemon.stop() == 0


def test_large_texts_that_wait_are_bounded(pb, start):
    """Four of the largest messages; the others may come back later."""
    daemon = start("--max-message-bytes", "200000", model=DEMO)
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        request = pb.TokenizeRequest(text="".join(random.Random(1).choices("etaoinshrdlu", k=199_000)))
        calls = [stub.Tokenize.future(request, timeout=60) for _ in range(24)]
        refused = [call for call in calls if call.exception()]
        assert 4 <= len(calls) - len(refused) < 24
        for call in refused:
            assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, call
            assert int(dict(call.trailing_metadata())["retry-after-ms"]) > 0
        assert len(stub.Tokenize(request, timeout=60).ids) > 100
    assert daemon.stop() == 0


def test_a_full_queue_says_when_to_come_back(pb, start):
    daemon = start("--max-queued-requests", "1", "--max-num-seqs", "1")
    with daemon.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        running = stub.Generate(endless(pb))
        assert next(running).prompt.request_id
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).running == 1)
        waiting = stub.Generate(endless(pb))
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).waiting == 1)
        with pytest.raises(grpc.RpcError) as caught:
            collect(stub.Generate(endless(pb), timeout=10))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(caught.value.trailing_metadata())
        assert int(trailers["retry-after-ms"]) > 0
        assert trailers["retry-after-ms"] in caught.value.details()
        bad = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[2**32 - 1]))
        with pytest.raises(grpc.RpcError) as caught:  # nobody looked at the request itself
            collect(stub.Generate(bad, timeout=10))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        running.cancel()
        waiting.cancel()
    assert daemon.stop() == 0


def test_a_slow_reader_holds_only_itself(pb, start):
    daemon = start("--outbox-bytes", "65536", "--outbox-timeout", "0.5", "--max-num-seqs", "16")
    # Without probing, the client's window stays at 64 KiB. Large answers, none of them read.
    with daemon.channel(**{"grpc.http2.bdp_probe": 0}) as slow, daemon.channel() as other:
        request = endless(pb, n=8, logprobs=20, max_new_tokens=3000)
        stalled = pb.GenerationStub(slow).Generate(request)
        stub, control = pb.GenerationStub(other), pb.ControlStub(other)
        for _ in range(3):
            collect(stub.Generate(endless(pb, max_new_tokens=20), timeout=20))
        assert eventually(lambda: idle(pb, control), 60)
        with pytest.raises(grpc.RpcError) as caught:
            collect(stalled)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value
    assert daemon.stop() == 0


def test_a_reader_that_takes_nothing_holds_no_drain(pb, start):
    """All of the answer is in the outbox, which never paused."""
    daemon = start("--outbox-bytes", "8M", "--outbox-timeout", "0.7", "--max-num-seqs", "16")
    with daemon.channel(**{"grpc.http2.bdp_probe": 0}) as channel:
        control = pb.ControlStub(channel)
        stalled = pb.GenerationStub(channel).Generate(
            endless(pb, n=16, logprobs=20, max_new_tokens=50)
        )

        def ended():
            load = control.GetLoad(pb.GetLoadRequest(), timeout=10)
            return load.finished + load.cancelled == 1

        assert eventually(ended)
        daemon.process.send_signal(signal.SIGUSR1)
        assert daemon.process.wait(10) == 0, daemon.text()
        assert "every request finished" in daemon.text()
        stalled.cancel()


# ---- the port ----


def test_a_second_daemon_on_the_port_fails(pb, shared):
    port = shared.address.rsplit(":", 1)[1]
    second = Daemon("--port", port)
    assert second.process.wait(60) != 0
    second.reader.join(5)
    assert "bind" in second.text() and port in second.text(), second.text()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.example.org", "128.0.0.1"])
def test_other_addresses_need_a_word(pb, host):
    refused = Daemon("--host", host)
    assert refused.process.wait(60) != 0
    refused.reader.join(5)
    assert "insecure" in refused.text() and host in refused.text(), refused.text()


def test_other_addresses_with_the_word(pb, start):
    daemon = start("--host", "0.0.0.0", "--insecure")
    port = daemon.address.rsplit(":", 1)[1]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        pb.ControlStub(channel).GetLoad(pb.GetLoadRequest(), timeout=10)
    assert daemon.stop() == 0


# ---- drains ----


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "Drain"])
def test_drain(pb, start, how):
    daemon = start()
    with daemon.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        live = stub.Generate(endless(pb, max_new_tokens=LONG))
        assert eventually(lambda: control.GetLoad(pb.GetLoadRequest()).running == 1)
        if how == "Drain":
            assert control.Drain(pb.DrainRequest(), timeout=10).running == 1
        else:
            daemon.process.send_signal(getattr(signal, how))
        assert next(watch).status == NOT_SERVING
        try:
            late = stub.Generate(endless(pb, max_new_tokens=1), timeout=10)
            collect(late)
            pytest.fail("a request was taken while draining")
        except grpc.RpcError as error:
            wanted = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE)
            assert error.code() in wanted, error
        _, _, finished = collect(live)
        assert finished[0].reason == pb.Finished.LENGTH
        assert finished[0].usage.completion_tokens == LONG
        with pytest.raises(grpc.RpcError):
            list(watch)
    assert daemon.process.wait(30) == 0, daemon.text()


def test_drain_that_takes_too_long(pb, start):
    daemon = start("--drain-timeout", "0.5")
    with daemon.channel() as channel:
        live = pb.GenerationStub(channel).Generate(endless(pb, n=8))
        next(live)
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            collect(live)
        wanted = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert caught.value.code() in wanted
    assert daemon.process.wait(30) == 0, daemon.text()
    assert "cancelled" in daemon.text()


def test_a_drain_can_be_shortened(pb, start):
    """A longer time changes nothing, a shorter one does, each time."""
    daemon = start("--drain-timeout", "600")
    with daemon.channel() as channel:
        control = pb.ControlStub(channel)
        live = pb.GenerationStub(channel).Generate(endless(pb, n=8))
        next(live)
        for seconds in (500, 1000, 0.5):
            control.Drain(pb.DrainRequest(timeout=seconds), timeout=10)
            time.sleep(0.2)
        with pytest.raises(grpc.RpcError):
            collect(live)
    assert daemon.process.wait(30) == 0, daemon.text()
    assert "cancelled" in daemon.text()


# ---- who may connect ----


def certificate(folder, name, *, signer=None, ca=False):
    """key and certificate files made by openssl."""
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
    request += ["-keyout", str(key)]
    extension = "basicConstraints=CA:TRUE" if ca else "subjectAltName=DNS:localhost,IP:127.0.0.1"
    if signer is None:
        request += ["-x509", "-days", "2", "-out", str(cert), "-addext", extension]
        subprocess.run(request, check=True, capture_output=True)
        return key, cert
    csr, settings = folder / f"{name}.csr", folder / f"{name}.cnf"
    settings.write_text(extension + "\n")
    subprocess.run(request + ["-out", str(csr)], check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-in", str(csr), "-CA", str(signer[1])]
    sign += ["-CAkey", str(signer[0]), "-CAcreateserial", "-days", "2", "-out", str(cert)]
    sign += ["-extfile", str(settings)]
    subprocess.run(sign, check=True, capture_output=True)
    return key, cert


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    ca = certificate(folder, "ca", ca=True)
    server = certificate(folder, "localhost", signer=ca)
    client = certificate(folder, "client", signer=ca)
    stranger = certificate(folder, "stranger")
    return {"ca": ca, "server": server, "client": client, "stranger": stranger}


def ask_load(pb, address, ca, client=None, metadata=None):
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), *((file.read_bytes() for file in client) if client else ())
    )
    with grpc.secure_channel(address, credentials) as channel:
        stub = pb.ControlStub(channel)
        return stub.GetLoad(pb.GetLoadRequest(), timeout=10, metadata=metadata)


def test_tls(pb, start, pki):
    key, cert = pki["server"]
    daemon = start("--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--host", "0.0.0.0")
    address = "localhost:" + daemon.address.rsplit(":", 1)[1]
    ask_load(pb, address, pki["ca"][1])
    with pytest.raises(grpc.RpcError):
        ask_load(pb, address, pki["stranger"][1])
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
        pb.ControlStub(channel).GetLoad(pb.GetLoadRequest(), timeout=5)
    assert daemon.stop() == 0


def test_mutual_tls(pb, start, pki):
    key, cert = pki["server"]
    files = ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]
    daemon = start(*files, "--ssl-ca-certs", str(pki["ca"][1]))
    address = "localhost:" + daemon.address.rsplit(":", 1)[1]
    ask_load(pb, address, pki["ca"][1], pki["client"])
    for client in (None, pki["stranger"]):
        with pytest.raises(grpc.RpcError):
            ask_load(pb, address, pki["ca"][1], client)
    assert daemon.stop() == 0


def test_bad_certificates_are_named(pki, tmp_path):
    key, cert = map(str, pki["server"])
    broken, empty = tmp_path / "broken.pem", tmp_path / "empty.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")
    empty.write_text("")
    other = str(pki["client"][0])
    for certfile, keyfile, named in (
        (str(tmp_path / "absent.pem"), key, "absent.pem"),
        (str(empty), key, "empty.pem"),
        (key, cert, "localhost.key"),
        (str(broken), key, "broken.pem"),
        (cert, other, "client.key"),
    ):
        daemon = Daemon("--ssl-certfile", certfile, "--ssl-keyfile", keyfile)
        assert daemon.process.wait(60) != 0
        daemon.reader.join(5)
        assert named in daemon.text(), daemon.text()


def test_bearer_tokens_guard_every_method(pb, start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-secret\nsecond-secret\n")
    keys.chmod(0o600)
    daemon = start("--api-key-file", str(keys))
    with daemon.channel() as channel:
        control = pb.ControlStub(channel)
        for token in ("first-secret", "second-secret"):
            for scheme in ("Bearer", "bearer"):
                metadata = [("authorization", f"{scheme} {token}")]
                control.GetLoad(pb.GetLoadRequest(), timeout=10, metadata=metadata)
        good = ("authorization", "Bearer first-secret")
        paths = [f"/{service}/{name}" for service, name in (
            ("jet.v1.Generation", "Generate"), ("jet.v1.Generation", "Score"),
            ("jet.v1.Generation", "Tokenize"), ("jet.v1.Generation", "Detokenize"),
            ("jet.v1.Generation", "Abort"), ("jet.v1.Control", "GetModelInfo"),
            ("jet.v1.Control", "Drain"), ("grpc.health.v1.Health", "Check"),
            ("grpc.health.v1.Health", "Watch"), ("no.Such", "Method"),
            ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
        )]
        for path in paths:
            call = channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
            for metadata in (
                None,
                [("authorization", "Bearer ")],
                [("authorization", "Bearer first-secre")],
                [("authorization", "Bearer first-secretx")],
                [("authorization", "Basic first-secret")],
                [("authorization", "first-secret")],
                [("authorization", "Bearer first-secretfirst-secret")],
                [good, ("authorization", "Bearer wrong")],
                [("authorization", "Bearer wrong"), good],
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    list(call(iter([b""]), timeout=10, metadata=metadata))
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, (path, metadata)
    assert "secret" not in daemon.text()
    assert daemon.stop() == 0


# ---- clients that do not speak properly ----


def test_noise_on_the_port(pb, shared, generation, control):
    host, port = shared.address.rsplit(":", 1)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 9):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(noise)
    control.GetLoad(pb.GetLoadRequest(), timeout=10)
    collect(generation.Generate(endless(pb, max_new_tokens=2), timeout=20))


# ---- what began with the first test ----


def test_pings_are_allowed(pinging):
    pinging.join(60)
    assert pinging.heard.count((PING, 1)) == 4, pinging.heard
    assert GOAWAY not in [kind for kind, _ in pinging.heard]
