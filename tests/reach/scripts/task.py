"""What every script here does: reads a task from stdin, ranks its questions by one reranker, and prints the rankings.

    python rerankers.py NAME < task.json

The task is {"at": a `Target`, "questions": [[query, documents], ...]}; the output is a ranking for each question, a
list of [index, score], or {"error": class, "message": text} for the first call that raised.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

HERE = (None, "localhost", "127.0.0.1", "::1")


class Target(NamedTuple):
    """Where to rank: a URL of `clickbert serve` (or Triton's address), the callers' token, the model's name.

    `top_n` is how many are wanted: None is all.
    """

    url: str
    token: str
    model: str
    top_n: int | None = None


Ranking = Sequence[tuple[int, float]]
Rank = Callable[[str, list[str]], Ranking]


def run(rerankers: Sequence[Callable[[Target], Rank]]) -> None:
    """Do the task with the reranker that the first argument names."""
    sys.addaudithook(_stay_on_this_machine)
    (connect,) = (reranker for reranker in rerankers if reranker.__name__ == sys.argv[1])
    task = json.load(sys.stdin)
    rank = connect(Target(**task["at"]))
    try:
        output: object = [rank(query, documents) for query, documents in task["questions"]]
    except Exception as exc:
        output = {"error": type(exc).__name__, "message": str(exc)}
    json.dump(output, sys.stdout)


def _stay_on_this_machine(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if (host.decode() if isinstance(host, bytes) else host) not in HERE:
        # A library that sends usage figures does so in a thread, and swallows what goes wrong: only an end is noticed.
        print(f"this script calls {host!r}, but may only talk to this machine", file=sys.stderr, flush=True)
        os._exit(3)
