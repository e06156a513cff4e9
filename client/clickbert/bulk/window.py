"""How many calls are in flight: one more for each round that is answered, half as many when the server refuses one."""

import asyncio
from types import TracebackType
from typing import Self

_FIRST, MOST = 2, 8  # calls; each has some requests in flight


class Window:
    """The calls that may be in flight now. For the tasks of one event loop."""

    def __init__(self) -> None:
        self.size = float(_FIRST)
        self.setbacks = 0  # how often it was halved since the last answer
        self._in_flight = 0
        self._epoch = 0
        self._free = asyncio.Event()

    def call(self) -> "_Call":
        """Return what is entered, once there is room, for a call; tell it how the call ended."""
        return _Call(self)

    async def _enter(self) -> int:
        while self._in_flight >= int(self.size):
            self._free.clear()
            await self._free.wait()
        self._in_flight += 1
        return self._epoch

    def _leave(self) -> None:
        self._in_flight -= 1
        self._free.set()

    def _answered(self) -> None:
        self.size = min(self.size + 1 / self.size, MOST)
        self.setbacks = 0

    def _refused(self, epoch: int) -> None:
        if epoch == self._epoch:  # calls that were in flight together are refused together: that is one setback
            self._epoch += 1
            self.size = max(self.size / 2, 1.0)
            self.setbacks += 1


class _Call:
    def __init__(self, window: Window) -> None:
        self._window = window
        self._epoch = 0

    async def __aenter__(self) -> Self:
        self._epoch = await self._window._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._window._leave()

    def answered(self) -> None:
        self._window._answered()

    def refused(self) -> None:
        self._window._refused(self._epoch)
