"""Which of several addresses a call goes to: each in turn, but those that just failed are passed over for a while."""

import random
import time
from collections.abc import Sequence

from clickbert.channels.forks import Lock
from clickbert.errors import ConnectionFailedError, ServerError, ServerTimeoutError, ServerUnavailableError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds that an address is passed over; doubled with each further failure


class Rotation:
    """The addresses of a ranker's servers. Safe to share between threads.

    What counts is how calls end. Triton's health service is not asked: after a load that failed it says that it is not
    serving, while the former version of the model answers well.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = tuple(targets)
        self._lock = Lock()
        self._last = random.randrange(len(self._targets))  # so that not every client begins with the same one
        self._failures: dict[str, tuple[int, float]] = {}  # how many in a row, and until when it is passed over

    def next(self) -> str:
        """Return the next address that is not passed over; if all are, the next one all the same."""
        with self._lock:
            now = time.monotonic()
            places = [(self._last + step) % len(self._targets) for step in range(1, len(self._targets) + 1)]
            usable = (place for place in places if self._failures.get(self._targets[place], (0, now))[1] <= now)
            self._last = next(usable, places[0])
            return self._targets[self._last]

    def ended(self, target: str, error: ServerError | None = None) -> None:
        """Remember how a call to an address ended. A timeout says nothing: the server may just be busy.

        Calls that were in flight together fail together: those that end while the address is passed over already are
        one failure with the first.
        """
        if isinstance(error, ServerTimeoutError):
            return
        with self._lock:
            if isinstance(error, ConnectionFailedError | ServerUnavailableError):
                now = time.monotonic()
                count, until = self._failures.get(target, (0, now))
                if now < until:
                    return
                pause = min(_FIRST_PAUSE * 2.0 ** min(count, 10), _LONGEST_PAUSE)
                self._failures[target] = count + 1, now + pause
            else:
                self._failures.pop(target, None)
