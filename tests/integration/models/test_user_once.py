"""A checkpoint whose user text is computed once: exported, served by the real Triton, and ranked as PyTorch does."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.load_gen.metrics import total
from clickbert import Ranker
from export.verify.evaluation import read_checkpoint
from finetune.evaluation.scoring import score_texts
from serving.server import Server
from tests.integration.models.plans import serve_on_cpu
from tests.integration.scores import PATIENCE, Executions, as_rows, call_at_once, in_pytorch
from tests.published import serve
from tests.tiny import ONCE_USER_TOKENS, WORDS
from tests.waiting import eventually

CPU_MODELS = {"clickbert_onnx": 1e-5, "clickbert_onnx_int8": 0.2}  # and how far a score may be from PyTorch's
PLANS = {"clickbert_trt_fp16": 2e-3, "clickbert_trt_int8": 0.2}  # without a GPU: by their own protocol, on the CPU
MODELS = CPU_MODELS | PLANS
USERS = ["", "w1", "w2 w3 w4 w5", " ".join(WORDS[:40])]
TEXTS = ["", "w7", " ".join(WORDS[20:26]), " ".join(WORDS[60:110])]


@pytest.fixture(scope="module")
def once_server(once_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On every engine."""
    folder = tmp_path_factory.mktemp("once-served")
    shutil.copytree(once_engines, folder / "repository")
    for model in PLANS:
        serve_on_cpu(folder / "repository" / model)
    with serve(folder / "repository", log=folder / "log") as server:
        yield server


@pytest.fixture(params=MODELS)
def once_ranker(once_server: Server, request: pytest.FixtureRequest) -> Iterator[Ranker]:
    with Ranker(once_server.addresses.grpc, request.param, timeout=PATIENCE) as ranker:
        yield ranker


@pytest.fixture
def tolerance(request: pytest.FixtureRequest) -> float:
    return MODELS[request.node.callspec.params["once_ranker"]]


def candidates(count: int, seed: int) -> list[str]:
    """Different texts of all lengths."""
    chance = random.Random(seed)
    return [f"w{number % 150} " + " ".join(chance.choices(WORDS, k=chance.randint(0, 50))) for number in range(count)]


@pytest.mark.parametrize("user", USERS, ids=["empty", "a word", "some words", "longer than its share"])
@pytest.mark.parametrize("count", [1, 2, 32, 1000])
def test_every_candidate_has_pytorchs_score(
    once_checkpoint: Path, once_ranker: Ranker, tolerance: float, user: str, count: int
) -> None:
    documents = candidates(count, len(user))
    documents[10:13] = documents[:3][: count - 10] if count > 10 else []  # the same again
    expected = in_pytorch(once_checkpoint, as_rows([(user, document) for document in documents]))
    found = {item.index: item.score for item in once_ranker.rank(user, documents)}
    assert np.allclose([found[index] for index in range(len(documents))], expected, atol=tolerance)


def test_pairs_of_many_users_are_one_call(once_checkpoint: Path, once_ranker: Ranker, tolerance: float) -> None:
    pairs = list(product(USERS, TEXTS)) * 2
    random.Random(0).shuffle(pairs)
    expected = in_pytorch(once_checkpoint, as_rows(pairs))
    assert np.allclose(once_ranker.score_pairs(pairs), expected, atol=tolerance)


def test_texts_have_full_attention(once_checkpoint: Path, once_ranker: Ranker, tolerance: float) -> None:
    checkpoint = read_checkpoint(once_checkpoint, None)
    expected = score_texts(checkpoint.model, checkpoint.heads, checkpoint.tokenizer, TEXTS, checkpoint.max_length)
    assert np.allclose(once_ranker.embed(TEXTS), expected["embedding"], atol=3 * tolerance)


@pytest.mark.parametrize("model", ["clickbert_onnx", "clickbert_trt_fp16"])
def test_requests_of_many_callers_get_what_each_gets_alone(once_server: Server, model: str) -> None:
    chance = random.Random(1)
    requests = [
        (" ".join(chance.choices(WORDS, k=chance.randint(0, 30))), candidates(chance.choice([1, 5, 32]), seed))
        for seed in range(60)
    ]
    with Ranker(once_server.addresses.grpc, model, timeout=PATIENCE) as ranker:
        alone = [ranker.rank(*request) for request in requests]
        calls = [partial(ranker.rank, *request) for request in requests]
        executions = Executions(once_server, model)
        together = call_at_once(once_server, model, calls, len(requests))
    if model in PLANS:
        assert executions.of(len(requests)) < len(requests), "requests with different longest texts were merged"
    for one, other in zip(alone, together, strict=True):
        scores = [{item.index: item.score for item in ranking} for ranking in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=MODELS[model])


