"""`python -m benchmarks load`, Locust on tritonserver and a tiny model: what it prints, and what ends a run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from benchmarks.load_gen.pool import Generator
from benchmarks.load_gen.target import Target
from benchmarks.measure.stats import ClientLimits
from serving.server import Server
from tests.benchmarks.conftest import LIMITS, TIMING, command, locusts
from tests.published import serve
from tests.waiting import eventually

FAST = {"timing": TIMING, "limits": LIMITS}


def test_a_closed_loop_is_a_table_and_a_document(published_server: Server, published_log: Path, logs: Path) -> None:
    given = ("--url", published_server.addresses.grpc, "--data", published_log, "--users", 4, "--duration", 1)
    ended = command("load", *given, **FAST)
    assert ended.code == 0, ended.err
    head, row, last = ended.out.splitlines()
    document = json.loads(last)
    assert (document["model"], document["version"], document["client_bound"]) == ("clickbert_onnx", "1", None)
    assert (document["server"]["name"], document["server"]["url"]) == ("triton", published_server.addresses.grpc)
    step = document["step"]
    assert (step["users"], step["rate"], step["duration"], step["errors"]) == (4, None, 1, 0)
    assert "latencies_ms" not in step or not step["latencies_ms"]
    assert " ".join(head.split()[:4]) == "load requests errors requests/s"
    assert row.split()[:3] == ["4", "users", str(step["requests"])]
    assert not list(logs.glob("clickbert-*"))


def test_a_client_bound_run_shows_no_figures_and_ends_with_1(published_server: Server, published_log: Path) -> None:
    given = ("--url", published_server.addresses.grpc, "--data", published_log, "--users", 1, "--duration", 1)
    ended = command("load", *given, timing=TIMING, limits=ClientLimits(busy=0.0))
    assert ended.code == 1
    _, row, last = ended.out.splitlines()
    document = json.loads(last)
    assert document["step"] is None
    assert document["client_bound"].startswith("the generator's thread was busy ")
    assert row.split()[3:9] == ["0", "-", "-", "-", "-", "-"]
    assert row.endswith(f"client-bound: {document['client_bound']}")


def test_a_server_that_goes_away_is_errors_by_kind_and_ends_with_1(
    published_repository: Path, published_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "with_counts", lambda _self, _model, send: send())  # it cannot be asked any more
    monkeypatch.setattr(Target, "info", lambda self: {"url": self.connection.url})
    with serve(published_repository, log=tmp_path / "log") as server:
        tell = Generator.tell
        monkeypatch.setattr(Generator, "tell", lambda self, **order: (server.kill(), tell(self, **order)))
        given = ("--url", server.addresses.grpc, "--data", published_log, "--users", 2, "--duration", 1)
        ended = command("load", *given, **FAST)
    assert ended.code == 1, ended.err
    step = json.loads(ended.out.splitlines()[-1])["step"]
    assert step["error_kinds"] == {"ConnectionFailedError": step["requests"]}
    assert step["errors"] == step["requests"] > 0
    assert step["requests_per_second"] == step["pairs_per_second"] == 0
    assert step["latency"] is None
    assert "load: ConnectionFailedError, the first: clickbert_onnx at" in ended.err


def test_a_signal_ends_locust_and_the_server(published_repository: Path, published_log: Path, logs: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "load", "--repository", published_repository, "--data", published_log]
    with (logs.parent / "output").open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
    run = psutil.Process(process.pid)
    eventually(lambda: bool(locusts(run)))
    children = run.children(recursive=True)
    assert "tritonserver" in {child.name() for child in children}
    process.send_signal(signal.SIGTERM)  # Ctrl-C has the same handler
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert "Traceback" not in (logs.parent / "output").read_text()
    assert not list(logs.glob("clickbert-*"))


def test_a_locust_that_dies_is_an_error_that_keeps_its_log(
    published_server: Server, published_log: Path, logs: Path
) -> None:
    def kill() -> None:
        eventually(lambda: bool(locusts()))
        locusts()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = command("load", "--url", published_server.addresses.grpc, "--data", published_log, **FAST)
    killer.join()
    assert (ended.code, ended.out) == (1, "")
    assert "Locust ended with code -9 and without results" in ended.err
    (kept,) = logs.glob("clickbert-*/run-*/generator-0.log")
    assert str(kept) in ended.err


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
        (("--repository", "nowhere"), "`python -m export`"),
        (("--users", "2", "--processes", "3"), "2 users cannot be shared by 3 processes; give fewer --processes"),
    ],
)
def test_an_error_is_told_before_any_load(
    given: tuple[str, ...], message: str, published_log: Path, logs: Path
) -> None:
    data = () if "--data" in given else ("--data", published_log)
    ended = command("load", *given, *data)
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err
    assert not list(logs.glob("clickbert-*"))


def test_a_model_that_the_server_does_not_have_is_named(published_server: Server, published_log: Path) -> None:
    given = ("--url", published_server.addresses.grpc, "--data", published_log, "--model", "other")
    ended = command("load", *given)
    assert ended.code == 1
    assert "other at " in ended.err


def test_a_load_without_a_request_in_its_window_is_an_error(published_server: Server, published_log: Path) -> None:
    given = ("--url", published_server.addresses.grpc, "--data", published_log, "--rate", "0.1", "--duration", "1")
    ended = command("load", *given, **FAST)
    assert (ended.code, ended.out) == (1, "")
    assert "no request started in the 1 s measured; give a longer --duration" in ended.err


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
def test_wrong_usage(given: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("load", *given)
    assert stopped.value.code == 2
