"""gRPC's own threads, as the system shows them."""

import sys
from pathlib import Path

import pytest

from clickbert import Ranker
from clickbert.channels import threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the states of threads")


def test_grpcs_threads_have_the_name_that_is_looked_for(url: str) -> None:
    with Ranker(url) as ranker:
        ranker.rank("tea", ["a bar"])
        names = [path.read_bytes().rstrip() for path in Path("/proc/self/task").glob("*/comm")]
    assert threads.NAME in names


def test_states_are_those_of_grpcs_threads_alone(tmp_path: Path) -> None:
    stats = [b"1 (event_engine) R 0", b"2 (event_engine) S 0", b"3 (a) D ) R 0", b"4 (\xe4\xb8) D 0"]
    for number, content in enumerate(stats):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_bytes(content)
    (tmp_path / "ended").mkdir()
    assert threads._states(tmp_path) == {b"R", b"S"}
    assert threads._states(tmp_path / "no system of this kind") == set()
