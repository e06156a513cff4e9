"""`python -m export` as a command: quick to explain itself, and clean behind itself."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.command import WIDE, engines, run

HEAVY = {"torch", "transformers", "tokenizers", "onnx", "onnxruntime", "scipy", "sklearn", "matplotlib", "jinja2"}


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
from export.__main__ import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
    sys.exit(f"imported {{found}}" if (found := {HEAVY} & set(sys.modules)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--int8-top1" in done.stdout


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration", "/nowhere/train.jsonl"), "/nowhere/train.jsonl"),
        (("--click-label", "7"), "7"),
    ],
)
def test_an_export_that_reads_no_checkpoint_leaves_nothing_behind(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, options: tuple[str, ...], message: str
) -> None:
    new = tmp_path / "some" / "new"
    options = ("--report", str(new / "reports" / "report.html"), *options)
    assert run(checkpoint, new / "repository", log, *engines("onnx_int8"), *WIDE, *options) == 1
    assert message in capsys.readouterr().err
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tolerance", "1e-12"), "parity failed"),
        (("--min-auc", "0.999"), "AUC in PyTorch"),
        (("--max-unknown", "0"), "its tokenizer makes"),
        (("--keep-fp32", "layers.9"), "no layer"),
    ],
)
def test_a_refused_export_leaves_a_report_that_says_why_and_nothing_else(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "report.html").write_text("Published as version 1.")
    log = unknown_words(log, tmp_path / "log.jsonl")
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx_int8"), *WIDE, *options) == 1
    assert message in capsys.readouterr().err
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Nothing was published: " in page
    assert message in page
    assert "Published as version" not in page, "a former page must not pass for this export's"
    assert everything(tmp_path) == ["log.jsonl", "report.html"]


def unknown_words(log: Path, target: Path) -> Path:
    """A log with a word that no tokenizer of tests/tiny.py knows."""
    target.write_text(log.read_text().replace('"query": "', '"query": "☃ ', 1))
    return target


def test_a_failed_gate_leaves_its_report_alone(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    exact = [f"--int8-{figure}=0" for figure in ("auc", "log-loss", "ndcg", "top1")]
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx_int8"), *WIDE, *exact, "--tie=0") == 1
    assert "clickbert_onnx_int8: " in capsys.readouterr().err
    assert everything(tmp_path) == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing was published: the ranking is not kept" in page
    assert "checkpoint</td><td>checkpoint, SHA-256" in page
    assert "--int8-auc=0" in page


def test_an_interrupted_export_leaves_the_former_report(
    checkpoint: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "report.html").write_text("of the export before")
    monkeypatch.setattr("export.pipeline.prove", interrupt)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx")) == 130
    assert (tmp_path / "report.html").read_text() == "of the export before"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_report_that_fails_takes_nothing_back_that_was_published(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    (tmp_path / "report.html").write_text("of the export before")
    monkeypatch.setattr("export.report.report.write_whole", fail)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx")) == 0
    assert "could not be written: " + (str(error) or "interrupted") in capsys.readouterr().err
    assert (tmp_path / "repository" / "clickbert_onnx" / "1" / "model.onnx").exists()
    assert (tmp_path / "report.html").read_text() == "of the export before"


@pytest.mark.parametrize("repository", ["file", "file/below"])
def test_a_repository_that_cannot_be_used_is_refused_before_anything_is_scored(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, repository: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    options = ("--report", str(tmp_path / "report.html"))
    assert run(checkpoint, tmp_path / repository, log, *engines("onnx"), *options) == 1
    error = capsys.readouterr().err
    assert "cannot be used as a model repository" in error
    assert "score" not in error
    assert everything(tmp_path) == ["file"]
