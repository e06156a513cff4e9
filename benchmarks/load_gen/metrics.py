"""Reads a server's metrics: lines of `name{label="value",...} number`, as Prometheus has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:\\.|[^"\\])*)"')


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's values over all label sets that have these labels; 0 if there is none."""
    return sum(value for own, value in read(text, name) if labels.items() <= own.items())


def read(text: str, name: str) -> list[tuple[Mapping[str, str], float]]:
    """A metric's label sets and values."""
    found = [LINE.match(line) for line in text.splitlines() if line.startswith(name)]
    return [(dict(LABEL.findall(each[2] or "")), float(each[3])) for each in found if each and each[1] == name]
