"""A real Envoy with a canary: nothing goes there untold, and what it fails, a stable server answers."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from clickbert.wire.protocol import CALL_HEADER
from deploy.canary.gateways import CANARY, STABLE, AdminError, Gateways, Split
from deploy.canary.run import SIGNALS, main, side
from deploy.canary.scores import MISSES, Servers
from tests.deploy.upstream import Upstream, upstream
from tests.gateways import WITH_TOKEN, Gateway, gateway, make_secrets
from tests.integration.scores import PATIENCE
from tests.waiting import eventually

FAILURES = [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[tuple[Upstream, str]]]:
    with upstream() as stable, upstream() as canary:
        yield [stable, canary]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, servers: list[tuple[Upstream, str]]) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    make_secrets(folder)
    with gateway(folder, [servers[0][1]], f"--canary={servers[1][1]}") as running:
        yield running


@pytest.fixture
def gateways(running: Gateway) -> Iterator[Gateways]:
    gateways = Gateways([("127.0.0.1", running.admin_port)])
    eventually(lambda: running.count("cluster.canary.membership_healthy") == 1, 180)
    yield gateways
    assert gateways.back() == []


@pytest.fixture
def stable(servers: list[tuple[Upstream, str]]) -> Upstream:
    servers[0][0].reset()
    return servers[0][0]


@pytest.fixture
def canary(servers: list[tuple[Upstream, str]]) -> Upstream:
    servers[1][0].reset()
    return servers[1][0]


def ask(running: Gateway, calls: int, *headers: tuple[str, str]) -> None:
    with running.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(calls):
            assert call(b"", timeout=PATIENCE, metadata=(*WITH_TOKEN, *headers)) == b""


def test_untold_nothing_goes_to_the_canary(running: Gateway, stable: Upstream, canary: Upstream) -> None:
    ask(running, 40)
    ask(running, 10, (CALL_HEADER, "99"))
    assert (len(stable.arrivals), len(canary.arrivals)) == (50, 0)


def test_a_shadow_gets_every_call_and_its_errors_are_seen_by_no_caller(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream
) -> None:
    gateways.set(Split(shadow=100))
    gateways.check(Split(shadow=100))
    before = gateways.counts()
    canary.refusal = (grpc.StatusCode.INTERNAL, "broken")
    ask(running, 20)
    eventually(lambda: side(before, gateways.counts(), CANARY).errors == 20, 180)
    found = side(before, gateways.counts(), STABLE)
    assert (found.good, found.errors, len(stable.arrivals), len(canary.arrivals)) == (20, 0, 20, 20)
    eventually(lambda: sum(side(before, gateways.counts(), CANARY).times.values()) == 20, 180)


@pytest.mark.parametrize("status", FAILURES)
def test_what_the_canary_fails_a_stable_server_answers(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream, status: grpc.StatusCode
) -> None:
    gateways.set(Split(weight=100))
    before = gateways.counts()
    canary.refusal = (status, "broken")
    ask(running, 20)
    assert (len(stable.arrivals), len(canary.arrivals)) == (20, 20)
    assert side(before, gateways.counts(), CANARY).errors == 20


def test_a_caller_s_mistake_is_asked_once(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream
) -> None:
    gateways.set(Split(weight=100))
    canary.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "malformed")
    with pytest.raises(grpc.RpcError, match="malformed"):
        ask(running, 1)
    assert (len(stable.arrivals), len(canary.arrivals)) == (0, 1)


def test_a_version_that_the_canary_lacks_a_stable_server_may_have(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream
) -> None:
    gateways.set(Split(weight=100))
    canary.refusal = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'clickbert_onnx' version 1 is not found")
    ask(running, 1)
    assert len(stable.arrivals) == 1


def test_requests_of_one_call_go_to_one_side(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream
) -> None:
    gateways.set(Split(weight=50))
    for number in ("7", str(2**63 - 1), "1234567"):
        stable.arrivals.clear()
        canary.arrivals.clear()
        ask(running, 10, (CALL_HEADER, number))
        assert sorted((len(stable.arrivals), len(canary.arrivals))) == [0, 10]
    ask(running, 60)
    assert min(len(stable.arrivals), len(canary.arrivals)) >= 5


def test_a_gateway_that_is_gone_stops_no_other_from_going_back(gateways: Gateways) -> None:
    both = Gateways([*gateways.admin, ("127.0.0.1", 1)])
    with pytest.raises(AdminError, match=r"admin port 127\.0\.0\.1:1 does not answer"):
        both.set(Split(weight=10))
    gateways.check(Split(weight=10))
    (error,) = both.back()
    assert "127.0.0.1:1 does not answer" in error
    gateways.check(Split())


@pytest.fixture
def metrics() -> Iterator[str]:
    """A metrics port whose scores stay as they are."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'clickbert_scores_total{model="clickbert_onnx",version="1",up_to="0.05"} 5\n')

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_canary_that_was_left_is_not_begun_anew_and_goes_back(
    running: Gateway, gateways: Gateways, metrics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateways.set(Split(weight=10))  # as a command that was killed leaves it
    admin = f"--admin=127.0.0.1:{running.admin_port}"
    assert main([admin, f"--stable-metrics={metrics}", f"--canary-metrics={metrics}"]) == 2
    assert "is set otherwise" in capsys.readouterr().err
    back = [sys.executable, "-m", "deploy", "canary", admin, "--back"]
    done = subprocess.run(back, capture_output=True, text=True, check=True)
    assert done.stderr == "canary: all calls are the stable servers'\n"
    gateways.check(Split())


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM], [signal.SIGINT, signal.SIGHUP] * 10_000],
    ids=["SIGTERM", "SIGHUP", "SIGINT+SIGTERM", "SIGINT+SIGHUP until it has ended"],
)
def test_signals_go_back(running: Gateway, gateways: Gateways, metrics: str, numbers: list[signal.Signals]) -> None:
    command = ["env", "--default-signal=HUP"]  # also where the tests run under nohup
    command += [sys.executable, "-m", "deploy", "canary", f"--admin=127.0.0.1:{running.admin_port}"]
    command += [f"--stable-metrics={metrics}", f"--canary-metrics={metrics}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: has_begun(gateways), 180)
        for number in numbers:
            process.send_signal(number)
            if process.poll() is not None:
                break
            time.sleep(0.002)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    last = json.loads(out.splitlines()[-1])
    assert last["outcome"] == "interrupted" and last["reason"] in {number.name for number in numbers}
    assert f"rolled back: {last['reason']}" in err and "Traceback" not in err
    gateways.check(Split())


def test_back_says_which_gateway_did_not_go_back(
    running: Gateway, gateways: Gateways, capsys: pytest.CaptureFixture[str]
) -> None:
    gateways.set(Split(weight=10))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert main([f"--admin=127.0.0.1:{running.admin_port}", "--admin=127.0.0.1:1", "--back"]) == 3
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    err = capsys.readouterr().err
    assert "NOT rolled back there: the gateway with admin port 127.0.0.1:1" in err
    assert "canary: NOT everywhere: all calls are the stable servers'" in err
    gateways.check(Split())


def test_health_checks_are_no_calls_of_the_canary(
    running: Gateway, gateways: Gateways, stable: Upstream, canary: Upstream
) -> None:
    for split in Split(shadow=100), Split(weight=100):
        gateways.set(split)
        with running.channel() as channel:
            for method in "ServerLive", "ServerReady":
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"", timeout=PATIENCE)
    assert (len(stable.arrivals), len(canary.arrivals)) == (4, 0)


