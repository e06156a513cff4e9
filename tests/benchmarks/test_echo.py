"""`python -m benchmarks echo` with a real tritonserver, on a tiny model's tokenizer: the figures fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import echo
from tests.benchmarks.conftest import command
from tests.tiny import MAX_LENGTH

ROOT = Path(__file__).parents[2]


def test_the_parts_add_up(published_repository: Path, published_log: Path) -> None:
    given = ("--repository", published_repository, "--data", published_log)
    ended = command("echo", *given, calls=40, warm_up=5)
    assert ended.code == 0, ended.err
    *shown, last = ended.out.splitlines()
    figures = json.loads(last)
    mean = {name: part["mean"] for name, part in figures["parts"].items()}
    assert tuple(mean) == echo.NAMES
    assert sum(mean[part] for part in echo.PARTS) == pytest.approx(mean[echo.TOTAL])
    assert mean[echo.OVERHEAD] + mean[echo.SERVER] == pytest.approx(mean[echo.TOTAL])
    assert 0 < mean[echo.OVERHEAD] < mean[echo.TOTAL]
    median = {name: part["percentiles"]["p50"] for name, part in figures["parts"].items()}
    assert 0 < median[echo.EMPTY] < median["gRPC round trip"]
    # Ids and types of the tokens, one length a pair, in four bytes each; the rest is names.
    tokens = (figures["tensor_bytes"] - 4 * 20) / 8
    assert 20 * 3 <= tokens <= 20 * MAX_LENGTH
    assert 0 < figures["message_bytes"] - figures["tensor_bytes"] < 300
    assert (figures["in_flight"], figures["calls_per_second"] > 0, figures["client_cpu_ms"] > 0) == (64, True, True)
    assert [line.split("  ")[0] for line in shown[1 : 1 + len(echo.NAMES)]] == list(echo.NAMES)


def test_a_model_with_the_user_text_once_is_echoed_too(once_repository: Path, published_log: Path) -> None:
    ended = command("echo", "--repository", once_repository, "--data", published_log, calls=5, warm_up=1)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out.splitlines()[-1])["parts"][echo.TOTAL]["mean"] > 0


@pytest.mark.parametrize("config", sorted(ROOT.glob("model_repository/clickbert_*_*/config.pbtxt")), ids=str)
def test_the_graph_has_the_configs_tensors_and_echoes_the_lengths(config: Path) -> None:
    parsed = text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    session = onnxruntime.InferenceSession(echo.echo_graph(parsed).SerializeToString())
    feed = {entry.name: np.zeros(3, np.int32) for entry in session.get_inputs()}
    assert set(feed) == {entry.name for entry in parsed.input} | {entry.target_name[0] for entry in parsed.batch_input}
    (logits,) = session.run(["logits"], feed | {"lengths": np.array([3, 500], np.int32)})
    assert logits.dtype == np.float32 and logits == pytest.approx(np.array([[0.003], [0.5]]))
