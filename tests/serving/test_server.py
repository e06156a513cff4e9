"""`python -m serving`: how it starts, answers and ends a real tritonserver, and what it finds it with."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

import serving.checks
import serving.triton
from release.manifest import read_manifest, write_manifest
from serving.__main__ import main
from serving.server import Addresses, Server, why_not_ready
from serving.triton import ServingError, find_triton
from tests.processes import children, paused
from tests.published import serve
from tests.serving.command import PROXIES, Command
from tests.serving.small_models import value, write_model
from tests.waiting import eventually


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's servers keep their files."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "clickbert"


@pytest.fixture(scope="module")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that is slow enough to be caught computing: a chain of matrix products."""
    folder = tmp_path_factory.mktemp("slow") / "repository"
    write_model(
        folder,
        "slow",
        [helper.make_node("MatMul", [f"x{step}", "x0"], [f"x{step + 1}"]) for step in range(12)],
        [value("x0", TensorProto.FLOAT, "n", "n")],
        [value("x12", TensorProto.FLOAT, "n", "n")],
        """max_batch_size: 0 input { name: "x0" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        output { name: "x12" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }""",
    )
    return folder


def processes_of(state: Path) -> list[str]:
    """Command lines of processes that name the state folder: tritonserver and its backends' processes."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(state) in line and not line.startswith("ps ")]


def left_of_servers(state: Path) -> list:
    """Processes, folders and shared memory of the servers that had their files there."""
    folders = list(state.iterdir())
    regions = [path for folder in folders for path in Path("/dev/shm").glob(f"{folder.name}-*")]
    return [*processes_of(state), *folders, *regions]


def test_it_serves_prints_the_addresses_passes_flags_on_and_leaves_nothing_behind(
    small_repository: Path, state: Path, tmp_path: Path
) -> None:
    with Command(small_repository, tmp_path, "--", "--log-verbose=1") as command:
        addresses = command.addresses
        assert command.printed == [
            "serving: small ready\n",
            f"serving: gRPC {addresses.grpc}  metrics {addresses.metrics}\n",
        ]
        (folder,) = state.iterdir()
        regions = f"{folder.name}-*"
        assert processes_of(state)
        assert list(Path("/dev/shm").glob(regions))
        assert command.end(signal.SIGINT) == 0
        assert not left_of_servers(state)
        assert not list(Path("/dev/shm").glob(regions))
        log = command.log_file.read_text()
        assert "TRITONBACKEND" in log, "it is verbose"
        assert "ended on SIGINT" in log


def test_sigterm_lets_triton_answer_what_it_accepted_and_take_no_more(
    slow_repository: Path, state: Path, tmp_path: Path
) -> None:
    with Command(slow_repository, tmp_path, "--", "--log-verbose=1") as command, ThreadPoolExecutor(1) as pool:
        client, computing = triton.InferenceServerClient(command.addresses.grpc), children(command.triton())
        size = 1200  # the product of matrices full of 1 / size is such a matrix again
        array = np.full((size, size), 1 / size, dtype=np.float32)
        tensor = triton.InferInput("x0", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        answer = pool.submit(client.infer, "slow", [tensor])
        eventually(lambda: "executing 1 requests" in command.log_file.read_text())
        with paused(computing):
            command.process.send_signal(signal.SIGTERM)
            eventually(lambda: "Waiting for in-flight requests" in command.log_file.read_text())
            # Whatever a load balancer asks, it learns at once that the server takes no more.
            eventually(lambda: why_not_ready(command.addresses) is not None)
            with pytest.raises(InferenceServerException, match="Server exiting"):
                client.is_server_ready()
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.infer("slow", [tensor])
            assert not answer.done()
        assert np.allclose(answer.result(60).as_numpy("x12"), array, rtol=1e-3)
        assert command.process.wait(timeout=60) == 0
        assert not left_of_servers(state)


def test_a_closed_terminal_ends_it_as_ctrl_c_does(small_repository: Path, state: Path, tmp_path: Path) -> None:
    with Command(small_repository, tmp_path) as command:
        assert command.end(signal.SIGHUP) == 0
        assert not left_of_servers(state)


def test_a_second_signal_ends_it_at_once(small_repository: Path, state: Path, tmp_path: Path) -> None:
    with Command(small_repository, tmp_path) as command:
        os.kill(command.process.pid, signal.SIGTERM)
        eventually(lambda: "Waiting for in-flight requests" in command.log_file.read_text())
        while command.process.poll() is None:  # further ones, whenever they come, change nothing more
            command.process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert command.process.returncode == 1, "it did not drain"
        assert "All models are unloaded" not in command.log_file.read_text()
        assert not left_of_servers(state)


def test_a_server_that_crashes_comes_back_but_not_again_and_again(
    small_repository: Path, state: Path, tmp_path: Path
) -> None:
    """And it comes back with what was published meanwhile, but for what is damaged of that."""
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    with Command(repository, tmp_path) as command:
        other = shutil.copytree(repository / "small", repository / "other")
        (other / "config.pbtxt").write_text((other / "config.pbtxt").read_text().replace("small", "other"))
        damaged = shutil.copytree(repository / "small" / "1", repository / "small" / "2")
        (damaged / "model.onnx").write_bytes(b"half a copy")
        os.kill(command.triton(), signal.SIGSEGV)
        assert command.process.stdout
        assert command.process.stdout.readline() == "serving: other, small ready\n"  # a second time
        log = command.log_file.read_text()
        assert "tritonserver died of SIGSEGV" in log
        assert "small version 2 is refused: " in log and f"It lies in {damaged.with_name('withdrawn.2')}; " in log
        os.kill(command.triton(), signal.SIGSEGV)  # soon after the last time
        assert command.process.wait(timeout=30) == 1
        assert "not started again" in command.log_file.read_text()
        assert not left_of_servers(state)


def test_a_server_that_crashes_comes_back_without_what_triton_refuses(
    small_repository: Path, state: Path, tmp_path: Path
) -> None:
    """What came last goes first: of the others, `load` may have loaded some, which serve."""
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    with Command(repository, tmp_path) as command:
        sound = shutil.copytree(repository / "small" / "1", repository / "small" / "2")
        other = shutil.copytree(repository / "small", repository / "other", ignore=shutil.ignore_patterns("2"))
        (other / "config.pbtxt").write_text((other / "config.pbtxt").read_text().replace("small", "other"))
        (other / "1" / "model.onnx").write_bytes(b"no graph")
        write_manifest(other / "1", read_manifest(other / "1"))
        os.kill(command.triton(), signal.SIGSEGV)
        assert command.process.stdout
        line = command.process.stdout.readline()
        assert line == "serving: small ready\n"
        assert sound.is_dir() and (other / "withdrawn.1").is_dir()
        log = command.log_file.read_text()
        assert "before it was ready" in log and "other version 1 is the last that came since the server ran" in log
        assert command.end(signal.SIGTERM) == 0
        assert not left_of_servers(state)


def test_versions_that_were_not_the_reason_come_back(small_repository: Path, state: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    with Command(repository, tmp_path) as command:
        for version in ("2", "3"):
            shutil.copytree(repository / "small" / "1", repository / "small" / version)
        config = repository / "small" / "config.pbtxt"  # of all versions
        config.write_text(f'{config.read_text()} parameters {{ key: "chunk_by" value {{ string_value: "no input" }} }}')
        os.kill(command.triton(), signal.SIGSEGV)
        assert command.process.wait(timeout=180) == 1
        log = command.log_file.read_text()
        assert log.count("is the last that came since the server ran") == 2
        assert log.count("was not the reason: it is back") == 2
    assert {path.name for path in (repository / "small").iterdir() if path.is_dir()} == {"1", "2", "3"}


@pytest.mark.parametrize("end", [KeyboardInterrupt, ServingError("the port is taken")])
def test_a_version_that_ended_triton_stays_withdrawn_whatever_ends_the_next_try(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    repository = shutil.copytree(small_repository, tmp_path / "repository")
    shutil.copytree(repository / "small" / "1", repository / "small" / "2")
    server = Server(repository, Addresses.free())
    server.ready_since, server.loaded = 1.0, {"small": ["1"]}
    ended = Mock(poll=Mock(return_value=1))

    def start() -> None:
        if not (repository / "small" / "2").exists():
            raise end
        server.loaded, server.process = {"small": ["2"]}, ended

    monkeypatch.setattr(server, "start", start)
    monkeypatch.setattr(server, "wait_until_ready", Mock(side_effect=ServingError("tritonserver ended")))
    monkeypatch.setattr(server, "kill", Mock())
    with pytest.raises(type(end) if isinstance(end, Exception) else end), server:
        pass
    assert (repository / "small" / "withdrawn.2").is_dir()


def test_a_signal_in_a_drain_that_hangs_is_not_lost(small_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(small_repository, Addresses.free())
    server.process = Mock(wait=Mock(side_effect=[KeyboardInterrupt, subprocess.TimeoutExpired("triton", 1), 0]))
    killed = Mock()
    monkeypatch.setattr(os, "killpg", killed)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert killed.called


def test_a_killed_server_is_tidied_up_by_the_next_start_but_not_before_triton_is_gone(
    small_repository: Path, state: Path, tmp_path: Path
) -> None:
    with Command(small_repository, tmp_path) as command:
        orphan = command.triton()
        (folder,) = state.iterdir()
        command.end(signal.SIGKILL)
    try:
        with serve(small_repository, log=tmp_path / "second"):
            assert (folder / "backends").is_dir(), "Triton still uses it"
    finally:
        os.killpg(orphan, signal.SIGKILL)
    eventually(lambda: not any(folder.name in line for line in processes_of(state)))
    with serve(small_repository, log=tmp_path / "third"):
        assert not folder.exists()
    assert not list(Path("/dev/shm").glob(f"{folder.name}-*"))


@pytest.mark.parametrize("name", ["two words;$(exit)'\"&", "-naïve\n"])
def test_any_path_of_a_repository_is_served(small_repository: Path, tmp_path: Path, name: str, monkeypatch) -> None:
    (tmp_path / name).mkdir()
    shutil.copytree(small_repository, tmp_path / name / "-repository")
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    with (tmp_path / "log").open("wb") as log:
        server = Server(Path("-repository"), Addresses.free(), log=log)
        monkeypatch.chdir("/")
        with server:
            assert server.models == ["small"]
            server.kill()


def health(addresses: Addresses, *more: str) -> tuple[int, list[str]]:
    """What a container's health check finds, in a container with proxies."""
    words = [sys.executable, "-m", "serving", "--health", f"--grpc-port={addresses.grpc_port}", *more]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | PROXIES | {"no_proxy": ""}
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_the_health_check_finds_a_ready_server_whatever_proxies_there_are(
    small_repository: Path, state: Path, tmp_path: Path
) -> None:
    with serve(small_repository, log=tmp_path / "log") as server:
        ready = f"serving: {server.addresses.grpc} is ready"
        assert health(server.addresses) == (0, [ready, "serving: small 1 READY"])
        assert health(server.addresses, "--model=small") == (0, [ready, "serving: small 1 READY"])
        code, (line,) = health(server.addresses, "--model=small", "--model=unpublished")
        assert code == 1 and "unpublished" in line, "the server itself is ready"
        (token,) = state.glob("*/admin-token-*")
        assert token.stat().st_mode & 0o777 == 0o600
        token.write_text("another")
        assert health(server.addresses) == (0, [ready]), "what it serves is for who has the admin token"
        code, (line,) = health(Addresses(grpc_port=server.addresses.metrics_port))
        assert code == 1, "that is not gRPC"
        assert line.startswith(f"serving: 127.0.0.1:{server.addresses.metrics_port} is not ready: ")
    assert not token.exists()


