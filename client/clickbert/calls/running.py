"""A call while it runs: its deadline, the attempts of its requests, and what observers see of it."""

import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from clickbert.calls.retries import Retries, RetryBudget
from clickbert.calls.steps import Step
from clickbert.errors import ServerError, ServerTimeoutError
from clickbert.telemetry.observer import Call

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked(Generic[Result]):
    """A call whose arguments were checked: the flow that makes its result, and what observers see."""

    call: Call
    flow: Generator[Step, Any, Result]


class Running:
    """A call that must be over in `timeout` seconds; its requests have the `headers`. Used by its threads or tasks."""

    def __init__(
        self, call: Call, where: str, timeout: float, headers: Mapping[str, str], retries: int, budget: RetryBudget
    ) -> None:
        self.headers = headers
        self._call, self._where, self._timeout = call, where, timeout
        self._deadline = time.monotonic() + timeout
        self._retries, self._budget = retries, budget
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the caller has the call's result or its error; threads may still be busy with its other requests."""
        return self._is_over

    def end(self) -> None:
        """Have no further request sent, and the counts stay as they are."""
        with self._lock:
            self._is_over = True

    @property
    def seconds_left(self) -> float:
        """The seconds left; negative when the call is late."""
        return self._deadline - time.monotonic()

    def time_left(self) -> float:
        """Return the seconds left, or raise `ServerTimeoutError`."""
        left = self.seconds_left
        if left <= 0:
            raise self.timeout_error()
        return left

    def timeout_error(self) -> ServerTimeoutError:
        """Return the error of a call that ran out of time."""
        return ServerTimeoutError(
            f"{self._where}: no result within {self._timeout:g} s; allow a longer timeout or send fewer documents"
        )

    def attempts(self) -> "Attempts":
        """Return the attempts of one more request."""
        return Attempts(self, Retries(self._retries, self._budget))

    def note(self, *, retry: bool) -> None:
        """Count a request that is sent; raises `CancelledError`, which nobody waits for, if the call is over."""
        with self._lock:
            if self._is_over:
                raise CancelledError
            self._call.requests += 1
            self._call.retries += retry


class Attempts:
    """How a ranker sends one request: `begin`, send, and on an error `pause_after` and begin again, or give up."""

    def __init__(self, running: Running, retries: Retries) -> None:
        self._running, self._retries = running, retries
        self._began = False

    def begin(self) -> float:
        """Count an attempt, and return the seconds that it may take; raises `ServerTimeoutError` if none are left."""
        left = self._running.time_left()
        self._running.note(retry=self._began)
        self._began = True
        return left

    def pause_after(self, error: ServerError) -> float:
        """Return the seconds to wait before the next attempt; raises the error if there is none."""
        if self._running.is_over:
            raise error
        pause = self._retries.pause_after(error, self._running.seconds_left)
        if pause is None:
            raise error
        return pause
