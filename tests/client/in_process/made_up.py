"""The made-up click model of tests/client/fake_model.py, computed in this process, without ONNX Runtime or PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from clickbert.in_process.model import Compute, Model
from clickbert.in_process.names import KEPT, KEPT_EARLIER, KEPT_PREFIXES
from clickbert.in_process.pieces import cut
from clickbert.wire.protocol import InferRequest, ModelDescription
from tests.client.fake_model import Published, model_outputs, tokenizer_outputs

PAIR_INPUTS = ("input_ids", "token_type_ids", "lengths")
USER_INPUTS = ("input_ids", "user_lengths", "user_pairs", "lengths")


def compute(published: Published, inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What a graph does: the rows of a piece; and of its queries what it keeps, which here is their tokens."""
    wanted = tuple(name for name in outputs if name != KEPT)
    kept = {}
    if "user_lengths" in inputs:
        inputs, users = with_users(inputs)
        if KEPT in outputs:
            longest = max(map(len, users))
            padded = [[[[token]] for token in [*user, *[0] * (longest - len(user))]] for user in users]
            kept[KEPT] = np.array(padded, np.float32).transpose(2, 0, 3, 1)[..., np.newaxis]
    request = InferRequest("", "", {name: array[np.newaxis] for name, array in inputs.items()}, wanted)
    return {name: rows[0] for name, rows in model_outputs(published, request).items()} | kept


def with_users(inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """The piece with the tokens of every query in it, in place of what was kept of some; and these tokens."""
    ids, lengths = iter(inputs["input_ids"].tolist()), iter(inputs["lengths"].tolist())
    sizes, pairs = inputs["user_lengths"].tolist(), inputs["user_pairs"].tolist()
    earlier = inputs.get(KEPT_PREFIXES, np.zeros(len(sizes), np.int32)).tolist()
    tokens, users = [], []
    for place, size, count in zip(earlier, sizes, pairs, strict=True):
        if place:
            users.append(inputs[KEPT_EARLIER][0, place - 1, 0, :size, 0].astype(int).tolist())
        else:
            users.append([next(ids) for _ in range(size)])
        tokens += users[-1] + [next(ids) for _ in range(count) for _ in range(next(lengths))]
    assert not [*ids, *lengths]
    whole = {name: array for name, array in inputs.items() if name not in (KEPT_PREFIXES, KEPT_EARLIER)}
    return whole | {"input_ids": np.array(tokens, np.int32)}, users


def make_model(
    published: Published | None = None, budget: int = 24, threads: int = 2, opening: Callable[[], Compute] | None = None
) -> Model:
    """The model, as a published version is read."""
    published = published or Published()
    inputs = PAIR_INPUTS if published.user_tokens is None else USER_INPUTS
    return Model(
        path=Path("/models/made-up/1"),
        name="made-up",
        version="1",
        description=ModelDescription(("1",), {"max_elements.lengths": "8"}, inputs),
        tokenizer=tokenizer_outputs(published),
        cut=partial(cut, budget=budget),
        threads=threads,
        open=opening or (lambda: partial(compute, published)),
    )


class Gate:
    """A graph whose executions wait until they are let go; `open` opens it."""

    def __init__(self, published: Published | None = None) -> None:
        self.published = published or Published()
        self.opened = self.begun = 0
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> Compute:
        self.opened += 1

        def wait_and_compute(inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
            with self._lock:
                self.begun += 1
            assert self.let_go.wait(60)
            return compute(self.published, inputs, outputs)

        return wait_and_compute
