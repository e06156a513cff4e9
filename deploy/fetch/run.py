"""Fetches a published model repository, verifies it, and moves it into place: whole, or not at all.

What lies at SOURCE is copied beside DESTINATION. Every version that Triton would load of it is held against its
manifest's hashes. Only then does the copy get its name. A server that starts on DESTINATION verifies it once more.

    python -m deploy fetch s3://models/clickbert/2026-11-28 /models/repository
    python -m deploy fetch /mnt/published /models/repository          a folder, such as a mounted volume

AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and a pod's own identity count as elsewhere. What
a prefix holds must not change: publish what is new under a new one. Run again with the same SOURCE, it looks whether
DESTINATION is still whole, and fetches it anew if it is not, which needs twice the room. DESTINATION with something
else in it is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import FrameType

from deploy.fetch.sources import FetchError, Source, open_source
from release.files import STAGING, sync
from release.lock import LockError, locked
from release.names import TOKENIZER_MODEL
from release.versions import WITHDRAWN, published
from serving.repository.verification import loaded_versions, verify_models
from serving.triton import ServingError

ORIGIN = "fetched-from"  # the file in DESTINATION that names SOURCE


def main(words: Sequence[str]) -> int:
    """The command. Returns the exit code: 0 it is there and whole, 1 it is not, 2 usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy fetch",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="s3://BUCKET/PREFIX, or a folder")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="the folder to make")
    options = parser.parse_args(words)
    # Process 1 of a container ignores SIGTERM unless it says otherwise; and what is half copied must go.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        print(f"fetch: {fetch(options.source, options.destination)}")
    except (FetchError, LockError) as exc:
        print(f"fetch: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"fetch: {exc.filename or options.destination} cannot be written ({exc.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch: interrupted; nothing half is left", file=sys.stderr)
        return 130
    return 0


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Does with SIGTERM what Python does with Ctrl-C."""
    raise KeyboardInterrupt


def fetch(source: str, destination: Path) -> str:
    """Fetches a repository; says what is there now.

    Raises:
        FetchError: something cannot be read, or is damaged; names the file. DESTINATION is as it was.
        LockError: another fetch to it is under way.
        OSError: something cannot be written.
    """
    destination = destination.absolute()
    if destination.is_dir() and any(destination.iterdir()):
        if not is_from(source, destination):
            raise FetchError(f"{destination} is not empty, and was not fetched from {source}; give a new folder")
        try:
            return f"{destination} was fetched before and is whole: {verify_repository(destination)}"
        except FetchError as exc:
            print(f"fetch: {exc}: fetched anew", file=sys.stderr)
    staged = destination.with_name(destination.name + STAGING)
    with locked(staged):
        try:
            remove_content(staged)  # what a killed run left
            copy_whole(open_source(source), source, staged)
            try:
                found = verify_repository(staged)
            except FetchError as exc:
                raise FetchError(f"{source} is refused: {str(exc).replace(str(staged), source.rstrip('/'))}") from exc
            (staged / ORIGIN).write_text(f"{source}\n", encoding="utf-8")
            if destination.is_dir():
                remove_content(destination)
            staged.rename(destination)
            sync(destination.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return f"{destination} is whole: {found}"


def copy_whole(files: Source, source: str, staged: Path) -> None:
    """Copies what a repository is made of. Raises FetchError and OSError."""
    sizes = {name: size for name, size in files.files().items() if is_published(name)}
    free = shutil.disk_usage(staged).free
    if sum(sizes.values()) > free:
        raise FetchError(
            f"{source} has {sum(sizes.values()) / 1e6:,.1f} MB, and the disk of {staged.parent} has {free / 1e6:,.1f} "
            "free: give the volume more"
        )
    for name, size in sizes.items():
        copy = staged / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        files.copy(name, copy)
        if (found := copy.stat().st_size) != size:  # configs and warm-up have no hash
            raise FetchError(f"{source.rstrip('/')}/{name} had {size:,} bytes, and {found:,} came: fetch it again")
        sync(copy)


def is_published(name: str) -> bool:
    """Whether a file belongs to what is published: not to a version that was withdrawn, or is being written."""
    parts = PurePosixPath(name).parts
    return name != ORIGIN and not any(part.endswith(STAGING) or part.startswith(WITHDRAWN) for part in parts)


def verify_repository(repository: Path) -> str:
    """Verifies every version that Triton would load; says which.

    Raises:
        FetchError: one is damaged, or there is no click model; names the file.
    """
    models = sorted(path.name for path in repository.iterdir() if published(repository, path.name))
    if not set(models) - {TOKENIZER_MODEL}:
        raise FetchError(f"{repository} holds no published click model; `python -m export` publishes one")
    try:
        verify_models(repository, models)
        return ", ".join(
            f"{model} {version.name}" for model in models for version in loaded_versions(repository / model)
        )
    except ServingError as exc:
        raise FetchError(str(exc)) from exc
    except OSError as exc:
        raise FetchError(f"{exc.filename} cannot be read ({exc.strerror}); copy it again") from exc


def is_from(source: str, destination: Path) -> bool:
    """Whether a folder was fetched from there."""
    try:
        return (destination / ORIGIN).read_text(encoding="utf-8").strip() == source
    except OSError:
        return False


def remove_content(folder: Path) -> None:
    """Empties a folder. Raises OSError."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
