"""`fallback=True`: the caller's own order, marked, in place of a server's error."""

import asyncio
import logging
import math

import pytest

from clickbert import AsyncRanker, InvalidInputError, RankedDocument, Ranker, RankerClosedError, ServerTimeoutError
from tests.client.fake_model import FakeStatusError
from tests.client.fakes import FakeTransport, calls, held

DOCUMENTS = ["a bar", "the coffee cafe", "a bank"]


def fail(server, status="UNAVAILABLE", message="Exceeds maximum queue size"):
    def refuse(request):
        raise FakeStatusError(status, message)

    server.before_infer = refuse


@pytest.mark.parametrize("status", ["UNAVAILABLE", "INTERNAL", "UNAUTHENTICATED", "NOT_FOUND", "DEADLINE_EXCEEDED"])
def test_whatever_the_server_fails_with_the_order_is_the_callers(server, blocking, status):
    fail(server, status, "no")
    with calls(server, blocking, retries=0) as call:
        ranked = call("rank", "tea", DOCUMENTS, fallback=True)
    assert [(item.index, item.text, item.is_fallback) for item in ranked] == [
        (index, text, True) for index, text in enumerate(DOCUMENTS)
    ]
    assert all(math.isnan(item.score) for item in ranked)


def test_top_k_holds(server, blocking):
    fail(server)
    with calls(server, blocking) as call:
        assert [item.index for item in call("rank", "tea", DOCUMENTS, 2, fallback=True)] == [0, 1]


def test_a_ranking_that_works_is_not_marked(server, blocking):
    with calls(server, blocking) as call:
        ranked = call("rank", "tea", DOCUMENTS, fallback=True)
        assert ranked == call("rank", "tea", DOCUMENTS)
    assert not any(item.is_fallback for item in ranked)
    assert RankedDocument(0, "text", 0.5) == RankedDocument(0, "text", 0.5, is_fallback=False)


def test_the_default_is_the_error(server, blocking):
    fail(server, "INTERNAL", "no")
    with calls(server, blocking) as call, pytest.raises(Exception, match="INTERNAL"):
        call("rank", "tea", DOCUMENTS)


def test_a_timeout_falls_back_in_time(server, url, blocking):
    with held(server), calls(url, blocking) as call:
        assert all(item.is_fallback for item in call("rank", "tea", DOCUMENTS, timeout=0.3, fallback=True))


def test_the_callers_own_mistakes_are_raised(server, blocking):
    with calls(server, blocking) as call:
        for wrong in ([], ["lone \ud800 surrogate"], "text"):
            with pytest.raises(InvalidInputError):
                call("rank", "tea", wrong, fallback=True)


def test_a_closed_ranker_says_so(server):
    ranker = Ranker("localhost:8001", transport=FakeTransport(server))
    ranker.close()
    with pytest.raises(RankerClosedError):
        ranker.rank("tea", DOCUMENTS, fallback=True)

    async def call() -> None:
        awaited = AsyncRanker("localhost:8001")
        await awaited.close()
        await awaited.rank("tea", DOCUMENTS, fallback=True)

    with pytest.raises(RankerClosedError):
        asyncio.run(call())


def test_the_log_has_the_error_and_no_text(server, blocking, caplog):
    fail(server)
    with caplog.at_level(logging.DEBUG, "clickbert"), calls(server, blocking) as call:
        call("rank", "tea", DOCUMENTS, fallback=True)
    (record,) = [each for each in caplog.records if each.name == "clickbert"]
    assert record.levelno == logging.WARNING
    assert "ServerOverloadedError" in record.getMessage() and "Exceeds maximum queue size" in record.getMessage()
    assert not any(text in caplog.text for text in ["tea", *DOCUMENTS])


def test_each_call_may_have_its_own_timeout(server, url, blocking):
    arguments = {"rank": ("tea", DOCUMENTS), "score_pairs": ([("tea", "a bar")],), "classify": (["a"],)}
    arguments |= {"embed": (["a"],), "similarity": ("a", ["b"])}
    with calls(url, blocking, timeout=60.0) as call:
        call("rank", "tea", DOCUMENTS)
        with held(server):
            for method in ("rank", "score_pairs"):
                with pytest.raises(ServerTimeoutError):
                    call(method, *arguments[method], timeout=0.2)
        for method, given in arguments.items():
            for wrong in (0, -1, math.nan, math.inf, True, "1"):
                with pytest.raises(InvalidInputError, match="timeout is"):
                    call(method, *given, timeout=wrong)
