"""`python -m serving`: what it checks before the start, and how it starts and ends a real tritonserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper

import serving.checks
import serving.triton
from serving.__main__ import main
from serving.server import Addresses, Server
from serving.triton import PYTHON, ServingError, find_triton
from tests.serving.test_stand_in import value, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model that is slow enough to be caught computing: a chain of matrix products."""
    nodes = [helper.make_node("MatMul", [f"x{step}", "x0"], [f"x{step + 1}"]) for step in range(12)]
    write_model(
        tmp_path / "repository",
        "slow",
        nodes,
        [value("x0", TensorProto.FLOAT, "n", "n")],
        [value("x12", TensorProto.FLOAT, "n", "n")],
        """max_batch_size: 0 input { name: "x0" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        output { name: "x12" data_type: TYPE_FP32 dims: [ -1, -1 ] }
        parameters { key: "intra_op_thread_count" value { string_value: "1" } }""",
    )
    unpublished = tmp_path / "repository" / "unpublished"
    unpublished.mkdir()
    (unpublished / "config.pbtxt").write_text('name: "unpublished" backend: "tensorrt"')
    return tmp_path / "repository"


def options(repository: Path, addresses: Addresses) -> list[str]:
    return [
        f"--repository={repository}",
        f"--http-port={addresses.http_port}",
        f"--grpc-port={addresses.grpc_port}",
        f"--metrics-port={addresses.metrics_port}",
    ]


def processes_of(repository: Path) -> list[str]:
    """Command lines of processes that name the repository: tritonserver and its backends' stubs."""
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(repository) in line and not line.startswith("ps ")]


def shared_memory_of(command: Command) -> list[Path]:
    return list(Path("/dev/shm").glob(f"clickbert-{command.process.pid}-*"))


# Undoes what nohup or a shell's background job, should the tests run in one, would hand on: ignored signals. (Not by
# preexec_fn: with it Python forks, and gRPC, which other tests of this process use, may abort the child.)
LISTENING = ("env", "--default-signal=HUP,INT,TERM")


