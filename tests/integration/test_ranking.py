"""Checkpoint to ranking through the real server: right answers, together and alone, and clear errors."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clickbert import AsyncRanker, ConnectionFailedError, InvalidInputError, ModelNotFoundError, Ranker, ServerError
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import evaluate_ranking
from serving.server import LOOPBACK, Addresses, Server
from tests.integration.scores import PATIENCE, Executions, as_rows, call_at_once, in_pytorch
from tests.tiny import WORDS


def test_scores_and_auc_through_the_server_are_pytorchs(
    rows: list[ClickRow], expected: np.ndarray, ranker: Ranker
) -> None:
    scores = ranker.score_pairs([(row.query, row.document) for row in rows])
    assert np.allclose(scores, expected, atol=1e-5)
    assert round(evaluate_ranking(rows, scores)["auc"], 4) == round(evaluate_ranking(rows, expected)["auc"], 4)


def test_rank_sorts_and_cuts(published_checkpoint: Path, rows: list[ClickRow], ranker: Ranker) -> None:
    documents = [row.document for row in rows[:30]]
    expected = in_pytorch(published_checkpoint, as_rows([("w1 w2", document) for document in documents]))
    ranking = ranker.rank("w1 w2", documents, top_k=7)
    assert [item.index for item in ranking] == np.argsort(-expected, kind="stable")[:7].tolist()
    assert [item.text for item in ranking] == [documents[item.index] for item in ranking]
    assert np.allclose([item.score for item in ranking], sorted(expected, reverse=True)[:7], atol=1e-5)


def test_fifty_concurrent_requests_of_different_sizes_get_what_each_gets_alone(
    published_server: Server, ranker: Ranker
) -> None:
    chance = random.Random(0)
    requests = [
        (
            " ".join(chance.choices(WORDS, k=chance.randint(0, 30))),
            [" ".join(chance.choices(WORDS, k=chance.randint(0, 60))) for _ in range(chance.randint(1, 32))],
        )
        for _ in range(50)
    ]
    executions = Executions(published_server)
    alone = [ranker.rank(*request) for request in requests]
    by_itself = executions.of(len(requests))
    executions = Executions(published_server)
    together = call_at_once(
        published_server, "clickbert_onnx", [partial(ranker.rank, *request) for request in requests], len(requests)
    )
    for one, other in zip(alone, together, strict=True):
        # By index: two candidates closer than the tolerance may change places in the order.
        scores = [{item.index: item.score for item in ranking} for ranking in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert executions.of(len(requests)) < by_itself, "requests shared chunks"


def test_the_async_ranker_answers_the_same(published_server: Server, ranker: Ranker) -> None:
    async def ask() -> list:
        async with AsyncRanker(published_server.addresses.grpc, timeout=PATIENCE) as asking:
            return await asyncio.gather(*(asking.rank("w1 w2", [f"w{n}", "w9 w8"]) for n in range(60)))

    for number, ranking in enumerate(asyncio.run(ask())):
        expected = ranker.rank("w1 w2", [f"w{number}", "w9 w8"])
        assert [item.score for item in ranking] == pytest.approx([item.score for item in expected], abs=1e-5)


def test_the_command_ranks(published_server: Server, tmp_path: Path, ranker: Ranker) -> None:
    (tmp_path / "documents.txt").write_text("w1 w2\nw3\n\nw4 w5 w6\n", encoding="utf-8")
    url = published_server.addresses.grpc
    command = ["-m", "clickbert", "rank", "--url", url, "--query", "w7", "--json", "--top-k", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--documents", str(tmp_path / "documents.txt")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = ranker.rank("w7", ["w1 w2", "w3", "w4 w5 w6"], top_k=2)
    assert expected[0].text in done.stdout
    json.loads(done.stdout)


@pytest.mark.parametrize(
    "text",
    ["w1 " * 100_000, "x" * 1_000_000, "中" * 100_000, "", "\x00\u200d\u202e"],
    ids=["words", "one word", "Chinese", "empty", "invisible"],
)
def test_any_text_is_ranked_as_in_pytorch(published_checkpoint: Path, ranker: Ranker, text: str) -> None:
    pairs = [("w1 w2", text), (text, "w3"), ("w1 w2", "w3")]
    assert np.allclose(ranker.score_pairs(pairs), in_pytorch(published_checkpoint, as_rows(pairs)), atol=1e-5)


BAD_CALLS = {
    "no documents": lambda ranker: ranker.rank("w1", []),
    "a number for a document": lambda ranker: ranker.rank("w1", ["w2", 3]),
    "None for the query": lambda ranker: ranker.rank(None, ["w2"]),
    "a string for the list": lambda ranker: ranker.rank("w1", "w2"),
    "10,000 documents": lambda ranker: ranker.rank("w1", ["w2"] * 10_000),
    "top_k 0": lambda ranker: ranker.rank("w1", ["w2"], top_k=0),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_a_typed_error_and_the_next_call_is_answered(ranker: Ranker, call) -> None:
    with pytest.raises(InvalidInputError):
        call(ranker)
    assert len(ranker.rank("w1", ["w2", "w3"])) == 2


def test_as_many_documents_as_allowed_are_ranked(ranker: Ranker) -> None:
    ranking = ranker.rank("w1", [f"w{number % 150}" for number in range(1000)])
    assert sorted(item.index for item in ranking) == list(range(1000))


def test_an_unknown_model_is_named(published_server: Server) -> None:
    with Ranker(published_server.addresses.grpc, model="clickbert_nowhere") as ranker:
        with pytest.raises(ModelNotFoundError, match="clickbert_nowhere"):
            ranker.rank("w1", ["w2"])


def test_a_server_that_is_not_there() -> None:
    with Ranker(f"{LOOPBACK}:{Addresses.free().grpc_port}", timeout=5) as ranker:
        with pytest.raises(ConnectionFailedError):
            ranker.rank("w1", ["w2"])


def test_a_wrong_port_is_a_clear_error(published_server: Server) -> None:
    with Ranker(f"{LOOPBACK}:{published_server.addresses.metrics_port}", timeout=5) as ranker:
        with pytest.raises(ServerError, match="gRPC"):
            ranker.rank("w1", ["w2"])
