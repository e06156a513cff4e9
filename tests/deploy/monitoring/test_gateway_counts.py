"""What the rules take for granted of Envoy's counters: which calls are among those that came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
import pytest
from tritonclient.grpc import service_pb2

from deploy.gateway.run import ask
from serving.addresses import free_ports
from tests.deploy.upstream import Upstream, upstream
from tests.gateways import WITH_TOKEN, Gateway, gateway, make_secrets

CALLS = 4
WRONG_TOKEN = (("authorization", "Bearer wrong"),)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway whose canary is down, and the server."""
    folder = tmp_path_factory.mktemp("gateway")
    make_secrets(folder)
    canary = f"--canary=127.0.0.1:{free_ports(1)[0]}"
    with upstream() as (server, address), gateway(folder, [address], canary) as running:
        yield running, server


def counted(running: Gateway, name: str, cluster: str = "triton") -> int:
    return running.count(f"cluster.{cluster}.grpc.inference.GRPCInferenceService.ModelInfer.{name}")


def fail(running: Gateway, headers: Sequence[tuple[str, str]], size: int = 8) -> str:
    """Sends the calls, and returns the status that all of them end with."""
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
    found = set()
    for _ in range(CALLS):
        with pytest.raises(grpc.RpcError) as caught:
            running.stub().ModelInfer(request, timeout=60, metadata=headers)
        found.add(caught.value.code().name)
    (status,) = found
    return status


@pytest.mark.parametrize("headers", [(), WRONG_TOKEN])
@pytest.mark.parametrize("size", [8, 600_000])
def test_without_a_valid_token_none_came_in(
    behind: tuple[Gateway, Upstream], headers: Sequence[tuple[str, str]], size: int
) -> None:
    running, _ = behind
    before = counted(running, "request_message_count"), counted(running, "16")
    assert fail(running, headers, size) == "UNAUTHENTICATED"
    assert (counted(running, "request_message_count"), counted(running, "16")) == (before[0], before[1] + CALLS)


@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND])
def test_what_a_server_refuses_came_in(behind: tuple[Gateway, Upstream], status: grpc.StatusCode) -> None:
    running, server = behind
    server.reset()
    server.refusal = (status, "Request for unknown model: 'm' is not found")
    before = counted(running, "request_message_count")
    assert fail(running, WITH_TOKEN) == status.name
    assert counted(running, "request_message_count") == before + CALLS
    assert counted(running, str(status.value[0])) == CALLS


def test_what_is_too_large_came_in(behind: tuple[Gateway, Upstream]) -> None:
    running, _ = behind
    before = counted(running, "request_message_count")
    assert fail(running, WITH_TOKEN, 2 << 20) == "RESOURCE_EXHAUSTED"
    assert (counted(running, "request_message_count"), counted(running, "8")) == (before + CALLS, CALLS)


def test_calls_for_a_canary_are_counted_though_it_is_down(behind: tuple[Gateway, Upstream]) -> None:
    running, server = behind
    server.reset()
    ask("POST", "/runtime_modify?canary.weights.triton=0&canary.weights.canary_first=100", running.admin_port)
    running.stub().ModelInfer(service_pb2.ModelInferRequest(), timeout=60, metadata=WITH_TOKEN)
    assert counted(running, "request_message_count", "canary_first") == 1
    assert running.count("cluster.canary.membership_healthy") == 0