def test_the_health_check_says_why_a_server_is_not_ready() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code, (line,) = health(Addresses(grpc_port=silent.getsockname()[1]))
        assert code == 1
        assert "Deadline Exceeded" in line
    code, (line,) = health(Addresses.free())
    assert code == 1
    assert "Connection refused" in line


def test_missing_libraries_are_found_by_the_loader(tmp_path: Path) -> None:
    if not find_triton().is_wheel:
        pytest.skip("the wheel's stub is the example")
    stub = find_triton().stub
    assert stub
    moved = tmp_path / "stub"  # away from its neighbours, and without the search path that leads to them
    moved.write_bytes(stub.read_bytes())
    assert any("libcudart" in name for name in serving.triton.missing_libraries(moved, dict(os.environ)))
    assert serving.triton.missing_libraries(moved, serving.triton.environment(find_triton(), True)) == []


def test_no_stub_for_this_python_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.triton, "PYTHON", "3.99")
    with pytest.raises(ServingError, match=r"no Python stub for 3\.99 \(it has .*3\.11, 3\.12"):
        find_triton()


def test_a_tritonserver_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("bin/tritonserver", "backends/onnxruntime/libtriton_onnxruntime.so"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    found = find_triton()
    assert (found.binary, found.backends) == (tmp_path / "bin" / "tritonserver", tmp_path / "backends")
    assert found.has_onnxruntime
    assert not found.has_python
    assert not found.is_wheel


def test_a_tritonserver_that_may_not_be_executed_is_named(small_repository: Path, state: Path, tmp_path: Path) -> None:
    server = Server(small_repository, Addresses.free())
    (tmp_path / "tritonserver").touch(mode=0o644)
    server.triton = replace(server.triton, binary=tmp_path / "tritonserver")
    with pytest.raises(ServingError, match=r"tritonserver cannot be executed \(Permission denied\)"), server:
        pass
    assert not list(state.iterdir())


def test_check_says_what_can_run(capsys) -> None:
    assert main(["--check"]) == 0
    assert "can run here" in capsys.readouterr().out
