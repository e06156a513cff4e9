"""When a request is sent again: which errors, how often, after which pause, and how much all that may add to the load.

A retry is for what another try may well cure at once: a connection that broke, a server that drains. An overloaded
server gets none: it has said that it cannot do more. Nor does a passed deadline, or what stays wrong until someone
changes it (`ClickBertError.is_retryable`).
"""

import random

from clickbert.channels.forks import Lock
from clickbert.errors import ServerError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds; the first is doubled with each further retry
_SHARE = 0.1  # of a retry, which each request allows
_ADVANCE = 3.0  # retries that the first requests allow together, before they are made: for a client that just began
_MOST_SAVED = 10.0  # retries


class RetryBudget:
    """A ranker's allowance of retries, over all its calls: they add at most a tenth to the requests it sends.

    So when every request fails, servers that struggle get 1.1 times the requests, not three times as many. Safe to
    share between threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._saved = _ADVANCE
        self._requests = 0

    def note_request(self) -> None:
        """Count a request that is sent for the first time."""
        with self._lock:
            self._requests += 1
            if self._requests * _SHARE > _ADVANCE:
                self._saved = min(self._saved + _SHARE, _MOST_SAVED)

    def take_one(self) -> bool:
        """Use up a retry; False if none is left."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


class Retries:
    """The retries of one request, at most `limit`."""

    def __init__(self, limit: int, budget: RetryBudget) -> None:
        self._limit, self._budget = limit, budget
        self._made = 0
        budget.note_request()

    def pause_after(self, error: ServerError, seconds_left: float) -> float | None:
        """Return the seconds to wait before the request is sent again, or None if the error stands.

        Full jitter: clients that failed together do not come back together.
        """
        if not error.is_retryable or self._made >= self._limit:
            return None
        pause = random.uniform(0, min(_FIRST_PAUSE * 2.0**self._made, _LONGEST_PAUSE))
        if pause >= seconds_left or not self._budget.take_one():
            return None
        self._made += 1
        return pause
