"""Which weights move, and how fast: shown by what a step changes."""

import pytest
import torch
from transformers import BertForSequenceClassification

from finetune.checkpoint.heads import Heads, HeadSettings
from finetune.objectives.understanding import TaskWeights
from finetune.training.model import JointModel
from finetune.training.parameters import freeze, layer_of, parameter_groups
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.conftest import make_config


def joint() -> JointModel:
    torch.manual_seed(0)
    click = BertForSequenceClassification(make_config(num_labels=1, num_hidden_layers=3))
    heads = Heads(HeadSettings(topics=("a", "b"), embedding_size=4), 32)
    return JointModel(click, heads, None, TaskWeights(("click", "topic"), None))


def moved(settings: TrainSettings) -> dict[str, float]:
    """How far each weight went in one step of plain gradient descent with a gradient of 1 everywhere."""
    model = joint()
    freeze(model, settings.freeze)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, settings))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    optimizer.step()
    return {name: float((weight - before[name]).abs().max()) for name, weight in model.named_parameters()}


def is_head(name: str) -> bool:
    return not name.startswith("click.bert.") or "pooler" in name


@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        ("none", lambda name: False),
        ("words", lambda name: "word_embeddings" in name),
        ("embeddings", lambda name: "bert.embeddings" in name),
        ("2", lambda name: "bert.embeddings" in name or layer_of(name) in (0, 1)),
        ("encoder", lambda name: not is_head(name)),
    ],
)
def test_what_is_frozen_does_not_move_and_all_else_does(what: str, frozen: object) -> None:
    for name, far in moved(TrainSettings(freeze=what, weight_decay=0.0)).items():
        assert (far == 0.0) == frozen(name), name  # type: ignore[operator]


def test_more_layers_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(SettingsError, match="--freeze is 4, but the encoder has 3 layers"):
        freeze(joint(), "4")


def test_each_layer_moves_a_share_of_the_one_above_and_heads_ten_times_as_far() -> None:
    far = moved(TrainSettings(freeze="none", learning_rate=0.01, layer_decay=0.5, weight_decay=0.0))
    for name, distance in far.items():
        layer = layer_of(name)
        expected = 0.1 if is_head(name) else 0.01 * 0.5 ** (2 - layer if layer is not None else 3)
        assert distance == pytest.approx(expected, rel=1e-3), name


def test_only_matrices_decay() -> None:
    groups = parameter_groups(joint(), TrainSettings(weight_decay=0.1))
    for group in groups:
        assert all((weight.ndim >= 2) == (group["weight_decay"] > 0) for weight in group["params"])
