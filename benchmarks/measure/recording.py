"""What a generator writes for the benchmark to read: its requests, one by one, and what it took to send them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

# Classes of requests by their size: the smaller half, the LARGE share of all, and what is between.
LARGE = 0.05
SMALL, MIDDLE, LARGEST = CLASSES = ("smaller half", "middle", f"largest {LARGE:.0%}")


class Sample(NamedTuple):
    """One request; times in seconds."""

    intended_start: float  # after the users' start
    start_delay: float  # from the intended start to the actual one
    latency: float  # from the intended start to the answer
    pairs: int
    error: str | None  # its class; None: answered
    size: str  # its size class (CLASSES)


@dataclass(frozen=True)
class Recording:
    """A round of one generator.

    All users run in one thread. If it is always busy (`busy`), the latencies are its own and not the server's.
    """

    samples: list[Sample]
    first_messages: dict[str, str]  # by the error's class
    distinct: int  # how many different requests it sent in turn
    started: float  # on a clock that all processes of this machine share
    busy: float  # the share of its time that the thread computed
    cores: float  # that the process used, gRPC's threads included

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Reads it back."""
        values = json.loads(content)
        return cls(**values | {"samples": [Sample(*sample) for sample in values["samples"]]})
