"""The flow of a job: batches are read, some calls ahead, and written in their order as they are answered."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import takewhile

from clickbert.bulk.journal import Done
from clickbert.bulk.output import Output
from clickbert.bulk.progress import Progress
from clickbert.bulk.rows import Batch, DamagedError, JobError, Pair, Row, Table, batches
from clickbert.bulk.sending import Scored
from clickbert.bulk.threads import in_thread
from clickbert.bulk.window import MOST

MOST_OPEN = 2 * MOST  # batches that are read and not yet noted as written: what a kill makes be scored again
Score = Callable[[Sequence[Pair]], Awaitable[Scored]]


class Flow:
    """One run of a job. `done` is what former runs have done, and grows."""

    def __init__(
        self, table: Table, output: Output, done: Done, score: Score, progress: Progress, *, mixed_versions: bool
    ) -> None:
        self._table, self._output, self.done, self._score, self._progress = table, output, done, score, progress
        self._open: deque[tuple[Batch, asyncio.Task[Scored]]] = deque()
        self._known_versions = set() if mixed_versions else set(done.versions)

    async def run(self) -> None:
        """Score all rows that are left. Raises `JobError`, and what `score` raises; what is noted is not lost.

        If the input is damaged, what precedes the damage is scored and noted first.
        """
        unread = batches(self._table, self.done.place)
        reading: asyncio.Task[Batch | None] | None = None
        at_end, damage = False, None
        try:
            while not at_end or self._open:
                if not at_end and reading is None and len(self._open) < MOST_OPEN:
                    reading = asyncio.create_task(in_thread(lambda: next(unread, None)))
                awaited = {task for task in (reading, self._open[0][1] if self._open else None) if task}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if reading and reading.done():
                    try:
                        batch = reading.result()
                    except DamagedError as exc:
                        batch, damage = None, exc
                    reading, at_end = None, batch is None
                    if batch:
                        self._open.append((batch, asyncio.create_task(self._scored(batch))))
                await self._write_finished()
            if damage:
                raise damage
            await self._commit(replace(self.done, is_complete=True))
        finally:
            left = [task for _, task in self._open] + ([reading] if reading else [])
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _scored(self, batch: Batch) -> Scored:
        pairs = [row.pair for row in batch.rows if row.pair]
        return await self._score(pairs) if pairs else Scored([], Counter())

    async def _write_finished(self) -> None:
        """Write the batches at the head that are answered, and note them all at once: that waits for the disk."""
        finished = list(takewhile(lambda each: each[1].done(), self._open))
        if not finished:
            return
        done = self.done
        for batch, task in finished:
            done = await self._write(batch, task.result(), done)
        await self._commit(done)
        for _ in finished:
            self._open.popleft()
        self._progress.update(done.rows, finished[-1][0].share)

    async def _commit(self, done: Done) -> None:
        """Note what is done, to the end: a task that is cancelled meanwhile still knows what was noted."""
        noting = asyncio.ensure_future(self._output.commit(done))
        try:
            await asyncio.shield(noting)
        finally:
            self.done = await noting

    async def _write(self, batch: Batch, scored: Scored, done: Done) -> Done:
        """Add a batch to the output; returns what is done then."""
        self._check_versions(scored)
        scores, bad, encoded = iter(scored.scores), list[Row](), list[bytes]()
        for row in batch.rows:
            score = next(scores) if row.pair else row.reason
            if isinstance(score, str):
                bad.append(row._replace(reason=score))
            encoded.append(self._table.encode(row, None if isinstance(score, str) else score))
        await self._output.add(b"".join(encoded), bad)
        return replace(
            done,
            offset=batch.end.offset,
            line=batch.end.line,
            scored=done.scored + len(batch.rows) - len(bad),
            bad=done.bad + len(bad),
            first_bad=done.first_bad or (f"line {bad[0].line:,}: {bad[0].reason}" if bad else ""),
            versions=dict(Counter(done.versions) + scored.versions),
        )

    def _check_versions(self, scored: Scored) -> None:
        """Check the first answers of a run that goes on; later the server may get a new version, which is told."""
        if self._known_versions and scored.versions:
            if other := set(scored.versions) - self._known_versions:
                raise JobError(
                    f"version {', '.join(sorted(other))} of the model answers now, but the rows that are done were"
                    f" scored by {', '.join(sorted(self._known_versions))}: to have both in one output, add"
                    " --mixed-versions; or remove the journal to begin anew",
                    is_final=True,
                )
            self._known_versions = set()
