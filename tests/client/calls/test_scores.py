"""`raw_scores` and `truncate`: what a score is, and which text is cut."""

from __future__ import annotations

import math

import pytest

from clickbert import InvalidInputError, Ranker
from clickbert.__main__ import main
from tests.client.fake_model import Published
from tests.client.fakes import FakeTransport, FakeTriton, call_once

DOCUMENTS = ["a bar", "", "the museum of the city", "park " * 60, "中文", "a bar"]
LABELS = {"one label": (("click",), 0), "two": (("no", "click"), 1), "three": (("a", "click", "b"), 1)}


@pytest.fixture(params=LABELS)
def server(request) -> FakeTriton:
    labels, click_label = LABELS[request.param]
    return FakeTriton({3: Published(labels=labels, click_label=click_label)})


def test_raw_scores_are_log_odds_in_the_same_order(server, url, blocking):
    ranked = call_once(url, blocking, "rank", "coffee", DOCUMENTS)
    raw = call_once(url, blocking, "rank", "coffee", DOCUMENTS, raw_scores=True)
    assert [each.index for each in raw] == [each.index for each in ranked]
    assert [each.score for each in raw] == pytest.approx(
        [math.log(each.score / (1 - each.score)) for each in ranked], abs=1e-9
    )
    pairs = [("coffee", document) for document in DOCUMENTS]
    in_order = {each.index: each.score for each in raw}
    found = call_once(url, blocking, "score_pairs", pairs, raw_scores=True)
    assert found == [in_order[index] for index in range(len(DOCUMENTS))]


def test_of_one_label_they_are_the_logits_and_saturate_later_than_probabilities(url, blocking, server):
    server.published[3] = Published(shift=60.0)  # all probabilities are 1.0
    ranked = call_once(url, blocking, "rank", "coffee", DOCUMENTS)
    assert {each.score for each in ranked} == {1.0}
    raw = call_once(url, blocking, "rank", "coffee", DOCUMENTS, raw_scores=True)
    assert [each.index for each in raw] == [each.index for each in ranked]
    assert [each.score for each in raw] == sorted((each.score for each in raw), reverse=True)
    assert len({each.score for each in raw}) == len(set(DOCUMENTS))
    assert raw[0].score > 57


@pytest.mark.parametrize("server", ["one label"], indirect=True)
def test_a_query_is_kept_whole_and_a_document_cut(server, url, blocking):
    query, document = "cheap coffee near me " * 5, "park museum " * 20
    both = call_once(url, blocking, "score_pairs", [(query, document)])
    alone = call_once(url, blocking, "score_pairs", [(query, document)], truncate="document")
    kept = " ".join(document.split()[: 32 - 3 - 20])
    fits = call_once(url, blocking, "score_pairs", [(query, kept)])
    assert alone == fits != both
    assert call_once(url, blocking, "rank", query, [document], truncate="document")[0].score == alone[0]


@pytest.mark.parametrize("server", ["one label"], indirect=True)
@pytest.mark.parametrize("user_tokens", [None, 6])
def test_a_query_that_leaves_no_room_is_refused(server, url, blocking, user_tokens):
    longest = user_tokens or 28
    heads = {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None, "user_tokens": user_tokens}
    server.published[3] = Published(heads=heads)
    for words, fits in ((longest, True), (longest + 1, False)):
        arguments = ("tea " * words, ["park " * 40])
        if fits:
            assert call_once(url, blocking, "rank", *arguments, truncate="document")
            continue
        with pytest.raises(InvalidInputError, match=f"more than {longest} tokens.*leave truncate out") as caught:
            call_once(url, blocking, "rank", *arguments, truncate="document")
        assert "tea" not in str(caught.value)


@pytest.mark.parametrize("method", ["rank", "score_pairs"])
def test_wrong_values_are_refused(method):
    arguments = ("tea", ["a bar"]) if method == "rank" else ([("tea", "a bar")],)
    with Ranker("localhost:1", transport=FakeTransport({})) as ranker:
        for value in ("query", "", None, 1):
            with pytest.raises(InvalidInputError, match=r"truncate is .* expected one of 'longest', 'document'"):
                getattr(ranker, method)(*arguments, truncate=value)
        with pytest.raises(InvalidInputError, match="leave one out"):
            getattr(ranker, method)(*arguments, truncate="document", long_documents="passages")


@pytest.mark.parametrize("server", ["one label"], indirect=True)
def test_the_command_has_both(server, url, tmp_path, capsys):
    (tmp_path / "documents.txt").write_text("park museum " * 20)
    query = "cheap coffee near me " * 5
    command = ["rank", "--url", url, "--query", query, "--documents", str(tmp_path / "documents.txt")]
    assert main([*command, "--raw-scores", "--truncate", "document"]) == 0
    (score,) = call_once(
        url, True, "score_pairs", [(query, ("park museum " * 20).strip())], truncate="document", raw_scores=True
    )
    assert f"{score:.4f}" in capsys.readouterr().out
