"""The losses of clicks, each held against a plain way to say the same."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.objectives.clicks import ClickLoss, ListwiseLoss, higher_probability, pairwise_loss

counts = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(0, 2), st.floats(-4, 4)).map(
        lambda row: (min(row[0], row[1]), *row[1:])
    ),
    min_size=1,
    max_size=8,
)


def tensors(rows: list[tuple[int, int, int, float]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    clicks, impressions, groups, logits = zip(*rows, strict=True)
    as_floats = [torch.tensor(column, dtype=torch.float64) for column in (logits, clicks, impressions)]
    return as_floats[0][:, None], as_floats[1], as_floats[2], torch.tensor(groups)


@pytest.mark.parametrize("labels", [1, 2])
def test_counts_weigh_as_much_as_repeated_rows(labels: int) -> None:
    logits = torch.randn(2, labels, generator=torch.Generator().manual_seed(3))
    counted = ClickLoss(3.0)(logits, torch.tensor([2.0, 0.0]), torch.tensor([5.0, 1.0]), torch.zeros(2))
    repeated = ClickLoss(1.0)(
        logits[[0, 0, 0, 0, 0, 1]], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), torch.ones(6), torch.zeros(6)
    )
    torch.testing.assert_close(counted, repeated, msg="a mean of 3 impressions over 2 rows is one over 6")


def test_both_forms_of_the_click_loss_are_the_negative_log_likelihood() -> None:
    logit, clicks, impressions = torch.tensor([0.8, -1.5]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])
    click = torch.sigmoid(logit)
    expected = -(torch.log(click[0]) + torch.log(click[1]) + 2 * torch.log(1 - click[1])) / 4
    groups = torch.zeros(2)
    torch.testing.assert_close(ClickLoss(2.0)(logit[:, None], clicks, impressions, groups), expected)
    # A softmax over (0, x) is the sigmoid of x.
    two = torch.stack([torch.zeros(2), logit], dim=1)
    torch.testing.assert_close(ClickLoss(2.0)(two, clicks, impressions, groups), expected)


@given(counts)
def test_the_pairwise_loss_is_the_mean_over_pairs_of_one_group_by_what_they_tell(
    rows: list[tuple[int, int, int, float]],
) -> None:
    losses, weights = [], []
    for place, (c1, n1, g1, s1) in enumerate(rows):
        for c2, n2, g2, s2 in rows[place + 1 :]:
            if g1 == g2 and c1 / n1 != c2 / n2:
                pooled = (c1 + c2) / (n1 + n2)
                z = (c1 / n1 - c2 / n2) / math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
                target = 0.5 * (1 + math.erf(z / math.sqrt(2))) if max(n1, n2) > 1 else float(c1 > c2)
                likely = 1 / (1 + math.exp(s2 - s1))
                weight = (2 * target - 1) ** 2
                weights.append(weight)
                losses.append(-weight * (target * math.log(likely) + (1 - target) * math.log(1 - likely)))
    expected = sum(losses) / sum(weights) if losses else 0.0
    assert pairwise_loss(*tensors(rows)).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_difference_that_chance_explains_is_hardly_learned() -> None:
    clicks, shown = torch.tensor([5.0, 4.0, 500.0, 400.0]), torch.tensor([100.0, 100.0, 10_000.0, 10_000.0])
    few, many = higher_probability(clicks, shown, torch.tensor([0, 2]), torch.tensor([1, 3])).tolist()
    assert 0.5 < few < 0.65, "5 of 100 against 4 of 100"
    assert many > 0.999, "the same rates, a hundred times as often"


def test_of_millions_of_impressions_a_small_difference_is_learned() -> None:
    clicks, shown = torch.tensor([1620.0, 1500.0, 0.0, 1.0]), torch.tensor([5e6, 5e6, 5e6, 5e6])
    told, chance = higher_probability(clicks, shown, torch.tensor([0, 3]), torch.tensor([1, 2])).tolist()
    assert told == pytest.approx(0.984, abs=0.001)
    assert chance == pytest.approx(0.841, abs=0.001), "z is 1"


@given(counts)
def test_the_listwise_loss_is_the_likelihood_of_each_click_among_its_groups_impressions(
    rows: list[tuple[int, int, int, float]],
) -> None:
    total = 0.0
    groups = {group for _, _, group, _ in rows}
    for group in groups:
        members = [row for row in rows if row[2] == group]
        whole = sum(shown * math.exp(score) for _, shown, _, score in members)
        total -= sum(clicks * math.log(shown * math.exp(score) / whole) for clicks, shown, _, score in members)
    found = ListwiseLoss(4.0)(*tensors(rows)).item()
    assert found == pytest.approx(total / (4.0 * len(groups)), rel=1e-5, abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[900.0], [-900.0], [0.0]], requires_grad=True)
    clicks, shown, groups = torch.tensor([1.0, 0.0, 1.0]), torch.ones(3), torch.tensor([0, 0, 1])
    for loss in (ClickLoss(1.0), pairwise_loss, ListwiseLoss(1.0)):
        value = loss(logits, clicks, shown, groups)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_a_batch_that_tells_nothing_has_a_loss_of_0_and_gradients() -> None:
    logits = torch.ones(3, 1, requires_grad=True)
    for loss in (pairwise_loss, ListwiseLoss(1.0)):
        value = loss(logits, torch.zeros(3), torch.ones(3), torch.tensor([0, 0, 1]))
        value.backward()
        assert value.item() == 0.0
