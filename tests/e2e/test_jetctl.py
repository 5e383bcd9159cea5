"""jetctl against a live daemon: what it prints and how it exits."""

import json
import os
import subprocess

import pytest

from conftest import JETCTL

OK, FAILED, USAGE, UNREACHABLE, NOT_SERVING = range(5)
GREEDY = ["--temperature", "0", "--max-new-tokens", "8"]


@pytest.fixture
def ctl(shared):
    def run(command, *arguments, stdin="", address=shared.address, environment=None):
        return subprocess.run(
            [JETCTL, command, "--address", address, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **(environment or {})},
        )

    return run


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_generate_from_argument_file_and_stdin(ctl, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Once upon a time")
    results = [
        ctl("generate", *GREEDY, "Once upon a time"),
        ctl("generate", *GREEDY, "--file", str(file)),
        ctl("generate", *GREEDY, stdin="Once upon a time"),
        ctl("generate", *GREEDY, "--file", "-", stdin="Once upon a time"),
    ]
    assert {result.returncode for result in results} == {OK}, results
    assert len({result.stdout for result in results}) == 1
    assert results[0].stdout.startswith(" there") and results[0].stderr == ""
    echoed = ctl("generate", *GREEDY, "--echo", "Once upon a time").stdout
    assert echoed == "Once upon a time" + results[0].stdout


def test_generate_as_json(ctl):
    result = ctl("generate", *GREEDY, "--json", "--logprobs", "2", "--n", "2", "Once upon")
    events = lines(result)
    assert events[0]["event"] == "prompt" and events[0]["prompt_tokens"] > 0
    for index in (0, 1):
        deltas = [e for e in events if e["event"] == "delta" and e["index"] == index]
        assert sum(len(delta["token_ids"]) for delta in deltas) == 8
        assert all(len(token["top"]) == 2 for delta in deltas for token in delta["logprobs"])
        (finished,) = [e for e in events if e["event"] == "finished" and e["index"] == index]
        assert finished["reason"] == "LENGTH" and finished["usage"]["completion_tokens"] == 8


def test_generate_several(ctl):
    result = ctl("generate", "--n", "3", "--seed", "3", "--max-new-tokens", "4", "Once")
    assert result.returncode == OK
    assert [line for line in result.stdout.splitlines() if line.startswith("--- ")] == [
        "--- 0",
        "--- 1",
        "--- 2",
    ]


def test_any_of_several_stop_texts_ends_it(ctl):
    stops = ["--stop", " there", "--stop", "unheard"]
    finished = lines(ctl("generate", *GREEDY, "--json", *stops, "Once upon a time"))[-1]
    assert (finished["reason"], finished["matched_stop"]) == ("STOP", " there")
    assert "matched_stop_id" not in finished


def test_ids_where_there_is_no_tokenizer(ctl, ids_only):
    # with this seed the first choice comes upon the end of text, the second does not
    sampled = ["--ids", "1,2", "--temperature", "100", "--seed", "25", "--n", "2"]
    sampled += ["--max-new-tokens", "8"]
    printed = ctl("generate", *sampled, address=ids_only.address).stdout.splitlines()
    assert printed[0::2] == ["--- 0", "--- 1"]
    assert len(printed[3].split()) == 8 > len(printed[1].split()) > 0
    events = lines(ctl("generate", *sampled, "--json", address=ids_only.address))
    matched = {(e["reason"], e.get("matched_stop_id")) for e in events if e["event"] == "finished"}
    assert matched == {("STOP", 0), ("LENGTH", None)}


def test_chat(ctl):
    plain = ctl("chat", *GREEDY, "Hello")
    assert plain.returncode == OK and plain.stdout.strip()
    system = ctl("chat", *GREEDY, "--json", "--system", "Be a pirate.", "Hello")
    assert lines(system)[0]["prompt_tokens"] > 0


def test_text_and_ids(ctl):
    ids = lines(ctl("tokenize", "--json", "Hello, world"))[0]["ids"]
    text = ",".join(map(str, ids))
    assert ctl("tokenize", "Hello, world").stdout.strip() == text
    assert ctl("detokenize", text).stdout == "Hello, world\n"
    assert ctl("detokenize", "--json", "--ids", text).stdout == '{"text":"Hello, world"}\n'
    assert ctl("detokenize", stdin=" ".join(map(str, ids))).stdout == "Hello, world\n"
    by_ids = ctl("generate", *GREEDY, "--ids", text)
    assert by_ids.stdout == ctl("generate", *GREEDY, "Hello, world").stdout
    chat = lines(ctl("tokenize", "--chat", "--json", "Hello"))[0]["ids"]
    assert len(chat) > len(lines(ctl("tokenize", "--json", "Hello"))[0]["ids"])


def test_score(ctl):
    (score,) = lines(ctl("score", "--json", "Once upon a time"))
    assert len(score["logprobs"]) == len(score["ids"]) - 1 == len(score["is_argmax"])
    assert abs(score["sum"] - sum(score["logprobs"])) < 1e-4
    printed = ctl("score", "Once upon a time").stdout.splitlines()
    assert len(printed) == len(score["logprobs"]) + 1
    assert printed[-1].startswith("sum")


def test_info_load_health(ctl):
    model, server = lines(ctl("info", "--json"))
    assert model["vocab_size"] == 4096 and server["mesh"]["tensor"] == 1
    assert "vocab_size" in ctl("info").stdout
    (load,) = lines(ctl("load", "--json"))
    assert load["running"] == 0 and load["slots"] == 8
    assert ctl("health").stdout == "SERVING\n"
    assert lines(ctl("health", "--json", "--service", "jet.v1.Control")) == [{"status": "SERVING"}]
    unknown = ctl("health", "--service", "nobody")
    assert unknown.returncode == FAILED and "NOT_FOUND" in unknown.stderr


def test_abort(ctl, shared):
    running = subprocess.Popen(
        [JETCTL, "generate", "--address", shared.address, "--ignore-eos", "--json"]
        + ["--request-id", "from-ctl", "Once upon a time"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert json.loads(running.stdout.readline())["request_id"] == "from-ctl"
    assert ctl("abort", "from-ctl,nobody").stdout == "1 aborted\n"
    out, errors = running.communicate(timeout=30)
    assert running.returncode == FAILED and "CANCELLED" in errors
    assert json.loads(out.splitlines()[-1])["reason"] == "CANCELLED"


def test_errors_and_exit_codes(ctl):
    refused = ctl("generate", "--temperature", "-1", "x")
    assert refused.returncode == FAILED
    assert "INVALID_ARGUMENT" in refused.stderr and "sampling.temperature" in refused.stderr
    late = ctl("generate", "--timeout", "0.2", "--ignore-eos", "x")
    assert late.returncode == FAILED and "DEADLINE_EXCEEDED" in late.stderr
    nobody = ctl("health", address="127.0.0.1:1")
    assert nobody.returncode == UNREACHABLE and nobody.stderr
    for command, arguments in (
        ("nothing", []),
        ("generate", ["--temperature", "warm", "x"]),
        ("generate", ["--no-such-option"]),
        ("generate", ["--file", "/nonexistent"]),
        ("generate", ["--ids", "1,x"]),
        ("generate", ["--ids", "4294967296"]),
        ("generate", ["--seed", "-1", "x"]),
        ("abort", []),
        ("health", ["--ca", "/nonexistent"]),
        ("health", ["--cert", "client.pem", "--key", "client.key"]),
        ("health", ["--tls", "--cert", "client.pem"]),
        ("generate", ["--stop=x"] * 17),
    ):
        result = ctl(command, *arguments)
        assert result.returncode == USAGE and result.stderr, (command, arguments, result)


def test_help_names_the_exit_codes():
    result = subprocess.run([JETCTL, "--help"], capture_output=True, text=True, timeout=20)
    assert result.returncode == OK
    for word in ("generate", "detokenize", "Exit codes", "--address", "--max-new-tokens"):
        assert word in result.stdout
    assert subprocess.run([JETCTL], capture_output=True, timeout=20).returncode == USAGE


def test_tls_by_file_or_by_the_systems_roots(ctl, start, tmp_path):
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    make += ["-nodes", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    address = start("--ssl-certfile", cert, "--ssl-keyfile", key).address
    roots = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": cert}
    assert ctl("health", "--ca", cert, address=address).returncode == OK
    assert ctl("health", "--tls", address=address, environment=roots).returncode == OK
    assert ctl("health", "--tls", address=address).returncode == UNREACHABLE
    assert ctl("health", address=address, environment=roots).returncode == UNREACHABLE


def test_token_and_drain(ctl, start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    keys.chmod(0o600)
    daemon = start("--api-key-file", str(keys))
    assert "UNAUTHENTICATED" in ctl("health", address=daemon.address).stderr
    secret = {"JETCTL_TOKEN": "open-sesame"}
    assert ctl("health", address=daemon.address, environment=secret).returncode == OK
    # Without a tokenizer the output is ids.
    ids = ctl("generate", *GREEDY, "--ids", "1,2", address=daemon.address, environment=secret)
    assert len(ids.stdout.split()) <= 8 and all(map(str.isdigit, ids.stdout.split()))
    drained = ctl("drain", "--json", address=daemon.address, environment=secret)
    assert lines(drained) == [{"running": 0, "waiting": 0}]
    assert daemon.process.wait(30) == 0, daemon.text()
    assert ctl("health", address=daemon.address, environment=secret).returncode == UNREACHABLE
