"""Position bias: given odds and estimated ones, and that an estimate finds what made the clicks."""

import json
from pathlib import Path

import pytest
import torch

from finetune.objectives.clicks import ClickLoss, ListwiseLoss, Objective, pairwise_loss
from finetune.objectives.position_bias import PositionBias, PositionBiasError, read_odds

TRUE = torch.tensor([0.0, -0.5, -1.0, -1.4])


def test_given_odds_are_log_odds_relative_to_the_first_position() -> None:
    bias = PositionBias(9, {1: 0.5, 2: 0.25, 3: 0.05})
    found = bias(torch.tensor([0, 1, 2, 3, 7]))
    expected = [0.0, 0.0, *torch.tensor([0.5, 0.1, 0.1]).log().tolist()]
    assert found.tolist() == pytest.approx(expected), "unknown, first, second, third, and beyond the last"
    assert not list(bias.parameters()), "given ones are not trained"
    assert bias.odds() == {"1": 1.0, "2": 0.5, "3": 0.1}


@pytest.mark.parametrize("objective", [ClickLoss(1.0), pairwise_loss, ListwiseLoss(2.0)])
def test_the_estimate_finds_the_bias_though_the_best_stand_first(objective: Objective) -> None:
    """Texts have a worth of their own, a logging ranker puts the better ones higher, and the bias comes on top.

    Clicks are rare here: only then are clicks drawn one by one also a softmax of their log-odds.
    """
    generator = torch.Generator().manual_seed(0)
    groups, size = 30_000, 4
    worth = torch.randn(groups, size, generator=generator) - 3
    noisy = worth + torch.randn(groups, size, generator=generator)
    position = noisy.argsort(1, descending=True).argsort(1)
    clicks = (torch.rand(groups, size, generator=generator) < torch.sigmoid(worth + TRUE[position])).float()
    bias = PositionBias(size)
    optimizer = torch.optim.LBFGS(bias.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    group = torch.arange(groups).repeat_interleave(size)
    if objective is pairwise_loss:  # it holds every row against every other before it looks at their groups
        clicked = (clicks.sum(1) > 0).repeat_interleave(size)
        keep = clicked.nonzero()[:4000, 0]
    else:
        keep = torch.arange(groups * size)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        logits = worth.flatten() + bias(position.flatten() + 1)
        loss = objective(logits[keep, None], clicks.flatten()[keep], torch.ones(groups * size)[keep], group[keep])
        loss.backward()
        return loss

    optimizer.step(step)
    found = torch.cat([torch.zeros(1), bias.offsets.detach()])
    naive = torch.stack([clicks[position == place].mean() for place in range(size)]).logit()
    assert (naive - naive[0] - TRUE).abs().max() > 0.5, "click rates alone mislead"
    # Pairwise sees few of the rows here, and a softmax is only nearly what drew the clicks.
    allowed = 0.1 if isinstance(objective, ClickLoss) else 0.35
    assert (found - TRUE).abs().max() < allowed, found
    assert (found.diff() < 0).all()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"1": 0}',
        '{"1": true}',
        '{"2": 1}',
        '{"1": 1, "3": 0.5}',
        '{"1": "1"}',
        '{"1": NaN}',
        '{"one": 1}',
    ],
)
def test_refuses_odds_that_cannot_be_used(content: str, tmp_path: Path) -> None:
    path = tmp_path / "odds.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PositionBiasError, match=r"odds\.json"):
        read_odds(path)


def test_what_is_estimated_can_be_given(tmp_path: Path) -> None:
    bias = PositionBias(3)
    with torch.no_grad():
        bias.offsets.copy_(torch.tensor([-0.5, -1.0]))
    path = tmp_path / "odds.json"
    path.write_text(json.dumps(bias.odds()), encoding="utf-8")
    torch.testing.assert_close(PositionBias(3, read_odds(path)).offsets, bias.offsets, atol=1e-5, rtol=1e-5)
