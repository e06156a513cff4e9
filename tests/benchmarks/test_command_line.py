"""`python -m benchmarks`: what it takes, and what it says of errors."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks import BenchmarkError, load
from benchmarks import __main__ as benchmarks
from finetune.data.clicklog import ClickLogError
from serving.triton import ServingError
from tests.benchmarks.conftest import command


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were: the command sets handlers of its own."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", benchmarks.COMMANDS)
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmarks.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m benchmarks {name}" in capsys.readouterr().out


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--help"])
    shown = capsys.readouterr().out
    for name, listed in benchmarks.COMMANDS.items():
        assert f"    {name} " in shown
        assert listed.help in shown


@pytest.mark.parametrize(
    "words", [[], ["other"], ["load", "--nonsense"], ["saturate", "--slo", "fast"], ["tune", "--wri"]]
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2


@pytest.mark.parametrize("error", [BenchmarkError, ServingError, ClickLogError, FileNotFoundError])
def test_an_error_is_reported_and_ends_with_1(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> None:
        raise error("what was wrong")

    monkeypatch.setattr(load, "run", run)
    ended = command("load")
    assert (ended.code, ended.out, ended.err) == (1, "", "load: what was wrong\n")


def test_a_bug_is_no_expected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "run", lambda _: {}["bug"])
    with pytest.raises(KeyError):
        command("load")


def test_the_exit_code_is_what_the_command_returns_and_settings_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "run", lambda _, timing: timing)
    assert command("load", timing=3) == (3, "", "")


def test_no_help_imports_what_a_command_runs_on() -> None:
    code = """
import contextlib
import sys
from benchmarks.__main__ import COMMANDS, main
for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
    with contextlib.suppress(SystemExit):
        main(words)
heavy = {"torch", "transformers", "sklearn", "onnx", "onnxruntime", "matplotlib", "locust"}
heavy |= {command.module for command in COMMANDS.values()}
print("imported:", *sorted(heavy & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interruption(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "run", lambda _: signal.raise_signal(number))
    former = signal.signal(number, signal.SIG_DFL)  # under nohup the tests ignore one of them
    try:
        ended = command("load")
    finally:
        signal.signal(number, former)
    assert (ended.code, ended.err) == (130, "load: interrupted\n")


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    monkeypatch.setattr(load, "run", lambda _: signal.raise_signal(signal.SIGHUP) or 0)
    assert command("load").code == 0
