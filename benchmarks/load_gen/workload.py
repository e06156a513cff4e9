"""The requests of every benchmark: a click log's own groups, or groups of one size, always in the same order."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import BenchmarkError
from benchmarks.measure.recording import LARGE, LARGEST, MIDDLE, SMALL
from clickbert import user_text
from finetune.data.clicklog import ClickRow, read_click_log

SEED = 20
TITLE = 150  # characters; what is longer is no headline (Upworthy's longest has 147)
ALL, TITLES, HISTORY = TEXTS = ("all", "titles", "history")
CLICKED = 12  # titles of a history
BLOCK = 20  # requests
DATA = Path("data/sample/test.jsonl")


@dataclass(frozen=True)
class Request:
    """One ranking request."""

    query: str
    documents: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Its size: the characters that are read for it, the query once for each candidate."""
        return sum(len(self.query) + len(document) for document in self.documents)


@dataclass(frozen=True)
class Selection:
    """Which requests are sent.

    Attributes:
        data: the click log.
        candidates: how many each request has, filled up with other groups' candidates or cut; None keeps their number.
        texts: ALL; TITLES: only candidates as short as a headline; HISTORY: the same, and the query is the user text of
            CLICKED such titles, drawn from the log.
    """

    data: Path = DATA
    candidates: int | None = None
    texts: str = ALL

    def read(self) -> list[Request]:
        """The requests, in a seeded order.

        Raises:
            ClickLogError: the click log cannot be used.
            BenchmarkError: it has no title.
        """
        rows = [row for row in read_click_log(self.data) if self.texts == ALL or len(row.document) <= TITLE]
        if not rows:
            raise BenchmarkError(
                f"{self.data} has no candidate of {TITLE} characters or fewer; measure --texts {ALL} instead"
            )
        chance = random.Random(SEED)
        requests = group_requests(rows)
        if self.candidates is not None:
            distinct = list(dict.fromkeys(row.document for row in rows))
            requests = [resize(request, self.candidates, distinct, chance) for request in requests]
        if self.texts == HISTORY:
            titles = list(dict.fromkeys(row.document for row in rows))
            count = min(CLICKED, len(titles))
            requests = [replace(one, query=user_text(chance.sample(titles, count), CLICKED)) for one in requests]
        return spread(requests, chance)

    def to_arguments(self) -> list[str]:
        """The command line's words that select the same requests."""
        words = ["--data", str(self.data), "--texts", self.texts]
        return words if self.candidates is None else [*words, "--candidates", str(self.candidates)]


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select the requests."""
    parser.add_argument("--data", type=Path, default=DATA, help=f"click log, .jsonl[.gz] (default {DATA})")
    parser.add_argument("--candidates", type=whole_number, help="candidates of each request (default: as logged)")
    parser.add_argument(
        "--texts",
        choices=TEXTS,
        default=ALL,
        help=f"all candidates; those of {TITLE} characters or fewer; or these for users with {CLICKED} clicked titles",
    )


def from_arguments(options: argparse.Namespace) -> Selection:
    """What the options select."""
    return Selection(options.data, options.candidates, options.texts)


def whole_number(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def group_requests(rows: Sequence[ClickRow]) -> list[Request]:
    """Each group's query with its candidates, in the file's order."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.group, row.query), []).append(row.document)
    return [Request(query, tuple(documents)) for (_, query), documents in groups.items()]


def resize(request: Request, candidates: int, texts: Sequence[str], chance: random.Random) -> Request:
    """A request with exactly this many candidates, filled up from `texts`, which are distinct.

    No candidate is in it twice while there are others: a client scores a repeated candidate only once.
    """
    documents = list(request.documents[:candidates])
    drawn = chance.sample(texts, min(candidates, len(texts)))  # enough, even if all of its own are among them
    documents += [text for text in drawn if text not in documents][: candidates - len(documents)]
    documents += chance.choices(texts, k=candidates - len(documents))
    return Request(request.query, tuple(documents))


def spread(requests: Sequence[Request], chance: random.Random) -> list[Request]:
    """A random order in which every stretch of about BLOCK requests has nearly the mix of sizes that all have.

    One request in twenty may be ten times as large as the median one. In a plain shuffle, chance decides how many of
    them fall into a short measurement, and moves its figures by several percent.
    """
    ordered = sorted(requests, key=lambda request: request.characters, reverse=True)  # the smallest are left over
    turns = -(-len(ordered) // BLOCK)
    strata = [ordered[first : first + turns] for first in range(0, len(ordered), turns)]
    for stratum in strata:
        chance.shuffle(stratum)
    order = []
    for turn in range(turns):
        block = [stratum[turn] for stratum in strata if turn < len(stratum)]
        chance.shuffle(block)
        order += block
    return order


def sample_of_all_sizes(requests: Sequence[Request], count: int | None) -> list[Request]:
    """This many of the requests, evenly from the smallest to the largest, spread; all of them if there are no more."""
    if count is None or count >= len(requests):
        return list(requests)
    ordered = sorted(requests, key=lambda request: request.characters)
    chosen = [ordered[int((place + 0.5) * len(ordered) / count)] for place in range(count)]
    return spread(chosen, random.Random(SEED))


def size_classes(requests: Sequence[Request]) -> dict[Request, str]:
    """Each request's class by its size among all: the smaller half, the LARGE share, and what is between."""
    sizes = sorted(request.characters for request in requests)
    half, large = sizes[(len(sizes) - 1) // 2], sizes[max(0, int(len(sizes) * (1 - LARGE)) - 1)]

    def size_class(size: int) -> str:
        return SMALL if size <= half else MIDDLE if size <= large else LARGEST

    return {request: size_class(request.characters) for request in requests}


def random_moments(rate: float, parts: Sequence[float], chance: random.Random) -> list[float]:
    """A Poisson process's moments, given that each part of the round has as many as the rate says.

    Left to chance alone, a measured part of 100 requests would often have 10 % more or fewer: "70 % of saturation" was
    55 to 63 %.

    `parts` are the seconds of each part. The moments are seconds from the start, ascending.
    """
    moments, start = [], 0.0
    for part in parts:
        moments += sorted(chance.uniform(start, start + part) for _ in range(round(rate * part)))
        start += part
    return moments
