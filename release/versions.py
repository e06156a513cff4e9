"""Which folders of a model repository are published versions.

Triton serves the folders whose name is a number, without leading zeros. An empty one holds nothing to serve, and a
staging folder (`release.files`) has another name, so neither is a published version.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LARGEST = 2**63 - 1  # Triton keeps the number in 64 bits


def published(repository: Path, model: str) -> list[Path]:
    """The folders of a model's published versions, the newest first; none where the model is not there."""
    folder = repository / model
    versions = [path for path in list_numbered([folder]) if path.is_dir() and any(path.iterdir())]
    return sorted(versions, key=lambda path: int(path.name), reverse=True)


def newest(repository: Path, model: str) -> Path | None:
    """The folder of a model's newest published version."""
    return next(iter(published(repository, model)), None)


def next_number(repository: Path) -> int:
    """A version number that no model has used: higher than everything that has a number for a name, even empty."""
    folders = repository.iterdir() if repository.is_dir() else ()
    return 1 + max((int(path.name) for path in list_numbered(folders)), default=0)


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
