"""`python -m benchmarks`: what it takes, and what it says of errors."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.load_gen.target import LoadError
from benchmarks.load_gen.workload import WorkloadError
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


@pytest.mark.parametrize("name", ["demo", *benchmarks.COMMANDS])
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmarks.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: python -m benchmarks {name}" in capsys.readouterr().out


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--help"])
    said = capsys.readouterr().out
    for name, (_, text) in benchmarks.COMMANDS.items():
        assert f"    {name} " in said
        assert text in said


@pytest.mark.parametrize(
    "words", [[], ["other"], ["load", "--nonsense"], ["saturate", "--slo", "fast"], ["tune", "--wri"]]
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 2


@pytest.mark.parametrize("error", [LoadError, WorkloadError, ServingError, ClickLogError, FileNotFoundError])
def test_an_error_is_said_and_ends_with_1(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> None:
        raise error("what was wrong")

    monkeypatch.setattr(benchmarks.load, "run", run)
    said = command("load")
    assert (said.code, said.out, said.err) == (1, "", "load: what was wrong\n")


def test_a_bug_is_no_expected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.load, "run", lambda _: {}["bug"])
    with pytest.raises(KeyError):
        command("load")


def test_what_a_command_returns_is_the_last_line_or_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.tune, "run", lambda _: {"name": "clické"})
    assert command("tune") == (0, '{"name": "clické"}\n', "")
    monkeypatch.setattr(benchmarks.load, "run", lambda _: 1)
    assert command("load") == (1, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interruption(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.load, "run", lambda _: signal.raise_signal(number))
    said = command("load")
    assert (said.code, said.err) == (130, "load: interrupted\n")


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    monkeypatch.setattr(benchmarks.load, "run", lambda _: signal.raise_signal(signal.SIGHUP) or 0)
    assert command("load").code == 0
