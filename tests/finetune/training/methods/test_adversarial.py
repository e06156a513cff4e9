"""FGM: the move raises the loss, gradients add up, and training with it lowers the loss under attack."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from finetune.training.methods.adversarial import Adversary
from tests.finetune.conftest import make_config

IDS = torch.tensor([[2, 5, 9, 3], [2, 6, 10, 3], [2, 7, 11, 3], [2, 8, 12, 3]])
CLICKS = torch.tensor([1.0, 0.0, 1.0, 0.0])


def model(*, frozen: bool) -> BertForSequenceClassification:
    torch.manual_seed(0)
    bert = BertForSequenceClassification(make_config(num_labels=1, initializer_range=0.3))
    bert.get_input_embeddings().weight.requires_grad = not frozen
    return bert


def loss_of(bert: BertForSequenceClassification) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(bert(input_ids=IDS).logits[:, 0], CLICKS)


def attacked(bert: BertForSequenceClassification, size: float) -> tuple[float, float]:
    """The loss as it is, and after the move."""
    adversary = Adversary(bert.get_input_embeddings(), size)
    seen = []

    def learn() -> Tensor:
        loss = loss_of(bert)
        loss.backward()
        seen.append(loss.item())
        return loss

    adversary.step(learn)
    bert.zero_grad()
    bert.get_input_embeddings()._forward_hooks.clear()
    return seen[0], seen[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_move_raises_the_loss_by_about_its_size_times_the_gradient(frozen: bool) -> None:
    plain, moved = attacked(model(frozen=frozen), 0.05)
    assert moved > plain
    _, further = attacked(model(frozen=frozen), 0.1)
    assert (further - plain) / (moved - plain) == pytest.approx(2, rel=0.3)


def test_gradients_of_both_batches_add_up_and_an_evaluation_is_left_alone() -> None:
    bert = model(frozen=False)
    plain = loss_of(bert)
    (alone,) = torch.autograd.grad(plain, bert.classifier.weight)
    adversary = Adversary(bert.get_input_embeddings(), 0.0)

    def learn() -> Tensor:
        loss = loss_of(bert)
        loss.backward()
        return loss

    adversary.step(learn)
    torch.testing.assert_close(bert.classifier.weight.grad, 2 * alone, msg="a move of 0 is the batch once more")
    with torch.no_grad():
        assert loss_of(bert).item() == pytest.approx(plain.item())
    assert not adversary.seen


def test_what_was_trained_with_it_withstands_the_attack_better() -> None:
    def train(size: float) -> BertForSequenceClassification:
        bert = model(frozen=True)
        optimizer = torch.optim.AdamW([weight for weight in bert.parameters() if weight.requires_grad], lr=3e-3)
        adversary = Adversary(bert.get_input_embeddings(), size) if size else None

        def learn() -> Tensor:
            loss = loss_of(bert)
            loss.backward()
            return loss

        step: Callable[[], Tensor] = learn if adversary is None else lambda: adversary.step(learn)
        for _ in range(120):
            step()
            optimizer.step()
            optimizer.zero_grad()
        bert.get_input_embeddings()._forward_hooks.clear()
        return bert

    assert attacked(train(2.0), 2.0)[1] < 0.1 * attacked(train(0.0), 2.0)[1]
