"""Adding an engine is adding a file: a fifth one is offered, built, gated, drawn and published, and no list changes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.colors
import pytest

import export.engines
from export.cli import parse
from export.engines import colour_of, find_engines
from export.publish import TEMPLATES
from export.report import report
from release.names import ONNX_MODEL
from tests.export.command import WIDE, engines, run

FIFTH = """
from export.engines.onnx_int8 import OnnxInt8
from export.verify.gates import Gate

class Fifth(OnnxInt8):
    name, model, colour = "fifth", "clickbert_fifth", "#123456"
    gates = (Gate("fifth_tau", 0.5, "fifth: largest loss of tau", "loss of tau", lambda found: 1 - found.kendall_tau),)
    def add_files(self, folder, evaluation, limits):
        (folder / "pairs.txt").write_text(str(len(evaluation.pairs)))

ENGINE = Fifth()
"""
BEFORE = find_engines()


@pytest.fixture
def fifth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "fifth_engine.py").write_text(FIFTH)
    monkeypatch.setattr(export.engines, "__path__", [*export.engines.__path__, str(tmp_path / "engines")])
    yield
    sys.modules.pop("export.engines.fifth_engine", None)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With the config that a new engine needs."""
    shutil.copytree(
        TEMPLATES / ONNX_MODEL, tmp_path / "repository" / "clickbert_fifth", ignore=shutil.ignore_patterns("[0-9]*")
    )
    return tmp_path / "repository"


@pytest.mark.usefixtures("fifth")
def test_a_fifth_engine_is_one_file(
    checkpoint: Path, log: Path, repository: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    image = report.image
    monkeypatch.setattr(report, "image", lambda figure, alt: figures.append(figure) or image(figure, alt))
    assert run(checkpoint, repository, log, *engines("onnx", "fifth"), *WIDE, "--fifth-tau", "0.25") == 0
    output = capsys.readouterr().out
    assert "clickbert_fifth" in output.splitlines()[0]
    assert "ok     clickbert_fifth: loss of tau" in output
    assert "allowed 0.25" in output
    assert json.loads(output.splitlines()[-1])["models"]["clickbert_fifth"]["engine"] == "fifth"
    version = repository / "clickbert_fifth" / "1"
    assert {path.name for path in version.iterdir()} == {
        "model.onnx",
        "manifest.json",
        "manifest.json.sha256",
        "pairs.txt",
    }
    manifest = json.loads((version / "manifest.json").read_text())
    assert "loss of tau" in json.dumps(manifest)
    assert "pairs.txt" in manifest["files"]
    assert "clickbert_fifth" in (repository.parent / "report.html").read_text(encoding="utf-8")
    for figure in figures:
        assert "#123456" in colours_in(figure)
    assert len(figures) == 2


def colours_in(figure) -> set[str]:
    """The colours of all points and lines."""
    points = [row for axes in figure.axes for drawn in axes.collections for row in drawn.get_facecolor()]
    return {matplotlib.colors.to_hex(colour) for colour in points} | {
        matplotlib.colors.to_hex(line.get_color()) for axes in figure.axes for line in axes.lines
    }


@pytest.mark.usefixtures("fifth")
def test_the_command_offers_it_with_its_gate() -> None:
    assert list(find_engines()) == sorted([*BEFORE, "fifth"])
    options = parse(["--engine", "fifth", "--fifth-tau", "0.1"])
    assert (options.engine, options.fifth_tau) == (["fifth"], 0.1)
    assert colour_of("clickbert_fifth") == "#123456"


@pytest.mark.usefixtures("fifth")
def test_a_model_without_a_config_is_refused_before_it_is_built(checkpoint: Path, log: Path, tmp_path, capsys) -> None:
    assert run(checkpoint, tmp_path / "repository", log, *engines("fifth"), *WIDE) == 1
    error = capsys.readouterr().err
    assert "clickbert_fifth has no config.pbtxt" in error
    assert "score" not in error
    assert not (tmp_path / "repository").exists()


def test_no_two_engines_share_a_name_a_model_or_a_colour() -> None:
    found = find_engines().values()
    for attribute in ("name", "model", "colour"):
        assert len({getattr(engine, attribute) for engine in found}) == len(found)


def test_a_model_that_no_engine_makes_has_a_colour_of_its_own_that_stays() -> None:
    known = {engine.colour for engine in find_engines().values()}
    assert colour_of("infinity") == colour_of("infinity") not in known
