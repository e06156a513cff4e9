"""The figures of reliability and the rollout: a test records what it measured beside its limit; a table ends the run.

A figure is recorded before it is judged, so that the table shows the failures, too. `make test-reliability` runs all of
the reliability tests, one after another; those that are not marked `reliability` are also part of `make test`.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass

import pytest

FIGURE = "figure"
TESTS = range(1, 31)
COLUMNS = ("test", "figure", "seen", "limit", "verdict")


@dataclass(frozen=True)
class Figure:
    """One row of the table. `test` is its number in docs/reliability.md, or the name of a part of the rollout."""

    test: int | str
    figure: str
    seen: str
    limit: str
    verdict: str


class Figures:
    """Records the figures of one test, and fails it where one does not hold."""

    def __init__(self, node: pytest.Item) -> None:
        self.node = node

    def at_most(self, test: int | str, figure: str, seen: float, limit: float, unit: str = "") -> None:
        """A figure that must not be over its limit."""
        self.judge(test, figure, seen, f"<= {limit:,g}", unit, operator.le(seen, limit))

    def at_least(self, test: int | str, figure: str, seen: float, limit: float, unit: str = "") -> None:
        """A figure that must not be under its limit."""
        self.judge(test, figure, seen, f">= {limit:,g}", unit, operator.ge(seen, limit))

    def exactly(self, test: int | str, figure: str, seen: float, limit: float, unit: str = "") -> None:
        """A count that can be nothing else."""
        self.judge(test, figure, seen, f"{limit:,.0f}", unit, seen == limit)

    def only_told(self, test: int | str, figure: str, seen: float, unit: str = "") -> None:
        """A figure without a limit, which explains the others."""
        self.judge(test, figure, seen, "", unit, holds=True)

    def judge(self, test: int | str, figure: str, seen: float, limit: str, unit: str, holds: bool) -> None:
        """Records a row, and asserts it."""
        number = f"{seen:,.0f}" if float(seen).is_integer() else f"{seen:,.4g}"
        bound = f"{limit} {unit}".strip() if limit else ""
        verdict = ("ok" if holds else "FAILED") if limit else ""
        row = Figure(test, figure, f"{number} {unit}".strip(), bound, verdict)
        self.node.user_properties.append((FIGURE, asdict(row)))
        assert holds, f"{figure}: {row.seen}, the limit is {row.limit}"


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    return Figures(request.node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table. (Properties travel with a test's report, so it is whole with pytest-xdist, too.)"""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [Figure(**value) for report in reports for name, value in report.user_properties if name == FIGURE]
    if not rows:
        return
    terminalreporter.section("figures")
    for line in as_table(sorted(rows, key=lambda row: (isinstance(row.test, str), row.test))):
        terminalreporter.write_line(line)
    missing = [str(number) for number in TESTS if number not in {row.test for row in rows}]
    if 0 < len(missing) < len(TESTS) / 2:
        terminalreporter.write_line(f"no figure for {', '.join(missing)}: skipped, or failed before it")


def as_table(rows: list[Figure]) -> list[str]:
    """A table in Markdown, as docs/reliability.md has it."""
    cells = [COLUMNS, *(tuple(str(value) for value in asdict(row).values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
