"""`long_documents="passages"`: how documents are read to their end, packed, and aggregated.

Every test of a server's answers runs for `Ranker` and for `AsyncRanker`.
"""

import math
import random

import numpy as np
import pytest

from clickbert import InvalidInputError, ProtocolError, Ranker
from clickbert.__main__ import main
from tests.client.fake_model import WORDS, Published, sigmoid
from tests.client.fakes import FakeTransport, FakeTriton, call_once, calls, grpc_server, publish_after

RANDOM = random.Random(0)
DOCUMENTS = [" ".join(RANDOM.choices(WORDS[:16], k=length)) for length in (0, 3, 12, 13, 26, 27, 28, 60, 200, 500)]
QUERIES = ["", "coffee near me", "cheap hotel in the city " * 10]
AGGREGATES = [("max", 1), ("mean", 1), ("mean", 3), ("attention", 1)]


def heads(aggregate: str = "max", best: int = 1, overlap: int = 4) -> dict:
    passages = {"aggregate": aggregate, "overlap": overlap, "best": best}
    return {"topics": [], "several_topics": False, "embedding_size": 0, "passages": passages}


def expected(published: Published, query: str, document: str) -> float:
    passages = [published.outputs(each.ids, each.type_ids) for each in published.passages(query, document)]
    logits = [row["logits"][0] for row in passages]
    settings = published.heads["passages"]
    if settings["aggregate"] == "max":
        return sigmoid(max(logits))
    if settings["aggregate"] == "mean":
        best = sorted(logits, reverse=True)[: settings["best"]]
        return sigmoid(sum(best) / len(best))
    weights = [math.exp(row["passage_logits"][0]) for row in passages]
    return sigmoid(sum(a * b for a, b in zip(logits, weights, strict=True)) / sum(weights))


def lengths(server: FakeTriton) -> list[list[int]]:
    return [r.inputs["lengths"][0].tolist() for r in server.requests if r.model == "clickbert_onnx"]


def asked(server: FakeTriton) -> set[tuple[str, ...]]:
    return {request.outputs for request in server.requests if request.model == "clickbert_onnx"}


@pytest.mark.parametrize("aggregate, best", AGGREGATES)
@pytest.mark.parametrize("limit", ["64", "5", "1"])
def test_scores_are_aggregated_over_all_requests(blocking, aggregate, best, limit):
    server = FakeTriton({1: Published(heads=heads(aggregate, best))})
    server.parameters = {"max_elements.lengths": limit}
    with grpc_server(server) as url:
        for query in QUERIES:
            ranked = call_once(url, blocking, "rank", query, DOCUMENTS, long_documents="passages")
            assert sorted(item.index for item in ranked) == list(range(len(DOCUMENTS)))
            assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)
            for item in ranked:
                assert item.text == DOCUMENTS[item.index]
                assert item.score == pytest.approx(expected(server.published[1], query, item.text), abs=1e-6)
    assert max(map(len, lengths(server))) <= int(limit)
    assert asked(server) == {("logits", "passage_logits") if aggregate == "attention" else ("logits",)}


def test_the_passages_of_all_documents_share_requests_and_keep_the_limit_of_pairs(blocking):
    server = FakeTriton({1: Published(heads=heads())})
    with grpc_server(server) as url:
        call_once(url, blocking, "rank", "tea", DOCUMENTS, long_documents="passages")
    passages = sum(len(server.published[1].passages("tea", document)) for document in DOCUMENTS)
    assert passages > 3 * len(DOCUMENTS)
    assert sum(map(len, lengths(server))) == passages
    assert len(lengths(server)) == math.ceil(passages / 64)


@pytest.mark.parametrize("tokens", [32, 33, 64, 100])
def test_the_limit_of_tokens_is_kept(blocking, tokens):
    server = FakeTriton({1: Published(heads=heads())})
    server.parameters |= {"max_elements.input_ids": str(tokens)}
    with grpc_server(server) as url:
        call_once(url, blocking, "rank", "tea", DOCUMENTS, long_documents="passages")
    assert all(sum(sent) <= tokens for sent in lengths(server))
    if tokens == 100:
        assert max(map(len, lengths(server))) > 3, "short passages are not packed together"


def test_score_pairs_mixes_queries_and_sends_each_pair_once(blocking):
    server = FakeTriton({1: Published(heads=heads("mean", 2))})
    pairs = [(query, document) for document in DOCUMENTS for query in QUERIES]
    with grpc_server(server) as url:
        scores = call_once(url, blocking, "score_pairs", pairs * 3, long_documents="passages")
    assert scores == pytest.approx([expected(server.published[1], *pair) for pair in pairs] * 3, abs=1e-6)
    passages = sum(len(server.published[1].passages(*pair)) for pair in pairs)
    assert sum(map(len, lengths(server))) == passages


def test_documents_that_fit_score_as_when_they_are_cut(blocking):
    server = FakeTriton({1: Published(heads=heads())})
    with grpc_server(server) as url:
        calls = [
            call_once(url, blocking, "rank", "tea", DOCUMENTS[:4], long_documents=how)
            for how in ("truncate", "passages")
        ]
        assert calls[0] == calls[1] == call_once(url, blocking, "rank", "tea", DOCUMENTS[:4])


