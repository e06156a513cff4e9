"""Each peer's form: what is read of it, and that the answer is the ranking of `Ranker.rank`."""

import math

import pytest

from clickbert import Ranker
from tests.client.fake_model import MODEL
from tests.client.fakes import FakeTransport, FakeTriton

QUERY, TEXTS = "coffee near me", ["a bar", "a cheap cafe", "", "中文", "a bank", "a bar"]
RERANKS = ("/rerank", "/v1/rerank", "/v2/rerank")


@pytest.fixture
def ranker(server):
    with Ranker("localhost:8001", transport=FakeTransport(FakeTriton(server.published))) as ranker:
        yield ranker


def ask(http, path, status=200, **body):
    answer = http.post(path, json={"query": QUERY, **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_text_embeddings_inference(http, ranker):
    expected = ranker.rank(QUERY, TEXTS)
    assert ask(http, "/rerank", texts=TEXTS) == [{"index": each.index, "score": each.score} for each in expected]
    assert ask(http, "/rerank", texts=TEXTS, return_text=True) == [
        {"index": each.index, "score": each.score, "text": each.text} for each in expected
    ]


def test_infinity(http, ranker):
    expected = ranker.rank(QUERY, TEXTS, 3)
    answer = ask(http, "/rerank", documents=TEXTS, top_n=3, return_documents=True, model="default/not-specified")
    assert answer["results"] == [
        {"index": each.index, "relevance_score": each.score, "document": each.text} for each in expected
    ]
    assert (answer["object"], answer["model"]) == ("rerank", MODEL)
    assert not any("document" in each for each in ask(http, "/rerank", documents=TEXTS)["results"])


@pytest.mark.parametrize("version", ["1", "2"])
def test_cohere_and_jina(http, ranker, version):
    documents = [TEXTS[0], *({"text": text, "url": 7} for text in TEXTS[1:])]
    answer = ask(http, f"/v{version}/rerank", documents=documents, model=MODEL, top_n=2, return_documents=True)
    assert answer["results"] == [
        {"index": each.index, "relevance_score": each.score, "document": {"text": each.text}}
        for each in ranker.rank(QUERY, TEXTS, 2)
    ]
    assert answer["meta"]["api_version"]["version"] == version
    assert not any("document" in each for each in ask(http, f"/v{version}/rerank", documents=TEXTS)["results"])


@pytest.mark.parametrize("path, field, score", [("/rerank", "texts", "score"), ("/v2/rerank", "documents", None)])
def test_raw_scores_are_the_logits(http, ranker, path, field, score):
    answer = ask(http, path, **{field: TEXTS}, raw_scores=True)
    raw = [each[score or "relevance_score"] for each in (answer if score else answer["results"])]
    assert raw == [each.score for each in ranker.rank(QUERY, TEXTS, raw_scores=True)]
    assert [1 / (1 + math.exp(-each)) for each in raw] == pytest.approx([r.score for r in ranker.rank(QUERY, TEXTS)])


def test_tokens_are_those_that_the_model_read(http, server):
    answer = ask(http, "/v2/rerank", documents=TEXTS)
    sent = [request.inputs["input_ids"].size for request in server.requests if request.model == MODEL]
    assert answer["usage"] == {"prompt_tokens": sum(sent), "total_tokens": sum(sent)}
    assert answer["meta"]["tokens"]["input_tokens"] == sum(sent) > 0


def test_null_does_not_choose_the_form(http):
    infinity = http.post("/rerank", json={"query": QUERY, "documents": TEXTS, "texts": None})
    assert infinity.status_code == 200 and len(infinity.json()["results"]) == len(TEXTS)
    tei = http.post("/rerank", json={"query": QUERY, "texts": TEXTS, "documents": None})
    assert tei.status_code == 200 and len(tei.json()) == len(TEXTS)


def test_what_is_null_or_unknown_counts_as_left_out(http):
    nothing = dict.fromkeys(("model", "top_n", "return_documents", "raw_scores", "rank_fields", "truncate"))
    plain = ask(http, "/v2/rerank", documents=TEXTS)["results"]
    more = {"max_tokens_per_doc": 4096, "priority": 0, "return_embeddings": False, "truncation": True}
    assert ask(http, "/v2/rerank", documents=TEXTS, **nothing, **more)["results"] == plain
    assert len(ask(http, "/rerank", texts=TEXTS, **nothing, truncation_direction=None)) == len(TEXTS)


def test_more_results_than_documents_are_all(http):
    assert len(ask(http, "/v1/rerank", documents=TEXTS, top_n=10**40)["results"]) == len(TEXTS)


@pytest.mark.parametrize("truncation", [{"truncate": False}, {"truncation_direction": "Left"}], ids=str)
def test_a_text_that_must_not_be_cut_at_its_end_is_refused_if_it_is_too_long(http, truncation):
    assert len(ask(http, "/rerank", texts=TEXTS, **truncation)) == len(TEXTS)
    refused = ask(http, "/rerank", 422, texts=[*TEXTS, "coffee " * 50], **truncation)
    assert "too long" in refused["error"] and refused["error_type"] == "Validation"
    assert len(ask(http, "/rerank", texts=[*TEXTS, "coffee " * 50], truncation_direction="right")) == len(TEXTS) + 1


def test_the_models_name_picks_the_model(start, server):
    describe = server.describe
    server.describe = lambda model: describe(MODEL)
    http = start(models=(MODEL, "other"))
    ask(http, "/v1/rerank", documents=TEXTS, model="other")
    assert server.asked[-1] == ("other", "")
    for path, field in (("/rerank", "texts"), ("/rerank", "documents"), ("/v2/rerank", "documents")):
        ask(http, path, **{field: TEXTS})
        assert server.asked[-1] == (MODEL, "")
    listed = http.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == [MODEL, "other"]


def test_info_says_what_is_served_now(http, server):
    first = http.get("/info").json()
    assert (first["model_id"], first["model_version"], first["max_input_length"]) == (MODEL, "1", 32)
    server.published[2] = type(server.published[1])(max_length=48, labels=("no", "yes"), click_label=1)
    server.serving = 2
    second = http.get("/info").json()
    assert (second["model_version"], second["max_input_length"]) == ("2", 48)
    assert second["model_type"]["reranker"] == {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    asked = len(server.requests)
    assert http.get("/info").json() == second and len(server.requests) == asked, "a tokenizer is fetched once"
