"""`python -m benchmarks load`, Locust on tritonserver and a tiny model: the closed loop, and what ends a run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import psutil
import pytest

from benchmarks.load_gen import pool as generator
from benchmarks.measure import stats as figures_module
from serving.server import Addresses, Server
from tests.benchmarks.conftest import command, kept_samples, locusts, short_loads
from tests.waiting import eventually

# What the locustfile does before its first call, then eight users with a call each. (In a process of its own: gevent
# must not get into pytest's.)
EIGHT_CALLS = """
import sys, time
import locust, gevent, grpc
import benchmarks.load_gen.worker
call = grpc.insecure_channel(sys.argv[1]).unary_unary("/slow/call")
began = time.perf_counter()
gevent.joinall([gevent.spawn(call, b"", timeout=30) for _ in range(8)], raise_error=True)
print(time.perf_counter() - began)
"""
# The third request and all after it meet a bug.
BROKEN_USER = """
from benchmarks.load_gen.worker import *
turns, rank = itertools.count(), Ranker.rank
def broken(*arguments):
    if next(turns) >= 2:
        raise RuntimeError("a bug of the load")
    return rank(*arguments)
Ranker.rank = broken
"""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Where this test's runs keep their logs."""
    return tmp_path / "logs"


@pytest.fixture(autouse=True)
def short(logs: Path) -> Iterator[pytest.MonkeyPatch]:
    with short_loads(logs) as patch:
        yield patch


def once_it_runs(action: Callable[[], object]) -> threading.Thread:
    """Does something when a generator is there."""

    def wait() -> None:
        eventually(lambda: bool(locusts()))
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def executions(server: Server) -> tuple[int, int]:
    """Requests that the model computed, and executions that it took."""
    with server.get("/v2/models/clickbert_onnx/stats") as answer:
        statistics = json.load(answer)["model_stats"][0]
    return statistics["inference_count"], statistics["execution_count"]


def test_the_figures_fit_each_other_the_click_log_and_the_server(
    server: Server, click_log: Path, logs: Path, short: pytest.MonkeyPatch
) -> None:
    short.setenv("LOCUST_USERS", "1")  # of somebody's shell: not this run's
    before = executions(server)
    given = ("--url", server.addresses.grpc, "--data", click_log, "--users", 4, "--duration", 3)
    with kept_samples(short) as recorded:
        said = command("load", *given)
    assert said.code == 0
    requests, execution_count = (after - was for after, was in zip(executions(server), before, strict=True))

    *table, last = said.out.splitlines()
    figures = json.loads(last)
    loaded = (figures["model"], figures["url"], figures["users"], figures["rate"])
    assert loaded == ("clickbert_onnx", server.addresses.grpc, 4, None)
    assert figures["server"]["name"] == "triton"
    assert figures["versions"]["model"] == "1"
    assert (figures["duration_s"], figures["errors"], figures["error_kinds"]) == (3, 0, {})
    assert table[1].split()[:3] == ["4", "users", str(figures["requests"])]
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert figures["generator"]["processes"] == 1
    assert 0 < figures["generator"]["busy"] <= figures["generator"]["cores"]

    # Every request is a group of the log, all groups come about equally often, and the server saw the same requests:
    # one more, which is asked before the run.
    (samples,) = ([*map(tuple, each["samples"])] for each in recorded)
    sizes = Counter(json.loads(line)["group"] for line in click_log.read_text().splitlines())
    sent = Counter(pairs for _, _, _, pairs, *_ in samples)
    assert set(sent) == set(sizes.values())
    for size, groups in Counter(sizes.values()).items():
        assert sent[size] == pytest.approx(len(samples) * groups / len(sizes), abs=4 * groups)
    assert requests == len(samples) + 1
    counted = [sample for sample in samples if 1 <= sample[0] < 4]
    assert figures["requests"] == len(counted) < len(samples)
    answered = [pairs for planned, _, took, pairs, *_ in samples if 1 <= planned + took < 4]
    # Of whole turns of all requests, which is nearly what was answered, and has the mix of all.
    assert figures["requests_per_s"] == pytest.approx(len(answered) / 3, rel=0.1)
    mean = sum(sizes.values()) / len(sizes)
    assert figures["pairs_per_s"] / figures["requests_per_s"] == pytest.approx(mean, rel=0.02)
    assert sum(figures["pairs_by_second"]) == sum(answered)

    # The users really were under way together: by Little's law (one after another would be 1 at most; it is less than
    # 4 by the moments in which Locust is at work between two requests), and since the server merged their requests.
    # The last request of each user may end behind the 3 s in which it began.
    assert 1.5 < figures["offered_per_s"] * latency["mean"] / 1000 < 4 * (1 + latency["max"] / 1000 / 3)
    assert execution_count < requests
    assert not list(logs.glob("clickbert-*"))


def test_users_do_not_wait_for_each_others_answers() -> None:
    class Slow(grpc.GenericRpcHandler):
        def service(self, _details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda *_: time.sleep(1) or b"")

    slow = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Slow()])
    port = slow.add_insecure_port("127.0.0.1:0")
    slow.start()
    try:
        words = [sys.executable, "-c", EIGHT_CALLS, f"127.0.0.1:{port}"]
        ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    finally:
        slow.stop(None).wait()
    assert ran.returncode == 0, ran.stderr
    assert 1 <= float(ran.stdout) < 4  # one after another: 8 s