def elements(server: Server) -> int:
    """How many tokens the fp32 model has computed."""
    return int(total(server.metrics(), "clickbert_elements_total", model="clickbert_onnx"))


def test_a_user_text_is_computed_once_however_many_chunks_its_candidates_take(once_server: Server) -> None:
    with Ranker(once_server.addresses.grpc, timeout=PATIENCE) as ranker:
        executions, before = Executions(once_server), elements(once_server)
        ranker.rank(" ".join(WORDS[:ONCE_USER_TOKENS]), [" ".join(WORDS[:30]) + f" w{number}" for number in range(128)])
        chunks = executions.of(1)
    assert chunks > 12
    eventually(lambda: elements(once_server) > before)
    assert elements(once_server) - before == (ONCE_USER_TOKENS + 1) + 128 * (31 + 2)


def send(server: Server, model: str = "clickbert_onnx", **tensors: list[int]) -> np.ndarray:
    inputs = []
    for name, values in tensors.items():
        array = np.array([values], np.int32)
        inputs.append(triton.InferInput(name, list(array.shape), "INT32"))
        inputs[-1].set_data_from_numpy(array)
    return triton.InferenceServerClient(server.addresses.grpc).infer(model, inputs).as_numpy("logits")


GOOD = {"input_ids": [6, 9, 3, 2, 7, 3, 2, 8, 8, 3], "user_lengths": [3], "user_pairs": [2], "lengths": [3, 4]}
MALFORMED = {
    "a user text too long": {"user_lengths": [4]},
    "a negative user text": {"user_lengths": [-1]},
    "a pair too many": {"user_pairs": [3]},
    "a user without a pair": {"user_lengths": [3, 0], "user_pairs": [2, 0]},
    "no user": {"user_lengths": [], "user_pairs": []},
    "another number of shares": {"user_pairs": [1, 1]},
    "a candidate too long": {"lengths": [3, 5]},
    "an id outside the vocabulary": {"input_ids": [6, 9, 3, 2, 7, 3, 2, 100_000, 8, 3]},
    "a user text and a candidate over the maximum": {
        "input_ids": [6] * 40 + [2] * 20,
        "user_lengths": [40],
        "user_pairs": [1],
        "lengths": [20],
    },
    "shares that wrap around": {"user_pairs": [2**31 - 1]},
}


@pytest.mark.parametrize("spoiled", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_an_error_and_the_next_one_is_answered(once_server: Server, spoiled: dict) -> None:
    expected = send(once_server, **GOOD)
    with pytest.raises(InferenceServerException, match=r"malformed request|at most") as caught:
        send(once_server, **(GOOD | spoiled))
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert np.array_equal(send(once_server, **GOOD), expected)


def test_malformed_requests_among_good_ones_fail_alone(once_server: Server) -> None:
    expected = send(once_server, **GOOD)

    def send_or_fail(request: dict) -> np.ndarray | str:
        try:
            return send(once_server, **request)
        except InferenceServerException as exc:
            return str(exc)

    requests = [request for spoiled in MALFORMED.values() for request in (GOOD, GOOD | spoiled, GOOD)]
    calls = [partial(send_or_fail, request) for request in requests]
    for request, found in zip(requests, call_at_once(once_server, "clickbert_onnx", calls, len(calls)), strict=True):
        if request == GOOD:
            assert np.allclose(found, expected, atol=1e-5)
        else:
            assert isinstance(found, str)
            assert "malformed request" in found or "at most" in found


def test_plans_answer_a_malformed_request_with_nan_and_its_neighbours_with_their_logits(once_server: Server) -> None:
    model, sizes = "clickbert_trt_fp16", {"longest": [0] * 20, "longest_user": [0] * (ONCE_USER_TOKENS + 1)}
    good = GOOD | sizes
    expected = send(once_server, model, **good)
    assert np.isfinite(expected).all()
    # packed_cpu refuses an empty request, where Triton's own backends give NaN.
    spoiled = [good | each for each in MALFORMED.values() if all(each.values())]
    spoiled += [good | {"longest": [0] * 3}, good | {"longest_user": [0] * 2}]
    calls = [partial(send, once_server, model, **one) for each in spoiled for one in (good, each, good)]
    executions = Executions(once_server, model)
    found = call_at_once(once_server, model, calls, len(calls))
    assert executions.of(len(calls)) < len(calls)
    for place, logits in enumerate(found):
        if place % 3 != 1:
            assert np.allclose(logits, expected, atol=2e-3)
        elif place // 3 < len(spoiled) - 2:  # others' longer texts make up for what the last two say
            assert np.isnan(logits).all()


def test_what_was_kept_cannot_be_sent(once_server: Server) -> None:
    with pytest.raises(InferenceServerException, match="kept_prefixes"):
        send(once_server, **GOOD, kept_prefixes=[1])
