"""The ceiling on a tiny model: fast, and not by computing less than the server does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.load_gen.target import published_version
from benchmarks.load_gen.workload import Selection
from benchmarks.saturation import ceiling
from benchmarks.saturation.ceiling import (
    BUDGETS,
    Ceiling,
    CoreLayout,
    MergedLayout,
    cut_requests,
    open_ceiling,
    open_graph,
    to_requests,
)
from benchmarks.saturation.tokens import pack, published_tokenizer
from clickbert.wire.packing import PackedPairs
from release.names import MODEL_FILE
from serving.backends.packed_cpu.segments import Room, Segments

CLICK_MODEL = "clickbert_onnx"


@pytest.fixture(scope="module")
def version(published_repository: Path) -> Path:
    return published_version(published_repository, CLICK_MODEL)


@pytest.fixture(scope="module")
def packed(published_repository: Path, published_log: Path) -> list[PackedPairs]:
    return pack(published_tokenizer(published_repository), Selection(published_log).read()[:12])


@pytest.mark.parametrize("budget", [50, *BUDGETS])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_layout_computes_the_same_logits(
    version: Path, packed: list[PackedPairs], budget: int | None, threads: int
) -> None:
    run = open_graph(version / MODEL_FILE, threads)
    whole = [run(feed) for feed in cut_requests(packed, None)]
    assert [len(logits) for logits in whole] == [len(pairs.lengths) for pairs in packed]
    assert np.std(np.concatenate(whole)) > 0.1  # logits that differ, so that a wrong place would show
    answers = iter([run(feed) for feed in cut_requests(packed, budget)])
    for place, request in enumerate(to_requests(packed)):
        found = np.full_like(whole[place], np.nan)
        # Which of the request's pairs each feed had, in the order of the feeds.
        segments = Segments(request[ceiling.LENGTHS][0])
        while segments:
            rows = segments.take(Room(budget or 10**9)).places
            assert np.isnan(found[rows]).all()
            found[rows] = next(answers)
        assert found == pytest.approx(whole[place], abs=1e-5)
    assert next(answers, None) is None


def test_chunks_hold_the_budget(packed: list[PackedPairs]) -> None:
    for budget in (100, 200):
        feeds = [feed for feeds in cut_requests(packed, budget) for feed in feeds]
        costs = [int(feed[ceiling.LENGTHS].max()) * len(feed[ceiling.LENGTHS]) for feed in feeds]
        assert max(costs) <= budget
        assert sum(len(feed[ceiling.LENGTHS]) for feed in feeds) == sum(len(pairs.lengths) for pairs in packed)
    assert len(cut_requests(packed, 100)) > len(cut_requests(packed, 200)) > len(packed)


def test_the_best_of_all_layouts_by_the_pairs_that_were_computed(
    version: Path, packed: list[PackedPairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many seconds a turn takes: the third layout is the fastest by the part, the second by all requests.
    seconds = {256: 2.0, 512: 1.2, 1024: 1.0, None: 4.0}
    turns: list[tuple[int, int | None, int]] = []
    budgets: list[int | None] = []
    cut_real, drain_real = ceiling.cut_requests, ceiling.drain

    def cut_requests(requests: list[PackedPairs], budget: int | None) -> list:
        budgets.append(budget)
        return cut_real(requests, budget)

    def drain(run: object, workers: int, feeds: list) -> float:
        assert drain_real(run, workers, feeds) > 0
        pairs = sum(len(feed[ceiling.LENGTHS]) for (feed,) in feeds)
        turns.append((workers, budgets[-1], pairs))
        whole = pairs == sum(len(each.lengths) for each in packed)
        slow = 1.5 if whole and budgets[-1] == 1024 else 1.0
        return seconds[budgets[-1]] * slow * pairs / 1000 * (1.1 if workers > 1 else 1.0)

    monkeypatch.setattr(ceiling, "cut_requests", cut_requests)
    monkeypatch.setattr(ceiling, "drain", drain)
    monkeypatch.setattr(ceiling, "usable_cores", lambda: 2)
    with open_ceiling(version, packed, quick=4, finalists=4) as found:
        tried = found.result().tried
    assert found.layout == CoreLayout(workers=1, threads=2, budget=512)
    assert found.rounds == []
    assert len(tried) == 2 * len(BUDGETS)
    assert tried["1 at a time, 2 threads each, chunks of 1024"] == pytest.approx(1000)
    assert tried["2 at a time, 1 threads each, whole requests"] == pytest.approx(1000 / 4.4)
    # The final turns were on all requests, one of each finalist.
    assert {pairs for _, _, pairs in turns[-4:]} == {sum(len(each.lengths) for each in packed)}
    assert len(set(turns[-4:])) == 4
    assert all(pairs < turns[-1][2] for _, _, pairs in turns[:-4])
    # A round is of all requests, by the best layout.
    found.measure(0)
    assert turns[-1] == (1, 512, sum(len(each.lengths) for each in packed))
    found.measure(0)
    result = found.result()
    assert result.rounds == pytest.approx([1000 / 1.2] * 2)
    assert (result.layout, result.on_cpu) == ("1 at a time, 2 threads each, chunks of 512", True)
    assert result.pairs_per_second == pytest.approx(1000 / 1.2)


def test_a_real_round_is_measured(version: Path, packed: list[PackedPairs]) -> None:
    with open_ceiling(version, packed) as found:
        for _ in range(2):
            found.measure(0)
    assert found.layout in found.tried
    assert min(found.result().rounds) > 0


def test_a_round_is_of_turns_until_its_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, speeds = iter([0.0, 0.9, 1.8, 2.1]), iter([100.0, 200.0, 400.0, 1.0])
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: next(moments))
    found = Ceiling(CoreLayout(2, 1, 512), {}, lambda: next(speeds))
    found.measure(2.0)
    assert found.rounds == [pytest.approx(3 / (1 / 100 + 1 / 200 + 1 / 400))]  # as many pairs each time


def test_the_last_rounds_alone_can_be_asked_for() -> None:
    found = Ceiling(MergedLayout(4), {}, float, [1.0, 2.0, 3.0])
    assert (found.result().rounds, found.result(last=2).rounds) == ((1.0, 2.0, 3.0), (2.0, 3.0))
    assert not found.result().on_cpu


def test_every_feed_is_computed_once_by_all_workers() -> None:
    seen: list[object] = []
    assert ceiling.drain(seen.append, 2, list(range(50))) > 0
    assert sorted(seen) == list(range(50))
