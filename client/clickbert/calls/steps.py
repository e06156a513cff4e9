"""The steps of a call: a flow yields them, and a ranker performs each over its transport, blocking or awaited."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from clickbert.errors import ServerError
from clickbert.wire.protocol import InferRequest


@dataclass(frozen=True)
class DescribeModel:
    """Step: ask the server about a model; the reply is a `ModelDescription`."""

    model: str


@dataclass(frozen=True)
class Infer:
    """Step: make and send these requests, a few at a time; the reply is their answers, in order.

    Each request is made when its turn comes. Making one tokenizes, which takes a while, and so goes on while others are
    in flight.
    """

    requests: tuple[Callable[[], InferRequest], ...]


@dataclass(frozen=True)
class Compute:
    """Step: call a function that takes a while, but needs no server; the reply is what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class GetRelease:
    """Step: get the release of a version, None for the newest. Calls that need it at the same time fetch it once."""

    version: str | None


@dataclass(frozen=True)
class Done:
    """Not a step: the generator returned this value."""

    value: Any


Step = DescribeModel | Infer | Compute | GetRelease


def advance(flow: Generator[Step, Any, Any], reply: object = None, error: ServerError | None = None) -> Step | Done:
    """Run a call up to its next step, or to its end."""
    try:
        return flow.send(reply) if error is None else flow.throw(error)
    except StopIteration as stop:
        return Done(stop.value)
