"""config.json: what is refused by name, what does not matter, and that no value ends in a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from finetune.checkpoint.base_model import load_base
from finetune.checkpoint.config import strip_command
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from tests.finetune.checkpoint.changes import score, set_config, set_json, set_weight
from tests.tiny import make_checkpoint

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["2", "gelu", -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
TOKENIZER_SETTINGS = [
    "added_tokens_decoder", "additional_special_tokens", "auto_map", "backend", "chat_template", "cls_token",
    "do_lower_case", "extra_special_tokens", "fast_tokenizer_files", "init_inputs", "mask_token", "max_len",
    "model_input_names", "model_max_length", "pad_token", "padding_side", "sep_token", "split_special_tokens",
    "strip_accents", "tokenize_chinese_chars", "tokenizer_class", "tokenizer_object", "truncation_side", "unk_token",
    "vocab",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantization_config", {"load_in_8bit": True}),
        ("auto_map", {"AutoModelForSequenceClassification": "modeling.JinaBert"}),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("pruned_heads", {"0": [1]}),
        ("vocab_size", "227"),
        ("vocab_size", 227.0),
        ("vocab_size", True),
        ("vocab_size", None),
        ("hidden_size", 0),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 5),
        ("num_attention_heads", [4]),
        ("hidden_act", "glue"),
        ("hidden_act", None),
        ("hidden_act", {}),
        ("layer_norm_eps", "1e-12"),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", -1e-12),
        ("hidden_dropout_prob", 2),
        ("classifier_dropout", "none"),
        ("initializer_range", -1),
        ("pad_token_id", 10_000),
        ("pad_token_id", -1),
    ],
)
def test_a_field_that_changes_the_network_or_is_broken_is_refused_by_name(
    folder: Path, field: str, value: object
) -> None:
    set_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{field}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "flash_attention_2"},
        {"use_cache": None},
        {"return_dict": False},
        {"output_attentions": True},
        {"torch_dtype": "no such type"},
        {"dtype": 7},
        {"chunk_size_feed_forward": 3},
        {"transformers_version": None},
        {"architectures": "BertModel"},
        {"hidden_dropout_prob": 0, "classifier_dropout": 0.3, "initializer_range": 1},
    ],
)
def test_how_a_framework_is_to_run_the_network_does_not_matter(folder: Path, fields: dict[str, object]) -> None:
    before = score(folder)
    set_config(folder, **fields)
    np.testing.assert_array_equal(score(folder), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 1000),
        ("hidden_size", 64),
        ("max_position_embeddings", 96),
        ("type_vocab_size", 3),
        ("intermediate_size", 128),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 10**12),
        ("hidden_size", 4 * 10**12),
    ],
)
def test_a_size_that_is_not_the_weights_is_refused_by_name(folder: Path, field: str, value: int) -> None:
    set_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field} {value}|{value} embeddings"):
        load_checkpoint(folder)


def test_a_classifier_of_another_shape_is_refused(folder: Path) -> None:
    set_weight(folder, "classifier.weight", torch.zeros(2, 32))
    with pytest.raises(CheckpointError, match=r"names 1 labels .*2 rows"):
        load_checkpoint(folder)


def wrap(folder: Path, prefix: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: weight for name, weight in weights.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_wrapped_models_weights_are_refused_with_the_command_that_unwraps_them(folder: Path, prefix: str) -> None:
    wrap(folder, prefix)
    with pytest.raises(CheckpointError, match=f"names begin with '{prefix}'") as caught:
        load_checkpoint(folder)
    assert strip_command(prefix) in str(caught.value)
    with pytest.raises(CheckpointError, match="names begin with"):
        load_base(folder, labels=1, seed=0)


def test_the_command_unwraps_the_weights(folder: Path) -> None:
    before = score(folder)
    wrap(folder, "module.")
    command = strip_command("module.").replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, cwd=folder, check=True)
    np.testing.assert_array_equal(score(folder), before)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("shared") / "checkpoint", labels=2)


def loads_or_is_refused(folder: Path, name: str, field: str, value: object) -> None:
    path = folder / name
    before = path.read_text()
    try:
        set_json(path, **{field: value})
        load_checkpoint(folder)
    except CheckpointError:
        pass
    finally:
        path.write_text(before)


@settings(max_examples=60)
@given(data=st.data(), value=JSON)
def test_any_value_in_config_json_loads_or_is_refused(shared: Path, data: st.DataObject, value: object) -> None:
    fields = [
        *json.loads((shared / "config.json").read_text()),
        "num_labels",
        "tokenizer_class",
        "auto_map",
        "id2label",
    ]
    field = data.draw(st.sampled_from(sorted({*fields, "quantization_config", "attn_implementation", "torch_dtype"})))
    loads_or_is_refused(shared, "config.json", field, value)


@settings(max_examples=40)
@given(field=st.sampled_from(TOKENIZER_SETTINGS), value=JSON)
def test_any_value_in_tokenizer_config_json_loads_or_is_refused(shared: Path, field: str, value: object) -> None:
    loads_or_is_refused(shared, "tokenizer_config.json", field, value)
