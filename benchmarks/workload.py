"""The requests that every benchmark sends: a click log's own groups, or groups of one size, always in the same order.

Not known here: who sends them, and when.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from clickbert import protocol
from clickbert.tokenization import PackedPairs, PairTokenizer
from export.names import MODEL_FILE
from finetune.clicklog import ClickRow, read_click_log

SEED = 20
# Characters. What is longer is no headline (Upworthy's longest has 147).
TITLE = 150
ALL, TITLES = "all", "titles"


class WorkloadError(RuntimeError):
    """The click log has no such requests; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """One ranking request."""

    query: str
    documents: tuple[str, ...]


def read_requests(path: Path, candidates: int | None = None, texts: str = ALL) -> list[Request]:
    """The ranking requests of a click log, in a seeded order.

    Args:
        path: the click log.
        candidates: how many each request has, filled up with other groups' candidates or cut; None keeps their sizes.
        texts: ALL, or TITLES: only candidates that are as short as a headline.

    Raises:
        ClickLogError: it cannot be used.
        WorkloadError: it has no title.
    """
    rows = [row for row in read_click_log(path) if texts == ALL or len(row.document) <= TITLE]
    if not rows:
        raise WorkloadError(f"{path} has no candidate of {TITLE} characters or fewer; measure --texts {ALL}")
    chance = random.Random(SEED)
    requests = group_requests(rows)
    if candidates is not None:
        requests = [resize(request, candidates, rows, chance) for request in requests]
    chance.shuffle(requests)
    return requests


def group_requests(rows: list[ClickRow]) -> list[Request]:
    """Each group's query with its candidates, in the file's order."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.group, row.query), []).append(row.document)
    return [Request(query, tuple(documents)) for (_, query), documents in groups.items()]


def resize(request: Request, candidates: int, rows: list[ClickRow], chance: random.Random) -> Request:
    """A request with exactly so many candidates."""
    missing = max(0, candidates - len(request.documents))
    others = tuple(chance.choice(rows).document for _ in range(missing))
    return Request(request.query, (*request.documents[:candidates], *others))


def published_tokenizer(repository: Path) -> PairTokenizer:
    """The tokenizer that the newest version in a model repository serves, read without a server.

    Raises:
        WorkloadError: none is published.
    """
    graph = newest_version(repository, protocol.TOKENIZER_MODEL) / MODEL_FILE
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    content, max_length = session.run([protocol.TOKENIZER_JSON, protocol.MAX_LENGTH], {})
    return PairTokenizer(content.tobytes(), int(max_length[0]))


def newest_version(repository: Path, model: str) -> Path:
    """The folder of a model's newest published version.

    Raises:
        WorkloadError: none is published.
    """
    versions = [path for path in (repository / model).glob("*") if path.name.isdecimal()]
    if not versions:
        raise WorkloadError(f"{repository / model} has no published version; publish one with `python -m export`")
    return max(versions, key=lambda path: int(path.name))


def pack(tokenizer: PairTokenizer, requests: list[Request]) -> list[PackedPairs]:
    """The requests as the client packs them."""
    return [tokenizer.pack(request.query, list(request.documents)) for request in requests]


def tokens(packed: list[PackedPairs]) -> dict[str, NDArray[np.int64]]:
    """How many tokens each request has, and has when it is padded: int64 [requests], by the kind of padding."""
    lengths = [pairs.lengths.astype(np.int64) for pairs in packed]
    return {
        "packed": np.array([each.sum() for each in lengths]),
        "padded to the request's longest": np.array([each.max() * len(each) for each in lengths]),
        "padded to 512": np.array([max(512, int(each.max())) * len(each) for each in lengths]),
    }
