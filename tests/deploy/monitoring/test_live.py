"""What rules and dashboard ask for is there: two Tritons, the gateway and a caller, watched by a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from tritonclient.grpc import service_pb2

from clickbert import AuthenticationError, Ranker
from clickbert.telemetry.monitor import Monitor
from deploy.monitoring.page import main as draw_page
from release.names import ONNX_MODEL
from serving.addresses import free_ports
from serving.server import Server, open_directly
from tests.deploy.monitoring.chromium import photograph
from tests.deploy.monitoring.metrics import asked_for, scraped
from tests.deploy.monitoring.test_rules import RULES, expressions, panels
from tests.gateways import WITH_TOKEN, Gateway, gateway, make_secrets
from tests.published import serve
from tests.waiting import eventually

LONG = 600  # seconds, on a machine that is busy otherwise
QUERY = "w1 w2 unbekannt " * 60  # longer than the model reads
DOCUMENTS = [f"w{number} w{number + 1}" for number in range(12)]
pytestmark = pytest.mark.deploy


class Watched:
    """What runs, and by which port Prometheus finds what it scrapes."""

    def __init__(self, servers: tuple[Server, Server], guarded: Gateway, caller: str) -> None:
        self.guarded = guarded
        self.pages = {f"{server.addresses.host}:{server.addresses.metrics_port}": "/metrics" for server in servers}
        self.jobs = {"triton": list(self.pages), "gateway": [f"127.0.0.1:{guarded.admin_port}"], "caller": [caller]}
        self.pages |= {f"127.0.0.1:{guarded.admin_port}": "/stats/prometheus", caller: "/metrics"}

    def scrape(self) -> set[str]:
        """The metrics that all of them have together."""
        found = set()
        for target, path in self.pages.items():
            with open_directly(f"http://{target}{path}") as page:
                found |= scraped(page.read().decode())
        return found


@pytest.fixture(scope="module")
def watched(published_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    make_secrets(folder)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(serve(published_repository, log=folder / f"{name}.log")) for name in ("first", "second")
        )
        guarded = stack.enter_context(gateway(folder, [server.addresses.grpc for server in (first, second)]))
        registry = CollectorRegistry()
        http, thread = start_http_server(0, "127.0.0.1", registry)
        stack.callback(thread.join)
        stack.callback(http.shutdown)
        stack.enter_context(asking(guarded, registry))
        yield Watched((first, second), guarded, f"127.0.0.1:{http.server_port}")


@contextmanager
def asking(guarded: Gateway, registry: CollectorRegistry) -> Iterator[None]:
    """Callers ask meanwhile: for a ranking, with a wrong token, of no model, and nonsense with and without one."""
    ending = threading.Event()

    def ask() -> None:
        observers = [Monitor(registry)]
        with (
            Ranker(guarded.connection(), observers=observers, timeout=60) as ranker,
            Ranker(guarded.connection("wrong"), timeout=60) as stranger,
        ):
            while not ending.is_set():
                ranker.rank(QUERY, DOCUMENTS)
                with pytest.raises(AuthenticationError):
                    stranger.rank(QUERY, DOCUMENTS)
                for name, headers, status in (
                    (ONNX_MODEL, WITH_TOKEN, "INVALID_ARGUMENT"),
                    ("no_such_model", WITH_TOKEN, "NOT_FOUND"),
                    (ONNX_MODEL, (), "UNAUTHENTICATED"),
                ):
                    with pytest.raises(grpc.RpcError, match=status):
                        nonsense = service_pb2.ModelInferRequest(model_name=name)
                        guarded.stub().ModelInfer(nonsense, timeout=60, metadata=headers)
                ending.wait(0.2)

    failed: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    assert not failed, failed


def test_every_metric_that_is_asked_for_is_scraped(watched: Watched) -> None:
    asked = set().union(*map(asked_for, expressions())) - {"up"}  # Prometheus' own
    assert len(asked) > 20
    missing: set[str] = set()

    def is_complete() -> bool:
        missing.clear()
        missing.update(asked - watched.scrape())
        return not missing

    with contextlib.suppress(AssertionError):  # the names say more
        eventually(is_complete, LONG)
    assert not missing


@pytest.fixture(scope="module")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one that scrapes them every two seconds, with the rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed, so the dashboard is not drawn (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    config: dict[str, Any] = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": job,
                "metrics_path": watched.pages[targets[0]],
                "static_configs": [{"targets": targets}],
            }
            for job, targets in watched.jobs.items()
        ],
    }
    (folder / "prometheus.json").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML, too
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or answers(f"http://{address}/-/ready"), LONG)
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        with open_directly(url):
            return True
    except OSError:
        return False


def api(prometheus: str, path: str) -> Any:
    with open_directly(f"{prometheus}/api/v1/{path}") as answer:
        return json.load(answer)["data"]


def active(prometheus: str) -> set[str]:
    """The alerts that fire, or will if it lasts."""
    return {alert["labels"]["alertname"] for alert in api(prometheus, "alerts")["alerts"]}


def figure(prometheus: str, name: str) -> float:
    """A recorded one without labels; 0 if there is none yet."""
    found = api(prometheus, f"query?query={name}")["result"]
    return float(found[0]["value"][1]) if found else 0.0


@pytest.fixture(scope="module")
def page(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dashboard's page, with figures in each panel."""
    page = tmp_path_factory.mktemp("page") / "page.html"

    def is_drawn() -> bool:
        assert draw_page(["--prometheus", prometheus, "--minutes", "5", "--output", str(page)]) == 0
        text = page.read_text(encoding="utf-8")
        assert text.count("<svg") == len(panels())
        return "no data" not in text

    eventually(is_drawn, LONG)
    return page


@pytest.mark.usefixtures("page")  # by then, all have been asked
def test_every_panel_has_figures_and_every_rule_works(prometheus: str) -> None:
    rules = [rule for group in api(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}


def test_a_browser_shows_the_page(page: Path) -> None:
    assert photograph(page) == []


def test_alerts_see_what_the_caller_sends(prometheus: str) -> None:
    eventually(
        lambda: active(prometheus) >= {"ScoreDrift", "TruncationShare"}, LONG
    )  # always the same texts, which are too long
    eventually(lambda: figure(prometheus, "clickbert:rankings:rate5m") > 0.1, LONG)  # else ErrorRatio is silent anyway
    assert figure(prometheus, "clickbert:answered:rate5m") > 0
    silent = {"ErrorRatio", "NoSuccess", "NoHealthyServer", "NoTargets", "MixedVersions"}
    assert not active(prometheus) & silent  # all is answered as it must be


def test_wrong_tokens_hide_no_failure(watched: Watched, prometheus: str) -> None:
    large = service_pb2.ModelInferRequest(model_name=ONNX_MODEL, raw_input_contents=[bytes(2 << 20)])

    def is_seen() -> bool:
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            watched.guarded.stub().ModelInfer(large, timeout=60, metadata=WITH_TOKEN)
        return "ErrorRatio" in active(prometheus)

    eventually(is_seen, LONG)  # with as many wrong tokens as rankings, or more
