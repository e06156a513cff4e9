"""Load on a served model: Locust's users rank real groups of a click log, one request at a time each.

    python -m benchmarks load
    python -m benchmarks load --users 16 --duration 60 --data my-clicks.jsonl.gz
    python -m benchmarks load --url localhost:8001 --model clickbert_trt_fp16

Without --url the server is started on free ports, and stopped behind the run. Locust has a process of its own, since
gevent changes the standard library of the process it is in. Output: a table, and as the last line one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tqdm import tqdm
from tritonclient.utils import InferenceServerException

from benchmarks.figures import Sample, machine, summarize, table, versions
from clickbert import ClickBertError, Ranker
from clickbert.protocol import DEFAULT_MODEL
from clickbert.transport import GrpcTransport
from finetune.clicklog import ClickLogError, ClickRow, read_click_log
from serving.server import Addresses, Server
from serving.triton import ServingError

ROOT = Path(__file__).resolve().parent.parent
LOCUSTFILE = ROOT / "benchmarks" / "locustfile.py"
# Seconds. Connections, caches and the tokenizer's fetch are behind the users before anything is counted.
WARM_UP = 3
# The load goes on for a second behind the measured part, so that its last requests have company, too.
RUN_OUT = 1
# For calls in flight at the end: more than the ten seconds after which the users' client gives up.
STOP_TIMEOUT = 12
# For Locust's own start and end; past this it hangs.
GRACE = 60
# Above this share of its time the load's one thread has queues of its own.
BUSY = 0.8


class LoadError(RuntimeError):
    """The run has no figures; the message says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `load`."""
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--url", metavar="HOST:PORT", help="gRPC address of a running server (default: start one)")
    server.add_argument("--repository", type=Path, default=Path("model_repository"), help="what to start a server on")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test.jsonl"), help="click log (.jsonl[.gz])")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"the model's name (default {DEFAULT_MODEL})")
    parser.add_argument("--users", type=whole_number, default=8, help="requests in flight (default 8)")
    parser.add_argument("--duration", type=whole_number, default=30, help="seconds that are measured (default 30)")


def whole_number(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit code: 0, or 1 if there are no figures or every request failed.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a signal that the command takes for it; Locust and the server are gone.
    """
    try:
        figures = measure(options)
    except (LoadError, ServingError, ClickBertError, ClickLogError) as exc:
        say(str(exc))
        return 1
    sys.stdout.write(f"{table(figures)}\n{json.dumps(figures)}\n")
    return 1 if figures["errors"] == figures["requests"] else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run on a server that is running, or on one of its own.

    Raises:
        LoadError: Locust or the server ended early, or nothing was recorded.
        ServingError: the server could not be started.
        ClickBertError: the model does not answer; nothing was measured.
        ClickLogError: the click log cannot be used.
    """
    rows = read_click_log(options.data)  # before a server is started for nothing
    with logs() as folder, contextlib.ExitStack() as stack:
        server = None
        url = options.url.removeprefix("grpc://") if options.url else ""
        if not options.url:
            say(f"start a server on {options.repository}")
            log = stack.enter_context((folder / "triton.log").open("wb"))
            server = stack.enter_context(Server(options.repository, Addresses.free(), log=log))
            url = server.addresses.grpc
        name, model_version = ask(url, options.model, rows)
        say(
            f"{options.users} users on {options.model} version {model_version} at {url}: {WARM_UP} s to warm up, "
            f"{options.duration} s measured"
        )
        recorded = run_locust(options, url, folder)
        if server and (code := server.running().poll()) is not None:
            raise LoadError(f"tritonserver ended with code {code} during the run; {server.where_the_log_is()}")
        samples = [Sample(*fields) for fields in recorded["samples"]]
        figures = summarize(samples, WARM_UP, options.duration)
        if not figures["requests"]:
            raise LoadError(f"no request began in the {options.duration} s measured; give a longer --duration")
        for kind, message in recorded["first_messages"].items():
            say(f"{kind}, the first: {message}")
        if recorded["busy"] > BUSY:
            say(
                f"Locust was busy {recorded['busy']:.0%} of the time, so these are rather its own limits than the "
                "server's; give fewer --users"
            )
    return {
        "model": options.model,
        "url": url,
        "server": name,
        "users": options.users,
        **figures,
        "load_generator_busy": recorded["busy"],
        "machine": machine(),
        "versions": versions() | {"model": model_version},
    }


@contextlib.contextmanager
def logs() -> Iterator[Path]:
    """A folder for the logs and samples. It is removed, unless the run failed and the logs say why."""
    folder = Path(tempfile.mkdtemp(prefix="clickbert-load-"))
    keep = False
    try:
        yield folder
    except LoadError:
        keep = True
        raise
    except ServingError:  # before tritonserver was started its log is empty
        keep = any(path.stat().st_size for path in folder.iterdir())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)


def ask(url: str, model: str, rows: list[ClickRow]) -> tuple[dict[str, str], str]:
    """Ranks one group and asks who answers, so that a wrong address or model fails before the run, and says why.

    Returns:
        The server's name and version, and the newest version of the model.
    """
    documents = [row.document for row in rows if (row.group, row.query) == (rows[0].group, rows[0].query)]
    with Ranker(url, model) as ranker:
        ranker.rank(rows[0].query, documents)
    transport = GrpcTransport(url)
    try:
        model_version = max(transport.describe(model, timeout=10).versions, key=int)
        with triton.InferenceServerClient(url) as client:
            answer = client.get_server_metadata(client_timeout=10)
    except InferenceServerException as exc:
        raise LoadError(f"{url} does not say what server it is: {exc}") from exc
    finally:
        transport.close()
    return {"name": answer.name, "version": answer.version}, model_version


def run_locust(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """Runs Locust to its end and returns what `locustfile.Recorder` wrote.

    Raises:
        LoadError: it ended with an error, too early, or not at all.
    """
    run_time = WARM_UP + options.duration + RUN_OUT
    samples, log = folder / "samples.json", folder / "locust.log"
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--exit-code-on-error", "0"]
    command += ["--locustfile", str(LOCUSTFILE), "--host", url, "--model", options.model]
    command += ["--users", str(options.users), "--spawn-rate", str(options.users), "--run-time", str(run_time)]
    command += ["--stop-timeout", str(STOP_TIMEOUT), "--click-log", str(options.data), "--samples", str(samples)]
    # Locust takes options from such variables, too; what is measured must not depend on the shell.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then ends Locust. No stdin: Locust reads keys.
        locust = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = wait(locust, run_time)
        finally:
            locust.kill()
            locust.wait()
    if code is None:
        raise LoadError(f"Locust did not end {STOP_TIMEOUT + GRACE} s after its time was over; its log: {log}")
    if code or not samples.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise LoadError(
            "\n".join([f"Locust ended with code {code} and without results; its log, {log}, ends:", *lines])
        )
    recorded: dict[str, Any] = json.loads(samples.read_text(encoding="utf-8"))
    if recorded["lasted"] < WARM_UP + options.duration:
        raise LoadError(f"Locust ended after {recorded['lasted']:.1f} s of {run_time}: who stopped it? Its log: {log}")
    return recorded


def wait(locust: subprocess.Popen[bytes], run_time: int) -> int | None:
    """Waits for Locust with a progress bar of the run's seconds. Returns its exit code, None if it hangs."""
    began = time.monotonic()
    with tqdm(total=run_time, unit="s", desc="load", leave=False, disable=None) as progress:
        while (passed := time.monotonic() - began) < run_time + STOP_TIMEOUT + GRACE:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return locust.wait(timeout=0.5)
            progress.update(min(int(passed), run_time) - progress.n)
    return None


def say(line: str) -> None:
    """Progress and errors, on stderr: stdout carries the result."""
    sys.stderr.write(f"load: {line}\n")
    sys.stderr.flush()
