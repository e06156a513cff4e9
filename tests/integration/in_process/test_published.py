"""A published version computed in the caller's process: the scores are the served ones, and PyTorch's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clickbert import InvalidInputError, Ranker
from clickbert.in_process import async_ranker, ranker
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.scoring import score_texts
from serving.server import Server
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.tiny import WORDS

MODELS = ["clickbert_onnx", "clickbert_onnx_int8"]
USERS = ["", "w1", "w2 w3 w4 w5", " ".join(WORDS[:40])]
TEXTS = ["", "w7", *(" ".join(WORDS[start : start + length]) for start, length in ((20, 6), (60, 50), (3, 90)))]
PAIRS = [(user, text) for text in TEXTS for user in USERS]
SAME = 1e-5  # a score differs in the last digits with the pairs that it is computed with, in process as on a server


@pytest.fixture(params=MODELS)
def both(published_server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Ranker, Ranker]]:
    """Rankers of one version: served, and here."""
    version = published_server.repository / request.param / "1"
    with Ranker(published_server.addresses.grpc, request.param, timeout=PATIENCE) as served:
        with ranker(version, timeout=PATIENCE) as here:
            yield served, here


@pytest.fixture(params=MODELS)
def both_once(once_server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Ranker, Ranker]]:
    """The same of a jointly trained model that computes the user text once."""
    version = once_server.repository / request.param / "1"
    with Ranker(once_server.addresses.grpc, request.param, timeout=PATIENCE) as served:
        with ranker(str(version), timeout=PATIENCE) as here:
            yield served, here


def test_scores_are_the_served_ones(both: tuple[Ranker, Ranker], rows: list[ClickRow]) -> None:
    served, here = both
    pairs = [(row.query, row.document) for row in rows] + PAIRS
    for reading in ({}, {"raw_scores": True}, {"truncate": "document"}):
        some = [pair for pair in pairs if len(pair[0].split()) < 40] if "truncate" in reading else pairs
        np.testing.assert_allclose(here.score_pairs(some, **reading), served.score_pairs(some, **reading), atol=SAME)
    for query in USERS:
        rankings = [each.rank(query, TEXTS, top_k=3) for each in both]
        assert [item.text for item in rankings[0]] == [item.text for item in rankings[1]]


def test_a_request_alone_is_computed_bit_for_bit_as_by_the_server(both: tuple[Ranker, Ranker]) -> None:
    documents = [" ".join(WORDS[start : start + length]) for start in range(3) for length in range(1, 40, 4)]
    scores = [[item.score for item in each.rank("w1 w2", documents, raw_scores=True)] for each in both]
    assert scores[0] == scores[1]


def test_scores_are_pytorchs(
    published_engines: Path, published_checkpoint: Path, rows: list[ClickRow], expected: np.ndarray
) -> None:
    with ranker(published_engines / "clickbert_onnx" / "1", timeout=PATIENCE) as here:
        np.testing.assert_allclose(here.score_pairs([(row.query, row.document) for row in rows]), expected, atol=SAME)
        found = in_pytorch(published_checkpoint, as_rows(PAIRS))
        np.testing.assert_allclose(here.score_pairs(PAIRS), found, atol=SAME)


def test_the_async_ranker_answers_the_same(published_engines: Path) -> None:
    version = published_engines / "clickbert_onnx_int8" / "1"

    async def ask() -> list[list[float]]:
        async with async_ranker(version, timeout=PATIENCE) as here:
            return await asyncio.gather(*(here.score_pairs(PAIRS) for _ in range(5)))

    with ranker(version, timeout=PATIENCE) as here:
        wanted = here.score_pairs(PAIRS)
    for found in asyncio.run(ask()):
        np.testing.assert_allclose(found, wanted, atol=SAME)


def test_what_a_joint_model_knows_of_texts_is_the_checkpoints(joint_engines: Path, joint_checkpoint: Path) -> None:
    model, tokenizer, max_length = load_checkpoint(joint_checkpoint)
    heads = read_heads(joint_checkpoint, model.config.hidden_size)
    known = score_texts(model, heads, tokenizer, TEXTS, max_length)
    with ranker(joint_engines / "clickbert_onnx" / "1", timeout=PATIENCE) as here:
        np.testing.assert_allclose(here.embed(TEXTS), known["embedding"], atol=SAME)
        best = [next(iter(topics)) for topics in here.classify(TEXTS)]
    assert best == [heads.settings.topics[index] for index in known["topic_logits"].argmax(axis=1)]


def test_queries_that_are_computed_once(both_once: tuple[Ranker, Ranker], once_checkpoint: Path) -> None:
    served, here = both_once
    # Many documents for one query: their pieces share what was kept of it.
    pairs = PAIRS + [("w1 w2 w3", " ".join(WORDS[start:40])) for start in range(40)]
    np.testing.assert_allclose(here.score_pairs(pairs), served.score_pairs(pairs), atol=SAME)
    if here._session.model == "clickbert_onnx":
        np.testing.assert_allclose(here.score_pairs(pairs), in_pytorch(once_checkpoint, as_rows(pairs)), atol=SAME)
    passages = [each.score_pairs(pairs, long_documents="passages") for each in both_once]
    np.testing.assert_allclose(*passages, atol=SAME)
    np.testing.assert_allclose(here.embed(TEXTS), served.embed(TEXTS), atol=SAME)
    assert here.classify(TEXTS)[3] == pytest.approx(served.classify(TEXTS)[3], abs=SAME)


def test_what_the_model_lacks_is_said(published_engines: Path) -> None:
    with ranker(published_engines / "clickbert_onnx" / "1") as here:
        with pytest.raises(InvalidInputError, match="has no embedding"):
            here.embed(["w1"])
        with pytest.raises(InvalidInputError, match="trained on cut documents"):
            here.rank("w1", ["w2"], long_documents="passages")


def test_observers_and_masks_see_what_they_see_with_a_server(published_engines: Path) -> None:
    calls = []

    class Watching:
        def observe(self, call):
            calls.append(call)
            return self

        def __enter__(self):
            return None

        def __exit__(self, *error):
            return None

        def headers(self):
            return {"traceparent": "x"}

    version = published_engines / "clickbert_onnx" / "1"
    with ranker(version, observers=[Watching()], mask=lambda text: text.replace("w7", "w8")) as here:
        masked, plain = here.score_pairs([("w7", "w7"), ("w8", "w8")])
    assert masked == plain
    assert (calls[0].model, calls[0].version, calls[0].texts, calls[0].expected is None) == (
        "clickbert_onnx",
        "1",
        2,
        False,
    )
