"""Reads what lies in a folder. Each raises `InvalidInputError`, with the file and what to do."""

import json
from pathlib import Path
from typing import Any

from clickbert.errors import InvalidInputError
from clickbert.in_process.names import CHECKPOINT_CONFIG, MANIFEST_SUM_FILE, TOKENIZER_FILE, WEIGHTS


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as exc:
        raise InvalidInputError(f"{file} cannot be read ({exc.strerror}); copy the whole folder again") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{file} is not JSON; copy it again") from exc
    if not isinstance(content, dict):
        raise InvalidInputError(f"{file} holds no JSON object; copy it again")
    return content


def identify(folder: Path) -> dict[str, str | list[int]]:
    """Return what tells a model from another at the same place.

    Of a published version that is the manifest's hash, which covers its files; of a checkpoint each file's size and
    time. What is not there is left out.
    """
    if (folder / MANIFEST_SUM_FILE).is_file():
        content = (folder / MANIFEST_SUM_FILE).read_bytes()
        return {MANIFEST_SUM_FILE: content[:64].decode("ascii", errors="replace")}
    files = [folder / name for name in (WEIGHTS, CHECKPOINT_CONFIG, TOKENIZER_FILE)]
    statuses = {file.name: file.stat() for file in files if file.is_file()}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}
