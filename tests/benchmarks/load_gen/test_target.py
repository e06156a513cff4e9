"""What a server says of its requests: packed_cpu's figures of models that it cuts into chunks, else Triton's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2_grpc

from benchmarks import BenchmarkError
from benchmarks.load_gen.metrics import total
from benchmarks.load_gen.target import Counts, Target, count_chunks, is_chunked
from benchmarks.load_gen.workload import Request, Selection
from benchmarks.measure.recording import SMALL, Sample
from benchmarks.measure.schema import Step
from benchmarks.measure.stats import summarize
from benchmarks.saturation.tokens import count_pairs, count_tokens, pack, published_tokenizer
from clickbert.connection import Connection
from release.names import TOKENIZER_MODEL
from tests.benchmarks.conftest import MODEL

ROOT = Path(__file__).parents[3]
TEXT = r"""# HELP clickbert_request_seconds Seconds
# TYPE clickbert_request_seconds histogram
clickbert_request_seconds_count{model="a",up_to="256",version="1"} 3
clickbert_request_seconds_sum{model="a",up_to="256",version="1"} 0.5
clickbert_request_seconds_bucket{model="a",up_to="256",version="1",le="0.002"} 1
clickbert_request_seconds_count{model="a",up_to="+Inf",version="2"} 1
clickbert_request_seconds_sum{model="a",up_to="+Inf",version="2"} 1.5
clickbert_request_seconds_count{model="ab",up_to="256",version="1"} 70
clickbert_request_waiting_seconds_sum{model="a",up_to="256",version="1"} 2.5e-1
clickbert_request_waiting_seconds_sum{model="a",up_to="+Inf",version="2"} 0.5
clickbert_chunks_total{model="a",version="1"} 5
clickbert_elements_total{model="a",version="1"} 900
clickbert_elements_total{model="a\"},b",version="1"} 8
clickbert_elements_padded_total{model="a",version="1"} 7000
nv_gpu_power_limit 3
"""


def test_a_metric_is_added_up_over_the_labels_that_are_not_given() -> None:
    assert total(TEXT, "clickbert_request_seconds_count", model="a") == 4
    assert total(TEXT, "clickbert_request_seconds_count", model="a", version="2") == 1
    assert total(TEXT, "clickbert_request_seconds_count") == 74
    assert total(TEXT, "clickbert_elements_total", model='a\\"},b') == 8
    assert total(TEXT, "nv_gpu_power_limit") == 3
    assert total(TEXT, "clickbert_request_seconds") == 0
    assert total(TEXT, "clickbert_chunks_total", model="b") == 0


def test_a_chunked_models_time_is_until_its_first_chunk_and_from_then_on() -> None:
    assert count_chunks(TEXT, "a") == Counts(requests=4, queue=0.75, compute=1.25, chunks=5, tokens=900)
    assert count_chunks("", "a") == Counts()


def test_a_gateway_is_told_from_a_server_that_does_not_answer() -> None:
    class Gateway(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelStatistics(self, _request: object, context: grpc.ServicerContext) -> NoReturn:  # noqa: N802
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this gateway does not pass it on")

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Gateway(), server)
    url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(BenchmarkError, match=r"as a gateway does not: give a server's own address \(.*not pass it"):
            Target(Connection(url)).models()
    finally:
        server.stop(None).wait()
    with pytest.raises(BenchmarkError, match="does not answer"):
        Target(Connection(url)).models()


@pytest.mark.parametrize(
    "config", sorted(ROOT.glob("model_repository/*/config.pbtxt")), ids=lambda path: path.parent.name
)
def test_the_models_for_cpus_are_those_that_are_cut_into_chunks(config: Path) -> None:
    parsed = text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert is_chunked(parsed) is config.parent.name.startswith("clickbert_onnx")


def test_a_step_has_the_backends_figures_of_all_its_requests(
    target: Target, published_repository: Path, published_log: Path
) -> None:
    requests = Selection(published_log).read()[:10]
    target.settled_counts(MODEL)  # the warm-up's, too
    step = target.with_counts(MODEL, lambda: ask_all(target, requests))
    packed = pack(published_tokenizer(published_repository), requests)
    assert step.requests_per_execution is None
    assert step.tokens_per_chunk
    chunks = count_tokens(packed, 1)["packed"] / step.tokens_per_chunk  # one request after another, none shares
    assert chunks == pytest.approx(round(chunks))
    assert len(requests) <= chunks <= count_pairs(packed)
    assert step.time_split and min(vars(step.time_split).values()) > 0
    before = target.settled_counts(MODEL)
    assert before and before == target.counts(MODEL)
    ask_all(target, requests[:3])
    after = target.settled_counts(MODEL)
    assert after and (after - before).requests == 3


def test_of_chunks_elsewhere_nothing_is_known_and_of_other_models_triton_counts(
    target: Target, published_log: Path
) -> None:
    elsewhere = Target(target.connection)
    assert (elsewhere.metrics(), elsewhere.counts(MODEL)) == (None, None)
    step = elsewhere.with_counts(MODEL, lambda: ask_all(target, Selection(published_log).read()[:2]))
    assert (step.requests, step.time_split, step.tokens_per_chunk) == (2, None, None)
    counted = elsewhere.settled_counts(TOKENIZER_MODEL)
    assert counted and counted.executions > 0 == counted.chunks


def ask_all(target: Target, requests: list[Request]) -> Step:
    """Asks one request after another, and says that each took a minute."""
    for request in requests:
        target.try_out(MODEL, request)
    return summarize([Sample(0.0, 0.0, 60.0, 1, None, SMALL) for _ in requests], 0, 1)
