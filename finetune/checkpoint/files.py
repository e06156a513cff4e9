"""Finds a checkpoint's files, checks that they are whole, and hashes them.

A checkpoint is one Hugging Face folder, or a PEFT adapter's folder together with the folder of its base model. The
names of all files that loading reads are here, so `hash_checkpoint` covers every one of them.

This module needs neither torch nor transformers.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release.files import sha256
from release.manifest import CheckpointRecord

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"
ADDED_TOKENS = "added_tokens.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Whatever transformers opens for a tokenizer, chat templates included, though they change no token.
TOKENIZER_FILES = (
    TOKENIZER, TOKENIZER_CONFIG, VOCABULARY, "special_tokens_map.json", ADDED_TOKENS, "chat_template.jinja",
)  # fmt: skip
HEAD_SETTINGS = "clickbert.json"
HEAD_WEIGHTS = "heads.safetensors"
GIT_LFS = b"version https://git-lfs"


class CheckpointError(ValueError):
    """Raised for a model folder that cannot be used; the message names the folder, what is wrong and what to do."""


@dataclass(frozen=True)
class Sources:
    """Where the parts of a checkpoint lie. All three are one folder, unless the checkpoint is an adapter."""

    config: Path  # the folder with config.json
    weights: Path  # the folder with the whole model's weights
    tokenizer: Path  # the folder with the tokenizer's files
    adapter: Path | None = None  # the folder with the LoRA weights to merge into the others


def find_sources(folder: Path) -> Sources:
    """Find the parts of a checkpoint; a PEFT adapter's are also in its base model's folder.

    Raises:
        CheckpointError: the folder does not exist, or it is an adapter whose base is not at hand.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; make one with `python -m finetune train`")
    if not (folder / ADAPTER_CONFIG).exists():
        return Sources(folder, folder, folder)
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS_INDEX).exists():
        raise CheckpointError(
            f"{folder}: holds a whole model and a PEFT adapter ({ADAPTER_CONFIG}); remove one of them"
        )
    base = _adapter_base(folder)
    own_tokenizer = any((folder / name).exists() for name in (TOKENIZER, VOCABULARY))
    return Sources(
        config=folder if (folder / CONFIG).exists() else base,
        weights=base,
        tokenizer=folder if own_tokenizer else base,
        adapter=folder,
    )


def find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files with a folder's weights: one file, or the shards that its index names.

    Raises:
        CheckpointError: there are none, only pickled ones, or a shard is missing.
    """
    if (folder / WEIGHTS).exists():
        paths = [folder / WEIGHTS]
    elif (folder / WEIGHTS_INDEX).exists():
        paths = _shards(folder / WEIGHTS_INDEX)
    else:
        pickled = (folder / "pytorch_model.bin").exists()
        found = "holds pickled weights only (pytorch_model.bin), which can run code" if pickled else "has no weights"
        raise CheckpointError(f"{folder}: {found}; save it with save_pretrained as {WEIGHTS}")
    for path in paths:
        check_file(path)
    return paths


def check_file(path: Path) -> None:
    """Refuse a file that cannot be read, is empty, or is a git-LFS pointer instead of the file it stands for.

    Raises:
        CheckpointError: with the reason.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if not start:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    if start == GIT_LFS:
        raise CheckpointError(
            f"{path}: is a git-LFS pointer, not the file itself; run `git lfs pull` in its repository"
        )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); save the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a JSON object; save the checkpoint again")
    return content


def hash_checkpoint(folder: Path) -> CheckpointRecord:
    """Hash every file that loading reads: config, weights with their index and shards, tokenizer, heads, adapter and
    its base.

    The hash over them all is that of the sorted lines "hash  name". The names of an adapter's base begin with "base/".
    Other files in the folder (optimizer state, logs, other formats) do not count.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    sources = find_sources(folder)
    paths = [sources.config / CONFIG, *find_weights(sources.weights)]
    if not (sources.weights / WEIGHTS).exists():
        paths.append(sources.weights / WEIGHTS_INDEX)
    # `load_tokenizer` takes the tokenizer's class from the config.json beside it.
    paths += [path for name in (CONFIG, *TOKENIZER_FILES) if (path := sources.tokenizer / name).exists()]
    if sources.adapter:
        paths += [sources.adapter / ADAPTER_CONFIG, sources.adapter / ADAPTER_WEIGHTS]
    paths += [path for name in (HEAD_SETTINGS, HEAD_WEIGHTS) if (path := folder / name).exists()]
    files = {}
    for path in dict.fromkeys(paths):
        check_file(path)
        files[path.name if path.parent == folder else f"base/{path.name}"] = sha256(path)
    files = dict(sorted(files.items()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    return CheckpointRecord(folder.resolve().name, hashlib.sha256(lines.encode()).hexdigest(), files)


def _shards(index: Path) -> list[Path]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: has no weight_map from weights to files; save the checkpoint again")
    paths = [index.parent / name for name in sorted(set(names.values()))]
    for path in paths:
        if path.parent != index.parent or not path.exists():
            raise CheckpointError(f"{index}: names {path.name}, which is not beside it; copy all shards")
    return paths


def _adapter_base(folder: Path) -> Path:
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise CheckpointError(f"{folder}: has {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}; save the adapter again")
    name = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(name, str) and name:
        for base in (Path(name), folder / name):
            if base.is_dir() and not (base / ADAPTER_CONFIG).exists():
                return base
    raise CheckpointError(
        f"{folder}: is a PEFT adapter of {name!r}, and there is no such folder; set base_model_name_or_path in "
        f"{ADAPTER_CONFIG} to the base's folder, or merge them with `peft.AutoPeftModelForSequenceClassification"
        f".from_pretrained(...).merge_and_unload().save_pretrained(...)` and save the tokenizer there, too"
    )
