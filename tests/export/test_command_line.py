"""`python -m export` as a command: quick to explain itself, and clean behind itself."""

from __future__ import annotations

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
    ("options", "said"),
    [
        (("--tolerance", "1e-12"), "parity failed"),
        (("--min-auc", "0.999"), "AUC in PyTorch"),
        (("--calibration", "/nowhere/train.jsonl"), "/nowhere/train.jsonl"),
        (("--click-label", "7"), "7"),
    ],
)
def test_a_failed_export_leaves_nothing_behind(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, options: tuple[str, ...], said: str
) -> None:
    new = tmp_path / "some" / "new"
    options = ("--report", str(new / "reports" / "report.html"), *options)
    assert run(checkpoint, new / "repository", log, *engines("onnx_int8"), *WIDE, *options) == 1
    assert said in capsys.readouterr().err
    assert everything(tmp_path) == []


def test_a_failed_gate_leaves_its_report_alone(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx_int8"), *WIDE, "--int8-auc", "0") == 1
    assert "loss of AUC is" in capsys.readouterr().err
    assert everything(tmp_path) == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing was published: the ranking is not kept" in page
    assert "checkpoint</td><td>checkpoint, SHA-256" in page
    assert "--int8-auc 0" in page


def test_the_former_report_stays_until_a_new_one_is_complete(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of the export before")
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx"), "--tolerance", "1e-12") == 1
    assert (tmp_path / "report.html").read_text() == "of the export before"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_report_that_fails_takes_nothing_back_that_was_published(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    (tmp_path / "report.html").write_text("of the export before")
    monkeypatch.setattr("export.verify.report.write_whole", fail)
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
