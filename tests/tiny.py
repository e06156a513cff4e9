"""A 2-layer BERT and a click log, made in the test: real files, small enough for every test to have its own."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from finetune.checkpoint.attention import ATTENTION_FIELD, USER_TOKENS_FIELD
from finetune.checkpoint.heads import Heads, HeadSettings, Passages, write_heads
from finetune.names import ATTENTION, USER_ONCE

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(150)]
CHINESE = list("我想买一双跑步鞋轻便透气新闻体育今天的天气很好")
LETTERS = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
MAX_LENGTH = 48
ONCE_USER_TOKENS = 9  # of a user text, in the published model that computes it once
JOINT = HeadSettings(("news", "sport", "größe"), embedding_size=8, passages=Passages(ATTENTION, overlap=4))


def make_checkpoint(
    folder: Path,
    labels: int = 1,
    seed: int = 0,
    words: list[str] = WORDS,
    lower_case: bool = True,
    heads: HeadSettings | None = None,
    **config: object,
) -> Path:
    """Writes a random 2-layer click model, with further heads if they are given, and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys(SPECIAL + words + LETTERS))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(folder, do_lower_case=lower_case, model_max_length=MAX_LENGTH)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.2,  # large enough that pairs differ clearly
        "num_labels": labels,
    } | config
    model = BertForSequenceClassification(BertConfig(**settings))
    names = {1: ["click"], 2: ["no click", "click"]}.get(labels, ["skip", "click", *map(str, range(labels - 2))])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if heads:
        write_heads(Heads(heads, int(model.config.hidden_size)), folder)
    return folder


def make_once_checkpoint(folder: Path, user_tokens: int = (MAX_LENGTH - 3) // 2, **options: Any) -> Path:
    """Writes what `make_checkpoint` does, with the attention "user_once": the same weights, other scores."""
    return make_checkpoint(folder, **options, **{ATTENTION_FIELD: USER_ONCE, USER_TOKENS_FIELD: user_tokens})


def make_click_log(path: Path, groups: int = 12, words: list[str] = WORDS, seed: int = 0) -> Path:
    """Writes a click log of random words: groups of 2 to 12 candidates, texts of 0 to 60 words."""
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choices(words, k=chance.randint(0, 60)))

    with path.open("w", encoding="utf-8") as file:
        for group in range(groups):
            query = text()
            for _ in range(chance.randint(2, 12)):
                row = {"group": f"g{group}", "query": query, "document": text(), "click": int(chance.random() < 0.3)}
                file.write(json.dumps(row) + "\n")
    return path
