"""The scores at the real server's metrics port: exactly those that callers got, beside what the manifest expects."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import numpy as np
import pytest

from benchmarks.load_gen.metrics import read, total
from clickbert import ProtocolError, Ranker, ServerTimeoutError
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import GrpcTransport
from finetune.data.clicklog import ClickRow
from release.expected import SCORES, class_of, population_stability_index
from release.manifest import read_manifest
from release.names import LOGITS, ONNX_MODEL
from serving.backends.packed_cpu.figures import EXPECTED, PERIOD, SCORED
from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.integration.test_scheduling import draw
from tests.serving.busy_cores import busy_cores, give_up, needs_bound_cores
from tests.waiting import eventually

INT8_MODEL = "clickbert_onnx_int8"


def by_class(server: Server, name: str, model: str) -> dict[str, float]:
    found = {labels["up_to"]: value for labels, value in read(server.metrics(), name) if labels["model"] == model}
    return {each: found[each] for each in SCORES}  # all of them, in order


def settled(server: Server, model: str) -> dict[str, float]:
    time.sleep(3 * PERIOD)  # what was asked before is counted by then
    return by_class(server, SCORED, model)


def since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: now[name] - count for name, count in before.items()}


@pytest.mark.parametrize("model", [ONNX_MODEL, INT8_MODEL])
def test_what_rank_returned_is_counted_by_class(published_server: Server, rows: list[ClickRow], model: str) -> None:
    before = settled(published_server, model)
    scores: list[float] = []
    with Ranker(published_server.addresses.grpc, model, timeout=PATIENCE) as ranker:
        for query in ("w1 w2", "w3", ""):
            documents = list(dict.fromkeys(row.document for row in rows))[:70]  # a call of three requests
            scores += [document.score for document in ranker.rank(query, documents)]
        pairs = list(dict.fromkeys((row.query, row.document) for row in rows))
        of_the_log = ranker.score_pairs(pairs)
    expected = Counter(class_of(score, SCORES) for score in [*scores, *of_the_log])
    eventually(lambda: since(before, by_class(published_server, SCORED, model)) == {n: expected[n] for n in SCORES})


@pytest.mark.parametrize("model", [ONNX_MODEL, INT8_MODEL])
def test_the_evaluation_log_is_as_the_manifest_expects(
    published_server: Server, rows: list[ClickRow], model: str
) -> None:
    manifest = read_manifest(published_server.repository / model / "1").expected
    assert manifest
    published = by_class(published_server, EXPECTED, model)
    assert published == pytest.approx(manifest.scores)
    assert sum(published.values()) == pytest.approx(1)
    with Ranker(published_server.addresses.grpc, model, timeout=PATIENCE) as ranker:
        scores = ranker.score_pairs([(row.query, row.document) for row in rows])
    found = Counter(class_of(score, SCORES) for score in scores)
    assert population_stability_index(published, found) < 0.01
    assert population_stability_index(published, {"0.05": 1.0}) > 0.25


def test_the_engines_have_scores_of_their_own(published_server: Server) -> None:
    fp32, int8 = (
        read_manifest(published_server.repository / model / "1").expected for model in (ONNX_MODEL, INT8_MODEL)
    )
    assert fp32
    assert int8
    assert fp32.of_inputs() == int8.of_inputs()
    assert fp32.scores != int8.scores


def test_a_call_that_asks_for_no_click_has_no_score(once_server: Server) -> None:
    before = settled(once_server, ONNX_MODEL)
    with Ranker(once_server.addresses.grpc, timeout=PATIENCE) as ranker:
        ranker.classify(["w1 w2", "w3"])
        (document,) = ranker.rank("w1 w2", ["w3"])
    expected = dict.fromkeys(SCORES, 0) | {class_of(document.score, SCORES): 1}
    eventually(lambda: since(before, by_class(once_server, SCORED, ONNX_MODEL)) == expected)


@needs_bound_cores
def test_what_expired_was_cancelled_or_malformed_has_no_score(published_server: Server) -> None:
    server = published_server
    request = InferRequest(ONNX_MODEL, "", draw(random.Random(3), 3), (LOGITS,))
    malformed = InferRequest(
        ONNX_MODEL, "", {name: np.zeros_like(each) for name, each in request.inputs.items()}, (LOGITS,)
    )

    def ended() -> dict[str, float]:
        figures, names = server.metrics(), ("expired", "cancelled", "malformed")
        return {name: total(figures, "clickbert_requests_total", model=ONNX_MODEL, outcome=name) for name in names}

    before, outcomes = settled(server, ONNX_MODEL), ended()
    transport = GrpcTransport(server.addresses.grpc)
    with pytest.raises(ProtocolError):
        transport.infer(malformed, timeout=PATIENCE)
    with busy_cores(server):
        asyncio.run(give_up(server, request))
        with pytest.raises(ServerTimeoutError):
            transport.infer(request, timeout=3)  # meanwhile Triton hears of the one that was given up
        eventually(lambda: ended()["expired"] == outcomes["expired"] + 1)
    transport.close()
    eventually(lambda: ended() == {name: count + 1 for name, count in outcomes.items()})
    assert settled(server, ONNX_MODEL) == before
