"""Reads a checkpoint: a Hugging Face folder of a `BertForSequenceClassification` with full attention.

Whatever is out of the ordinary is refused: `python -m export` knows more kinds, and says more of what is wrong.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clickbert.errors import InvalidInputError
from clickbert.in_process.checkpoints.labels import find_click, read_labels
from clickbert.in_process.checkpoints.pytorch import make_config, open_model, read_tokenizer
from clickbert.in_process.files import read_object
from clickbert.in_process.model import Model
from clickbert.in_process.names import ADAPTER, ATTENTION_FIELDS, CHECKPOINT_CONFIG, HEAD_SETTINGS
from clickbert.in_process.pieces import Work, cut
from clickbert.wire import protocol
from clickbert.wire.protocol import Array, ModelDescription

_VERSION = "1"  # a checkpoint has none
_PIECE = 2048  # tokens; PyTorch's own threads share a piece
_ARCHITECTURE = "BertForSequenceClassification"
_EXPORT = "export it with `python -m export`, and give the published version"
# Fields that change what is computed, in a way that is not known here: the values that do not.
_PLAIN: dict[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "auto_map": (None, {}),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "position_embedding_type": (None, "absolute"),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
}


def read_checkpoint(folder: Path) -> Model:
    """Read a checkpoint's folder. Raises `InvalidInputError`; says what is not supported, and what to do."""
    fields = read_object(folder / CHECKPOINT_CONFIG)
    _refuse_others(folder, fields)
    try:
        labels = read_labels(fields)
        click_label = find_click(labels)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{folder}: {exc}") from exc
    config = make_config(folder, fields, labels)
    tokenizer, longest = read_tokenizer(folder, config)
    heads = {"topics": [], "several_topics": False, "embedding_size": 0, "passages": None}
    if (folder / HEAD_SETTINGS).exists():
        heads |= read_object(folder / HEAD_SETTINGS)
    texts = {
        protocol.TOKENIZER_JSON: tokenizer,
        protocol.TOKENIZER_SHA256: hashlib.sha256(tokenizer).hexdigest().encode(),
        protocol.LABELS_JSON: json.dumps(labels).encode(),
        protocol.HEADS_JSON: json.dumps(heads).encode(),
    }
    numbers = {protocol.MAX_LENGTH: longest, protocol.CLICK_LABEL: click_label}
    inputs = (protocol.INPUT_IDS, protocol.TOKEN_TYPE_IDS, protocol.LENGTHS)
    return Model(
        path=folder,
        name=folder.name,
        version=_VERSION,
        description=ModelDescription((_VERSION,), inputs=inputs),
        tokenizer={name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
        | {name: np.array([number], np.int32) for name, number in numbers.items()},
        cut=partial(_cut, folder),
        threads=1,
        open=partial(open_model, folder, config),
    )


def _cut(folder: Path, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Work:
    if outputs != (protocol.LOGITS,):
        raise InvalidInputError(
            f"{folder}: a checkpoint's clicks are computed in process, but not {', '.join(outputs)}: {_EXPORT}"
        )
    return cut(inputs, outputs, _PIECE)


def _refuse_others(folder: Path, fields: Mapping[str, Any]) -> None:
    """Refuse what is no plain BERT classifier."""
    if fields.get("model_type") != "bert" or fields.get("architectures") not in (None, [_ARCHITECTURE]):
        raise InvalidInputError(
            f"{folder}: its {CHECKPOINT_CONFIG} is not that of a {_ARCHITECTURE}; give a fine-tuned click model"
        )
    if any(name in fields for name in ATTENTION_FIELDS):
        raise InvalidInputError(
            f"{folder}: it computes a query once for all its documents, which only an exported graph does: {_EXPORT}"
        )
    for name, plain in _PLAIN.items():
        if fields.get(name) not in plain:
            raise InvalidInputError(f"{folder}: {name} in its {CHECKPOINT_CONFIG} is not supported here: {_EXPORT}")
    if (folder / ADAPTER).exists():
        raise InvalidInputError(f"{folder}: it holds a PEFT adapter, which is not supported here: {_EXPORT}")
