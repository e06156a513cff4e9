"""The gateway lets nobody in who should not be, says which it is, and takes no request that is too large."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from clickbert import AuthenticationError, Connection, ConnectionFailedError, ProtocolError, Ranker
from clickbert.wire.transport import GrpcTransport
from serving.server import Server
from tests.client.certificates import Authority
from tests.client.fakes import rank_once
from tests.figures import Figures
from tests.gateways import WITH_TOKEN, Gateway, gateway, make_secrets
from tests.integration.scores import PATIENCE

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OPEN = {"ServerLive", "ServerReady", "ModelReady"}
CALLERS = {"ModelInfer", "ModelMetadata", "ModelConfig", "ServerMetadata"}
NOBODYS = sorted({method.name for method in SERVICE.methods} - OPEN - CALLERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusals")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return make_secrets(folder)


@pytest.fixture(scope="module")
def guarded(folder: Path, authority: Authority, published_server: Server) -> Iterator[Gateway]:
    with gateway(folder, [published_server.addresses.grpc]) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(folder: Path, authority: Authority, published_server: Server) -> Iterator[Gateway]:
    """One that wants to see its callers' certificates."""
    own = folder / "mutual"
    own.mkdir()
    shutil.copytree(folder / "secrets", own / "secrets")
    shutil.copy(authority.file, own / "secrets" / "ca.pem")
    shutil.copytree(folder / "ours", own / "ours")
    with gateway(own, [published_server.addresses.grpc]) as running:
        yield running


def statuses(guarded: Gateway, methods: set[str] | list[str], *headers: tuple[str, str]) -> list[str]:
    """What each method answers."""
    with guarded.channel() as channel:
        return [status_of(channel, f"/inference.GRPCInferenceService/{each}", headers) for each in sorted(methods)]


def status_of(channel: grpc.Channel, method: str, headers: tuple[tuple[str, str], ...] = ()) -> str:
    try:
        channel.unary_unary(method)(b"", timeout=PATIENCE, metadata=headers)
        return "OK"
    except grpc.RpcError as exc:
        return exc.code().name


def test_who_may_call_what_is_told_apart(guarded: Gateway, figures: Figures) -> None:
    assert {"RepositoryModelLoad", "SystemSharedMemoryRegister", "TraceSetting", "LogSettings"} < set(NOBODYS)
    wrong = ("authorization", "Bearer wr0ng-t0ken")
    everything = [*CALLERS, *NOBODYS]
    refusals = [
        ("calls without a token that are UNAUTHENTICATED", statuses(guarded, everything), "UNAUTHENTICATED"),
        ("calls with a wrong token, the same", statuses(guarded, everything, wrong), "UNAUTHENTICATED"),
        (
            "a caller's admin calls that are PERMISSION_DENIED",
            statuses(guarded, NOBODYS, *WITH_TOKEN),
            "PERMISSION_DENIED",
        ),
    ]
    for what, seen, expected in refusals:
        figures.exactly(23, f"at the gateway: {what}", seen.count(expected), len(seen))
    allowed = statuses(guarded, CALLERS, *WITH_TOKEN) + statuses(guarded, OPEN)
    assert not {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE"} & set(allowed), allowed
    with guarded.channel() as channel:
        assert status_of(channel, "/grpc.health.v1.Health/Check") == "OK"


@pytest.mark.parametrize("token", [None, "wr0ng-t0ken"])
@pytest.mark.parametrize("blocking", [True, False])
def test_the_client_says_that_it_is_the_token(guarded: Gateway, token: str | None, blocking: bool) -> None:
    with pytest.raises(AuthenticationError, match="CLICKBERT_TOKEN") as caught:
        rank_once(guarded.connection(token), blocking, timeout=PATIENCE)
    assert "wr0ng" not in str(caught.value)


def test_who_has_no_certificate_or_another_is_refused(
    guarded: Gateway, mutual: Gateway, authority: Authority, tmp_path: Path, figures: Figures
) -> None:
    other = Authority(tmp_path / "other")
    own_key, own = (file.read_bytes() for file in authority.issue())

    def of(key: Path, certificate: Path) -> dict[str, bytes]:
        return {"private_key": key.read_bytes(), "certificate_chain": certificate.read_bytes()}

    def asked(running: Gateway, **credentials: bytes) -> str:
        with running.channel(**credentials) as channel:
            return status_of(channel, "/inference.GRPCInferenceService/ServerMetadata", WITH_TOKEN)

    def plainly() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{guarded.port}", [("grpc.enable_http_proxy", 0)]) as channel:
            return status_of(channel, "/inference.GRPCInferenceService/ServerLive")

    assert asked(guarded) == "OK"
    assert asked(mutual, private_key=own_key, certificate_chain=own) == "OK"
    before = reached(guarded) + reached(mutual)
    refused = {
        "plaintext": plainly(),
        "another authority trusted by the caller": asked(guarded, root_certificates=other.file.read_bytes()),
        "no client certificate": asked(mutual),
        "a client certificate of another authority": asked(mutual, **of(*other.issue())),
        "an expired client certificate": asked(mutual, **of(*authority.issue(days=-1))),
    }
    refusals = [what for what, status in refused.items() if status == "UNAVAILABLE"]
    assert refusals == list(refused)
    figures.exactly(22, "at the gateway: connections refused", len(refusals), len(refused))
    figures.exactly(
        22, "at the gateway: their calls that reached a server", reached(guarded) + reached(mutual) - before, 0
    )


def reached(running: Gateway) -> int:
    """Calls that went on to a server, health checks aside."""
    return running.count("cluster.triton.upstream_rq_total")


@pytest.mark.parametrize(
    "connect, message",
    [
        (lambda gateway: gateway.url.removeprefix("grpcs://"), "if it wants TLS, write grpcs://"),
        (lambda gateway: gateway.url, "certificate is not trusted"),
    ],
    ids=["plaintext", "not trusted"],
)
def test_the_client_says_what_does_not_fit(guarded: Gateway, connect: Callable[[Gateway], str], message: str) -> None:
    with pytest.raises(ConnectionFailedError, match=message):
        rank_once(Connection(connect(guarded)), True, timeout=PATIENCE)


def test_a_request_that_is_too_large_is_refused_and_the_next_one_answered(
    guarded: Gateway, published_server: Server, figures: Figures
) -> None:
    before = reached(guarded)
    transport = GrpcTransport(guarded.connection())
    refused = 0
    for megabytes in (2, 8, 64):
        message = service_pb2.ModelInferRequest(model_name="clickbert_onnx")
        message.raw_input_contents.append(bytes(megabytes * 2**20))
        with pytest.raises(ProtocolError, match="larger than"):
            transport.send(message, PATIENCE)
        refused += 1
    figures.exactly(12, "at the gateway: requests of 2, 8 and 64 MB refused", refused, 3)
    figures.exactly(12, "at the gateway: requests of them that reached a server", reached(guarded) - before, 0)
    largest = service_pb2.ModelInferRequest(model_name="clickbert_onnx")
    largest.raw_input_contents.append(bytes(1_000_000))
    with pytest.raises(ProtocolError, match="expected 3 inputs"):  # the server's own answer
        transport.send(largest, PATIENCE)
    transport.close()
    with Ranker(guarded.connection(), timeout=PATIENCE) as ranker:
        assert len(ranker.rank("w1", ["w2", "w3"])) == 2
