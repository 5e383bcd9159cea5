"""The Prometheus endpoint: well-formed text whose counters agree with what was asked."""

import re
import time
import urllib.error
import urllib.request

import grpc
import pytest
from conftest import DEMO, Daemon

SAMPLE = re.compile(r'^([a-z0-9_]+)\{model_name="([^"]*)"(?:,le="([^"]+)")?\} (\S+)$')


def scrape(url):
    """(name, le) -> value, after checking each line and that each family is declared once."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    values, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            name, model, le, value = SAMPLE.match(line).groups()
            assert model == "demo-model"
            assert re.sub(r"_(bucket|sum|count)$", "", name) in types or name in types
            assert (name, le) not in values
            values[name, le] = float(value)
    return values, types


@pytest.fixture(scope="module")
def daemon(start):
    return start("--device", "cpu", "--metrics-port", "0", model=f"{DEMO}/")


def test_counters_and_histograms(pb, daemon):
    url = re.search(r"metrics on (\S+)", daemon.text()).group(1)
    before, kinds = scrape(url)
    counted = [key for key in before if kinds.get(key[0]) == "counter" or key[0].endswith("_count")]
    assert len(counted) > 8
    for key in counted:  # the warm-up's steps were run, but it is no client's request
        assert before[key] == 0 or key[0] == "jetd_steps_total", key
    with daemon.channel() as channel:
        stub = pb.GenerationStub(channel)
        for n in (1, 3):
            request = pb.GenerateRequest(text="Once upon a time", max_new_tokens=7, ignore_eos=True, n=n)
            assert sum(1 for m in stub.Generate(request) if m.WhichOneof("event") == "finished") == n
    after, types = scrape(url)
    grown = {key: after[key] - before[key] for key in after}
    assert grown["jetd_generation_tokens_total", None] == 7 * 4
    assert grown["jetd_prompt_tokens_total", None] == 5 * 4
    assert grown["jetd_requests_total", None] == grown["jetd_request_success_total", None] == 2
    assert after["jetd_num_requests_running", None] == after["jetd_num_requests_waiting", None] == 0
    expected = {"jetd_time_to_first_token_seconds": 4, "jetd_inter_token_latency_seconds": 6 * 4,
                "jetd_e2e_request_latency_seconds": 4, "jetd_request_decode_time_seconds": 4}
    for name, count in expected.items():
        assert types[name] == "histogram"
        assert grown[name + "_count", None] == grown[name + "_bucket", "+Inf"] == count
        bounds = [(float(le), value) for (n, le), value in after.items() if n == name + "_bucket"]
        bounds.sort()
        assert all(a[1] <= b[1] for a, b in zip(bounds, bounds[1:])), "buckets are cumulative"
        assert grown[name + "_sum", None] > 0


def test_a_passed_deadline_is_no_failure(pb, daemon):
    url = re.search(r"metrics on (\S+)", daemon.text()).group(1)
    before, _ = scrape(url)
    with daemon.channel() as channel:
        grpc.channel_ready_future(channel).result(30)
        request = pb.GenerateRequest(text="Once", ignore_eos=True)
        with pytest.raises(grpc.RpcError) as caught:
            list(pb.GenerationStub(channel).Generate(request, timeout=1))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        for _ in range(100):
            after, _ = scrape(url)
            if after["jetd_request_cancelled_total", None] > before["jetd_request_cancelled_total", None]:
                break
            time.sleep(0.05)
    grown = {key: after[key] - before[key] for key in after}
    assert grown["jetd_request_cancelled_total", None] == 1
    assert grown["jetd_request_failed_total", None] == 0


@pytest.mark.parametrize("path,method,code", [("/", "GET", 404), ("/metrics", "POST", 405)])
def test_only_metrics_is_there(daemon, path, method, code):
    url = re.search(r"metrics on (\S+)/metrics", daemon.text()).group(1)
    request = urllib.request.Request(url + path, method=method, data=b"" if method == "POST" else None)
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(request, timeout=10)
    assert failure.value.code == code


def test_a_public_address_needs_a_word(start):
    public = ["--device", "cpu", "--metrics-port", "0", "--metrics-host", "0.0.0.0"]
    refused = Daemon(*public)
    assert refused.process.wait(20) == 2
    refused.reader.join(5)
    assert "--metrics-host: 0.0.0.0 is not loopback" in refused.text(), refused.text()
    assert "metrics on http://0.0.0.0:" in start(*public, "--insecure").text()
