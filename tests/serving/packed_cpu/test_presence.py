"""Processes that live, end in good order, or die: what their files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.backends.packed_cpu.presence import Presence, find_dead
from tests.waiting import eventually

OTHER = """
import sys, time
from pathlib import Path
from serving.backends.packed_cpu.presence import Presence
own = Presence(Path(sys.argv[1]), "model.3")
print("there", flush=True)
sys.stdin.readline()
own.leave()
"""


@pytest.fixture
def other(tmp_path: Path):
    (tmp_path / "backend").mkdir()
    command = [sys.executable, "-c", OTHER, str(tmp_path / "backend")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def test_a_process_that_lives_is_not_dead(other: subprocess.Popen, tmp_path: Path) -> None:
    assert find_dead(tmp_path) == []


def test_a_killed_process_is_found_dead_again_and_again(other: subprocess.Popen, tmp_path: Path) -> None:
    other.kill()
    other.wait()
    eventually(lambda: find_dead(tmp_path) == [f"model.3.{other.pid}"])
    assert find_dead(tmp_path) == [f"model.3.{other.pid}"]


def test_a_process_that_ends_in_good_order_is_not_dead(other: subprocess.Popen, tmp_path: Path) -> None:
    other.communicate("\n")
    assert other.returncode == 0
    assert find_dead(tmp_path) == []


def test_two_versions_of_a_model_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    old, new = (Presence(tmp_path / "backend", f"model.{version}") for version in (1, 2))
    old.leave()
    assert len(list((tmp_path / "backend" / "processes").iterdir())) == 1
    new.leave()
    assert find_dead(tmp_path) == []


def test_a_server_without_such_backends_has_no_dead(tmp_path: Path) -> None:
    assert find_dead(tmp_path / "absent") == []


def test_a_folder_that_cannot_be_written_to_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    presence = Presence(tmp_path / "absent" / "backend", "model.3")
    presence.leave()
    assert find_dead(tmp_path) == []
