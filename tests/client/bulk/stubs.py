"""A ranker without a model, and jobs on small batches: what is tested here is what lies around it."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clickbert import AuthenticationError
from clickbert.bulk.job import Files, Job
from clickbert.bulk.journal import Done
from clickbert.bulk.rows import Columns, JobError
from clickbert.bulk.sending import VersionObserver
from clickbert.telemetry.observer import Call

COLUMNS = Columns("query", "document")
ROWS = 40  # of `make_input`


def score_of(query: str, document: str) -> float:
    return zlib.crc32(f"{query}\0{document}".encode()) / 2**32


class StubRanker:
    """Scores pairs by a formula. `before` sees each call, and may raise or wait; `version` answers."""

    def __init__(self, before: Callable[[Sequence[tuple[str, str]]], Any] = lambda pairs: None) -> None:
        self.before, self.version = before, "1"
        self.asked: list[tuple[str, str]] = []  # pairs that were answered
        self._observer = VersionObserver()

    async def score_pairs(self, pairs: Sequence[tuple[str, str]], **options: Any) -> list[float]:
        call = Call("score_pairs", "stub", len(pairs))
        with self._observer.observe(call):
            waiting = self.before(pairs)
            await (waiting or asyncio.sleep(0))
            call.version = self.version
            self.asked += pairs
            return [score_of(*pair) for pair in pairs]


def job(source: object, output: object, **settings: Any) -> Job:
    kind = settings.pop("format", None)
    job_settings = {"settings": {"model": "stub"}, "patience": 5.0, "mixed_versions": False} | settings
    return Job(Files(str(source), str(output), COLUMNS, kind), {}, **job_settings)


def run(source: object, output: object, ranker: StubRanker | None = None, **settings: Any) -> Done:
    return asyncio.run(job(source, output, **settings).run(ranker or StubRanker()))  # type: ignore[arg-type]


def left_of(output: Path) -> set[str]:
    """The names of what a job left, without the output's."""
    return {path.name.removeprefix(output.name) for path in output.parent.glob(f"{output.name}*")}


def make_input(path: Path) -> None:
    rows = [{"id": n, "query": f"q{n // 7}", "document": f"text {n}"} for n in range(ROWS)]
    for bad in (5, 6, 17, ROWS - 1):
        rows[bad]["document"] = None
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=11)
        return
    if ".csv" in path.name:
        cells = [f',"{row["document"]}\n"' if row["document"] else "" for row in rows]
        records = [f"{row['id']},{row['query']}{cell}" for row, cell in zip(rows, cells, strict=True)]
        lines = ["id,query,document", *records]
    else:
        lines = [json.dumps(row) for row in rows]
    content = "\n".join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def contents(output: Path) -> dict[str, bytes]:
    return {end: output.with_name(output.name + end).read_bytes() for end in sorted(left_of(output))}


def broken_off(source: Path, output: Path) -> None:
    """A job that has done some rows, and not all."""
    make_input(source)
    calls = iter(range(100))

    def fail(_):
        if next(calls) == 5:
            raise AuthenticationError("no")

    with pytest.raises(JobError):
        run(source, output, StubRanker(fail))
