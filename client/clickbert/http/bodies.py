"""Reads a body within its limits: bytes first, then JSON, then that it is an object."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from clickbert.http.forms.form import RefusalError

# How long what is too large is still read: as nginx's lingering_timeout and lingering_time.
_QUIET = 2.0  # seconds without a part of it
_LINGER = 30.0  # seconds in all


async def read_body(request: Request, limit: int, timeout: float) -> dict[str, Any]:
    """Return the object that the body holds.

    Raises `RefusalError`, for one that is too large before it is read whole, or that has not come within `timeout`
    seconds, and starlette's `ClientDisconnect`.
    """
    announced = request.headers.get("content-length", "")
    is_too_large = announced.isdecimal() and (len(announced) > 18 or int(announced) > limit)
    parts, size = [], 0
    stream = request.stream()
    try:
        async with asyncio.timeout(timeout):
            while not is_too_large and (part := await anext(stream, b"")):  # the last one is empty
                size += len(part)
                is_too_large = size > limit
                parts.append(part)
    except TimeoutError:
        raise RefusalError(408, f"the body did not come within {timeout:g} s", {"connection": "close"}) from None
    if is_too_large:
        parts.clear()
        await _discard(stream)
        raise RefusalError(
            413, f"the body is larger than the {limit:,} bytes that this server takes", {"connection": "close"}
        )
    return _parsed(b"".join(parts))


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Take what still comes, for a while: a caller whose connection breaks while it sends may see no answer."""
    end = time.monotonic() + _LINGER
    with suppress(TimeoutError, ClientDisconnect):
        # One limit at a time: Python 3.11's `wait_for` may lose the cancellation by one around it.
        while (left := end - time.monotonic()) > 0:
            async with asyncio.timeout(min(_QUIET, left)):
                if not await anext(stream, b""):
                    return


def _parsed(body: bytes) -> dict[str, Any]:
    message = ""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except UnicodeDecodeError as exc:
        message = f"the body is not UTF-8 at byte {exc.start}"
    except json.JSONDecodeError as exc:
        message = f"the body is not JSON: line {exc.lineno}, column {exc.colno}: {exc.msg}"
    except ValueError:  # NaN, Infinity, or a number of thousands of digits
        message = "the body holds a number that JSON has not, or one that is too long"
    except RecursionError:
        message = "the body is nested too deeply"
    if message:  # raised out here: Python's errors hold the body
        raise RefusalError(400, message)
    if not isinstance(value, dict):
        raise RefusalError(400, "the body is not a JSON object")
    return value


def _refuse(_: str) -> NoReturn:
    raise ValueError
