"""Scores a click log on Ray Data, for logs beyond one machine: JSONL or Parquet in, a folder of Parquet files out.

Each worker is a process somewhere in the cluster, with its own connection to the server, or with `--in-process` its own
graph and no server at all: it then computes on all cores of its machine. Ray hands it batches, keeps no more in memory
than it must, and makes a worker that dies anew. Rows come out in no fixed order, each of them once, with the click
probability in the new column `score` (null where the query or the document is null).

    pip install ./client 'ray[data]'     # on every machine; for --in-process './client[in-process]'
    python examples/ray_score.py log.jsonl scores --url localhost:8001 --workers 4
    python examples/ray_score.py s3://logs/2026 s3://scores/2026 --workers 64 \
        --in-process /models/clickbert_onnx_int8/3

It runs on the cluster that RAY_ADDRESS names, or else starts Ray on this machine. If it fails, remove the output and
run it again. A log for one machine is easier with `clickbert score`, which keeps the order and resumes.
"""

import argparse
import random
import sys
import time

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, SaveMode

from clickbert import (
    Connection,
    ConnectionFailedError,
    Ranker,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)

BATCH = 128  # rows of a call: four requests, which are at the server at once; a refusal costs no more than these
TIMEOUT = 60.0  # seconds of a call
PATIENCE = 600.0  # seconds in which a batch is tried again
# A busy server refuses, and one that is started anew is gone for a while. More patience cures no other error.
REFUSALS = (ServerOverloadedError, ServerTimeoutError, ServerUnavailableError, ConnectionFailedError)


class Scorer:
    """One worker: Ray makes it once, in a process of its own, and calls it with one batch after another."""

    def __init__(self, connection: Connection, in_process: str | None, query: str, document: str) -> None:
        self.columns = query, document
        if in_process is None:
            self.ranker = Ranker(connection)
        else:
            from clickbert.in_process import ranker  # noqa: PLC0415 (needs onnxruntime)

            self.ranker = ranker(in_process)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add the column `score`, float64."""
        rows = list(zip(*(batch[name].to_pylist() for name in self.columns), strict=True))
        scores = iter(self.score([pair for pair in rows if None not in pair]))
        column = [None if None in pair else next(scores) for pair in rows]
        return batch.append_column("score", pa.array(column, pa.float64()))

    def score(self, pairs: list[tuple[str, str]]) -> list[float]:
        """Score the pairs, and wait longer after each refusal; at random, so that workers do not come back at once."""
        if not pairs:
            return []
        pause, deadline = 0.1, time.monotonic() + PATIENCE
        while True:
            try:
                return self.ranker.score_pairs(pairs, timeout=TIMEOUT)
            except REFUSALS:
                if time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 10.0)


def read(path: str, query: str, document: str) -> Dataset:
    """Open a log: a file, a folder or a pattern, here or in a bucket. Raises ValueError if a column is amiss."""
    is_json = path.removesuffix(".gz").endswith((".json", ".jsonl"))
    log = ray.data.read_json(path) if is_json else ray.data.read_parquet(path)
    columns = log.columns() or []
    if missing := [name for name in (query, document) if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}, only {columns}: see --query-column, --document-column")
    if "score" in columns:
        raise ValueError(f"{path} has a column 'score' already: rename it")
    return log


def main() -> None:
    """Read the options, and score."""
    parser = argparse.ArgumentParser(description="Score a click log on Ray Data.")
    add = parser.add_argument
    add("input", help="a JSONL file (.json, .jsonl, also with .gz), or else Parquet: a file or a folder")
    add("output", help="a folder that does not exist yet, for Parquet files")
    Connection.add_arguments(parser)
    add("--in-process", metavar="PATH", help="a published version or a checkpoint on every machine, in place of --url")
    add("--workers", type=int, default=2, metavar="N", help="processes; in process one a machine is best (%(default)s)")
    add("--query-column", default="query", metavar="NAME", help="the column of the user's texts (%(default)s)")
    add("--document-column", default="document", metavar="NAME", help="the column of the candidates (%(default)s)")
    options = parser.parse_args()
    try:
        score_log(options)
    except OSError as exc:
        sys.exit(f"ray_score: cannot read or write: {exc}")
    except ValueError as exc:  # a column, an option, or an output that exists
        sys.exit(f"ray_score: {exc}")


def score_log(options: argparse.Namespace) -> None:
    """Read, score and write as a stream."""
    connection = Connection.from_arguments(options)  # the token goes to the workers with it
    columns = options.query_column, options.document_column
    scored = read(options.input, *columns).map_batches(
        Scorer,
        fn_constructor_args=(connection, options.in_process, *columns),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=options.workers),
        num_cpus=1 if options.in_process else 0.25,  # where a server computes, a worker mostly waits
        scheduling_strategy="SPREAD",  # over the machines
    )
    scored.write_parquet(options.output, mode=SaveMode.ERROR)


if __name__ == "__main__":
    main()
