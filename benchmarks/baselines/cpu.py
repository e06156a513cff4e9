"""Compares the served model with what else ranks with its checkpoint on this machine: PyTorch and a rerank server.

    python -m benchmarks baselines
    python -m benchmarks baselines --checkpoint checkpoints/mine --data my-clicks/test.jsonl
    python -m benchmarks baselines --peer-url http://127.0.0.1:7997

Requests of 20 candidates: of a click log's own mixed lengths, of titles alone, and of titles for users with a history
of twelve titles. PyTorch is Hugging Face's model in this process, fp32, on one core or all (whichever is faster), one
request after another. It is padded to 128 tokens (or to the request's longest pair where that is longer: nothing is cut
that the others compute), and once to the longest. In PyTorch's favour nothing but its forward pass is timed: it has no
server, and its pairs are tokenized and padded before. The servers (clickbert's models by `Ranker` over gRPC, the peer
over HTTP) are timed from texts to scores, with 8 callers that each send their next request when the last is answered.

First, all must agree with PyTorch on the click probabilities. (Not the peer, where the checkpoint computes a user text
once: it knows full attention only, so it does its own work on the same texts, with other scores.) Then they take turns,
in rounds: in a round each computes the same 16 requests, again and again for about 4 seconds, while the others are
idle; the next round has other requests.
The last line of the output is one JSON document.

The peer is any server that answers POST /rerank in Cohere's form. To start Infinity as the figures in
docs/benchmarks.md have it (its own defaults: batches of 32, nothing compiled, no cache of results; FP32):

    python3.12 -m venv .peers/infinity
    .peers/infinity/bin/pip install -r benchmarks/baselines/peer-requirements.txt
    DO_NOT_TRACK=1 INFINITY_ANONYMOUS_USAGE_STATS=0 HF_HUB_OFFLINE=1 .peers/infinity/bin/infinity_emb v2 \\
        --model-id checkpoints/demo-full --served-model-name clickbert --engine torch --device cpu --dtype float32 \\
        --host 127.0.0.1 --port 7997
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks import BenchmarkError
from benchmarks.baselines.peer import Peer
from benchmarks.load_gen import target
from benchmarks.load_gen.target import log_folder, start_target
from benchmarks.load_gen.workload import ALL, CLICKED, HISTORY, TITLES, Request, Selection
from benchmarks.measure.environment import find_environment
from benchmarks.measure.schema import Environment, dump
from benchmarks.report.tables import make_table
from clickbert import Ranker
from clickbert.wire.protocol import DEFAULT_MODEL
from finetune.checkpoint.attention import attended, user_tokens
from finetune.checkpoint.load import CheckpointError, label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import MetricError, click_probability
from finetune.evaluation.scoring import pad, tokenize_pairs
from serving.backends.packed_cpu.cores import usable_cores

CANDIDATES, CALLERS = 20, 8
WORKLOADS = {"mixed lengths": ALL, "titles": TITLES, f"titles, for a history of {CLICKED}": HISTORY}
WIDTH = 128  # tokens; what others pad to
INT8 = f"{DEFAULT_MODEL}_int8"
OURS = (DEFAULT_MODEL, INT8)
# Requests of a turn, two for each caller. Lengths differ, so all contenders compute the same ones; a fast one computes
# them several times. (Nobody here caches results.)
REQUESTS = 2 * CALLERS
TIMEOUT = 60.0  # seconds: how long a call takes on a busy machine is a figure, not an error
EXPECTED = (*target.EXPECTED, CheckpointError, MetricError)

Score = Callable[[Request], ArrayLike]
Batches = dict[Request, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class ScoreDifference:
    """How far click probabilities are from PyTorch's."""

    largest: float
    mean: float


# Up to these it is the same model. EXACT is rounding; INT8 has differences of its own, of which single ones are large.
# (What INT8 may cost the ranking, export's gate decides.)
EXACT, LOOSE = ScoreDifference(largest=1e-4, mean=1.0), ScoreDifference(largest=1.0, mean=0.02)
ANY = ScoreDifference(largest=1.0, mean=1.0)


