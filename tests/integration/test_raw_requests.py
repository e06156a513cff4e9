"""Requests as a client in another language might send them: a malformed one is an error, and harms no other."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.server import Server
from tests.integration.scores import Executions
from tests.serving.busy_cores import busy_cores, needs_bound_cores, waiting_in_the_schedule
from tests.waiting import eventually

GOOD = {"input_ids": [2, 6, 3, 7, 3], "token_type_ids": [0, 0, 0, 1, 1], "lengths": [5]}
OTHER = {"input_ids": [2, 9, 8, 3, 7, 3, 2, 6, 3, 11, 3], "token_type_ids": [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]}
OTHER |= {"lengths": [6, 5]}

MALFORMED = {
    "lengths too long": {"lengths": [6]},
    "lengths too short": {"lengths": [4]},
    "a length of nothing": {"lengths": [5, 0]},
    "a negative length": {"lengths": [8, -3]},
    "too few token types": {"token_type_ids": [0, 0, 0, 1]},
    "an id outside the vocabulary": {"input_ids": [2, 6, 3, 100_000, 3]},
    "a negative id": {"input_ids": [2, 6, 3, -7, 3]},
    "a third text": {"token_type_ids": [0, 0, 0, 1, 2]},
    "no pairs": {"lengths": []},
    "no tokens": {"input_ids": []},
    "no token types": {"token_type_ids": []},
    "neither tokens nor types": {"input_ids": [], "token_type_ids": []},
    "nothing at all": {"input_ids": [], "token_type_ids": [], "lengths": []},
    "no tokens, but lengths of a large request": {"input_ids": [], "token_type_ids": [0, 0, 1], "lengths": [48] * 31},
    "a pair over the maximum length": {"input_ids": [2] * 49, "token_type_ids": [0] * 49, "lengths": [49]},
    "more pairs than a request may have": {"input_ids": [2] * 33, "token_type_ids": [0] * 33, "lengths": [1] * 33},
    "more tokens than a request may have": {"input_ids": [2] * 65_537},
    "more token types than a request may have": {"token_type_ids": [0] * 65_537},
}


def send(server: Server, dtype: type = np.int32, **tensors: list[int]) -> np.ndarray:
    inputs = []
    for name, values in tensors.items():
        array = np.array([values], dtype=dtype)
        inputs.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return triton.InferenceServerClient(server.addresses.grpc).infer("clickbert_onnx", inputs).as_numpy("logits")


@pytest.mark.parametrize("spoiled", [*MALFORMED.values(), {"dtype": np.float32}], ids=[*MALFORMED, "another dtype"])
def test_a_malformed_request_is_an_error_and_the_next_one_is_answered(published_server: Server, spoiled: dict) -> None:
    expected = send(published_server, **GOOD)
    with pytest.raises(InferenceServerException) as caught:
        send(published_server, **(GOOD | spoiled))
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert np.array_equal(send(published_server, **GOOD), expected)


@needs_bound_cores
@pytest.mark.parametrize("spoiled", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("place", [0, 1])
def test_a_malformed_request_in_a_chunk_with_good_ones_fails_alone(
    published_server: Server, spoiled: dict, place: int
) -> None:
    requests: list[dict] = [GOOD, OTHER, GOOD]
    expected = [send(published_server, **request) for request in requests]
    requests.insert(place, GOOD | spoiled)
    executions = Executions(published_server)  # it waits until nothing waits any more
    with ThreadPoolExecutor(4) as pool:
        with busy_cores(published_server):
            answers: list[Future[np.ndarray]] = []
            for number, request in enumerate(requests):
                answers.append(pool.submit(send, published_server, **request))
                arrived = number + 1
                eventually(
                    lambda arrived=arrived: (
                        waiting_in_the_schedule(published_server, "clickbert_onnx")
                        + sum(answer.done() for answer in answers)
                        == arrived
                    )
                )
    with pytest.raises(InferenceServerException, match=r"malformed request|at most"):
        answers.pop(place).result()
    for answer, right in zip(answers, expected, strict=True):
        assert np.allclose(answer.result(), right, atol=1e-5)
    assert executions.of(4) == 1, "all that were computed shared a chunk"
