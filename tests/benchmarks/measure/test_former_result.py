"""What `--compare` is given: a whole result of a climb, or an error that says what it is instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load_gen.target import LoadError
from benchmarks.measure.compare import read_result
from tests.benchmarks.report.test_page import make_result


def test_a_written_result_is_read(tmp_path: Path) -> None:
    result = make_result()
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    "spoil",
    [
        lambda result: result["models"].clear(),
        lambda result: result["models"].update(clickbert_onnx=3),
        lambda result: result["models"]["clickbert_onnx"].pop("rounds"),
        lambda result: result["models"]["clickbert_onnx"]["rounds"].clear(),
        lambda result: result["models"]["clickbert_onnx"]["open"][0].pop("share"),
        lambda result: result["models"]["clickbert_onnx"]["open"][0].pop("generator"),
        lambda result: result["models"]["clickbert_onnx"]["rounds"][1].pop("left_of_ceiling"),
        lambda result: result["models"]["clickbert_onnx"]["ceiling"].update(rounds=None),
        lambda result: result.pop("time"),
        lambda result: result.update(complete=False),
    ],
)
def test_a_result_that_lacks_something_is_refused_before_anything_is_measured(
    tmp_path: Path, spoil: Callable[[dict], Any]
) -> None:
    result = make_result()
    spoil(result)
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(LoadError, match=r"result\.json is no whole result of a climb"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is no result of a climb"),
        (b'{"models": {}}', "is no result of a climb"),
        (b'{"schema": 2}', "has schema 2, and only 3"),
        (b'{"schema": 3}', r"is no whole result of a climb \(KeyError: 'complete'\)"),
        (b'{"schema": 3, "complete": true, "workload": []}', r"is no whole result of a climb \(TypeError"),
    ],
)
def test_what_is_no_result_is_refused_with_its_path(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=reason) as caught:
        read_result(path)
    assert str(path) in str(caught.value)
