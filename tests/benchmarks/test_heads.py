"""`python -m benchmarks heads` on tiny models: both graphs are measured, turn by turn, whatever heads there are."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from benchmarks import heads
from release.names import EMBEDDING, HEAD_OUTPUTS, TOPIC_LOGITS
from tests.benchmarks.conftest import command


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published", "joint"])
def test_the_ratio_is_of_turns_of_the_same_requests(
    kind: str, published_log: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Path] = []
    write = heads.write_click_model

    def remember(model: object, path: Path, own: object) -> None:
        write(model, path, own)
        graphs.append(path)

    monkeypatch.setattr(heads, "write_click_model", remember)
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    ended = command("heads", "--checkpoint", checkpoint, "--data", published_log, turns=3, seconds=0)
    assert ended.code == 0, ended.err
    figures = json.loads(ended.out.splitlines()[-1])
    assert tuple(figures["outputs"]) == (HEAD_OUTPUTS if kind == "joint" else (TOPIC_LOGITS, EMBEDDING))
    assert len(figures["without"]) == len(figures["with_heads"]) == 3
    ratios = [one / other for one, other in zip(figures["with_heads"], figures["without"], strict=True)]
    assert figures["ratio"] == pytest.approx(median(ratios))
    assert min(ratios) > 0
    assert not any(path.exists() for path in graphs)


def test_a_checkpoint_that_is_none_is_reported(tmp_path: Path, published_log: Path) -> None:
    ended = command("heads", "--checkpoint", tmp_path / "none", "--data", published_log)
    assert ended.code == 1
    assert "there is no such folder" in ended.err
