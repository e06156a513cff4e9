"""The components of examples/ for LangChain and Haystack rank as `Ranker.rank` does, over gRPC."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from clickbert import Ranker
from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.reach.environment import ROOT, environment, reach_python, run_script
from tests.reach.questions import Question
from tests.reach.rankings import assert_same, by_ranker

pytestmark = pytest.mark.reach
MODEL = "clickbert_onnx"


def ask(component: str, server: Server, questions: list[Question]) -> Any:
    at = {"url": server.addresses.grpc, "token": "", "model": MODEL}
    return run_script("components.py", component, {"at": at, "questions": questions})


@pytest.mark.parametrize(("component", "top_k"), [("langchain", None), ("langchain_best", 2), ("haystack", None)])
def test_a_component_ranks_as_the_ranker_does(
    component: str, top_k: int | None, published_server: Server, questions: list[Question]
) -> None:
    rankings = ask(component, published_server, questions)
    with Ranker(published_server.addresses.grpc, MODEL, timeout=PATIENCE) as ranker:
        assert_same(rankings, by_ranker(ranker, questions, top_k))


def test_no_documents_are_no_error(published_server: Server) -> None:
    assert ask("nothing_to_rank", published_server, [("a query", [])]) == [[]]


@pytest.mark.parametrize("example", ["langchain_reranker.py", "haystack_ranker.py"])
def test_an_example_runs_as_its_head_says(example: str, published_server: Server) -> None:
    url = published_server.addresses.grpc
    command = [reach_python(), str(ROOT / "examples" / example), url]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    with Ranker(url, MODEL, timeout=PATIENCE) as ranker:
        documents = ["a teapot", "waterproof boots", "sandals for the beach"]
        wanted = [f"{item.score:.4f}  {item.text}" for item in ranker.rank("shoes for the rain", documents, top_k=2)]
    assert done.stdout.splitlines() == wanted
