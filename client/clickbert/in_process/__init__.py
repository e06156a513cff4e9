"""Rank without a server: a published version, or a checkpoint, computed on this process's own cores.

    from clickbert.in_process import ranker

    with ranker("model_repository/clickbert_onnx_int8/3") as ranked_here:
        ranked_here.rank("coffee near me", ["a bar", "a cafe"])

What comes back is a `Ranker` or an `AsyncRanker`, with all that they do. For files of pairs, for tests, and where there
is one process: each process has the model's weights of its own, and a server is shared by many.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from clickbert.async_ranker import AsyncRanker
from clickbert.connection import Connection
from clickbert.errors import InvalidInputError
from clickbert.in_process.model import Model
from clickbert.in_process.names import CHECKPOINT_CONFIG, GRAPH_FILE, MANIFEST_FILE
from clickbert.in_process.transport import AsyncInProcessTransport, InProcessTransport
from clickbert.ranker import Ranker
from clickbert.telemetry.observer import Observer
from clickbert.wire.protocol import TOKENIZER_MODEL, is_number


class Settings(TypedDict, total=False):
    """What `Ranker` and `AsyncRanker` take beside the connection and the model; `retries` is about servers alone."""

    timeout: float
    max_documents: int
    retries: int
    mask: Callable[[str], str] | None
    observers: Sequence[Observer]


def ranker(path: str | Path, **settings: Unpack[Settings]) -> Ranker:
    """Return a `Ranker` that computes here what lies at `path`; `settings` are those of `Ranker`.

    `path` is the folder of a published version, `REPOSITORY/MODEL/NUMBER`, with `clickbert_tokenizer/NUMBER` beside the
    model (the extra `in-process`), or of a checkpoint as transformers saves it (torch and transformers).

    Files are checked now. The graph is opened by the first call, and anew in each child process after a fork. Calls
    may come from any number of threads; requests are computed on as many cores as the process may use.

    Raises `InvalidInputError` for a folder that cannot be used; says what to do. Raises `ImportError` where a library
    is missing that computes it.
    """
    model = _read(path)
    return Ranker(_Here(str(model.path)), model.name, transport=InProcessTransport(model), **settings)


def async_ranker(path: str | Path, **settings: Unpack[Settings]) -> AsyncRanker:
    """Return an `AsyncRanker`, for any number of event loops, that computes here what lies at `path`; see `ranker`."""
    model = _read(path)
    return AsyncRanker(_Here(str(model.path)), model.name, transport=AsyncInProcessTransport(model), **settings)


class _Here(Connection):
    """The folder in place of an address, for errors; nothing is connected to."""

    def __post_init__(self) -> None:
        pass


def _read(path: str | Path) -> Model:
    if not isinstance(path, str | Path):
        raise InvalidInputError(f"path is of type {type(path).__name__}, expected a folder's path")
    folder = Path(path)
    if not folder.is_dir():
        raise InvalidInputError(
            f"{folder} is no folder: give that of a published version, REPOSITORY/MODEL/NUMBER, or of a checkpoint"
        )
    folder = folder.resolve()
    if (folder / CHECKPOINT_CONFIG).exists():
        from clickbert.in_process.checkpoints.checkpoint import read_checkpoint  # noqa: PLC0415

        model = read_checkpoint(folder)
    elif is_number(folder.name) or any((folder / name).exists() for name in (MANIFEST_FILE, GRAPH_FILE)):
        from clickbert.in_process.published import read_version  # noqa: PLC0415  (imports what the extra brings)

        model = read_version(folder)
    else:
        raise InvalidInputError(
            f"{folder} is neither a published version nor a checkpoint: it has no {MANIFEST_FILE} and no"
            f" {CHECKPOINT_CONFIG}{_advice(folder)}"
        )
    model.check()
    return model


def _advice(folder: Path) -> str:
    """Name a version that lies in the folder: it may be a model's, or a whole repository."""
    graphs = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{GRAPH_FILE}")]
    versions = [path.parent for path in graphs if is_number(path.parent.name) and TOKENIZER_MODEL not in path.parts]
    newest = max(versions, key=lambda path: int(path.name), default=None)
    return f"; there is {newest}" if newest else ""
