"""A checkpoint in PyTorch: transformers' own `BertForSequenceClassification` and tokenizer, never a folder's code.

Nothing is downloaded, and weights are read from safetensors alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, logging
except ImportError as exc:
    raise ImportError(
        "a checkpoint is computed by PyTorch: pip install torch transformers; or export it and give the published"
        " version, which needs clickbert[in-process] alone"
    ) from exc

from clickbert.errors import InvalidInputError
from clickbert.in_process.files import read_object
from clickbert.in_process.model import Compute
from clickbert.in_process.names import CHECKPOINT_CONFIG, TOKENIZER_FILE, WEIGHTS
from clickbert.wire.protocol import INPUT_IDS, LENGTHS, LOGITS, TOKEN_TYPE_IDS, Array

_PADDED = 128  # rows that an embedding table may have beyond the vocabulary
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# The fields of config.json that make the network. Others are about training or running it.
_NETWORK = (
    *_SIZES, "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "pad_token_id",
)  # fmt: skip


def make_config(folder: Path, fields: Mapping[str, Any], labels: list[str]) -> BertConfig:
    """Make transformers' config from config.json, once the weights have its shapes: a wrong size costs no memory.

    Raises `InvalidInputError` if a field is not valid, or the weights are another model's.
    """
    names = dict(enumerate(labels))
    try:
        config = BertConfig(
            **{name: fields[name] for name in _NETWORK if name in fields},
            id2label=names,
            label2id={label: index for index, label in names.items()},
        )
    except Exception as exc:  # transformers' own checks of the fields
        raise InvalidInputError(f"{folder / CHECKPOINT_CONFIG} is not valid: {exc}; save the checkpoint again") from exc
    found = _read_shapes(folder / WEIGHTS)
    if not _fits(config, found):
        raise InvalidInputError(
            f"{folder / WEIGHTS} does not hold the weights that {CHECKPOINT_CONFIG} describes: they belong to different"
            " models, or it is no fine-tuned click model; `python -m export` says more"
        )
    return config


def read_tokenizer(folder: Path, config: BertConfig) -> tuple[bytes, int]:
    """Return the tokenizer.json that clients tokenize with, and the longest pair in tokens.

    Raises `InvalidInputError` for a tokenizer that cannot be loaded, or that clients could not apply.
    """
    stored = read_object(folder / TOKENIZER_FILE)
    try:
        # Given a config, transformers does not read the folder's.
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, config=BertConfig(), local_files_only=True, trust_remote_code=False
        )
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        content: str = tokenizer.backend_tokenizer.to_str()
        used, tokens = json.loads(content), max(tokenizer.get_vocab().values()) + 1
        longest = int(min(tokenizer.model_max_length, config.max_position_embeddings))
    except Exception as exc:  # the tokenizers library raises nothing more special
        raise InvalidInputError(
            f"{folder}: the tokenizer cannot be loaded: {exc}; save the model's own tokenizer there"
        ) from exc
    if not (
        all(stored.get(part) == used.get(part) for part in ("normalizer", "pre_tokenizer", "model"))
        and tokenizer.truncation_side == "right"
        and not tokenizer.split_special_tokens
        and "token_type_ids" in tokenizer.model_input_names
        and tokens <= config.vocab_size < tokens + _PADDED
    ):
        raise InvalidInputError(
            f"{folder}: the tokenizer's files disagree with each other or with the model, or make tokens in a way that"
            " clients cannot; `python -m export` says what it is"
        )
    return content.encode(), longest


def open_model(folder: Path, config: BertConfig) -> Compute:
    """Load the weights, for the CPU. Raises whatever transformers does."""
    chatter: Any = logging  # typed in part only
    bars = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        model: Any = BertForSequenceClassification.from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
    finally:
        if bars:
            chatter.enable_progress_bar()
    model.eval()

    def compute(inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Mapping[str, Array]:
        lengths = inputs[LENGTHS]
        there = np.arange(lengths.max()) < lengths[:, np.newaxis]
        padded = {}
        for name in (INPUT_IDS, TOKEN_TYPE_IDS):
            array = np.zeros(there.shape, np.int64)
            array[there] = inputs[name]
            padded[name] = torch.from_numpy(array)
        with torch.inference_mode():
            answer = model(**padded, attention_mask=torch.from_numpy(there.astype(np.int64)))
        return {LOGITS: answer.logits.numpy()}

    return compute


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, "pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise InvalidInputError(
            f"{file} cannot be read ({exc}): copy or download it again, or save the checkpoint with save_pretrained, as"
            " one file of safetensors"
        ) from exc
    found.pop("bert.embeddings.position_ids", None)  # former releases of transformers saved these numbers
    return found


def _fits(config: BertConfig, found: Mapping[str, tuple[int, ...]]) -> bool:
    if not all(type(getattr(config, name)) is int and 0 < getattr(config, name) < 2**31 for name in _SIZES):
        return False
    if config.num_hidden_layers > len(found):  # nor does a wrong number of them cost time
        return False
    try:
        with torch.device("meta"):
            wanted = BertForSequenceClassification(config).state_dict()
    except Exception:  # sizes that contradict each other, or an unknown activation
        return False
    return {name: tuple(tensor.shape) for name, tensor in wanted.items()} == found
