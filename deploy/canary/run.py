"""Moves the callers to a new release step by step, and back where it is not as good.

First the canary gets a copy of the calls, and its answers are thrown away. Then 1, 10, 50 and 100 % of the calls are
its own; what it fails, a stable server answers. At each step its errors, its p99 and its scores are compared with those
of the stable servers in the same time. It runs beside the gateway, which knows the canary by `--canary`.

    python -m deploy canary --stable-metrics 10.0.0.1:8002 --stable-metrics 10.0.0.2:8002 --canary-metrics 10.0.0.9:8002
    python -m deploy canary --back          all calls to the stable servers, whatever was before

Ends with 0 promoted (100 % stays), 1 rolled back, 2 not begun, 3 not rolled back everywhere, 130 interrupted (rolled
back, too). The last line of stdout is JSON. deploy/canary/README.md says what each limit means, and what to do next.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from deploy.canary.gateways import (
    ACTIVE,
    CANARY,
    ERROR,
    STABLE,
    SUCCESS,
    TOTAL,
    AdminError,
    Counts,
    Gateways,
    Split,
)
from deploy.canary.judging import BAD, GOOD, Finding, Limits, Side, judge
from deploy.canary.scores import ANSWERED, REFUSED, SCORES, Servers
from deploy.gateway.run import address

LOOK = 1.0  # seconds between two looks
SETTLE = 6.0  # seconds after a change of the weights that are not counted: Envoy's times are up to 5 s late
STEADY = 5  # looks in a row that find everything good, before a step ends
BACK_TRIES = 5
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
WEIGHTS = (1, 10, 50, 100)  # percent


class RolledBack(Exception):  # noqa: N818 - an outcome
    """The canary is not as good, or that could not be seen. The message is the reason."""


class Interrupted(BaseException):
    """A signal asked for the end; the message is its name."""


def plan(shadow: int) -> list[Split]:
    """The steps: a shadow of so many percent, then the weights."""
    return [Split(shadow=shadow), *(Split(weight=weight) for weight in WEIGHTS)]


@dataclass(frozen=True)
class Pace:
    """Seconds that a step takes at least, and at most; and those before it, which are not counted."""

    step: float
    patience: float
    settle: float = SETTLE


class Canary:
    """One run. `clock` and `sleep` are time's."""

    def __init__(
        self,
        gateways: Gateways,
        read: Callable[[], Counts],
        limits: Limits,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.gateways, self.read, self.limits, self.pace = gateways, read, limits, pace
        self.clock, self.sleep = clock, sleep

    def run(self, steps: Sequence[Split]) -> None:
        """Takes each step. Raises RolledBack, or AdminError, and leaves the weights as they are then."""
        stable = Side()
        for split in steps:
            stable = self.step(split, stable)

    def step(self, split: Split, former: Side) -> Side:
        """Takes one step, until it is good. Returns what the stable servers did.

        Args:
            former: what they did in the step before; the canary is compared with it where they get no calls.
        """
        self.gateways.set(split)
        self.sleep(self.pace.settle)  # what went by the former weights
        before, start, steady = self.read(), self.clock(), 0
        while True:
            self.sleep(LOOK)
            self.gateways.check(split)
            after, seconds = self.read(), self.clock() - start
            stable, canary = side(before, after, STABLE), side(before, after, CANARY)
            if split.weight == 100:
                stable = former
            passed = min(seconds / self.pace.patience, 1.0)
            findings = judge(stable, canary, self.limits, same_calls=split.shadow == 100, passed=passed)
            line = tell(split, stable, canary, findings, seconds)
            bad = [each.told for each in findings if each.verdict == BAD]
            if bad:
                raise RolledBack(f"{line}: {' and '.join(bad)} of the canary, beyond the limit")
            steady = steady + 1 if all(each.verdict == GOOD for each in findings) else 0
            if seconds >= self.pace.step and steady >= STEADY:
                print(f"canary: {line}: good", flush=True)
                return stable
            if seconds >= self.pace.patience:
                raise RolledBack(f"{line}: {self.undecided(stable, canary, findings)}")

    def undecided(self, stable: Side, canary: Side, findings: Sequence[Finding]) -> str:
        """Why patience has ended."""
        for name, each in (("stable servers", stable), ("canary", canary)):
            if each.asked < self.limits.least_calls:
                return (
                    f"the {name} had {each.asked} rankings of the {self.limits.least_calls} needed, patience has ended"
                )
        open_ones = [each.told for each in findings if each.verdict != GOOD]
        if not open_ones:
            return f"good for less than {STEADY} looks in a row; patience has ended"
        return f"{' and '.join(open_ones)}: beyond the limit or unknown, though not surely; patience has ended"


def side(before: Counts, after: Counts, cluster: str) -> Side:
    """What a cluster's servers did between two readings. A count that fell began anew: its server was restarted."""
    found: Counter[Any] = Counter()
    for key in before.keys() | after.keys():  # a count of nothing may be in one of them alone
        _, own, what, _ = key
        if own == cluster:
            found[what] += after[key] - before[key] if after[key] >= before[key] or what == ACTIVE else after[key]
    good, failed = found[SUCCESS], found[ERROR]
    # Those that ended without an answer: given up by their callers, or out of time.
    lost = max(0, found[TOTAL] - good - failed - found[ACTIVE])
    counted = {what: count for what, count in found.items() if count > 0 and isinstance(what, tuple)}
    times = {what: count for what, count in counted.items() if isinstance(what[0], float | int)}
    pairs = {what[1:]: count for what, count in counted.items() if what[0] == SCORES}
    answered = {what[1]: count for what, count in counted.items() if what[0] == ANSWERED}
    return Side(good, failed + lost, times, pairs, found[REFUSED], answered)


def tell(split: Split, stable: Side, canary: Side, findings: Sequence[Finding], seconds: float) -> str:
    """A step's figures; the stable servers' are first."""
    name = f"shadow {split.shadow} %" if split.shadow else f"weight {split.weight} %"
    figures = ", ".join(each.told for each in findings)
    return f"{name}: {stable.asked} and {canary.asked} rankings, {figures}, {seconds:.0f} s"


def main(given: Sequence[str]) -> int:
    """The command.

    Returns:
        The exit code: 0 promoted, 1 rolled back, 2 not begun, 3 not rolled back everywhere, 130 interrupted.
    """
    options = parse(given)
    gateways = Gateways(options.admin)
    if options.back:
        return 3 if go_back(gateways, "all calls are the stable servers'") else 0
    servers = Servers(options.stable_metrics, options.canary_metrics)

    def read() -> Counts:
        counts = gateways.counts()
        counts.update(servers.counts())  # not `+`, which drops what is 0
        return counts

    limits = Limits(options.errors, options.p99, options.drift, options.least_calls)
    canary = Canary(gateways, read, limits, Pace(options.step_seconds, options.patience))
    try:
        gateways.check(Split())
        read()
    except AdminError as exc:
        print(f"canary: not begun: {exc}. If weights were left: python -m deploy canary --back", file=sys.stderr)
        return 2
    code, outcome, reason = 1, "rolled back", ""
    own_error: Exception | None = None
    try:
        try:
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it to live on
                    signal.signal(number, interrupt)
            canary.run(plan(options.shadow))
            ignore_signals()
            print(
                "canary: promoted: it has all calls of the gateways named. Load its version at the stable servers, "
                "then --back",
                flush=True,
            )
            code, outcome = 0, "promoted"
        except (RolledBack, AdminError) as exc:
            reason = str(exc)
        except Exception as exc:
            own_error, reason = exc, f"{type(exc).__name__} in the command itself"
        ignore_signals()
    except Interrupted as exc:  # at most one, wherever it was above: its handler ignores all others
        code, outcome, reason = 130, "interrupted", str(exc)
    left = go_back(gateways, f"rolled back: {reason}") if code else []
    if left:
        code, outcome = 3, "not rolled back"
    print(json.dumps({"outcome": outcome, "reason": reason, "not_rolled_back": left}), flush=True)
    if own_error:
        raise own_error
    return code


def go_back(gateways: Gateways, told: str) -> list[str]:
    """All calls to the stable servers, and tells it so. No signal ends it.

    Returns what gateways say that cannot be set.
    """
    ignore_signals()
    errors = gateways.back()
    for _ in range(BACK_TRIES - 1):
        if errors:
            time.sleep(LOOK)
            errors = gateways.back()
    print(f"canary: {'NOT everywhere: ' if errors else ''}{told}", file=sys.stderr)
    for error in errors:
        print(f"canary: NOT rolled back there: {error}. Once it runs: python -m deploy canary --back", file=sys.stderr)
    return errors


def ignore_signals() -> None:
    """From now on none ends the command. Not by SIG_IGN: Python reports a signal that has come just before."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Handles the first signal; further ones do not stop what comes then."""
    ignore_signals()
    raise Interrupted(signal.Signals(number).name)


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy canary",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument

    def servers(option: str, what: str) -> None:
        add(option, type=address, action="append", default=[], metavar="HOST:PORT", help=what)

    servers("--admin", "a gateway's admin port; repeat it for all gateways (default 127.0.0.1:9901)")
    servers("--stable-metrics", "a stable Triton's metrics port; repeat it for all")
    servers("--canary-metrics", "a canary's; repeat it for all")
    add("--back", action="store_true", help="all calls to the stable servers, and end")
    add("--shadow", type=percent, default=100, metavar="PERCENT", help="calls that are copied (default %(default)s)")
    add("--errors", type=positive, default=0.01, metavar="DIFFERENCE", help="of the error ratios (default %(default)s)")
    add("--p99", type=positive, default=1.5, metavar="RATIO", help="of the 99th percentiles (default %(default)s)")
    add("--drift", type=positive, default=0.25, metavar="PSI", help="of the scores (default %(default)s)")
    add("--least-calls", type=count, default=300, metavar="N", help="rankings of each side, at each step (%(default)s)")
    add("--step-seconds", type=positive, default=120.0, metavar="S", help="a step takes as long (default %(default)s)")
    add(
        "--patience", type=positive, default=1800.0, metavar="S", help="then an undecided step rolls back (%(default)s)"
    )
    options = parser.parse_args(given)
    options.admin = options.admin or [("127.0.0.1", 9901)]
    if not options.back and not (options.stable_metrics and options.canary_metrics):
        parser.error("scores are compared by --stable-metrics and --canary-metrics: give those of all servers")
    if options.patience < options.step_seconds:
        parser.error("--patience is less than --step-seconds")
    return options


def positive(text: str) -> float:
    """A number above 0. Raises ValueError."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def count(text: str) -> int:
    """A number of calls. Raises ValueError."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def percent(text: str) -> int:
    """A share. Raises ValueError."""
    if not 1 <= int(text) <= 100:
        raise ValueError
    return int(text)
