"""docs/licences.md lists what is locked, and a licence that nobody has examined is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.supply import licences
from deploy.supply.locked import CARRIED, installed

ROW = re.compile(r"^\| ([\w.-]+) \| (\S+) \| (.+) \| (.+) \|$", re.MULTILINE)


def bill(*licence: dict[str, Any]) -> dict[str, Any]:
    inner = {"type": "application", "name": "engine", "version": "9", "licenses": [{"license": {"id": "MIT"}}]}
    package = {"name": "A_Package", "version": "1", "licenses": list(licence), "components": [inner]}
    return {"components": [package]}


def test_the_page_lists_what_is_locked_and_who_carries_it() -> None:
    rows = {name: (version, who.split(", ")) for name, version, _, who in ROW.findall(licences.PAGE.read_text())}
    expected: dict[str, tuple[str, list[str]]] = {}
    for carrier, files in CARRIED.items():
        for name, version in installed(files).items():
            expected.setdefault(name, (version, []))[1].append(carrier)
    rows.pop("package")
    assert rows == expected, "run `make licences`"


def test_every_licence_on_the_page_is_allowed() -> None:
    found = [licence for name, _, licence, _ in ROW.findall(licences.PAGE.read_text()) if name != "package"]
    assert len(found) > 20
    assert all(map(licences.allowed, found))


@pytest.mark.parametrize("licence", ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH LLVM-exception"])
def test_a_licence_that_nobody_examined_is_refused(licence: str) -> None:
    assert not licences.allowed(licence)
    assert licences.allowed("(MIT OR Apache-2.0) AND BSD-3-Clause")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("License :: OSI Approved :: BSD License", "MIT"), ("License :: Other/Proprietary License", "")],
)
def test_words_beside_a_known_licence_count_unless_they_only_say_less(words: str, expected: str) -> None:
    (row, _) = licences.collect({"cpu": bill({"license": {"id": "MIT"}}, {"license": {"name": words}})})
    assert row.licence == expected


def test_a_package_without_a_known_licence_is_named_and_no_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(licences, "PAGE", tmp_path / "licences.md")
    for name in CARRIED:
        content = bill({"license": {"name": "Do What You Like"}})
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert licences.main(["--sbom", str(tmp_path)]) == 1
    assert "a-package 1: no licence in SPDX terms is not allowed" in capsys.readouterr().err
    assert not licences.PAGE.exists()


def test_a_program_inside_a_package_has_a_line_of_its_own() -> None:
    rows = licences.collect({"cpu": bill({"expression": "MIT"}), "gpu": bill({"expression": "MIT"})})
    assert list(map(str, rows)) == [
        "| a-package | 1 | MIT | cpu, gpu |",
        "| engine (in A_Package) | 9 | MIT | cpu, gpu |",
    ]
