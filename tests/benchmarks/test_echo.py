"""`python -m benchmarks echo` with a real tritonserver, on a tiny model's tokenizer: the figures fit together."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import echo
from export.__main__ import main as export
from tests.tiny import make_checkpoint, make_click_log

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def click_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_click_log(tmp_path_factory.mktemp("log") / "clicks.jsonl", groups=12)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, click_log: Path) -> Path:
    folder = tmp_path_factory.mktemp("published")
    checkpoint, published = make_checkpoint(folder / "checkpoint", labels=2), folder / "repository"
    arguments = ["--checkpoint", checkpoint, "--repository", published, "--min-auc", "0", "--evaluation", click_log]
    arguments += ["--engine", "onnx", "--report", folder / "report.html"]
    assert export([str(argument) for argument in arguments]) == 0
    return published


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    echo.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_parts_add_up(
    repository: Path, click_log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(echo, "WARM_UP", 5)
    monkeypatch.setattr(echo, "CALLS", 40)
    figures = echo.run(options("--repository", repository, "--data", click_log))
    mean = {name: part["mean"] for name, part in figures["ms"].items()}
    assert set(mean) == {echo.TOTAL, *echo.PARTS, echo.SERVER, echo.OVERHEAD, echo.EMPTY}
    assert sum(mean[part] for part in echo.PARTS) == pytest.approx(mean[echo.TOTAL])
    assert mean[echo.OVERHEAD] + mean[echo.SERVER] == pytest.approx(mean[echo.TOTAL])
    assert 0 < mean[echo.OVERHEAD] < mean[echo.TOTAL]
    assert figures["ms"][echo.EMPTY]["median"] < figures["ms"]["gRPC round trip"]["median"]
    assert all(0 < part["median"] <= part["p99"] for part in figures["ms"].values())
    # Ids and types of the tokens, one length a pair, in four bytes each; the rest is names.
    tokens = (figures["tensor_bytes"] - 4 * 20) / 8
    assert 20 * 3 <= tokens <= 20 * 48
    assert 0 < figures["message_bytes"] - figures["tensor_bytes"] < 300
    (together,) = figures["in_flight"].values()
    assert together["calls_per_s"] > 0 and together["client_cpu_ms"] > 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in figures["ms"])
    json.dumps(figures)


@pytest.mark.parametrize("config", sorted(ROOT.glob("model_repository/clickbert_*_*/config.pbtxt")), ids=str)
def test_the_graph_has_the_configs_tensors_and_echoes_the_lengths(config: Path) -> None:
    parsed = text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    session = onnxruntime.InferenceSession(echo.echo_graph(parsed).SerializeToString())
    feed = {entry.name: np.zeros(3, np.int32) for entry in session.get_inputs()}
    assert set(feed) == {entry.name for entry in parsed.input} | {entry.target_name[0] for entry in parsed.batch_input}
    (logits,) = session.run(["logits"], feed | {"lengths": np.array([3, 500], np.int32)})
    assert logits.dtype == np.float32 and logits == pytest.approx(np.array([[0.003], [0.5]]))
