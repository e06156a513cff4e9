"""The evaluation that a version was gated on, kept beside it so that a plan built elsewhere meets the same gates.

`gate.npz` holds the evaluation pairs as token ids with their clicks, PyTorch's logits, its further heads' outputs on a
sample, the engine's gates and their limits. With it, `python -m export plan` needs neither the checkpoint nor PyTorch.
Whoever can read the model repository can read the evaluation texts: protect it as you protect the click log.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from export.graph.packing import Feed, Logits, Outputs, Pair, add_longest, pack
from export.verify.comparison import compare
from export.verify.gates import TIE, Gate, GateError, Limits, check, check_finite, describe_failures
from export.verify.heads import HeadReference, compare_heads
from finetune.data.clicklog import ClickRow
from release.names import GATE_FILE, HEAD_OUTPUTS, LOGITS

MERGED = (1, 2, 4)  # requests in a batch
PAIRS_A_REQUEST = 16
# A product of one row may have a kernel of its own, so LONE pairs are also computed alone. Their logits may differ by
# LONE_DIFFERENCE on average from those in a merged batch. (Half precision was off by 0.002, a wrong kernel by 0.8.)
LONE, LONE_DIFFERENCE = 8, 0.1

Batches = list[tuple[slice, list[list[Pair]]]]  # places, and the requests of the pairs there


def save_gate(
    folder: Path,
    rows: Sequence[ClickRow],
    pairs: Sequence[Pair],
    reference: Logits,
    labels: Sequence[str],
    gates: Iterable[Gate],
    limits: Limits,
    heads: HeadReference | None = None,
    *,
    once: bool = False,
) -> None:
    """Writes `gate.npz` into a version's folder; `reference` is PyTorch's logits [rows, labels].

    `once`: the graph computes a user text once.
    """
    allowed = {gate.name: gate.of(limits) for gate in gates}
    names = {name: number for number, name in enumerate(dict.fromkeys(row.group for row in rows))}
    facts = {"labels": list(labels), "gates": allowed, "tie": TIE.of(limits), "once": once}
    further: dict[str, Any] = {}
    if heads:
        facts |= {"head_texts": heads.texts, "several_topics": heads.several_topics}
        further = flatten(heads.samples, "head_") | heads.outputs
    np.savez_compressed(
        folder / GATE_FILE,
        **flatten(pairs),
        **further,
        groups=np.array([names[row.group] for row in rows], dtype=np.int32),
        clicks=np.array([row.clicks for row in rows]),
        impressions=np.array([row.impressions for row in rows]),
        reference=reference,
        facts=np.array(json.dumps(facts)),
    )


def flatten(pairs: Sequence[Pair], prefix: str = "") -> dict[str, Any]:
    """Pairs end to end, as arrays of the file."""
    return {
        f"{prefix}input_ids": np.concatenate([np.array(pair["input_ids"], dtype=np.int32) for pair in pairs]),
        f"{prefix}token_type_ids": np.concatenate([np.array(pair["token_type_ids"], dtype=np.int8) for pair in pairs]),
        f"{prefix}lengths": np.array([len(pair["input_ids"]) for pair in pairs], dtype=np.int32),
    }


def unflatten(kept: Mapping[str, NDArray[Any]], prefix: str = "") -> list[Pair]:
    """The pairs that `flatten` laid end to end."""
    ends = np.cumsum(kept[f"{prefix}lengths"])[:-1]
    texts = zip(*(np.split(kept[f"{prefix}{name}"], ends) for name in ("input_ids", "token_type_ids")), strict=True)
    return [{"input_ids": ids.tolist(), "token_type_ids": types.tolist()} for ids, types in texts]


def read_heads(kept: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> HeadReference | None:
    """The further heads' reference; None if the checkpoint has the click alone."""
    if "head_texts" not in facts:
        return None
    outputs = {name: kept[name] for name in HEAD_OUTPUTS if name in kept}
    return HeadReference(unflatten(kept, "head_"), facts["head_texts"], facts["several_topics"], outputs)


