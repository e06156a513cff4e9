"""The baselines on a tiny model and a real tritonserver: figures that fit each other, none of another model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import BenchmarkError
from benchmarks.baselines import cpu as baselines
from benchmarks.baselines.cpu import EXACT, INT8, LOOSE, WORKLOADS, Contender
from benchmarks.load_gen.workload import Request, Selection
from tests.benchmarks.conftest import command
from tests.tiny import MAX_LENGTH, make_checkpoint, make_click_log

REQUEST = Request("a query", ("one", "another"))


@pytest.mark.slow
def test_the_figures_fit_each_other(
    published_checkpoint: Path, published_repository: Path, published_log: Path
) -> None:
    given = ("--checkpoint", published_checkpoint, "--repository", published_repository, "--data", published_log)
    ended = command("baselines", *given, turn=0.05, rounds=2)
    assert ended.code == 0, ended.err
    document = json.loads(ended.out.splitlines()[-1])
    assert set(document["workloads"]) == set(WORKLOADS)
    assert document["peer"] is None
    for workload, found in document["workloads"].items():
        contenders = found["contenders"]
        assert list(contenders) == [
            "PyTorch, padded to 128",
            "PyTorch, padded to the longest",
            "clickbert_onnx",
            "clickbert_onnx_int8",
        ]
        for one in contenders.values():
            assert len(one["rounds"]) == 2
            assert min(one["rounds"]) > 0 < one["passes"]
            assert one["pairs_per_second"] == np.median(one["rounds"])
        assert all(one["difference"]["largest"] <= 1e-4 for name, one in contenders.items() if name != INT8)
        assert 0 < contenders[INT8]["difference"]["mean"] <= 0.02
        assert 0 < found["tokens_a_pair"] <= MAX_LENGTH
        assert f"{workload}: 20 candidates a request" in ended.out
        others = [one["rounds"] for name, one in contenders.items() if not name.startswith("clickbert_")]
        ratio = np.median(np.array(contenders[INT8]["rounds"]) / np.max(others, axis=0))
        assert f"{INT8} over the fastest other: {ratio:.2f}x" in ended.out


def test_a_server_with_another_model_is_refused(
    published_repository: Path, published_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contender, "take_turn", lambda *_: pytest.fail("it was measured"))
    other = make_checkpoint(tmp_path / "other", seed=1)
    given = ("--checkpoint", other, "--repository", published_repository, "--data", published_log)
    ended = command("baselines", *given)
    assert (ended.code, ended.out) == (1, "")
    assert "clickbert_onnx: the largest difference " in ended.err
    assert "publish that with" in ended.err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.3], "wrong: the mean difference .* is 0.05, more than 0.02"),
        ([0.5, float("nan")], "wrong: the largest difference .* is nan, more than 0.0001"),
        ([0.5], r"wrong answers \[1\] scores for 2 candidates"),
    ],
)
def test_a_contender_that_answers_wrongly_is_refused(answer: list[float], message: str) -> None:
    limit = LOOSE if "mean" in message else EXACT
    contenders = {"PyTorch": Contender(lambda _: [0.5, 0.4]), "wrong": Contender(lambda _: answer, limit=limit)}
    with pytest.raises(BenchmarkError, match=message):
        baselines.check_scores(contenders, [REQUEST])


def test_every_contender_computes_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "choose_threads", lambda *_: None)  # asks PyTorch more often, and only PyTorch
    seen: dict[str, list[Request]] = {"PyTorch": [], "clickbert_onnx": [], "clickbert_onnx_int8": []}
    contenders = {
        name: Contender(lambda request, own=own: own.append(request) or [0.5, 0.5], callers=1)
        for name, own in seen.items()
    }
    requests = [Request(str(number), ("one", "another")) for number in range(20)]
    baselines.measure(contenders, requests, turn=0.0, rounds=3)
    # PyTorch is asked once more, as the reference.
    assert seen["PyTorch"] == requests[:8] * 2 + (requests * 4)[: 4 * baselines.REQUESTS]
    assert seen["clickbert_onnx"] == seen["clickbert_onnx_int8"] == seen["PyTorch"][8:]


def test_what_is_longer_than_128_tokens_is_not_cut() -> None:
    for length, padded in ((100, 128), (128, 128), (200, 200)):
        batch = {"input_ids": torch.ones(2, length, dtype=torch.int64), "attention_mask": torch.ones(2, length)}
        wide = baselines.widen(batch, 128)
        assert {tuple(values.shape) for values in wide.values()} == {(2, padded)}
        assert wide["attention_mask"].sum() == 2 * length


def test_requests_with_a_candidate_twice_are_left_out(published_log: Path, tmp_path: Path) -> None:
    count = len(Selection(published_log, baselines.CANDIDATES).read())
    assert len(baselines.distinct_requests(published_log, "all")) == count
    twice = {"group": "twice", "query": "q", "document": "w1 w2", "click": 0}
    lines = [published_log.read_text(encoding="utf-8"), *[f"{json.dumps(twice)}\n"] * 2]
    (tmp_path / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    requests = baselines.distinct_requests(tmp_path / "log.jsonl", "all")
    assert len(requests) == count
    assert all(len(set(request.documents)) == len(request.documents) == 20 for request in requests)
    small = make_click_log(tmp_path / "small.jsonl", groups=1)
    with pytest.raises(BenchmarkError, match=r"small\.jsonl has no 20 different candidates"):
        baselines.distinct_requests(small, "all")
