"""examples/ray_score.py on a Ray of its own: every row is scored once, by the server or by each worker's own graph."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clickbert import Ranker
from clickbert.wire.protocol import InferRequest
from serving.server import Server
from tests.client.fake_model import MODEL, FakeStatusError
from tests.client.fakes import FakeTriton, grpc_server
from tests.integration.scores import PATIENCE
from tests.reach.environment import ROOT, SCRIPTS, environment, reach_python
from tests.waiting import eventually

pytestmark = pytest.mark.reach
EXACT = 1e-6  # of a score; a pair is computed in other chunks when others are there


@pytest.fixture
def folder() -> Iterator[Path]:
    """For Ray's own files; its sockets allow no long path."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@contextmanager
def started(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The example, with 3 CPUs and 200 MB of objects; what Ray leaves at home goes into the folder, too."""
    script = [str(SCRIPTS / "local_ray.py"), str(folder), str(ROOT / "examples" / "ray_score.py")]
    command = [reach_python(), *script, *map(str, arguments)]
    variables = environment(HOME=str(folder), RAY_USAGE_STATS_ENABLED="0")
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # Ray's own processes end with it


def run(folder: Path, *arguments: object) -> tuple[int, str]:
    with started(folder, *arguments) as process:
        output, _ = process.communicate(timeout=300)
    return process.returncode, output


def made_up(count: int) -> list[dict[str, object]]:
    """Rows that are all different."""
    return [
        {"group": f"g{n // 10}", "query": f"w{n % 7}", "document": f"w{n % 50} {n}", "row": n} for n in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_scores(output: Path, rows: list[dict[str, object]]) -> list[float | None]:
    """The scores in the order of the rows; the output has each of them once, as it was."""
    scored = sorted(pq.read_table(output).to_pylist(), key=lambda row: row["row"])
    scores = [row.pop("score") for row in scored]
    assert scored == rows
    return scores


def expected(ranker: Ranker, rows: list[dict[str, object]]) -> list[float]:
    pairs = [(str(row["query"]), str(row["document"])) for row in rows]
    return [score for first in range(0, len(pairs), 500) for score in ranker.score_pairs(pairs[first : first + 500])]


def test_a_log_is_scored_by_the_server_and_what_has_no_text_has_no_score(
    folder: Path, tmp_path: Path, published_server: Server
) -> None:
    rows = made_up(2000)
    rows[7]["query"] = rows[1900]["document"] = None
    log, url, output = (
        write_jsonl(tmp_path / "log.jsonl.gz", rows),
        published_server.addresses.grpc,
        tmp_path / "scores",
    )
    status, said = run(folder, log, output, "--url", url)
    assert status == 0, said
    scores = read_scores(output, rows)
    assert [number for number, score in enumerate(scores) if score is None] == [7, 1900]
    with Ranker(url, timeout=PATIENCE) as ranker:
        wanted = expected(ranker, [row for row in rows if None not in row.values()])
    assert [score for score in scores if score is not None] == pytest.approx(wanted, abs=EXACT)


def test_without_a_server_each_worker_computes_itself(
    folder: Path, tmp_path: Path, published_repository: Path, published_server: Server
) -> None:
    """From Parquet, by two workers with a copy of the version that is served."""
    rows, log, output = made_up(600), tmp_path / "log.parquet", tmp_path / "scores"
    pq.write_table(pa.Table.from_pylist(rows), log)
    status, said = run(folder, log, output, "--in-process", published_repository / "clickbert_onnx" / "1")
    assert status == 0, said
    with Ranker(published_server.addresses.grpc, timeout=PATIENCE) as ranker:
        assert read_scores(output, rows) == pytest.approx(expected(ranker, rows), abs=1e-5)


def workers(folder: Path) -> list[int]:
    """The processes that score, of the Ray in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(b"ray::MapWorker(MapBatches(Scorer)") and f"HOME={folder}\0".encode() in variables:
            found.append(int(process.name))
    return found


def test_refusals_and_a_killed_worker_cost_no_row_and_score_none_twice(folder: Path, tmp_path: Path) -> None:
    """The server refuses the first twelve requests; at the twentieth one of two workers is killed."""
    rows, triton = made_up(2000), FakeTriton()
    with grpc_server(triton) as url:
        with Ranker(url) as ranker:
            wanted = expected(ranker, rows)
        numbers, killed = itertools.count(1), threading.Event()
        due = threading.Event()

        def refuse(request: InferRequest) -> None:  # one at a time
            number = next(numbers) if request.model == MODEL else 0
            if 1 <= number <= 12:
                raise FakeStatusError("UNAVAILABLE", "Exceeds maximum queue size")
            if number == 20:
                due.set()
                killed.wait(120)  # so nobody can be done before

        triton.before_infer = refuse
        with started(folder, write_jsonl(tmp_path / "log.jsonl", rows), tmp_path / "scores", "--url", url) as process:
            try:
                assert due.wait(120)
                eventually(lambda: len(workers(folder)) == 2)
                os.kill(workers(folder)[0], signal.SIGKILL)
            finally:
                killed.set()
            said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert read_scores(tmp_path / "scores", rows) == pytest.approx(wanted, abs=EXACT)


def test_what_cannot_be_scored_is_said_in_a_line(folder: Path, tmp_path: Path) -> None:
    log, output = write_jsonl(tmp_path / "log.jsonl", made_up(3)), tmp_path / "scores"
    status, said = run(folder, log, output, "--query-column", "user")
    assert status == 1
    assert said.splitlines()[-1].startswith(f"ray_score: {log} has no column 'user'")
    assert not output.exists()
