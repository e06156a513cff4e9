"""Calls observers around a call. One that fails is logged, once, and never fails the call."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from clickbert.telemetry.observer import Call, Observer

_logger = logging.getLogger("clickbert")
_HEADER = re.compile(r"[a-z0-9_.-]+:[ -~]*")  # what gRPC takes; anything else would fail the call

Value = TypeVar("Value")


class Observers:
    """A ranker's observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._reported: set[int] = set()

    @contextmanager
    def watch(self, call: Call) -> Iterator[Mapping[str, str]]:
        """Enter every observer, and leave them in the opposite order; yields the headers of the call's requests."""
        entered: list[tuple[Observer, AbstractContextManager[None]]] = []
        headers: dict[str, str] = {}
        for observer in self._observers:
            manager = self._safely(observer, _enter, observer, call)
            if manager is not None:
                entered.append((observer, manager))
                headers |= self._safely(observer, _headers, observer) or {}
        try:
            yield headers
        except BaseException as exc:
            call.error = type(exc).__name__
            raise
        finally:
            for observer, manager in reversed(entered):
                self._safely(observer, manager.__exit__, None, None, None)

    def _safely(self, observer: Observer, function: Callable[..., Value], *arguments: object) -> Value | None:
        try:
            return function(*arguments)
        except Exception:  # whatever it is: telemetry must not cost an answer
            if id(observer) not in self._reported:
                self._reported.add(id(observer))
                _logger.exception("%s failed; its further failures are not logged", type(observer).__name__)
            return None


def _enter(observer: Observer, call: Call) -> AbstractContextManager[None]:
    manager = observer.observe(call)
    manager.__enter__()
    return manager


def _headers(observer: Observer) -> dict[str, str]:
    headers = dict(observer.headers())
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or not _HEADER.fullmatch(f"{name}:{value}"):
            raise ValueError(f"the header {name!r} cannot be sent: expected a lower-case name and printable ASCII")
        if name.endswith("-bin"):  # whose values gRPC wants as bytes
            raise ValueError(f"the header {name!r} cannot be sent: a name that ends in -bin has no text")
    return headers
