"""The real Triton's messages, and the error that the client's table makes of each: a new Triton's must still fit.

Each cause is provoked. Others are beside what they are about: overload and expiry in packed_cpu's schedule in
test_scheduling.py; draining, unloading and unknown names in test_unavailable.py; TLS in test_secure.py.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from clickbert import ClickBertError, Connection, ConnectionFailedError, Ranker
from clickbert.errors import from_status
from clickbert.wire.protocol import InferRequest
from clickbert.wire.transport import infer_message
from release.names import LOGITS, ONNX_MODEL, REQUEST_INPUTS
from serving.server import Server
from tests.client.certificates import Authority
from tests.integration.scores import PATIENCE
from tests.processes import children, paused
from tests.published import serve
from tests.serving.certs import make_certs
from tests.waiting import eventually

SMALL = {
    name: np.array([values], np.int32) for name, values in zip(REQUEST_INPUTS, ([2, 6, 3], [0, 0, 0], [3]), strict=True)
}
TOKEN = "t0ken-of-all-callers"


@dataclass(frozen=True)
class Said:
    """What Triton answered, and the client's error."""

    status: str
    message: str
    error: str
    retry: bool


def say(exc: grpc.RpcError) -> Said:
    error = from_status(exc.code().name, exc.details(), where="m at u")
    return Said(exc.code().name, exc.details(), type(error).__name__, error.is_retryable)


def ask(
    server: Server, *, model: str = ONNX_MODEL, version: str = "", timeout: float = PATIENCE, **inputs: Any
) -> Said:
    """Asks with an invalid or unlucky request; what came of it."""
    message = infer_message(InferRequest(model, version, SMALL | inputs, (LOGITS,)), timeout)
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=PATIENCE)
        except grpc.RpcError as exc:
            return say(exc)
    raise AssertionError("it was answered")


def ints(*values: int) -> np.ndarray:
    return np.array([values], np.int32)


WRONG = {
    "unknown model": ({"model": "clickbert_nowhere"}, "NOT_FOUND", "is not found", "ModelNotFoundError"),
    "unknown version": ({"version": "7"}, "NOT_FOUND", "version 7 is not found", "ModelNotFoundError"),
    "no such version": ({"version": "first"}, "INVALID_ARGUMENT", "version", "ProtocolError"),
    "unknown input": ({"other": ints(1)}, "INVALID_ARGUMENT", "other", "ProtocolError"),
    "dtype": ({"lengths": np.array([[3]], np.int64)}, "INVALID_ARGUMENT", "data-type", "ProtocolError"),
    "rank": ({"lengths": np.array([3], np.int32)}, "INVALID_ARGUMENT", "shape", "ProtocolError"),
    "lengths that do not add up": ({"lengths": ints(4)}, "INVALID_ARGUMENT", "malformed request", "ProtocolError"),
    "oversize": (
        {"input_ids": np.full((1, 65_537), 2, np.int32)},
        "INVALID_ARGUMENT",
        "65",
        "ProtocolError",
    ),
}


