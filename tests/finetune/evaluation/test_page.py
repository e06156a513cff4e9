"""The page: one file that fetches nothing, with every figure, and pictures that show what was measured."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.clicklog import ClickRow
from finetune.evaluation.bootstrap import bootstrap
from finetune.evaluation.checkpoint import Evaluation, Oddities
from finetune.evaluation.heads import EmbeddingReport, TopicReport, TopicScore
from finetune.evaluation.metrics import ScoredLog, measure
from finetune.evaluation.page import plot_calibration, plot_roc, plot_scores, plot_values, write_page
from finetune.evaluation.report import field_lines
from finetune.evaluation.slices import measure_by


def make_evaluation(by: Sequence[str] = ("domain", "position")) -> Evaluation:
    """Forty groups of three in two domains, with a third that has too little."""
    chance = np.random.default_rng(0)
    rows = [
        ClickRow(f"g{group}", "q", "d", float(chance.integers(5, 40)), 50, position=position,
                 others={"domain": ("sports", "a & $b$ <c>")[group % 2]})
        for group in range(40)
        for position in (1, 2, 3)
    ]  # fmt: skip
    rows.append(ClickRow("x", "", "d", 1, 2, others={"domain": "rare"}))
    log = ScoredLog.of(rows, chance.random(len(rows)).round(2))
    return Evaluation(
        log, measure(log), bootstrap(log, 100), Oddities(1, 1, 0), None, None, measure_by(rows, log.scores, by, 100), ()
    )


EVALUATION = make_evaluation()
TOPIC = TopicReport(7, 0.25, 0.3125, 0.4375, 0.5625, {"tea": TopicScore(7, 0.1875, 0.6875, 0.8125)}, {"opera <i>": 3})
EMBEDDING = EmbeddingReport(30, 31, 4000, 9000, 2, 0.7125, 0.1375, None)


def write(path: Path, evaluation: Evaluation = EVALUATION) -> str:
    write_page(path, "my <checkpoint>", "log & more.jsonl", evaluation)
    return path.read_text(encoding="utf-8")


def texts(page: str) -> list[str]:
    """What a reader sees: the texts between the tags."""
    return [unescape(text).strip() for text in re.split(r"<[^>]*>", page)]


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.count("<svg") == page.count("</svg>") == 5, "ROC, calibration, scores, and one for each field"
    assert not re.search(r"https?:|@import|<script|<link|<iframe|<img|srcset|src=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_pictures_ids_do_not_collide_and_what_they_point_at_is_there(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)) <= {
        *((name, "") for name in ids),
        *(("", name) for name in ids),
    }


def test_the_page_has_every_figure_with_its_interval(tmp_path: Path) -> None:
    shown = texts(write(tmp_path / "page.html"))
    for name, value in EVALUATION.metrics.items():
        assert name in shown
        assert any(text in shown for text in (f"{value:.4f}", f"{value:,.0f}")), name
    for name, (low, high) in EVALUATION.intervals.items():
        assert f"{low:.4f} .. {high:.4f}" in shown, name
    assert "my <checkpoint>" in shown and "log & more.jsonl" in shown
    assert "rows without a user text: 1" in shown
    assert "groups of one candidate, with nothing to rank: 1" in shown
    assert not any("Topics" in text or "The embedding" in text for text in shown), "there are no such heads"


def test_every_value_is_listed_and_drawn_with_its_counts(tmp_path: Path) -> None:
    shown = texts(write(tmp_path / "page.html"))
    for value in EVALUATION.by[0].values:
        assert value.value in shown
    assert "too few" in shown
    clicks = {value.value: f"{value.clicks:,.0f}" for value in EVALUATION.by[0].values}
    assert f"a & $b$ <c> ({clicks['a & $b$ <c>']} clicks)" in shown, "a picture's text, and no formula"
    assert not any(text.startswith("rare (") for text in shown), "nothing to draw"
    gap = next(gap for gap in EVALUATION.by[0].gaps if gap.metric == "auc")
    assert any(text.startswith(f"largest gap in auc: {gap.gap:.4f}; {gap.worse} (") for text in shown)


def test_the_page_has_the_heads(tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", replace(EVALUATION, topic=TOPIC, embedding=EMBEDDING, by=()))
    shown = texts(page)
    for figure in ("0.2500", "0.3125", "0.4375", "0.5625", "0.1875", "0.6875", "0.8125"):
        assert any(figure in text for text in shown), figure
    assert "topics that the model does not know: opera <i> (3 documents)" in shown
    assert re.search(r"0\.7125   30 groups with contrast", "\n".join(shown))
    assert "(those of the log's first groups, of 9,000 in all)" in page.replace("&#39;", "'")
    nothing = replace(TOPIC, documents=0, accuracy=None, precision=None, recall=None, f1=None, topics={})
    assert "the model does not know" in write(tmp_path / "page.html", replace(EVALUATION, topic=nothing))


def test_the_roc_curve_has_the_auc_beneath_it() -> None:
    evaluation = EVALUATION
    _, curve = plot_roc(evaluation).axes[0].lines
    x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    assert float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) == pytest.approx(evaluation.metrics["auc"], abs=1e-3)


@settings(max_examples=8)
@given(st.lists(st.sampled_from([0.0, 0.01, 0.02, 0.5, 1.0]), min_size=1, max_size=20))
def test_calibration_and_scores_hold_every_impression(scores: list[float]) -> None:
    rows = [ClickRow("g", "q", "d", 1, 3) for _ in scores]
    log = ScoredLog.of(rows, scores)
    upper, lower = plot_calibration(log).axes
    assert sum(bar.get_height() for bar in lower.patches) == log.impressions.sum()
    assert np.asarray(upper.lines[1].get_ydata()) == pytest.approx(1 / 3)
    heights = [bar.get_height() for bar in plot_scores(log).axes[0].patches]
    assert sum(heights) == pytest.approx(2), "a share of 1 for clicks, and one for other impressions"


def test_calibration_worked_out_by_hand() -> None:
    rows = [ClickRow("g", "q", "d", clicks, 10) for clicks in (1, 3, 9)]
    upper, _ = plot_calibration(ScoredLog.of(rows, [0.10, 0.11, 0.80])).axes
    points = np.column_stack(upper.lines[1].get_data())
    np.testing.assert_allclose(points, [[0.105, 0.2], [0.8, 0.9]])


def test_any_text_may_be_a_value(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    values = [
        "</svg><script>",
        "\x00\x1b[31m",
        "\U0001f600 日本",
        "long " * 30,
        "$\\frac$",
        '" onload="',
        'id="a" xmlns="b"',
        "",
    ]
    rows = [ClickRow(f"{n}", "q", "d", 20, 50, others={"key": value}) for n, value in enumerate(values)]
    fields = measure_by(rows, np.full(len(rows), 0.5), ["key"], 0)
    page = write(tmp_path / "page.html", replace(EVALUATION, by=fields))
    assert page.count("<svg") == page.count("</svg>") == 4
    assert not re.search(r"<script|<[^>]*onload=\"", page)
    assert all(value in texts(page) or value == "" for value in ('" onload="', 'id="a" xmlns="b"', "</svg><script>"))
    assert 'id="a" xmlns="b" (20 clicks)' in texts(page), "only tags are changed"
    assert "\x1b" not in "".join(field_lines(fields[0]))
    assert any(text.startswith("long long") and text.endswith("... (20 clicks)") for text in texts(page))
    assert not list(recwarn)


def test_a_field_without_a_value_to_measure_has_no_picture(tmp_path: Path) -> None:
    rows = [ClickRow("g", "q", "d", click, 1, others={"key": "a"}) for click in (0, 1)]
    (report,) = measure_by(rows, np.array([0.1, 0.2]), ["key"], 0)
    assert plot_values(report, {}) is None
    assert write(tmp_path / "page.html", replace(EVALUATION, by=(report,))).count("<svg") == 3


def test_a_page_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    short = replace(EVALUATION, by=())
    former = write(tmp_path / "page.html", short)
    (tmp_path / "page.html.staging").mkdir()
    with pytest.raises(OSError, match="staging"):
        write_page(tmp_path / "page.html", "another", "d", short)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == former
