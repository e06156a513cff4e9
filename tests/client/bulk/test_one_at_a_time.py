"""One job at a time writes an output, from its first step to the end of its last pass."""

import asyncio
import gzip
import os
import threading
from contextlib import suppress

import pytest

from clickbert.bulk import job as jobs
from clickbert.bulk.rows import JobError
from tests.client.bulk.stubs import ROWS, StubRanker, broken_off, contents, job, left_of, make_input, run

pytestmark = pytest.mark.usefixtures("small_batches")


def test_two_jobs_do_not_write_one_output(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    make_input(source)

    async def both() -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            inside.set()
            await go_on.wait()

        first = asyncio.create_task(job(source, output).run(StubRanker(lambda pairs: wait())))
        await inside.wait()
        with pytest.raises(JobError, match="is being written by another process"):
            await job(source, output).run(StubRanker())
        go_on.set()
        await first

    asyncio.run(both())
    assert left_of(output) == {"", ".bad.jsonl"}


@pytest.fixture
def last_pass(monkeypatch):
    """Holds the first last pass, of a gzipped output: events that it has begun, and that it may go on."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(plain, target):
        with target.open("wb") as file:
            if not begun.is_set():
                begun.set()
                assert go_on.wait(60)
            with gzip.GzipFile("", "wb", 6, file, 0) as packed:
                packed.write(plain.read_bytes())

    monkeypatch.setattr(jobs, "compress", hold)
    yield begun, go_on
    go_on.set()


def test_two_jobs_do_not_make_one_last_pass(tmp_path, last_pass, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl.gz"
    make_input(source)
    begun, go_on = last_pass

    async def both() -> None:
        first = asyncio.create_task(job(source, output).run(StubRanker()))
        await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(JobError, match="is being written by another process"):
            await job(source, output).run(StubRanker())
        go_on.set()
        await first

    asyncio.run(both())
    assert capsys.readouterr().err == f"clickbert: writing {output}\n"
    run(source, tmp_path / "calm.jsonl")
    assert gzip.decompress(output.read_bytes()) == (tmp_path / "calm.jsonl").read_bytes()
    assert left_of(output) == {"", ".bad.jsonl"}


def test_an_interrupted_last_pass_is_not_begun_anew_while_it_writes(tmp_path, last_pass):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl.gz"
    make_input(source)

    async def interrupt() -> None:
        first = asyncio.create_task(job(source, output).run(StubRanker()))
        await asyncio.to_thread(last_pass[0].wait, 60)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first

    asyncio.run(interrupt())
    with pytest.raises(JobError, match="is being written by another process"):
        run(source, output)


def test_a_pipe_does_not_overwrite_what_a_file_has_begun(tmp_path):
    source, output, pipe = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "pipe"
    broken_off(source, output)
    before = contents(output)
    os.mkfifo(pipe)
    with pytest.raises(JobError, match=r"out.jsonl.journal is of a job that was broken off: run that one to its end"):
        run(pipe, output, format="jsonl")
    assert contents(output) == before
    assert run(source, output).rows == ROWS
