"""The image cpu-slim, built and run as an operator would: hardened, ready, right, and drained without losing a call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from clickbert import Ranker
from serving.server import LOOPBACK, Addresses
from tests.deploy.container.engine import Engine, why_not
from tests.figures import Figures
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.published import publish
from tests.reliability.gateway.callers import logits, requests

REASON = why_not()
pytestmark = [pytest.mark.deploy, pytest.mark.skipif(bool(REASON), reason=REASON)]

PART = "container"
IMAGE = "clickbert-serving:cpu-slim"
NAME = "clickbert"
CALLERS = 16
MEMORY = 1 << 30  # bytes
CORES = 2
# What a cluster's policy for hardened pods asks for. /tmp is the one place that the server writes and executes in.
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:exec,size=64m"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--memory", str(MEMORY), "--cpus", str(CORES), "--pids-limit", "512", "--ulimit", "nofile=1024:1024"),
    *("--ulimit", "nproc=1000:1000", "--stop-timeout", "45", "--network", "host"),
)
COMPILERS = ("gcc", "cc", "c++", "g++", "clang", "ld", "make", "pip", "pip3")
# Triton's answers to a call that it does not take. Nothing was computed.
REFUSALS = (
    *("has no available versions", "is not at ready state", "Server not ready"),
    "has stopped accepting new inference requests",
)
# Looks at the container from inside. There is no other program in it that could.
LOOK = """
import json, os, pathlib
def read(*paths):
    return next((pathlib.Path(path).read_text().split() for path in paths if os.path.exists(path)), [])
def writes(folder):
    try:
        with open(folder + "/probe", "w"):
            return True
    except OSError:
        return False
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
print(json.dumps({
    "process": pathlib.Path("/proc/1/cmdline").read_text().split(chr(0))[:3],
    "user": status["Uid"].split()[0],
    "capabilities": [status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "writable": [folder for folder in ("/", "/app", "/etc", "/models", "/var/tmp", "/tmp") if writes(folder)],
    "memory": read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "cpu": read("/sys/fs/cgroup/cpu.max")
    or read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") + read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
}))
"""


@dataclass(frozen=True)
class Container:
    """A running one."""

    engine: Engine
    addresses: Addresses
    seconds_to_ready: float

    def execute(self, *words: str) -> str:
        return self.engine.podman("exec", NAME, *words)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="module")
def build_seconds(engine: Engine) -> dict[str, float]:
    """The image is built; how long its parts took."""
    start = time.monotonic()
    engine.make_debian()
    made = time.monotonic()
    engine.build("cpu-slim", IMAGE)
    return {"Debian's image": made - start, "cpu-slim": time.monotonic() - made}


@pytest.fixture(scope="module")
def repository(published_checkpoint: Path, published_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("published") / "repository"
    publish(published_checkpoint, repository, published_log)
    return repository


@pytest.fixture
def container(engine: Engine, build_seconds: dict[str, float], repository: Path) -> Iterator[Container]:
    """One that is ready. Each test has its own."""
    addresses = Addresses.free()
    ports = ["--grpc-port", str(addresses.grpc_port), "--metrics-port", str(addresses.metrics_port)]
    options = [*HARDENED, "--detach", "--name", NAME, "--volume", f"{repository}:/models:ro"]
    start = time.monotonic()
    engine.podman("run", *options, IMAGE, "--address", LOOPBACK, *ports)
    health = ["exec", NAME, "python3", "-m", "serving", "--health", *ports[:2]]
    try:
        while not is_healthy(engine, health):
            state = engine.podman("inspect", "--format", "{{.State.Status}}", NAME).strip()
            assert state == "running" and time.monotonic() < start + 600, engine.logs(NAME)
            time.sleep(0.1)
        yield Container(engine, addresses, time.monotonic() - start)
    finally:
        engine.podman("rm", "--force", "--time", "0", NAME)


def is_healthy(engine: Engine, words: list[str]) -> bool:
    """Whether the image's own health check says so."""
    try:
        engine.podman(*words)
    except AssertionError:
        return False
    return True


def test_the_image_holds_what_serves_and_no_more(
    engine: Engine, build_seconds: dict[str, float], figures: Figures
) -> None:
    (image,) = json.loads(engine.podman("image", "inspect", IMAGE))
    for part, seconds in build_seconds.items():
        figures.only_told(PART, f"to build {part}", seconds, "s")
    figures.only_told(PART, "size of the image cpu-slim", image["Size"] / 1e6, "MB")
    assert image["Config"]["User"] == "10001"
    assert image["Config"]["StopSignal"] == "SIGTERM"
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "serving", "--health"]
    names = {variable.partition("=")[0] for variable in image["Config"]["Env"]}
    assert names == {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    tree = Path(engine.podman("image", "mount", IMAGE).strip())
    try:
        assert {path.name for path in (tree / "app").iterdir()} == {".venv", "deploy", "release", "serving"}
        folders = [tree / folder for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "app/.venv/bin")]
        assert [name for folder in folders for name in COMPILERS if (folder / name).exists()] == []
        assert not list(tree.glob("app/.venv/lib/python*/site-packages/pip"))
        keys = [path for pattern in ("*.key", "id_*", ".netrc", "pip.conf") for path in tree.glob(f"**/{pattern}")]
        assert [
            path for path in keys if path.is_file() and path.stat().st_size and "site-packages" not in str(path)
        ] == []
    finally:
        engine.podman("image", "unmount", IMAGE)


