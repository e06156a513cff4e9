"""Which label is the click: the names, the config, the user's word, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, BertForSequenceClassification

from finetune.checkpoint.labels import CheckpointError, click_column, read_labels
from finetune.checkpoint.load import label_names, load_checkpoint
from finetune.evaluation.metrics import click_probability
from tests.finetune.checkpoint.changes import PAIRS, name_labels, score, set_config
from tests.tiny import make_checkpoint


@pytest.mark.parametrize(
    ("labels", "click"),
    [
        (["anything"], 0),
        (["LABEL_0"], 0),
        (["0"], 0),
        (["no click", "click"], 1),
        (["click", "no click"], 0),
        (["clicked", "not clicked"], 0),
        (["Not_Clicked", "CLICKED"], 1),
        (["non-click", "click"], 1),
        (["click", "noclick"], 0),
        (["skip", "click"], 1),
        (["click", "skip"], 0),
        (["skip", "hide", "Click"], 2),
        (["yes", "no"], 0),
        (["No", "Yes"], 1),
        (["positive", "negative"], 0),
        (["irrelevant", "relevant"], 1),
        (["Relevant", "not relevant"], 0),
        (["0", "1"], 1),
        (["1", "0"], 0),
        (["False", "True"], 1),
        (["LABEL_0", "LABEL_1"], 1),
    ],
)
def test_the_names_tell_which_label_is_the_click(labels: list[str], click: int) -> None:
    assert click_column(labels) == click


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "maybe"],
        ["a", "b"],
        ["not clicked", "other"],
        ["LABEL_1", "LABEL_0"],
        ["click", "clicked"],
        ["click", "Click"],
        ["positive", "positive"],
        ["yes", "irrelevant"],
        ["not clicked"],
        ["no"],
        ["1", "2", "3", "4", "5"],
        ["negative", "neutral", "positive"],
        ["LABEL_0", "LABEL_1", "LABEL_2"],
    ],
)
def test_names_that_do_not_tell_are_listed_and_the_option_is_named(labels: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        click_column(labels)
    assert str(labels) in str(caught.value)
    assert "--click-label" in str(caught.value)


def hugging_face_logits(folder: Path) -> NDArray[np.float64]:
    """The logits of PAIRS as transformers computes them, one pair at a time."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        encoded = [tokenizer([query], [document], return_tensors="pt") for query, document in PAIRS]
        return np.concatenate([model(**pair).logits.double().numpy() for pair in encoded])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_click_label_that_comes_first_ranks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    name_labels(folder, "clicked", "not clicked")
    np.testing.assert_allclose(score(folder), softmax(hugging_face_logits(folder))[:, 0], atol=1e-6)
    model, _, _ = load_checkpoint(folder)
    assert click_column(label_names(model)) == 0


@pytest.mark.parametrize("click_label", ["maybe", "Maybe", 1, "1"])
def test_the_user_names_the_label_where_the_names_do_not(tmp_path: Path, click_label: str | int) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    name_labels(folder, "no", "maybe")
    with pytest.raises(CheckpointError, match=rf"{folder}: .*\['no', 'maybe'\].*--click-label"):
        load_checkpoint(folder)
    np.testing.assert_allclose(score(folder, click_label), softmax(hugging_face_logits(folder))[:, 1], atol=1e-6)
    model, _, _ = load_checkpoint(folder, click_label)
    assert label_names(model) == ["no", "click"], "so that everything downstream finds it by its name"


def test_the_users_word_counts_more_than_the_names(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=3)
    name_labels(folder, "skip", "click", "buy")
    np.testing.assert_allclose(score(folder), softmax(hugging_face_logits(folder))[:, 1], atol=1e-6)
    np.testing.assert_allclose(score(folder, "buy"), softmax(hugging_face_logits(folder))[:, 2], atol=1e-6)
    model, _, _ = load_checkpoint(folder, "buy")
    assert click_column(label_names(model)) == 2