@pytest.mark.parametrize("inputs, status, message, error", WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_the_request(
    published_server: Server, inputs: dict, status: str, message: str, error: str
) -> None:
    said = ask(published_server, **inputs)
    assert (said.status, said.error, said.retry) == (status, error, False), said
    assert message in said.message


@pytest.fixture(scope="module")
def narrow(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tokenizer and fp32, whose own queue is short; it has one request at a time of the backend's."""
    folder = tmp_path_factory.mktemp("narrow")
    ignored = shutil.ignore_patterns("clickbert_onnx_int8")
    repository = shutil.copytree(published_repository, folder / "repository", ignore=ignored)
    config = repository / ONNX_MODEL / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    short = text.replace("max_queue_size: 512", "max_queue_size: 2")
    assert short != text
    config.write_text(short, encoding="utf-8")
    with serve(repository, log=folder / "triton.log") as server:
        yield server


def test_tritons_own_queue_and_a_backend_that_hangs(narrow: Server) -> None:
    """While the backend's process is stopped nothing is taken over: the queue fills, what waits there expires, and
    after a second Triton gives up those that the process should have."""
    assert narrow.process
    with ThreadPoolExecutor(16) as pool, paused(children(narrow.process.pid)):
        asked = [pool.submit(ask, narrow, timeout=0.3) for _ in range(16)]
        eventually(lambda: all(each.done() for each in asked))
    said = [each.result(PATIENCE) for each in asked]
    for message, status, error, retry in (
        ("Exceeds maximum queue size", "UNAVAILABLE", "ServerOverloadedError", False),
        ("Request timeout expired", "UNAVAILABLE", "ServerTimeoutError", False),
        ("is not healthy", "INTERNAL", "ServerUnavailableError", True),
    ):
        found = {(each.status, each.error, each.retry) for each in said if message in each.message}
        assert found == {(status, error, retry)}, (message, said)
    assert not [each for each in said if each.error == "ServerError"], "a message that the table does not know"


def test_a_call_that_a_killed_server_cuts_off_may_be_sent_again(published_repository: Path, tmp_path: Path) -> None:
    with serve(published_repository, log=tmp_path / "triton.log") as server, ThreadPoolExecutor(1) as pool:
        assert server.process
        with paused(children(server.process.pid)):
            waiting = pool.submit(ask, server)
            eventually(lambda: "pending" in server.metrics())
            server.process.send_signal(signal.SIGKILL)
            said = waiting.result(PATIENCE)
        assert (said.status, said.error, said.retry) == ("UNAVAILABLE", "ConnectionFailedError", True), said
        refused = ask(server)
        assert (refused.status, refused.error, refused.retry) == ("UNAVAILABLE", "ConnectionFailedError", True), refused


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_certs(tmp_path_factory.mktemp("tls") / "ours")
    (folder / "token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def guarded(published_repository: Path, certs: Path) -> Iterator[Server]:
    """A server with mutual TLS, which wants the token for what a ranker does, and another one for control."""
    with serve(published_repository, log=certs / "triton.log", secure=certs) as server:
        yield server


@pytest.fixture(scope="module")
def trusted(guarded: Server, certs: Path) -> Connection:
    """What a caller with a certificate and the token has."""
    url, files = f"grpcs://{guarded.addresses.grpc}", (certs / "client.pem", certs / "client.key")
    return Connection(url, certs / "ca.pem", TOKEN, certificate_file=files[0], key_file=files[1])


def failure(connection: Connection) -> ClickBertError:
    with Ranker(connection, timeout=PATIENCE) as ranker, pytest.raises(ClickBertError) as caught:
        ranker.rank("w1", ["w2"])
    return caught.value


def test_with_its_certificate_and_the_token_a_caller_is_served(trusted: Connection) -> None:
    with Ranker(trusted, timeout=PATIENCE) as ranker:
        assert len(ranker.rank("w1", ["w2", "w3"])) == 2


@pytest.mark.parametrize("token", [None, "an0ther"])
def test_a_wrong_token_and_none_are_authentication_errors(trusted: Connection, token: str | None) -> None:
    error = failure(replace_token(trusted, token))
    assert (type(error).__name__, error.is_retryable) == ("AuthenticationError", False)
    assert "triton-grpc-protocol-clickbert-token" in str(error)
    assert "an0ther" not in str(error) and TOKEN not in str(error)


def replace_token(connection: Connection, token: str | None) -> Connection:
    return Connection(
        connection.url,
        connection.ca_file,
        token,
        certificate_file=connection.certificate_file,
        key_file=connection.key_file,
    )


def test_without_a_certificate_the_error_says_that_one_may_be_wanted(trusted: Connection) -> None:
    error = failure(Connection(trusted.url, trusted.ca_file, TOKEN))
    assert isinstance(error, ConnectionFailedError)
    assert "certificate_file" in str(error)


def test_another_authoritys_certificate_is_no_better(trusted: Connection, tmp_path: Path) -> None:
    key, certificate = Authority(tmp_path / "other").issue()
    error = failure(Connection(trusted.url, trusted.ca_file, TOKEN, certificate_file=certificate, key_file=key))
    assert isinstance(error, ConnectionFailedError)
    assert "certificate_file" in str(error)


def test_a_server_that_is_not_trusted_is_not_asked_again(trusted: Connection, tmp_path: Path) -> None:
    error = failure(Connection(trusted.url, Authority(tmp_path / "other").file, TOKEN))
    assert isinstance(error, ConnectionFailedError) and not error.is_retryable
    assert "not trusted" in str(error)
