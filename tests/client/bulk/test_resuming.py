"""A job that ends anywhere goes on by the same command, and its files are those of a job that nothing disturbed."""

import asyncio
import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from clickbert import AuthenticationError, in_process
from clickbert.__main__ import main
from clickbert.bulk import output as files_of_a_job
from clickbert.bulk.formats.lines import Lines
from clickbert.bulk.rows import DamagedError, JobError
from tests.client.bulk.stubs import ROWS, StubRanker, broken_off, contents, left_of, make_input, run, score_of

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.usefixtures("small_batches")
ENDINGS = ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"]
OPEN_ROWS = 4 * 3  # as conftest.py has it: batches that may be open, and the pairs of each


class KilledError(BaseException):
    """The process is gone: nothing after this happens."""


@contextmanager
def killed_at(step: int) -> Iterator[Callable[[], bool]]:
    """Let only so many steps happen that change a file; of the last write a half. Tells whether it came to that."""
    left, was_reached = step, False

    def counted(original):
        def call(*arguments, **options):
            nonlocal left, was_reached
            left -= 1
            if left < 0:
                was_reached = True
                if original is write and left == -1:
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise KilledError
            return original(*arguments, **options)

        return call

    write = os.write
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in ((os, ["write", "ftruncate"]), (Path, ["rename", "replace", "unlink"])):
            for name in names:
                patch.setattr(owner, name, counted(getattr(owner, name)))
        yield lambda: was_reached


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_kill_at_any_step_leaves_no_trace(tmp_path, ending):
    source, output, calm = tmp_path / f"in.{ending}", tmp_path / "a" / f"out.{ending}", tmp_path / "b" / f"out.{ending}"
    make_input(source)
    output.parent.mkdir()
    calm.parent.mkdir()
    run(source, calm)
    expected = contents(calm)
    assert set(expected) == {"", ".bad.jsonl"}
    step, was_killed = 0, True
    while was_killed:
        ranker = StubRanker()
        with killed_at(step) as reached:
            with suppress(KilledError):
                run(source, output, ranker)
            was_killed = reached()
        if was_killed:
            run(source, output, ranker)
            assert len(ranker.asked) <= ROWS - 4 + OPEN_ROWS, "only the open window is asked again"
        assert contents(output) == expected, step
        for end in expected:
            output.with_name(output.name + end).unlink()
        step += 1
    assert step > 20


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40), max_size=12), st.sampled_from(ENDINGS[:-1]))
def test_kills_one_after_another(tmp_path, steps, ending):
    source, output = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    for path in tmp_path.iterdir():
        path.unlink()
    make_input(source)
    for step in steps:
        if output.exists():
            break
        with killed_at(step):
            with suppress(KilledError):
                run(source, output)
    if not output.exists() or output.with_name(f"{output.name}.journal").exists():
        run(source, output)
    found, calm = contents(output), tmp_path / f"calm.{ending}"
    run(source, calm)
    assert found == contents(calm)