def test_words_after_the_limit_count_only_in_passages(blocking):
    start = "the " * 100
    server = FakeTriton({1: Published(heads=heads("mean", 50))})
    with calls(server, blocking) as call:
        pairs = [("tea", start + end) for end in ("a bar", "a museum")]
        cut = call("score_pairs", pairs)
        read = call("score_pairs", pairs, long_documents="passages")
    assert cut[0] == cut[1] and read[0] != read[1]


@pytest.mark.parametrize("published", [None, heads() | {"passages": None}], ids=["older", "cut"])
def test_a_model_trained_on_cut_documents_is_refused(blocking, published):
    server = FakeTriton({1: Published(heads=published)})
    with grpc_server(server) as url:
        with pytest.raises(InvalidInputError, match="trained on cut documents: train it with --passages"):
            call_once(url, blocking, "rank", "tea", ["a bar"], long_documents="passages")
        with pytest.raises(InvalidInputError, match="trained on cut documents"):
            call_once(url, blocking, "score_pairs", [("tea", "a bar")], long_documents="passages")
    assert lengths(server) == []


def test_a_model_of_two_labels_is_refused(blocking):
    server = FakeTriton({1: Published(labels=("no", "click"), click_label=1, heads=heads())})
    with grpc_server(server) as url, pytest.raises(InvalidInputError, match="labels no, click: passages need a single"):
        call_once(url, blocking, "rank", "tea", ["a bar"], long_documents="passages")


@pytest.mark.parametrize("value", ["Passages", "", None, 1, ["passages"]])
def test_another_way_to_read_long_documents_is_refused(value):
    server = FakeTriton()
    with Ranker("localhost:8001", transport=FakeTransport(server)) as ranker:
        with pytest.raises(InvalidInputError, match=r"long_documents is .* expected one of 'truncate', 'passages'"):
            ranker.rank("tea", ["a bar"], long_documents=value)
        with pytest.raises(InvalidInputError, match="long_documents"):
            ranker.score_pairs([("tea", "a bar")], long_documents=value)
    assert server.requests == []


CHANGES = {
    "same": heads(),
    "more overlap": heads(overlap=9),
    "other aggregate": heads("attention"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("requests_before", [0, 1, 2])
def test_a_version_published_at_any_moment_is_noticed(blocking, name, requests_before):
    server = FakeTriton({1: Published(heads=heads())})
    server.parameters = {"max_elements.lengths": "12"}
    pairs = [("tea", document) for document in DOCUMENTS]
    with calls(server, blocking) as call:
        call("score_pairs", pairs, long_documents="passages")
        server.published[2] = Published(heads=CHANGES[name], max_length=24 if name == "more overlap" else 32, shift=0.5)
        publish_after(server, requests_before, 2)
        server.requests.clear()
        scores = call("score_pairs", pairs, long_documents="passages")
    assert len(lengths(server)) > 3
    assert scores == pytest.approx([expected(server.published[2], *pair) for pair in pairs], abs=1e-6)


def test_a_version_that_no_longer_reads_passages_is_refused(blocking):
    server = FakeTriton({1: Published(heads=heads("attention"))})
    with calls(server, blocking) as call:
        call("rank", "tea", DOCUMENTS, long_documents="passages")
        server.published[2], server.serving = Published(), 2
        with pytest.raises(InvalidInputError, match="version 2 of the model was trained on cut documents"):
            call("rank", "tea", DOCUMENTS, long_documents="passages")
        assert len(call("rank", "tea", DOCUMENTS)) == len(DOCUMENTS)


def test_weights_that_are_not_finite_are_a_protocol_error(blocking):
    server = FakeTriton({1: Published(heads=heads("attention"))})

    def spoil(answer):
        if "passage_logits" in answer.outputs:
            answer.outputs["passage_logits"][0, -1, 0] = np.nan
        return answer

    server.after_infer = spoil
    with calls(server, blocking) as call:
        with pytest.raises(ProtocolError, match="passage_logits of 1 of"):
            call("rank", "tea", DOCUMENTS, long_documents="passages")


def test_the_command_takes_passages(tmp_path, capsys):
    server = FakeTriton({1: Published(heads=heads())})
    (tmp_path / "documents.txt").write_text("\n".join(DOCUMENTS[1:]))
    with grpc_server(server) as url:
        base = ["rank", "--url", url, "--query", "tea", "--documents", str(tmp_path / "documents.txt")]
        outputs = []
        for more in ([], ["--long-documents", "truncate"], ["--long-documents", "passages"]):
            assert main([*base, *more]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1] != outputs[2]
        best = call_once(url, True, "rank", "tea", DOCUMENTS[1:], 1, long_documents="passages")[0]
        assert outputs[2].splitlines()[1].split()[1] == f"{best.score:.4f}"
        with pytest.raises(SystemExit) as caught:
            main([*base, "--long-documents", "windows"])
    assert caught.value.code == 2
