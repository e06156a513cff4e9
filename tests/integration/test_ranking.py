"""Checkpoint to ranking through the real server: right answers, together and alone, and clear errors."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from clickbert import (
    AsyncRanker,
    ConnectionFailedError,
    InvalidInputError,
    ModelNotFoundError,
    Ranker,
    ServerError,
)
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow, read_click_log
from finetune.metrics import click_probability, evaluate_ranking
from finetune.scoring import score_rows
from serving.server import LOOPBACK, Addresses, Server
from tests.integration.conftest import publish
from tests.tiny import WORDS, make_checkpoint

PATIENCE = 60  # seconds: these tests are about answers; the machine may be busy


@pytest.fixture(scope="module")
def rows(click_log: Path) -> list[ClickRow]:
    return read_click_log(click_log)


@pytest.fixture
def ranker(server: Server) -> Iterator[Ranker]:
    with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
        yield ranker


def in_pytorch(checkpoint: Path, rows: list[ClickRow]) -> np.ndarray:
    model, tokenizer, max_length = load_checkpoint(checkpoint)
    return click_probability(score_rows(model, tokenizer, rows, max_length), label_names(model))


def as_rows(pairs: list[tuple[str, str]]) -> list[ClickRow]:
    return [ClickRow(group="g", query=query, document=document, clicks=0, impressions=1) for query, document in pairs]


def test_scores_and_auc_through_the_server_are_pytorchs(checkpoint: Path, rows: list[ClickRow], ranker: Ranker) -> None:
    wanted = in_pytorch(checkpoint, rows)
    scores = ranker.score_pairs([(row.query, row.document) for row in rows])
    assert np.allclose(scores, wanted, atol=1e-5)
    assert round(evaluate_ranking(rows, scores)["auc"], 4) == round(evaluate_ranking(rows, wanted)["auc"], 4)


def test_rank_sorts_and_cuts(checkpoint: Path, rows: list[ClickRow], ranker: Ranker) -> None:
    documents = [row.document for row in rows[:30]]
    wanted = in_pytorch(checkpoint, as_rows([("w1 w2", document) for document in documents]))
    ranking = ranker.rank("w1 w2", documents, top_k=7)
    assert [item.index for item in ranking] == np.argsort(-wanted, kind="stable")[:7].tolist()
    assert [item.text for item in ranking] == [documents[item.index] for item in ranking]
    assert np.allclose([item.score for item in ranking], sorted(wanted, reverse=True)[:7], atol=1e-5)


def test_fifty_concurrent_requests_of_different_sizes_get_what_each_gets_alone(server: Server) -> None:
    chance = random.Random(0)
    requests = [
        (
            " ".join(chance.choices(WORDS, k=chance.randint(0, 30))),
            [" ".join(chance.choices(WORDS, k=chance.randint(0, 60))) for _ in range(chance.randint(1, 32))],
        )
        for _ in range(50)
    ]
    with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker, ThreadPoolExecutor(50) as pool:
        alone = [ranker.rank(*request) for request in requests]
        before = settled(server)
        together = list(pool.map(lambda request: ranker.rank(*request), requests))
        executions, answered = (now - then for now, then in zip(settled(server), before, strict=True))
    for one, other in zip(alone, together, strict=True):
        # By index: two candidates closer than the tolerance may change places in the order.
        scores = [{item.index: item.score for item in ranking} for ranking in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert answered == 50
    assert executions < answered, "the dynamic batcher merged requests"


def score_at_once(server: Server, model: str, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, int, int]:
    """The scores of pairs that are asked for one by one, 24 at a time; and Triton's executions and answers for them."""
    before = settled(server, model)
    with Ranker(server.addresses.grpc, model=model, timeout=PATIENCE) as ranker, ThreadPoolExecutor(24) as pool:
        scores = list(pool.map(lambda pair: ranker.score_pairs([pair])[0], pairs))
    executions, answered = (now - then for now, then in zip(settled(server, model), before, strict=True))
    return np.array(scores), executions, answered


