"""Changes to a checkpoint's files, and its scores as this project computes them."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.data.clicklog import ClickRow
from finetune.metrics import click_probability
from finetune.scoring import score_rows

PAIRS = [("w1 w2", "w3"), ("w4", "w5 w6 w7"), ("", "w8"), ("w9 w10 w11", "w12 w13"), ("w14", "w15 w16 w17 w18 w19")]


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