def test_it_runs_hardened_fetches_and_ranks_as_pytorch_does(
    container: Container, published_checkpoint: Path, figures: Figures
) -> None:
    figures.only_told(PART, "from podman run to ready", container.seconds_to_ready, "s")
    seen = json.loads(container.execute("python3", "-c", LOOK))
    assert seen["process"] == ["python3", "-m", "serving"], "the server is process 1, not a shell"
    assert seen["user"] == "10001"
    assert {int(each, 16) for each in seen["capabilities"]} == {0}
    assert seen["no_new_privileges"] == "1"
    assert seen["writable"] == ["/tmp"]
    assert seen["memory"] == [str(MEMORY)]
    quota, period = map(int, seen["cpu"])
    assert quota == CORES * period

    # What every pod begins with in a cluster.
    container.execute("python3", "-m", "deploy", "fetch", "/models", "/tmp/fetched")
    container.execute("python3", "-c", "import shutil; shutil.rmtree('/tmp/fetched')")
    container.execute("python3", "-c", "import obstore")  # a bucket needs it

    documents = [f"w{number} w{number * 7 % 150}" for number in range(40)]
    expected = in_pytorch(published_checkpoint, as_rows([("w1 w2", document) for document in documents]))
    with Ranker(container.addresses.grpc, timeout=PATIENCE) as ranker:
        ranking = ranker.rank("w1 w2", documents)
    assert sorted(item.index for item in ranking) == list(range(40))
    difference = max(abs(item.score - expected[item.index]) for item in ranking)
    figures.at_most(PART, "largest difference of a score from PyTorch's", float(difference), 1e-5)


def test_it_answers_what_it_accepted_before_it_ends(container: Container, figures: Figures) -> None:
    """Callers without retries. Each goes on until the server refuses it, as one that has another server would."""
    messages = requests()
    with grpc.insecure_channel(container.addresses.grpc) as channel:
        first = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        expected = [logits(first.ModelInfer(message, timeout=PATIENCE)) for message in messages]
    answered: list[tuple[float, bool]] = []  # when, and whether it was right

    def ask_until_refused(caller: int) -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(container.addresses.grpc, options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for number in range(caller, 1_000_000):
                which = number % len(messages)
                try:
                    answer = stub.ModelInfer(messages[which], timeout=PATIENCE)
                except grpc.RpcError as exc:
                    return f"{exc.code().name}: {exc.details()}"
                right = bool(np.allclose(logits(answer), expected[which], atol=1e-5))
                answered.append((time.monotonic(), right))
        return "it was never refused"

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(ask_until_refused, caller * 7) for caller in range(CALLERS)]
        while len(answered) < 10 * CALLERS and not any(caller.done() for caller in callers):
            time.sleep(0.05)
        before = len(answered)
        stopped = time.monotonic()
        container.engine.podman("stop", NAME)
        figures.only_told(PART, "from podman stop to the end", time.monotonic() - stopped, "s")
        ends = [caller.result() for caller in callers]
    code = container.engine.podman("inspect", "--format", "{{.State.ExitCode}}", NAME).strip()
    log = container.engine.logs(NAME)
    figures.only_told(PART, "calls answered before podman stop, of 16 callers at once", before)
    figures.only_told(PART, "calls answered after it", len(answered) - before)
    print("how the callers ended:", *sorted(set(ends)), sep="\n")
    figures.exactly(PART, "callers that ended otherwise than by a refusal", sum(not is_refusal(end) for end in ends), 0)
    figures.exactly(PART, "answers that were wrong", len([right for _, right in answered if not right]), 0)
    assert before >= 10 * CALLERS, ends
    assert len(answered) > before, "there was load when it was stopped"
    assert code == "0", log
    assert "ended on SIGTERM" in log


def is_refusal(error: str) -> bool:
    """Whether the server did not take the call."""
    return any(words in error for words in REFUSALS)
