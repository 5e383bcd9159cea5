"""Starts a daemon on a free port and talks to it with grpcio, from stubs made of the project's own
.proto files. Environment: JETD_BINARY, JETCTL_BINARY, JETD_SOURCE."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import types

import grpc
import pytest
from grpc_tools import protoc

SOURCE = pathlib.Path(os.environ.get("JETD_SOURCE", pathlib.Path(__file__).parents[2]))
BINARY = os.environ.get("JETD_BINARY", str(SOURCE / "build/release/daemon/jetd"))
JETCTL = os.environ.get("JETCTL_BINARY", str(SOURCE / "build/release/daemon/jetctl"))
DEMO = SOURCE / "ops/demo-model"
TINY = SOURCE / "tests/data/fixtures/tiny-f32"
START_SECONDS = 120
# The tolerances are those of f32, and several daemons would share a GPU (tests/gpu has its own).
os.environ.setdefault("JETD_DEVICE", "cpu")


@pytest.fixture(scope="session")
def pb(tmp_path_factory):
    """The messages of jet.v1."""
    out = tmp_path_factory.mktemp("stubs")
    root = SOURCE / "proto"
    code = protoc.main(
        ["protoc", f"-I{root}", f"--python_out={out}", f"--grpc_python_out={out}"]
        + [str(root / "jet/v1/generation.proto")]
    )
    assert code == 0
    sys.path.insert(0, str(out))
    from jet.v1 import generation_pb2, generation_pb2_grpc

    names = dict(vars(generation_pb2))
    names["GenerationStub"] = generation_pb2_grpc.GenerationStub
    names["ControlStub"] = generation_pb2_grpc.ControlStub
    return types.SimpleNamespace(**names)


class Daemon:
    """One jetd process; `address` once it says that it serves. model None: its own default."""

    def __init__(self, *options, model=TINY, environment=None, ranks=0):
        mpirun = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks else []
        folder = ["--model", str(model)] if model else []
        command = [*mpirun, BINARY, *folder, "--port", "0", "--metrics-port", "-1", *options]
        self.log = []
        self.address = None
        self.serving = threading.Event()
        variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **(environment or {})}
        variables["OMPI_ALLOW_RUN_AS_ROOT"] = variables["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        if ranks:
            variables["ASAN_OPTIONS"] = "detect_leaks=0"  # Open MPI's own
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, errors="replace", env=variables
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"serving on (\S+:\S+)", line)
            if found:
                self.address = found.group(1)
                self.serving.set()
        self.serving.set()

    def wait(self):
        assert self.serving.wait(START_SECONDS), "".join(self.log)
        assert self.address, "".join(self.log)
        return self

    def channel(self, **options):
        return grpc.insecure_channel(self.address, options=list(options.items()))

    def stop(self, number=signal.SIGTERM, seconds=30):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.reader.join(5)
        return code

    def text(self):
        return "".join(self.log)


@pytest.fixture(scope="session")
def start():
    """Starts daemons and ends those a test left behind."""
    started = []

    def run(*options, **keywords):
        daemon = Daemon(*options, **keywords)
        started.append(daemon)
        return daemon.wait()

    yield run
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


@pytest.fixture(scope="session")
def shared(start):
    """The daemon most tests share: the demo model, which has a tokenizer."""
    daemon = start("--max-num-seqs", "8", model=DEMO)
    yield daemon
    code = daemon.stop()
    assert code == 0, daemon.text()
    assert not re.search(r"\berror\b", daemon.text(), re.IGNORECASE), daemon.text()


@pytest.fixture(scope="session")
def short(start):
    """The same with short sequences and small steps: the longest prompt is cheap."""
    daemon = start(
        "--max-num-seqs", "8", "--max-model-len", "256", "--max-num-batched-tokens", "64", model=DEMO
    )
    yield daemon
    assert daemon.stop() == 0, daemon.text()


@pytest.fixture(scope="session")
def ids_only(start):
    """A daemon whose checkpoint has no tokenizer."""
    daemon = start(model=TINY)
    yield daemon
    assert daemon.stop() == 0, daemon.text()


@pytest.fixture(scope="session")
def channel(shared):
    with shared.channel() as open_channel:
        yield open_channel


@pytest.fixture(scope="session")
def generation(pb, channel):
    return pb.GenerationStub(channel)


@pytest.fixture(scope="session")
def control(pb, channel):
    return pb.ControlStub(channel)


def endless(pb, **fields):
    """A request that runs for long."""
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 3]), ignore_eos=True, **fields)


def collect(stream):
    """prompt, {index: (ids, text)}, {index: finished} of a Generate stream."""
    prompt, outputs, finished = None, {}, {}
    for message in stream:
        kind = message.WhichOneof("event")
        if kind == "prompt":
            assert prompt is None and not outputs and not finished
            prompt = message.prompt
        elif kind == "delta":
            assert message.delta.index not in finished
            ids, text = outputs.get(message.delta.index, ([], ""))
            outputs[message.delta.index] = (
                ids + list(message.delta.token_ids),
                text + message.delta.text,
            )
        elif kind == "finished":
            assert message.finished.index not in finished
            finished[message.finished.index] = message.finished
    return prompt, outputs, finished
