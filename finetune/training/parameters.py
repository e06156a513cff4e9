"""Which weights move, and how fast: freezing, layer-wise decay of the rate, the optimizer's groups."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

from finetune.checkpoint.base_model import FRESH
from finetune.training.model import JointModel
from finetune.training.settings import SettingsError, TrainSettings

# The head starts untrained (and MiniLM's pooler nearly so): at the encoder's rate, it would slow learning down. So do
# the weights that a PEFT method adds.
HEAD_RATE = 10
ADDED = ("lora_", "ia3_")
# A click log holds few of the vocabulary's words. Training would move those away from their synonyms, and updating the
# whole table, half of a small BERT, would cost as much as updating all the rest.
WORDS = "bert.embeddings.word_embeddings."
EMBEDDINGS = "bert.embeddings."
LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")


def freeze(model: JointModel, what: str) -> None:
    """Keep weights from moving (`TrainSettings.freeze`).

    Raises:
        SettingsError: the encoder has fewer layers.
    """
    layers = int(model.click.config.num_hidden_layers)
    frozen = int(what) if what.isdecimal() else 0
    if frozen > layers:
        raise SettingsError(f"--freeze is {frozen}, but the encoder has {layers} layers")
    for name, weight in model.click.named_parameters():
        layer = layer_of(name)
        if (
            (what == "words" and name.startswith(WORDS))
            or (what not in ("none", "words") and name.startswith(EMBEDDINGS))
            or (what == "encoder" and not name.startswith(FRESH))
            or (layer is not None and layer < frozen)
        ):
            weight.requires_grad = False


def parameter_groups(model: JointModel, settings: TrainSettings) -> list[dict[str, Any]]:
    """Group the weights that move by their rate, and by whether they decay (matrices do)."""
    layers = int(model.click.config.num_hidden_layers)

    def rate(name: str) -> float:
        return settings.learning_rate * rate_of(name, layers, settings.layer_decay)

    return group_by_rate(model, rate, settings.weight_decay)


def group_by_rate(model: nn.Module, rate: Callable[[str], float], decay: float) -> list[dict[str, Any]]:
    """Group the weights that move, each with the rate of its name; matrices decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[rate(name), decay if weight.ndim >= 2 else 0.0].append(weight)
    return [{"params": weights, "lr": speed, "weight_decay": share} for (speed, share), weights in groups.items()]


def rate_of(name: str, layers: int, decay: float) -> float:
    """A weight's rate beside the encoder's: heads learn faster, and each layer slower than the one above."""
    if "bert." not in name or any(part in name for part in (*FRESH, *ADDED)):
        return HEAD_RATE
    layer = layer_of(name)
    depth = layers - 1 - layer if layer is not None else layers if EMBEDDINGS in name else 0
    return decay**depth


def layer_of(name: str) -> int | None:
    """The encoder's layer that a weight belongs to; None if to none."""
    found = LAYER.search(name)
    return int(found[1]) if found else None
