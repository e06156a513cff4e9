"""The models of a climb, measured in turns: each part for all models before the next part. And the search for an SLO.

The speed of a shared machine changes within minutes, and what is to be held against something is therefore measured
beside it: one model beside another, and what was served between two rounds of its ceiling.

Not known here: how the figures are shown, kept, or compared with a former result's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.load import measure, observed
from benchmarks.load_gen import workload
from benchmarks.load_gen.pool import Load, resting
from benchmarks.load_gen.target import LoadError, Target
from benchmarks.measure.ceiling import Ceiling, find_ceiling
from benchmarks.measure.stats import is_sound, left_of_ceiling
from clickbert.tokenization import PackedPairs
from release.names import CONFIG_FILE
from serving.backends.onnxruntime.workers import usable_cores

USERS = (1, 4, 8)  # and twice as many each time while that brings more
# Twice as many users must bring more than GAIN: steps of one server, on a machine whose speed changes, differ by up to
# that (docs/benchmarks.md). The config's queue takes MOST_USERS.
GAIN, MOST_USERS = 0.2, 128
CLIMB_SECONDS = 4
# At saturation: rounds in which every model takes its turn. A machine that others use changes its speed within seconds:
# a round's share of the ceiling varies by a tenth, which many rounds even out (docs/benchmarks.md).
ROUNDS, ROUND_SECONDS = 8, 5
# So many of the requests are sent in the closed loops and computed for the ceilings, over and over: few enough that a
# round holds each of them where six are answered a second (with several --processes: by each), and with as many tokens
# on average as all of the sample log's have.
DISTINCT = 30
# Shares of the saturated load, and the seconds that each is measured: where the tail is looked at, it needs requests.
SHARES = {0.3: 5, 0.5: 8, 0.7: 14, 0.9: 6}
SEARCHES, SEARCH_SECONDS = 6, 12  # for the highest rate that holds an SLO: 1/64 of the saturated load


@dataclass
class Measured:
    """What is known of a model so far.

    Attributes:
        model: its name.
        config: its text; None on a server elsewhere.
        ceiling: the same.
        closed: the steps of more and more users.
        users: of them, those at saturation.
        rounds: the steps at saturation, with `left_of_ceiling` where there is a ceiling: pairs per second, what the
            generators leave of it.
        open: the steps of the open loop, with their `share` of saturation.
    """

    model: str
    config: str | None
    ceiling: Ceiling | None
    closed: list[dict[str, Any]] = field(default_factory=list)
    users: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    open: list[dict[str, Any]] = field(default_factory=list)

    @property
    def saturated(self) -> dict[str, Any] | None:
        """The means of the rounds whose figures are the server's; None without one.

        Its `of_ceiling` is all that was served in them, held against all that the ceilings beside them would have: what
        disturbs the machine for some seconds, in one or the other, is evened out.
        """
        rounds = [step for step in self.rounds if is_sound(step)]
        if not rounds:
            return None
        means = {name: fmean(each[name] for each in rounds) for name in ("requests_per_s", "pairs_per_s")}
        left = fmean(each["left_of_ceiling"] for each in rounds) if self.ceiling else None
        return {"users": self.users, **means, "of_ceiling": means["pairs_per_s"] / left if left else None}


def facts(found: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """What is known of each model, for a result file; `beside`: see `beside_first`."""
    return {
        each.model: {
            "config": each.config,
            "ceiling": each.ceiling.facts() if each.ceiling else None,
            "closed": each.closed,
            "rounds": each.rounds,
            "open": each.open,
            "saturated": each.saturated,
            "beside": None if each is found[0] else beside_first(each, found[0]),
        }
        for each in found
    }


def beside_first(each: Measured, first: Measured) -> dict[str, Any] | None:
    """A model's throughput / another one's: in all rounds together that have figures of both; None without any."""
    rounds = [steps for steps in zip(each.rounds, first.rounds, strict=False) if all(map(is_sound, steps))]
    pairs = [(one["pairs_per_s"], other["pairs_per_s"]) for one, other in rounds if other["pairs_per_s"]]
    if not pairs:
        return None
    own, others = zip(*pairs, strict=True)
    return {"model": first.model, "rounds": [one / other for one, other in pairs], "ratio": sum(own) / sum(others)}


def climb(
    server: Target, models: Iterable[str], load: Load, packed: Sequence[PackedPairs], folder: Path
) -> Iterator[dict[str, dict[str, Any]]]:
    """Ceilings, closed loops up to saturation, saturation in rounds, open loops.

    Args:
        server: what serves them.
        models: their names.
        load: what is sent; users, rate and duration are chosen here.
        packed: the DISTINCT ones of them, for the ceilings of a server that was started here.
        folder: for logs and samples.

    Yields:
        `facts`, each time that more is known, so that nothing of it need be lost.

    Raises:
        LoadError: there are no figures, or the generator was the limit of every closed step, or of every round.
    """
    found = [prepare(server, model, packed) for model in models]
    total = len(found) * (len(USERS) + ROUNDS + len(SHARES))
    with contextlib.ExitStack() as stack, tqdm(total=total, unit="step", leave=False, disable=None) as bar:
        send: dict[str, Callable[[int, int], dict[str, Any]]] = {}
        generators = {each.model: stack.enter_context(contextlib.ExitStack()) for each in found}

        def start(model: str, users: int) -> None:
            given = replace(load, users=users, distinct=DISTINCT, processes=min(users, load.processes))
            generators[model].close()  # those of fewer users
            send[model] = generators[model].enter_context(resting(server, model, given, folder))

        def loop(each: Measured, users: int, seconds: int) -> dict[str, Any]:
            bar.set_description(each.model)
            step = observed(server, each.model, lambda: send[each.model](users, seconds))
            bar.update()
            return step

        for each in found:
            start(each.model, USERS[-1])
        climbing = found
        for users in numbers_of_users():
            bar.total += len(climbing) * (users > USERS[-1])
            for each in climbing:
                if users > USERS[-1]:
                    start(each.model, users)
                each.closed.append(loop(each, users, CLIMB_SECONDS))
            yield facts(found)
            climbing = [each for each in climbing if users < USERS[-1] or rises(each.closed)]
            if not climbing:
                break
        for each in found:
            each.users = saturating_users(each.model, each.closed)
        for _ in saturate(found, loop):
            yield facts(found)
        stack.close()
        saturated = [fmean(one["requests_per_s"] for one in sound_steps(each.model, each.rounds)) for each in found]
        for share, seconds in SHARES.items():
            for each, most in zip(found, saturated, strict=True):
                bar.set_description(each.model)
                given = replace(load, rate=share * most, duration=seconds)
                each.open.append(measure(server, each.model, given, folder) | {"share": share})
                bar.update()
            yield facts(found)


def prepare(server: Target, model: str, packed: Sequence[PackedPairs]) -> Measured:
    """A model of which nothing is known yet but the way to its ceiling."""
    if server.repository is None:
        return Measured(model, None, None)
    config = (server.repository / model / CONFIG_FILE).read_text(encoding="utf-8")
    return Measured(model, config, find_ceiling(workload.newest_version(server.repository, model), packed))


def numbers_of_users() -> Iterator[int]:
    """USERS, and twice as many each time up to MOST_USERS."""
    yield from USERS
    yield from itertools.takewhile(lambda users: users <= MOST_USERS, (USERS[-1] << n for n in itertools.count(1)))


def sound_steps(model: str, steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps whose figures are the server's. Raises LoadError if there is none, or nothing was answered in any."""
    sound = [step for step in steps if is_sound(step)]
    if not sound:
        raise LoadError(f"{model}: {steps[-1]['generator']['limit']}; give more --processes")
    if not any(step["requests_per_s"] for step in sound):
        said = "; ".join(f"{kind}: {text}" for kind, text in sound[-1]["generator"]["first_messages"].items())
        raise LoadError(f"{model} answered nothing in time ({said or 'no error either'}); see the server's log")
    return sound


