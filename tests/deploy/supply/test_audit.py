"""The audit never says that nothing is known where nothing was asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.supply import audit
from deploy.supply.locked import FOLDER, read

# Each as pip-audit 2.10 prints it.
UNKNOWN = {"skip_reason": "Dependency not found on PyPI and could not be audited"}
VULNERABLE = {"version": "1", "vulns": [{"id": "PYSEC-2", "fix_versions": ["2"], "aliases": [], "description": ""}]}
CLEAN: dict[str, Any] = {"version": "1", "vulns": []}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a program in pip-audit's place answers, by the stem of the file that it is asked about."""
    known: dict[str, Any] = {}

    class Command:
        def __iter__(self) -> Any:  # read when it is run
            (tmp_path / "answers.json").write_text(json.dumps(known), encoding="utf-8")
            program = (
                "import json, pathlib, sys\n"
                f"known = json.loads(pathlib.Path({str(tmp_path / 'answers.json')!r}).read_text())\n"
                "answer = known.get(pathlib.Path(sys.argv[-1]).stem)\n"
                "sys.exit('no connection') if answer is None else None\n"
                "print(json.dumps({'dependencies': [{'name': 'it'} | answer], 'fixes': []}))\n"
            )
            return iter([sys.executable, "-c", program])

    monkeypatch.setattr(audit, "COMMAND", Command())
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    for name in ("one", "two"):
        (requirements / f"{name}.txt").touch()
    monkeypatch.setattr(audit, "FOLDER", requirements)
    return known


@pytest.mark.parametrize("vulnerable", [None, UNKNOWN, CLEAN], ids=["no connection", "not found", "no vulnerability"])
def test_a_database_that_does_not_know_a_published_vulnerability_is_not_believed(
    vulnerable: dict[str, Any] | None, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answers |= {"vulnerable": vulnerable, "one": CLEAN, "two": CLEAN}
    assert audit.main([]) == audit.NOT_AUDITED
    said = capsys.readouterr().out
    assert "NOT AUDITED" in said
    assert "no known vulnerability" not in said


def test_what_is_clean_is_said_to_be_so(answers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    answers |= {"vulnerable": VULNERABLE, "one": CLEAN, "two": CLEAN}
    assert audit.main([]) == audit.NONE_KNOWN
    assert "no known vulnerability in these packages" in capsys.readouterr().out


@pytest.mark.parametrize("other", [CLEAN, UNKNOWN, None], ids=["clean", "not found", "no connection"])
def test_a_vulnerability_is_shown_and_decides(
    other: dict[str, Any] | None, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answers |= {"vulnerable": VULNERABLE, "one": VULNERABLE, "two": other}
    assert audit.main([]) == audit.FOUND
    assert "one.txt: it 1: PYSEC-2, fixed in 2" in capsys.readouterr().out


@pytest.mark.parametrize("other", [UNKNOWN, None], ids=["not found", "no connection"])
def test_one_package_that_could_not_be_asked_for_is_not_called_clean(
    other: dict[str, Any] | None, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answers |= {"vulnerable": VULNERABLE, "one": CLEAN, "two": other}
    assert audit.main([]) == audit.NOT_AUDITED
    said = capsys.readouterr().out
    assert "two.txt" in said
    assert "no known vulnerability" not in said


def test_the_vulnerable_release_is_none_of_ours() -> None:
    name = audit.VULNERABLE.partition("==")[0]
    assert name not in {package.name for path in FOLDER.glob("*.txt") for package in read(path)}
