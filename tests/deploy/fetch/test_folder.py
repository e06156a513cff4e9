"""A repository is fetched from a folder whole and verified, or nothing is left; the error names the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.fetch.run import main
from tests.deploy.fetch.conftest import FAULTS, MODEL, content, expected, flip, names
from tests.waiting import eventually

COMMAND = [sys.executable, "-m", "deploy", "fetch"]


def test_it_is_copied_without_what_is_not_published(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "volume" / "repository"
    assert main([str(repository), str(there)]) == 0
    assert content(there) == expected(repository, str(repository))
    assert f"{there} is whole: {MODEL} 3, clickbert_tokenizer 3" in capsys.readouterr().out
    assert names(there.parent) == ["repository"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_named_and_nothing_is_left(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    damage, message = FAULTS[fault]
    damage(repository)
    assert main([str(repository), str(tmp_path / "volume" / "repository")]) == 1
    said = capsys.readouterr().err
    assert f"{repository} is refused: " in said and message in said and ".staging" not in said
    assert not names(tmp_path / "volume")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere is no folder"),
        ("gs://bucket/prefix", "cannot be fetched: give s3://BUCKET/PREFIX, or a folder"),
    ],
)
def test_a_source_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    assert main([source, str(tmp_path / "repository")]) == 1
    assert message in capsys.readouterr().err
    assert not names(tmp_path)


def test_a_link_is_no_way_out(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / MODEL / "4").symlink_to(repository / MODEL / "3")
    assert main([str(repository), str(tmp_path / "there")]) == 1
    assert f"{repository / MODEL / '4'} is a link to a folder" in capsys.readouterr().err


def test_a_link_to_a_file_outside_is_refused_and_one_inside_is_copied(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = repository / MODEL / "note"
    (tmp_path / "secret").write_text("of others", encoding="utf-8")
    link.symlink_to(tmp_path / "secret")
    assert main([str(repository), str(tmp_path / "there")]) == 1
    assert f"{link} is a link that leads out of {repository}" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()
    link.unlink()
    link.symlink_to("config.pbtxt")
    assert main([str(repository), str(tmp_path / "there")]) == 0
    copy = tmp_path / "there" / MODEL / "note"
    assert not copy.is_symlink() and copy.read_bytes() == (repository / MODEL / "config.pbtxt").read_bytes()


def test_again_it_stays_if_it_is_whole_and_is_fetched_anew_if_not(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    assert main([str(repository), str(there)]) == 0
    inode = (there / MODEL / "3" / "model.onnx").stat().st_ino
    assert main([str(repository), str(there)]) == 0
    assert "was fetched before and is whole" in capsys.readouterr().out
    assert (there / MODEL / "3" / "model.onnx").stat().st_ino == inode
    flip(there / MODEL / "3" / "model.onnx")
    assert main([str(repository), str(there)]) == 0
    assert f"{there / MODEL}/3/model.onnx is damaged" in capsys.readouterr().err
    assert content(there) == expected(repository, str(repository))


def test_a_folder_with_something_else_is_left_alone(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(repository)
    assert main([str(tmp_path / "other"), str(repository)]) == 1
    assert f"{repository} is not empty, and was not fetched from {tmp_path / 'other'}" in capsys.readouterr().err
    assert content(repository) == before


def test_a_signal_leaves_nothing_and_a_killed_one_is_cleaned_up(repository: Path, tmp_path: Path) -> None:
    """A pipe stands for a slow disk: who reads it waits for who writes it."""
    slow = repository / MODEL / "warmup" / "slow"
    os.mkfifo(slow)
    there = tmp_path / "volume" / "repository"
    for number, code, left in ((signal.SIGTERM, 130, []), (signal.SIGKILL, -9, ["repository.staging"])):
        process = subprocess.Popen([*COMMAND, repository, there], stderr=subprocess.PIPE, text=True)
        try:
            eventually((there.with_name("repository.staging") / MODEL / "config.pbtxt").exists)
        finally:
            process.send_signal(number)
            assert process.wait(timeout=60) == code
        assert names(there.parent) == left
    slow.unlink()
    assert main([str(repository), str(there)]) == 0
    assert names(there.parent) == ["repository"] and content(there) == expected(repository, str(repository))


def test_a_full_disk_leaves_nothing(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_disk: Callable[[Path, int], Path]
) -> None:
    disk = small_disk(tmp_path / "disk", 1 << 20)
    assert main([str(repository), str(disk / "there")]) == 1
    assert "give the volume more" in capsys.readouterr().err and not names(disk)


def test_a_disk_that_others_fill_meanwhile_leaves_nothing(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_disk: Callable[[Path, int], Path]
) -> None:
    """The file grows while it is copied, beyond what was free when it was looked at."""
    disk = small_disk(tmp_path / "disk", 6 << 20)
    slow = repository / MODEL / "warmup" / "slow"
    os.mkfifo(slow)
    writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={slow}", "bs=1M", "count=8"], stderr=subprocess.DEVNULL)
    try:
        assert main([str(repository), str(disk / "there")]) == 1
    finally:
        writer.kill()
        writer.wait()
    assert "No space left on device" in capsys.readouterr().err and not names(disk)
