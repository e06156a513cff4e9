"""Calls of a ranker that computes in its own process: deadlines, closing, cancelling, threads, loops, errors."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clickbert import AsyncRanker, InvalidInputError, Ranker, RankerClosedError, ServerError, ServerTimeoutError
from clickbert.in_process.model import Model
from clickbert.in_process.transport import AsyncInProcessTransport, InProcessTransport
from tests.client.fake_model import Published, sigmoid
from tests.client.in_process.made_up import Gate, make_model
from tests.waiting import eventually

PUBLISHED = Published()
DOCUMENTS = ["the cheap bar of the city", "a cafe", "", "the museum and the park and the bank", "tea", "中文 hotel"] * 2
PATIENCE = 60
LATE = r"/models/made-up/1: not computed within|no result within"


def blocking(model: Model, **settings: object) -> Ranker:
    return Ranker("localhost:8001", model.name, transport=InProcessTransport(model), **settings)


def awaited(model: Model, **settings: object) -> AsyncRanker:
    return AsyncRanker("localhost:8001", model.name, transport=AsyncInProcessTransport(model), **settings)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.let_go.set()


def scores_of(ranked: list) -> dict[int, float]:
    return {item.index: item.score for item in ranked}


def expected() -> dict[int, float]:
    found = {index: PUBLISHED.expected("cheap coffee", text) for index, text in enumerate(DOCUMENTS)}
    return pytest.approx(found)


def test_scores():
    with blocking(make_model()) as ranker:
        assert scores_of(ranker.rank("cheap coffee", DOCUMENTS)) == expected()


def test_scores_awaited():
    async def ask() -> dict[int, float]:
        async with awaited(make_model()) as ranker:
            return scores_of(await ranker.rank("cheap coffee", DOCUMENTS))

    assert asyncio.run(ask()) == expected()


def test_many_threads_share_one_graph(gate):
    gate.let_go.set()
    with blocking(make_model(opening=gate.open)) as ranker, ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda _: scores_of(ranker.rank("cheap coffee", DOCUMENTS)), range(48)):
            assert found == expected()
    assert gate.opened == 1


def test_no_more_is_computed_at_a_time_than_there_are_threads(gate):
    model = make_model(opening=gate.open, threads=3, budget=1)
    with blocking(model, timeout=PATIENCE) as ranker, ThreadPoolExecutor(1) as pool:
        call = pool.submit(ranker.rank, "cheap coffee", DOCUMENTS)
        eventually(lambda: gate.begun == 3)
        assert not call.done()
        gate.let_go.set()
        assert scores_of(call.result()) == expected()
    assert gate.begun == len(set(DOCUMENTS))


def test_a_call_that_is_not_computed_in_time_ends_and_the_next_one_is_answered(gate):
    model = make_model(opening=gate.open, threads=1)
    with blocking(model) as ranker:
        with pytest.raises(ServerTimeoutError, match=LATE):
            ranker.rank("cheap coffee", DOCUMENTS, timeout=0.05)
        assert gate.begun <= 1, "what waited for its turn is dropped"
        gate.let_go.set()
        assert scores_of(ranker.rank("cheap coffee", DOCUMENTS, timeout=PATIENCE)) == expected()


def test_the_same_awaited(gate):
    async def ask() -> None:
        async with awaited(make_model(opening=gate.open, threads=1)) as ranker:
            with pytest.raises(ServerTimeoutError, match=LATE):
                await ranker.rank("cheap coffee", DOCUMENTS, timeout=0.05)
            assert gate.begun <= 1
            gate.let_go.set()
            assert scores_of(await ranker.rank("cheap coffee", DOCUMENTS, timeout=PATIENCE)) == expected()

    asyncio.run(ask())


def test_close_ends_calls_that_run_and_refuses_later_ones(gate):
    with ThreadPoolExecutor(1) as pool:
        for documents in (DOCUMENTS, ["tea"]):  # with pieces in the queue, and without
            ranker = blocking(make_model(opening=gate.open, threads=1), timeout=PATIENCE)
            gate.let_go.clear()
            before = gate.begun
            call = pool.submit(ranker.rank, "cheap coffee", documents)
            eventually(lambda before=before: gate.begun == before + 1)
            ranker.close()
            ranker.close()
            gate.let_go.set()
            with pytest.raises(RankerClosedError):
                call.result()
            assert gate.begun == before + 1
            with pytest.raises(RankerClosedError):
                ranker.rank("cheap coffee", documents)


def test_close_ends_awaited_calls(gate):
    async def ask() -> None:
        ranker = awaited(make_model(opening=gate.open, threads=1), timeout=PATIENCE)
        call = asyncio.create_task(ranker.rank("cheap coffee", DOCUMENTS))
        await asyncio.to_thread(eventually, lambda: gate.begun == 1)
        await ranker.close()
        gate.let_go.set()
        with pytest.raises(RankerClosedError):
            await call
        assert gate.begun == 1

    asyncio.run(ask())


def test_cancelling_a_call_drops_what_waits_for_its_turn(gate):
    async def ask() -> None:
        async with awaited(make_model(opening=gate.open, threads=1), timeout=PATIENCE) as ranker:
            call = asyncio.create_task(ranker.rank("cheap coffee", DOCUMENTS))
            await asyncio.to_thread(eventually, lambda: gate.begun == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            gate.let_go.set()
            assert len(await ranker.rank("cheap coffee", ["tea"])) == 1
            assert gate.begun == 2

    asyncio.run(ask())


def test_loops_one_after_another_and_at_once(gate):
    gate.let_go.set()
    ranker = awaited(make_model(opening=gate.open))

    async def ask() -> dict[int, float]:
        first, *others = await asyncio.gather(*(ranker.rank("cheap coffee", DOCUMENTS) for _ in range(5)))
        assert others == [first] * 4
        return scores_of(first)

    assert asyncio.run(ask()) == expected()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: asyncio.run(ask()), range(6)):
            assert found == expected()
    asyncio.run(ranker.close())
    assert gate.opened == 1


def test_a_loop_that_ends_amid_a_call_leaves_the_ranker_usable(gate):
    ranker = awaited(make_model(opening=gate.open, threads=1), timeout=PATIENCE)

    async def leave() -> None:
        asyncio.create_task(ranker.rank("cheap coffee", DOCUMENTS))  # noqa: RUF006
        await asyncio.to_thread(eventually, lambda: gate.begun == 1)

    asyncio.run(leave())
    gate.let_go.set()
    assert scores_of(asyncio.run(ranker.rank("cheap coffee", DOCUMENTS))) == expected()
    asyncio.run(ranker.close())


def test_what_the_engine_raises_is_a_servers_error_and_the_next_call_tries_again():
    failures = [RuntimeError("no memory"), MemoryError(), OSError("gone")]
    gate = Gate()
    gate.let_go.set()

    def fail_at_first():
        if failures:
            raise failures.pop()
        return gate.open()

    with blocking(make_model(opening=fail_at_first)) as ranker:
        for _ in range(3):
            with pytest.raises(ServerError, match="/models/made-up/1: a request cannot be computed"):
                ranker.rank("tea", ["a bar"])
        assert len(ranker.rank("tea", ["a bar"])) == 1


def test_nan_is_refused_as_a_servers(gate):
    gate.let_go.set()
    with blocking(make_model(Published(shift=float("nan")))) as ranker:
        with pytest.raises(ServerError, match="not finite"):
            ranker.rank("tea", ["a bar"])
        fallen_back = ranker.rank("tea", ["a bar", "a cafe"], fallback=True)
    assert [(item.index, item.is_fallback) for item in fallen_back] == [(0, True), (1, True)]


def test_a_tokenizer_that_is_not_what_it_says_is_refused():
    for published, said in ((Published(sha256="0" * 64), "SHA-256"), (Published(max_length=2), "max_length")):
        with pytest.raises(InvalidInputError, match=said):
            make_model(published).check()
    make_model().check()


def test_queries_that_are_sent_once():
    heads = {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None, "user_tokens": 4}
    published = Published(heads=heads)
    pairs = [(query, text) for query in ("tea", "cheap coffee near me", "") for text in DOCUMENTS]
    wanted = [published.expected(*pair) for pair in pairs]
    with blocking(make_model(published, budget=20)) as ranker:
        assert ranker.score_pairs(pairs) == pytest.approx(wanted)
        raw = ranker.score_pairs(pairs, raw_scores=True)
    assert [sigmoid(score) for score in raw] == pytest.approx(wanted)


def test_threads_end_with_the_ranker():
    before = set(threading.enumerate())
    with blocking(make_model()) as ranker:
        ranker.rank("tea", DOCUMENTS)
        computing = [each for each in set(threading.enumerate()) - before if each.name.startswith("clickbert-compute")]
        assert computing
    for thread in computing:
        thread.join(PATIENCE)
        assert not thread.is_alive()
