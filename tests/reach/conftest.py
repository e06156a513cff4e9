"""The questions that every client is asked, and the servers that answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.data.clicklog import read_click_log
from serving.server import Server
from tests.reach.environment import reach_python
from tests.reach.http_server import HttpServer, serve_http
from tests.reach.questions import Question, make_questions


@pytest.fixture(scope="session")
def questions(published_log: Path) -> list[Question]:
    """Fifty, of the published click log."""
    return make_questions(read_click_log(published_log))


@pytest.fixture(scope="session")
def http_server(published_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """`clickbert serve` in front of the published server."""
    with serve_http(published_server.addresses.grpc, tmp_path_factory.mktemp("http") / "log") as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def _tools() -> None:
    """Before a server is started: without the clients there is nothing to do."""
    reach_python()
