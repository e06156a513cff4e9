"""The requests that every benchmark sends: a click log's own groups, or groups of one size, always in the same order.

Not known here: who sends them, and when.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from clickbert import protocol
from clickbert.tokenization import PackedPairs, PairTokenizer
from finetune.data.clicklog import ClickRow, read_click_log
from release import versions
from release.names import MODEL_FILE

SEED = 20
# Characters. What is longer is no headline (Upworthy's longest has 147).
TITLE = 150
ALL, TITLES = "all", "titles"
BLOCK = 20  # requests
LARGE = 0.05  # of all requests
SMALL, MIDDLE, LARGEST = CLASSES = ("smaller half", "middle", f"largest {LARGE:.0%}")


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
        distinct = list(dict.fromkeys(row.document for row in rows))
        requests = [resize(request, candidates, distinct, chance) for request in requests]
    return spread(requests, chance)


def group_requests(rows: list[ClickRow]) -> list[Request]:
    """Each group's query with its candidates, in the file's order."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.group, row.query), []).append(row.document)
    return [Request(query, tuple(documents)) for (_, query), documents in groups.items()]


def resize(request: Request, candidates: int, texts: Sequence[str], chance: random.Random) -> Request:
    """A request with exactly so many candidates; filled up with other texts, which are distinct.

    None is in it twice while there are others: a client scores a candidate that repeats only once.
    """
    documents = list(request.documents[:candidates])
    drawn = chance.sample(texts, min(candidates, len(texts)))  # enough, even if all of its own are among them
    documents += [text for text in drawn if text not in documents][: candidates - len(documents)]
    documents += chance.choices(texts, k=candidates - len(documents))
    return Request(request.query, tuple(documents))


def spread(requests: Sequence[Request], chance: random.Random) -> list[Request]:
    """A random order in which every stretch of about BLOCK requests has nearly the mix of sizes that all have.

    One request in twenty may be ten times as large as the median one: in a plain shuffle, how many of them fall into a
    short measurement is chance, and moves its figures by several percent.
    """
    by_size = sorted(requests, key=characters, reverse=True)  # the smallest ones are left over, if any
    turns = -(-len(by_size) // BLOCK)
    strata = [by_size[first : first + turns] for first in range(0, len(by_size), turns)]
    for stratum in strata:
        chance.shuffle(stratum)
    order = []
    for turn in range(turns):
        block = [stratum[turn] for stratum in strata if turn < len(stratum)]
        chance.shuffle(block)
        order += block
    return order


def few(requests: Sequence[Request], count: int | None) -> list[Request]:
    """So many of the requests, evenly from the smallest to the largest, spread; all of them if there are no more."""
    if count is None or count >= len(requests):
        return list(requests)
    by_size = sorted(requests, key=characters)
    chosen = [by_size[int((place + 0.5) * len(by_size) / count)] for place in range(count)]
    return spread(chosen, random.Random(SEED))


def characters(request: Request) -> int:
    """A request's size: the characters that are to be read for it."""
    return sum(len(request.query) + len(document) for document in request.documents)


def size_classes(requests: Sequence[Request]) -> dict[Request, str]:
    """Each request's class by its size among all: the smaller half, the LARGE share, and what is between."""
    sizes = sorted(characters(request) for request in requests)
    half, large = sizes[(len(sizes) - 1) // 2], sizes[max(0, int(len(sizes) * (1 - LARGE)) - 1)]

    def size_class(size: int) -> str:
        return SMALL if size <= half else MIDDLE if size <= large else LARGEST

    return {request: size_class(characters(request)) for request in requests}


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
    version = versions.newest(repository, model)
    if version is None:
        raise WorkloadError(f"{repository / model} has no published version; publish one with `python -m export`")
    return version


def pack(tokenizer: PairTokenizer, requests: list[Request]) -> list[PackedPairs]:
    """The requests as the client packs them."""
    return [tokenizer.pack(request.query, list(request.documents)) for request in requests]


def tokens(packed: Sequence[PackedPairs], max_length: int) -> dict[str, int]:
    """How many tokens all requests have, and have when they are padded, by the kind of padding."""
    lengths = [pairs.lengths.astype(np.int64) for pairs in packed]
    return {
        "packed": sum(int(each.sum()) for each in lengths),
        "padded to the request's longest": sum(int(each.max()) * len(each) for each in lengths),
        f"padded to {max_length}": sum(max_length * len(each) for each in lengths),
    }
