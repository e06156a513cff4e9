"""Requests that bring each user text once, sound and spoiled, and what Hugging Face says of the sound ones."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from export.graph.packing import Feed, Pair, pack
from finetune.checkpoint.attention import attended
from release.names import ONCE_COUNT_INPUTS, ONCE_GRAPH_INPUTS, ONCE_REQUEST_INPUTS
from tests.tiny import MAX_LENGTH

COUNT_OF = dict(zip(ONCE_REQUEST_INPUTS, ONCE_COUNT_INPUTS, strict=True))
CLS, SEP = 2, 3
MOST = 20  # tokens of a user text


def pair(user: list[int] | None, candidate: list[int]) -> Pair:
    """A pair; without a user text, a single one."""
    if user is None:
        return {"input_ids": [CLS, *candidate, SEP], "token_type_ids": [0] * (len(candidate) + 2)}
    types = [0] * (len(user) + 2) + [1] * (len(candidate) + 1)
    return {"input_ids": [CLS, *user, SEP, *candidate, SEP], "token_type_ids": types}


def words(count: int, seed: int = 0) -> list[int]:
    return random.Random(f"{seed} {count}").choices(range(5, 100), k=count)


def texts_up_to(most: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(st.integers(0, most), st.integers(0, 99)).map(lambda drawn: words(*drawn))


users = st.one_of(st.none(), texts_up_to(MOST))
candidates = texts_up_to(MAX_LENGTH - 3 - MOST)
of_one_user = st.tuples(users, st.lists(candidates, min_size=1, max_size=6)).map(
    lambda drawn: [pair(drawn[0], candidate) for candidate in drawn[1]]
)
one_request = st.lists(of_one_user, min_size=1, max_size=3).map(lambda parts: [one for part in parts for one in part])
several_requests = st.lists(one_request, min_size=1, max_size=4)


def alone(model: BertForSequenceClassification, batch: list[list[Pair]]) -> torch.Tensor:
    """The logits of every pair by Hugging Face's forward, one at a time."""
    found = []
    for one in (one for request in batch for one in request):
        inputs = {name: torch.tensor([ids]) for name, ids in one.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            found.append(model(**attended(model.config, inputs)).logits[0])
    return torch.stack(found)


FULL = words(MAX_LENGTH - 3 - MOST)
BATCHES = {
    "one user, 300 candidates": [[pair(words(9), words(place % 20, place)) for place in range(300)]],
    "1 candidate": [[pair(words(4), words(7))]],
    "no candidate text": [[pair(words(4), []), pair(words(4), words(3))]],
    "no user text": [[pair([], words(4)), pair([], words(9))]],
    "neither": [[pair([], [])]],
    "the longest of both": [[pair(words(MOST), FULL), pair(words(MOST), [])]],
    "single texts": [[pair(None, words(n)) for n in (3, MAX_LENGTH - 2, 0)]],
    "several users": [[pair(words(n, user), words(5, n)) for user in range(4) for n in (3, 3, 9)]],
    "many candidates beside one": [[pair(words(3), words(n)) for n in range(20)], [pair(words(MOST), words(2))]],
    "mixed": [
        [pair(None, words(8)), pair(words(5), words(2)), pair(words(5), words(6)), pair(None, words(40))],
        [pair([], words(1))],
        [pair(words(MOST), FULL)] * 5,
    ],
}


REQUEST = [pair(words(4), words(5)), pair(words(4), words(3)), pair(words(6), words(2))]
BEFORE, BEHIND = [pair(words(7), words(6)), pair(None, words(5))], [pair(words(2), words(9))]
# Each spoils REQUEST between the two others. Its elements begin behind those of BEFORE.
SPOILERS = {
    "length too large": {"lengths": (0, 8)},
    "length too small": {"lengths": (1, 4)},
    "length negative": {"lengths": (0, -5)},
    "length enormous": {"lengths": (0, 2**31 - 1)},
    "length one": {"lengths": (0, 1)},
    "lengths that cancel out, one too small": {"lengths": ((0, 1), (1, 11))},
    "user length too large": {"user_lengths": (0, 6)},
    "user length negative": {"user_lengths": (1, -1)},
    "user length enormous": {"user_lengths": (0, 2**31 - 1)},
    "no pairs of a user": {"user_pairs": ((0, 0), (1, 3))},
    "too many pairs": {"user_pairs": (0, 3)},
    "too few pairs": {"user_pairs": (0, 1)},
    "pairs negative": {"user_pairs": ((0, -1), (1, 4))},
    "pairs enormous": {"user_pairs": (0, 2**31 - 1)},
    "id outside the vocabulary": {"input_ids": (6, 10**6)},
    "id negative": {"input_ids": (0, -1)},
}


def spoiled(changes: dict) -> Feed:
    feed = pack([BEFORE, REQUEST, BEHIND], once=True)
    first = pack([BEFORE], once=True)
    for name, places in changes.items():
        for place, value in places if isinstance(places[0], tuple) else (places,):
            feed[name][len(first[name]) + place] = value
    return feed


@st.composite
def batches_with_an_empty_request(draw: st.DrawFn) -> tuple[list[list[Pair]], int, list[str], int]:
    """Requests, the place of the one that lacks inputs, their names, and a seed for what stands in memory behind it."""
    batch = draw(several_requests)
    names = draw(st.lists(st.sampled_from(ONCE_REQUEST_INPUTS), min_size=1, unique=True))
    return batch, draw(st.integers(0, len(batch) - 1)), names, draw(st.integers(0, 2**32))


def collect(batch: list[list[Pair]], place: int, names: list[str], seed: int) -> Feed:
    """The batch as Triton's C++ backends merge it where the request at `place` brings no element of the inputs `names`.

    They stop copying such an input there (`BackendInputCollector`), and leave what the memory holds: here numbers that
    pass for the input's, often those of the same batch, as of an earlier execution.
    """
    chance = np.random.default_rng(seed)
    parts = [pack([request], once=True) for request in batch]
    for name in names:
        parts[place] = parts[place] | {name: np.zeros(0, np.int32), COUNT_OF[name]: np.zeros(1, np.int32)}
    feed = {name: np.concatenate([part[name] for part in parts]) for name in ONCE_GRAPH_INPUTS}
    for name in names:
        uncopied = feed[name][sum(len(part[name]) for part in parts[:place]) :]
        if name == "input_ids" or chance.random() < 0.5:
            uncopied[:] = chance.integers(0, 100 if name == "input_ids" else 9, len(uncopied))
    return feed


def with_a_stranger(batch: list[list[Pair]], data: st.DataObject) -> tuple[Feed, range]:
    """The batch with a request of random numbers among the others, and which pairs are that one's."""
    place = data.draw(st.integers(0, len(batch)))
    numbers = st.one_of(st.integers(-2, 60), st.sampled_from([-(2**31), 2**31 - 1, MAX_LENGTH]))
    claimed = {name: data.draw(st.lists(numbers, min_size=1, max_size=30)) for name in ONCE_REQUEST_INPUTS}
    stranger = {name: np.array(values, np.int32) for name, values in claimed.items()}
    stranger |= {COUNT_OF[name]: np.array([len(values)], np.int32) for name, values in claimed.items()}
    parts = [pack([request], once=True) for request in batch]
    parts.insert(place, stranger)
    first = sum(map(len, batch[:place]))
    merged = {name: np.concatenate([part[name] for part in parts]) for name in ONCE_GRAPH_INPUTS}
    return merged, range(first, first + len(claimed["lengths"]))
