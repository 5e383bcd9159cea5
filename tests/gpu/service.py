"""A daemon for the checks beside this file, asked by grpcio. Environment: JETD_BINARY, JETD_SOURCE,
JETD_DESCRIPTORS (default: what the build keeps for reflection), JETD_TEST_DEVICE (cpu to try them)."""

import os
import pathlib
import re
import subprocess
import sys
import threading
import types

import grpc
from google.protobuf import descriptor_pb2, message_factory

SOURCE = pathlib.Path(os.environ.get("JETD_SOURCE", pathlib.Path(__file__).parents[2]))
BINARY = os.environ.get("JETD_BINARY", str(SOURCE / "build/release/daemon/jetd"))
DESCRIPTORS = os.environ.get(
    "JETD_DESCRIPTORS",
    str(pathlib.Path(BINARY).parents[1] / "proto/descriptors/jet/v1/generation.set"),
)
FIXTURES = SOURCE / "tests/data/fixtures"
DEMO = SOURCE / "ops/demo-model"
DEVICE = os.environ.get("JETD_TEST_DEVICE", "cuda")
SKIPPED = 77

sys.path.insert(0, str(SOURCE / "tests/e2e"))


def messages():
    """The messages of jet.v1, from the compiled descriptors: no generated code, any protobuf."""
    files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(DESCRIPTORS).read_bytes())
    kinds = message_factory.GetMessages(files.file)
    return types.SimpleNamespace(**{name.rpartition(".")[2]: kinds[name] for name in kinds})


def need_gpu():
    """Ends the program with 77 where there is no GPU."""
    if DEVICE != "cuda":
        return
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        found = ""
    if "GPU" not in found:
        print("no GPU: skipped")
        sys.exit(SKIPPED)


MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "btl", "self,vader",
          "--mca", "btl_vader_single_copy_mechanism", "none", "-n"]  # fmt: skip


class Daemon:
    """jetd while a `with` lasts; on several ranks under mpirun."""

    def __init__(self, *options, ranks=1):
        self.ranks = ranks
        self.command = [BINARY, "--device", DEVICE, "--port", "0", *map(str, options)]
        if ranks > 1:
            self.command = [*MPIRUN, str(ranks), *self.command]
        self.log, self.address, self.said = [], None, threading.Event()

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"serving on (\S+:\S+)", line)
            if found:
                self.address = found.group(1)
                self.said.set()
        self.said.set()

    def __enter__(self):
        self.pb = messages()
        self.process = subprocess.Popen(
            self.command, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        threading.Thread(target=self.read, daemon=True).start()
        assert self.said.wait(120) and self.address, "".join(self.log)
        self.channel = grpc.insecure_channel(self.address)
        self.generate = self.method("Generation", "Generate", self.channel.unary_stream)
        self.rate = self.method("Generation", "Score", self.channel.unary_unary)
        self.drain = self.method("Control", "Drain", self.channel.unary_unary)
        return self

    def method(self, service, name, kind):
        return kind(
            f"/jet.v1.{service}/{name}",
            request_serializer=getattr(self.pb, name + "Request").SerializeToString,
            response_deserializer=getattr(self.pb, name + "Response").FromString,
        )

    def __exit__(self, kind, *_):
        """By Drain, which needs no mpirun that hands signals on."""
        try:
            self.drain(self.pb.DrainRequest(), timeout=10)
            code = self.process.wait(30)
        except (grpc.RpcError, subprocess.TimeoutExpired) as error:
            code = error
            self.process.kill()  # mpirun's ranks end with it
            self.process.wait()
        self.channel.close()
        if kind is not None:
            print("".join(self.log[-20:]))
        elif code != 0:
            raise SystemExit("jetd did not end well: %s\n%s" % (code, "".join(self.log[-20:])))

    def score(self, ids):
        return list(self.rate(self.pb.ScoreRequest(token_ids=self.pb.TokenIds(ids=ids))).logprobs)

    def greedy(self, ids, count):
        """Ids and their log-probabilities."""
        out = [(entry.id, entry.logprob) for entry in self.entries(ids, count, 1)]
        return [token for token, _ in out], [logprob for _, logprob in out]

    def entries(self, ids, count, tops):
        """TokenLogprob of each greedy token, with the `tops` best beside it."""
        request = self.pb.GenerateRequest(
            token_ids=self.pb.TokenIds(ids=ids),
            sampling=self.pb.SamplingParams(temperature=0),
            max_new_tokens=count,
            ignore_eos=True,
            logprobs=tops,
        )
        out = []
        for message in self.generate(request):
            if message.WhichOneof("event") == "delta":
                out += message.delta.logprobs
        return out
