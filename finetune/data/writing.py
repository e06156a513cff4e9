"""Click logs that are written whole or not at all."""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO, cast

from finetune.data.row import ClickLogError, ClickRow, format_row
from release.files import STAGING, sync

LEVEL = 6  # of compression, gzip's own default: 9 takes twice as long for a percent


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[TextIO]]:
    """Open a draft beside each path, gzipped where the name ends in `.gz`; the drafts get the names at the end.

    Whatever ends the block early, an error or Ctrl-C, leaves older files as they are, and no draft. Missing folders are
    made. The same texts give the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    drafts = [path.with_name(path.name + STAGING) for path in paths]
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(_open(draft, path)) for draft, path in zip(drafts, paths, strict=True)]
        for draft in drafts:
            sync(draft)
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def write_rows(path: Path, rows: Iterable[ClickRow]) -> int:
    """Write a click log from rows as they come, and return how many came.

    Raises:
        ClickLogError: there is none, so nothing is written; or the rows' own.
        OSError: the file cannot be written.
    """
    count = 0
    with whole_files([path]) as (file,):
        for row in rows:
            file.write(format_row(row))
            count += 1
        if not count:
            raise ClickLogError(f"{path}: there is no row to write; check the file that was read")
    return count


@contextmanager
def _open(draft: Path, path: Path) -> Iterator[TextIO]:
    with draft.open("wb") as raw, ExitStack() as stack:
        file: IO[bytes] = raw
        if path.suffix == ".gz":
            # No name and no time in the file, so that the same rows make the same bytes.
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", LEVEL, raw, mtime=0)))
        yield stack.enter_context(TextIOWrapper(file, encoding="utf-8", newline="\n"))
