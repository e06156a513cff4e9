"""Test 24: a word sent in texts is in no log, trace, metric or exception, however the call ends and whatever is logged.

The server is `python -m serving` at its most verbose, with traces of every request and its backend. The client
logs all that any library logs, and has spans and counters. What a call's frames hold is not looked at: whoever prints
local variables prints texts.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from benchmarks.load_gen.metrics import total
from clickbert import (
    ClickBertError,
    ConnectionFailedError,
    InvalidInputError,
    ModelNotFoundError,
    Ranker,
    ServerError,
    ServerTimeoutError,
)
from clickbert.masking import Masking
from clickbert.telemetry.counters import Counters
from clickbert.telemetry.spans import Spans
from serving.access import admin
from serving.server import open_directly
from tests.figures import Figures
from tests.processes import children, paused
from tests.serving.command import Command
from tests.waiting import eventually

pytestmark = pytest.mark.reliability

TEST = 24
CANARY = "kanarienvogel9z"
QUERY = f"w1 {CANARY} w2"
DOCUMENTS = [f"w{number} {CANARY}{number}" for number in range(100)]  # several requests
LONG = [f"w{number} {document} {CANARY} {CANARY} {CANARY}" for number in range(3) for document in DOCUMENTS]
MEGABYTE = 2**20


class Watched:
    """What the client and the server leave behind."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder  # the server's log and traces
        self.logged: list[str] = []
        self.spans, self.registry = InMemorySpanExporter(), CollectorRegistry()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.observers = [Spans(provider), Counters(self.registry)]
        self.exceptions: list[BaseException] = []
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        ids = tokenizer.encode(CANARY, add_special_tokens=False).ids
        assert len(ids) > 10
        self.tokens = re.compile(r"[\s,]+".join(map(str, ids)))

    def failed(self, expected: type[Exception], call: Callable[[], object]) -> str:
        """Has a call fail, and keeps its exception."""
        with pytest.raises(expected) as caught:
            call()
        self.exceptions.append(caught.value)
        return str(caught.value)

    def texts(self) -> dict[str, str]:
        """Everything, by where it was found."""
        found = {
            "the client's log": "\n".join(self.logged),
            "the client's spans": "\n".join(span.to_json() for span in self.spans.get_finished_spans()),
            "the client's counters": generate_latest(self.registry).decode(),
            "the exceptions": "\n".join(told for exc in self.exceptions for told in tell(exc)),
        }
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return found | {path.name: path.read_text(encoding="utf-8", errors="replace") for path in files}


def tell(exc: BaseException | None) -> Iterator[str]:
    """What an exception and those behind it say, also those that a traceback leaves out."""
    if exc is not None:
        yield from ("".join(traceback.format_exception(exc)), str(exc), repr(exc), repr(exc.args))
        if isinstance(exc, grpc.RpcError):
            yield str(exc.debug_error_string())  # type: ignore[attr-defined]
        yield from tell(exc.__cause__)
        yield from tell(exc.__context__)


@pytest.fixture
def watched(tmp_path: Path, published_checkpoint: Path) -> Iterator[Watched]:
    (tmp_path / "server").mkdir()
    watched = Watched(tmp_path / "server", published_checkpoint)
    handler = logging.Handler(logging.NOTSET)
    form = logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s")
    handler.emit = lambda record: watched.logged.append(form.format(record))  # type: ignore[method-assign]
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield watched
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
def command(watched: Watched, published_repository: Path, tmp_path: Path) -> Iterator[Command]:
    """The server. Its queue is short, and a request may wait as long as the configs in git say."""
    repository = shutil.copytree(published_repository, tmp_path / "repository")
    config = repository / "clickbert_onnx/config.pbtxt"
    text = config.read_text(encoding="utf-8")
    short = text.replace("max_queue_size: 512", "max_queue_size: 4").replace("max_batch_size: 16", "max_batch_size: 1")
    assert short != text
    config.write_text(short, encoding="utf-8")
    trace = (
        "triton,file=" + str(watched.folder / "trace.json"),
        "triton,log-frequency=1",
        "rate=1",
        "level=TIMESTAMPS",
    )
    flags = ("--log-verbose=9", *(f"--trace-config={each}" for each in trace))
    with Command(repository, watched.folder, "--", *flags) as command:
        yield command


@contextmanager
def held_cores(command: Command) -> Iterator[None]:
    """The backend begins no chunk within the block."""
    words = Path(f"/proc/{command.triton()}/cmdline").read_text(encoding="utf-8").split("\0")
    (backends,) = (word.partition("=")[2] for word in words if word.startswith("--backend-directory="))
    with ExitStack() as held:
        for file in Path(backends, "packed_cpu").glob("core*.busy"):
            fcntl.flock(held.enter_context(file.open("rb")), fcntl.LOCK_EX)
        yield


