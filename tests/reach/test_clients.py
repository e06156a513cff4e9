"""The clients that people already have rank by `clickbert serve` as `Ranker.rank` does on Triton itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clickbert import Ranker
from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.reach.environment import run_script
from tests.reach.http_server import HttpServer
from tests.reach.questions import Question
from tests.reach.rankings import assert_same, by_ranker

pytestmark = pytest.mark.reach
# By the shape of what they send: Cohere's, Jina's and infinity's name a model, text-embeddings-inference's does not.
COHERE = ["cohere_v1", "cohere_v2", "cohere_v2_async", "langchain_cohere", "llama_index_cohere", "haystack_cohere"]
JINA = ["langchain_jina", "llama_index_jina", "haystack_jina"]
INFINITY = ["infinity", "langchain_infinity"]
TEI = ["llama_index_tei", "haystack_tei", "haystack_tei_async"]
RAW = ["infinity_raw", "haystack_tei_raw"]


@pytest.fixture(scope="module")
def ranker(published_server: Server) -> Iterator[Ranker]:
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        yield ranker


def ask(client: str, server: HttpServer, questions: list[Question], **other: str | int) -> Any:
    at = {"url": server.url, "token": server.token, "model": server.model} | other
    return run_script("rerankers.py", client, {"at": at, "questions": questions})


def test_there_are_fifty_questions_of_five_candidates_or_more(questions: list[Question]) -> None:
    assert len(questions) == 50
    assert all(len(documents) >= 5 for _, documents in questions)


@pytest.mark.parametrize("client", [*COHERE, *JINA, *INFINITY, *TEI])
def test_a_client_ranks_as_the_ranker_does(
    client: str, http_server: HttpServer, ranker: Ranker, questions: list[Question]
) -> None:
    assert_same(ask(client, http_server, questions), by_ranker(ranker, questions))


@pytest.mark.parametrize("client", ["cohere_v2", "langchain_jina", "infinity", "llama_index_cohere", "haystack_jina"])
def test_a_client_gets_the_three_best(
    client: str, http_server: HttpServer, ranker: Ranker, questions: list[Question]
) -> None:
    rankings = ask(client, http_server, questions, top_n=3)
    assert_same(rankings, by_ranker(ranker, questions, top_k=3))


@pytest.mark.parametrize("client", RAW)
def test_a_client_gets_raw_scores(
    client: str, http_server: HttpServer, ranker: Ranker, questions: list[Question]
) -> None:
    assert_same(ask(client, http_server, questions), by_ranker(ranker, questions, raw_scores=True))


@pytest.mark.parametrize("client", ["cohere_v2", "llama_index_jina", "infinity"])
def test_the_models_name_picks_the_served_model(
    client: str, http_server: HttpServer, published_server: Server, ranker: Ranker, questions: list[Question]
) -> None:
    rankings = ask(client, http_server, questions, model=http_server.other_model)
    with Ranker(published_server.addresses.grpc, http_server.other_model, timeout=PATIENCE) as other:
        wanted = by_ranker(other, questions)
    assert_same(rankings, wanted)
    assert wanted != by_ranker(ranker, questions), "the two models score differently"


@pytest.mark.parametrize(
    ("client", "error", "said"),
    [(client, "UnauthorizedError", "401") for client in COHERE]
    + [(client, "RuntimeError", "token") for client in JINA]
    + [(client, "UnexpectedStatus", "401") for client in INFINITY]
    + [("haystack_tei", "RuntimeError", "401")],
)
def test_a_wrong_token_is_the_clients_own_error(
    client: str, error: str, said: str, http_server: HttpServer, questions: list[Question]
) -> None:
    failure = ask(client, http_server, questions[:1], token="another")
    assert failure["error"] == error
    assert said in failure["message"]
    assert http_server.token not in failure["message"]


@pytest.mark.parametrize(
    ("client", "error", "said"),
    [(client, "NotFoundError", "404") for client in COHERE]
    + [(client, "RuntimeError", "no model of that name") for client in JINA]
    + [(client, "UnexpectedStatus", "404") for client in INFINITY],
)
def test_an_unknown_model_is_not_found(
    client: str, error: str, said: str, http_server: HttpServer, questions: list[Question]
) -> None:
    failure = ask(client, http_server, questions[:1], model="no-such-model")
    assert failure["error"] == error
    assert said in failure["message"]


# Not haystack_cohere: it leaves out what is beyond 1,000 by itself.
@pytest.mark.parametrize("client", [*COHERE[:-1], *JINA, *INFINITY, "haystack_tei"])
def test_a_client_shows_why_a_call_is_refused_and_no_text(client: str, http_server: HttpServer) -> None:
    failure = ask(client, http_server, [("a secret query", ["a secret document"] * 1001)])
    assert "1,001 entries" in failure["message"]
    assert "secret" not in failure["message"]
