"""What the gates found, on the screen and as a page."""

from __future__ import annotations

import base64
import html
import json
import re
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from export.engines import find_engines
from export.report.report import METRIC_NAMES, About, check_writable, screen_table, write_report
from export.report.result import Result
from export.verify.comparison import METRICS, Comparison, Difference
from export.verify.evaluation import Evaluation
from export.verify.gates import Check
from export.verify.parity import Parity

REFERENCE = np.linspace(-3, 3, 40, dtype=np.float32).reshape(20, 2)
EVALUATION = Evaluation([], [], ["no click", "click"], REFERENCE, {})
ABOUT = About(
    "my-bert", "c0ffee", "2026-11-28 06:00 UTC", "test.jsonl", "decade", "python -m export --engine 'onnx'", version=7
)


def result(name: str, *checks: Check, auc: float = -0.00123) -> Result:
    differences = {"auc": auc, "log_loss": 0.00234, "ece": -0.00345, "ndcg_at_10": 0.00456}
    metrics = {metric: Difference(0.7, 0.7 + by, by, by - 0.01, by + 0.01) for metric, by in differences.items()}
    comparison = Comparison(0.123, 0.0456, metrics, 0.9876, 0.0432, 0.0321, 0.0765, 0.0654, pairs=20, groups=4)
    speed = None if name.startswith("trt") else 321.4
    logits = REFERENCE + np.float32(0.1)
    return Result(find_engines()[name], comparison, list(checks), logits, 12_345_678, {}, speed)


GOOD = Check("loss of AUC", 0.00123, 0.002)
RESULTS = [
    result("onnx", Check("largest difference of a logit", 2e-6, 1e-4)),
    result("onnx_int8", GOOD, Check("top-1 changed beyond the tie", 0.0321, 0.02)),
    result("trt_fp16", Check("largest FP16 activation", float("nan"), 65504)),
    result("trt_int8", GOOD, auc=0.005),
]


def texts(page: str) -> list[str]:
    """What a reader sees of a page: the texts between its tags."""
    return [html.unescape(text).strip() for text in re.split(r"<[^>]*>", page)]


def write(path: Path, results: list[Result] = RESULTS, about: About = ABOUT) -> str:
    write_report(path, about, results, EVALUATION)
    return path.read_text(encoding="utf-8")


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    page = write(tmp_path / "new" / "folder" / "report.html")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["report.html"]
    images = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', page)
    assert len(images) == page.count("<img") == 2
    assert all(base64.b64decode(image, validate=True).startswith(b"\x89PNG\r\n") for image in images)
    for image in images:
        page = page.replace(image, "")
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe|href|srcset", page)
    assert page.count("src=") == 2


def test_the_page_has_every_engine_metric_and_check(tmp_path: Path) -> None:
    lines = texts(write(tmp_path / "report.html"))
    for one in RESULTS:
        assert one.engine.model in lines
    for expected in (
        *(f"Δ {name}" for name in METRIC_NAMES.values()),
        "-0.00123",
        "+0.00234",
        "3.21 %",
        "6.54 %",
        "12.3",
        "321",
    ):
        assert expected in lines, expected
    assert any(line.endswith(", 20 pairs in 4 groups") for line in lines)
    for name in (
        "largest difference of a logit",
        "loss of AUC",
        "top-1 changed beyond the tie",
        "largest FP16 activation",
    ):
        assert name in lines


def test_the_page_says_which_export_it_is_about(tmp_path: Path) -> None:
    shown = " ".join(texts(write(tmp_path / "report.html")))
    assert "Published as version 7." in shown
    for fact in (ABOUT.checkpoint, ABOUT.checkpoint_sha256, ABOUT.date, ABOUT.evaluation, ABOUT.command):
        assert fact in shown


@pytest.mark.parametrize("results", [RESULTS, []], ids=["with figures", "before any"])
def test_the_page_says_why_nothing_was_published(tmp_path: Path, results: list[Result]) -> None:
    refused = replace(ABOUT, version=None, refusal="the ranking is not kept")
    shown = " ".join(texts(write(tmp_path / "report.html", results, refused)))
    assert "Nothing was published: the ranking is not kept" in shown
    assert "Published as" not in shown
    for fact in (ABOUT.checkpoint, ABOUT.checkpoint_sha256, ABOUT.date, ABOUT.evaluation, ABOUT.command):
        assert fact in shown
    assert ("The gates" in shown) == bool(results)


