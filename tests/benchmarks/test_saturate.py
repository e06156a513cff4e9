"""A climb on a tiny model: one for real, whose result is then read, told again and compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import saturate as climb
from benchmarks.load_gen import workload
from benchmarks.load_gen.target import LoadError
from benchmarks.measure import ceiling
from benchmarks.measure import schedule as rounds
from benchmarks.measure.stats import machine
from serving.server import Server
from tests.benchmarks.conftest import Said, command, short_loads
from tests.tiny import MAX_LENGTH

MODEL = "clickbert_onnx"
USERS, SHARES = (1, 3), {0.5: 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("climb") / "results"


@pytest.fixture(scope="module", autouse=True)
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    with short_loads(tmp_path_factory.mktemp("logs")) as patch:
        patch.setattr(rounds, "USERS", USERS)
        patch.setattr(rounds, "SHARES", SHARES)
        patch.setattr(rounds, "CLIMB_SECONDS", 1)
        patch.setattr(rounds, "ROUNDS", 2)
        patch.setattr(rounds, "ROUND_SECONDS", 1)
        patch.setattr(ceiling, "ROUND_SECONDS", 0.0)
        patch.setattr(rounds, "MOST_USERS", max(USERS))
        yield patch


@pytest.fixture(scope="module")
def climbed(short: pytest.MonkeyPatch, repository: Path, click_log: Path, results: Path) -> Said:
    """The real one: with a server of its own."""
    return command("saturate", "--repository", repository, "--data", click_log, "--results", results)


@pytest.fixture(scope="module")
def result(climbed: Said) -> dict[str, Any]:
    assert climbed.code == 0, climbed.err
    return json.loads(Path(json.loads(climbed.out.splitlines()[-1])["result"]).read_text(encoding="utf-8"))


def test_the_result_is_whole_and_fits_itself(
    climbed: Said, result: dict[str, Any], repository: Path, click_log: Path, results: Path
) -> None:
    assert not [child for child in psutil.Process().children() if str(results) in child.cmdline()]
    assert Path(json.loads(climbed.out.splitlines()[-1])["result"]).parent == results
    assert (result["schema"], result["machine"]) == (climb.SCHEMA, machine())
    assert result["server"]["name"] == "triton"
    assert result["server"]["started_here"] is True
    assert result["versions"]["locust"]

    requests = workload.read_requests(click_log)
    packed = workload.pack(workload.published_tokenizer(repository), requests)
    lengths = [pairs.lengths.tolist() for pairs in packed]
    assert result["workload"] == {
        "data": str(click_log),
        "candidates": None,
        "texts": "all",
        "requests": len(requests),
        "pairs": sum(len(request.documents) for request in requests),
        "in_closed_loops": {
            "requests": len(requests),
            "pairs": sum(len(request.documents) for request in requests),
        },
        "tokens": {
            "packed": sum(map(sum, lengths)),
            "padded to the request's longest": sum(len(each) * max(each) for each in lengths),
            f"padded to {MAX_LENGTH}": sum(len(each) * MAX_LENGTH for each in lengths),
        },
    }

    assert list(result["models"]) == [MODEL]
    found = result["models"][MODEL]
    assert found["version"] == "1"
    assert found["config"] == (repository / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    assert [(step["users"], step["rate"]) for step in found["closed"]] == [(users, None) for users in USERS]
    saturated, limit, at_saturation = found["saturated"], found["ceiling"], found["rounds"]
    assert saturated["users"] in USERS
    assert {step["users"] for step in at_saturation} == {saturated["users"]}
    for name in ("requests_per_s", "pairs_per_s"):
        assert saturated[name] == pytest.approx(sum(step[name] for step in at_saturation) / 2)
    left = sum(step["left_of_ceiling"] for step in at_saturation) / 2
    assert saturated["of_ceiling"] == pytest.approx(saturated["pairs_per_s"] / left)
    assert len(limit["rounds"]) == 3
    assert limit["pairs_per_second"] == pytest.approx(sum(limit["rounds"]) / 3)
    for step, before, after in zip(at_saturation, limit["rounds"][:-1], limit["rounds"][1:], strict=True):
        share = 1 - step["generator"]["cores"] / machine()["cores"]
        assert step["left_of_ceiling"] == pytest.approx((before + after) / 2 * share)
    assert found["beside"] is None
    assert [step["share"] for step in found["open"]] == list(SHARES)
    for step in found["open"]:
        assert step["users"] is None
        assert step["rate"] == pytest.approx(step["share"] * saturated["requests_per_s"])
        assert step["offered_per_s"] == pytest.approx(step["rate"], abs=0.5)  # of one second: a whole number
    for step in [*found["closed"], *at_saturation, *found["open"]]:
        assert step["requests"] == len(step["latencies_ms"]) > 0 == step["errors"]
        assert step["pairs_per_s"] > 0 < sum(step["pairs_by_second"])
        assert step["requests_per_execution"] >= 1
        assert set(step["time_ms"]) == {"queue", "compute", "rest"}
        assert min(step["time_ms"].values()) >= 0
        assert step["time_ms"]["compute"] > 0

    table = climbed.out.splitlines()
    assert table[0] == f"{MODEL} version 1"
    assert [line.split()[:2] for line in table[2:4]] == [[str(users), "users"] for users in USERS]
    assert f"served: {saturated['of_ceiling']:.0%} of what the generators leave of it" in climbed.out
    page = (results / "report.html").read_text(encoding="utf-8")
    assert MODEL in page
    assert result["time"] in page


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]) -> dict[str, Any]:
    """What the next climbs measure: the real one's figures."""
    found = copy.deepcopy({name: value for name, value in result["models"][MODEL].items() if name != "version"})
    monkeypatch.setattr(climb, "climb", lambda *_: iter([{MODEL: found}]))
    return found


