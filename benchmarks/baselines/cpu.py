"""The served model beside what else ranks with the same checkpoint on this machine: PyTorch, and a rerank server.

    python -m benchmarks baselines
    python -m benchmarks baselines --peer infinity
    python -m benchmarks baselines --checkpoint checkpoints/mine --data my-clicks/test.jsonl

Requests of 20 candidates, once of a click log's own mixed lengths and once of titles alone. PyTorch is Hugging Face's
model in this process, fp32, on one core or all (whichever is faster), one request after another, padded to 128 tokens
(or to the request's longest pair where that is longer: nothing is cut that the others compute) and padded to the
longest. In PyTorch's favour, nothing but its forward pass is timed: it has no server, and its pairs are tokenized and
padded before. The servers (clickbert's models by `Ranker` over gRPC, the peer over HTTP) are timed from texts to
scores, with 8 callers that each send their next request when the last one is answered.

First, all must agree with PyTorch on the click probabilities. Then they take turns, in rounds: in a round each computes
the same 16 requests, again and again for about 4 seconds, while the others are idle; the next round has other requests.
The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks.baselines import peer
from benchmarks.load_gen.target import logs, started
from benchmarks.load_gen.workload import ALL, TITLES, Request, WorkloadError, read_requests
from benchmarks.measure.stats import machine
from clickbert import Ranker
from clickbert.protocol import DEFAULT_MODEL
from export.graph.packing import Pair
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.metrics import click_probability
from finetune.scoring import pad, tokenize_pairs
from serving.backends.onnxruntime.workers import usable_cores

CANDIDATES, CALLERS = 20, 8
WORKLOADS = {"mixed lengths": ALL, "titles": TITLES}
WIDTH = 128  # tokens; what others pad to
INT8 = f"{DEFAULT_MODEL}_int8"
OURS = (DEFAULT_MODEL, INT8)
ROUNDS = 3
# A turn: so many requests, two for each caller. Who is fast computes them several times, for about TURN seconds: since
# lengths differ, all must compute the same ones. (Nobody here caches results.)
REQUESTS = 2 * CALLERS
TURN = 4.0
TIMEOUT = 60.0  # seconds: how long a call takes on a busy machine is a figure, no error
# Differences of click probabilities to PyTorch's, up to which it is the same model: rounding, and INT8's own, of which
# single ones are large. (What INT8 may cost the ranking, export's gate decides.)
EXACT, LOOSE = {"largest": 1e-4}, {"mean": 0.02}

Score = Callable[[Request], ArrayLike]
Batches = dict[Request, dict[str, torch.Tensor]]


class BaselineError(RuntimeError):
    """The contenders do not compute the same; the message says which, and what to do."""


@dataclass(frozen=True)
class Contender:
    """One way to rank: a request's click probabilities, in its candidates' order, for so many callers at a time."""

    score: Score
    callers: int = CALLERS
    limits: Mapping[str, float] = field(default_factory=lambda: EXACT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/demo"), help="Hugging Face folder")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="fp32 and INT8 of it")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test.jsonl"), help="click log (.jsonl[.gz])")
    parser.add_argument("--peer", choices=[peer.NAME], help="measure this server, too; it is installed into .peers/")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures all contenders on all workloads, prints a table and returns the figures.

    Raises:
        BaselineError: a contender's scores are not those of PyTorch.
        CheckpointError, ClickLogError, WorkloadError: what is to be measured cannot be used.
        ServingError, ClickBertError, PeerError: a server could not be started, or does not answer.
    """
    workloads = {name: distinct_requests(options.data, texts) for name, texts in WORKLOADS.items()}
    model, tokenizer, max_length = load_checkpoint(options.checkpoint)
    if options.peer:
        peer.install()
    figures = {}
    with ExitStack() as stack:
        url = stack.enter_context(started(options.repository, stack.enter_context(logs()))).url
        fp32, int8 = (stack.enter_context(Ranker(url, name, timeout=TIMEOUT)) for name in OURS)
        served = {DEFAULT_MODEL: Contender(ranked(fp32)), INT8: Contender(ranked(int8), limits=LOOSE)}
        if options.peer:
            served[options.peer] = Contender(stack.enter_context(peer.serve(options.checkpoint)).score)
        for name, requests in workloads.items():
            pairs = {request: tokenize_pairs(tokenizer, rows(request), max_length) for request in requests}
            tight = {request: pad(tokenizer, each) for request, each in pairs.items()}
            wide = {request: widen(batch, min(WIDTH, max_length)) for request, batch in tight.items()}
            contenders = {
                f"PyTorch, padded to {WIDTH}": Contender(forward(model, wide), callers=1),
                "PyTorch, padded to the longest": Contender(forward(model, tight), callers=1),
                **served,
            }
            figures[name] = measure(contenders, requests) | {
                "tokens_a_pair": mean_tokens(pairs.values()),
                "torch_threads": torch.get_num_threads(),
            }
    print(table(figures))
    return {
        "candidates": CANDIDATES,
        "requests_a_turn": REQUESTS,
        "callers": CALLERS,
        "workloads": figures,
        "peer": peer.REQUIREMENTS if options.peer else None,
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers")},
    }


