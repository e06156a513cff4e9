"""Releases on two real Tritons behind a real Envoy: each is promoted or rolled back, and no caller sees a failed call.

Callers rank without a pause, by the client. Each now and then begins anew, so that it meets versions that it does not
know, in the middle of the canary.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clickbert import Ranker
from clickbert.telemetry.observer import Call
from deploy.canary.gateways import Gateways, Split, ask_json
from release.manifest import read_manifest, write_manifest
from serving.server import Server
from tests.deploy.canary.slow import slowed
from tests.figures import Figures
from tests.gateways import Gateway, gateway, make_secrets
from tests.integration.scores import PATIENCE
from tests.published import load_newest, publish, serve
from tests.tiny import SPECIAL, WORDS, make_checkpoint
from tests.waiting import eventually

pytestmark = pytest.mark.deploy

MODEL = "clickbert_onnx"
THREADS, RANKINGS = 4, 60  # callers, and how many rankings one makes before it begins anew
LIMITS = ["--least-calls=20", "--step-seconds=6", "--patience=900", "--p99=8"]
DELAY = 1.5  # seconds: a slow release's. With more, the copies in flight reach the gateway's limit, which are errors


class Callers:
    """Threads that rank through a gateway without a pause, and what came of it."""

    def __init__(self, guarded: Gateway) -> None:
        self.guarded = guarded
        self.calls: list[Call] = []
        self.errors: list[str] = []
        self.stopping = threading.Event()

    @contextmanager
    def observe(self, call: Call) -> Iterator[None]:
        yield
        self.calls.append(call)

    def headers(self) -> dict[str, str]:
        return {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(THREADS) as pool:
            asking = [pool.submit(self.ask, number) for number in range(THREADS)]
            try:
                yield
            finally:
                self.stopping.set()
        for each in asking:
            each.result()

    def ask(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopping.is_set():
            with Ranker(self.guarded.connection(), timeout=PATIENCE, observers=[self]) as ranker:
                for _ in range(RANKINGS):
                    if self.stopping.is_set():
                        return
                    texts = [" ".join(chance.choices(WORDS[:100], k=4)) for _ in range(9)]
                    try:
                        ranker.rank(texts[0], texts[1:])
                    except Exception as exc:  # each is a failed call
                        self.errors.append(f"{type(exc).__name__}: {exc}")

    def versions(self) -> Counter[str]:
        return Counter(call.version for call in self.calls)


@pytest.fixture(scope="module")
def former(published_checkpoint: Path, published_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stable server's repository: version 1."""
    repository = tmp_path_factory.mktemp("former") / "repository"
    publish(published_checkpoint, repository, published_log)
    return repository


