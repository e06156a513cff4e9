"""The gates: each limit from both sides, and the evaluation that a version keeps for plans built elsewhere."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.cli import find_limits
from export.engines import find_gates
from export.graph.packing import Feed, Pair
from export.verify import saved_gate
from export.verify.comparison import METRICS, Comparison, Difference
from export.verify.gates import (
    FP16_GATES,
    FP32_GATES,
    INT8_GATES,
    LARGEST_FP16,
    Check,
    Gate,
    GateError,
    Limits,
    check,
    describe_failures,
)
from export.verify.saved_gate import LONE, MERGED, PAIRS_A_REQUEST, merge, save_gate
from finetune.data.clicklog import ClickRow
from release.names import GATE_FILE, LOGITS, ONCE_TENSORRT_INPUTS, TENSORRT_INPUTS

LIMITS = {"tolerance": 0.1, "fp16_auc": 0.01, "fp16_log_loss": 0.015}
LIMITS |= {"int8_auc": 0.02, "int8_log_loss": 0.03, "int8_ndcg": 0.05, "int8_top1": 0.04}
Gates = tuple[Gate, ...]


def found(max_abs_diff=0.0, auc=0.0, log_loss=0.0, ndcg=0.0, top1=0.0) -> Comparison:
    """A comparison with these figures, and all else far beyond any limit."""
    differences = dict.fromkeys(METRICS, 9.0) | {"auc": auc, "log_loss": log_loss, "ndcg_at_10": ndcg}
    metrics = {name: Difference(0, value, value, value, value) for name, value in differences.items()}
    return Comparison(max_abs_diff, 9.0, metrics, -1.0, 1.0, top1, 1.0, 1.0, 10, 2)


def failures(gates: Gates, comparison: Comparison, largest: float | None = None) -> list[str]:
    return [one.name for one in check(gates, comparison, LIMITS, largest) if not one.passed]


@pytest.mark.parametrize(
    ("gates", "limit", "figure", "name"),
    [
        (FP32_GATES, 0.1, lambda value: found(value, auc=-9, log_loss=9, top1=1), "largest difference of a logit"),
        (FP16_GATES, 0.01, lambda value: found(9, auc=-value, ndcg=-9, top1=1), "loss of AUC"),
        (FP16_GATES, 0.015, lambda value: found(9, log_loss=value, ndcg=-9, top1=1), "rise of the log-loss"),
        (INT8_GATES, 0.02, lambda value: found(9, auc=-value), "loss of AUC"),
        (INT8_GATES, 0.03, lambda value: found(9, log_loss=value), "rise of the log-loss"),
        (INT8_GATES, 0.05, lambda value: found(9, ndcg=-value), "loss of NDCG@10"),
        (INT8_GATES, 0.04, lambda value: found(9, top1=value), "top-1 changed beyond the tie"),
    ],
)
def test_each_limit_from_both_sides(gates: Gates, limit: float, figure: Callable, name: str) -> None:
    assert failures(gates, figure(limit)) == []
    assert failures(gates, figure(math.nextafter(limit, 1))) == [name]
    assert failures(gates, figure(-1.0)) == []  # a gain is no loss
    assert failures(gates, figure(math.nan)) == [name]


@pytest.mark.parametrize("gates", [FP16_GATES, INT8_GATES])
def test_fp16_activations_must_not_overflow(gates: Gates) -> None:
    assert failures(gates, found(), LARGEST_FP16) == failures(gates, found(), None) == []
    for value in (65505.0, math.inf, math.nan):
        assert failures(gates, found(), value) == ["largest FP16 activation"]
    assert np.float16(LARGEST_FP16) == np.finfo(np.float16).max


def test_a_failure_names_model_figure_value_and_limit() -> None:
    checks = [Check("loss of AUC", 0.0123456, 0.002), Check("fine", 1, 1), Check("log-loss", math.nan, 0.005)]
    assert describe_failures("clickbert_trt_int8", checks) == [
        "clickbert_trt_int8: loss of AUC is 0.012346, allowed is 0.002",
        "clickbert_trt_int8: log-loss is nan, allowed is 0.005",
    ]


def test_every_limit_has_a_default_and_says_what_it_bounds() -> None:
    limits = find_limits()
    assert len({limit.name for limit in limits}) == len(limits) == 15
    assert all(limit.default > 0 and len(limit.help) > 20 for limit in limits)
    assert all(limit.of({}) == limit.default and limit.of({limit.name: 7.0}) == 7 for limit in limits)


LENGTHS = [3 + 5 * index % 13 for index in range(150)]
PAIRS = [
    {"input_ids": [index, *range(length - 1)], "token_type_ids": [0, *[1] * (length - 2), 2]}
    for index, length in enumerate(LENGTHS)
]
CLICKED = [index % 3 == 1 for index in range(150)]
# The reference ranks each group of three perfectly, so that no other order is as good.
REFERENCE = np.array([2.0 if click else -2.0 - index / 300 for index, click in enumerate(CLICKED)], np.float32)[:, None]
ROWS = [ClickRow(f"impression {index // 3}", "user", "text", float(click), 1) for index, click in enumerate(CLICKED)]


def right_answer(feed: Feed) -> np.ndarray:
    starts = np.cumsum(feed["lengths"]) - feed["lengths"]
    return REFERENCE[feed["input_ids"][starts]]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "clickbert_trt_int8" / "7"
    folder.mkdir(parents=True)
    save(folder)
    return folder


def save(folder: Path, gates: Gates = INT8_GATES, limits: Limits = LIMITS) -> None:
    save_gate(folder, ROWS, PAIRS, REFERENCE, ["click"], gates, limits)


def gate(version: Path, run: Callable[[Feed], np.ndarray]) -> None:
    saved_gate.gate(version, lambda feed: {LOGITS: run(feed)}, find_gates())


def test_an_engine_meets_every_pair_once_in_order_and_with_all_inputs(version: Path) -> None:
    feeds: list[Feed] = []

    def run(feed: Feed) -> np.ndarray:
        feeds.append(feed)
        return right_answer(feed)

    gate(version, run)
    for feed in feeds:
        assert set(feed) == set(TENSORRT_INPUTS)
        assert all(array.dtype == np.int32 and array.ndim == 1 for array in feed.values())
        assert len(feed["longest"]) == len(feed["longest_shape"]) == feed["lengths"].max()
        assert feed["token_counts"].sum() == feed["type_counts"].sum() == len(feed["input_ids"])
        assert feed["pair_counts"].sum() == len(feed["lengths"])
        assert feed["pair_counts"].max() <= PAIRS_A_REQUEST
    feeds, alone = feeds[:-LONE], feeds[-LONE:]
    assert [feed["lengths"].tolist() for feed in alone] == [[length] for length in LENGTHS[:LONE]]
    assert [len(feed["pair_counts"]) for feed in feeds] == [1, 2, 4, 1, 2]  # 16, 32, 64, 16 and the 22 that are left
    joined = {name: np.concatenate([feed[name] for feed in feeds]).tolist() for name in TENSORRT_INPUTS}
    assert joined["lengths"] == LENGTHS
    assert joined["input_ids"] == [token for pair in PAIRS for token in pair["input_ids"]]
    assert joined["token_type_ids"] == [kind for pair in PAIRS for kind in pair["token_type_ids"]]


def test_a_plan_that_computes_user_texts_once_gets_each_once(version: Path) -> None:
    """The pairs, three to a user text, as the graph that computes a user text once has them."""
    cls, sep, word = 1000, 1001, 1002
    pairs = [
        {"input_ids": [cls, word, word, word, index // 3, sep, word, index, sep], "token_type_ids": [0] * 6 + [1] * 3}
        for index in range(150)
    ]
    save_gate(version, ROWS, pairs, REFERENCE, ["click"], INT8_GATES, LIMITS, once=True)
    feeds: list[Feed] = []

    def run(feed: Feed) -> np.ndarray:
        feeds.append(feed)
        return REFERENCE[feed["input_ids"][np.flatnonzero(feed["input_ids"] == cls) + 2]]

    gate(version, run)
    for feed in feeds:
        assert set(feed) == set(ONCE_TENSORRT_INPUTS)
        assert len(feed["longest"]) == len(feed["longest_shape"]) == 4
        assert len(feed["longest_user"]) == len(feed["longest_user_shape"]) == 5
    feeds, alone = feeds[:-LONE], feeds[-LONE:]
    assert [feed["user_pairs"].tolist() for feed in alone] == [[1]] * LONE
    # Requests of 16: a user text that lies across two is in both.
    assert sum(len(feed["user_lengths"]) for feed in feeds) == 50 + 6
    assert sum(feed["user_pairs"].sum() for feed in feeds) == 150


@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 40))
def test_batches_cover_every_pair_once_and_fit_the_plan(count: int, most_requests: int, most_pairs: int) -> None:
    pairs: list[Pair] = [{"input_ids": [index], "token_type_ids": [0]} for index in range(count)]
    batches = merge(pairs, most_requests, most_pairs)
    assert [pair for _, requests in batches for request in requests for pair in request] == pairs
    assert [index for batch, _ in batches for index in range(count)[batch]] == list(range(count))
    for batch, requests in batches:
        assert len(requests) <= min(max(MERGED), most_requests)
        assert all(1 <= len(request) <= min(PAIRS_A_REQUEST, most_pairs) for request in requests)
        assert sum(map(len, requests)) == batch.stop - batch.start


def spoiled(spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[[Feed], np.ndarray]:
    return lambda feed: spoil(right_answer(feed))


def one_nan(logits: np.ndarray) -> np.ndarray:
    logits[0] = np.nan
    return logits


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_an_engine_that_is_wrong_on_lone_pairs_only_is_refused(version: Path, wrong: float) -> None:
    save(version)
    with pytest.raises(GateError, match=r"of 8 pairs differ by (0\.5|nan) .* between a batch of one pair and a merged"):
        gate(version, spoiled(lambda logits: logits + wrong if len(logits) == 1 else logits))


@pytest.mark.parametrize(
    ("gates", "spoil", "message"),
    [
        (
            INT8_GATES,
            lambda logits: -logits,
            r"loss of AUC is 1, allowed is 0\.02; .*log-loss is .*; .*top-1 changed beyond the tie is 1, allowed",
        ),
        # Each pair gets its neighbour's logits.
        (INT8_GATES, lambda logits: np.roll(logits, 1, axis=0), "loss of AUC.*top-1 changed"),
        (
            INT8_GATES,
            lambda logits: logits + 1,
            r"^clickbert_trt_int8: rise of the log-loss is 0\.075\d+, allowed is 0\.03$",
        ),
        (INT8_GATES, one_nan, "the logits of 5 of 150 pairs are not finite"),
        (INT8_GATES, lambda logits: logits * np.float32(np.inf), "150 of 150 pairs are not finite"),
        (FP16_GATES, lambda logits: np.roll(logits, 1, axis=0), r"loss of AUC is 0\.\d+, allowed is 0\.01;"),
        (
            FP32_GATES,
            lambda logits: logits + np.float32(0.11),
            r"largest difference of a logit is 0\.11, allowed is 0\.1$",
        ),
    ],
)
def test_an_engine_that_answers_wrongly_is_refused(version: Path, gates: Gates, spoil, message: str) -> None:
    save(version, gates)
    gate(version, right_answer)
    with pytest.raises(GateError, match=message) as caught:
        gate(version, spoiled(spoil))
    assert str(caught.value).startswith("clickbert_trt_int8: ")


def test_the_limits_are_those_of_the_export(version: Path) -> None:
    less = spoiled(lambda logits: logits + 1)
    save(version, limits=LIMITS | {"int8_log_loss": 0.2})
    gate(version, less)
    save(version, limits=LIMITS | {"int8_log_loss": 0.05})
    with pytest.raises(GateError, match=r"allowed is 0\.05"):
        gate(version, less)


def test_a_gate_that_this_release_does_not_know_is_refused(version: Path) -> None:
    save(version, (replace(FP32_GATES[0], name="from_the_future"),))
    with pytest.raises(GateError, match=r"from_the_future.*; export the model again"):
        gate(version, right_answer)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_gate_is_refused(version: Path, share: float) -> None:
    whole = (version / GATE_FILE).read_bytes()
    (version / GATE_FILE).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(GateError, match=r"gate\.npz cannot be read.*; export the model again"):
        gate(version, right_answer)


def test_a_missing_gate_is_refused(version: Path) -> None:
    (version / GATE_FILE).unlink()
    with pytest.raises(GateError, match=r"7/gate\.npz cannot be read.*No such file.*; export the model again"):
        gate(version, right_answer)


@pytest.mark.parametrize("name", ["facts", "reference", "lengths", "input_ids", "groups"])
def test_a_gate_of_another_release_is_refused(version: Path, name: str) -> None:
    with zipfile.ZipFile(version / GATE_FILE) as opened:
        kept = {entry: opened.read(entry) for entry in opened.namelist() if entry != f"{name}.npy"}
    with zipfile.ZipFile(version / GATE_FILE, "w") as written:
        for entry, content in kept.items():
            written.writestr(entry, content)
    with pytest.raises(GateError, match=f"{name}.*; export the model again"):
        gate(version, right_answer)


def test_damage_inside_the_gate_is_noticed(version: Path) -> None:
    content = bytearray((version / GATE_FILE).read_bytes())
    for place in range(len(content) // 4, len(content) // 2):
        content[place] ^= 0xFF
    (version / GATE_FILE).write_bytes(content)
    with pytest.raises(GateError, match="; export the model again"):
        gate(version, right_answer)
