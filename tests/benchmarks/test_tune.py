"""Tuning: settings and the config's text, the search on known speeds, and a whole run on a tiny model."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import BenchmarkError, tune
from benchmarks.load_gen.pool import Load
from benchmarks.measure.schema import Latency, Step
from benchmarks.tune import Measure, Settings, Trial, candidates, change, is_confirmed, read_settings, sweep
from clickbert import Ranker
from serving.triton import ServingError
from tests.benchmarks.conftest import LIMITS, MODEL, TIMING, Ended, command
from tests.published import serve

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("model_repository/*/config.pbtxt"))
PLAN = "clickbert_trt_fp16"
OWN = Settings(threads=0, chunk_elements=256)
OWN_PLAN = Settings(max_batch_size=8, queue_delay_us=0)
wholes = st.integers(1, 10**6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parent.name)
@given(values=st.builds(Settings, wholes, wholes, wholes, wholes))
@settings(max_examples=25)
def test_changed_settings_are_read_back_and_nothing_else_changes(config: Path, values: Settings) -> None:
    text = config.read_text(encoding="utf-8")
    own = read_settings(text, config)
    assert change(text, own, config) == text
    missing = {field.name: None for field in fields(Settings) if getattr(own, field.name) is None}
    expected = replace(values, **missing)
    changed = change(text, expected, config)
    assert read_settings(changed, config) == expected
    assert change(changed, own, config) == text
    # Only numbers differ, on as many lines as there are settings at most, and in no comment.
    pairs = list(zip(text.splitlines(), changed.splitlines(), strict=True))
    differ = [(old, new) for old, new in pairs if old != new]
    assert len(differ) <= len(fields(Settings)) - len(missing)
    for old, new in differ:
        assert old.partition("#")[1:] == new.partition("#")[1:]
        assert [part for part in difflib.ndiff([old], [new]) if part[0] in "+-"]
        assert without_digits(old) == without_digits(new)


def without_digits(line: str) -> str:
    return "".join(letter for letter in line if not letter.isdigit())


def test_the_repositorys_own_settings_are_found() -> None:
    files = {config.parent.name: config for config in CONFIGS}
    found = {name: read_settings(file.read_text(encoding="utf-8"), file) for name, file in files.items()}
    assert found["clickbert_onnx"] == found["clickbert_onnx_int8"] == OWN
    assert found["clickbert_trt_fp16"] == found["clickbert_trt_int8"] == OWN_PLAN
    assert found["clickbert_tokenizer"] == Settings(max_batch_size=0)


def test_a_comment_that_reads_like_a_setting_stays() -> None:
    text = (ROOT / "model_repository" / PLAN / "config.pbtxt").read_text(encoding="utf-8")
    comment = "# max_batch_size: 9 and max_queue_delay_microseconds: 700 were slower\n"
    for place in ("max_batch_size: ", "  max_queue_delay_microseconds: "):
        text = text.replace(f"\n{place}", f"\n{comment}{place}")
    text = text.replace("\nmax_batch_size: 8\n", "\nmax_batch_size: 8  # formerly max_batch_size: 4\n")
    changed = change(text, Settings(max_batch_size=16, queue_delay_us=500), Path("config.pbtxt"))
    assert changed.count(comment) == 2
    assert "\nmax_batch_size: 16  # formerly max_batch_size: 4\n" in changed


@pytest.mark.parametrize(
    ("model", "own", "old", "new"),
    [
        (
            MODEL,
            OWN,
            '{ key: "chunk_elements" value { string_value: "256" }',
            '{ value { string_value: "256" } key: "chunk_elements"',
        ),
        (PLAN, OWN_PLAN, "max_batch_size: 8", "max_batch_size:8"),
    ],
)
def test_a_config_that_is_laid_out_differently_is_refused_by_name(
    model: str, own: Settings, old: str, new: str
) -> None:
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    assert old in text
    other = text.replace(old, new)
    file = Path("elsewhere/config.pbtxt")
    assert read_settings(other, file) == own
    settings = Settings(**{name: value + 1 for name, value in own.given().items()})
    with pytest.raises(BenchmarkError, match=rf"elsewhere/config\.pbtxt is laid out .* by hand: {settings}"):
        change(other, settings, file)


def test_a_config_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"other/config\.pbtxt: .*no_such_field"):
        read_settings("no_such_field: 3", Path("other/config.pbtxt"))
    given = ("--repository", tmp_path, "--data", make_log(tmp_path), "--model", "other")
    ended = command("tune", *given)
    assert (ended.code, ended.out) == (1, "")
    assert f"{tmp_path / 'other'} has no published version" in ended.err


def make_log(folder: Path) -> Path:
    (folder / "log.jsonl").write_text('{"group": "g", "query": "q", "document": "d", "click": 1}\n', encoding="utf-8")
    return folder / "log.jsonl"


# Of no model: what is swept does not know which settings belong together.
SWEPT = Settings(threads=0, chunk_elements=512, max_batch_size=16, queue_delay_us=0)


def make_trial(one: Settings, speed: float, tail: float = 100.0, errors: int = 0) -> Trial:
    return Trial(one, speed, Latency({"p50": 50.0, "p95": 70.0, "p99": tail}, 55.0, 2 * tail), errors)


def surface(
    of: Callable[[Settings], float], tail: Callable[[Settings], float] = lambda _: 100.0, errors: int = 0
) -> tuple[Measure, list[Settings]]:
    """A measure whose speed and tail are known, and what it was asked for."""
    asked: list[Settings] = []

    def measure(one: Settings) -> Trial:
        asked.append(one)
        return make_trial(one, of(one), tail(one), errors if one != SWEPT else 0)

    return measure, asked


def test_the_sweep_finds_the_best_of_a_known_surface() -> None:
    best = Settings(threads=1, chunk_elements=1024, max_batch_size=8, queue_delay_us=500)

    def speed(one: Settings) -> float:
        # Each setting's own part; a wrong one costs a tenth and more.
        return 1000 * 0.85 ** sum(getattr(one, field.name) != getattr(best, field.name) for field in fields(one))

    measure, asked = surface(speed)
    assert sweep(SWEPT, measure) == best
    assert asked[0] == SWEPT
    assert len(asked) == len(set(asked)), "one was measured twice"
    # One setting after another, each with the best of those before.
    assert all(one.chunk_elements == SWEPT.chunk_elements for one in asked if one.threads != best.threads)
    assert all(one.threads == best.threads for one in asked if one.queue_delay_us != SWEPT.queue_delay_us)


@pytest.mark.parametrize("better", [1.0, 1.02], ids=["nothing is faster", "faster by noise"])
def test_the_own_settings_stay_where_nothing_is_better_by_more_than_noise(better: float) -> None:
    measure, _ = surface(
        lambda one: 1000.0 if one == SWEPT else 1000.0 * better, lambda one: 100 if one == SWEPT else 95
    )
    assert sweep(SWEPT, measure) == SWEPT


def test_a_shorter_tail_at_the_same_speed_is_better_and_errors_are_not() -> None:
    def speed(one: Settings) -> float:
        return 990.0 if one.max_batch_size == 1 else 1000.0

    def tail(one: Settings) -> float:
        return 80.0 if one.max_batch_size == 1 else 100.0

    measure, _ = surface(speed, tail)
    assert sweep(SWEPT, measure) == replace(SWEPT, max_batch_size=1)
    measure, _ = surface(speed, tail, errors=3)
    assert sweep(SWEPT, measure) == SWEPT
    measure, _ = surface(lambda one: 2000.0 if one != SWEPT else 1000.0, errors=1)
    assert sweep(SWEPT, measure) == SWEPT


def test_settings_that_fail_are_not_chosen_and_the_others_are_still_tried() -> None:
    def measure(one: Settings) -> Trial | None:
        fails = one.threads == 1 or one.max_batch_size == 1
        return None if fails else make_trial(one, 100.0 / (one.max_batch_size or 1))

    assert sweep(SWEPT, measure) == replace(SWEPT, max_batch_size=2)
    assert not is_confirmed(SWEPT, replace(SWEPT, threads=1), measure)
    assert is_confirmed(SWEPT, replace(SWEPT, max_batch_size=2), measure)


def test_each_kind_of_model_has_settings_of_its_own() -> None:
    assert [set().union(*changes) for changes in candidates(OWN)] == [{"threads"}, {"chunk_elements"}]
    merged, delays = candidates(OWN_PLAN)
    assert merged == [{"max_batch_size": size} for size in (1, 2, 4, 8)]  # the plan was built for eight
    assert [set(each) for each in delays] == [{"queue_delay_us"}] * 3


@pytest.mark.parametrize(("cores", "threads"), [(1, [0, 1]), (2, [0, 1, 2]), (8, [0, 7, 8])])
def test_a_core_may_be_left_to_others(cores: int, threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "usable_cores", lambda: cores)
    assert candidates(OWN)[0] == [{"threads": number} for number in threads]


@pytest.mark.parametrize(
    ("ratio", "tail", "errors", "kept"),
    [
        (1.1, 1.0, 0, True),
        (1.02, 1.0, 0, False),
        (0.98, 0.9, 0, True),
        (0.96, 0.5, 0, False),
        (1.1, 1.0, 2, False),
    ],
)
def test_what_was_found_must_win_again(ratio: float, tail: float, errors: int, kept: bool) -> None:
    found = replace(SWEPT, max_batch_size=4)
    machine = iter([1.0, 1.0, 0.5, 0.5, 0.3, 0.3])  # the machine grows slower: turns are compared, not their means

    def measure(one: Settings) -> Trial:
        speed = next(machine) * (ratio if one == found else 1)
        return make_trial(one, 1000 * speed, 100 * (tail if one == found else 1), errors if one == found else 0)

    assert is_confirmed(SWEPT, found, measure) is kept
    assert not is_confirmed(SWEPT, SWEPT, measure)


LINE = '{sign}parameters {{ key: "chunk_elements" value {{ string_value: "{size}" }} }}'


@pytest.fixture(scope="module")
def known() -> list[Step]:
    """What was really measured, once for all."""
    return []


class TestRun:
    """Real trials of the config's own settings, whose speed is then scripted: a tiny model has no best settings."""

    @pytest.fixture
    def copy(self, published_repository: Path, tmp_path: Path) -> Path:
        return shutil.copytree(published_repository, tmp_path / "copied")

    @pytest.fixture(autouse=True)
    def short(self, known: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
        real = tune.try_config

        def try_config(options: argparse.Namespace, config: str, load: Load, seconds: int) -> Step:
            if not known:
                known.append(real(options, config, load, seconds))
            size = read_settings(config, options.repository).chunk_elements
            return replace(known[0], pairs_per_second={128: 2000.0, 256: 1000.0}[size or 0])

        monkeypatch.setattr(tune, "candidates", lambda _: [[{"chunk_elements": 128}]])
        monkeypatch.setattr(tune, "try_config", try_config)

    def run(self, repository: Path, log: Path, *others: str) -> Ended:
        given = ("--repository", repository, "--data", log, "--model", MODEL, "--users", 2)
        results = repository.parent / "results"
        return command("tune", *given, *others, seconds=1, results=results, timing=TIMING, limits=LIMITS)

    def test_without_a_yes_nothing_is_written(
        self, copy: Path, published_log: Path, known: list[Step], logs: Path
    ) -> None:
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        ended = self.run(copy, published_log)
        assert ended.code == 0, ended.err
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
        removed, added = (LINE.format(sign=sign, size=size) for sign, size in (("-", 256), ("+", 128)))
        assert f"{removed}\n{added}\n" in ended.out
        found = json.loads(ended.out.splitlines()[-1])
        assert (found["model"], found["written"], found["chosen"]["chunk_elements"]) == (MODEL, False, 128)
        # The trial was a server that answered; the own settings come first, all in the table and in the kept file.
        assert known[0].pairs_per_second > 0 == known[0].errors
        assert known[0].latency
        sizes = [trial["settings"]["chunk_elements"] for trial in found["trials"]]
        assert sizes == [256, 128, *[256, 128] * tune.TURNS]
        table = ended.out.splitlines()[1 : len(sizes) + 2]
        assert table[0].split()[:3] == ["threads", "chunk_elements", "pairs/s"]
        assert [line.split()[1] for line in table[1:]] == [str(size) for size in sizes]
        (kept,) = (copy.parent / "results").glob(f"tune-{MODEL}-*.json")
        assert json.loads(kept.read_text(encoding="utf-8")) == found
        assert not list(logs.glob("clickbert-*"))

    def test_what_is_written_is_the_diff_and_a_server_starts_on_it(
        self, copy: Path, published_log: Path, tmp_path: Path
    ) -> None:
        file = copy / MODEL / "config.pbtxt"
        before = file.read_text(encoding="utf-8")
        ended = self.run(copy, published_log, "--write")
        assert ended.code == 0, ended.err
        after = file.read_text(encoding="utf-8")
        diff = difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(file), f"{file} (tuned)")
        assert "".join(diff) in ended.out
        former, new = (LINE.format(sign="", size=size) for size in (256, 128))
        assert after == before.replace(former, new) != before
        assert json.loads(ended.out.splitlines()[-1])["written"] is True
        with serve(copy, log=tmp_path / "log") as server:
            config = triton.InferenceServerClient(server.addresses.grpc).get_model_config(MODEL).config
            assert config.parameters["chunk_elements"].string_value == "128"
            with Ranker(server.addresses.grpc, timeout=60) as ranker:
                assert len(ranker.rank("w1", ["w2", "w3"])) == 2

    def test_where_nothing_is_better_the_config_stays(
        self, copy: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tune, "candidates", lambda _: [])
        file = copy / MODEL / "config.pbtxt"
        before = file.read_bytes()
        ended = self.run(copy, published_log, "--write")
        assert ended.code == 0
        assert file.read_bytes() == before
        assert f"{file} stays as it is" in ended.out
        assert json.loads(ended.out.splitlines()[-1])["written"] is False

    @pytest.mark.parametrize("error", [ServingError("no room"), KeyboardInterrupt()], ids=["failed", "interrupted"])
    def test_a_trial_that_ends_early_costs_the_others_nothing(
        self, error: BaseException, copy: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted = tune.try_config

        def try_config(options: argparse.Namespace, config: str, *rest: object) -> Step:
            if read_settings(config, options.repository).chunk_elements == 512:
                raise error
            return scripted(options, config, *rest)

        monkeypatch.setattr(tune, "try_config", try_config)
        monkeypatch.setattr(tune, "candidates", lambda _: [[{"chunk_elements": 128}, {"chunk_elements": 512}]])
        ended = self.run(copy, published_log)
        (kept,) = (copy.parent / "results").glob("tune-*.json")
        found = json.loads(kept.read_text(encoding="utf-8"))
        sizes = [trial["settings"]["chunk_elements"] for trial in found["trials"]]
        if isinstance(error, KeyboardInterrupt):
            assert (ended.code, sizes, found["chosen"]) == (130, [256, 128], None)
        else:
            assert ended.code == 0, ended.err
            failing = replace(OWN, chunk_elements=512)
            assert f"failed: {failing}: no room\n" in ended.out
            assert (found["failed"], found["chosen"]["chunk_elements"]) == ([f"{failing}: no room"], 128)

    def test_a_first_trial_that_fails_leaves_no_file(
        self, copy: Path, published_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> Step:
            raise ServingError("no room")

        monkeypatch.setattr(tune, "try_config", fail)
        ended = self.run(copy, published_log)
        assert (ended.code, ended.out, ended.err) == (1, "", "tune: no room\n")
        assert not list((copy.parent / "results").iterdir())