def settled(server: Server, model: str = "clickbert_onnx") -> tuple[int, int]:
    """The counts when they stand still: Triton counts an execution behind the answers to its requests."""
    last = None
    while (now := counts(server, model)) != last:
        last = now
        time.sleep(0.2)
    return now


def counts(server: Server, model: str = "clickbert_onnx") -> tuple[int, int]:
    client = triton.InferenceServerClient(server.addresses.grpc)
    stats = client.get_inference_statistics(model).model_stats[0]
    return stats.execution_count, stats.inference_count


def test_the_async_ranker_answers_the_same(server: Server, ranker: Ranker) -> None:
    async def ask() -> list:
        async with AsyncRanker(server.addresses.grpc, timeout=PATIENCE) as asking:
            return await asyncio.gather(*(asking.rank("w1 w2", [f"w{n}", "w9 w8"]) for n in range(60)))

    for number, ranking in enumerate(asyncio.run(ask())):
        wanted = ranker.rank("w1 w2", [f"w{number}", "w9 w8"])
        assert [item.score for item in ranking] == pytest.approx([item.score for item in wanted], abs=1e-5)


def test_the_command_ranks(server: Server, tmp_path: Path, ranker: Ranker) -> None:
    (tmp_path / "documents.txt").write_text("w1 w2\nw3\n\nw4 w5 w6\n", encoding="utf-8")
    command = ["-m", "clickbert", "rank", "--url", server.addresses.grpc, "--query", "w7", "--json", "--top-k", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--documents", str(tmp_path / "documents.txt")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = ranker.rank("w7", ["w1 w2", "w3", "w4 w5 w6"], top_k=2)
    assert wanted[0].text in done.stdout
    json.loads(done.stdout)


@pytest.mark.parametrize("text", ["w1 " * 350_000, "x" * 1_000_000, "中" * 350_000, "", "\x00\u200d\u202e"])
def test_any_text_is_ranked_as_in_pytorch(checkpoint: Path, ranker: Ranker, text: str) -> None:
    pairs = [("w1 w2", text), (text, "w3"), ("w1 w2", "w3")]
    wanted = in_pytorch(checkpoint, as_rows(pairs))
    assert np.allclose(ranker.score_pairs(pairs), wanted, atol=1e-5)


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


def test_an_unknown_model_is_named(server: Server) -> None:
    with Ranker(server.addresses.grpc, model="clickbert_nowhere") as ranker:
        with pytest.raises(ModelNotFoundError, match="clickbert_nowhere"):
            ranker.rank("w1", ["w2"])


def test_a_server_that_is_not_there(server: Server) -> None:
    with Ranker(f"{LOOPBACK}:{Addresses.free().grpc_port}", timeout=5) as ranker:
        with pytest.raises(ConnectionFailedError):
            ranker.rank("w1", ["w2"])


@pytest.mark.parametrize("port", ["http_port", "metrics_port"])
def test_a_wrong_port_is_a_clear_error(server: Server, port: str) -> None:
    with Ranker(f"{LOOPBACK}:{getattr(server.addresses, port)}", timeout=5) as ranker:
        with pytest.raises(ServerError, match="gRPC"):
            ranker.rank("w1", ["w2"])


GOOD = {"input_ids": [2, 6, 3, 7, 3], "token_type_ids": [0, 0, 0, 1, 1], "lengths": [5]}


def send(server: Server, dtype: type = np.int32, **tensors: list[int]) -> np.ndarray:
    """A request as a client in another language might send it."""
    inputs = []
    for name, values in tensors.items():
        array = np.array([values], dtype=dtype)
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return triton.InferenceServerClient(server.addresses.grpc).infer("clickbert_onnx", inputs).as_numpy("logits")


BAD_TENSORS = {
    "lengths too long": {"lengths": [6]},
    "lengths too short": {"lengths": [4]},
    "a length of nothing": {"lengths": [5, 0]},
    "a negative length": {"lengths": [8, -3]},
    "too few token types": {"token_type_ids": [0, 0, 0, 1]},
    "an id outside the vocabulary": {"input_ids": [2, 6, 3, 100_000, 3]},
    "a negative id": {"input_ids": [2, 6, 3, -7, 3]},
    "a third text": {"token_type_ids": [0, 0, 0, 1, 2]},
    "no pairs": {"lengths": []},
    "no tokens": {"input_ids": [], "token_type_ids": []},
    "a pair over the maximum length": {"input_ids": [2] * 49, "token_type_ids": [0] * 49, "lengths": [49]},
    "more pairs than a request may have": {"input_ids": [2] * 33, "token_type_ids": [0] * 33, "lengths": [1] * 33},
    "more tokens than a request may have": {"input_ids": [2] * 65_537},
    "more token types than a request may have": {"token_type_ids": [0] * 65_537},
    "wrong dtype": {"dtype": np.float32},
}


@pytest.mark.parametrize("spoiled", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_a_malformed_raw_request_is_an_error_and_the_next_one_is_answered(server: Server, spoiled: dict) -> None:
    wanted = send(server, **GOOD)
    with pytest.raises(InferenceServerException) as caught:
        send(server, **(GOOD | spoiled))
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert np.array_equal(send(server, **GOOD), wanted)


def test_malformed_requests_among_good_ones_fail_alone(server: Server) -> None:
    wanted = send(server, **GOOD)

    def ask(number: int) -> np.ndarray | str:
        try:
            bad = {"lengths": [[6], [4], [], [1] * 33][number % 4]}
            return send(server, **(GOOD | (bad if number % 3 == 0 else {})))
        except InferenceServerException as exc:
            return exc.message()

    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(ask, range(48)))
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert "malformed request" in answer or "cannot be executed" in answer or "at most 32" in answer
        else:
            assert np.allclose(answer, wanted, atol=1e-5)


def test_a_new_version_with_another_vocabulary_and_the_way_back(
    checkpoint: Path, click_log: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    publish(checkpoint, repository, click_log)
    successor = make_checkpoint(tmp_path / "successor", seed=1, words=["new", *reversed(WORDS)])
    pairs = [("w1 w2", "w3 w4"), ("w5", "w6")]
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        with Ranker(server.addresses.grpc, timeout=PATIENCE) as ranker:
            assert np.allclose(ranker.score_pairs(pairs), in_pytorch(checkpoint, as_rows(pairs)), atol=1e-5)
            publish(successor, repository, click_log)
            for model in ("clickbert_tokenizer", "clickbert_onnx"):
                load(server, model)
            assert np.allclose(ranker.score_pairs(pairs), in_pytorch(successor, as_rows(pairs)), atol=1e-5)
            # And back again, as the runbook rolls back.
            (repository / "clickbert_onnx" / "2").rename(tmp_path / "withdrawn")
            load(server, "clickbert_onnx")
            assert np.allclose(ranker.score_pairs(pairs), in_pytorch(checkpoint, as_rows(pairs)), atol=1e-5)


def load(server: Server, model: str) -> None:
    url = f"{server.addresses.http}/v2/repository/models/{model}/load"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
        assert answer.status == 200


def test_a_broken_new_version_leaves_the_old_one_serving(checkpoint: Path, click_log: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish(checkpoint, repository, click_log)
    with (tmp_path / "log").open("wb") as log, Server(repository, Addresses.free(), log=log) as server:
        with Ranker(server.addresses.grpc) as ranker:
            wanted = ranker.score_pairs([("w1", "w2")])
            shutil.copytree(repository / "clickbert_onnx" / "1", repository / "clickbert_onnx" / "2")
            (repository / "clickbert_onnx" / "2" / "model.onnx").write_bytes(b"no graph")
            with pytest.raises(urllib.error.HTTPError):
                load(server, "clickbert_onnx")
            assert ranker.score_pairs([("w1", "w2")]) == pytest.approx(wanted)
