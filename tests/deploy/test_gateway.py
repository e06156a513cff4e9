"""A real Envoy with the policy of deploy/gateway: who may call what, and what becomes of a call on its way."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from clickbert import Ranker
from clickbert.wire.protocol import CALL_HEADER
from serving.addresses import free_ports
from serving.server import Server
from tests.client.certificates import Authority
from tests.client.fakes import rank_once
from tests.deploy.upstream import Upstream, upstream
from tests.gateways import TOKEN, WITH_TOKEN, Gateway, gateway, is_ended, make_secrets, needs_envoy, renew
from tests.integration.scores import PATIENCE
from tests.published import as_admin, serve, serve_with_tls
from tests.waiting import eventually

RETRIED = [
    (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'clickbert_onnx' has no available versions"),
    (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'clickbert_onnx' version 1 is not at ready state"),
    (grpc.StatusCode.UNAVAILABLE, "Server not ready"),
]
FINAL = [
    (grpc.StatusCode.UNAVAILABLE, "[request id: 7] Exceeds maximum queue size"),
    (grpc.StatusCode.UNAVAILABLE, "overloaded: the answer would take 12.3 s"),
    (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
    (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'clickbert_onnx' is not found"),
    (grpc.StatusCode.INTERNAL, "malformed request"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return make_secrets(folder)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[tuple[Upstream, str]]]:
    with upstream() as first, upstream() as second:
        yield [first, second]


@pytest.fixture(scope="module")
def running(folder: Path, authority: Authority, upstreams: list[tuple[Upstream, str]]) -> Iterator[Gateway]:
    with gateway(folder, [address for _, address in upstreams]) as running:
        yield running


@pytest.fixture
def servers(upstreams: list[tuple[Upstream, str]]) -> list[Upstream]:
    for server, _ in upstreams:
        server.reset()
    return [server for server, _ in upstreams]


def arrived(servers: list[Upstream]) -> list[int]:
    return [len(server.arrivals) for server in servers]


def ask(running: Gateway, *headers: tuple[str, str], timeout: float = PATIENCE) -> None:
    with running.channel() as channel:
        ask_over(channel, *headers, timeout=timeout)


def ask_over(channel: grpc.Channel, *headers: tuple[str, str], timeout: float = PATIENCE) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    assert call(b"", timeout=timeout, metadata=(*WITH_TOKEN, *headers)) == b""


def test_a_ranking_is_that_of_the_server(published_repository: Path, published_server: Server, tmp_path: Path) -> None:
    make_secrets(tmp_path)
    with serve(published_repository, log=tmp_path / "triton.log") as second:
        addresses = [server.addresses.grpc for server in (published_server, second)]
        with gateway(tmp_path, addresses) as running:
            for blocking in (True, False):
                direct = rank_once(addresses[0], blocking, timeout=PATIENCE)
                through = rank_once(running.connection(), blocking, timeout=PATIENCE)
                assert [item.index for item in through] == [item.index for item in direct]
                assert [item.score for item in through] == pytest.approx([item.score for item in direct], abs=1e-5)


def test_calls_of_one_connection_go_to_both_servers(running: Gateway, servers: list[Upstream]) -> None:
    with running.channel() as channel:
        for _ in range(40):
            ask_over(channel)
    assert sum(arrived(servers)) == 40 and min(arrived(servers)) >= 5


def test_a_server_that_is_busy_gets_fewer(running: Gateway, servers: list[Upstream]) -> None:
    servers[0].silent = True
    with running.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answers = []  # gRPC gives up a call that nobody holds
        for number in range(60):
            answers.append(call.future(b"", timeout=PATIENCE, metadata=WITH_TOKEN))
            eventually(lambda number=number: sum(arrived(servers)) == number + 1)
    few, many = arrived(servers)  # a quarter goes to the busy one: of two picks at random, the less busy is taken
    assert few < many


@pytest.mark.parametrize("refusal", RETRIED, ids=[message[-20:] for _, message in RETRIED])
def test_what_a_draining_server_refuses_another_one_answers(
    running: Gateway, servers: list[Upstream], refusal: tuple[grpc.StatusCode, str]
) -> None:
    servers[0].refusal = refusal
    for _ in range(20):
        ask(running)
    assert arrived(servers)[0] >= 1 and arrived(servers)[1] == 20
    assert running.healthy() == 2


@pytest.mark.parametrize("refusal", FINAL, ids=[message[-20:] for _, message in FINAL])
def test_overload_and_what_another_server_would_say_too_are_not_sent_again(
    running: Gateway, servers: list[Upstream], refusal: tuple[grpc.StatusCode, str]
) -> None:
    for server in servers:
        server.refusal = refusal
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            ask(running)
        assert (caught.value.code(), caught.value.details()) == refusal
    assert sum(arrived(servers)) == 20
    # Nor does it take a server out, which is busy, or was asked something wrong.
    assert running.count("cluster.triton.outlier_detection.ejections_active") == 0


def test_the_callers_deadline_goes_on_to_the_server(running: Gateway, servers: list[Upstream]) -> None:
    ask(running, timeout=7)
    (arrival,) = servers[0].arrivals + servers[1].arrivals
    assert 0 < arrival.left <= 7


def test_a_call_that_is_given_up_is_given_up_at_the_server(running: Gateway, servers: list[Upstream]) -> None:
    for server in servers:
        server.silent = True
    with pytest.raises(grpc.RpcError) as caught:
        ask(running, timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    (arrival,) = servers[0].arrivals + servers[1].arrivals
    assert arrival.given_up.wait(10)


def test_more_than_it_takes_is_refused_as_overload(running: Gateway, servers: list[Upstream]) -> None:
    retries = running.count("cluster.triton.upstream_rq_retry")
    for server in servers:
        server.silent = True
    with ExitStack() as stack:
        channels = [stack.enter_context(running.channel()) for _ in range(4)]
        method = "/inference.GRPCInferenceService/ModelInfer"
        calls = [
            channel.unary_unary(method).future(b"", timeout=PATIENCE, metadata=WITH_TOKEN)
            for channel in channels
            for _ in range(300)
        ]
        eventually(lambda: sum(call.done() for call in calls) == 1200 - 1024)
        refused = {(call.code(), call.details()) for call in calls if call.done()}
    assert refused == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "the gateway has as many requests in flight as it takes")}
    assert running.count("cluster.triton.upstream_rq_retry") == retries


def test_a_compressed_message_is_refused_since_its_size_is_not_known(running: Gateway, servers: list[Upstream]) -> None:
    with running.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            own = (*WITH_TOKEN, (CALL_HEADER, "4711"))  # calls that another test gave up may still arrive
            call(bytes(2**20), timeout=PATIENCE, metadata=own, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED and "no compressed" in caught.value.details()
    ask(running, ("grpc-accept-encoding", "gzip"), (CALL_HEADER, "4712"))
    numbers = [arrival.headers.get(CALL_HEADER) for server in servers for arrival in server.arrivals]
    assert "4712" in numbers and "4711" not in numbers


def test_an_answer_may_be_large(running: Gateway, servers: list[Upstream]) -> None:
    for server in servers:
        server.answer = bytes(16_000_000)  # a tokenizer of many languages has a few MB
    options = [("grpc.max_receive_message_length", -1)]
    with running.channel(options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert len(call(b"", timeout=PATIENCE, metadata=WITH_TOKEN)) == 16_000_000


def test_a_caller_cannot_say_what_is_the_gateways_to_say(running: Gateway, servers: list[Upstream]) -> None:
    forged = {
        "x-clickbert-caller": "somebody",
        "triton-grpc-protocol-clickbert-admin": "guess",
        "triton-grpc-protocol-clickbert-token": TOKEN,
        "x-envoy-retry-grpc-on": "unavailable",
        "x-envoy-max-retries": "9",
    }
    for server in servers:
        server.refusal = FINAL[0]
    with pytest.raises(grpc.RpcError):
        ask(running, *forged.items())
    (arrival,) = servers[0].arrivals + servers[1].arrivals  # and it was sent once
    assert arrival.headers.pop("x-clickbert-caller") == "web"
    assert not arrival.headers.keys() & (forged.keys() | {"authorization"})


def test_the_log_tells_callers_apart_and_shows_no_token(running: Gateway, servers: list[Upstream]) -> None:
    ask(running, ("x-canary", "c4nary-in-a-header"))
    with pytest.raises(grpc.RpcError):
        with running.channel() as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
                b"c4nary-in-a-body", metadata=(("authorization", "Bearer wr0ng-t0ken"),)
            )
    eventually(lambda: {"OK", "UNAUTHENTICATED"} <= {line["status"] for line in running.calls()})
    good = [line for line in running.calls() if line["status"] == "OK"][-1]
    assert (good["caller"], good["method"]) == ("web", "/inference.GRPCInferenceService/ModelInfer")
    assert good["triton"] and good["attempts"] == 1
    log = running.log.read_text(encoding="utf-8")
    for secret in (TOKEN, "an0ther-t0ken", "wr0ng-t0ken", "c4nary"):
        assert secret not in log


def test_new_tokens_count_without_a_restart(running: Gateway, servers: list[Upstream]) -> None:
    file = running.secrets / "tokens"
    former = file.read_text(encoding="utf-8")
    with running.channel() as channel:
        ask_over(channel)
        file.write_text("web n3w-t0ken\n", encoding="utf-8")
        eventually(lambda: is_refused(channel))
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert call(b"", timeout=PATIENCE, metadata=(("authorization", "Bearer n3w-t0ken"),)) == b""
        file.write_text("web\n", encoding="utf-8")  # nobody's: the former ones stay
        eventually(lambda: "tokens, line 1: expected NAME TOKEN" in running.log.read_text(encoding="utf-8"))
        assert call(b"", timeout=PATIENCE, metadata=(("authorization", "Bearer n3w-t0ken"),)) == b""
        file.write_text(former, encoding="utf-8")
        eventually(lambda: not is_refused(channel))


def is_refused(channel: grpc.Channel) -> bool:
    try:
        ask_over(channel)
        return False
    except grpc.RpcError as exc:
        assert exc.code() == grpc.StatusCode.UNAUTHENTICATED
        return True


def test_a_new_certificate_counts_without_a_restart(
    running: Gateway, servers: list[Upstream], authority: Authority
) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("localhost", running.port))

    former = shown()
    with running.channel() as channel:
        ask_over(channel)
        key = (running.secrets / "server.key").read_bytes()
        renew(authority, running.secrets)
        renewed = (running.secrets / "server.key").read_bytes()
        (running.secrets / "server.key").write_bytes(key)  # half of it: a certificate without its key is not taken
        eventually(lambda: "server.pem and server.key cannot be used" in running.log.read_text(encoding="utf-8"))
        assert shown() == former
        (running.secrets / "server.key").write_bytes(renewed)
        eventually(lambda: shown() != former)
        ask_over(channel)  # the connection from before goes on
    ask(running)


@needs_envoy
def test_it_runs_where_its_output_is_a_socket(folder: Path, authority: Authority) -> None:
    """As systemd gives one to a unit, for its journal."""
    ours, theirs = socket.socketpair()
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "deploy", "gateway", f"--secrets={folder / 'secrets'}"]
    command += [f"--listen=127.0.0.1:{port}", f"--admin-port={admin_port}"]

    def said_until(word: bytes) -> None:
        said = b""
        while word not in said:
            received = ours.recv(2**16)
            assert received, said.decode()
            said += received

    with ours, ExitStack() as stack:
        ours.settimeout(60)
        with upstream() as (_, address):
            process = subprocess.Popen([*command, f"--triton={address}"], stdout=theirs, stderr=theirs)
            stack.callback(lambda: eventually(lambda: is_ended(process), 180))
            theirs.close()
            said_until(b'"add_healthy_event"')
        said_until(b'"eject_unhealthy_event"')
        process.send_signal(signal.SIGTERM)
        said_until(b"gateway: ended on SIGTERM")


def test_it_drains_on_a_signal(folder: Path, authority: Authority) -> None:
    with upstream() as (server, address), gateway(folder, [address]) as running:
        server.silent = True
        trusted = ssl.create_default_context(cafile=str(authority.file))
        probe = f"https://localhost:{running.port}/healthz"
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        assert direct.open(probe).status == 200
        with running.channel() as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            answer = call.future(b"", timeout=PATIENCE, metadata=WITH_TOKEN)
            eventually(lambda: len(server.arrivals) == 1)
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(urllib.error.HTTPError, match="503"):
                while True:
                    direct.open(probe)
            with running.channel() as another:  # a load balancer that has not looked yet
                late = another.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
                    b"", timeout=PATIENCE, metadata=WITH_TOKEN
                )
                eventually(lambda: len(server.arrivals) == 2)
                time.sleep(1)
                server.silent = False
                server.ending.set()
                assert answer.result() == late.result() == b""
        assert running.process.wait(timeout=60) == 0


def test_a_server_is_in_while_it_serves_the_model(
    published_repository: Path, published_server: Server, tmp_path: Path
) -> None:
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    make_secrets(tmp_path)
    with serve(repository) as server:
        with gateway(tmp_path, [server.addresses.grpc, published_server.addresses.grpc]) as running:
            broken = shutil.copytree(repository / "clickbert_onnx" / "1", repository / "clickbert_onnx" / "2")
            (broken / "model.onnx").write_bytes(b"broken")
            control = triton.InferenceServerClient(server.addresses.grpc)
            with pytest.raises(InferenceServerException, match="load failed"):
                control.load_model("clickbert_onnx", headers=as_admin(server))
            checks = running.count("cluster.triton.health_check.attempt")
            eventually(lambda: running.count("cluster.triton.health_check.attempt") >= checks + 6)
            assert running.count("cluster.triton.health_check.failure") == 0 and running.healthy() == 2
            control.unload_model("clickbert_onnx", headers=as_admin(server))  # the server itself is well
            eventually(lambda: running.healthy() == 1)
            with Ranker(running.connection(), timeout=PATIENCE) as ranker:
                for _ in range(5):
                    assert len(ranker.rank("w1", ["w2", "w3"])) == 2
            shutil.rmtree(broken)
            control.load_model("clickbert_onnx", headers=as_admin(server))
            eventually(lambda: running.healthy() == 2)
            events = ('"eject_unhealthy_event"', '"add_healthy_event"')
            eventually(lambda: all(event in running.log.read_text(encoding="utf-8") for event in events))


def test_it_speaks_tls_with_servers_that_want_it(published_repository: Path, tmp_path: Path) -> None:
    authority = make_secrets(tmp_path)
    shutil.copy(authority.file, tmp_path / "secrets" / "triton-ca.pem")
    with serve_with_tls(published_repository, authority) as server:
        with gateway(tmp_path, [server.addresses.grpc]) as running:
            assert len(rank_once(running.connection(), True, timeout=PATIENCE)) == 2


@pytest.mark.parametrize("names, ours", [(None, True), ("DNS:elsewhere", True), (None, False)])
def test_it_trusts_no_server_with_another_certificate(tmp_path: Path, names: str | None, ours: bool) -> None:
    authority = make_secrets(tmp_path)
    key, certificate = authority.issue(names) if names else authority.issue()
    trusted = authority if ours else Authority(tmp_path / "other")
    shutil.copy(trusted.file, tmp_path / "secrets" / "triton-ca.pem")
    is_good = ours and names is None
    with upstream((key.read_bytes(), certificate.read_bytes())) as (server, address):
        with gateway(tmp_path, [address], healthy=int(is_good)) as running:
            if is_good:
                ask(running)
            else:
                with pytest.raises(grpc.RpcError, match="upstream connect error"):
                    ask(running)
    assert len(server.arrivals) == is_good


def test_it_gives_the_servers_the_token_that_they_want(folder: Path, authority: Authority) -> None:
    with upstream() as (server, address):
        (folder / "secrets" / "triton-token").write_text("tr1ton-t0ken\n", encoding="utf-8")
        try:
            with gateway(folder, [address]) as running:
                ask(running, ("triton-grpc-protocol-clickbert-token", TOKEN))
        finally:
            (folder / "secrets" / "triton-token").unlink()
    assert server.arrivals[0].headers["triton-grpc-protocol-clickbert-token"] == "tr1ton-t0ken"
    assert TOKEN not in str(server.arrivals[0].headers)