def gate(
    folder: Path,
    run: Callable[[Feed], Outputs],
    known: Iterable[Gate],
    most_requests: int = MERGED[-1],
    most_pairs: int = PAIRS_A_REQUEST,
) -> dict[str, Any]:
    """Holds a plan against the gates that its version was published with.

    Args:
        folder: the version's, with `gate.npz`.
        run: computes the outputs of one packed batch with the inputs of a TensorRT graph.
        known: the gates of this release.
        most_requests, most_pairs: what the plan takes of both, in an execution and in a request, if it is less.

    Returns:
        The comparison, for the plan's stamp.

    Raises:
        GateError: it does not keep the ranking (says what failed, and by how much), or `gate.npz` is not usable.
    """
    try:
        with np.load(folder / GATE_FILE) as opened:
            kept = dict(opened)
        facts = json.loads(str(kept["facts"]))
        by_name = {gate.name: gate for gate in known}
        gates = [by_name[name] for name in facts["gates"]]
        once = bool(facts.get("once"))  # files of an earlier release are of full attention
        reference, pairs, heads = kept["reference"], unflatten(kept), read_heads(kept, facts)
        columns = zip(*(kept[name].tolist() for name in ("groups", "clicks", "impressions")), strict=True)
        rows = [ClickRow(str(group), "", "", clicks, impressions) for group, clicks, impressions in columns]
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as exc:
        raise GateError(f"{folder / GATE_FILE} cannot be read ({exc!r}); export the model again") from exc
    model = folder.parent.name
    batches = partial(merge, most_requests=most_requests, most_pairs=most_pairs)
    logits = compute(model, run, batches(pairs), {LOGITS: reference.shape[1]}, once=once)[LOGITS]
    check_finite(model, {LOGITS: logits})
    comparison = compare(rows, pairs, reference, logits, facts["labels"], facts["tie"])
    if heads:
        found = heads.own(compute(model, run, batches(heads.samples), heads.widths, once=once))
        check_finite(model, found)
        comparison = replace(comparison, heads=compare_heads(found, heads))
    if failures := describe_failures(model, check(gates, comparison, facts["gates"])):
        raise GateError("; ".join(failures))
    alone = np.concatenate([run(add_longest(pack([[pair]], once=once)))[LOGITS] for pair in pairs[:LONE]])
    difference = float(np.abs(alone - logits[:LONE]).mean())
    if not difference <= LONE_DIFFERENCE:  # nor NaN
        raise GateError(
            f"{model}: the logits of {len(alone)} pairs differ by {difference:.2g} on average between a "
            f"batch of one pair and a merged one, allowed is {LONE_DIFFERENCE:g}"
        )
    return asdict(comparison)


def compute(
    model: str, run: Callable[[Feed], Outputs], batches: Batches, widths: Mapping[str, int], *, once: bool
) -> Outputs:
    """A plan's outputs [pairs, width] of all pairs, by name; `once`: the plan computes a user text once.

    Raises:
        GateError: a batch was answered without one of them, or with another shape.
    """
    count = batches[-1][0].stop
    found: Outputs = {name: np.full((count, width), np.nan, np.float32) for name, width in widths.items()}
    for batch, requests in batches:
        answer = run(add_longest(pack(requests, once=once)))
        for name, values in found.items():
            shape = answer[name].shape if name in answer else ()
            if shape != values[batch].shape:
                raise GateError(
                    f"{model}: a batch was answered with {name} of shape {list(shape)}, "
                    f"{list(values[batch].shape)} was expected"
                )
            values[batch] = answer[name]
    return found


def merge(pairs: Sequence[Pair], most_requests: int = MERGED[-1], most_pairs: int = PAIRS_A_REQUEST) -> Batches:
    """Cuts pairs into batches of 1, 2, 4, 1, ... requests of up to PAIRS_A_REQUEST, each with its place in `pairs`."""
    batches: Batches = []
    start, width = 0, min(most_pairs, PAIRS_A_REQUEST)
    for size in cycle(MERGED):
        if start >= len(pairs):
            return batches
        batch = slice(start, min(start + min(size, most_requests) * width, len(pairs)))
        places = range(batch.start, batch.stop, width)
        batches.append((batch, [list(pairs[place : min(place + width, batch.stop)]) for place in places]))
        start = batch.stop
    raise AssertionError("cycle() does not end")
