"""What jetd says before it serves, or instead: hostile checkpoint folders, plans, long lengths."""

import json
import shutil
import signal
import struct
import subprocess
import time

import grpc
import pytest

from conftest import BINARY, TINY, Daemon

SECONDS = 20  # a daemon that serves, or waits for somebody, is ended as a failure


def run(*options):
    """exit code, stdout, stderr of a daemon that is not expected to serve."""
    done = subprocess.run(
        [BINARY, "--port", "0", "--device", "cpu", *options],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


# ---- folders that are no model ----


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy)
    return copy


def header_of(data):
    (length,) = struct.unpack_from("<Q", data)
    return 8 + length, json.loads(data[8 : 8 + length])


def lfs_pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "5" * 64 + "\nsize 123456\n"
    )


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def header_too_long(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + data[8:])


def not_a_number(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    start, header = header_of(data)
    struct.pack_into("<f", data, start + header["model.norm.weight"]["data_offsets"][0], float("nan"))
    (folder / "model.safetensors").write_bytes(data)


def outside(folder):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    _, header = header_of((folder.parent / "x.safetensors").read_bytes())
    names = [name for name in header if name != "__metadata__"]
    index = {"metadata": {}, "weight_map": {name: "../x.safetensors" for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def config_with(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def unknown_layer(folder):
    config_with(folder, lambda config: config["layer_types"].__setitem__(1, "mamba"))


def unknown_rope(folder):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0}
    config_with(folder, lambda config: config.update(rope_parameters=rope))


@pytest.mark.parametrize(
    "spoil,names",
    [
        (lfs_pointer, ["model.safetensors", "LFS"]),
        (truncated, ["model.safetensors", "bytes"]),
        (header_too_long, ["model.safetensors", "header", str(2**62)]),
        (not_a_number, ["model.safetensors", "model.norm.weight"]),
        (outside, ["model.safetensors.index.json", "../x.safetensors"]),
        (unknown_layer, ["config.json", "layer_types[1]", "mamba"]),
        (unknown_rope, ["config.json", "rope_parameters.rope_type", "longrope"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_hostile_folder_is_refused_by_name(folder, spoil, names):
    spoil(folder)
    code, _, log = run("--model", str(folder))
    assert code == 2, (code, log)
    errors = [line for line in log.splitlines() if "error" in line]
    assert len(errors) == 1, log
    for name in names:
        assert name in errors[0], errors[0]


def test_files_are_checked_before_a_device_is_opened(folder):
    truncated(folder)
    code, _, log = run("--model", str(folder), "--device", "cuda")
    assert code == 2 and "model.safetensors" in log, (code, log)


# ---- plans and lengths ----


def plan(*options):
    return run("--plan", "--model-config", "jet-nemotron-4b", *options)


def test_a_plan_says_what_fits():
    code, text, _ = plan("--tp", "2")
    assert code == 0 and "memory limit: none given" in text.splitlines()[-1], text
    code, text, _ = plan("--tp", "2", "--memory", "20G")
    assert code == 0 and "memory limit: 20480.0 MiB a rank" in text, text
    assert text.splitlines()[-1].split()[0] == "32768", text
    code, _, errors = plan("--memory", "8G")
    assert code == 2 and "memory_bytes is 8589934592" in errors


def test_a_plan_refuses_by_name():
    code, _, errors = plan("--tp", "4096", "--pp", "4096", "--cp", "4096")
    assert code == 2 and "mesh 4096 x 4096 x 4096" in errors, errors
    code, _, errors = plan("--device", "cuda", "--block-size", "32")
    assert code == 2 and "--block-size 32" in errors, errors


def test_lengths_beyond_the_model_are_warned_of(start):
    longest = json.loads((TINY / "config.json").read_text())["max_position_embeddings"]
    options = ["--max-num-seqs", "2", "--max-model-len"]
    assert "max_position_embeddings" not in start(*options, str(longest)).text()
    log = start(*options, str(longest + 1)).text()
    assert f"max-model-len {longest + 1} is beyond the model's max_position_embeddings" in log


# ---- a start that is not wanted any more ----


def test_a_signal_ends_the_loading(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 2_000_000  # seconds of made-up weights
    (folder / "config.json").write_text(json.dumps(config))
    daemon = Daemon("--device", "cpu", "--load-format", "dummy", "--max-num-seqs", "1",
                    "--max-model-len", "64", model=folder)
    while not daemon.log and daemon.process.poll() is None:  # it is past its options and its files
        time.sleep(0.01)
    assert daemon.stop(signal.SIGTERM, seconds=SECONDS) == -signal.SIGTERM, daemon.text()
    assert "serving" not in daemon.text()


# ---- a socket that is somebody's ----


def test_a_unix_socket_is_not_taken_over(start, tmp_path):
    host = f"unix:{tmp_path}/jetd.sock"
    first = start("--host", host)
    code, _, log = run("--model", str(TINY), "--host", host)
    assert code == 1 and f"{host}: Address already in use" in log, log
    with first.channel() as channel:
        grpc.channel_ready_future(channel).result(10)
    first.process.kill()
    first.process.wait()
    assert start("--host", host).stop() == 0  # what a killed daemon left is not in the way
