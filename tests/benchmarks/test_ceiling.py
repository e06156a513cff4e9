"""The ceiling on a tiny model: fast, and not by computing less than the server does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceiling, climb, workload
from benchmarks.ceiling import BUDGETS, Ceiling, Layout, cut_requests, measure_ceiling, open_graph, to_requests
from benchmarks.figures import left_of_ceiling
from clickbert.tokenization import PackedPairs
from export.names import MODEL_FILE
from serving.backends.onnxruntime.chunks import cut

CLICK_MODEL = "clickbert_onnx"


@pytest.fixture(scope="module")
def version(repository: Path) -> Path:
    return workload.newest_version(repository, CLICK_MODEL)


@pytest.fixture(scope="module")
def packed(repository: Path, click_log: Path) -> list[PackedPairs]:
    return workload.pack(workload.published_tokenizer(repository), workload.read_requests(click_log))


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
        for chunk in cut([request], ceiling.LENGTHS, budget) if budget else [None]:
            rows = range(len(found)) if chunk is None else np.concatenate([part.segments for part in chunk])
            assert np.isnan(found[rows]).all()
            found[rows] = next(answers)
        assert found == pytest.approx(whole[place], abs=1e-5)
    assert next(answers, None) is None


def test_chunks_hold_the_budget(packed: list[PackedPairs]) -> None:
    for budget in (100, 200):
        feeds = cut_requests(packed, budget)
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
        pairs = sum(len(feed[ceiling.LENGTHS]) for feed in feeds)
        turns.append((workers, budgets[-1], pairs))
        whole = pairs == sum(len(each.lengths) for each in packed)
        slow = 1.5 if whole and budgets[-1] == 1024 else 1.0
        return seconds[budgets[-1]] * slow * pairs / 1000 * (1.1 if workers > 1 else 1.0)

    monkeypatch.setattr(ceiling, "cut_requests", cut_requests)
    monkeypatch.setattr(ceiling, "drain", drain)
    monkeypatch.setattr(ceiling, "QUICK", 4)
    monkeypatch.setattr(ceiling, "FINALISTS", 4)
    monkeypatch.setattr(ceiling, "usable_cores", lambda: 2)
    found = measure_ceiling(version, packed)
    assert found.layout == Layout(workers=1, threads=2, budget=512)
    assert found.pairs_per_second == pytest.approx(1000 / 1.2)
    assert found.rounds == pytest.approx([1000 / 1.2])
    assert len(found.tried) == 2 * len(BUDGETS)
    assert found.tried["1 at a time, 2 threads each, chunks of 1024"] == pytest.approx(1000)
    assert found.tried["2 at a time, 1 threads each, whole requests"] == pytest.approx(1000 / 4.4)
    assert found.facts()["layout"] == "1 at a time, 2 threads each, chunks of 512"
    # The final turns were on all requests, one of each finalist.
    assert {pairs for _, _, pairs in turns[-4:]} == {sum(len(each.lengths) for each in packed)}
    assert len(set(turns[-4:])) == 4
    assert all(pairs < turns[-1][2] for _, _, pairs in turns[:-4])


def test_it_runs(version: Path, packed: list[PackedPairs]) -> None:
    found = measure_ceiling(version, packed)
    assert found.pairs_per_second == max(found.rounds) > 0
    assert str(found.layout) in found.tried


def test_every_feed_is_computed_once_by_all_workers() -> None:
    seen: list[object] = []
    assert ceiling.drain(seen.append, 2, list(range(50))) > 0
    assert sorted(seen) == list(range(50))


def test_a_later_measurement_of_the_same_layout_adds_its_rounds(version: Path, packed: list[PackedPairs]) -> None:
    first = measure_ceiling(version, packed)
    later = measure_ceiling(version, packed, first.layout)
    assert list(later.tried) == [str(first.layout)]
    joined = first.joined(later)
    assert joined.rounds == [*first.rounds, *later.rounds]
    assert joined.pairs_per_second == max(joined.rounds)
    assert (joined.layout, joined.tried) == (first.layout, first.tried)


@pytest.mark.parametrize(("rounds", "given"), [([90.0, 100.0], True), ([70.0, 100.0], False)])
def test_no_share_is_given_where_the_machines_speed_changed(
    rounds: list[float], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(climb, "DRIFT", 0.2)
    step = {"pairs_per_s": 50.0, "generator": {"cores": 0.0}}
    share = climb.of_ceiling(step, {"pairs_per_second": max(rounds), "rounds": rounds, "on_cpu": True})
    assert share == (0.5 if given else None)


def test_generators_take_nothing_of_a_gpu() -> None:
    step = {"generator": {"cores": 0.5}}
    assert left_of_ceiling({"pairs_per_second": 100.0, "on_cpu": True}, step, 2) == 75
    assert left_of_ceiling({"pairs_per_second": 100.0, "on_cpu": False}, step, 2) == 100
    assert Ceiling(1.0, ceiling.Merged(4), [1.0], {}).facts()["on_cpu"] is False
    assert Ceiling(1.0, Layout(2, 1, 512), [1.0], {}).facts()["on_cpu"] is True


def test_of_many_requests_the_same_part_is_computed_before_and_after(
    version: Path, packed: list[PackedPairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    cut_real = ceiling.cut_requests

    def cut_requests(requests: list[PackedPairs], budget: int | None) -> list:
        computed.append(len(requests))
        return cut_real(requests, budget)

    monkeypatch.setattr(ceiling, "cut_requests", cut_requests)
    monkeypatch.setattr(ceiling, "QUICK", 4)
    monkeypatch.setattr(ceiling, "MOST", 9)
    found = measure_ceiling(version, packed)
    measure_ceiling(version, packed, found.layout)
    assert computed == [3, 3, *[4] * 2 * len(BUDGETS), 9, 9, 3, 3, 4, 9]
