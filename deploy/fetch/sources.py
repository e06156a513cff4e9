"""Where a published repository is fetched from: a folder, or a bucket of S3's kind. Both list files and copy them."""

from __future__ import annotations

import importlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar

S3 = "s3://"
Result = TypeVar("Result")


class FetchError(RuntimeError):
    """The repository was not fetched; the message says which file is to blame, and what to do. Nothing is left."""


class Source(Protocol):
    """What holds a repository."""

    def files(self) -> dict[str, int]:
        """Every file's size in bytes, by its path below the repository. Raises FetchError."""

    def copy(self, name: str, to: Path) -> None:
        """Copies one of them. Raises FetchError, and OSError where it cannot be written."""


def open_source(text: str) -> Source:
    """The source that an operator names: `s3://BUCKET/PREFIX`, or a folder. Raises FetchError."""
    if text.startswith(S3):
        return Bucket(text)
    if "://" in text:
        raise FetchError(f"{text} cannot be fetched: give {S3}BUCKET/PREFIX, or a folder that is mounted here")
    return Folder(Path(text))


class Folder:
    """A folder. Raises FetchError: there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise FetchError(f"{folder} is no folder; give the model repository that `python -m export` publishes to")

    def files(self) -> dict[str, int]:
        """Every file's size. A link to a folder, or out of this one, is refused: that is not the repository's."""
        found = {}
        whole = self.folder.resolve()
        for parent, folders, names in os.walk(self.folder, onerror=refuse):
            for path in (Path(parent, name) for name in folders):
                if path.is_symlink():
                    raise FetchError(f"{path} is a link to a folder; put a copy in its place")
            for path in (Path(parent, name) for name in names):
                if path.is_symlink() and not path.resolve().is_relative_to(whole):
                    raise FetchError(f"{path} is a link that leads out of {self.folder}; put a copy in its place")
                try:
                    found[path.relative_to(self.folder).as_posix()] = path.stat().st_size
                except OSError as exc:
                    refuse(exc)
        return found

    def copy(self, name: str, to: Path) -> None:
        """Copies one of them."""
        try:
            file = (self.folder / name).open("rb")
        except OSError as exc:
            refuse(exc)
        with file, to.open("xb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


class Bucket:
    """A prefix in a bucket. Keys, region and endpoint are those of the environment (AWS_ENDPOINT_URL, ...).

    Raises:
        FetchError: the address cannot be read, or the package that speaks S3 is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.obstore = importlib.import_module("obstore")
            opened = importlib.import_module("obstore.store").S3Store.from_url
        except ImportError as exc:
            raise FetchError(f"{url} needs obstore; install the dependency group `fetch` ({exc})") from exc
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")  # a store inside the cluster
        try:
            self.store: Any = opened(
                self.url,
                # No limit for a whole file, which may be large on a slow line; but for a line that went silent.
                client_options={
                    "allow_http": plain,
                    "timeout": timedelta(days=1),
                    "read_timeout": timedelta(minutes=1),
                },
                retry_config={"max_retries": 5, "retry_timeout": timedelta(minutes=2)},
            )
        except self.obstore.exceptions.BaseError as exc:
            raise FetchError(f"{url} cannot be used: {first_line(exc)}; give {S3}BUCKET/PREFIX") from exc

    def files(self) -> dict[str, int]:
        """The size of every object that is not empty."""
        try:
            listed = interruptible(lambda: [each for chunk in self.obstore.list(self.store) for each in chunk])
        except self.obstore.exceptions.BaseError as exc:
            raise FetchError(
                f"{self.url} cannot be listed: {first_line(exc)}; check the address, AWS_ENDPOINT_URL, AWS_REGION, and "
                "whether these credentials may list and read it"
            ) from exc
        for each in listed:  # a key may be anything
            if ".." in PurePosixPath(each["path"]).parts:
                raise FetchError(f"{self.url}/{each['path']} leads out of the repository; take it away there")
        # An empty object marks a folder, for many tools. No file of a repository is empty.
        return {each["path"]: each["size"] for each in listed if each["size"]}

    def copy(self, name: str, to: Path) -> None:
        """Copies one of them. A connection that breaks is taken up again where it broke, some times."""

        def receive(file: BinaryIO) -> None:
            for chunk in self.obstore.get(self.store, name).stream(min_chunk_size=1 << 20):
                file.write(chunk)

        try:
            with to.open("xb") as file:
                interruptible(lambda: receive(file))
        except self.obstore.exceptions.BaseError as exc:
            raise FetchError(f"{self.url}/{name} cannot be read: {first_line(exc)}; fetch it again") from exc


def interruptible(call: Callable[[], Result]) -> Result:
    """Calls in a thread of its own: Python hears of no signal while obstore waits for a line that is silent."""
    end: Future[Result] = Future()

    def run() -> None:
        try:
            end.set_result(call())
        except BaseException as exc:
            end.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return end.result()


def refuse(exc: OSError) -> None:
    """Raises FetchError for what cannot be read."""
    raise FetchError(f"{exc.filename} cannot be read ({exc.strerror}); make it readable for this user") from exc


def first_line(exc: Exception) -> str:
    """The first line of a message, which may have a stack or a page behind it."""
    return str(exc).strip().partition("\n")[0]
