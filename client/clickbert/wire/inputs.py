"""What the model reads in a call, counted; and what it read on the evaluation log, as a release says.

A class of a distribution is named by its upper bound, and holds what is above the class before and no more than that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from clickbert.wire.packing import Packed, PackedUsers

EXPECTED = "expected"  # in `heads_json`; servers of an older release lack it
CANDIDATES = ("1", "2", "5", "10", "20", "50", "100", "200", "500", "+Inf")  # of a call
TOKENS = ("8", "16", "32", "64", "128", "256", "+Inf")  # of a pair, the three special ones included


@dataclass
class Inputs:
    """What the model reads, as the requests have it: what occurs twice in a call is read once."""

    lengths: list[int] = field(default_factory=list)  # tokens of each pair, passage or text, special ones included
    tokens: int = 0  # sent, special ones included; a query that is computed once is counted once a request
    truncated: int = 0  # pairs or texts of which something was cut
    unknown: int = 0  # [UNK] among the tokens

    def note(self, packed: Packed, unknown: int | None) -> None:
        """Count a packed request; `unknown` is the id of [UNK], None where the tokenizer has none."""
        lengths = packed.lengths
        if isinstance(packed, PackedUsers):
            lengths = lengths + np.repeat(packed.user_lengths, packed.user_pairs)
        self.lengths += lengths.tolist()
        self.tokens += packed.input_ids.size
        if unknown is not None:
            self.unknown += int(np.count_nonzero(packed.input_ids == unknown))

    def add(self, other: "Inputs") -> None:
        """Count what another has."""
        self.lengths += other.lengths
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.unknown += other.unknown


@dataclass(frozen=True)
class Expected:
    """The same of the evaluation log: shares of its groups by candidates, of its pairs by tokens, of what was cut.

    The classes are in the order of CANDIDATES and TOKENS.
    """

    candidates: Mapping[str, float]
    tokens: Mapping[str, float]
    truncated: float
    unknown: float


def read_expected(value: object) -> Expected | None:
    """Read the field EXPECTED of the parsed `heads_json`; None if it is missing, or is of another release's form.

    Only monitoring wants it, so it is no reason to refuse a release.
    """
    found = value.get(EXPECTED) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return None
    candidates, tokens = _shares(found.get("candidates"), CANDIDATES), _shares(found.get("tokens"), TOKENS)
    truncated, unknown = found.get("truncated"), found.get("unknown")
    if candidates and tokens and _is_share(truncated) and _is_share(unknown):
        return Expected(candidates, tokens, truncated, unknown)
    return None


def _shares(value: object, classes: tuple[str, ...]) -> dict[str, float] | None:
    """Return the share of each class, in their order; JSON may have them in another one. None if it is another form."""
    if not isinstance(value, dict) or value.keys() != set(classes) or not all(map(_is_share, value.values())):
        return None
    return {each: value[each] for each in classes}


def _is_share(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