@pytest.mark.parametrize("click_label", ["click!", "", 2, -1, "2", "not clicked", 1])
def test_a_click_label_that_is_not_there_or_denies_a_click_is_refused(tmp_path: Path, click_label: str | int) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    name_labels(folder, "clicked", "not clicked")
    with pytest.raises(CheckpointError, match=r"--click-label is .*\['clicked', 'not clicked'\]"):
        load_checkpoint(folder, click_label)


def test_a_multi_label_model_scores_with_the_sigmoid_of_its_click_label(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=3)
    name_labels(folder, "like", "click", "share", problem_type="multi_label_classification")
    logits = hugging_face_logits(folder)
    np.testing.assert_allclose(score(folder), 1 / (1 + np.exp(-logits[:, 1])), atol=1e-6)
    assert np.argsort(score(folder)).tolist() == np.argsort(logits[:, 1]).tolist()
    assert np.argsort(logits[:, 1]).tolist() != np.argsort(softmax(logits)[:, 1]).tolist(), "softmax ranks otherwise"
    model, _, _ = load_checkpoint(folder)
    assert (label_names(model), model.classifier.out_features) == (["click"], 1)
    np.testing.assert_allclose(score(folder, "share"), 1 / (1 + np.exp(-logits[:, 2])), atol=1e-6)


def test_a_reduced_model_can_be_saved_and_loaded(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=3)
    name_labels(folder, "like", "click", "share", problem_type="multi_label_classification")
    model, tokenizer, _ = load_checkpoint(folder)
    model.save_pretrained(tmp_path / "reduced")
    tokenizer.save_pretrained(tmp_path / "reduced")
    np.testing.assert_allclose(
        score(tmp_path / "reduced"), score(folder), rtol=1e-6
    )  # one row of a product may round otherwise


def test_default_names_of_a_multi_label_model_do_not_tell(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    name_labels(folder, "LABEL_0", "LABEL_1", problem_type="multi_label_classification")
    with pytest.raises(CheckpointError, match=r"multi-label model do not tell .*--click-label"):
        load_checkpoint(folder)
    sigmoid = 1 / (1 + np.exp(-hugging_face_logits(folder)[:, 0]))
    np.testing.assert_allclose(score(folder, 0), sigmoid, atol=1e-6)


def test_a_regression_on_the_click_rate_ranks_as_its_output_does(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    set_config(folder, problem_type="regression")
    assert np.argsort(score(folder)).tolist() == np.argsort(hugging_face_logits(folder)[:, 0]).tolist()


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 1}, ["LABEL_0"]),
        ({"id2label": {"1": "b", "0": "a"}}, ["a", "b"]),
        ({"id2label": {"0": 0, "1": True}}, ["0", "True"]),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ["a", "b"]),
        ({"id2label": {"0": "click"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ["click"]),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"B": "1", "A": "0"}}, ["a", "b"]),
        ({"label2id": {"clicked": 0, "not clicked": 1}}, ["clicked", "not clicked"]),
    ],
)
def test_labels_are_read_in_the_order_of_their_ids(fields: dict[str, object], labels: list[str]) -> None:
    assert read_labels(fields) == labels


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"id2label": ["click"]}, "id2label is"),
        ({"id2label": {}}, "id2label is"),
        ({"id2label": {"0": "a", "2": "b"}}, "must be 0 to 1"),
        ({"id2label": {"click": 0}}, "must be 0 to 0"),
        ({"id2label": {"0": None}}, "must be strings"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": "2"}, "num_labels is '2'"),
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3, but id2label names 2"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "label2id"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "c": 1}}, "label2id"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 0}}, "label2id"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": [0, 1]}, "label2id"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
        ({"problem_type": ["regression"]}, "problem_type is"),
        ({"problem_type": "regression"}, "'regression' with 2 labels"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "softmax is always 1"),
    ],
)
def test_contradictions_about_the_labels_are_refused(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault):
        read_labels(fields)


def test_metrics_follow_the_same_rule() -> None:
    logits = [[3.0, 1.0]]
    assert click_probability(logits, ["clicked", "not clicked"])[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert click_probability(logits, ["not clicked", "clicked"])[0] == pytest.approx(1 / (1 + np.exp(2)))
    with pytest.raises(CheckpointError, match="--click-label"):
        click_probability(logits, ["no", "maybe"])
