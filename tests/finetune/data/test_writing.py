"""Files that are written whole or not at all: on an error, on Ctrl-C and on a full disk."""

import gzip
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.data.writing import whole_files


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond `most` bytes: a write then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_all_files_and_makes_their_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "a.jsonl", tmp_path / "new" / "b.jsonl.gz"]
    with whole_files(paths) as (plain, zipped):
        plain.write("caf\u00e9\n")
        zipped.write("caf\u00e9\n")
        assert not any(path.exists() for path in paths)
    assert set(content(tmp_path / "new")) == {"a.jsonl", "b.jsonl.gz"}
    assert paths[0].read_bytes() == gzip.decompress(paths[1].read_bytes()) == "caf\u00e9\n".encode()


def test_gzips_the_same_texts_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        with whole_files([tmp_path / name]) as (file,):
            file.write("text\n")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    paths = [tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]
    paths[0].write_bytes(b"older")
    with pytest.raises(error):
        with whole_files(paths) as (_, second):
            second.write("x" * 100_000)
            raise error
    assert content(tmp_path) == {f"a{suffix}": b"older"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"older")
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        with whole_files(paths) as (first, second):
            first.write("short")
            second.write("x" * 2000)
    assert content(tmp_path) == {"a": b"older"}
