"""Which folders of a model repository are published versions.

Triton serves the folders whose name is a number, without leading zeros. An empty one holds nothing to serve, and a
staging folder (`release.files`) has another name, so neither is a published version. A version that an operator took
back is renamed, and keeps its number.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path

LARGEST = 2**63 - 1  # Triton keeps the number in 64 bits
# Before the number: Triton 2.51 takes a folder named `7.anything` for version 7.
WITHDRAWN = "withdrawn."


def published(repository: Path, model: str) -> list[Path]:
    """The folders of a model's published versions, the newest first; none where the model is not there."""
    folder = repository / model
    versions = [path for path in list_numbered([folder]) if path.is_dir() and any(path.iterdir())]
    return sorted(versions, key=lambda path: int(path.name), reverse=True)


def newest(repository: Path, model: str) -> Path | None:
    """The folder of a model's newest published version."""
    return next(iter(published(repository, model)), None)


def next_number(repository: Path) -> int:
    """A version number that no model has used: higher than everything that has a number, even empty or withdrawn."""
    folders = list(repository.iterdir()) if repository.is_dir() else []
    used = [int(path.name) for path in list_numbered(folders)]
    used += [withdrawn_number(path) for folder in folders for path in list_withdrawn(folder)]
    return 1 + max(used, default=0)


def withdraw(version: Path) -> Path:
    """Takes a published version back: Triton no longer finds it. Returns where it is now. Raises OSError.

    A copy of the same number that was withdrawn before makes room: it becomes `withdrawn.7.1`, which nothing looks for.
    """
    withdrawn = version.with_name(WITHDRAWN + version.name)
    if withdrawn.exists():
        names = (version.with_name(f"{withdrawn.name}.{number}") for number in count(1))
        withdrawn.rename(next(name for name in names if not name.exists()))
    return version.rename(withdrawn)


def bring_back(model: Path, number: int) -> Path | None:
    """Publishes a version again that was withdrawn; its folder, or None if there is none. Raises OSError."""
    withdrawn = model / f"{WITHDRAWN}{number}"
    return withdrawn.rename(model / str(number)) if withdrawn.is_dir() else None


def list_withdrawn(model: Path) -> list[Path]:
    """The folders of a model's withdrawn versions."""
    return [path for path in model.glob(f"{WITHDRAWN}*") if is_number(path.name.removeprefix(WITHDRAWN))]


def withdrawn_number(version: Path) -> int:
    """The number of a withdrawn version."""
    return int(version.name.removeprefix(WITHDRAWN))


def left_behind(repository: Path, models: Iterable[str], tokenizer: str, kept: int) -> list[str]:
    """The models that no client can ask: the server no longer keeps the tokenizer of their newest version.

    Args:
        models: the models to look at.
        tokenizer: the tokenizer's model. Its versions carry the numbers of the models' versions.
        kept: how many of its versions the server keeps.
    """
    oldest = min((int(path.name) for path in published(repository, tokenizer)[:kept]), default=0)
    newest_versions = {model: newest(repository, model) for model in models}
    return sorted(model for model, version in newest_versions.items() if version and int(version.name) < oldest)


def list_numbered(folders: Iterable[Path]) -> list[Path]:
    """What lies in the folders under the name of a version."""
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir() if is_number(path.name)]


def is_number(name: str) -> bool:
    """Whether Triton takes a folder of this name for a version."""
    digits = name.isascii() and name.isdecimal()
    return digits and (name == "0" or not name.startswith("0")) and int(name) <= LARGEST
