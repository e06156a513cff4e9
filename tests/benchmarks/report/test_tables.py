"""Tables of steps and models, for the screen and the page alike."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.measure.recording import CLASSES, LARGEST, MIDDLE, SMALL, Sample
from benchmarks.measure.schema import Slo, TimeSplit
from benchmarks.measure.stats import summarize
from benchmarks.report.tables import CLIENT_BOUND, Table, every_step_table, size_table, step_table, summary_table
from tests.benchmarks.made_up import BUSY, MODELS, client_bound, make_result, with_model, with_step

SAMPLES = [Sample(1.0, 0.0, 0.25, 10, None, SMALL), Sample(1.0, 0.0, 0.1, 3, "ServerTimeoutError", SMALL)]


def test_columns_of_numbers_are_to_the_right_and_words_to_the_left() -> None:
    text = Table(("what", "pairs/s", ""), (("one", "5", ""), ("another", "12345", "a note"))).text()
    assert text.splitlines() == ["what     pairs/s", "one            5", "another    12345  a note"]


def test_the_table_shows_the_figures_and_each_kind_of_error() -> None:
    steps = [summarize(SAMPLES, 0, 2, users=4), summarize(SAMPLES * 3, 0, 2, rate=12.5)]
    table = step_table(steps)
    assert table.heads == ("load", "requests", "errors", "requests/s", "pairs/s", "p50 ms", "p95 ms", "p99 ms", "")
    assert table.rows == (
        ("4 users", "2", "1", "0.5", "5", "250.0", "250.0", "250.0", "1 x ServerTimeoutError"),
        ("12.5/s", "6", "3", "1.5", "15", "250.0", "250.0", "250.0", "3 x ServerTimeoutError"),
    )
    split = [replace(step, time_split=TimeSplit(1, 2, 3), requests_per_execution=1.5) for step in steps]
    assert step_table(split).rows[0][8:] == ("1 / 2 / 3", "1.5", "1 x ServerTimeoutError")
    chunked = [replace(step, requests_per_execution=None, tokens_per_chunk=200.4) for step in split]
    assert step_table(chunked).heads[8:] == ("queue / compute / rest ms", "tokens a chunk", "")
    assert step_table(chunked).rows[0][8:] == ("1 / 2 / 3", "200", "1 x ServerTimeoutError")


def test_a_client_bound_step_has_no_figures_and_says_why() -> None:
    one = summarize(SAMPLES[:1], 0, 2, users=1)
    table = step_table([one, replace(one, users=8, client_bound=BUSY)])
    assert table.rows[0] == ("1 user", "1", "0", "0.5", "5", "250.0", "250.0", "250.0", "")
    assert table.rows[1] == ("8 users", "1", "0", "-", "-", "-", "-", "-", f"{CLIENT_BOUND}: {BUSY}")
    assert table.marked == {1}


def test_latencies_by_size_are_those_of_one_user_and_the_open_loop() -> None:
    small = [Sample(1.0, 0.0, latency / 1000, 1, None, SMALL) for latency in (10, 20, 30)]
    others = [Sample(1.0, 0.0, 0.5, 1, None, LARGEST), Sample(1.0, 0.0, 9.0, 1, "ServerTimeoutError", MIDDLE)]
    found = make_result().models[MODELS[0]]
    opened = [summarize([*small, *others], 0, 2, rate=12.5), client_bound(summarize(small, 0, 2, rate=20.0))]
    found = replace(
        found,
        closed=(summarize(small, 0, 2, users=1), summarize(small, 0, 2, users=4)),
        open=tuple(replace(one, step=step) for one, step in zip(found.open, opened, strict=False)),
    )
    table = size_table(found)
    assert table.heads == ("size", "one user", "12.5/s", "20.0/s", "")
    assert [row[0] for row in table.rows] == [*CLASSES, "all"]
    assert table.rows[0] == (SMALL, "20 / 29 / 30", "20 / 29 / 30", "-", "")
    assert table.rows[2] == (LARGEST, "-", "500 / 500 / 500", "-", "")
    assert table.rows[3][1:4] == ("20 / 29 / 30", "25 / 429 / 486", "-")


def test_every_step_says_what_it_was_and_whether_it_meets_the_objective() -> None:
    result = with_step(make_result(rounds=3), "closed", 2, client_bound)
    found = result.models[MODELS[0]]
    notes = [row[-1] for row in every_step_table(found).rows]
    left = [f"at saturation; left of the ceiling: {one.left_of_ceiling:.0f}" for one in found.rounds]
    assert notes == ["", "", f"{CLIENT_BOUND}: {BUSY}", *left, *[""] * 4]
    slo = Slo("p50", 25.0)
    table = step_table([found.open[0].step, replace(found.open[0].step, errors=1)], slo)
    assert [row[-1] for row in table.rows] == ["p50=25ms holds", "p50=25ms does not hold"]


def test_the_summary_names_a_model_without_figures() -> None:
    result = with_model(make_result(), MODELS[1], rounds=(), failure="it answered nothing within 4 s")
    table = summary_table(result.models)
    assert table.rows[1][:7] == (MODELS[1], "2", "-", "-", "-", table.rows[1][5], "-")
    assert table.rows[1][-1].startswith("it answered nothing within 4 s; fastest in process: ")
    assert table.marked == {1}
    assert table.rows[0][6].endswith("%")
