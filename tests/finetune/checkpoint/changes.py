"""Changes to a checkpoint's files, and its scores as this project computes them."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.evaluation.metrics import click_probability
from finetune.evaluation.scoring import score_rows

PAIRS = [("w1 w2", "w3"), ("w4", "w5 w6 w7"), ("", "w8"), ("w9 w10 w11", "w12 w13"), ("w14", "w15 w16 w17 w18 w19")]

QUERY = "bert.encoder.layer.1.attention.self.query"
RANK, ALPHA = 4, 12
# The keys that PEFT 0.21 writes, as far as their values are not null.
SETTINGS = {
    "alpha_pattern": {}, "auto_mapping": None, "bias": "none", "ensure_weight_tying": False, "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False,
    "lora_dropout": 0.1, "megatron_config": None, "megatron_core": "megatron.core",
    "modules_to_save": ["classifier", "score"], "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16,
    "r": RANK, "rank_pattern": {}, "target_modules": ["query"], "task_type": "SEQ_CLS", "use_dora": False,
    "use_rslora": False,
}  # fmt: skip


def make_adapter(folder: Path, base: Path | str, labels: int = 1, **settings: object) -> Path:
    """Write an adapter as PEFT saves it: LoRA on one layer's query, and a classifier trained in full."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    tensors = {
        f"base_model.model.{QUERY}.lora_A.weight": torch.randn(RANK, 32, generator=chance),
        f"base_model.model.{QUERY}.lora_B.weight": torch.randn(32, RANK, generator=chance),
        "base_model.model.classifier.weight": torch.randn(labels, 32, generator=chance),
        "base_model.model.classifier.bias": torch.randn(labels, generator=chance),
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    content = {**SETTINGS, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def set_config(folder: Path, **fields: object) -> None:
    set_json(folder / "config.json", **fields)


def set_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def name_labels(folder: Path, *names: str, **fields: object) -> None:
    """Give the labels these names, in both maps."""
    ids = {name: index for index, name in enumerate(names)}
    set_config(folder, id2label={str(index): name for name, index in ids.items()}, label2id=ids, **fields)


def set_weight(folder: Path, name: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights if value is None else {**weights, name: value}, folder / "model.safetensors", {"format": "pt"})


def score(folder: Path, click_label: str | int | None = None) -> NDArray[np.float64]:
    """The click probabilities of PAIRS."""
    model, tokenizer, max_length = load_checkpoint(folder, click_label)
    rows = [ClickRow("g", query, document, 0, 1) for query, document in PAIRS]
    return click_probability(score_rows(model, tokenizer, rows, max_length), label_names(model))