class Command:
    """`python -m serving` in a process of its own, started and ready."""

    def __init__(self, repository: Path, addresses: Addresses, *more: str) -> None:
        self.log = (repository.parent / "log").open("w+")
        command = [*LISTENING, sys.executable, "-m", "serving", *options(repository, addresses), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout
        self.said = [self.process.stdout.readline() for _ in range(2)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A test that failed half-way leaves no server behind either: the second signal ends it at once."""
        for _ in range(2):
            self.process.terminate()
            time.sleep(0.2)
        self.process.wait(timeout=30)
        self.log.close()


def read_metrics(addresses: Addresses) -> bytes:
    """Triton opens this port last, a moment after its models are ready."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(addresses.metrics) as metrics:
                return bytes(metrics.read())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_it_serves_prints_the_addresses_passes_flags_on_and_leaves_nothing_behind(repository: Path) -> None:
    addresses = Addresses.free()
    with Command(repository, addresses, "--", "--log-verbose=1") as command:
        assert command.said == [
            "serving: slow ready\n",
            f"serving: gRPC {addresses.grpc}  HTTP {addresses.http}  metrics {addresses.metrics}\n",
        ]
        assert b"nv_inference_request_success" in read_metrics(addresses)
        assert processes_of(repository)
        assert shared_memory_of(command)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(timeout=60) == 0
        assert not processes_of(repository)
        log = (repository.parent / "log").read_text()
        assert "log_verbose" in log or "TRITONBACKEND" in log
        assert "ended on SIGINT" in log
        assert not shared_memory_of(command)


def test_sigterm_lets_triton_answer_what_it_accepted(repository: Path) -> None:
    addresses = Addresses.free()
    with Command(repository, addresses) as command:
        size = 2600  # some seconds of work; the product of matrices full of 1 / size is such a matrix again
        array = np.full((size, size), 1 / size, dtype=np.float32)
        answers: list = []

        def ask() -> None:
            tensor = triton.InferInput("x0", list(array.shape), "FP32")
            tensor.set_data_from_numpy(array)
            answers.append(triton.InferenceServerClient(addresses.grpc).infer("slow", [tensor]).as_numpy("x12"))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(1)
        assert not answers  # still computing
        command.process.send_signal(signal.SIGTERM)
        asking.join(timeout=60)
        assert command.process.wait(timeout=60) == 0
        assert np.allclose(answers[0], array, rtol=1e-3)
        assert not processes_of(repository)


def test_a_closed_terminal_ends_it(repository: Path) -> None:
    with Command(repository, Addresses.free()) as command:
        command.process.send_signal(signal.SIGHUP)
        assert command.process.wait(timeout=60) == 0
        assert not processes_of(repository)


def test_a_second_signal_ends_it_at_once(repository: Path) -> None:
    with Command(repository, Addresses.free()) as command:
        stubs = processes_of(repository)
        assert stubs
        os.kill(command.process.pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(command.process.pid, signal.SIGTERM)
        command.process.wait(timeout=20)
        assert not processes_of(repository)


def test_a_server_that_dies_is_reported(repository: Path) -> None:
    with Command(repository, Addresses.free()) as command:
        triton_process = subprocess.run(
            ["pgrep", "-P", str(command.process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(triton_process[0]), signal.SIGKILL)
        assert command.process.wait(timeout=30) != 0
        assert "ended by itself with code -9" in (repository.parent / "log").read_text()
        assert not processes_of(repository)
        assert not shared_memory_of(command)


@pytest.mark.parametrize("flag", ["--http-port=1", "--model-repository=x", "--load-model=y"])
def test_flags_that_have_an_option_of_their_own_are_refused(repository: Path, flag: str, capsys) -> None:
    assert main([*options(repository, Addresses.free()), "--", flag]) == 1
    assert f"{flag.split('=', maxsplit=1)[0]} cannot be passed on" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "70000", "-1", "x"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--grpc-port={port}"])


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_taken_port_is_named_before_the_start(repository: Path, option: str, capsys) -> None:
    addresses = Addresses.free()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([*options(repository, addresses), f"{option}={port}"]) == 1
    assert f"port {port} on 127.0.0.1 is taken" in capsys.readouterr().err


def test_an_address_of_another_machine_is_refused(repository: Path, capsys) -> None:
    assert main([*options(repository, Addresses.free()), "--address=192.0.2.1"]) == 1
    assert "cannot listen on 192.0.2.1" in capsys.readouterr().err


def test_equal_ports_are_refused(repository: Path, capsys) -> None:
    assert main([f"--repository={repository}", "--http-port=9000", "--grpc-port=9000"]) == 1
    assert "ports must differ" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_repository_without_published_models_says_what_to_do(tmp_path: Path, folder: str, capsys) -> None:
    assert main([f"--repository={tmp_path / folder}"]) == 1
    assert "publish one with `python -m export`" in capsys.readouterr().err


def test_a_python_model_is_refused_where_numpy_2_would_empty_its_tensors(repository: Path) -> None:
    if not find_triton().is_wheel or np.__version__.startswith("1."):
        pytest.skip("only the wheel's Triton with numpy 2 has this fault")
    (repository / "slow" / "config.pbtxt").write_text('# a comment\nname: "slow" backend: "python"')
    with pytest.raises(ServingError, match=r"slow is a Python model.*'numpy<2'"):
        Server(repository, Addresses.free())


def test_a_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(serving.checks, "missing_libraries", lambda *_: [f"libpython{PYTHON}.so.1.0"])
    assert main(["--check"]) == 1
    assert f"apt-get install libpython{PYTHON}" in capsys.readouterr().err


def test_missing_libraries_are_found_by_the_loader(tmp_path: Path) -> None:
    if not find_triton().is_wheel:
        pytest.skip("the wheel's stub is the example")
    stub = find_triton().stub
    assert stub
    moved = tmp_path / "stub"  # away from its neighbours, and without the search path that leads to them
    moved.write_bytes(stub.read_bytes())
    assert any("libcudart" in name for name in serving.triton.missing_libraries(moved, dict(os.environ)))
    assert serving.triton.missing_libraries(moved, serving.triton.environment(find_triton())) == []


def test_no_stub_for_this_python_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.triton, "PYTHON", "3.99")
    with pytest.raises(ServingError, match=r"no Python stub for 3\.99 \(it has .*3\.11, 3\.12"):
        find_triton()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    find_spec = serving.checks.importlib.util.find_spec
    monkeypatch.setattr(
        serving.checks.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    assert main(["--check"]) == 1
    assert "the stand-in backend needs onnxruntime" in capsys.readouterr().err


def test_a_tritonserver_on_path_with_its_own_backend_is_preferred(tmp_path: Path, monkeypatch) -> None:
    for file in ("bin/tritonserver", "backends/onnxruntime/libtriton_onnxruntime.so"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    triton = find_triton()
    assert triton.binary == tmp_path / "bin" / "tritonserver"
    assert triton.has_onnxruntime
    assert not triton.is_wheel
    assert serving.triton.lay_out_backends(triton, tmp_path / "links") == tmp_path / "backends"


def test_check_says_what_can_run(capsys) -> None:
    assert main(["--check"]) == 0
    assert "can run here" in capsys.readouterr().out
