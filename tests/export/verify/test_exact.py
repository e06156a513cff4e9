"""float64 beside float32: Hugging Face's own pass, which tells a sharp model's rounding from a wrong graph."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph.onnx_export import write_click_model
from export.graph.packing import Logits, Pair
from export.graph.session import open_graph
from export.verify.evaluation import Checkpoint, read_checkpoint
from export.verify.exact import ExactScores, Rounding, measure_rounding, score_exactly
from export.verify.parity import ParityError, prove
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.evaluation.scoring import score_rows, tokenize_pairs
from tests.tiny import make_checkpoint, make_click_log, make_once_checkpoint

SHARP = 2000.0  # times as large logits: float32 is off by more than the tolerance
TOLERANCE = 1e-4
Case = tuple[Checkpoint, list[ClickRow], list[Pair], Logits, ExactScores]


def make_case(folder: Path, make: Callable[..., Path] = make_checkpoint, sharpness: float = 1.0) -> Case:
    """A checkpoint, the rows of a log, their pairs, Hugging Face's logits, and what computes them exactly."""
    checkpoint = read_checkpoint(make(folder / "checkpoint"), None)
    with torch.no_grad():
        checkpoint.model.classifier.weight *= sharpness
    rows = read_click_log(make_click_log(folder / "log.jsonl"))
    pairs = tokenize_pairs(checkpoint.tokenizer, rows, checkpoint.max_length, checkpoint.user_tokens)
    logits = score_rows(checkpoint.model, checkpoint.tokenizer, rows, checkpoint.max_length)
    return (
        checkpoint, rows, pairs, logits,
        lambda places: score_exactly(checkpoint.model, checkpoint.tokenizer, [pairs[place] for place in places]),
    )  # fmt: skip


@pytest.mark.parametrize("make", [make_checkpoint, make_once_checkpoint])
def test_it_is_hugging_faces_own_pass(make: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint, _, _, logits, exact = make_case(tmp_path, make)
    places = [5, 0, 17]
    np.testing.assert_allclose(exact(places), logits[places], rtol=0, atol=1e-5)
    assert exact(places).dtype == np.float64
    assert next(checkpoint.model.parameters()).dtype == torch.float32, "the checkpoint itself stays as it is"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of `make_case`'s own checkpoint, whose weights are the same every time, before it is sharpened."""
    folder = tmp_path_factory.mktemp("sound")
    checkpoint = read_checkpoint(make_checkpoint(folder / "checkpoint"), None)
    write_click_model(checkpoint.model, folder / "sound.onnx", checkpoint.heads)
    return folder / "sound.onnx"


def sharpened(graph: Path, times: float, path: Path) -> Path:
    model = onnx.load(graph)
    (weight,) = (each for each in model.graph.initializer if each.name.endswith("classifier.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(times), weight.name))
    onnx.save(model, path)
    return path


def test_a_sharp_model_is_told_from_a_wrong_graph(sound: Path, tmp_path: Path) -> None:
    _, rows, pairs, logits, exact = make_case(tmp_path, sharpness=SHARP)
    sharp = open_graph(sharpened(sound, SHARP, tmp_path / "sharp.onnx"))
    with pytest.raises(ParityError, match=r"tolerance 0\.0001 .* so this looks like rounding, .* allows it$") as told:
        prove(sharp, rows, pairs, logits, TOLERANCE, 0, exact)
    enough = re.search(r"--tolerance (\S+) allows", str(told.value))
    assert enough
    prove(sharp, rows, pairs, logits, float(enough[1]), 0, exact)

    wrong = open_graph(sharpened(sound, 1.001 * SHARP, tmp_path / "wrong.onnx"))
    with pytest.raises(ParityError, match=r"tolerance 0\.0001 .* this does not look like rounding"):
        prove(wrong, rows, pairs, logits, TOLERANCE, 0, exact)


def test_only_the_first_are_computed_each_once() -> None:
    asked: list[list[int]] = []

    def exact(places: list[int]) -> np.ndarray:
        asked.append(places)
        return np.zeros((len(places), 1))

    reference, found = np.full((40, 1), 0.25, np.float32), np.full((40, 1), -0.5, np.float32)
    rounding = measure_rounding([3, 3, *range(40)], exact, reference, found)  # type: ignore[arg-type]
    assert asked == [[3, 0, 1, 2, *range(4, 16)]]
    assert rounding == Rounding(reference=0.25, graph=0.5)


@pytest.mark.parametrize(
    ("reference", "graph", "verdict"),
    [
        (1e-4, 1.9e-4, "rounding, to which"),
        (1e-4, 2.1e-4, "not look like rounding"),
        (1e-4, 2e-5, "rounding, to which"),
        (1e-4, 1e-6, "PyTorch's float32 that is wrong here, not the graph: run it again"),
        (0.0, 4e-6, "rounding, to which"),
        (0.0, 6e-6, "not look like rounding"),
        (4e-6, 0.0, "rounding, to which"),
    ],
)
def test_the_verdict_goes_by_which_of_the_two_is_off(reference: float, graph: float, verdict: str) -> None:
    assert verdict in str(Rounding(reference, graph))


def test_a_reference_that_was_wrong_once_asks_for_no_larger_tolerance(sound: Path, tmp_path: Path) -> None:
    _, rows, pairs, logits, exact = make_case(tmp_path)
    spoiled = logits.copy()
    spoiled[3] += 1e-3
    with pytest.raises(ParityError, match=r"pair 4 .* run it again$"):
        prove(open_graph(sound), rows, pairs, spoiled, TOLERANCE, 0, exact)