@pytest.mark.parametrize("option", [[], ["--canary=nowhere.invalid:8001"]], ids=["none", "unknown name"])
def test_where_no_canary_server_is_found_the_stable_ones_answer(
    tmp_path: Path, servers: list[tuple[Upstream, str]], stable: Upstream, option: list[str]
) -> None:
    """As after a promotion, when the canary's name goes empty and nobody looks any more."""
    make_secrets(tmp_path)
    with gateway(tmp_path, [servers[0][1]], *option) as alone:
        gateways = Gateways([("127.0.0.1", alone.admin_port)])
        gateways.set(Split(weight=100))
        ask(alone, 20)
        with pytest.raises(AdminError, match="no healthy canary server"):
            gateways.check(Split(weight=100))
    assert len(stable.arrivals) == 20


def test_where_every_canary_server_is_lost_the_stable_ones_answer(
    tmp_path: Path, servers: list[tuple[Upstream, str]], stable: Upstream
) -> None:
    """And not where one of them is left."""
    make_secrets(tmp_path)
    first, second = ExitStack(), ExitStack()
    options = [f"--canary={stack.enter_context(upstream())[1]}" for stack in (first, second)]
    with first, second, gateway(tmp_path, [servers[0][1]], *options) as running:
        eventually(lambda: running.count("cluster.canary.membership_healthy") == 2, 180)
        Gateways([("127.0.0.1", running.admin_port)]).set(Split(weight=100))
        ask(running, 20)
        assert not stable.arrivals
        first.close()
        eventually(lambda: running.count("cluster.canary.membership_healthy") == 1, 180)
        ask(running, 40)
        assert not stable.arrivals
        second.close()
        ask(running, 20)
        eventually(lambda: running.count("cluster.canary.membership_healthy") == 0, 180)
        ask(running, 20)
        assert len(stable.arrivals) == 40


def test_a_stable_metrics_port_may_miss_a_few_looks_and_a_canary_s_none(metrics: str) -> None:
    host, port = metrics.split(":")
    good, bad = (host, int(port)), (host, 1)
    with pytest.raises(AdminError):
        Servers([bad], [good]).counts()
    servers = Servers([good], [good])
    first = servers.counts()
    servers.sides = (STABLE, [bad]), (CANARY, [good])
    servers.last[bad] = servers.last[good]
    for _ in range(MISSES):
        assert servers.counts().total() == first.total()
    with pytest.raises(AdminError, match=r"127\.0\.0\.1:1 cannot be read"):
        servers.counts()
    servers = Servers([good], [good])
    servers.counts()
    servers.sides = (STABLE, [good]), (CANARY, [bad])
    servers.last[bad] = servers.last[good]
    with pytest.raises(AdminError):
        servers.counts()


def has_begun(gateways: Gateways) -> bool:
    try:
        gateways.check(Split(shadow=100))
    except AdminError:
        return False
    return True
