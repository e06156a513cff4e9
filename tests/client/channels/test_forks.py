"""Forks: a ranker that was used before one works after it, in the parent and in the child.

Each test runs in a process of its own (`forking.py`), which is killed if it hangs: pytest's own process has threads and
channels that belong to other tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fakes import holding_the_first

FORKING = Path(__file__).with_name("forking.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def run(url: str, scenario: str, support: str = "1") -> list[str]:
    """The lines that the scenario prints, with gRPC's fork support or without ("0")."""
    command = [sys.executable, str(FORKING), url, scenario]
    variables = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": support}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("scenario", ["unused", "idle", "idle_asyncio", "both", "grandchild", "pool"])
def test_a_ranker_made_before_a_fork_works_in_the_child_and_in_the_parent(url, scenario):
    assert run(url, scenario) == ["child 2", "child 2", "parent 2"]


def test_a_fork_in_the_middle_of_calls_loses_none_of_them(server, url):
    assert run(url, "busy") == ["child 2", "child 2", "child 2", "calls answered 400 of 400", "parent 2"]


def test_a_fork_does_not_wait_for_an_answer_and_the_call_is_sent_again(server, url):
    with holding_the_first(server):
        assert run(url, "waiting") == ["child 2", "waited 1", "parent 2"]


def test_a_fork_while_another_thread_fetches_the_tokenizer_leaves_no_lock_behind(url):
    assert run(url, "fetching") == ["child 2", "waited 1", "parent 2"]


def test_after_a_fork_amid_asyncio_calls_the_child_does_not_hang_and_the_parent_goes_on(server, url):
    with holding_the_first(server):
        child, parent = run(url, "waiting_asyncio")
    # gRPC's own state is broken in such a child: about once in twenty times it crashes (SIGSEGV) by itself.
    assert "forked while asyncio calls were in flight" in child or child == "the child ended with 11"
    assert parent == "parent 2"


@pytest.mark.parametrize("scenario", ["idle", "idle_asyncio", "grandchild"])
def test_without_grpcs_fork_support_a_used_ranker_is_refused_in_the_child(url, scenario):
    *children, parent = run(url, scenario, support="0")
    assert children
    assert all("gRPC's fork support is off" in each for each in children)
    assert parent == "parent 2"


def test_without_grpcs_fork_support_an_unused_ranker_works_in_the_child(url):
    assert run(url, "unused", support="0") == ["child 2", "child 2", "parent 2"]
