"""What a student learns from teachers: least where it agrees with them, by row, pair and list."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.objectives.distillation import (
    Distillation,
    TeacherLoss,
    click_distillation,
    listwise_distillation,
    pairwise_distillation,
)

LOSSES = (click_distillation, pairwise_distillation, listwise_distillation)
GROUPS = torch.tensor([0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 2**16))
def test_no_student_is_better_than_one_that_agrees(loss: TeacherLoss, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    teacher, scores = 3 * torch.randn(2, 6, generator=random)
    agreeing = teacher.clone().requires_grad_()
    best = loss(agreeing, teacher, GROUPS)
    assert best <= loss(scores, teacher, GROUPS) + 1e-6
    best.backward()
    assert agreeing.grad is not None
    torch.testing.assert_close(agreeing.grad, torch.zeros(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [pairwise_distillation, listwise_distillation])
def test_only_rows_of_one_group_are_compared(loss: TeacherLoss) -> None:
    teacher, scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([5.0, 5.0, 5.0, -2.0, -2.0, 9.0])
    torch.testing.assert_close(loss(scores + shift, teacher - shift, GROUPS), loss(scores, teacher, GROUPS))


@pytest.mark.parametrize("loss", LOSSES)
def test_each_is_the_plain_sum_that_its_name_says(loss: TeacherLoss) -> None:
    teacher, scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(2)).double()

    def entropy(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(target * score.sigmoid().log() + (1 - target) * (1 - score.sigmoid()).log())

    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    lists = [[0, 1, 2], [3, 4], [5]]
    expected = {
        click_distillation: entropy(scores, teacher.sigmoid()).mean(),
        pairwise_distillation: torch.stack(
            [entropy(scores[a] - scores[b], (teacher[a] - teacher[b]).sigmoid()) for a, b in pairs]
        ).mean(),
        listwise_distillation: torch.stack(
            [-(teacher[rows].softmax(0) * scores[rows].softmax(0).log()).sum() for rows in lists]
        ).mean(),
    }
    torch.testing.assert_close(loss(scores, teacher, GROUPS), expected[loss])


def test_groups_of_one_give_no_pair_and_still_a_gradient() -> None:
    scores = torch.zeros(2, requires_grad=True)
    loss = pairwise_distillation(scores, torch.ones(2), torch.tensor([0, 1]))
    loss.backward()
    assert float(loss) == 0.0
    assert scores.grad is not None


def test_the_weight_mixes_the_two_losses() -> None:
    teacher, logits = torch.tensor([0.5, -1.0]), torch.tensor([[2.0], [1.0]])
    taught = click_distillation(logits[:, 0], teacher, torch.zeros(2))
    for weight in (0.0, 0.25, 1.0):
        mixed = Distillation(click_distillation, weight)(torch.tensor(3.0), logits, teacher, torch.zeros(2))
        torch.testing.assert_close(mixed, (1 - weight) * 3.0 + weight * taught)
