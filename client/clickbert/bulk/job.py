"""A job: which files, in which format, with which settings; and one run of it."""

import asyncio
import contextlib
import signal
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickbert.async_ranker import AsyncRanker
from clickbert.bulk.flow import Flow
from clickbert.bulk.formats.comma_separated import CommaSeparated
from clickbert.bulk.formats.json_lines import JsonLines
from clickbert.bulk.formats.lines import STDIN
from clickbert.bulk.journal import Done
from clickbert.bulk.output import Finish, Growing, Output, compress
from clickbert.bulk.pipe import Pipe
from clickbert.bulk.progress import Progress
from clickbert.bulk.rows import Columns, JobError, Table
from clickbert.bulk.sending import Sender
from clickbert.bulk.threads import in_thread
from clickbert.errors import ClickBertError

JSONL, CSV, PARQUET = FORMATS = ("jsonl", "csv", "parquet")
_ENDINGS = {".jsonl": JSONL, ".ndjson": JSONL, ".csv": CSV, ".parquet": PARQUET}
_GZIP = ".gz"


@dataclass(frozen=True)
class Files:
    """The input and the output, by name (`-` is a pipe), and their format if the names do not say it."""

    source: str
    output: str
    columns: Columns
    format: str | None = None

    def find_format(self) -> str:
        """Return the format that both have. Raises `JobError`."""
        given = self.format or _format_of(self.source) or (JSONL if self.source == STDIN else None)
        if given is None:
            raise JobError(f"the name {self.source} does not say its format: add --format {', '.join(FORMATS)}")
        if (wanted := _format_of(self.output)) not in (None, given):
            raise JobError(
                f"the input is {given}, but the name {self.output} says {wanted}: rows keep their format, so give the"
                " output the same ending"
            )
        if given == PARQUET and (self.is_pipe or is_stream(self.output)):
            raise JobError("Parquet cannot be read from a pipe, nor written to one: name files")
        if given == PARQUET and _GZIP in (Path(self.source).suffix, Path(self.output).suffix):
            raise JobError("Parquet compresses by itself: leave out .gz")
        return given

    @property
    def is_pipe(self) -> bool:
        """Whether the input cannot be read a second time."""
        return is_stream(self.source)

    @property
    def bad_file(self) -> str:
        """Where bad rows are written, if the output is a file."""
        return f"{self.output}.bad.jsonl"

    def open_table(self) -> Table:
        """Open the input."""
        kind, gzipped = self.find_format(), self.source.endswith(_GZIP)
        if kind == PARQUET:
            from clickbert.bulk.formats.parquet import Parquet  # noqa: PLC0415 (an extra's)

            return Parquet(self.source, self.columns)
        return (JsonLines if kind == JSONL else CommaSeparated)(self.source, self.columns, gzipped=gzipped)

    def open_output(self, table: Table, settings: Mapping[str, Any], say: Callable[[str], None]) -> Output:
        """Return where the rows go; `settings` must be the same in every run that goes on."""
        if is_stream(self.output):
            return Pipe(self.output, say)
        path = Path(self.output)
        finish: Finish | None = compress if path.suffix == _GZIP else getattr(table, "join", None)
        job = {"input": self.identity(), "columns": list(self.columns), "format": self.find_format(), **settings}
        return Growing(path, self.source, None if self.is_pipe else job, finish, say)

    def identity(self) -> list[int] | None:
        """Return its size and time, which tell it from another, and from itself before a change; None of a pipe."""
        if self.is_pipe:
            return None
        status = Path(self.source).stat()
        return [status.st_size, status.st_mtime_ns]


def is_stream(name: str) -> bool:
    """Tell whether a name is `-`, or of a pipe or a device."""
    if name == STDIN:
        return True
    try:
        return not stat.S_ISREG(Path(name).stat().st_mode)
    except FileNotFoundError:
        return False


def _format_of(name: str) -> str | None:
    return _ENDINGS.get(Path(name.removesuffix(_GZIP)).suffix)


@dataclass(frozen=True)
class Job:
    """One command: the files; how pairs are scored; what must not change between runs; how long to wait."""

    files: Files
    options: Mapping[str, Any]  # of `score_pairs`
    settings: Mapping[str, Any]
    patience: float  # seconds
    mixed_versions: bool = False

    async def run(self, ranker: AsyncRanker) -> Done:
        """Score what is left, and make the output; `ranker` has a `VersionObserver`.

        Raises `JobError` if it cannot begin or must stop, and `asyncio.CancelledError` after SIGINT or SIGTERM; both
        say on stderr, or in the message, how to go on.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: then nobody is to be told
                loop.add_signal_handler(number, task.cancel)
        progress = Progress()
        flow: Flow | None = None
        with contextlib.ExitStack() as opened:
            opened.callback(progress.close)
            try:
                identity = self.files.identity()
                table = await in_thread(self.files.open_table)  # a CSV's header may come from a pipe
                output = self.files.open_output(table, self.settings, progress.say)
                opened.callback(output.close)
                done = await output.begin(table.header)
                progress.begin(done.rows)
                if not done.is_complete:
                    sender = Sender(ranker, self.options, self.patience, progress.say)
                    flow = Flow(table, output, done, sender.score, progress, mixed_versions=self.mixed_versions)
                    await flow.run()
                    done = flow.done
                    if identity != self.files.identity():
                        raise JobError(
                            f"{self.files.source} was changed while it was read: remove the journal, and score a copy"
                            " that stays",
                            is_final=True,
                        )
                await output.finish(done)
            except ClickBertError as exc:
                is_final = isinstance(exc, JobError) and exc.is_final
                raise JobError(f"{exc}{self._how_to_go_on(flow, is_final)}", is_final=is_final) from exc
            except asyncio.CancelledError:
                progress.close()
                progress.say(f"interrupted{self._how_to_go_on(flow, is_final=False)}")
                raise
        return done

    def _how_to_go_on(self, flow: Flow | None, is_final: bool) -> str:
        if flow is None or not flow.done.rows:
            return ""
        rows = f"; {flow.done.rows:,} rows are done"
        if is_stream(self.files.output):
            return f"{rows}. A pipe cannot be resumed: begin anew"
        if self.files.is_pipe:
            return f"{rows}, in {self.files.output}.unfinished. An input from a pipe cannot be resumed: begin anew"
        if is_final:
            return f"{rows}, in {self.files.output}.unfinished"
        return f"{rows} and kept: run the same command again to go on"
