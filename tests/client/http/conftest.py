"""The app over a fake Triton: in the test's process, or on a port. Needs the client's extra `http`, and httpx."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client.fakes import AsyncFakeTransport, FakeTriton

NEEDED = ("starlette", "uvicorn", "httpx", "prometheus_client", "hypothesis")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture
def transport(server: FakeTriton) -> AsyncFakeTransport:
    return AsyncFakeTransport(server)


@pytest.fixture
def start(transport: AsyncFakeTransport) -> Iterator[Callable[..., Any]]:
    """A function that starts the app with these settings; returns a client of it."""
    from starlette.testclient import TestClient

    from clickbert import Connection
    from clickbert.http.app import make_app
    from clickbert.http.settings import Settings

    with ExitStack() as stack:

        def begin(**settings: Any) -> Any:
            app = make_app(Settings(Connection("localhost:8001"), **settings), transport)
            return stack.enter_context(TestClient(app))

        yield begin


@pytest.fixture
def http(start: Callable[..., Any]) -> Any:
    return start()
