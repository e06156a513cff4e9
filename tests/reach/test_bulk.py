"""`clickbert score` over long: many kills, and an input larger than what the process may hold."""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests.client.bulk.test_command import command, kill_again_and_again
from tests.client.fakes import FakeTriton, grpc_server

pytestmark = pytest.mark.reach
MOST_MEMORY = 300  # MiB


@pytest.fixture
def server():
    return FakeTriton()


@pytest.fixture
def url(server):
    with grpc_server(server) as address:
        yield address


def test_kills_at_many_random_moments(url, server, tmp_path):
    kill_again_and_again(url, server, tmp_path, rows=20_000, most=20, within=(1, 60))


# A small process in between: what a process has at its fork counts as its child's, and pytest's may be large.
MEASURE = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(status)
"""


def used_memory(url: str, *arguments: object, rows: Iterable[bytes] = ()) -> int:
    """The most MiB that a job held; the rows come through its standard input."""
    words = [sys.executable, "-c", MEASURE, *command(url, *arguments)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for row in rows:
            process.stdin.write(row)
        used, _ = process.communicate()
    assert process.returncode == 0
    return int(used)


def test_memory_stays_flat(url):
    """Half a gigabyte goes through a process that holds far less."""
    row = json.dumps({"query": "coffee", "document": "a bar", "page": "x" * 2**20}).encode() + b"\n"
    assert used_memory(url, "-", "--output", "-", rows=[row] * 500) < MOST_MEMORY


def test_memory_stays_flat_with_gzip(url, tmp_path):
    chance = random.Random(5)
    with gzip.open(tmp_path / "in.jsonl.gz", "wb", 1) as file:
        for _ in range(400):
            row = {"query": "coffee", "document": "a bar", "page": chance.randbytes(2**18).hex()}
            file.write(json.dumps(row).encode() + b"\n")
    assert (tmp_path / "in.jsonl.gz").stat().st_size > 100 * 2**20
    assert used_memory(url, tmp_path / "in.jsonl.gz", "--output", tmp_path / "out.jsonl.gz") < MOST_MEMORY


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_memory_stays_flat_with_one_row_group(url, tmp_path, compression):
    """Reading, and the last pass, of a Parquet file whose only row group is larger than what the process holds."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    chance = random.Random(5)
    pages = [chance.randbytes(2**14).hex() for _ in range(12_000)]
    columns = {"query": [f"coffee {n // 50}" for n in range(len(pages))], "document": [page[:2000] for page in pages]}
    table = pa.table(columns | {"page": pages})
    # Pages of about a mebibyte: whoever reads one holds it.
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=10**6, write_batch_size=16, compression=compression)
    about = pq.ParquetFile(tmp_path / "in.parquet").metadata
    assert about.num_row_groups == 1 and about.row_group(0).total_byte_size > 350 * 2**20
    assert used_memory(url, tmp_path / "in.parquet", "--output", tmp_path / "out.parquet") < MOST_MEMORY
    assert pq.read_table(tmp_path / "out.parquet", columns=["page"])["page"].to_pylist() == pages
