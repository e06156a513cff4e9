"""Reads a published version: `REPOSITORY/MODEL/NUMBER`, with its tokenizer in `REPOSITORY/clickbert_tokenizer/NUMBER`.

Every file that is read is held against its hash in the manifest, as the server does before its start. That finds
damage; it is no signature. The model's inputs and limits are those of its config.pbtxt.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from clickbert.errors import InvalidInputError
from clickbert.in_process.graph import open_graph, run_constants
from clickbert.in_process.model import Model
from clickbert.in_process.names import (
    CHUNK_ELEMENTS,
    CONFIG_FILE,
    CPU_MODELS,
    FILES,
    GRAPH_FILE,
    MANIFEST_FILE,
    MANIFEST_SUM_FILE,
    TOKENIZER_SHA256,
    USER_TOKENS,
)
from clickbert.in_process.pieces import cut
from clickbert.wire.protocol import LENGTHS, LONGEST, TOKENIZER_MODEL, USER_LENGTHS, ModelDescription, is_number

_AGAIN = "copy the version again from where it was exported, or export it again with `python -m export`"
_CHUNK = "256"  # tokens, where a config does not say: it is another backend's


def read_version(folder: Path) -> Model:
    """Read a version's folder. Raises `InvalidInputError`; says which file is wrong, and what to do."""
    if not is_number(folder.name):
        raise InvalidInputError(f"{folder} is not named by a version's number: copy it as REPOSITORY/MODEL/NUMBER")
    file = folder.parent / CONFIG_FILE
    config = _read_config(file)
    inputs = tuple(value.name for value in config.input)
    if config.backend == "tensorrt" or LONGEST in inputs:
        raise InvalidInputError(
            f"{folder} is a TensorRT version, which a server computes, on an NVIDIA GPU: serve it, and use `Ranker`;"
            f" or give a version that CPUs compute{_beside(folder)}"
        )
    if LENGTHS not in inputs:
        raise InvalidInputError(f"{folder} is no click model{_beside(folder)}")
    manifest = _verify(folder)
    if (manifest.get(USER_TOKENS) is None) == (USER_LENGTHS in inputs):
        raise InvalidInputError(
            f"{file} has the inputs of another version than {folder}: a newer one, trained with another --attention;"
            " give that one, or the config of this one"
        )
    tokenizer = folder.parent.parent / TOKENIZER_MODEL / folder.name
    if not tokenizer.is_dir():
        raise InvalidInputError(f"{tokenizer} is missing, the tokenizer of {folder}: copy it, too, to that place")
    if _verify(tokenizer).get(TOKENIZER_SHA256) != manifest.get(TOKENIZER_SHA256):
        raise InvalidInputError(
            f"{tokenizer} is not the tokenizer of {folder}: their manifests name different ones; {_AGAIN}"
        )
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    budget = parameters.get(CHUNK_ELEMENTS, _CHUNK)
    if not is_number(budget):
        raise InvalidInputError(f"{file}: {CHUNK_ELEMENTS} is not a whole number; correct it there")
    return Model(
        path=folder,
        name=folder.parent.name,
        version=folder.name,
        description=ModelDescription((folder.name,), parameters, inputs),
        tokenizer=run_constants(tokenizer / GRAPH_FILE),
        cut=partial(cut, budget=int(budget)),
        threads=None,
        open=partial(open_graph, folder / GRAPH_FILE, _counts(config, file)),
    )


def _beside(folder: Path) -> str:
    """Name the versions of the same number that CPUs compute, if there are any."""
    others = [folder.parent.parent / model / folder.name for model in CPU_MODELS]
    found = " or ".join(str(other) for other in others if (other / GRAPH_FILE).exists())
    return found and f": {found}"


def _counts(config: Any, file: Path) -> dict[str, str]:
    """Return the graph's inputs that hold how many elements another one has, each with that one."""
    counted = [entry for entry in config.batch_input if len(entry.target_name) == len(entry.source_input) == 1]
    if len(counted) < len(config.batch_input) or any(entry.kind for entry in counted):  # 0: BATCH_ELEMENT_COUNT
        raise InvalidInputError(f"{file}: its batch_input is not that of a click model for CPUs; {_AGAIN}")
    return {entry.target_name[0]: entry.source_input[0] for entry in counted}


def _read_config(file: Path) -> Any:
    try:
        # A field that a newer Triton has does not matter here.
        return text_format.Parse(
            file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig(), allow_unknown_field=True
        )
    except OSError as exc:
        raise InvalidInputError(
            f"{file} cannot be read ({exc.strerror}): it lies beside a model's versions; copy it from the repository"
            " that the version is from"
        ) from exc
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInputError(f"{file} is not a valid model configuration: {exc}; correct it") from exc


def _verify(folder: Path) -> dict[str, Any]:
    """Return a version's manifest, once it and the graph have their hashes."""
    content = _read(folder / MANIFEST_FILE)
    sums = _read(folder / MANIFEST_SUM_FILE).split(maxsplit=1)
    if sums[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise _damaged(folder / MANIFEST_FILE, MANIFEST_SUM_FILE)
    try:
        manifest: dict[str, Any] = json.loads(content)
        published = manifest[FILES][GRAPH_FILE]
    except (ValueError, RecursionError, TypeError, KeyError) as exc:
        raise InvalidInputError(
            f"{folder / MANIFEST_FILE} does not list {GRAPH_FILE}: it is of another release, or of no click model;"
            " export the model again with `python -m export`"
        ) from exc
    graph = folder / GRAPH_FILE
    try:
        with graph.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InvalidInputError(f"{graph} cannot be read ({exc.strerror}); {_AGAIN}") from exc
    if found != published:
        raise _damaged(graph, MANIFEST_FILE)
    return manifest


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise InvalidInputError(
            f"{file} cannot be read ({exc.strerror}): the version was copied in part, or published by a former"
            f" release; {_AGAIN}"
        ) from exc


def _damaged(file: Path, beside: str) -> InvalidInputError:
    return InvalidInputError(f"{file} is damaged: its SHA-256 is not that in {beside}; {_AGAIN}")
