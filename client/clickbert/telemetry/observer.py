"""`Observer`: what a ranker tells of each call, without any text."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from clickbert.wire.inputs import Expected, Inputs


@dataclass
class Call:
    """One call of a ranker; the counts grow while it runs."""

    name: str  # "rank", "score_pairs", "classify", "embed" or "similarity"
    model: str
    texts: int  # documents, pairs or texts asked about
    requests: int = 0  # sent, retries included
    retries: int = 0
    version: str = ""  # the model's version that answered
    error: str = ""  # the class of the error that it ended with
    is_fallback: bool = False
    scores: Sequence[float] = ()  # click probabilities, in the order of the documents or pairs
    inputs: Inputs | None = None  # an observer that wants them counted puts `Inputs()` here before the call
    expected: Expected | None = None  # what that version's inputs were on the evaluation log; None: it does not say


class Observer(Protocol):
    """Sees every call of a ranker, in the thread or task that makes it."""

    def observe(self, call: Call) -> AbstractContextManager[None]:
        """Return what is entered before the call and left after it; the counts are final when it is left."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Return what is sent with each request of the call, such as `traceparent`; asked inside `observe`."""
        ...
