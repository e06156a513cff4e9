"""Reads config.json, checks it before transformers sees it, and makes a `BertConfig` of the network alone.

Only what defines the network is used. Fields about running it (attention kernels, caches, output forms, storage types)
are ignored: this project loads FP32 weights and runs the plain forward pass. A field that changes the network in a way
that nothing here computes is refused. Every size must equal the weights' own shapes, which the safetensors headers
give, so no wrong number costs memory or drops weights silently.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from transformers import BertConfig
from transformers.activations import ACT2FN

from finetune.checkpoint.attention import ATTENTION_FIELD, USER_TOKENS_FIELD
from finetune.checkpoint.files import CONFIG, CheckpointError, read_object
from finetune.names import USER_ONCE

Shapes = dict[str, tuple[int, ...]]
Test = tuple[Callable[[Any], bool], str]


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a JSON value is a number that a float can hold; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max


SIZE: Test = (lambda value: type(value) is int and value > 0, "a whole number over 0, without quotes")
SHARE: Test = (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
FIELDS: dict[str, Test] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "type_vocab_size": SIZE,
    "hidden_act": (lambda value: isinstance(value, str) and value in ACT2FN, f"one of {', '.join(sorted(ACT2FN))}"),
    "hidden_dropout_prob": SHARE,
    "attention_probs_dropout_prob": SHARE,
    "classifier_dropout": (lambda value: value is None or SHARE[0](value), "null or a number from 0 to 1"),
    "initializer_range": (lambda value: is_number(value) and value >= 0, "a number from 0"),
    "layer_norm_eps": (lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    "pad_token_id": (lambda value: value is None or (type(value) is int and value >= 0), "null or a token id"),
    ATTENTION_FIELD: (lambda value: value == USER_ONCE, f"{USER_ONCE!r}, or left out for full attention"),
    USER_TOKENS_FIELD: SIZE,
}
# The weight, without its "bert." prefix, and the dimension that shows each size.
DIMENSIONS = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
# Fields that change what the network computes: the values that are served, and why no other is.
SERVED_VALUES: dict[str, tuple[tuple[object, ...], str]] = {
    "quantization_config": ((None,), "its weights are quantized; export a checkpoint with float weights"),
    "auto_map": ((None, {}), "it needs code of its own, which is never run; only transformers' own BERT is served"),
    "is_decoder": ((None, False), "it is a decoder; a click model is an encoder"),
    "add_cross_attention": ((None, False), "it attends to an encoder's output; a click model is an encoder"),
    "position_embedding_type": ((None, "absolute"), "only absolute positions are served"),
    "per_layer_config": ((None, {}), "its layers differ from each other, which is not served"),
    "pruned_heads": ((None, {}), "its attention heads are pruned, which is not served"),
}
FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json, and check everything in it that defines the network.

    Raises:
        CheckpointError: there is none, it is not a BERT's, or a field is wrong; the message names the field.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder}: has no {CONFIG}; give a folder saved by save_pretrained")
    fields = read_object(path)
    kind = fields.get("model_type")
    if kind != "bert":
        raise CheckpointError(f"{folder}: its {CONFIG} says model_type {kind!r}; only 'bert' models are served")
    for name, (plain, reason) in SERVED_VALUES.items():
        if not any(fields.get(name) is value or fields.get(name) == value for value in plain):
            raise CheckpointError(f"{path}: {name} is {_shown(fields[name])}: {reason}")
    for name, (is_valid, kind) in FIELDS.items():
        if name in fields and not is_valid(fields[name]):
            raise CheckpointError(f"{path}: {name} is {_shown(fields[name])}; it must be {kind}")
    sizes = {**BertConfig().to_dict(), **fields}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CheckpointError(
            f"{path}: hidden_size {sizes['hidden_size']} is no multiple of num_attention_heads "
            f"{sizes['num_attention_heads']}; correct the one that is wrong"
        )
    if sizes["pad_token_id"] is not None and sizes["pad_token_id"] >= sizes["vocab_size"]:
        raise CheckpointError(f"{path}: pad_token_id is {sizes['pad_token_id']}, not below vocab_size")
    if (ATTENTION_FIELD in fields) != (USER_TOKENS_FIELD in fields):
        there, missing = sorted((ATTENTION_FIELD, USER_TOKENS_FIELD), key=lambda name: name not in fields)
        raise CheckpointError(f"{path}: has {there} but no {missing}; a checkpoint has both, or neither")
    return fields


def make_config(fields: Mapping[str, Any], labels: Sequence[str], **changes: Any) -> BertConfig:
    """Make transformers' config from a checked config.json and the labels' names; `changes` override its fields."""
    network = {name: value for name, value in fields.items() if name in FIELDS} | changes
    if "initializer_range" in network:
        network["initializer_range"] = float(network["initializer_range"])  # transformers takes no whole number
    names = dict(enumerate(labels))
    return BertConfig(**network, id2label=names, label2id={name: index for index, name in names.items()})


def read_shapes(paths: Sequence[Path]) -> Shapes:
    """Read the shapes of all weights from the headers of safetensors files.

    Raises:
        CheckpointError: a file is broken, or its weights are not floats.
    """
    shapes: Shapes = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    weight = file.get_slice(name)
                    shapes[name] = tuple(weight.get_shape())
                    if weight.get_dtype() not in FLOATS and not name.endswith("position_ids"):
                        raise CheckpointError(
                            f"{path}: {name} is stored as {weight.get_dtype()}; export a checkpoint with float weights"
                        )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be loaded ({error}); copy or download it again") from error
    return shapes


def check_shapes(folder: Path, config: BertConfig, shapes: Shapes) -> None:
    """Check config.json's sizes against the weights' shapes.

    Raises:
        CheckpointError: a size differs, or the weights' names begin with a wrapper's prefix.
    """
    _check_prefix(folder, shapes)
    for field, (end, dimension) in DIMENSIONS.items():
        for name, shape in shapes.items():
            if name.removeprefix("bert.") == end and shape[dimension : dimension + 1] != (getattr(config, field),):
                raise CheckpointError(
                    f"{folder}: {CONFIG} says {field} {getattr(config, field)}, but {name} is {list(shape)}; "
                    "they belong to different models"
                )
    layers = {int(match[1]) for name in shapes if (match := re.match(r"(?:bert\.)?encoder\.layer\.(\d+)\.", name))}
    if layers and max(layers) + 1 != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: {CONFIG} says num_hidden_layers {config.num_hidden_layers}, the weights have "
            f"{max(layers) + 1} layers; they belong to different models"
        )


def _check_prefix(folder: Path, shapes: Shapes) -> None:
    """Refuse weights of a wrapped model, with the command that unwraps them."""
    end = DIMENSIONS["vocab_size"][0]
    prefix = next((name.removesuffix(end).removesuffix("bert.") for name in shapes if name.endswith(end)), "")
    if prefix:
        raise CheckpointError(
            f"{folder}: its weights' names begin with {prefix!r}, as DistributedDataParallel, torch.compile and other "
            f"wrappers save them; save the model inside the wrapper, or strip the names: {strip_command(prefix)}"
        )


def strip_command(prefix: str) -> str:
    """Return a command, to be run in the checkpoint's folder, that strips a prefix from the weights' names."""
    return (
        "python -c \"from safetensors.torch import load_file as l, save_file as s; f = 'model.safetensors'; "
        f"s({{n.removeprefix('{prefix}'): w for n, w in l(f).items()}}, f, {{'format': 'pt'}})\""
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
