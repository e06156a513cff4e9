"""Small batches, so that few rows are many of them; and no waiting for the disk: these tests cut no power."""

import os

import pytest

from clickbert.bulk import flow, rows


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH_PAIRS", 3)
    monkeypatch.setattr(flow, "MOST_OPEN", 4)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
