"""Requests as a client in another language might send them: a malformed one is an error, and harms no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.server import Server
from tests.integration.scores import Executions, waiting_requests
from tests.published import serve
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


@pytest.fixture(scope="module")
def merging_server(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It waits for four requests, which it merges in the order in which they came."""
    repository = shutil.copytree(published_repository, tmp_path_factory.mktemp("merging") / "repository")
    shutil.rmtree(repository / "clickbert_onnx_int8")
    config = repository / "clickbert_onnx" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    assert "max_batch_size: 4" in text
    waiting = text.replace("max_queue_delay_microseconds: 0", "max_queue_delay_microseconds: 60000000")
    waiting = waiting.replace("default_timeout_microseconds: 60000000", "default_timeout_microseconds: 120000000")
    config.write_text(waiting[: waiting.index("model_warmup")], encoding="utf-8")  # the warm-up would wait, too
    with serve(repository) as server:
        yield server


@pytest.mark.parametrize("spoiled", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("place", [0, 1])
def test_a_malformed_request_merged_before_good_ones_fails_alone(
    published_server: Server, merging_server: Server, spoiled: dict, place: int
) -> None:
    requests: list[dict] = [GOOD, OTHER, GOOD]
    requests.insert(place, GOOD | spoiled)
    executions = Executions(merging_server)
    with ThreadPoolExecutor(4) as pool:
        answers: list[Future[np.ndarray]] = []
        for number, request in enumerate(requests):
            eventually(lambda number=number: waiting_requests(merging_server) == number)
            answers.append(pool.submit(send, merging_server, **request))
    with pytest.raises(InferenceServerException, match=r"malformed request|at most"):
        answers.pop(place).result()
    for answer, request in zip(answers, (GOOD, OTHER, GOOD), strict=True):
        assert np.allclose(answer.result(), send(published_server, **request), atol=1e-5)
    assert executions.of(3) == 1, "all four were merged"
