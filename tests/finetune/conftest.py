"""A BERT of two layers with its own small vocabulary: everything that fine-tuning touches, without a download."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

torch.set_num_threads(1)  # these models are too small to gain from a second
TOPICS = ("tea", "bike", "moon", "soup")
LIKED = ("tea", "moon")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *TOPICS, "likes", "new", "about", *"abcdefghijklmnopqrstuvwxyz")


def make_config(**options: object) -> BertConfig:
    """Configure a 2-layer BERT whose dropout is off, so that tiny data can be learned in seconds."""
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 48,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**settings, **options})


def make_tokenizer() -> BertTokenizerFast:
    """Build the tokenizer with truncation and padding left on, as the carried MiniLM's tokenizer.json has it."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    core.decoder = decoders.WordPiece()
    core.enable_truncation(16)
    core.enable_padding(length=16)
    return BertTokenizerFast(tokenizer_object=core, model_max_length=512)


def save(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without a classifier, as `train` starts from."""
    torch.manual_seed(1)
    return save(tmp_path_factory.mktemp("models") / "base", BertModel(make_config()))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A click model with one label and random weights, fresh for each test, so a test may damage it."""
    torch.manual_seed(2)
    model = BertForSequenceClassification(make_config(num_labels=1, id2label={0: "click"}, label2id={"click": 0}))
    return save(tmp_path / "checkpoint", model)


@pytest.fixture(scope="session")
def click_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and dev.jsonl in which the candidates about tea or the moon are clicked: learned in seconds."""
    folder = tmp_path_factory.mktemp("data")
    for name, repeats in (("train", 24), ("dev", 2)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": f"{user}{n}",
                "query": f"likes {user}",
                "document": f"new {topic} {topic}",
                "click": int(topic in LIKED),
            }
            for n in range(repeats)
            for user in TOPICS
            for topic in TOPICS
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which users click what they like, if it is about tea or the moon; with topics."""
    folder = tmp_path_factory.mktemp("joint-data")
    for name, repeats in (("train", 24), ("dev", 2)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": f"{user}{n}",
                "query": f"likes {user}",
                "document": f"new {topic} {topic}",
                "click": int(topic == user),
                "topic": topic,
                "position": (place + n) % len(TOPICS) + 1,
            }
            for n in range(repeats)
            for user in LIKED
            for place, topic in enumerate(TOPICS)
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose deciding word stands last, thrice, in documents of 41 words."""
    folder = tmp_path_factory.mktemp("long-data")
    dice = random.Random(0)
    for name, groups in (("train", 60), ("dev", 12)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": str(group),
                "query": "likes",
                "document": " ".join([*dice.choices(["new", "about", "a", "b", "c", "d"], k=38), topic, topic, topic]),
                "click": int(topic in LIKED),
            }
            for group in range(groups)
            for topic in TOPICS
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def very_long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose deciding words stand after 600 others."""
    folder = tmp_path_factory.mktemp("very-long-data")
    dice = random.Random(0)
    for name, groups in (("train", 40), ("dev", 8)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": str(group),
                "query": "likes",
                "document": " ".join([*dice.choices(["new", "about", "a", "b", "c", "d"], k=600), *[topic] * 20]),
                "click": int(topic in LIKED),
            }
            for group in range(groups)
            for topic in TOPICS
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose clicks are chance."""
    folder = tmp_path_factory.mktemp("noise-data")
    dice = random.Random(0)
    for name, groups in (("train", 30), ("dev", 20)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": str(group),
                "query": "likes",
                "document": " ".join(dice.choices(VOCABULARY[5:], k=6)),
                "click": int(dice.random() < 0.5),
            }
            for group in range(groups)
            for _ in range(4)
        ])  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def biased_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in which the same texts stand at two places, and the second is clicked at a third of the odds."""
    folder = tmp_path_factory.mktemp("biased-data")
    dice = random.Random(0)
    for name, groups in (("train", 150), ("dev", 30)):
        write_log(folder / f"{name}.jsonl", [
            {
                "group": f"{group} {topic}",
                "query": "likes",
                "document": f"new {topic}",
                "click": int(dice.random() < (0.75 if topic in LIKED else 0.4) / (1 if place == 1 else 2)),
                "position": place,
            }
            for group in range(groups // 4)
            for topic in TOPICS
            for place in (1, 2)
        ])  # fmt: skip
    return folder


def write_log(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
