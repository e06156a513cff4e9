"""`python -m export plan -- COMMAND`, by which the gpu container starts: builds, then becomes the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.plan import main
from tests.processes import children
from tests.waiting import eventually

NEXT = (sys.executable, "-c", "import os, sys; print('process', os.getpid(), *sys.argv[1:])", "--address", "::")


def start(repository: Path, *command: str) -> subprocess.Popen[str]:
    # Ctrl-C counts, also where the tests run in a shell's background job, which ignores it. (Not by preexec_fn: with it
    # Python forks, and gRPC, which other tests of this process use, may abort the child.)
    words = ["env", "--default-signal=INT", sys.executable, "-m", "export", "plan"]
    words += ["--repository", str(repository), "--", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, **pipes)


def test_when_the_plans_fit_it_becomes_the_command(tmp_path: Path) -> None:
    with start(tmp_path, *NEXT) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.splitlines() == ['{"plans": {}}', f"process {process.pid} --address ::"]


def test_a_build_that_fails_ends_it(tmp_path: Path) -> None:
    with start(tmp_path / "typo", *NEXT) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (1, "")
    assert "typo is not a folder" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_build_and_there_is_no_command(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "clickbert_trt_fp16" / "config.pbtxt"
    config.parent.mkdir()
    os.mkfifo(config)  # the build waits for somebody to write it

    with start(tmp_path, *NEXT) as process:
        try:
            eventually(lambda: bool(children(process.pid)))
            (build,) = children(process.pid)
            writer = wait_for_reader(config)
            process.send_signal(number)
            output, _ = process.communicate(timeout=120)
            os.close(writer)
        finally:
            process.kill()  # else `with` waits for it
    assert process.returncode == 128 + number
    assert output == ""
    assert not Path(f"/proc/{build}").exists()


def wait_for_reader(pipe: Path) -> int:
    """A descriptor to write to it, opened as soon as somebody reads."""
    opened: list[int] = []

    def is_read() -> bool:
        try:
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    eventually(is_read)
    return opened[0]


def test_a_command_that_is_missing_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--repository", str(tmp_path), "--"]) == 2
    assert "no command behind `--`" in capfd.readouterr().err
    with start(tmp_path, "no-such-program") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 127
    assert "no-such-program cannot be executed (No such file or directory)" in errors