def rises(closed: Sequence[dict[str, Any]]) -> bool:
    """Whether the last step, without an error, brought more than all before it, beyond noise."""
    *before, last = (step["pairs_per_s"] for step in closed)
    return is_sound(closed[-1]) and not closed[-1]["errors"] and last > (1 + GAIN) * max(before, default=0.0)


def saturating_users(model: str, closed: Sequence[dict[str, Any]]) -> int:
    """The least number of users that saturates the server but for noise, from the last of USERS on.

    Fewer are taken only if they are faster by more than GAIN: less is noise, and two runs are to choose the same.
    Steps with errors count only if all have some. Raises LoadError without a figure.
    """
    sound = sound_steps(model, closed)
    sound = [step for step in sound if not step["errors"]] or sound
    fastest = max(sound, key=lambda step: step["pairs_per_s"])
    enough = [step for step in sound if step["users"] >= USERS[-1]]
    best = max((step["pairs_per_s"] for step in enough), default=0.0)
    if not enough or (1 + GAIN) * best < fastest["pairs_per_s"]:
        return int(fastest["users"])
    return next(int(step["users"]) for step in enough if (1 + GAIN) * step["pairs_per_s"] >= best)


def saturate(found: Sequence[Measured], loop: Callable[[Measured, int, int], dict[str, Any]]) -> Iterator[None]:
    """The rounds at saturation, with a round of every ceiling before, between and after them; yields after each."""
    with_ceiling = [(each, each.ceiling) for each in found if each.ceiling]
    for _, ceiling in with_ceiling:
        ceiling.measure()
    for _ in range(ROUNDS):
        for each in found:
            each.rounds.append(loop(each, each.users, ROUND_SECONDS))
        for each, ceiling in with_ceiling:
            ceiling.measure()
            # Of the rounds before and after the step.
            around = ceiling.facts() | {"pairs_per_second": fmean(ceiling.rounds[-2:])}
            each.rounds[-1]["left_of_ceiling"] = left_of_ceiling(around, each.rounds[-1], usable_cores())
        yield


def search(
    server: Target, model: str, load: Load, saturated: float, aim: tuple[str, float], folder: Path
) -> dict[str, Any]:
    """The highest rate of requests, in an open loop, whose latency holds an aim; by halving what is left of the range.

    Args:
        server, load, folder: as in `climb`.
        model: its name.
        saturated: requests a second that the closed loop reached.
        aim: a percentile and its milliseconds.

    Returns:
        aim, requests_per_s (None if even the least rate breaks it, or the generator was the limit), steps.
    """
    percentile, limit = aim
    low, high, steps = 0.0, saturated, []
    for _ in tqdm(range(SEARCHES), desc=f"{percentile}={limit:g}ms", unit="step", leave=False, disable=None):
        rate = (low + high) / 2
        if rate * SEARCH_SECONDS < load.processes:  # less than a request for each generator: there is no figure of that
            break
        step = measure(server, model, replace(load, rate=rate, duration=SEARCH_SECONDS), folder)
        latency = step["latency_ms"]
        holds = bool(is_sound(step) and not step["errors"] and latency and latency[percentile] <= limit)
        steps.append(step | {"holds": holds})
        if not is_sound(step):  # what the server can do was not measured; higher or lower rates cannot tell
            return {"aim": f"{percentile}={limit:g}ms", "requests_per_s": None, "steps": steps}
        low, high = (rate, high) if holds else (low, rate)
    return {"aim": f"{percentile}={limit:g}ms", "requests_per_s": low or None, "steps": steps}
