"""Merges a PEFT LoRA adapter into its base model: weight + scale * B @ A, and the layers trained in full replaced.

For plain LoRA on linear layers, the result equals PEFT's own `merge_and_unload` bit for bit (seen with PEFT 0.21.2).
Anything else that an adapter can hold (DoRA, ranks by layer, trained biases or embeddings, initializations that also
change the base's weights) is refused by name, never left out.
"""

import math
from pathlib import Path

from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from finetune.checkpoint.config import Shapes, is_number, read_shapes
from finetune.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointError, read_object

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
# Settings about training, or that the weights' own names and shapes repeat. PEFT itself ignores `fan_in_fan_out` on
# linear layers.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Settings that are harmless with these values only. PEFT's other initializations also change the base's weights.
HARMLESS_VALUES: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),
}


def read_adapter_shapes(folder: Path) -> Shapes:
    """Read the shapes of the adapter's weights; those that replace a weight of the base have its name."""
    shapes = read_shapes([folder / ADAPTER_WEIGHTS])
    return {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}


def merge_adapter(model: BertForSequenceClassification, folder: Path) -> set[str]:
    """Merge the adapter in `folder` into its base, in place, and return the names of the weights it replaced whole.

    Raises:
        CheckpointError: the adapter is not plain LoRA, or does not fit the base.
    """
    rank, scale = _read_settings(folder)
    read_shapes([folder / ADAPTER_WEIGHTS])  # refuses a broken file, and weights that are no floats
    tensors = {name: tensor.float() for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    weights = model.state_dict()
    replaced = set()
    for name, tensor in tensors.items():
        partner = name.replace(B, A) if name.endswith(B) else name.replace(A, B)
        target = name.removeprefix(PREFIX).replace(A, ".weight").replace(B, ".weight")
        if not name.startswith(PREFIX) or partner not in tensors or target not in weights:
            raise CheckpointError(
                f"{folder}: its weight {name} is not plain LoRA on a layer of its base; merge it with PEFT"
            )
        if name.endswith(B):
            continue  # merged together with its A
        expected = tuple(weights[target].shape)
        if name.endswith(A):
            is_fitting = (tensor.shape, tensors[partner].shape) == ((rank, *expected[1:]), (*expected[:1], rank))
        else:
            is_fitting = tensor.shape == expected
        if not is_fitting:
            raise CheckpointError(
                f"{folder}: the shape of {name} is {list(tensor.shape)}, which does not fit r {rank} and the base's "
                f"{target} {list(expected)}; they belong to different models"
            )
        if name.endswith(A):
            weights[target] += tensors[partner] @ tensor * scale
        else:
            weights[target].copy_(tensor)
            replaced.add(target)
    return replaced


def _read_settings(folder: Path) -> tuple[int, float]:
    """Read the rank and the scale, and refuse whatever is not plain LoRA."""
    path = folder / ADAPTER_CONFIG
    settings = read_object(path)
    if settings.get("peft_type") == "PREFIX_TUNING":
        raise CheckpointError(
            f"{path}: is a prefix (PREFIX_TUNING), which cannot be merged into a BERT's weights, so it is neither "
            "served nor evaluated here; PEFT alone loads it. Fine-tune with `--method lora` instead"
        )
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.get('peft_type')!r}, not 'LORA'; merge it with PEFT")
    for name, value in settings.items():
        if value and name not in HARMLESS and value not in HARMLESS_VALUES.get(name, ()):
            raise CheckpointError(f"{path}: {name} is {value!r}, which is not plain LoRA; merge it with PEFT")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not is_number(alpha):
        raise CheckpointError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}; they must be numbers")
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
