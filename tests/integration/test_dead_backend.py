"""A backend's process that is killed: callers learn it at once, and the server comes back by itself."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clickbert import ConnectionFailedError, Ranker, ServerError
from tests.integration.scores import PATIENCE
from tests.processes import children
from tests.serving.test_server import Command, left_of_servers
from tests.waiting import eventually

DOCUMENTS = [f"w{number} w2 w3" for number in range(32)]
CALLERS = 8


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "clickbert"


def backend_of(command: Command, model: str) -> int:
    """The process of a model's backend."""

    def arguments(process: int) -> str:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    (found,) = [each for each in children(command.triton()) if f"/{model}/" in arguments(each)]
    return found


def answers(ranker: Ranker) -> bool:
    try:
        return len(ranker.rank("w1", DOCUMENTS)) == len(DOCUMENTS)
    except ConnectionFailedError:
        return False


def test_the_tokenizers_process_is_looked_after_too(published_repository: Path, tmp_path: Path, state: Path) -> None:
    with Command(published_repository, tmp_path) as command:
        os.kill(backend_of(command, "clickbert_tokenizer"), signal.SIGKILL)
        assert command.process.stdout
        assert "ready" in command.process.stdout.readline()  # a second time
        with Ranker(command.addresses.grpc, timeout=PATIENCE) as ranker:
            assert len(ranker.rank("w1", DOCUMENTS)) == len(DOCUMENTS)


def test_calls_in_flight_end_within_a_second_and_the_server_comes_back(
    published_repository: Path, tmp_path: Path, state: Path
) -> None:
    with Command(published_repository, tmp_path) as command:
        url = command.addresses.grpc
        with Ranker(url, timeout=PATIENCE) as ranker:
            expected = ranker.score_pairs([("w1", document) for document in DOCUMENTS])
            backend = backend_of(command, "clickbert_onnx")
            killed = 0.0

            def call() -> tuple[type[Exception], float]:
                """Asks until it fails; the error, and the seconds from the kill to it."""
                while True:
                    try:
                        ranker.rank("w1", DOCUMENTS)
                    except ServerError as exc:
                        return type(exc), time.monotonic() - killed

            with ThreadPoolExecutor(CALLERS) as pool:
                calls = [pool.submit(call) for _ in range(CALLERS)]
                os.kill(backend, signal.SIGSTOP)  # so that every caller has a call in flight
                time.sleep(0.5)
                assert not any(each.done() for each in calls)
                killed = time.monotonic()
                os.kill(backend, signal.SIGKILL)
                ends = [each.result(PATIENCE) for each in calls]
            assert {error for error, _ in ends} == {ConnectionFailedError}
            assert max(seconds for _, seconds in ends) < 1
            printed = command.process.stdout
            assert printed
            assert "ready" in printed.readline()  # a second time
            eventually(lambda: answers(ranker))  # gRPC tries to connect twice a second
            assert ranker.score_pairs([("w1", document) for document in DOCUMENTS]) == pytest.approx(expected)
        log = command.log_file.read_text()
        assert f"the process of clickbert_onnx.1.{backend} died" in log
        assert "the server is started again" in log
        os.kill(backend_of(command, "clickbert_onnx"), signal.SIGKILL)  # soon after the last time
        assert command.process.wait(timeout=60) == 1
        assert "not started again" in command.log_file.read_text()
    assert left_of_servers(state) == []