def test_what_is_finished_is_not_asked_again(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    make_input(source)
    calls = iter(range(100))

    def fail(_):
        if next(calls) == 6:
            raise AuthenticationError("the token has expired")

    ranker = StubRanker(fail)
    with pytest.raises(JobError, match=r"expired; (\d+) rows are done and kept: run the same command again") as caught:
        run(source, output, ranker)
    kept = int(str(caught.value).split("; ")[1].split()[0])
    assert kept >= 6
    again = StubRanker()
    run(source, output, again)
    left = [f"text {row}" for row in range(kept, ROWS) if row not in (5, 6, 17, ROWS - 1)]
    assert [document for _, document in again.asked] == left


def test_an_output_that_is_gone_since_is_not_said_to_be_there(tmp_path, monkeypatch):
    """The job ended just after the output had its name, and before the journal was removed."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    make_input(source)

    def die(_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(files_of_a_job, "sync_folder", lambda path: output.exists() and die(path))
        with pytest.raises(KilledError):
            run(source, output)
    whole = output.read_bytes()
    output.rename(tmp_path / "elsewhere")
    with pytest.raises(JobError, match=r"was finished, and is gone since: remove .*journal to begin anew"):
        run(source, output, StubRanker())
    output.write_bytes(whole)
    run(source, output, StubRanker(die))
    assert left_of(output) == {"", ".bad.jsonl"}


def test_another_version_does_not_go_on_unless_it_may(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    broken_off(source, output)
    ranker = StubRanker()
    ranker.version = "2"
    said = r"version 2 of the model answers now, but .* scored by 1: .*--mixed-versions"
    with pytest.raises(JobError, match=said) as caught:
        run(source, output, ranker)
    assert "same command" not in str(caught.value)
    done = run(source, output, ranker, mixed_versions=True)
    assert set(done.versions) == {"1", "2"} and sum(done.versions.values()) == ROWS - 4 == done.scored


def test_a_new_version_in_the_middle_is_told(tmp_path):
    make_input(tmp_path / "in.jsonl")
    ranker = StubRanker()
    calls = iter(range(100))

    def roll_out(_):
        ranker.version = "1" if next(calls) < 4 else "2"

    ranker.before = roll_out
    done = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", ranker)
    assert set(done.versions) == {"1", "2"} and sum(done.versions.values()) == done.scored


def test_what_must_be_the_same(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    broken_off(source, output)
    with pytest.raises(JobError, match="of a job with another model: run the same command"):
        run(source, output, settings={"model": "other"})
    with source.open("a") as file:
        file.write("\n")
    with pytest.raises(JobError, match="of a job with another input"):
        run(source, output)
    journal = output.with_name("out.jsonl.journal")
    assert journal.exists() and output.with_name("out.jsonl.unfinished").stat().st_size > 0, "refusals cost nothing"
    journal.unlink()
    assert run(source, output).rows == ROWS


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"[" * 99999, b'{"format": 2, "job": 0, "done": {}}', b"\xff", b"9" * 9999),
        *(b'{"format": 1, "job": {}, "done": {"offset": -1}}', b'{"format": 1, "job": {}, "done": 7}'),
    ],
    ids=lambda value: value[:12],
)
def test_a_damaged_journal_is_refused(tmp_path, content):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    broken_off(source, output)
    output.with_name("out.jsonl.journal").write_bytes(content)
    with pytest.raises(JobError, match=r"out.jsonl.journal cannot be read \(\w+\): remove"):
        run(source, output)


def test_an_output_that_lost_rows_is_refused(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    broken_off(source, output)
    os.truncate(output.with_name("out.jsonl.unfinished"), 3)
    with pytest.raises(JobError, match="has lost rows"):
        run(source, output)


def test_an_output_that_is_there_is_not_touched(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    make_input(source)
    output.write_text("mine")
    with pytest.raises(JobError, match=r"out.jsonl exists already: remove it, or name another output"):
        run(source, output)
    assert output.read_text() == "mine" and left_of(output) == {""}
    output.unlink()

    def appears(_):
        output.write_text("mine")

    with pytest.raises(JobError, match="has appeared meanwhile"):
        run(source, output, StubRanker(appears))
    assert output.read_text() == "mine"
    output.unlink()
    assert run(source, output, StubRanker(pytest.fail)).rows == ROWS, "only the last pass was left"


def test_an_input_that_changes_meanwhile_is_told(tmp_path):
    source = tmp_path / "in.jsonl"
    make_input(source)

    def grow(_):
        with source.open("a") as file:
            file.write("\n")

    with pytest.raises(JobError, match="was changed while it was read: remove the journal") as caught:
        run(source, tmp_path / "out.jsonl", StubRanker(grow))
    assert "same command" not in str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_read_error_at_any_step_leaves_no_trace(tmp_path, ending, monkeypatch):
    """What precedes it is kept. A record of which some lines were read is read again as a whole."""
    source, output, calm = (tmp_path / f"{name}.{ending}" for name in ("in", "out", "calm"))
    make_input(source)
    run(source, calm)
    read, left, kept = Lines.__next__, 0, []

    def fail(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise DamagedError("cannot be read on")
        return read(self)

    monkeypatch.setattr(Lines, "__next__", fail)
    for step in range(2, 2 * ROWS, 5):
        left = step
        try:
            run(source, output)
        except JobError as exc:
            assert "again" not in str(exc)
            kept.append(json.loads(contents(output)[".journal"])["done"]["scored"] if left_of(output) else 0)
            run(source, output)
        assert contents(output)[""] == contents(calm)[""], step
        for end in left_of(output):
            output.with_name(output.name + end).unlink()
    assert len(set(kept)) > 5 and max(kept) > ROWS / 3


def test_what_precedes_damage_is_kept(tmp_path):
    """All of it, and nobody is told to try again."""
    source, output = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    rows = "".join(json.dumps({"query": "q", "document": f"text {n}"}) + "\n" for n in range(ROWS))
    source.write_bytes(gzip.compress(rows.encode())[:-8])  # without its checksum
    with pytest.raises(JobError, match=rf"after line {ROWS}: .*; {ROWS} rows are done, in .*out.jsonl.unfinished$"):
        run(source, output)
    kept = output.with_name("out.jsonl.unfinished").read_text().splitlines()
    assert [json.loads(row)["document"] for row in kept] == [f"text {n}" for n in range(ROWS)]


@pytest.mark.parametrize("files", [("config.json", "model.safetensors"), ("manifest.json.sha256",)])
def test_a_model_that_was_replaced_does_not_go_on(tmp_path, files, monkeypatch, capsys):
    source, output, folder = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "model" / "1"
    make_input(source)
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("a hash")
    calls = iter(range(100))

    def fail(_):
        if next(calls) == 5:
            raise AuthenticationError("no")

    monkeypatch.setattr(in_process, "async_ranker", lambda path, **settings: nullcontext(StubRanker(fail)))
    command = ["score", str(source), "--output", str(output), "--in-process", str(folder)]
    assert main(command) == 1
    assert "run the same command again" in capsys.readouterr().err
    (folder / files[-1]).write_text("another")
    assert main(command) == 1
    assert "of a job with another content of the model" in capsys.readouterr().err
    with pytest.raises(JobError, match="of a job with another model and another in_process"):
        run(source, output, settings={"model": "stub", "in_process": None})


def test_rows_wait_in_a_bounded_number(tmp_path, monkeypatch):
    """Whatever the server does: what is read and not yet on the disk is the open window, and a batch being read."""
    from clickbert.bulk import output as outputs
    from clickbert.bulk.formats.json_lines import JsonLines

    (tmp_path / "in.jsonl").write_text('{"query": "q", "document": "d"}\n' * 900)
    read = noted = most = 0
    rows_of, commit = JsonLines.rows, outputs.Growing.commit

    def rows(self, start):
        nonlocal read, most
        for row in rows_of(self, start):
            read += 1
            most = max(most, read - noted)
            yield row

    async def note(self, done):
        nonlocal noted
        noted = done.rows
        return await commit(self, done)

    monkeypatch.setattr(JsonLines, "rows", rows)
    monkeypatch.setattr(outputs.Growing, "commit", note)
    slow = iter(range(10**6))
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", StubRanker(lambda _: asyncio.sleep(0.002 * (next(slow) % 3))))
    assert read == noted == 900
    assert OPEN_ROWS / 2 < most <= OPEN_ROWS + 3
    assert score_of("q", "d") == json.loads((tmp_path / "out.jsonl").open().readline())["score"]