def again(server: Server, click_log: Path, folder: Path, *others: object) -> Said:
    given = ("--url", server.addresses.grpc, "--data", click_log, "--results", folder)
    return command("saturate", *given, *others)


def former(result: dict[str, Any], folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A changed result, as a file."""
    changed = copy.deepcopy(result)
    change(changed)
    (folder / "former.json").write_text(json.dumps(changed), encoding="utf-8")
    return folder / "former.json"


def test_what_is_as_fast_as_formerly_ends_with_0_and_what_is_half_as_fast_with_1(
    told: dict[str, Any], result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path
) -> None:
    # A tiny model's rounds differ more than twofold on a busy machine, and the interval holds that.
    told["ceiling"]["rounds"] = [told["ceiling"]["pairs_per_second"]] * 3
    for step in told["rounds"]:
        step |= {"pairs_per_s": 100.0, "left_of_ceiling": 120.0}

    def as_told(changed: dict[str, Any]) -> None:
        changed["models"][MODEL] |= copy.deepcopy(told)

    same = again(server, click_log, tmp_path, "--compare", former(result, tmp_path, as_told))
    assert same.code == 0, same.err
    assert "regressed (worse by more than 10%, failing or missing): nothing" in same.out

    def faster(changed: dict[str, Any]) -> None:
        as_told(changed)
        for step in changed["models"][MODEL]["rounds"]:
            step["pairs_per_s"] *= 2

    slower = again(server, click_log, tmp_path, "--compare", former(result, tmp_path, faster))
    assert slower.code == 1
    assert f"regressed (worse by more than 10%, failing or missing): {MODEL}" in slower.out
    assert Path(json.loads(slower.out.splitlines()[-1])["result"]).exists()


def test_what_was_measured_is_kept_when_the_rest_fails(
    result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {MODEL: result["models"][MODEL] | {"rounds": [], "open": [], "saturated": None}}

    def half(*_: object) -> Iterator[dict[str, dict[str, Any]]]:
        yield first
        raise LoadError("the server is gone")

    monkeypatch.setattr(climb, "climb", half)
    said = again(server, click_log, tmp_path)
    assert said.code == 1
    assert "the server is gone" in said.err
    (kept,) = tmp_path.glob("*.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["models"][MODEL]["closed"] == first[MODEL]["closed"]
    refused = again(server, click_log, tmp_path, "--compare", kept)
    assert (refused.code, refused.out) == (1, "")
    assert "is no whole result of a climb: it was ended early" in refused.err


def test_another_workload_is_refused_before_anything_is_measured(
    result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(climb, "climb", lambda *_: pytest.fail("it was measured"))
    path = former(result, tmp_path, lambda _: None)
    said = again(server, click_log, tmp_path, "--compare", path, "--candidates", 20)
    assert said.code == 1
    assert "of another workload (candidates 20, formerly None)" in said.err


def test_only_models_that_were_asked_for_can_be_missing(
    told: dict[str, Any], result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path
) -> None:
    def more(changed: dict[str, Any]) -> None:
        changed["models"]["clickbert_other"] = changed["models"][MODEL]

    path = former(result, tmp_path, more)
    assert again(server, click_log, tmp_path, "--compare", path, "--model", MODEL).code == 0
    only_other = former(result, tmp_path, lambda changed: changed["models"].update(a=changed["models"].pop(MODEL)))
    none = again(server, click_log, tmp_path, "--compare", only_other, "--model", MODEL)
    assert (none.code, none.out) == (1, "")
    assert f"former.json has none of {MODEL}" in none.err
    path = former(result, tmp_path, more)
    missing = again(server, click_log, tmp_path, "--compare", path)
    assert missing.code == 1
    assert "clickbert_other: MISSING" in missing.out


def test_a_server_elsewhere_has_no_ceiling_and_a_page_all_the_same(
    result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The steps that were measured once are measured again.
    real = result["models"][MODEL]
    steps = {step["users"]: step for step in [*real["closed"], *real["open"]]}
    monkeypatch.setattr(rounds, "measure", lambda _server, _model, load, _folder: dict(steps[load.users]))
    said = again(server, click_log, tmp_path)
    assert said.code == 0, said.err
    remote = json.loads(Path(json.loads(said.out.splitlines()[-1])["result"]).read_text(encoding="utf-8"))
    assert (remote["server"]["started_here"], remote["server"]["url"]) == (False, server.addresses.grpc)
    assert "tokens" not in remote["workload"]
    found = remote["models"][MODEL]
    assert (found["ceiling"], found["config"], found["saturated"]["of_ceiling"]) == (None, None, None)
    assert "ceiling" not in said.out.rpartition("\n{")[0]
    assert MODEL in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_model_that_is_not_served_is_an_error_that_names_those_that_are(
    server: Server, click_log: Path, tmp_path: Path
) -> None:
    said = again(server, click_log, tmp_path, "--model", "clickbert_other", "--model", MODEL)
    assert (said.code, said.out) == (1, "")
    assert f"{server.addresses.grpc} does not serve clickbert_other, only {MODEL}\n" in said.err
    with pytest.raises(LoadError, match="serves no click model"):
        climb.choose({}, None, "a:1")
    assert list(climb.choose({"b": "1", "a": "2", "c": "1"}, ["c", "a"], "a:1")) == ["a", "c"]


def test_an_aim_is_searched_and_shown(
    told: dict[str, Any], result: dict[str, Any], server: Server, click_log: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    step = result["models"][MODEL]["open"][0]
    monkeypatch.setattr(rounds, "measure", lambda _server, _model, load, _folder: {**step, "rate": load.rate})
    said = again(server, click_log, tmp_path, "--slo", "p50=100000ms")
    assert said.code == 0, said.err
    saturated = told["saturated"]["requests_per_s"]
    assert f"p50=100000ms holds up to {saturated * 63 / 64:.1f} requests/s" in said.out
    kept = json.loads(Path(json.loads(said.out.splitlines()[-1])["result"]).read_text(encoding="utf-8"))
    assert kept["models"][MODEL]["slo"]["requests_per_s"] == pytest.approx(saturated * 63 / 64)
    assert "p50=100000ms never holds" not in said.out
    assert "p50=0.001ms never holds" in again(server, click_log, tmp_path, "--slo", "p50=0.001ms").out
