"""What `python -m export` refuses: broken quantization, corrupted graphs, unusable logs, a full disk."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import export.builder
import export.pipeline
import export.quantize.fit
import export.quantize.int8
from export.engines import find_engines
from export.quantize.calibration import Activations
from tests.export.command import SOUND, WIDE, engines, run
from tests.tiny import make_click_log


def at_the_median(graph: Path, linears: list, feeds: list) -> dict[str, Activations]:
    """Calibration as somebody might break it: each layer's range ends at the median magnitude of its inputs."""
    found = {}
    for name, seen in RECORD(graph, linears, feeds).items():
        middle = np.median(np.abs(seen.rows), axis=0)
        found[name] = replace(seen, low=-middle, high=middle)
    return found


RECORD = export.builder.record


@pytest.mark.parametrize("name", ["onnx_int8", "trt_int8"])
def test_a_broken_quantization_is_refused_by_the_gate(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert run(checkpoint, tmp_path / "sound" / "repository", log, *engines("onnx", name), *SOUND) == 0
    monkeypatch.setattr(export.builder, "record", at_the_median)
    monkeypatch.setattr(export.quantize.fit, "CLIPS", (1.0,))
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx", name), *SOUND) == 1
    output = capsys.readouterr()
    assert f"{find_engines()[name].model}: top-1 changed beyond the tie is" in output.err
    assert "allowed is 0.2" in output.err
    assert "FAILED" in output.out, "the table shows it"
    assert "nothing was published" in output.err
    assert not list((tmp_path / "repository").glob("*/[0-9]*")), "not the engine that passed, either"
    assert "FAILED" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_corrupted_int8_graph_is_refused(
    checkpoint: Path, log: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = export.quantize.int8.make_int8

    def corrupted(model: onnx.ModelProto, *others: object) -> None:
        make(model, *others)
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.1.output.dense.scale")
        broken = -onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array(broken, scale.name))

    monkeypatch.setattr(export.quantize.int8, "make_int8", corrupted)
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx_int8"), *SOUND) == 1
    assert "top-1 changed beyond the tie" in capsys.readouterr().err
    assert not list((tmp_path / "repository").glob("*/[0-9]*"))


def test_the_report_keeps_the_figures_of_the_engines_before_one_that_cannot_be_compared(
    checkpoint: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = export.pipeline.score_merged
    monkeypatch.setattr(
        export.pipeline,
        "score_merged",
        lambda *given, **named: {name: values * np.nan for name, values in score(*given, **named).items()},
    )
    assert run(checkpoint, tmp_path / "repository", log, *engines("onnx", "onnx_int8"), *WIDE) == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Nothing was published: clickbert_onnx_int8: the logits of" in page
    assert "<th>clickbert_onnx</th>" in page


def test_too_few_calibration_pairs_are_refused(checkpoint: Path, log: Path, tmp_path: Path, capsys) -> None:
    few = make_click_log(tmp_path / "few.jsonl", groups=5)
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--calibration", str(few)) == 1
    assert "256 at least" in capsys.readouterr().err


@pytest.mark.parametrize("click", [0, 1])
def test_an_evaluation_file_of_one_class_is_refused(checkpoint: Path, log: Path, tmp_path: Path, capsys, click) -> None:
    rows = [json.loads(line) | {"click": click} for line in log.read_text().splitlines()]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(checkpoint, tmp_path / "r", log, *engines("onnx_int8"), "--evaluation", str(tmp_path / "one.jsonl")) == 1
    assert ("no click" if click == 0 else "nothing but clicks") in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_full_half_way_publishes_nothing_and_keeps_the_former_version(
    checkpoint: Path, log: Path, tmp_path: Path, capsys
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        repository = disk / "repository"
        options = [*engines("onnx", "onnx_int8"), *WIDE, "--report", str(tmp_path / "report.html")]
        assert run(checkpoint, repository, log, *options) == 0
        files = sorted(repository.rglob("*"))
        free = shutil.disk_usage(disk).free
        graph = (repository / "clickbert_onnx" / "1" / "model.onnx").stat().st_size
        (disk / "ballast").write_bytes(bytes(max(0, free - graph - 30_000)))  # room for the first graph, not the second
        assert run(checkpoint, repository, log, *options) == 1
        error = capsys.readouterr().err
        assert "No space left" in error
        assert "nothing was published" in error
        assert sorted(repository.rglob("*")) == files
        (disk / "ballast").unlink()
        assert run(checkpoint, repository, log, *options) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "option", ["--int8-auc", "--int8-ndcg", "--int8-top1", "--int8-log-loss", "--fp16-auc", "--tie", "--tolerance"]
)
@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_limit_that_checks_nothing_is_refused(checkpoint: Path, log: Path, tmp_path: Path, option, value) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(checkpoint, tmp_path / "r", log, f"{option}={value}")
