"""Proves that a graph gives the logits and, up to rounding, the order of Hugging Face's own padded pass, on real pairs.

The graph scores the pairs of the evaluation file in merged batches of mixed sizes, from one pair to several hundred,
cut into requests as Triton would merge them. This proves nothing about pairs unlike those of the evaluation file, and
nothing about Triton; the integration tests run Triton.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.graph.packing import Feed, Logits, Outputs, Pair, pack, split_pair
from export.verify.exact import ExactScores, measure_rounding
from export.verify.heads import HeadReference
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import group_rows, to_log_odds
from release.names import LOGITS

BATCH_SIZES = (1, 2, 5, 20, 64)  # pairs; the first batch, of short pairs, holds LARGEST
LARGEST = 300
# Attention's memory is pairs x longest^2. This is 64 pairs of 512 tokens: 0.8 GB of scores in MiniLM's 12 heads.
CELLS = 64 * 512**2
# Scores closer than this are equal up to float32 rounding, and have no order to keep.
TIE = 1e-6
SWAPPED = 8  # rows, so at least four pairs that changed places, are sure to be computed in float64


class ParityError(RuntimeError):
    """The graph does not compute what the checkpoint computes. Nothing may be published."""


@dataclass(frozen=True)
class Parity:
    """What was proved, on `pairs` in `batches` merged batches of `smallest_batch` to `largest_batch` pairs."""

    max_abs_diff: float
    mean_abs_diff: float
    tolerance: float
    pairs: int
    batches: int
    smallest_batch: int
    largest_batch: int
    groups_in_order: int


def prove(
    run: Callable[[Feed], Outputs],
    rows: Sequence[ClickRow],
    pairs: Sequence[Pair],
    reference: Logits,
    tolerance: float,
    click_column: int,
    exact: ExactScores,
    *,
    once: bool = False,
) -> tuple[Parity, Logits]:
    """Compares the graph with the reference on every row.

    Args:
        run: computes the outputs of one packed batch.
        rows: the evaluation file: what errors call a pair, and which pairs are ranked together.
        pairs: the rows' pairs, tokenized.
        reference: float32 [rows, labels], Hugging Face's.
        tolerance: largest difference of a logit that is allowed.
        click_column: the label that ranks.
        exact: computes the pairs at some places in float64; asked only where the two differ.
        once: the graph computes a user text once.

    Returns:
        The figures, and the graph's own logits [rows, labels].

    Raises:
        ParityError: a logit is off (or not a number), or a group's order changed by more than rounding; says which, by
            how much, and what float64 says.
    """
    logits = score_merged(run, pairs, {LOGITS: reference.shape[1]}, once=once)[LOGITS]
    batches = plan_batches([len(pair["input_ids"]) for pair in pairs])
    difference, (row, label) = differ(logits, reference)
    if difference[row, label] > tolerance:
        advice = ""
        if np.isfinite(difference).all():
            rounding = measure_rounding(worst_first(difference), exact, reference, logits)
            enough = f"; --tolerance {2 * difference.max():.1g} allows it" if rounding.explains else ""
            advice = f"; {rounding}{enough}"
        raise ParityError(
            f"parity failed at {name_row(rows, row)}, label {label}: the graph says {logits[row, label]:.6g}, "
            f"Hugging Face {reference[row, label]:.6g}; the difference {difference[row, label]:.3g} is over the "
            f"tolerance {tolerance:g} ({int((difference > tolerance).any(1).sum())} of {len(rows)} pairs are)"
            f"{advice}"
        )
    figures = Parity(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        tolerance=tolerance,
        pairs=len(rows),
        batches=len(batches),
        smallest_batch=min(map(len, batches)),
        largest_batch=max(map(len, batches)),
        groups_in_order=check_order(rows, reference, logits, click_column, exact),
    )
    return figures, logits


def prove_heads(
    run: Callable[[Feed], Outputs], reference: HeadReference, tolerance: float, *, once: bool = False
) -> None:
    """Compares the graph's further heads with PyTorch's.

    Raises:
        ParityError: an output is off by more than `tolerance`, or not a number; says which, by how much.
    """
    for name, values in score_heads_merged(run, reference, once=once).items():
        expected = reference.outputs[name]
        difference, (row, column) = differ(values, expected)
        if difference[row, column] > tolerance:
            raise ParityError(
                f"parity failed at {name}, column {column} of sample {row + 1}: the graph says "
                f"{values[row, column]:.6g}, PyTorch {expected[row, column]:.6g}; the difference "
                f"{difference[row, column]:.3g} is over the tolerance {tolerance:g} "
                f"({int((difference > tolerance).any(1).sum())} of {len(expected)} samples are)"
            )


def differ(
    found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """How far each number is off, infinite where one is none, and the row and column of the largest difference."""
    difference = np.abs(found.astype(np.float64) - expected)
    difference[~np.isfinite(difference)] = np.inf
    row, column = np.unravel_index(int(difference.argmax()), difference.shape)
    return difference, (int(row), int(column))


def worst_first(difference: NDArray[np.float64]) -> list[int]:
    """The rows of differences [rows, columns], those that are off most first."""
    places: list[int] = np.argsort(-difference.max(axis=1), kind="stable").tolist()
    return places


def score_heads_merged(run: Callable[[Feed], Outputs], reference: HeadReference, *, once: bool = False) -> Outputs:
    """The graph's outputs where the reference has PyTorch's; see `score_merged`."""
    return reference.own(score_merged(run, reference.samples, reference.widths, once=once))


def score_merged(
    run: Callable[[Feed], Outputs], pairs: Sequence[Pair], widths: Mapping[str, int], *, once: bool = False
) -> Outputs:
    """The outputs [pairs, width] of all pairs, by name, run in merged batches of mixed sizes.

    With `once`, the graph computes a user text once, and pairs with the same user text are in the same batches.

    Raises:
        ParityError: a batch was answered without one of them, or with another shape.
    """
    found: Outputs = {name: np.full((len(pairs), width), np.nan, np.float32) for name, width in widths.items()}
    chance = random.Random(0)
    with tqdm(total=len(pairs), unit="pair", desc="score", leave=False) as progress:
        users = [split_pair(pair)[0] for pair in pairs] if once else None
        for batch in plan_batches([len(pair["input_ids"]) for pair in pairs], users):
            answer = run(pack(cut_into_requests([pairs[index] for index in batch], chance), once=once))
            for name, values in found.items():
                shape = answer[name].shape if name in answer else ()
                if shape != (len(batch), widths[name]):
                    raise ParityError(
                        f"a batch of {len(batch)} pairs was answered with {name} of shape {list(shape)}, "
                        f"[{len(batch)}, {widths[name]}] was expected"
                    )
                values[batch] = answer[name]
            progress.update(len(batch))
    return found


def plan_batches(lengths: Sequence[int], users: Sequence[list[int]] | None = None) -> list[list[int]]:
    """Splits pairs, given by their lengths, into batches of mixed sizes, the first of the shortest pairs.

    With `users`, the tokens of each pair's user text, pairs of a user stand side by side.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    # At most half, so that a small file has batches of other sizes, too.
    largest = by_length[: min(LARGEST, len(by_length) // 2)]
    while largest and len(largest) * lengths[largest[-1]] ** 2 > CELLS:
        largest.pop()
    rest = sorted(set(by_length) - set(largest))
    random.Random(0).shuffle(rest)
    if users:
        largest, rest = side_by_side(largest, users), side_by_side(rest, users)
    batches = [largest] if largest else []
    sizes = cycle(BATCH_SIZES)
    while rest:
        size = next(sizes)
        while size > 1 and size * max(lengths[index] for index in rest[:size]) ** 2 > CELLS:
            size -= 1
        batches.append(rest[:size])
        rest = rest[size:]
    return batches


def side_by_side(chosen: Sequence[int], users: Sequence[list[int]]) -> list[int]:
    """The chosen pairs, those of a user behind its first one."""
    place: dict[tuple[int, ...], int] = {}
    for index in chosen:
        place.setdefault(tuple(users[index]), len(place))
    return sorted(chosen, key=lambda index: place[tuple(users[index])])


def cut_into_requests(pairs: list[Pair], chance: random.Random) -> list[list[Pair]]:
    """Cuts one batch into requests of 1 to 20 pairs, as if several callers had sent them."""
    requests = []
    while pairs:
        size = chance.randint(1, 20)
        requests.append(pairs[:size])
        pairs = pairs[size:]
    return requests


def check_order(
    rows: Sequence[ClickRow], reference: Logits, found: Logits, click_column: int, exact: ExactScores
) -> int:
    """Checks that no two candidates of a group changed places by more than rounding can explain.

    Args:
        rows: the evaluation file.
        reference: float32 [rows, labels], Hugging Face's.
        found: float32 [rows, labels], the graph's.
        click_column: the label that ranks.
        exact: computes the pairs at some places in float64.

    Returns:
        The number of groups whose order is the same.

    Raises:
        ParityError: two candidates did.
    """
    # Of several labels, too: what ranks is the click's logit less the others'.
    expected, actual = (to_log_odds(logits, click_column) for logits in (reference, found))
    groups, swapped, changed = group_rows(rows), [], 0
    for members in groups:
        before, after = (scores[members][:, None] - scores[members][None, :] for scores in (expected, actual))
        places = np.argwhere((before > TIE) & (after <= 0))
        swapped += [(int(members[better]), int(members[worse])) for better, worse in places]
        changed += bool(len(places))
    if not swapped:
        return len(groups)
    swapped.sort(key=lambda pair: expected[pair[1]] - expected[pair[0]])  # the widest apart first
    # Two rows may happen to be exact in one of the two, so the pairs that differ most are looked at as well.
    odds = expected[:, None], actual[:, None]
    looked_at = [place for pair in swapped for place in pair][:SWAPPED] + worst_first(differ(*odds)[0])
    rounding = measure_rounding(looked_at, lambda places: to_log_odds(exact(places), click_column)[:, None], *odds)
    if not rounding.graph_is_right:
        better, worse = swapped[0]
        raise ParityError(
            f"the order of group {rows[better].group!r} changed: {name_row(rows, better)} scored "
            f"{expected[better]:.7g} over {expected[worse]:.7g} of {name_row(rows, worse)}, the graph gives "
            f"{actual[better]:.7g} and {actual[worse]:.7g}; {rounding}"
        )
    return len(groups) - changed


def name_row(rows: Sequence[ClickRow], index: int) -> str:
    """What an error calls a row: its place in the file and the start of its texts."""
    row = rows[index]
    return f"pair {index + 1} (group {row.group!r}, query {row.query[:40]!r}, document {row.document[:40]!r})"
