"""A real tritonserver that does not serve right now: what the client says, and that it never blames the model's name.

What Triton 2.51 answers (a gRPC status, and its message):

    starting                      (nothing listens until all models are ready)
    draining, unloaded, loading   NOT_FOUND    Request for unknown model: 'M' has no available versions
    the same, asked by version    UNAVAILABLE  Request for unknown model: 'M' version 1 is not at ready state
    reloading                     OK           (the former version answers until the new one is ready)
    ending, calls in flight       CANCELLED    CANCELLED
    wrong name, or never loaded   NOT_FOUND    Request for unknown model: 'M' is not found
    no such version               NOT_FOUND    Request for unknown model: 'M' version 7 is not found

Not seen, but among the strings of its library: "Server not ready", and "Server is stopping, scheduler for model has
stopped accepting new inference requests".
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from clickbert import ConnectionFailedError, ModelNotFoundError, Ranker, ServerError, ServerUnavailableError
from clickbert.wire.protocol import tokenizer_request
from clickbert.wire.transport import GrpcTransport
from serving.server import Server
from tests.integration.scores import PATIENCE
from tests.published import as_admin, serve


@pytest.fixture
def own_server(published_repository: Path, tmp_path: Path) -> Iterator[Server]:
    with serve(published_repository, log=tmp_path / "triton.log") as server:
        yield server


@pytest.fixture
def ranker(own_server: Server) -> Iterator[Ranker]:
    with Ranker(own_server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert len(ranker.rank("w1", ["w2", "w3"])) == 2
        yield ranker


def control(server: Server, action: str) -> None:
    client = triton.InferenceServerClient(server.addresses.grpc)
    getattr(client, f"{action}_model")("clickbert_onnx", headers=as_admin(server), client_timeout=PATIENCE)


def test_a_draining_server_is_unavailable_until_it_is_gone(own_server: Server, ranker: Ranker) -> None:
    assert own_server.process
    own_server.process.send_signal(signal.SIGTERM)
    seen: set[type[ServerError]] = set()
    while ConnectionFailedError not in seen:
        with Ranker(own_server.addresses.grpc, timeout=PATIENCE) as newcomer:
            for each in (ranker, newcomer):  # one that has the tokenizer, and one that asks for it first
                try:
                    each.rank("w1", ["w2", "w3"])
                except ServerError as exc:
                    seen.add(type(exc))
    assert seen == {ServerUnavailableError, ConnectionFailedError}


def test_an_unloaded_model_is_unavailable_and_answers_when_it_is_loaded_again(
    own_server: Server, ranker: Ranker
) -> None:
    control(own_server, "unload")
    with pytest.raises(ServerUnavailableError, match=r"has no available versions.*try another server"):
        ranker.rank("w1", ["w2", "w3"])
    control(own_server, "load")
    assert len(ranker.rank("w1", ["w2", "w3"])) == 2


def test_what_is_not_there_is_not_found(published_server: Server) -> None:
    with Ranker(published_server.addresses.grpc, "clickbert_nowhere", timeout=PATIENCE) as ranker:
        with pytest.raises(ModelNotFoundError, match=r"'clickbert_nowhere' is not found.*check the model's name"):
            ranker.rank("w1", ["w2"])
    transport = GrpcTransport(published_server.addresses.grpc)
    with pytest.raises(ModelNotFoundError, match="version 7 is not found"):
        transport.infer(tokenizer_request("7"), timeout=PATIENCE)
    transport.close()
