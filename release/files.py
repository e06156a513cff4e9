"""Writes files atomically and flushes them to disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

STAGING = ".staging"  # ends the name of what is not whole yet


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, flushed to the disk. Raises OSError."""
    staged = path.with_name(path.name + STAGING)
    try:
        staged.write_bytes(data)
        sync(staged)
        staged.replace(path)
        sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The file's hash, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
