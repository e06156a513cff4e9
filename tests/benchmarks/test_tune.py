"""Tuning: settings and the config's text, the search, and a whole run on a tiny model."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import tune
from benchmarks.load_gen.target import LoadError
from benchmarks.tune import Settings, Trial, change, read_settings
from clickbert import Ranker
from serving.server import Addresses, Server
from serving.triton import ServingError
from tests.benchmarks.conftest import Said, command, short_loads

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("model_repository/*/config.pbtxt"))
MODEL = "clickbert_onnx"
OWN = Settings(instances=2, threads=0, chunk_elements=256, max_batch_size=4, queue_delay_us=0)
wholes = st.integers(1, 10**6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.parent.name)
@given(values=st.builds(Settings, wholes, wholes, wholes, wholes, wholes))
@settings(max_examples=25, deadline=None)
def test_changed_settings_are_read_back_and_nothing_else_changes(config: Path, values: Settings) -> None:
    text = config.read_text(encoding="utf-8")
    own = read_settings(text, config)
    assert change(text, own, config) == text
    missing = {field.name: None for field in fields(Settings) if getattr(own, field.name) is None}
    wanted = replace(values, **missing)
    changed = change(text, wanted, config)
    assert read_settings(changed, config) == wanted
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
    assert None not in vars(found["clickbert_onnx"]).values()
    assert (found["clickbert_trt_fp16"].threads, found["clickbert_trt_fp16"].chunk_elements) == (None, None)
    assert found["clickbert_tokenizer"].queue_delay_us is None


def test_a_comment_that_reads_like_a_setting_stays() -> None:
    text = (ROOT / "model_repository" / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    comment = "# max_batch_size: 9 and max_queue_delay_microseconds: 700 were slower\n"
    for place in ("max_batch_size: ", "  max_queue_delay_microseconds: "):
        text = text.replace(f"\n{place}", f"\n{comment}{place}")
    text = text.replace("\nmax_batch_size: 4\n", "\nmax_batch_size: 4  # formerly max_batch_size: 8\n")
    changed = change(text, replace(OWN, max_batch_size=16, queue_delay_us=500), Path("config.pbtxt"))
    assert changed.count(comment) == 2
    assert "\nmax_batch_size: 16  # formerly max_batch_size: 8\n" in changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("instance_group [ { count: 2 kind: KIND_CPU } ]", "instance_group [ { kind: KIND_CPU count: 2 } ]"),
        (
            "instance_group [ { count: 2 kind: KIND_CPU } ]",
            "instance_group [ { count: 1 kind: KIND_CPU }, { count: 1 kind: KIND_CPU } ]",
        ),
        (
            '{ key: "chunk_elements" value { string_value: "256" }',
            '{ value { string_value: "256" } key: "chunk_elements"',
        ),
        ("max_batch_size: 4", "max_batch_size:4"),
    ],
)
def test_a_config_that_is_laid_out_differently_is_refused_by_name(old: str, new: str) -> None:
    text = (ROOT / "model_repository" / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    assert old in text
    other = text.replace(old, new)
    file = Path("elsewhere/config.pbtxt")
    assert read_settings(other, file) == OWN
    wanted = Settings(3, 1, 512, 8, 500)
    with pytest.raises(LoadError, match=r"elsewhere/config\.pbtxt is laid out .* by hand: instances 3, threads 1"):
        change(other, wanted, file)


def test_a_config_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"other/config\.pbtxt: .*no_such_field"):
        read_settings("no_such_field: 3", Path("other/config.pbtxt"))
    given = ("--repository", tmp_path, "--data", make_log(tmp_path), "--model", "other")
    said = command("tune", *given)
    assert (said.code, said.out) == (1, "")
    assert f"{tmp_path / 'other' / 'config.pbtxt'} cannot be read (No such file or directory)" in said.err


def make_log(folder: Path) -> Path:
    (folder / "log.jsonl").write_text('{"group": "g", "query": "q", "document": "d", "click": 1}\n', encoding="utf-8")
    return folder / "log.jsonl"


@pytest.fixture(scope="module")
def known() -> dict[Settings, Trial]:
    """What was really tried."""
    return {}


class TestRun:
    """Real trials, whose speed is then told: a tiny model has no best setting."""

    @pytest.fixture
    def copy(self, repository: Path, tmp_path: Path) -> Path:
        return shutil.copytree(repository, tmp_path / "repository")

    @pytest.fixture(autouse=True)
    def short(self, tmp_path: Path, known: dict[Settings, Trial]) -> Iterator[pytest.MonkeyPatch]:
        real = tune.try_settings

        def try_settings(repository: Path, model: str, config: str, one: Settings, load: object) -> Trial:
            assert read_settings(config, repository) == one
            if one not in known:
                known[one] = real(repository, model, config, one, load)
            return replace(known[one], pairs_per_s={1: 2000.0, 4: 1000.0}[one.max_batch_size])

        with short_loads(tmp_path / "logs") as patch:
            patch.setattr(tune, "RESULTS", tmp_path / "results")
            patch.setattr(tune, "SECONDS", 1)
            patch.setattr(tune, "candidates", lambda _: [(("max_batch_size",), [(1,)])])
            patch.setattr(tune, "try_settings", try_settings)
            yield patch

    def run(self, repository: Path, click_log: Path, *others: str) -> Said:
        given = ("--repository", repository, "--data", click_log, "--model", MODEL, "--users", 2)
        return command("tune", *given, *others)

    def test_without_a_yes_nothing_is_written(
        self, copy: Path, click_log: Path, known: dict[Settings, Trial], tmp_path: Path
    ) -> None:
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        said = self.run(copy, click_log)
        assert said.code == 0, said.err
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
        assert "-max_batch_size: 4\n+max_batch_size: 1\n" in said.out
        found = json.loads(said.out.splitlines()[-1])
        assert (found["model"], found["written"], found["chosen"]["max_batch_size"]) == (MODEL, False, 1)
        # Each trial was a server that answered; the own settings first, all in the table and in the file that is kept.
        assert all(
            trial.pairs_per_s > 0 and not trial.errors and trial.p99_ms >= trial.p50_ms for trial in known.values()
        )
        sizes = [trial["settings"]["max_batch_size"] for trial in found["trials"]]
        assert sizes == [4, 1, *[4, 1] * tune.TURNS]
        table = said.out.splitlines()[1 : len(sizes) + 2]
        assert table[0].split()[:5] == [field.name for field in fields(Settings)]
        assert [line.split()[3] for line in table[1:]] == [str(size) for size in sizes]
        (kept,) = (tmp_path / "results").glob(f"tune-{MODEL}-*.json")
        assert json.loads(kept.read_text(encoding="utf-8")) == found
        assert not list((tmp_path / "logs").glob("clickbert-*"))

    def test_what_is_written_is_the_diff_and_a_server_starts_on_it(
        self, copy: Path, click_log: Path, tmp_path: Path
    ) -> None:
        file = copy / MODEL / "config.pbtxt"
        before = file.read_text(encoding="utf-8")
        said = self.run(copy, click_log, "--write")
        assert said.code == 0, said.err
        after = file.read_text(encoding="utf-8")
        diff = difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(file), f"{file} (tuned)")
        assert "".join(diff) in said.out
        assert after == before.replace("\nmax_batch_size: 4\n", "\nmax_batch_size: 1\n") != before
        assert json.loads(said.out.splitlines()[-1])["written"] is True
        with (tmp_path / "log").open("wb") as log, Server(copy, Addresses.free(), log=log) as server:
            with server.get(f"/v2/models/{MODEL}/config") as answer:
                assert json.load(answer)["max_batch_size"] == 1
            with Ranker(server.addresses.grpc, timeout=60) as ranker:
                assert len(ranker.rank("w1", ["w2", "w3"])) == 2

    def test_where_nothing_is_better_the_config_stays(
        self, copy: Path, click_log: Path, short: pytest.MonkeyPatch
    ) -> None:
        short.setattr(tune, "candidates", lambda _: [])
        file = copy / MODEL / "config.pbtxt"
        before = file.read_bytes()
        said = self.run(copy, click_log, "--write")
        assert said.code == 0
        assert file.read_bytes() == before
        assert f"{file} stays as it is" in said.out
        assert json.loads(said.out.splitlines()[-1])["written"] is False

    def test_a_failed_trial_is_named_and_costs_the_others_nothing(
        self, copy: Path, click_log: Path, short: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        told = tune.try_settings
        stopped = False

        def try_settings(repository: Path, model: str, config: str, one: Settings, load: object) -> Trial:
            if one.max_batch_size == 8:
                raise KeyboardInterrupt if stopped else ServingError("no room")
            return told(repository, model, config, one, load)

        short.setattr(tune, "try_settings", try_settings)
        short.setattr(
            tune, "candidates", lambda _: [(("max_batch_size",), [(8,), (1,)] if not stopped else [(1,), (8,)])]
        )
        said = self.run(copy, click_log)
        assert said.code == 0, said.err
        wanted = replace(OWN, max_batch_size=8)
        assert f"failed: {wanted}: no room\n" in said.out
        found = json.loads(said.out.splitlines()[-1])
        assert (found["failed"], found["chosen"]["max_batch_size"]) == ([f"{wanted}: no room"], 1)
        shutil.rmtree(tmp_path / "results")
        stopped = True
        assert self.run(copy, click_log).code == 130
        (kept,) = (tmp_path / "results").glob("tune-*.json")
        trials = json.loads(kept.read_text(encoding="utf-8"))["trials"]
        assert [trial["settings"]["max_batch_size"] for trial in trials] == [4, 1]
