"""Waiting in threads, so that a signal is answered meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


async def in_thread(function: Callable[[], Value]) -> Value:
    """Call a function in a thread that nobody waits for when the process ends: it may wait for a pipe."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def settle(value: Value | None, error: BaseException | None) -> None:
        if not future.done():
            if error:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]

    def call() -> None:
        try:
            value, error = function(), None
        except BaseException as exc:
            value, error = None, exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=call, daemon=True, name="clickbert-bulk").start()
    return await future
