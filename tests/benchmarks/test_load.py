"""`python -m benchmarks load` with a real Locust on a real tritonserver, on a tiny model."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import psutil
import pytest

from benchmarks import load
from export.__main__ import main as export
from serving.server import Addresses, Server
from tests.tiny import make_checkpoint, make_click_log

# What the locustfile does before its first call, then eight users with a call each. (In a process of its own: gevent
# must not get into pytest's.)
EIGHT_CALLS = """
import sys, time
import locust, gevent, grpc
import benchmarks.locustfile
call = grpc.insecure_channel(sys.argv[1]).unary_unary("/slow/call")
began = time.perf_counter()
gevent.joinall([gevent.spawn(call, b"", timeout=30) for _ in range(8)], raise_error=True)
print(time.perf_counter() - began)
"""
BROKEN_USER = """
from benchmarks.locustfile import *
def rank(*_):
    raise RuntimeError("a bug of the load")
Ranker.rank = rank
"""


@pytest.fixture(scope="module")
def click_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "clicks.jsonl")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, click_log: Path) -> Path:
    folder = tmp_path_factory.mktemp("published")
    checkpoint, published = make_checkpoint(folder / "checkpoint"), folder / "repository"
    arguments = ["--checkpoint", checkpoint, "--repository", published, "--evaluation", click_log]
    arguments += ["--engine", "onnx", "--report", folder / "report.html"]
    assert export([str(argument) for argument in arguments]) == 0
    return published


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with (repository.parent / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as running:
        yield running


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's runs keep their logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(load.tempfile, "tempdir", None)
    return folder


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    load.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def locusts() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "locust" in child.cmdline()]


def executions(server: Server) -> tuple[int, int]:
    """Requests that the model computed, and executions that it took."""
    with urllib.request.urlopen(f"{server.addresses.http}/v2/models/clickbert_onnx/stats") as answer:
        statistics = json.load(answer)["model_stats"][0]
    return statistics["inference_count"], statistics["execution_count"]


def test_the_figures_fit_each_other_the_click_log_and_the_server(
    server: Server, click_log: Path, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: dict = {}
    run_locust = load.run_locust
    monkeypatch.setattr(load, "run_locust", lambda *arguments: recorded.update(run_locust(*arguments)) or recorded)
    monkeypatch.setenv("LOCUST_USERS", "1")  # of somebody's shell: not this run's
    before = executions(server)
    grpc_url = server.addresses.grpc
    assert load.run(options("--url", grpc_url, "--data", click_log, "--users", 4, "--duration", 3)) == 0
    requests, execution_count = (after - was for after, was in zip(executions(server), before, strict=True))

    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (figures["model"], figures["url"], figures["users"]) == ("clickbert_onnx", grpc_url, 4)
    assert figures["server"]["name"] == "triton"
    assert figures["versions"]["model"] == "1"
    assert (figures["duration_s"], figures["errors"], figures["error_kinds"]) == (3, 0, {})
    assert figures["requests_per_s"] == pytest.approx(figures["requests"] / 3)
    assert table[1].split()[:2] == ["4", str(figures["requests"])]
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]

    # Every request is a group of the log, all groups come about equally often, and the server saw the same requests:
    # one more, which is asked before the run.
    sizes = Counter(json.loads(line)["group"] for line in click_log.read_text().splitlines())
    sent = Counter(pairs for _, _, pairs, _ in recorded["samples"])
    assert set(sent) == set(sizes.values())
    for size, groups in Counter(sizes.values()).items():
        assert sent[size] == pytest.approx(len(recorded["samples"]) * groups / len(sizes), abs=4 * groups)
    counted = [sample for sample in recorded["samples"] if 3 <= sample[0] < 6]
    assert figures["requests"] == len(counted) < len(recorded["samples"])
    assert figures["pairs_per_s"] == pytest.approx(sum(sample[2] for sample in counted) / 3)
    assert requests == len(recorded["samples"]) + 1

    # The users really were under way together: by Little's law (one after another would be 1 at most; it is less than
    # 4 by the moments in which Locust is at work between two requests), and since the server merged their requests.
    # The last request of each user may end behind the 3 s in which it began.
    assert 1.5 < figures["requests_per_s"] * latency["mean"] / 1000 < 4 * (1 + latency["max"] / 1000 / 3)
    assert execution_count < requests
    assert not list(logs.glob("clickbert-*"))


def test_users_do_not_wait_for_each_others_answers() -> None:
    class Slow(grpc.GenericRpcHandler):
        def service(self, _details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda *_: time.sleep(1) or b"")

    slow = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Slow()])
    port = slow.add_insecure_port("127.0.0.1:0")
    slow.start()
    command = [sys.executable, "-c", EIGHT_CALLS, f"127.0.0.1:{port}"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    finally:
        slow.stop(None).wait()
    assert ran.returncode == 0, ran.stderr
    assert 1 <= float(ran.stdout) < 4  # one after another: 8 s


def test_a_server_that_goes_away_is_errors_by_kind_and_exit_code_1(
    repository: Path, click_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:

        def end_it() -> None:
            eventually(lambda: bool(locusts()))
            server.kill()

        killer = threading.Thread(target=end_it)
        killer.start()
        given = ("--url", server.addresses.grpc, "--data", click_log, "--users", 2, "--duration", 1)
        assert load.run(options(*given)) == 1
        killer.join()
    said = capsys.readouterr()
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["error_kinds"] == {"ConnectionFailedError": figures["requests"]}
    assert figures["errors"] == figures["requests"] > 0
    assert figures["requests_per_s"] == figures["pairs_per_s"] == 0
    assert figures["latency_ms"] is None
    assert "load: ConnectionFailedError, the first: clickbert_onnx at" in said.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_locust_and_the_server(
    number: signal.Signals, repository: Path, click_log: Path, logs: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks", "load", "--repository", repository, "--data", click_log]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    run = psutil.Process(process.pid)
    eventually(lambda: any("locust" in child.cmdline() for child in run.children()))
    time.sleep(1)  # in the midst of it
    children = run.children(recursive=True)
    names = {child.name() for child in children}
    assert "tritonserver" in names
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert not list(logs.glob("clickbert-*"))


def test_a_locust_that_dies_is_an_error_not_a_table_of_zeros(
    server: Server, click_log: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:
        eventually(lambda: bool(locusts()))
        locusts()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert load.run(options("--url", server.addresses.grpc, "--data", click_log)) == 1
    killer.join()
    said = capsys.readouterr()
    assert not said.out
    assert "Locust ended with code -9 and without results" in said.err
    kept = re.search(r"its log, (\S+), ends", said.err)
    assert kept
    assert Path(kept[1]).is_relative_to(logs)
    assert Path(kept[1]).exists()


def test_a_bug_of_the_load_ends_it_and_is_shown(
    server: Server,
    click_log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_USER)
    monkeypatch.setattr(load, "LOCUSTFILE", tmp_path / "broken.py")
    began = time.monotonic()
    assert load.run(options("--url", server.addresses.grpc, "--data", click_log, "--duration", 60)) == 1
    assert time.monotonic() - began < 30
    said = capsys.readouterr()
    assert not said.out
    assert "a bug of the load" in said.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--url", "127.0.0.1:1"), "check that the server runs and that the address is its gRPC port"),
        (
            ("--url", "http://127.0.0.1:8001"),
            "expected the host and the gRPC port of the server, like 'localhost:8001'",
        ),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl: cannot read: No such file"),
        (("--repository", "nowhere"), "publish one with `python -m export`"),
    ],
)
def test_what_is_wrong_is_said_before_any_load(
    given: tuple[str, str], message: str, click_log: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = () if "--data" in given else ("--data", click_log)
    assert load.run(options(*given, *data)) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out
    assert not list(logs.glob("clickbert-*"))


def test_a_model_that_the_server_does_not_have_is_named(
    server: Server, click_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load.run(options("--url", server.addresses.grpc, "--data", click_log, "--model", "other")) == 1
    assert "other at " in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", [("--users", "0"), ("--duration", "1.5"), ("--url", "a:1", "--repository", "b"), ("--use", "3")]
)
def test_wrong_usage(given: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(*given)
    assert stopped.value.code == 2
