"""The folder of one running server: its backends, the files that its processes lock, and its admin token.

Triton reads the backends again whenever it loads a model, so the folder must last as long as the server.

- It lies in the user's state folder (~/.local/state/clickbert), which no cleaner visits. If that will not do, it lies
  in /var/tmp or the temporary folder; there a lock on it keeps systemd's cleaner (systemd-tmpfiles) out.
- The server's processes inherit the lock. A folder that nobody has locked was left by a killed server: the next start
  removes it.
- A shell reads its path, because Triton starts its Python processes by a shell's command line. So the path must be one
  that a shell leaves as it is.
- Triton starts a program there, so the file system must not be mounted noexec.

What this module does not know: what the folder holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.triton import ServingError

PREFIX = "clickbert-serving-"
SHARED_MEMORY = Path("/dev/shm")


class RuntimeFolder:
    """A folder that is locked and filled, until `remove`.

    Args:
        fill: puts what the server needs into it. Where that raises OSError, the next place is tried.

    Raises:
        ServingError: no place will do; says why not, and what to set or to mount.
    """

    path: Path
    lock: int | None  # the descriptor that holds it; the server's processes inherit it

    def __init__(self, fill: Callable[[Path], object]) -> None:
        refused = []
        for parent, _ in places():
            remove_leftovers(parent)
        for parent, make in places():
            try:
                check_path(parent)
                if make:
                    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.path, self.lock = make_locked(parent)
                try:
                    fill(self.path)
                except BaseException:
                    self.remove()
                    raise
                return
            except OSError as exc:
                refused.append(f"{parent}: {exc.strerror or exc}")
        raise ServingError(
            "the server needs a folder for a few MB of its own, where this user may write and execute files; none of "
            f"these is one ({'; '.join(refused)}); set XDG_STATE_HOME to such a folder, or mount one "
            "(`docker run --tmpfs /tmp:exec`)"
        )

    def remove(self) -> None:
        """Removes the folder, and what its server left in shared memory. The second time it does nothing."""
        if self.lock is not None:
            descriptor, self.lock = self.lock, None
            remove(self.path)
            os.close(descriptor)


def places() -> Iterator[tuple[Path, bool]]:
    """Where the folder may lie, the best place first; and whether the place itself may be made."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    yield Path(os.path.expanduser(state)) / "clickbert", True  # noqa: PTH111 (Path's raises where there is no home)
    yield Path("/var/tmp"), False
    yield Path(os.environ.get("TMPDIR") or "/tmp"), False


def own_folders() -> list[Path]:
    """The folders of this user's servers, and what killed ones left."""
    own = []
    for folder in [folder for parent, _ in places() for folder in parent.glob(f"{PREFIX}*")]:
        with contextlib.suppress(FileNotFoundError):  # its server has just ended
            if folder.lstat().st_uid == os.getuid():
                own.append(folder)
    return own


def check_path(parent: Path) -> None:
    """Raises OSError where Triton could not work with the path."""
    if not parent.is_absolute():
        raise OSError("not an absolute path")
    if shlex.quote(str(parent)) != str(parent):
        raise OSError("a shell would not leave this path as it is")


def make_locked(parent: Path) -> tuple[Path, int]:
    """A new folder in `parent`, and the descriptor that locks it.

    Raises:
        OSError: `parent` does not allow that, or no execution. (NFS does not lock folders; locks on files in it, which
            the server's processes take for every chunk that they compute, would be slow there.)
    """
    if os.statvfs(parent).f_flag & os.ST_NOEXEC:
        raise OSError("mounted noexec")
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            return folder, take_lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another start took it for a left-over: a new one
            continue
        except OSError:
            folder.rmdir()
            raise


def take_lock(folder: Path) -> int:
    """The descriptor that locks a folder. Raises OSError: it is gone, it is a link, or somebody has the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(parent: Path) -> None:
    """Removes this user's folders that no process has locked: their servers were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = take_lock(folder)
        except OSError:  # in use, or another user's
            continue
        if os.fstat(descriptor).st_uid == os.getuid():
            remove(folder)
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Removes a server's folder, and the shared memory that bears its name."""
    for region in SHARED_MEMORY.glob(f"{folder.name}-*"):
        with contextlib.suppress(OSError):
            region.unlink()
    shutil.rmtree(folder, ignore_errors=True)
