"""A checkpoint computed in the caller's process; those that are refused; and the rules, which are `finetune`'s."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clickbert import InvalidInputError, Ranker, ServerError
from clickbert.in_process import names, ranker
from clickbert.in_process.checkpoints import checkpoint as read_here
from clickbert.in_process.checkpoints import pytorch
from clickbert.in_process.checkpoints.labels import find_click, read_labels
from finetune.checkpoint import attention, config, files, labels
from finetune.checkpoint.files import CheckpointError
from finetune.checkpoint.load import load_checkpoint
from finetune.data.clicklog import ClickRow
from tests.integration.scores import PATIENCE, as_rows, in_pytorch
from tests.tiny import MAX_LENGTH, WORDS, make_checkpoint, make_once_checkpoint

PAIRS = [(user, text) for user in ("", "w1 w2", " ".join(WORDS[:40])) for text in ("", "w7", " ".join(WORDS[20:90]))]


@pytest.fixture
def copy(published_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published_checkpoint, tmp_path / "checkpoint")


def answers(ranker: Ranker) -> dict[str, bytes]:
    return {name: bytes(array) for name, array in ranker._transport._model.tokenizer.items()}


def test_scores_are_pytorchs_and_those_of_the_exported_graph(
    published_checkpoint: Path, published_engines: Path, rows: list[ClickRow], expected: np.ndarray
) -> None:
    pairs = [(row.query, row.document) for row in rows]
    with ranker(published_checkpoint, timeout=PATIENCE) as here:
        with ranker(published_engines / "clickbert_onnx/1", timeout=PATIENCE) as exported:
            np.testing.assert_allclose(here.score_pairs(pairs), expected, atol=1e-5)
            raw = [each.score_pairs(pairs + PAIRS, raw_scores=True) for each in (here, exported)]
            np.testing.assert_allclose(*raw, atol=1e-4)
            ours, theirs = answers(here), answers(exported)
    heads = [json.loads(each.pop("heads_json")) for each in (ours, theirs)]
    assert ours == theirs, "tokenizer, labels, click label and the longest pair are as exported"
    del heads[1]["user_tokens"], heads[1]["expected"]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("count", [2, 3])
def test_several_labels(tmp_path: Path, count: int) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=count)
    with ranker(folder, timeout=PATIENCE) as here:
        found = in_pytorch(folder, as_rows(PAIRS))
        np.testing.assert_allclose(here.score_pairs(PAIRS), found, atol=1e-5)


def test_a_joint_checkpoint_ranks_and_names_the_export_for_its_heads(joint_checkpoint: Path) -> None:
    with ranker(joint_checkpoint, timeout=PATIENCE) as here:
        np.testing.assert_allclose(here.score_pairs(PAIRS), in_pytorch(joint_checkpoint, as_rows(PAIRS)), atol=1e-5)
        for ask in (
            lambda: here.embed(["w1"]),
            lambda: here.classify(["w1"]),
            lambda: here.rank("w1", ["w2"], long_documents="passages"),
        ):
            with pytest.raises(InvalidInputError, match="export it with `python -m export`"):
                ask()


def test_a_user_text_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"computes a query once .* export it"):
        ranker(make_once_checkpoint(tmp_path / "checkpoint"))


def change_config(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return write


def change_tokenizer(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another model": (change_config(model_type="roberta"), "not that of a BertForSequenceClassification"),
    "another task": (change_config(architectures=["BertModel"]), "not that of a BertForSequenceClassification"),
    "code of its own": (change_config(auto_map={"AutoModel": "evil.Model"}), "auto_map .* export it"),
    "a decoder": (change_config(is_decoder=True), "is_decoder"),
    "relative positions": (change_config(position_embedding_type="relative_key"), "position_embedding_type"),
    "quantized": (change_config(quantization_config={"bits": 4}), "quantization_config"),
    "a huge size": (change_config(hidden_size=2**40), "different models|not valid"),
    "layers without end": (change_config(num_hidden_layers=10**9), "different models"),
    "no number": (change_config(hidden_size="large"), "not valid|different models"),
    "an unknown activation": (change_config(hidden_act="evil"), "not valid|different models"),
    "fewer layers": (change_config(num_hidden_layers=1), "different models"),
    "labels that do not tell": (change_config(id2label={"0": "a", "1": "b"}, label2id=None), "do not tell"),
    "a denial": (change_config(id2label={"0": "not clicked"}, label2id=None), "do not tell"),
    "labels that disagree": (change_config(label2id={"click": 1}), "disagree"),
    "a softmax of one": (change_config(problem_type="single_label_classification"), "problem_type"),
    "an unknown problem": (change_config(problem_type=["x"]), "problem_type"),
    "an adapter": (write("adapter_config.json", "{}"), "PEFT adapter.* export it"),
    "no JSON": (write("config.json", "{"), "config.json is not JSON"),
    "deep JSON": (write("config.json", "[" * 100_000), "config.json is not JSON"),
    "a list": (write("config.json", "[]"), "no JSON object"),
    "no classifier": (change_weights(lambda weights: weights.pop("classifier.weight")), "different models"),
    "another's weights": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1"), "cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "no tokenizer at all": (write("tokenizer.json", "{}"), "tokenizer cannot be loaded"),
    "two tokenizers": (change_tokenizer(do_lower_case=False), "tokenizer's files disagree"),
    "cut on the left": (change_tokenizer(truncation_side="left"), "tokenizer's files disagree"),
    "special tokens split": (change_tokenizer(split_special_tokens=True), "tokenizer's files disagree"),
    "no token types": (change_tokenizer(model_input_names=["input_ids"]), "tokenizer's files disagree"),
    "a limit that is none": (change_tokenizer(model_max_length="many"), "tokenizer cannot be loaded"),
    "no room": (change_tokenizer(model_max_length=2), "max_length"),
    "heads of another form": (write("clickbert.json", '{"topics": 7}'), "'topics' is 7"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_out_of_the_ordinary_is_refused(copy: Path, change: Callable[[Path], None], said: str) -> None:
    change(copy)
    with pytest.raises(InvalidInputError, match=said) as error:
        ranker(copy)
    assert str(copy) in str(error.value)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InvalidInputError, match="save the checkpoint with save_pretrained"):
        ranker(copy)


def test_a_weight_that_is_nan_is_no_score(copy: Path) -> None:
    change_weights(lambda weights: weights["classifier.bias"].fill_(float("nan")))(copy)
    with ranker(copy) as here, pytest.raises(ServerError, match="not finite"):
        here.rank("w1", ["w2"])


def test_weights_that_go_after_the_check_are_no_traceback(copy: Path) -> None:
    with ranker(copy) as here:
        (copy / "model.safetensors").unlink()
        with pytest.raises(ServerError, match="a request cannot be computed"):
            here.rank("w1", ["w2"])


def test_a_shorter_limit_of_the_tokenizer_counts(copy: Path) -> None:
    change_tokenizer(model_max_length=MAX_LENGTH - 9)(copy)
    _, _, longest = load_checkpoint(copy)
    with ranker(copy, timeout=PATIENCE) as here:
        assert answers(here)["max_length"] == np.int32(longest).tobytes() == np.int32(MAX_LENGTH - 9).tobytes()
        np.testing.assert_allclose(here.score_pairs(PAIRS), in_pytorch(copy, as_rows(PAIRS)), atol=1e-5)


NAMES = ["click", "Clicked", "no click", "not-clicked", "yes", "NO", "positive", "negative", "Relevant", "irrelevant"]
label = st.sampled_from([*NAMES, "0", "1", "true", "False", "LABEL_0", "LABEL_1", "skip", "größe"])


@given(st.lists(label, min_size=1, max_size=4, unique=True))
def test_the_click_is_the_label_that_the_export_takes(found: list[str]) -> None:
    try:
        wanted = labels.click_column(found)
    except CheckpointError:
        with pytest.raises(InvalidInputError, match="do not tell"):
            find_click(found)
    else:
        assert find_click(found) == wanted


json_values = st.none() | st.booleans() | st.integers(-1, 4) | st.text(max_size=5) | label


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id2label": json_values
            | st.lists(label, max_size=3).map(lambda each: dict(zip("012", each, strict=False))),
            "label2id": json_values | st.dictionaries(label, st.integers(0, 2), max_size=3),
            "num_labels": json_values,
            "problem_type": st.sampled_from([None, "regression", *labels.PROBLEM_TYPES]) | json_values,
        },
    )
)
def test_labels_are_read_as_the_export_reads_them_or_refused(fields: dict[str, Any]) -> None:
    try:
        found = read_labels(fields)
    except InvalidInputError:
        return
    # The number of labels is held against the classifier's rows later.
    wanted = labels.read_labels(
        {name: value for name, value in fields.items() if name != "num_labels"} | {"num_labels": len(found)}
    )
    assert found == wanted


def test_the_names_are_those_of_finetune() -> None:
    assert names.ATTENTION_FIELDS == (attention.ATTENTION_FIELD, attention.USER_TOKENS_FIELD)
    assert (names.CHECKPOINT_CONFIG, names.WEIGHTS, names.TOKENIZER_FILE) == (
        files.CONFIG,
        files.WEIGHTS,
        files.TOKENIZER,
    )
    assert (names.HEAD_SETTINGS, names.ADAPTER) == (files.HEAD_SETTINGS, files.ADAPTER_CONFIG)
    assert {name: plain for name, (plain, _) in config.SERVED_VALUES.items()} == read_here._PLAIN
    training = {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"}
    assert config.FIELDS.keys() - training - {*names.ATTENTION_FIELDS} == {*pytorch._NETWORK}
