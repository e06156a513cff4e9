"""`python -m deploy`: every command that it names is there."""

import importlib
import inspect

import pytest

from deploy.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_a_main_that_takes_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(inspect.signature(importlib.import_module(COMMANDS[name]).main).parameters)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m deploy {name}" in capsys.readouterr().out


def test_help_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"python -m deploy {name}" in shown for name in COMMANDS)


def test_an_unknown_command_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gatway"]) == 2
    assert "'gatway'; there are gateway" in capsys.readouterr().err