def distinct_requests(path: Path, texts: str) -> list[Request]:
    """A workload's requests, but for those with a candidate twice: the client would have it scored once, others twice.

    Raises:
        ClickLogError, WorkloadError: there are none.
    """
    requests = [one for one in read_requests(path, CANDIDATES, texts) if len(set(one.documents)) == CANDIDATES]
    if not requests:
        raise WorkloadError(f"{path} has no {CANDIDATES} different candidates for a request; give more --data")
    return requests


def rows(request: Request) -> list[ClickRow]:
    """A request as the reference takes it."""
    return [ClickRow("", request.query, document, clicks=0, impressions=1) for document in request.documents]


def widen(batch: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Pads a batch to so many tokens a pair; one that is longer stays as it is."""
    missing = max(0, width - batch["input_ids"].shape[1])
    return {name: torch.nn.functional.pad(values, (0, missing)) for name, values in batch.items()}


def forward(model: Any, batches: Batches) -> Score:
    """Hugging Face's forward pass on batches that are made already."""
    labels = label_names(model)

    def score(request: Request) -> ArrayLike:
        with torch.inference_mode():
            return click_probability(model(**batches[request]).logits.numpy(), labels)

    return score


def choose_threads(contender: Contender, requests: Sequence[Request]) -> None:
    """Sets PyTorch's threads to one or all cores: on a busy machine its threads wait for each other."""
    took = {}
    for threads in (1, usable_cores()):
        torch.set_num_threads(threads)
        take_turn(contender, requests[:2])
        took[threads] = take_turn(contender, requests)
    torch.set_num_threads(min(took, key=took.__getitem__))


def ranked(ranker: Ranker) -> Score:
    """A served model."""

    def score(request: Request) -> ArrayLike:
        results = ranker.rank(request.query, request.documents)
        return [result.score for result in sorted(results, key=lambda result: result.index)]

    return score


def measure(contenders: Mapping[str, Contender], requests: Sequence[Request]) -> dict[str, Any]:
    """Each contender's pairs per second on the same requests, in ROUNDS rounds.

    Returns:
        "contenders": by name "pairs_per_second" (the median), "rounds", "passes" (how often it computed a turn's
        requests) and "difference" (see `compare`); "int8_beside_best_other": how many times as fast INT8 is as the
        fastest that is not of this project, each round for itself, "median" and "rounds".

    Raises:
        BaselineError: their scores are not the same.
    """
    endless = itertools.cycle(requests)
    first = list(itertools.islice(endless, REQUESTS))
    differences = compare(contenders, first[:CALLERS])
    choose_threads([one for one in contenders.values() if one.callers == 1][-1], first)
    # This turn does not count: memory, caches.
    passes = {name: max(1, round(TURN / take_turn(one, first))) for name, one in contenders.items()}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        turn = list(itertools.islice(endless, REQUESTS))
        for name, one in contenders.items():
            took = take_turn(one, turn * passes[name])
            speeds[name].append(passes[name] * REQUESTS * CANDIDATES / took)
    others = [max(each) for each in zip(*(speeds[name] for name in contenders if name not in OURS), strict=True)]
    ratios = [int8 / other for int8, other in zip(speeds[INT8], others, strict=True)]
    return {
        "contenders": {
            name: {
                "pairs_per_second": float(np.median(each)),
                "rounds": each,
                "passes": passes[name],
                "difference": differences[name],
            }
            for name, each in speeds.items()
        },
        "int8_beside_best_other": {"median": float(np.median(ratios)), "rounds": ratios},
    }


def compare(contenders: Mapping[str, Contender], requests: Sequence[Request]) -> dict[str, dict[str, float]]:
    """How far each contender's click probabilities are from the first one's, which is PyTorch.

    Returns:
        "largest" and "mean" difference, by contender.

    Raises:
        BaselineError: one is beyond a contender's limits, so its model is another one.
    """
    reference = next(iter(contenders.values()))
    wanted = np.array([reference.score(request) for request in requests])
    differences = {}
    for name, one in contenders.items():
        found = [np.asarray(one.score(request)) for request in requests]
        if any(scores.shape != wanted.shape[1:] for scores in found):
            raise BaselineError(
                f"{name} answers {[len(each) for each in found]} scores for {wanted.shape[1]} candidates"
            )
        apart = np.abs(np.array(found) - wanted)
        differences[name] = {"largest": float(apart.max()), "mean": float(apart.mean())}
        for kind, limit in one.limits.items():
            if not differences[name][kind] <= limit:  # NaN, too
                raise BaselineError(
                    f"{name}: the {kind} difference of its click probabilities to PyTorch's is "
                    f"{differences[name][kind]:.2g}, more than {limit:g}: it does not serve the model in --checkpoint; "
                    "publish that with `python -m export`, or name the one that is served"
                )
    return differences


def take_turn(contender: Contender, requests: Sequence[Request]) -> float:
    """Seconds that a contender needs for the requests, each caller taking the next one that is left."""
    began = time.perf_counter()
    if contender.callers == 1:  # in this thread, whose helpers PyTorch keeps
        for request in requests:
            contender.score(request)
    else:
        with ThreadPoolExecutor(contender.callers) as callers:
            list(callers.map(contender.score, requests))
    return time.perf_counter() - began


def mean_tokens(requests: Iterable[list[Pair]]) -> float:
    """Tokens of a pair, on average."""
    return float(np.mean([len(pair["input_ids"]) for pairs in requests for pair in pairs]))


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each workload and contender."""
    lines = []
    for workload, found in figures.items():
        lines += [
            f"{workload}: {CANDIDATES} candidates a request, {found['tokens_a_pair']:.0f} tokens a pair, "
            f"{ROUNDS} rounds of {REQUESTS} requests",
            f"  {'contender':<32}{'pairs/s':>9}{'min - max':>16}{'largest':>10}{'mean':>10}  difference",
        ]
        for name, one in found["contenders"].items():
            spread = f"{min(one['rounds']):.0f} - {max(one['rounds']):.0f}"
            largest, mean = one["difference"]["largest"], one["difference"]["mean"]
            lines.append(f"  {name:<32}{one['pairs_per_second']:>9.0f}{spread:>16}{largest:>10.1e}{mean:>10.1e}")
        ratio = found["int8_beside_best_other"]
        spread = f"{min(ratio['rounds']):.2f} - {max(ratio['rounds']):.2f}"
        lines.append(f"  {INT8} beside the fastest other: {ratio['median']:.2f}x ({spread}), round by round")
    return "\n".join(lines)
