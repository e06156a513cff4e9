"""gevent: where it has patched the standard library and gRPC waits through it, a ranker's calls wait side by side.

Each test runs in a process of its own (`greenlets.py`), because gevent changes the whole process.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.client.fakes import FakeTriton, holding_the_first

pytest.importorskip("gevent")

GREENLETS = Path(__file__).with_name("greenlets.py")
AT_ONCE = 16  # the threads of the server


def run(url: str, scenario: str, reached: threading.Event | None = None) -> list[str]:
    """The lines that the scenario prints. It is told when its first call has reached the server."""
    command = [sys.executable, str(GREENLETS), url, scenario]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        try:
            assert reached is None or reached.wait(60)
            output, _ = process.communicate("go\n", timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children, too
    assert process.returncode == 0, output
    return output.splitlines()


def answer_none_before(server: FakeTriton, count: int) -> None:
    """Leaves the click model's requests unanswered until so many wait at once."""
    lock, waiting, enough = threading.Lock(), [0], threading.Event()

    def wait(answer):
        if "logits" in answer.outputs:
            with lock:
                waiting[0] += 1
                if waiting[0] == count:
                    enough.set()
            assert enough.wait(60)
        return answer

    server.after_infer = wait


def test_greenlets_wait_for_the_server_side_by_side(server, url):
    answer_none_before(server, AT_ONCE)
    assert run(url, "rank") == ["48 of 48", "48 of 48"]


def test_a_fork_amid_greenlets_loses_no_call(server, url):
    with holding_the_first(server) as reached:
        assert run(url, "fork", reached) == ["child 48 of 48", "parent 1"]


def test_a_fork_without_calls_leaves_children_that_end_by_themselves(url):
    assert sorted(run(url, "idle_fork")) == ["child 2", "child 2", "ended 3 3", "parent 1"]


def test_gevent_may_end_a_call(server, url):
    with holding_the_first(server) as reached:
        assert run(url, "give_up", reached) == ["2"]


def test_asyncio_is_refused_where_threads_are_greenlets(url):
    """It would hang: the thread in which gRPC's asyncio waits is a greenlet there, and stops the process."""
    (line,) = run(url, "awaited")
    assert "use Ranker" in line
