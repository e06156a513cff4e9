"""Measures the engines' speed on this machine, in one run so that their ratio means something.

Each engine scores the evaluation pairs in process, without server and tokenization: 32 at a time, sorted by length, so
that attention is hardly padded. (Where a user text is computed once, they are sorted by user text, so that a batch has
candidates of few users.) The engines take turns, and the best round of each counts, because other work on the machine
can only make a round slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from export.graph.packing import Feed, Outputs, Pair, pack, split_pair

PAIRS_A_BATCH = 32
BATCHES = 16  # of all lengths
ROUNDS = 4


def measure_speed(
    runs: Mapping[str, Callable[[Feed], Outputs]], pairs: Sequence[Pair], *, once: bool = False
) -> dict[str, float]:
    """Pairs per second of each engine, given as a function of one packed batch: the best of ROUNDS rounds.

    `once`: the graphs compute a user text once.
    """
    if not runs:
        return {}
    ordered = (
        sorted(pairs, key=lambda pair: split_pair(pair)[0])
        if once
        else sorted(pairs, key=lambda pair: len(pair["input_ids"]))
    )
    batches = [ordered[start : start + PAIRS_A_BATCH] for start in range(0, len(ordered), PAIRS_A_BATCH)]
    feeds = [pack([batch], once=once) for batch in batches[:: max(1, len(batches) // BATCHES)]]
    count = sum(len(feed["lengths"]) for feed in feeds)
    best = dict.fromkeys(runs, float("inf"))
    largest = max(feeds, key=lambda feed: feed["input_ids"].size)
    for run in runs.values():
        run(largest)  # allocates the memory that it needs
    for _ in tqdm(range(ROUNDS), desc="speed", unit="round", leave=False):
        for name, run in runs.items():
            began = time.perf_counter()
            for feed in feeds:
                run(feed)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: count / seconds for name, seconds in best.items()}