def test_where_the_generator_is_the_limit_there_are_no_figures_and_the_exit_code_is_1(
    server: Server, click_log: Path, short: pytest.MonkeyPatch
) -> None:
    short.setattr(figures_module, "BUSY", 0.0)
    said = command("load", "--url", server.addresses.grpc, "--data", click_log, "--users", 1, "--duration", 1)
    assert said.code == 1
    row = said.out.splitlines()[1]
    assert re.fullmatch(
        r" *1 users +\d+ +0( +-){5}  the generator is the limit: its thread was busy \d+% of the time", row
    )
    document = json.loads(said.out.splitlines()[-1])
    assert document["generator"]["limit"] in row
    left = {name for name, value in document.items() if value is None}
    assert left == {"rate", "requests_per_s", "pairs_per_s", "pairs_by_second", "latency_ms", "latency_by_size_ms"}
    assert "latencies_ms" not in document


def test_a_server_that_goes_away_is_errors_by_kind_and_exit_code_1(
    repository: Path, click_log: Path, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        killer = once_it_runs(server.kill)
        said = command("load", "--url", server.addresses.grpc, "--data", click_log, "--users", 2, "--duration", 1)
        killer.join()
    assert said.code == 1, said.err
    assert said.out, said.err
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["error_kinds"] == {"ConnectionFailedError": figures["requests"]}
    assert figures["errors"] == figures["requests"] > 0
    assert figures["requests_per_s"] == figures["pairs_per_s"] == 0
    assert figures["latency_ms"] is None
    assert "load: ConnectionFailedError, the first: clickbert_onnx at" in said.err


def test_a_signal_ends_locust_and_the_server(repository: Path, click_log: Path, logs: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "load", "--repository", repository, "--data", click_log]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    run = psutil.Process(process.pid)
    eventually(lambda: bool(locusts(run)))
    time.sleep(1)  # in the midst of it
    children = run.children(recursive=True)
    names = {child.name() for child in children}
    assert "tritonserver" in names
    process.send_signal(signal.SIGTERM)  # Ctrl-C has the same handler
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert not list(logs.glob("clickbert-*"))


def test_a_locust_that_dies_is_an_error_not_a_table_of_zeros(server: Server, click_log: Path, logs: Path) -> None:
    def kill() -> None:
        locusts()[0].kill()

    killer = once_it_runs(kill)
    said = command("load", "--url", server.addresses.grpc, "--data", click_log)
    killer.join()
    assert said.code == 1
    assert not said.out
    assert "Locust ended with code -9 and without results" in said.err
    kept = re.search(r"its log, (\S+), ends", said.err)
    assert kept
    assert Path(kept[1]).is_relative_to(logs)
    assert Path(kept[1]).exists()


def test_a_generator_that_was_stopped_early_is_an_error(server: Server, click_log: Path) -> None:
    stopper = once_it_runs(lambda: (time.sleep(3), locusts()[0].terminate()))
    said = command("load", "--url", server.addresses.grpc, "--data", click_log)
    stopper.join()
    assert said.code == 1
    assert not said.out
    assert re.search(r"Locust ended (after [\d.]+ s of 32: who stopped it\?|with code)", said.err)


@pytest.mark.parametrize("loop", [("--users", 2), ("--rate", 20)], ids=["closed", "open"])
def test_a_bug_of_the_load_ends_it_and_is_shown(
    loop: tuple, server: Server, click_log: Path, tmp_path: Path, short: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_USER)
    short.setattr(generator, "LOCUSTFILE", tmp_path / "broken.py")
    began = time.monotonic()
    said = command("load", "--url", server.addresses.grpc, "--data", click_log, "--duration", 60, *loop)
    assert said.code == 1
    assert time.monotonic() - began < 30
    assert not said.out
    assert "Locust ended with code 1" in said.err
    assert "a bug of the load" in said.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--url", "127.0.0.1:1"), "check that the server runs and that the address is its gRPC port"),
        (
            ("--url", "http://127.0.0.1:8001"),
            "expected the host and the gRPC port of the server, like 'localhost:8001'",
        ),
        (("--url", "127.0.0.1:1", "--ca-file", "ca.pem"), "ca_file is for TLS, but url is '127.0.0.1:1'"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl: cannot read: No such file"),
        (("--repository", "nowhere"), "publish one with `python -m export`"),
        (("--users", "2", "--processes", "3"), "2 users cannot be shared by 3 processes; give fewer --processes"),
    ],
)
def test_what_is_wrong_is_said_before_any_load(
    given: tuple[str, ...], message: str, click_log: Path, logs: Path
) -> None:
    data = () if "--data" in given else ("--data", click_log)
    said = command("load", *given, *data)
    assert said.code == 1
    assert message in said.err
    assert not said.out
    assert not list(logs.glob("clickbert-*"))


def test_a_model_that_the_server_does_not_have_is_named(server: Server, click_log: Path) -> None:
    said = command("load", "--url", server.addresses.grpc, "--data", click_log, "--model", "other")
    assert said.code == 1
    assert "other at " in said.err


@pytest.mark.parametrize(
    "given",
    [
        ("--users", "0"),
        ("--users", "1", "--rate", "2"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--rate", "inf"),
        ("--rate", "fast"),
        ("--texts", "some"),
        ("--duration", "1.5"),
        ("--url", "a:1", "--repository", "b"),
        ("--use", "3"),
    ],
)
def test_wrong_usage(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("load", *given)
    assert stopped.value.code == 2
