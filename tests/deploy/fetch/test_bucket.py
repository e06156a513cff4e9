"""A repository is fetched from a bucket, over a real connection that may break: whole and verified, or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from deploy.fetch.run import main
from serving.addresses import free_ports
from tests.deploy.fetch.conftest import FAULTS, MODEL, content, expected, names
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy
BUCKET = "models"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's server, which speaks as S3 does."""
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
            line.sendall(
                f"PUT /{BUCKET} HTTP/1.1\r\nHost: s3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            assert b" 200 " in line.recv(4096).partition(b"\r\n")[0]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    for name, value in [("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "repository"


def upload(repository: Path, prefix: str, store: str) -> str:
    """Puts it into the bucket, under a prefix of its own; returns the address."""
    import obstore
    from obstore.store import S3Store

    opened = S3Store.from_url(f"s3://{BUCKET}/{prefix}", endpoint=store, client_options={"allow_http": True})
    for name, data in content(repository).items():
        obstore.put(opened, name, data)
    return f"s3://{BUCKET}/{prefix}"


def test_it_is_fetched_whole(repository: Path, there: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = upload(repository, "clickbert/whole", store)
    upload(repository, "clickbert/whole-2", store)  # begins alike, and is another one
    assert main([source, str(there)]) == 0
    assert content(there) == expected(repository, source) and names(there.parent) == ["repository"]
    assert f"whole: {MODEL} 3, clickbert_tokenizer 3" in capsys.readouterr().out


def test_marks_of_folders_are_no_files(repository: Path, there: Path, store: str) -> None:
    """The console's "Create folder" and some tools make them: empty objects whose names end in a slash."""
    source = upload(repository, "marked/whole", store)
    for folder in ("marked", "marked/whole", f"marked/whole/{MODEL}", f"marked/whole/{MODEL}/9"):
        request = urllib.request.Request(f"{store}/{BUCKET}/{folder}/", method="PUT", data=b"")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    assert main([source, str(there)]) == 0
    assert content(there) == expected(repository, source)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_named_and_nothing_is_left(
    repository: Path, there: Path, store: str, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    damage, message = FAULTS[fault]
    damage(repository)
    source = upload(repository, fault.replace(" ", "-"), store)
    assert main([source, str(there)]) == 1
    said = capsys.readouterr().err
    assert f"{source} is refused: " in said and message in said and not names(there.parent)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"s3://{BUCKET}/nothing", "holds no published click model"),
        ("s3://no-bucket/prefix", "s3://no-bucket/prefix cannot be listed"),
    ],
)
def test_an_address_without_a_repository_is_refused(
    there: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    assert main([source, str(there)]) == 1
    assert message in capsys.readouterr().err and not names(there.parent)


class Line:
    """A line to the store that breaks, or goes silent, after some bytes of an answer.

    Args:
        limit: bytes of a connection; each of the first `faults` that carries more is at fault there.
        silent: it goes silent there, and does not break.
    """

    def __init__(self, store: str, limit: int, faults: int, silent: bool) -> None:
        self.target, self.limit, self.faults, self.silent = int(store.rpartition(":")[2]), limit, faults, silent
        self.happened = threading.Event()
        self.ending = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self.forward, args=(caller, server, False), daemon=True).start()
                threading.Thread(target=self.forward, args=(server, caller, True), daemon=True).start()

    def forward(self, come: socket.socket, go: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError), come, go:
            while data := come.recv(1 << 16):
                passed += len(data)
                if answers and passed > self.limit and self.faults > 0:
                    self.faults -= 1
                    self.happened.set()
                    if self.silent:
                        self.ending.wait(120)
                    return
                go.sendall(data)


@contextmanager
def line(store: str, limit: int = 1_000_000, faults: int = 1, silent: bool = False) -> Iterator[Line]:
    """One that is open inside the block."""
    opened = Line(store, limit, faults, silent)
    threading.Thread(target=opened.accept, daemon=True).start()
    try:
        yield opened
    finally:
        opened.ending.set()
        opened.listener.close()


def test_a_connection_that_breaks_is_taken_up_again(
    repository: Path, there: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = upload(repository, "breaks-once", store)
    with line(store) as broken:
        monkeypatch.setenv("AWS_ENDPOINT_URL", broken.address)
        assert main([source, str(there)]) == 0
        assert broken.happened.is_set()
    assert content(there) == expected(repository, source)


def test_one_that_breaks_every_time_is_an_error_that_names_the_file(
    repository: Path, there: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = upload(repository, "breaks-always", store)
    with line(store, limit=60_000, faults=10_000) as broken:
        monkeypatch.setenv("AWS_ENDPOINT_URL", broken.address)
        assert main([source, str(there)]) == 1
    assert f"{source}/{MODEL}/3/model.onnx cannot be read" in capsys.readouterr().err and not names(there.parent)


def test_a_pod_that_is_taken_away_meanwhile_leaves_nothing(repository: Path, there: Path, store: str) -> None:
    source = upload(repository, "silent", store)
    with line(store, silent=True) as silent:
        words = [sys.executable, "-m", "deploy", "fetch", source, str(there)]
        process = subprocess.Popen(words, env=os.environ | {"AWS_ENDPOINT_URL": silent.address}, stderr=subprocess.PIPE)
        try:
            assert silent.happened.wait(timeout=120)
            assert names(there.parent) == ["repository.staging"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 130
    assert not names(there.parent)
