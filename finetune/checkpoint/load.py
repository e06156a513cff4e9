"""Loads a Hugging Face folder as a click model, and refuses, with the reason, what cannot be served as one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerFast

SHORTEST = 16  # tokens; the server warms up with such pairs
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class CheckpointError(ValueError):
    """A model folder that cannot be used: the message names the folder, what is wrong and what to do."""


def load_checkpoint(
    folder: str | Path, click_label: str | None = None
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast, int]:
    """Load a fine-tuned checkpoint: model (FP32, evaluation mode), tokenizer, and the longest pair in tokens.

    The longest pair is min(tokenizer.model_max_length, config.max_position_embeddings). The network is never asked.

    Raises:
        CheckpointError: the folder is missing, is no BERT, holds pickled weights only, cannot be read, lacks the
            classifier's weights, or a weight is NaN or infinite.
    """
    folder = Path(folder)
    check_model_folder(folder)
    model, missing = load_model(folder)
    if missing:
        raise CheckpointError(
            f"{folder}: no weights for {', '.join(missing)}; this is not a fine-tuned click model, "
            "fine-tune it first with `python -m finetune train`"
        )
    tokenizer = load_tokenizer(folder)
    return model, tokenizer, longest_pair(folder, model, tokenizer)


def label_names(model: BertForSequenceClassification) -> list[str]:
    """Return the label names in the order of their ids, as `click_probability` takes them."""
    names: dict[Any, Any] = dict(model.config.id2label or {})
    return [str(names[index]) for index in range(len(names))]


def check_model_folder(folder: Path) -> None:
    """Refuse, with the reason, a folder that is not a BERT with safetensors weights. Reads config.json only."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; make one with `python -m finetune train`")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: has no config.json; give a folder saved by save_pretrained") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: cannot be read ({error}); save the checkpoint again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise CheckpointError(f"{folder}: its config.json says model_type {kind!r}; only 'bert' models are served")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        pickled = (folder / "pytorch_model.bin").is_file()
        found = "holds pickled weights only (pytorch_model.bin), which can run code" if pickled else "has no weights"
        raise CheckpointError(f"{folder}: {found}; save it with save_pretrained as model.safetensors")


def load_model(source: str | Path, **options: Any) -> tuple[BertForSequenceClassification, list[str]]:
    """Load a classifier in FP32 and evaluation mode, and the names of the weights that the source lacks.

    `source` is a folder (then the network is never asked) or a name on the Hugging Face hub.

    Raises:
        CheckpointError: the weights cannot be read or do not fit config.json, or one is NaN or infinite.
    """
    try:
        with quiet_transformers():
            loaded: Any = BertForSequenceClassification.from_pretrained(
                source,
                use_safetensors=True,
                local_files_only=isinstance(source, Path),
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: the model cannot be loaded: {error}; save or download it again") from error
    model: BertForSequenceClassification = loaded[0]
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source}: the weight {name} holds NaN or infinity; use an earlier checkpoint")
    model.train(mode=False)
    # Under ignore_mismatched_sizes, a weight of another shape is replaced by a new one: as good as missing.
    mismatched = [name for name, *_ in loaded[1]["mismatched_keys"]]
    return model, sorted([*loaded[1]["missing_keys"], *mismatched])


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer, free of any truncation and padding that its tokenizer.json carries.

    Raises:
        CheckpointError: there is none, or it is not a fast tokenizer (one that saves a tokenizer.json).
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=isinstance(source, Path))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: the tokenizer cannot be loaded: {error}; add its tokenizer.json") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{source}: {type(tokenizer).__name__} saves no tokenizer.json; use a fast tokenizer")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def longest_pair(source: str | Path, model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the longest pair in tokens that both the tokenizer and the position embeddings allow.

    Raises:
        CheckpointError: tokenizer and model do not fit, or a pair is not what every part of this project takes it for:
            `[CLS] user [SEP] candidate [SEP]` with token types 0 and 1, at least SHORTEST tokens, cut at the end.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size} embeddings; "
            "they belong to different models"
        )
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "c"))
    encoded = tokenizer(["a b"], ["c"], return_token_type_ids=True)
    wanted = [cls, *first, sep, *second, sep], [0] * (len(first) + 2) + [1] * (len(second) + 1)
    if (encoded["input_ids"][0], encoded["token_type_ids"][0]) != wanted or (model.config.type_vocab_size or 0) < 2:
        raise CheckpointError(
            f"{source}: its tokenizer or its type_vocab_size does not make pairs [CLS] user [SEP] candidate [SEP] with "
            "token types 0 and 1; give a BERT with its own tokenizer"
        )
    if tokenizer.truncation_side != "right":
        raise CheckpointError(
            f"{source}: its tokenizer cuts long texts on the left, callers' texts are cut on the right; set "
            'truncation_side to "right" in tokenizer_config.json, and fine-tune that way'
        )
    longest = int(min(tokenizer.model_max_length, model.config.max_position_embeddings))
    if longest < SHORTEST:
        raise CheckpointError(
            f"{source}: takes pairs of {longest} tokens at most; {SHORTEST} are the least that is served"
        )
    return longest


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide Transformers' warnings and progress bars, which report as news what this project checks itself."""
    chatter: Any = transformers.logging  # typed in part only
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()
