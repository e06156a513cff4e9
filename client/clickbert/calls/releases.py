"""The releases that a ranker knows."""

from dataclasses import replace

from clickbert.channels.forks import Lock
from clickbert.wire.protocol import Limits, Release

_KEPT = 4  # as many as the server keeps


class Releases:
    """The releases that a ranker knows, by version, and the one that answered last. Safe to share between threads.

    Their limits are those of the model's configuration, of all versions alike: what was heard last holds.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[str, Release] = {}
        self._current: Release | None = None
        self._limits: Limits | None = None

    def find(self, version: str | None) -> Release | None:
        """Return a version's release if it is known; for None, the one that answered last."""
        with self._lock:
            release = self._current if version is None else self._known.get(version)
            return replace(release, limits=self._limits) if release and self._limits else release

    def hear(self, limits: Limits) -> None:
        """Take note of the limits that the server tells now."""
        with self._lock:
            self._limits = limits

    def remember(self, release: Release) -> None:
        """Keep a release, and let the next call try it first."""
        with self._lock:
            self._known[release.version] = self._current = release
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
