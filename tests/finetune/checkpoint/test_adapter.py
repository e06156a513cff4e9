"""LoRA adapters: merged by PEFT's formula where the base is at hand, and refused where that would not be exact."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from finetune.checkpoint.files import CheckpointError, hash_checkpoint
from finetune.checkpoint.load import label_names, load_checkpoint
from tests.finetune.checkpoint.changes import ALPHA, QUERY, RANK, make_adapter, name_labels, score, set_json
from tests.tiny import make_checkpoint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / math.sqrt(RANK)),
        ({"fan_in_fan_out": True}, ALPHA / RANK),  # PEFT takes it for false on linear layers
    ],
)
def test_an_adapter_is_merged_into_its_base(
    base: Path, tmp_path: Path, settings: dict[str, object], scale: float
) -> None:
    folder = make_adapter(tmp_path / "adapter", base, **settings)
    before = BertForSequenceClassification.from_pretrained(base).state_dict()
    tensors = load_file(folder / "adapter_model.safetensors")
    product = tensors[f"base_model.model.{QUERY}.lora_B.weight"] @ tensors[f"base_model.model.{QUERY}.lora_A.weight"]
    expected = {
        **before,
        f"{QUERY}.weight": before[f"{QUERY}.weight"] + scale * product,
        "classifier.weight": tensors["base_model.model.classifier.weight"],
        "classifier.bias": tensors["base_model.model.classifier.bias"],
    }
    merged = load_checkpoint(folder)[0].state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(score(folder), score(base))


def test_the_base_may_lack_a_classifier_and_have_other_labels(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", labels=3)
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if not name.startswith("classifier.")},
        base / "model.safetensors",
        {"format": "pt"},
    )
    model, _, _ = load_checkpoint(make_adapter(tmp_path / "adapter", base, labels=2))
    assert label_names(model) == ["LABEL_0", "LABEL_1"]


def test_an_adapters_own_config_names_its_labels(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", base, labels=2)
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    name_labels(folder, "clicked", "not clicked")
    assert label_names(load_checkpoint(folder)[0]) == ["clicked", "not clicked"]


def test_the_hash_covers_the_base_too(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", base)
    before = hash_checkpoint(folder)
    assert before.files.keys() >= {"adapter_config.json", "adapter_model.safetensors", "base/model.safetensors"}
    assert before.files.keys() >= {"base/config.json", "base/tokenizer.json"}
    set_json(base / "config.json", layer_norm_eps=1e-5)
    assert hash_checkpoint(folder).sha256 != before.sha256


def test_a_base_beside_the_adapter_is_found(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", "../base")
    assert hash_checkpoint(folder).files.keys() >= {"base/model.safetensors"}
    load_checkpoint(folder)


@pytest.mark.parametrize("name", ["google-bert/bert-base-uncased", None, "", 7])
def test_an_adapter_without_its_base_is_refused_with_the_way_to_merge_it(tmp_path: Path, name: object) -> None:
    folder = make_adapter(tmp_path / "adapter", "")
    set_json(folder / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(CheckpointError, match=r"PEFT adapter of .*merge_and_unload"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"query": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"some_later_setting": 1}, "some_later_setting"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 8}, "does not fit r 8"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "12"}, "lora_alpha '12'"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    base: Path, tmp_path: Path, settings: dict[str, object], fault: str
) -> None:
    with pytest.raises(CheckpointError, match=fault):
        load_checkpoint(make_adapter(tmp_path / "adapter", base, **settings))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bert.embeddings.word_embeddings.lora_embedding_A", (RANK, 227)),
        ("bert.encoder.layer.0.attention.self.key.lora_A.weight", (RANK, 32)),
        ("bert.encoder.layer.0.attention.self.key.lora_B.weight", (32, RANK)),
        ("bert.encoder.layer.0.attention.self.query.lora_magnitude_vector.weight", (32,)),
        ("score.weight", (1, 32)),
        ("bert.pooler.dense.weight", (32, 16)),
    ],
)
def test_a_tensor_that_is_not_merged_is_refused_by_name(
    base: Path, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    folder = make_adapter(tmp_path / "adapter", base)
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{name}": torch.zeros(shape)}, path)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_a_whole_model_beside_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", base)
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds a whole model and a PEFT adapter"):
        load_checkpoint(folder)


def test_an_adapter_without_safetensors_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_checkpoint(folder)