@dataclass(frozen=True)
class Contender:
    """One way to rank: a request's click probabilities, in its candidates' order, for this many callers at a time."""

    score: Score
    callers: int = CALLERS
    limit: ScoreDifference = EXACT

    def take_turn(self, requests: Sequence[Request]) -> float:
        """Seconds that it needs for the requests, each caller taking the next one that is left."""
        began = time.perf_counter()
        if self.callers == 1:  # in this thread, whose helpers PyTorch keeps
            for request in requests:
                self.score(request)
        else:
            with ThreadPoolExecutor(self.callers) as callers:
                list(callers.map(self.score, requests))
        return time.perf_counter() - began


@dataclass(frozen=True)
class ContenderResult:
    """One contender: how far it is from PyTorch, and its speed."""

    difference: ScoreDifference
    passes: int  # how often it computed a turn's requests
    rounds: tuple[float, ...]  # pairs per second
    pairs_per_second: float  # their median


@dataclass(frozen=True)
class ContestResult:
    """One workload."""

    tokens_a_pair: float
    contenders: dict[str, ContenderResult]

    def int8_over_others(self) -> list[float]:
        """How many times as fast INT8 is as the fastest that is not of this project, in each round."""
        others = zip(*(each.rounds for name, each in self.contenders.items() if name not in OURS), strict=True)
        return [int8 / max(each) for int8, each in zip(self.contenders[INT8].rounds, others, strict=True)]


@dataclass(frozen=True)
class BaselineResult:
    """The JSON document."""

    candidates: int
    requests_a_turn: int
    callers: int
    workloads: dict[str, ContestResult]
    peer: str | None
    environment: Environment


def run(options: argparse.Namespace, turn: float = 4.0, rounds: int = 3) -> int:
    """Measures all contenders on all workloads, in turns of about this many seconds, and prints the figures.

    Raises:
        EXPECTED: what is to be measured cannot be used, does not answer, or does not score as PyTorch does.
    """
    workloads = {name: distinct_requests(options.data, texts) for name, texts in WORKLOADS.items()}
    model, tokenizer, max_length = load_checkpoint(options.checkpoint)
    kept = user_tokens(model.config)
    peer = {}
    if options.peer_url:
        peer["peer"] = Contender(Peer(options.peer_url).score, limit=EXACT if kept is None else ANY)
    results = {}
    with ExitStack() as stack:
        server = stack.enter_context(start_target(options.repository, stack.enter_context(log_folder())))
        fp32, int8 = (stack.enter_context(Ranker(server.connection, name, timeout=TIMEOUT)) for name in OURS)
        served = {DEFAULT_MODEL: Contender(ranked(fp32)), INT8: Contender(ranked(int8), limit=LOOSE), **peer}
        for name, requests in workloads.items():
            pairs = {request: tokenize_pairs(tokenizer, rows(request), max_length, kept) for request in requests}
            tight = {request: pad(tokenizer, each) for request, each in pairs.items()}
            wide = {request: widen(batch, min(WIDTH, max_length)) for request, batch in tight.items()}
            pytorch = {
                f"PyTorch, padded to {WIDTH}": Contender(forward(model, wide), callers=1),
                "PyTorch, padded to the longest": Contender(forward(model, tight), callers=1),
            }
            tokens = float(np.mean([len(pair["input_ids"]) for each in pairs.values() for pair in each]))
            results[name] = ContestResult(tokens, measure(pytorch | served, requests, turn, rounds))
            print(show_contest(name, results[name]))
    environment = find_environment(("torch", "transformers", "onnxruntime", "tokenizers"))
    print(dump(BaselineResult(CANDIDATES, REQUESTS, CALLERS, results, options.peer_url, environment)))
    return 0


def distinct_requests(path: Path, texts: str) -> list[Request]:
    """Requests without duplicate candidates: the client scores a duplicate once, the others twice."""
    requests = Selection(path, CANDIDATES, texts).read()
    requests = [request for request in requests if len(set(request.documents)) == CANDIDATES]
    if not requests:
        raise BenchmarkError(f"{path} has no {CANDIDATES} different candidates for a request; give more --data")
    return requests


def rows(request: Request) -> list[ClickRow]:
    """A request as the reference takes it."""
    return [ClickRow("", request.query, document, clicks=0, impressions=1) for document in request.documents]


