"""`AsyncRanker`: the same results as `Ranker`, many calls at once, cancelling, closing."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from clickbert import AsyncRanker, InvalidInputError, Ranker, RankerClosedError, ServerTimeoutError
from clickbert.calls import session
from clickbert.wire.tokenization import PairTokenizer
from tests.client.fakes import FakeTriton, Servicer, held

DOCUMENTS = [f"{kind} {number} near me" for kind in ("cafe", "hotel", "park") for number in range(50)]


def test_it_answers_as_ranker_does(url):
    async def both_calls():
        async with AsyncRanker(url) as ranker:
            return await ranker.rank("tea", DOCUMENTS, 7), await ranker.score_pairs([("tea", "a bar"), ("", "")])

    with Ranker(url) as ranker:
        expected = ranker.rank("tea", DOCUMENTS, 7), ranker.score_pairs([("tea", "a bar"), ("", "")])
    assert asyncio.run(both_calls()) == expected


def test_two_hundred_calls_at_once(server, url):
    async def calls():
        async with AsyncRanker(url) as ranker:
            return await asyncio.gather(*(ranker.rank(f"tea {n}", DOCUMENTS[n % 50 :], 3) for n in range(200)))

    for number, ranked in enumerate(asyncio.run(calls())):
        assert len(ranked) == 3
        for item in ranked:
            expected = server.published[1].expected(f"tea {number}", DOCUMENTS[number % 50 :][item.index])
            assert item.score == pytest.approx(expected, abs=1e-6)
    assert server.asked.count(("clickbert_tokenizer", "1")) == 1


class Gate(Servicer):
    """`FakeTriton` on asyncio; it answers the click model's requests only when so many of them are there."""

    def __init__(self, server: FakeTriton, wanted: int) -> None:
        super().__init__(server)
        self.missing, self.open = wanted, asyncio.Event()

    async def ModelMetadata(self, request, context):  # noqa: N802 (gRPC's names)
        return super().ModelMetadata(request, context)

    async def ModelConfig(self, request, context):  # noqa: N802
        return super().ModelConfig(request, context)

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.model_name == "clickbert_onnx":
            self.missing -= 1
            if not self.missing:
                self.open.set()
            await self.open.wait()
        return super().ModelInfer(request, context)


def test_three_hundred_requests_are_in_flight_together(server):
    async def calls():
        # Two threads tokenize for all of them: what waits for the server must not need one.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        grpc_side = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Gate(server, 300), grpc_side)
        port = grpc_side.add_insecure_port("127.0.0.1:0")
        await grpc_side.start()
        try:
            async with AsyncRanker(f"127.0.0.1:{port}", timeout=30) as ranker:
                return await asyncio.gather(*(ranker.rank(f"tea {n}", ["a bar", "a bank"]) for n in range(300)))
        finally:
            await grpc_side.stop(0)

    for number, ranked in enumerate(asyncio.run(calls())):
        for item in ranked:
            assert item.score == pytest.approx(server.published[1].expected(f"tea {number}", item.text), abs=1e-6)


def test_bad_arguments_are_the_same_errors(server, url):
    async def call(*arguments):
        async with AsyncRanker(url) as ranker:
            await ranker.rank(*arguments)

    for arguments in [("tea", []), ("tea", "text"), ("tea", ["a"], 0), ("tea", ["\ud800"]), ("tea", ["a"] * 1001)]:
        with pytest.raises(InvalidInputError):
            asyncio.run(call(*arguments))
    with pytest.raises(InvalidInputError):
        AsyncRanker("http://localhost:8000")
    assert server.requests == []


def test_a_cancelled_call_ends_at_once_and_the_next_one_works(server, url):
    async def scenario():
        async with AsyncRanker(url) as ranker:
            await ranker.rank("tea", ["a bar"])
            with held(server) as requests:
                call = asyncio.create_task(ranker.rank("tea", DOCUMENTS))
                await asyncio.to_thread(requests.wait_until_reached)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert not requests.answer.is_set(), "it waited for the answer"
            return await ranker.rank("tea", ["a bar"])

    assert len(asyncio.run(scenario())) == 1


def test_cancelling_the_call_that_fetches_the_tokenizer_leaves_the_others_going(server, url):
    async def scenario():
        async with AsyncRanker(url) as ranker:
            with held(server, "clickbert_tokenizer") as requests:
                first = asyncio.create_task(ranker.rank("tea", ["a bar"]))
                await asyncio.to_thread(requests.wait_until_reached)
                second = asyncio.create_task(ranker.rank("tea", ["a bar"]))
                await asyncio.sleep(0)
                first.cancel()
            return await asyncio.gather(first, second, return_exceptions=True)

    cancelled, ranked = asyncio.run(scenario())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [item.index for item in ranked] == [0]


def test_closing_ends_running_calls_with_an_error_of_ours(server, url):
    async def scenario():
        ranker = AsyncRanker(url)
        await ranker.rank("tea", ["a bar"])
        with held(server) as requests:
            running = [asyncio.create_task(ranker.rank("tea", DOCUMENTS)) for _ in range(3)]
            await asyncio.to_thread(requests.wait_until_reached)
            await ranker.close()
            results = await asyncio.gather(*running, return_exceptions=True)
        with pytest.raises(RankerClosedError):
            await ranker.rank("tea", ["a bar"])
        return results

    assert [type(result) for result in asyncio.run(scenario())] == [RankerClosedError] * 3


def test_the_event_loop_goes_on_while_texts_are_tokenized(url, monkeypatch):
    pack_pairs = PairTokenizer.pack_pairs

    async def scenario():
        loop, went_on = asyncio.get_running_loop(), threading.Event()

        def pack_while_the_loop_goes_on(tokenizer, pairs, inputs, **options):
            loop.call_soon_threadsafe(went_on.set)
            assert went_on.wait(30), "the loop waits for the tokenizer"
            return pack_pairs(tokenizer, pairs, inputs, **options)

        monkeypatch.setattr(PairTokenizer, "pack_pairs", pack_while_the_loop_goes_on)
        async with AsyncRanker(url) as ranker:
            return await ranker.rank("tea", ["a bar"])

    assert len(asyncio.run(scenario())) == 1


def test_a_tokenizer_that_takes_longer_than_a_call_has_is_read_once(server, url, monkeypatch):
    """Who waited for it is told that it took too long, and later calls have it."""
    read, begun, go = session.read_release, [], threading.Event()

    def read_slowly(*arguments):
        begun.append(arguments)
        assert go.wait(60)
        return read(*arguments)

    monkeypatch.setattr(session, "read_release", read_slowly)

    async def scenario():
        async with AsyncRanker(url, timeout=60) as ranker:
            for _ in range(3):
                with pytest.raises(ServerTimeoutError):
                    await ranker.rank("tea", ["a bar"], timeout=1)
            go.set()
            return await ranker.rank("tea", ["a bar"])

    assert len(asyncio.run(scenario())) == 1
    assert len(begun) == 1