@pytest.fixture(scope="module")
def good(
    former: Path, published_checkpoint: Path, published_log: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """With version 2: the same weights, with a tokenizer that cuts texts elsewhere, so that clients must fetch it."""
    folder = tmp_path_factory.mktemp("good")
    checkpoint = shutil.copytree(published_checkpoint, folder / "checkpoint")
    settings = checkpoint / "tokenizer_config.json"
    changed = json.loads(settings.read_text(encoding="utf-8")) | {"model_max_length": 40}
    settings.write_text(json.dumps(changed), encoding="utf-8")
    repository = shutil.copytree(former, folder / "repository")
    publish(checkpoint, repository, published_log)
    return repository


@pytest.fixture
def drifting(former: Path, published_log: Path, tmp_path: Path) -> Path:
    """With version 2: other random weights, whose head leans to clicks."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=7)
    repository = shutil.copytree(former, tmp_path / "drifting")
    publish(checkpoint, repository, published_log)
    return repository


@pytest.fixture
def erring(good: Path, tmp_path: Path) -> Path:
    """With version 2: a graph with a broken row in its embeddings, by which the server refuses to rank.

    It says INVALID_ARGUMENT then, as if it was the caller's mistake.
    """
    repository = shutil.copytree(good, tmp_path / "erring")
    version = repository / MODEL / "2"
    graph = onnx.load(version / "model.onnx")
    (weight,) = (each for each in graph.graph.initializer if each.name.endswith("word_embeddings.weight"))
    rows = numpy_helper.to_array(weight).copy()
    rows[len(SPECIAL) + WORDS.index("w7")] = np.nan
    weight.CopyFrom(numpy_helper.from_array(rows, weight.name))
    onnx.save(graph, version / "model.onnx")
    write_manifest(version, read_manifest(version))
    return repository


class Stage:
    """Both servers, the gateway in front of them, and the canary command."""

    def __init__(self, stable: Server, canary: Server, guarded: Gateway) -> None:
        self.stable, self.canary, self.guarded = stable, canary, guarded
        self.callers = Callers(guarded)
        self.gateways = Gateways([("127.0.0.1", guarded.admin_port)])

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "deploy", "canary", f"--admin=127.0.0.1:{self.guarded.admin_port}"]
        command += [f"--stable-metrics={urlsplit(self.stable.addresses.metrics).netloc}"]
        command += [f"--canary-metrics={urlsplit(self.canary.addresses.metrics).netloc}", *LIMITS]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, afterwards: Callable[[], None] = lambda: None) -> tuple[int, dict[str, str]]:
        """The command, and what the operator does then, amid calls. Returns its exit code, and its last line."""
        with self.callers.at_work():
            eventually(lambda: len(self.callers.calls) >= 20, 300)
            with self.start() as process:
                out, err = process.communicate(timeout=3000)
            print(out, err)
            afterwards()
            time.sleep(2)  # callers go on for a while
        return process.returncode, json.loads(out.splitlines()[-1])


@contextmanager
def stage(former: Path, release: Path, folder: Path, delay: float = 0.0) -> Iterator[Stage]:
    make_secrets(folder)
    with serve(former, log=folder / "stable.log") as stable, serve(release, log=folder / "canary.log") as canary:
        with slowed(canary.addresses.grpc, delay) if delay else nullcontext(canary.addresses.grpc) as address:
            with gateway(folder, [stable.addresses.grpc], f"--canary={address}") as guarded:
                eventually(lambda: guarded.count("cluster.canary.membership_healthy") == 1, 180)
                yield Stage(stable, canary, guarded)


def judge(staged: Stage, figures: Figures, case: str, *, met: bool) -> None:
    """What holds for all: no failed call; and whether the new version met callers."""
    callers = staged.callers
    figures.only_told("canary", f"{case}: calls", len(callers.calls))
    figures.only_told("canary", f"{case}: requests that the client sent again", sum(c.retries for c in callers.calls))
    figures.exactly("canary", f"{case}: failed calls", len(callers.errors), 0)
    # The client sends some again, which would hide them. NOT_FOUND is a version that has come or gone: it begins anew.
    answers = Counter(str(each["status"]) for each in staged.guarded.calls())
    figures.only_told("canary", f"{case}: requests for a version that was not there", answers["NOT_FOUND"])
    failed = answers.total() - answers["OK"] - answers["NOT_FOUND"]
    figures.exactly("canary", f"{case}: requests that failed at the gateway", failed, 0)
    if met:
        figures.at_least("canary", f"{case}: calls that the new version answered", callers.versions()["2"], 1)
    else:
        figures.exactly("canary", f"{case}: calls that the new version answered", callers.versions()["2"], 0)


def is_all_stable(staged: Stage) -> bool:
    entries = ask_json(staged.gateways.admin[0], "/runtime?format=json")["entries"]
    return all(entries[key]["final_value"] == value for key, value in Split().keys().items())


def test_a_good_one_is_promoted(former: Path, good: Path, tmp_path: Path, figures: Figures) -> None:
    """And the operator brings it to the stable server, which then gets the calls back."""
    repository = shutil.copytree(former, tmp_path / "stable")

    def bring_to_stable() -> None:
        staged.gateways.check(Split(weight=100))
        for model in (MODEL, "clickbert_tokenizer"):
            shutil.copytree(good / model / "2", repository / model / "2")
        load_newest(staged.stable)
        assert staged.gateways.back() == []

    with stage(repository, good, tmp_path) as staged:
        code, last = staged.run(bring_to_stable)
        assert (code, last["outcome"]) == (0, "promoted")
        assert is_all_stable(staged)
        assert {call.version for call in staged.callers.calls[-20:]} == {"2"}
        judge(staged, figures, "good", met=True)


@pytest.mark.parametrize("case, reason", [("drifting", "drift"), ("erring", "refused")])
def test_one_that_errs_or_drifts_meets_no_caller(
    former: Path, tmp_path: Path, figures: Figures, request: pytest.FixtureRequest, case: str, reason: str
) -> None:
    with stage(former, request.getfixturevalue(case), tmp_path) as staged:
        code, last = staged.run()
        assert (code, last["outcome"]) == (1, "rolled back")
        assert last["reason"].startswith("shadow 100 %")
        assert reason in last["reason"].rpartition(": ")[2], last
        assert is_all_stable(staged)
        judge(staged, figures, case, met=False)


def test_a_slow_one_meets_no_caller(former: Path, good: Path, tmp_path: Path, figures: Figures) -> None:
    with stage(former, good, tmp_path, DELAY) as staged:
        code, last = staged.run()
        assert (code, last["outcome"]) == (1, "rolled back")
        assert last["reason"].startswith("shadow 100 %")
        assert "p99" in last["reason"].rpartition(": ")[2], last
        assert is_all_stable(staged)
        judge(staged, figures, "slow", met=False)


def test_one_that_dies_amid_the_steps_fails_no_call(former: Path, good: Path, tmp_path: Path, figures: Figures) -> None:
    with stage(former, good, tmp_path) as staged, staged.callers.at_work():
        eventually(lambda: len(staged.callers.calls) >= 20, 300)
        with staged.start() as process:
            assert process.stdout
            lines = list(itertools.takewhile(lambda line: not line.startswith("canary: shadow"), process.stdout))
            assert not lines, "the shadow is the first step, and was good"
            deadline = time.monotonic() + 600
            while not staged.callers.versions()["2"]:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            staged.canary.kill()
            out, err = process.communicate(timeout=300)
        time.sleep(2)
        print(out, err)
        assert process.returncode == 1
        # Whatever is seen first: its metrics are gone, its health check fails, or its calls do.
        assert any(each in err for each in ("cannot be read", "no healthy canary server", "of the canary, beyond"))
        assert is_all_stable(staged)
    judge(staged, figures, "killed", met=True)
