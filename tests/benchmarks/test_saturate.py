"""`python -m benchmarks saturate` on a tiny model: once for real; then scripted results are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks import BenchmarkError, saturate
from benchmarks.load_gen.workload import Selection
from benchmarks.measure.environment import find_machine
from benchmarks.measure.schema import SCHEMA, ModelResult, SaturationResult, read_result, write
from benchmarks.saturation.schedule import SaturationRun, Schedule
from benchmarks.saturation.tokens import count_tokens, pack, published_tokenizer
from serving.server import Server
from tests.benchmarks.conftest import LIMITS, MODEL, TIMING, Ended, command
from tests.benchmarks.made_up import MODELS, make_result, scaled, with_step

pytestmark = pytest.mark.slow

SCHEDULE = Schedule(
    users=(1, 3),
    most_users=3,
    closed_seconds=1,
    rounds=2,
    round_seconds=1,
    ceiling_seconds=0.0,
    shares=((0.5, 1),),
    slo_steps=1,
    slo_seconds=1,
)
FAST = {"schedule": SCHEDULE, "timing": TIMING, "limits": LIMITS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saturate") / "results"


@pytest.fixture(scope="module")
def measured(published_repository: Path, published_log: Path, results: Path) -> Ended:
    """The real one: with a server of its own."""
    given = ("--repository", published_repository, "--data", published_log, "--model", MODEL)
    return command("saturate", *given, "--results", results, "--slo", "p50=100000ms", **FAST)


@pytest.fixture(scope="module")
def result(measured: Ended) -> SaturationResult:
    assert measured.code == 0, measured.err
    return read_result(Path(json.loads(measured.out.splitlines()[-1])["result"]))


def test_the_result_is_whole_and_fits_itself(
    measured: Ended, result: SaturationResult, published_repository: Path, published_log: Path, results: Path
) -> None:
    assert not [child for child in psutil.Process().children() if str(results) in child.cmdline()]
    assert (result.schema, result.environment.machine, result.complete) == (SCHEMA, find_machine(), True)
    assert (result.server.name, result.server.started_here) == ("triton", True)
    requests = Selection(published_log).read()
    tokenizer = published_tokenizer(published_repository)
    sent = result.workload.sent
    assert sent
    assert (sent.requests, sent.closed_requests) == (len(requests), SCHEDULE.distinct)
    assert sent.pairs == sum(len(request.documents) for request in requests) > sent.closed_pairs
    assert sent.tokens == count_tokens(pack(tokenizer, requests), tokenizer.max_length)

    assert list(result.models) == [MODEL]
    found = result.models[MODEL]
    assert found.version == "1"
    assert found.config == (published_repository / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    assert [(step.users, step.rate) for step in found.closed] == [(1, None), (3, None)]
    saturated, ceiling = found.saturated, found.ceiling
    assert saturated and ceiling
    assert {one.step.users for one in found.rounds} == {saturated.users}
    assert len(found.rounds) == 2
    assert len(ceiling.rounds) == 3
    for one, before, after in zip(found.rounds, ceiling.rounds[:-1], ceiling.rounds[1:], strict=True):
        share = 1 - one.step.generator.cores / find_machine().cores
        assert one.left_of_ceiling == pytest.approx((before + after) / 2 * share)
    (opened,) = found.open
    assert opened.share == 0.5
    assert opened.step.rate == pytest.approx(0.5 * saturated.requests_per_second)
    assert opened.step.offered_per_second == pytest.approx(opened.step.rate, abs=0.5)  # of one second: a whole number
    for step in [*found.closed, *(one.step for one in found.rounds), opened.step]:
        assert step.requests == len(step.latencies_ms) > 0 == step.errors
        assert step.pairs_per_second > 0 < sum(step.pairs_by_second)
        assert step.requests_per_execution is None  # the backend cuts them into chunks
        assert step.tokens_per_chunk and 1 < step.tokens_per_chunk <= 256  # `chunk_elements`
        assert step.time_split and min(vars(step.time_split).values()) >= 0 < step.time_split.compute
    assert found.slo and found.slo.requests_per_second == pytest.approx(saturated.requests_per_second / 2)

    lines = measured.out.splitlines()
    assert lines[0] == MODEL
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "user"], ["3", "users"]]
    summary = next(line for line in lines if line.startswith(f"{MODEL}  "))
    assert f"{saturated.pairs_per_second:.0f}" in summary.split()
    assert f"{saturated.share_of_ceiling:.0%}" in summary.split()
    assert f"{ceiling.pairs_per_second:.0f}" in summary.split()
    assert f"p50=100000ms holds up to {found.slo.requests_per_second:.1f} requests/s" in measured.out
    assert json.loads(lines[-1])["models"][MODEL]["users"] == saturated.users
    page = (results / "report.html").read_text(encoding="utf-8")
    assert MODEL in page
    assert result.environment.time in page


class Scripted:
    """What the next runs measure, in place of measuring."""

    models: dict[str, ModelResult]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    scripted.models = {MODEL: make_result(1, ceiling=None).models[MODEL]}
    monkeypatch.setattr(SaturationRun, "saturate", lambda *_: iter([scripted.models]))
    return scripted


def again(server: Server, log: Path, folder: Path, *others: object) -> Ended:
    given = ("--url", server.addresses.grpc, "--data", log, "--results", folder / "results", "--model", MODEL)
    return command("saturate", *given, *others)


def earlier(folder: Path, log: Path, result: SaturationResult) -> Path:
    """An earlier result of the same workload, as a file."""
    write(folder / "earlier.json", replace(result, workload=replace(result.workload, data=str(log), candidates=None)))
    return folder / "earlier.json"


def test_as_fast_as_earlier_ends_with_0_and_half_as_fast_with_1(
    scripted: Scripted, published_server: Server, published_log: Path, tmp_path: Path
) -> None:
    path = earlier(tmp_path, published_log, make_result(ceiling=None))
    same = again(published_server, published_log, tmp_path, "--compare", path)
    assert same.code == 0, same.err
    assert "regressed (worse by more than 10%, or missing): nothing" in same.out
    scripted.models = {MODEL: make_result(1, 0.5, None).models[MODEL]}
    slower = again(published_server, published_log, tmp_path, "--compare", path)
    assert slower.code == 1
    assert f"regressed (worse by more than 10%, or missing): {MODEL}" in slower.out
    assert Path(json.loads(slower.out.splitlines()[-1])["result"]).exists()


def test_measured_figures_are_kept_when_the_rest_fails(
    published_server: Server, published_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(make_result(ceiling=None).models[MODEL], rounds=(), open=())

    def half(*_: object) -> Iterator[dict[str, ModelResult]]:
        yield {MODEL: first}
        raise BenchmarkError("the server is gone")

    monkeypatch.setattr(SaturationRun, "saturate", half)
    ended = again(published_server, published_log, tmp_path)
    assert ended.code == 1
    assert "the server is gone" in ended.err
    (kept,) = (tmp_path / "results").glob("*.json")
    assert len(json.loads(kept.read_text(encoding="utf-8"))["models"][MODEL]["closed"]) == len(first.closed)
    refused = again(published_server, published_log, tmp_path, "--compare", kept)
    assert (refused.code, refused.out) == (1, "")
    assert "is incomplete: that run ended early" in refused.err


def test_another_workload_is_refused_before_anything_is_measured(
    published_server: Server, published_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SaturationRun, "saturate", lambda *_: pytest.fail("it was measured"))
    path = earlier(tmp_path, published_log, make_result(ceiling=None))
    ended = again(published_server, published_log, tmp_path, "--compare", path, "--candidates", 20)
    assert ended.code == 1
    assert "of another workload (candidates 20, earlier None)" in ended.err


@pytest.mark.usefixtures("scripted")
def test_only_models_that_were_asked_for_can_be_missing(
    published_server: Server, published_log: Path, tmp_path: Path
) -> None:
    path = earlier(tmp_path, published_log, make_result(0, 1.0, None, (MODEL, "clickbert_other")))
    assert again(published_server, published_log, tmp_path, "--compare", path).code == 0
    path = earlier(tmp_path, published_log, make_result(0, 1.0, None, ("clickbert_other",)))
    none = again(published_server, published_log, tmp_path, "--compare", path)
    assert (none.code, none.out) == (1, "")
    assert f"earlier.json has none of {MODEL}" in none.err


def test_a_server_elsewhere_has_no_ceiling_and_a_page_all_the_same(
    scripted: Scripted, published_server: Server, published_log: Path, tmp_path: Path
) -> None:
    scripted.models |= {
        MODELS[1]: with_step(make_result(2, ceiling=None), "rounds", 0, lambda step: scaled(step, 2)).models[MODEL]
    }
    ended = again(published_server, published_log, tmp_path)
    assert ended.code == 0, ended.err
    remote = read_result(Path(json.loads(ended.out.splitlines()[-1])["result"]))
    assert (remote.server.started_here, remote.server.url) == (False, published_server.addresses.grpc)
    assert remote.workload.sent is None
    assert "fastest in process" not in ended.out
    assert f"times {MODEL} (round by round: " in ended.out
    assert (tmp_path / "results" / "report.html").exists()


def test_a_model_without_figures_is_named_and_ends_with_1(
    scripted: Scripted, published_server: Server, published_log: Path, tmp_path: Path
) -> None:
    scripted.models |= {
        "slow": replace(scripted.models[MODEL], rounds=(), open=(), failure="it answered nothing within 4 s")
    }
    ended = again(published_server, published_log, tmp_path)
    assert ended.code == 1
    assert "it answered nothing within 4 s" in ended.out
    assert json.loads(ended.out.splitlines()[-1])["models"]["slow"] is None


def test_a_model_that_is_not_served_is_an_error_that_names_those_that_are(
    published_server: Server, published_log: Path, tmp_path: Path
) -> None:
    ended = again(published_server, published_log, tmp_path, "--model", "clickbert_other")
    assert (ended.code, ended.out) == (1, "")
    assert f"{published_server.addresses.grpc} does not serve clickbert_other, only {MODEL}" in ended.err
    with pytest.raises(BenchmarkError, match="serves no click model"):
        saturate.choose({}, None, "a:1")
    assert list(saturate.choose({"b": "1", "a": "2", "c": "1"}, ["c", "a"], "a:1")) == ["a", "c"]