def widen(batch: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Pads a batch to this many tokens a pair; one that is longer stays as it is."""
    missing = max(0, width - batch["input_ids"].shape[1])
    return {name: torch.nn.functional.pad(values, (0, missing)) for name, values in batch.items()}


def forward(model: Any, batches: Batches) -> Score:
    """Hugging Face's forward pass on batches that are made already."""
    labels = label_names(model)
    batches = {request: attended(model.config, batch) for request, batch in batches.items()}

    def score(request: Request) -> ArrayLike:
        with torch.inference_mode():
            return click_probability(model(**batches[request]).logits.numpy(), labels)

    return score


def ranked(ranker: Ranker) -> Score:
    """A served model."""

    def score(request: Request) -> ArrayLike:
        results = ranker.rank(request.query, request.documents)
        return [result.score for result in sorted(results, key=lambda result: result.index)]

    return score


def choose_threads(contender: Contender, requests: Sequence[Request]) -> None:
    """Sets PyTorch's threads to one or all cores: on a busy machine its threads wait for each other."""
    durations = {}
    for threads in (1, usable_cores()):
        torch.set_num_threads(threads)
        contender.take_turn(requests[:2])
        durations[threads] = contender.take_turn(requests)
    torch.set_num_threads(min(durations, key=durations.__getitem__))


def measure(
    contenders: Mapping[str, Contender], requests: Sequence[Request], turn: float, rounds: int
) -> dict[str, ContenderResult]:
    """Each contender on the same requests, in rounds of turns. Raises BenchmarkError if their scores differ."""
    endless = itertools.cycle(requests)
    first = list(itertools.islice(endless, REQUESTS))
    differences = check_scores(contenders, first[:CALLERS])
    choose_threads([one for one in contenders.values() if one.callers == 1][-1], first)
    # This turn does not count: memory, caches.
    passes = {name: max(1, round(turn / one.take_turn(first))) for name, one in contenders.items()}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        drawn = list(itertools.islice(endless, REQUESTS))
        for name, one in contenders.items():
            speeds[name].append(passes[name] * REQUESTS * CANDIDATES / one.take_turn(drawn * passes[name]))
    return {
        name: ContenderResult(differences[name], passes[name], tuple(each), median(each))
        for name, each in speeds.items()
    }


def check_scores(contenders: Mapping[str, Contender], requests: Sequence[Request]) -> dict[str, ScoreDifference]:
    """How far each contender's click probabilities are from those of the first one, which is PyTorch.

    Raises:
        BenchmarkError: one is beyond its limit, so its model is another one.
    """
    reference = next(iter(contenders.values()))
    expected = np.array([reference.score(request) for request in requests])
    differences = {}
    for name, one in contenders.items():
        scores = [np.asarray(one.score(request)) for request in requests]
        if any(each.shape != expected.shape[1:] for each in scores):
            counts = [len(each) for each in scores]
            raise BenchmarkError(f"{name} answers {counts} scores for {expected.shape[1]} candidates")
        apart = np.abs(np.array(scores) - expected)
        found = differences[name] = ScoreDifference(float(apart.max()), float(apart.mean()))
        for kind, limit in vars(one.limit).items():
            if not getattr(found, kind) <= limit:  # NaN, too
                raise BenchmarkError(
                    f"{name}: the {kind} difference of its click probabilities to PyTorch's is "
                    f"{getattr(found, kind):.2g}, more than {limit:g}: it does not serve the model in --checkpoint; "
                    "publish that with `python -m export`, or name the one that is served"
                )
    return differences


def show_contest(workload: str, found: ContestResult) -> str:
    """One workload, for the screen: a line for each contender."""
    columns: dict[str, Callable[[tuple[str, ContenderResult]], str]] = {
        "contender": lambda item: item[0],
        "pairs/s": lambda item: f"{item[1].pairs_per_second:.0f}",
        "min - max": lambda item: f"{min(item[1].rounds):.0f} - {max(item[1].rounds):.0f}",
        "largest difference": lambda item: f"{item[1].difference.largest:.1e}",
        "mean difference": lambda item: f"{item[1].difference.mean:.1e}",
    }
    ratios = found.int8_over_others()
    return (
        f"{workload}: {CANDIDATES} candidates a request, {found.tokens_a_pair:.0f} tokens a pair, "
        f"{len(ratios)} rounds of {REQUESTS} requests\n{make_table(columns, list(found.contenders.items())).text()}\n"
        f"{INT8} over the fastest other: {median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f}), in rounds"
    )
