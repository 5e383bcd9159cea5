"""The way down: whatever a peer leaves half done, a drain ends within its time, with exit code 0."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from conftest import DEMO, collect, endless

# Builds with sanitizers are slow.
LIVE_TOKENS = 300 if "JETD_TEST_LIGHT" in os.environ else 1500


def silent(daemon):
    """A connection that never says a word."""
    host, port = daemon.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)))


def greeted(daemon):
    """A connection that said HTTP/2 and no more, and answers no ping."""
    raw = silent(daemon)
    raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    return raw


class HalfACall:
    """The headers of a unary call without its message."""

    def __init__(self, daemon):
        self.done = threading.Event()
        self.channel = daemon.channel()
        method = self.channel.stream_unary(
            "/jet.v1.Generation/Generate", request_serializer=bytes, response_deserializer=bytes)
        self.call = method.future(self.messages())

    def messages(self):
        self.done.wait(60)
        yield b""

    def close(self):
        self.done.set()
        self.channel.close()


class OpenReflection:
    """A reflection stream that waits for the next question."""

    def __init__(self, daemon):
        self.done = threading.Event()
        self.channel = daemon.channel()
        ask = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        answers = ask(self.questions())
        assert next(answers).WhichOneof("message_response") == "list_services_response"

    def questions(self):
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        self.done.wait(60)

    def close(self):
        self.done.set()
        self.channel.close()


class Frozen:
    """A client process that made a call and was then stopped."""

    def __init__(self, daemon):
        program = (f"import grpc, time; c = grpc.insecure_channel('{daemon.address}'); "
                   "c.unary_unary('/grpc.health.v1.Health/Check')(b''); print('ok', flush=True); time.sleep(60)")
        self.process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ok\n"
        os.kill(self.process.pid, signal.SIGSTOP)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("peer", [silent, greeted, HalfACall, OpenReflection, Frozen])
def test_no_peer_holds_the_end(start, peer):
    daemon = start("--drain-timeout", "10")
    left = peer(daemon)
    time.sleep(0.3)
    began = time.monotonic()
    assert daemon.stop() == 0, daemon.text()
    assert time.monotonic() - began < 8
    assert "every request finished" in daemon.text(), daemon.text()
    left.close()


@pytest.mark.parametrize("first", ["Drain", "SIGUSR1"])
def test_sigterm_after_a_drain_began_lets_it_go_on(pb, start, first):
    """As Kubernetes does it: a preStop hook drains, then SIGTERM comes."""
    daemon = start()
    with daemon.channel() as channel:
        stub, control = pb.GenerationStub(channel), pb.ControlStub(channel)
        live = stub.Generate(endless(pb, max_new_tokens=LIVE_TOKENS))
        next(live)
        if first == "Drain":
            control.Drain(pb.DrainRequest(), timeout=10)
        else:
            daemon.process.send_signal(signal.SIGUSR1)
        while "draining:" not in daemon.text():
            time.sleep(0.01)
        daemon.process.send_signal(signal.SIGTERM)
        _, _, finished = collect(live)
        assert finished[0].usage.completion_tokens == LIVE_TOKENS
    assert daemon.process.wait(30) == 0, daemon.text()


def test_a_second_sigterm_ends_at_once(pb, start):
    daemon = start("--drain-timeout", "60")
    with daemon.channel() as channel:
        live = pb.GenerationStub(channel).Generate(endless(pb, n=8))
        next(live)
        daemon.process.send_signal(signal.SIGTERM)
        while "draining:" not in daemon.text():
            time.sleep(0.01)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 1
    assert "second Terminated" in daemon.text()


def peak_of(daemon):
    with open(f"/proc/{daemon.process.pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) << 10


def test_compressed_messages_are_refused(start):
    """100 MB that fit in 100 KB: refused without being inflated."""
    daemon = start("--max-message-bytes", "1000000", model=DEMO)
    size = 100_000_000
    prefix = b"\x0a" + bytes(0x80 | size >> shift & 127 for shift in (0, 7, 14)) + bytes([size >> 21])
    before = peak_of(daemon)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(daemon.address, compression=grpc.Compression.Gzip, options=options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/jet.v1.Generation/Tokenize")(prefix + b"a" * size, timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert peak_of(daemon) - before < size // 4
    assert daemon.stop() == 0, daemon.text()