def call_in_every_way(command: Command, watched: Watched) -> None:
    """Calls that succeed, that the client refuses, that the server refuses, that are late, and that nobody answers."""
    url = command.addresses.grpc
    failed = watched.failed
    with Ranker(url, timeout=60, observers=watched.observers) as ranker:
        ranker.rank(QUERY, DOCUMENTS)
        ranker.score_pairs([(CANARY, CANARY), ("", CANARY)])
        ranker.rank(QUERY, [f"{CANARY} " * (MEGABYTE // 16)])  # far too long: cut

        # The client refuses.
        wrong = [
            lambda: ranker.rank(QUERY + "\udc80", DOCUMENTS),
            lambda: ranker.rank(QUERY, [CANARY + "\ud800"]),
            lambda: ranker.rank([CANARY], DOCUMENTS),
            lambda: ranker.rank(CANARY.encode(), DOCUMENTS),
            lambda: ranker.rank(QUERY, CANARY),
            lambda: ranker.rank(QUERY, {CANARY: CANARY}),
            lambda: ranker.rank(QUERY, [{CANARY: 1}]),
            lambda: ranker.rank(QUERY, DOCUMENTS * 11),
            lambda: ranker.rank(QUERY, DOCUMENTS, CANARY),
            lambda: ranker.rank(QUERY, DOCUMENTS, long_documents=CANARY),
            lambda: ranker.rank(QUERY, DOCUMENTS, long_documents="passages"),
            lambda: ranker.rank(QUERY, DOCUMENTS, timeout=CANARY),
            lambda: ranker.score_pairs([(CANARY,)]),
            lambda: ranker.score_pairs([CANARY]),
            lambda: ranker.classify([CANARY]),
            lambda: ranker.embed([CANARY]),
            lambda: ranker.similarity(CANARY, DOCUMENTS),
        ]
        for call in wrong:
            failed(InvalidInputError, call)  # type: ignore[arg-type]

        # Late, and refused because it would be.
        with held_cores(command), ThreadPoolExecutor(16) as pool:
            failed(ServerTimeoutError, lambda: ranker.rank(QUERY, DOCUMENTS[:1], timeout=0.3))
            ranker.rank(QUERY, DOCUMENTS[:2], timeout=0.3, fallback=True)
            waiting = [pool.submit(ranker.rank, QUERY, LONG) for _ in range(16)]
            eventually(lambda: requests_that_wait(command) >= 40)
            told, deadline = "", time.monotonic() + 20
            while "overloaded: the answer would take" not in told and time.monotonic() < deadline:
                told = failed(ClickBertError, lambda: ranker.rank(QUERY, LONG[:32], timeout=0.1))
            assert "overloaded: the answer would take" in told
            for each in waiting:
                exc = each.exception(timeout=90)
                if exc is not None:
                    watched.exceptions.append(exc)

    def mask(text: str) -> str:
        raise ValueError(text)

    with Ranker(url, mask=mask, observers=watched.observers) as ranker:
        failed(InvalidInputError, lambda: ranker.rank(QUERY, DOCUMENTS))
    with Ranker(url, mask=Masking(patterns=[CANARY]), observers=watched.observers) as ranker:
        ranker.rank(QUERY, DOCUMENTS)
    with Ranker(url, model="no_such_model", observers=watched.observers) as ranker:
        failed(ModelNotFoundError, lambda: ranker.rank(QUERY, DOCUMENTS))
    with Ranker("127.0.0.1:1", timeout=2, observers=watched.observers) as ranker:
        failed(ConnectionFailedError, lambda: ranker.rank(QUERY, DOCUMENTS))
        ranker.rank(QUERY, DOCUMENTS, fallback=True)


def ask_a_server_that_hangs(command: Command, watched: Watched) -> None:
    """Its backend stands still, so that Triton's own queue fills, and then Triton gives the backend up."""

    def ask(number: int) -> str:
        try:
            ranker.rank(QUERY, [f"{CANARY} {number}"], timeout=2)
        except ServerError as exc:
            watched.exceptions.append(exc)
            return str(exc)
        return ""

    with Ranker(command.addresses.grpc, observers=watched.observers) as ranker:
        ranker.rank(QUERY, DOCUMENTS)
        with paused(children(command.triton())), ThreadPoolExecutor(24) as pool:
            told = "\n".join(pool.map(ask, range(24)))
    assert "exceeds maximum queue size" in told.lower()


def requests_that_wait(command: Command) -> float:
    """How many wait in the backend's schedule."""
    with open_directly(command.addresses.metrics) as answer:
        return total(str(answer.read(), "utf-8"), "clickbert_waiting_requests", model="clickbert_onnx")


def send_what_is_malformed(command: Command, watched: Watched, checkpoint: Path) -> None:
    """What no client of ours sends: the canary's tokens in requests that contradict themselves, or are too large."""
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(CANARY).ids
    client = triton.InferenceServerClient(command.addresses.grpc)
    count = len(ids)
    good = {"input_ids": ids, "token_type_ids": [0] * count, "lengths": [count]}
    for change in (
        {"lengths": [count + 1]},
        {"lengths": [-count]},
        {"lengths": []},
        {"input_ids": [*ids[:-1], 10**6]},
        {"input_ids": [*ids[:-1], -1]},
        {"token_type_ids": [0]},
        {"token_type_ids": [7] * count},
        {"input_ids": ids * 4000, "token_type_ids": [0] * 4000 * count, "lengths": [count] * 4000},
        {"input_ids": ids * (70_000 // count)},
    ):
        inputs = []
        for name, values in (good | change).items():
            inputs.append(triton.InferInput(name, [1, len(values)], "INT32"))
            inputs[-1].set_data_from_numpy(np.array([values], np.int32))
        watched.failed(InferenceServerException, lambda inputs=inputs: client.infer("clickbert_onnx", inputs))
    wrong = triton.InferInput("input_ids", [1, 1], "BYTES")
    wrong.set_data_from_numpy(np.array([[CANARY.encode()]], dtype=object))
    watched.failed(InferenceServerException, lambda: client.infer("clickbert_onnx", [wrong]))


def test_a_canary_is_nowhere(command: Command, watched: Watched, published_checkpoint: Path, figures: Figures) -> None:
    call_in_every_way(command, watched)
    send_what_is_malformed(command, watched, published_checkpoint)
    with open_directly(command.addresses.metrics) as answer:
        (watched.folder / "metrics").write_bytes(answer.read())
    client = triton.InferenceServerClient(command.addresses.grpc)
    statistics = client.get_inference_statistics("clickbert_onnx", as_json=True)
    (watched.folder / "statistics").write_text(json.dumps(statistics), encoding="utf-8")
    ask_a_server_that_hangs(command, watched)
    command.end(signal.SIGTERM)
    texts = watched.texts()
    assert "infer_request.cc" in texts["log"], "it is verbose"
    assert sum("REQUEST_START" in text for text in texts.values()) > 10, "requests are traced"
    assert "clickbert_requests_total" in texts["metrics"]
    assert texts["the client's log"].count("fell back") == 2
    assert len(watched.spans.get_finished_spans()) > 20
    with_canary = [name for name, text in texts.items() if CANARY in text.lower()]
    with_tokens = [name for name, text in texts.items() if watched.tokens.search(text)]
    print("the canary is in", with_canary, "and its tokens are in", with_tokens)
    figures.only_told(TEST, "bytes of logs, traces, metrics and exceptions", sum(map(len, texts.values())))
    figures.at_least(TEST, "calls that failed", len(watched.exceptions), 40)
    figures.exactly(TEST, "places with the canary", len(with_canary), 0)
    figures.exactly(TEST, "places with the canary's tokens", len(with_tokens), 0)


def test_the_one_level_that_writes_tokens_is_closed_to_callers(
    command: Command, watched: Watched, figures: Figures
) -> None:
    """Triton's trace level TENSORS writes inputs into the trace. It shows, too, that the search would find them."""
    level = {"trace_level": ["TENSORS"]}
    client = triton.InferenceServerClient(command.addresses.grpc)
    with pytest.raises(InferenceServerException, match="is restricted"):
        client.update_trace_settings(settings=level)
    with Ranker(command.addresses.grpc, timeout=60) as ranker:
        ranker.rank(QUERY, DOCUMENTS)
        figures.exactly(TEST, "traces with tokens, after a caller asked for them", traces_with_tokens(watched), 0)
        token = admin.find_token(command.addresses)
        assert token
        client.update_trace_settings(settings=level, headers=admin.headers(token))
        ranker.rank(QUERY, DOCUMENTS)
    assert command.end(signal.SIGTERM) == 0
    assert traces_with_tokens(watched) > 0


def traces_with_tokens(watched: Watched) -> int:
    return sum(bool(watched.tokens.search(text)) for name, text in watched.texts().items() if "trace" in name)