def test_a_place_that_cannot_be_written_is_found_and_nothing_changes(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "report.html")
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file" / "report.html", tmp_path, Path("/proc/nowhere/report.html")):
        with pytest.raises(OSError, match=str(path.name if path == tmp_path else path.parent.name)):
            check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_check_stands_out_on_the_page(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html")
    assert page.count('<td class="failed">FAILED<') == page.count("FAILED") == 4  # two engines, and a check of each
    assert "FAILED" not in write(tmp_path / "good.html", [RESULTS[0], RESULTS[3]])


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = copy(find_engines()["onnx"])
    odd.model = "<script>alert('x')</script> & co"
    check = Check("<b>loss</b>", 1, 0)
    page = write(tmp_path / "report.html", [replace(RESULTS[0], engine=odd, checks=[check])])
    assert "<script" not in page
    assert "<b>" not in page
    assert {odd.model, check.name} <= set(texts(page))


def test_another_label_count_is_drawn_too(tmp_path: Path) -> None:
    one = replace(RESULTS[0], logits=REFERENCE[:, :1])
    evaluation = replace(EVALUATION, logits=REFERENCE[:, :1], labels=["click"])
    write_report(tmp_path / "report.html", ABOUT, [one], evaluation)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_full_disk_leaves_the_former_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("former")
    (tmp_path / "report.html.staging").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]
    assert "former" not in write(path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write(tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_the_table_has_a_column_for_each_engine_and_a_line_for_each_figure() -> None:
    table = screen_table(RESULTS)
    lines = table.splitlines()
    assert lines[0].split() == ["engine", *(one.engine.model for one in RESULTS)]
    assert lines[1].split() == ["gate", "passed", "FAILED", "FAILED", "passed"]
    figures = {line[:28].strip(): line[28:].split() for line in lines[2:15]}
    assert figures["Δ AUC"] == ["-0.00123", "-0.00123", "-0.00123", "+0.00500"]
    assert figures["Δ log-loss"] == ["+0.00234"] * 4
    assert figures["Δ ECE"] == ["-0.00345"] * 4
    assert figures["Δ NDCG@10"] == ["+0.00456"] * 4
    assert figures["max |Δlogit|"] == ["0.12"] * 4
    assert figures["top-1 changed"] == ["4.32", "%"] * 4
    assert figures["top-1 changed beyond the tie"] == ["3.21", "%"] * 4
    assert figures["MB"] == ["12.3"] * 4
    assert figures["pairs/s"] == ["321", "321", "-", "-"]
    assert all(METRIC_NAMES[metric] in table for metric in METRICS)
    assert len({len(line) for line in lines[:15]}) == 1  # the columns are straight


def test_the_table_says_what_failed() -> None:
    lines = screen_table(RESULTS).splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED clickbert_onnx_int8: top-1 changed beyond the tie 0.0321, allowed 0.02",
        "FAILED clickbert_trt_fp16: largest FP16 activation nan, allowed 65504",
    ]
    assert "ok     clickbert_trt_int8: loss of AUC 0.00123, allowed 0.002" in lines


def test_a_result_passes_if_all_checks_do() -> None:
    assert [one.passed for one in RESULTS] == [True, False, False, True]


def test_the_proof_is_json_and_holds_every_figure() -> None:
    parity = Parity(1e-6, 1e-7, 1e-4, 20, 5, 1, 8, 4)
    proof = asdict(replace(RESULTS[1], fp16_range={"add_473": 10006.5}).proof(parity))
    assert json.loads(json.dumps(proof, allow_nan=False)) == proof | {"gate": list(proof["gate"])}
    assert (proof["engine"], proof["precision"], proof["bytes"]) == ("onnx_int8", "int8", 12_345_678)
    assert proof["comparison"]["metrics"]["auc"] == {
        "reference": 0.7,
        "engine": pytest.approx(0.69877),
        "difference": -0.00123,
        "low": pytest.approx(-0.01123),
        "high": pytest.approx(0.00877),
    }
    assert proof["comparison"]["top1_changed_beyond_tie"] == 0.0321
    assert [one["passed"] for one in proof["gate"]] == [True, False]
    assert proof["gate"][1] == {
        "name": "top-1 changed beyond the tie",
        "value": 0.0321,
        "limit": 0.02,
        "passed": False,
    }
    assert proof["cpu_pairs_per_second"] == 321.4
    assert proof["largest_fp16_activations"] == {"add_473": 10006.5}
