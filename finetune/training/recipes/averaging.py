"""The mean of several checkpoints' weights: one model that is often better than each (Wortsman et al., 2022).

It works for checkpoints that began at the same base, such as runs with other seeds, orders or settings. Weights that
were learned apart have no meaningful mean; `evaluate` tells.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.files import CheckpointError
from finetune.checkpoint.heads import Heads, read_heads
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.checkpoint.save import check_output, save_checkpoint

NETWORK = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # what no weight's shape tells


def average(folders: Sequence[Path], output: Path) -> None:
    """Save the mean of checkpoints' weights, heads included, as a checkpoint.

    Raises:
        CheckpointError: one cannot be used, they do not fit each other, or `output` exists and is no checkpoint.
    """
    if len(folders) < 2:
        raise CheckpointError(f"{folders[0]}: is one checkpoint, and a mean takes two or more; name the others, too")
    check_output(output)
    first, tokenizer, longest = load_checkpoint(folders[0])
    heads = read_heads(folders[0], int(first.config.hidden_size))
    total: dict[str, Tensor] = {}
    for folder in folders:
        model, other, other_longest = load_checkpoint(folder)
        others = read_heads(folder, int(model.config.hidden_size))
        faults = {
            "labels": label_names(model) != label_names(first),
            "heads": others.settings != heads.settings,
            "tokenizer": other.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str(),
            "longest pair": other_longest != longest,
            **{name: getattr(model.config, name) != getattr(first.config, name) for name in NETWORK},
            "attention": user_tokens(model.config) != user_tokens(first.config),
            "weights' shapes": _shapes(model, others) != _shapes(first, heads),
        }
        differing = [name for name, is_fault in faults.items() if is_fault]
        if differing:
            raise CheckpointError(
                f"{folder}: has another {', '.join(differing)} than {folders[0]}; only checkpoints of one kind, "
                "trained from one base, have a mean"
            )
        for name, weight in _weights(model, others).items():
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + weight.double()
    with torch.no_grad():
        for name, weight in _weights(first, heads).items():
            weight.copy_(total[name] / len(folders))
    save_checkpoint(first, tokenizer, output, heads)


def _weights(model: nn.Module, heads: Heads) -> dict[str, Tensor]:
    own = {f"model.{name}": weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    return own | {f"heads.{name}": weight for name, weight in heads.state_dict().items()}


def _shapes(model: nn.Module, heads: Heads) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in _weights(model, heads).items()}
