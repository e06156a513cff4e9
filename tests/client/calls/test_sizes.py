"""Sizes are kept or refused at the client: no request goes out that the server or gRPC would refuse for its size."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clickbert import InvalidInputError, ProtocolError
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import infer_message
from tests.client.fake_model import FakeStatusError, Published
from tests.client.fakes import FakeTriton, calls, holding_the_first

LONG = [f"{number} " + "the coffee " * 40 for number in range(20)]  # each beyond the model's 32 tokens


@pytest.mark.parametrize("heads", [None, {"user_tokens": 8}])
@pytest.mark.parametrize("tokens", [32, 33, 100, 10_000])
def test_a_request_keeps_the_limit_of_tokens(blocking, tokens, heads):
    complete = heads and heads | {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None}
    server = FakeTriton({1: Published(heads=complete)})
    server.parameters |= {"max_elements.input_ids": str(tokens)}
    with calls(server, blocking) as call:
        assert len(call("rank", "tea", LONG)) == len(LONG)
    sent = [request.inputs["input_ids"].size for request in server.requests if request.model == "clickbert_onnx"]
    assert max(sent) <= tokens
    assert len(sent) == 1 if tokens == 10_000 else len(sent) > 1


def test_a_limit_that_no_pair_keeps_is_named_and_nothing_is_sent(server, blocking):
    server.parameters |= {"max_elements.input_ids": "31"}
    with calls(server, blocking) as call:
        assert len(call("rank", "tea", ["short"])) == 1
        with pytest.raises(ProtocolError, match=r"has 32 tokens, but the server takes 31 \(max_elements\.input_ids"):
            call("rank", "tea", LONG)
    assert server.asked.count(("clickbert_onnx", "")) == 1


def keep_limits(server: FakeTriton) -> None:
    """Have it refuse what is beyond its limits, as packed_cpu does."""

    def refuse(request: InferRequest) -> None:
        for name, (values, *_) in request.inputs.items():
            most = int(server.parameters.get(f"max_elements.{name}", 10**9))
            if values.size > most:
                text = f"input '{name}' has {values.size} elements, at most {most} are allowed; split it"
                raise FakeStatusError("INVALID_ARGUMENT", text)

    server.before_infer = refuse


def test_a_call_that_began_before_others_heard_of_new_limits_keeps_them():
    """It is answered by another version, which a call beside it has come to know meanwhile, with its lower limit."""
    server = FakeTriton({1: Published(), 2: Published(max_length=24, shift=0.5)})
    keep_limits(server)
    with calls(server, blocking=True) as call:
        call("rank", "tea", LONG)
        with ThreadPoolExecutor(1) as pool:
            with holding_the_first(server) as reached:
                server.serving = 2
                first = pool.submit(call, "rank", "tea", LONG)
                assert reached.wait(60)
                server.parameters["max_elements.lengths"] = "6"
                expected = call("rank", "tea", LONG)
            assert first.result(60) == expected


@pytest.mark.parametrize("limit, lowered", [("lengths", "6"), ("input_ids", "100")])
def test_a_limit_that_is_lowered_while_the_version_stays_is_noticed(server, blocking, limit, lowered):
    """As the server is told by a config.pbtxt that is loaded again."""
    keep_limits(server)
    with calls(server, blocking) as call:
        expected = call("rank", "tea", LONG)
        server.parameters[f"max_elements.{limit}"] = lowered
        assert call("rank", "tea", LONG) == expected
        server.requests.clear()
        assert call("rank", "tea", LONG) == expected
    assert max(request.inputs[limit].size for request in server.requests) <= int(lowered)


@pytest.mark.parametrize("lowered_with", [1, 2])
def test_after_a_rollback_with_a_lower_limit_it_is_noticed_too(blocking, lowered_with):
    server = FakeTriton({1: Published(), 2: Published(shift=0.5)})
    keep_limits(server)
    with calls(server, blocking) as call:
        call("rank", "tea", LONG)
        for server.serving in (2, 1):
            if server.serving == lowered_with:
                server.parameters["max_elements.lengths"] = "6"
            for _ in range(2):
                assert len(call("rank", "tea", LONG)) == len(LONG)


def test_a_limit_that_is_raised_as_the_error_says_is_noticed(server, blocking):
    server.parameters |= {"max_elements.input_ids": "31"}
    with calls(server, blocking) as call:
        with pytest.raises(ProtocolError, match="raise that to the 32"):
            call("rank", "tea", LONG)
        server.parameters |= {"max_elements.input_ids": "32"}
        assert len(call("rank", "tea", LONG)) == len(LONG)


def test_a_message_beyond_grpcs_limit_is_refused_before_it_is_built():
    huge = np.broadcast_to(np.int32(7), (1, 2**29))  # 2 GiB, of which four bytes are in memory
    with pytest.raises(InvalidInputError, match="2,147,483,648 bytes"):
        infer_message(InferRequest("clickbert_onnx", "", {"input_ids": huge}, ()), timeout=1.0)
