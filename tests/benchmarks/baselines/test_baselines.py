"""The baselines on a tiny model and a real tritonserver: figures that fit each other, none of another model."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.baselines import cpu as baselines
from benchmarks.baselines import peer
from benchmarks.load_gen.workload import Request, WorkloadError, read_requests
from tests.tiny import MAX_LENGTH, make_checkpoint, make_click_log

REQUEST = Request("a query", ("one", "another"))


@pytest.fixture(scope="module")
def click_log(published_log: Path) -> Path:
    return published_log


@pytest.fixture(scope="module")
def repository(published_repository: Path) -> Path:
    return published_repository


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    baselines.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def check(found: dict, passes: int) -> None:
    """Medians are the rounds' own, ratios are the rounds' quotients, and every contender agreed."""
    contenders = found["contenders"]
    for one in contenders.values():
        assert len(one["rounds"]) == baselines.ROUNDS
        assert min(one["rounds"]) > 0
        assert one["pairs_per_second"] == np.median(one["rounds"])
        assert one["passes"] >= passes
    assert all(one["difference"]["largest"] <= 1e-4 for name, one in contenders.items() if name != baselines.INT8)
    assert 0 < contenders[baselines.INT8]["difference"]["mean"] <= 0.02
    ratio = found["int8_beside_best_other"]
    others = [one["rounds"] for name, one in contenders.items() if not name.startswith("clickbert_")]
    best = np.max(others, axis=0)
    assert ratio["rounds"] == pytest.approx(np.array(contenders[baselines.INT8]["rounds"]) / best)
    assert ratio["median"] == np.median(ratio["rounds"])


def test_the_figures_fit_each_other(
    checkpoint: Path,
    repository: Path,
    click_log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(baselines, "TURN", 0.05)
    given = ("--checkpoint", checkpoint, "--repository", repository, "--data", click_log)
    figures = json.loads(json.dumps(baselines.run(options(*given))))
    table = capsys.readouterr().out
    assert set(figures["workloads"]) == {"mixed lengths", "titles"}
    for workload, found in figures["workloads"].items():
        assert list(found["contenders"]) == [
            "PyTorch, padded to 128",
            "PyTorch, padded to the longest",
            "clickbert_onnx",
            "clickbert_onnx_int8",
        ]
        check(found, passes=1)
        assert 0 < found["tokens_a_pair"] <= MAX_LENGTH
        assert f"{workload}: 20 candidates a request" in table
        assert f"{found['int8_beside_best_other']['median']:.2f}x" in table
    assert figures["peer"] is None


def test_a_server_with_another_model_is_refused(
    repository: Path, click_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "take_turn", lambda *_: pytest.fail("it was measured"))
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(baselines.BaselineError, match=r"clickbert_onnx: the largest difference .* publish that with"):
        baselines.run(options("--checkpoint", other, "--repository", repository, "--data", click_log))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.3], "wrong: the mean difference .* is 0.05, more than 0.02"),
        ([0.5, float("nan")], "wrong: the largest difference .* is nan, more than 0.0001"),
        ([0.5], r"wrong answers \[1\] scores for 2 candidates"),
    ],
)
def test_a_contender_that_answers_wrongly_is_refused(answer: list[float], message: str) -> None:
    limits = baselines.LOOSE if "mean" in message else baselines.EXACT
    contenders = {
        "PyTorch": baselines.Contender(lambda _: [0.5, 0.4]),
        "wrong": baselines.Contender(lambda _: answer, limits=limits),
    }
    with pytest.raises(baselines.BaselineError, match=message):
        baselines.compare(contenders, [REQUEST])


def test_every_contender_computes_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TURN", 0.0)
    monkeypatch.setattr(baselines, "choose_threads", lambda *_: None)  # asks PyTorch more often, and only PyTorch
    seen: dict[str, list[Request]] = {"PyTorch": [], "clickbert_onnx": [], "clickbert_onnx_int8": []}
    contenders = {
        name: baselines.Contender(lambda request, own=own: own.append(request) or [0.5, 0.5], callers=1)
        for name, own in seen.items()
    }
    requests = [Request(str(number), ("one", "another")) for number in range(20)]
    baselines.measure(contenders, requests)
    turns = 1 + baselines.ROUNDS
    endless = requests * 4
    # PyTorch is asked once more, as the reference.
    assert seen["PyTorch"] == requests[:8] * 2 + endless[: turns * baselines.REQUESTS]
    assert seen["clickbert_onnx"] == seen["clickbert_onnx_int8"] == seen["PyTorch"][8:]


def test_what_is_longer_than_128_tokens_is_not_cut() -> None:
    for length, padded in ((100, 128), (128, 128), (200, 200)):
        batch = {"input_ids": torch.ones(2, length, dtype=torch.int64), "attention_mask": torch.ones(2, length)}
        wide = baselines.widen(batch, 128)
        assert {tuple(values.shape) for values in wide.values()} == {(2, padded)}
        assert wide["attention_mask"].sum() == 2 * length


def test_requests_with_a_candidate_twice_are_left_out(click_log: Path, tmp_path: Path) -> None:
    assert len(baselines.distinct_requests(click_log, "all")) == len(read_requests(click_log, baselines.CANDIDATES))
    twice = {"group": "twice", "query": "q", "document": "w1 w2", "click": 0}
    lines = [click_log.read_text(encoding="utf-8"), *[f"{json.dumps(twice)}\n"] * 2]
    (tmp_path / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    requests = baselines.distinct_requests(tmp_path / "log.jsonl", "all")
    assert len(requests) == len(read_requests(click_log, baselines.CANDIDATES))
    assert all(len(set(request.documents)) == len(request.documents) == 20 for request in requests)
    small = make_click_log(tmp_path / "small.jsonl", groups=1)
    with pytest.raises(WorkloadError, match=r"small\.jsonl has no 20 different candidates"):
        baselines.distinct_requests(small, "all")


def test_a_python_that_is_too_new_for_the_peer_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "PEERS", tmp_path)
    monkeypatch.setattr(peer, "NEWEST", (3, 2))
    with pytest.raises(peer.PeerError, match=r"needs numpy before 2, which pip has ready for Python 3\.2 at most"):
        peer.install()
    assert not list(tmp_path.iterdir())


def test_a_peer_that_cannot_be_installed_says_where_its_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer, "PEERS", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    with pytest.raises(peer.PeerError, match=rf"-m venv .* code 3; its log: {tmp_path}/infinity-install\.log"):
        peer.install()
    assert not peer.is_installed()
    assert "infinity-install.log" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not peer.is_installed(), reason="the peer is not installed: `python -m benchmarks baselines --peer infinity`"
)
class TestPeer:
    def test_it_answers_as_pytorch_does(
        self, checkpoint: Path, repository: Path, click_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(baselines, "TURN", 0.05)
        monkeypatch.setattr(baselines, "WORKLOADS", {"mixed lengths": "all"})
        given = ("--checkpoint", checkpoint, "--repository", repository, "--data", click_log, "--peer", peer.NAME)
        found = baselines.run(options(*given))["workloads"]["mixed lengths"]
        assert list(found["contenders"])[-1] == peer.NAME
        check(found, passes=1)

    def test_a_start_that_fails_says_where_its_log_is(self, tmp_path: Path) -> None:
        with pytest.raises(peer.PeerError, match=r"infinity ended with code .* its log says why: .*infinity\.log"):
            with peer.serve(tmp_path / "nowhere"):
                pytest.fail("it started")
