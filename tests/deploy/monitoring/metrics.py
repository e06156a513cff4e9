"""The names of metrics: those that rules and dashboards ask for, and those that a scrape has."""

from __future__ import annotations

import re

PREFIXES = "envoy|nv|clickbert"  # and `up`, which Prometheus has by itself
OWN = "up"
NAME = re.compile(rf"(?<![\w:.])(?:(?:{PREFIXES})_\w+|{OWN}(?=\{{))(?![\w:])")


def asked_for(expression: str) -> set[str]:
    """The metrics that an expression reads: no labels, no recorded rules (they have a colon)."""
    without_labels = re.sub(r"\{[^}]*\}", "{}", expression)
    without_grouping = re.sub(r"\b(by|on|without|ignoring|group_left)\s*\([^)]*\)", "", without_labels)
    return set(NAME.findall(without_grouping))


def scraped(text: str) -> set[str]:
    """The metrics that a scrape has a sample of."""
    return {match[1] for line in text.splitlines() if (match := re.match(r"([a-zA-Z_:]\w*)[ {]", line))}
