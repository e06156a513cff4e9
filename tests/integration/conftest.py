"""The published click log, its scores in PyTorch, and a client of the shared server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clickbert import Ranker
from finetune.data.clicklog import ClickRow, read_click_log
from serving.server import Server
from tests.integration.scores import PATIENCE, in_pytorch


@pytest.fixture(scope="session")
def rows(published_log: Path) -> list[ClickRow]:
    return read_click_log(published_log)


@pytest.fixture(scope="session")
def expected(published_checkpoint: Path, rows: list[ClickRow]) -> np.ndarray:
    return in_pytorch(published_checkpoint, rows)


@pytest.fixture
def ranker(published_server: Server) -> Iterator[Ranker]:
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        yield ranker
