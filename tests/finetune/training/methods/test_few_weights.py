"""PEFT methods: which weights move, that merging changes nothing, that a run goes on, and what is said of a prefix."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from finetune.__main__ import main
from finetune.checkpoint.heads import read_heads
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.checkpoint.tokenizer import load_tokenizer
from finetune.data.clicklog import read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_rows
from finetune.training.build import build
from finetune.training.methods.few_weights import Method, trained_share
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.training.interrupt import CtrlC

MERGED = ("lora", "adalora", "ia3")
TRAINED_WHOLE = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def settings(method: str, **others: Any) -> TrainSettings:
    return TrainSettings(
        **{"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "rank": 4, "method": method, **others}
    )


@pytest.mark.parametrize("method", MERGED)
def test_what_is_saved_is_a_plain_bert_with_the_logits_of_training(
    method: str, base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_click_log(click_folder / "dev.jsonl")
    merge = Method.merge
    unmerged = []

    def note(self: Method) -> None:
        click: Any = self.peft.get_base_model()
        assert any("lora_" in name or "ia3_" in name for name in click.state_dict())
        unmerged.append(score_rows(click, load_tokenizer(base), rows, 48))
        merge(self)

    monkeypatch.setattr(Method, "merge", note)
    assert train(click_folder, str(base), tmp_path / "model", settings(method))["auc"] > 0.95, "it learns"
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == BertForSequenceClassification.from_pretrained(tmp_path / "model").state_dict().keys()
    model, tokenizer, length = load_checkpoint(tmp_path / "model")
    np.testing.assert_allclose(score_rows(model, tokenizer, rows, length), unmerged[0], rtol=0, atol=1e-5)
    value = "encoder.layer.0.attention.self.value.weight"
    assert not torch.equal(saved[f"bert.{value}"], load_file(base / "model.safetensors")[value]), "the encoder moved"


@pytest.mark.parametrize("method", MERGED)
def test_nothing_moves_but_the_methods_weights_and_the_head(method: str, base: Path) -> None:
    model, _, _ = build(str(base), [], settings(method, freeze="none"))
    moving = {name for name, weight in model.click.named_parameters() if weight.requires_grad}
    added = {name for name in moving if "lora_" in name or "ia3_" in name}
    assert moving - added == TRAINED_WHOLE
    assert added
    frozen, _, _ = build(str(base), [], settings(method, freeze="1"))
    moving = {name for name, weight in frozen.click.named_parameters() if weight.requires_grad}
    assert moving < {name for name in (added | TRAINED_WHOLE) if "layer.0." not in name} | TRAINED_WHOLE | added
    assert not any("layer.0." in name for name in moving)
    assert any("layer.1." in name for name in moving)


def test_further_heads_are_trained_whole(base: Path, joint_folder: Path, tmp_path: Path) -> None:
    chosen = settings("lora", epochs=1, understanding=("topic", "similarity"))
    start, _, _ = build(str(base), read_click_log(joint_folder / "train.jsonl"), chosen)
    train(joint_folder, str(base), tmp_path / "model", chosen)
    heads = read_heads(tmp_path / "model", 32).state_dict()
    assert heads.keys() == {f"{head}.{part}" for head in ("topic", "embedding") for part in ("weight", "bias")}
    for name, weight in start.heads.state_dict().items():
        assert not torch.equal(weight, heads[name])


def test_the_share_that_is_trained_is_told(
    base: Path, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, _ = build(str(base), [], settings("lora"))
    trained, weights = trained_share(model)
    assert trained == sum(weight.numel() for weight in model.parameters() if weight.requires_grad) < weights
    train(click_folder, str(base), tmp_path / "model", settings("lora", epochs=1))
    assert f"trained: {trained:,} of {weights:,} weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(method, marks=pytest.mark.slow) for method in ("adalora", "ia3", "prefix"))]
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    method: str, base: Path, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(method, epochs=2)
    whole = train(click_folder, str(base), tmp_path / "whole", chosen)
    with pytest.raises(KeyboardInterrupt, match="give the same command again"):
        train(click_folder, str(base), tmp_path / "stopped", chosen, callbacks=[CtrlC(30)])
    assert train(click_folder, str(base), tmp_path / "stopped", chosen) == whole
    name = "adapter_model.safetensors" if method == "prefix" else "model.safetensors"
    weights, expected = load_file(tmp_path / "stopped" / name), load_file(tmp_path / "whole" / name)
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-5, atol=1e-6)


def test_adalora_takes_ranks_from_where_they_matter_least(base: Path, click_folder: Path, tmp_path: Path) -> None:
    ranks: dict[str, int] = {}

    class Count(CtrlC):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
            ranks.update(
                (name, int((weight != 0).sum())) for name, weight in model.named_parameters() if "lora_E" in name
            )

    train(click_folder, str(base), tmp_path / "model", settings("adalora"), callbacks=[Count(0)])
    assert sum(ranks.values()) == 4 * len(ranks), "the budget is --rank for each layer, on average"
    assert len(set(ranks.values())) > 1, "but layers differ"


def test_the_loss_of_adalora_keeps_its_matrices_orthogonal(base: Path) -> None:
    model, _, _ = build(str(base), [], settings("adalora"))
    assert model.method
    penalty = model.method.penalty()
    assert penalty is not None
    assert penalty > 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                torch.nn.init.orthogonal_(weight)
    again = model.method.penalty()
    assert again is not None
    assert float(again) == pytest.approx(0, abs=1e-4)
    plain, _, _ = build(str(base), [], settings("lora"))
    assert plain.method
    assert plain.method.penalty() is None


@pytest.mark.slow
def test_averaged_weights_and_an_adversary_go_with_lora(base: Path, click_folder: Path, tmp_path: Path) -> None:
    chosen = settings("lora", average=0.9, adversarial=0.1, precision="bf16", learning_rate=5e-4, epochs=6)
    assert train(click_folder, str(base), tmp_path / "model", chosen)["auc"] > 0.9


def test_gradients_reach_lora_through_checkpointing(base: Path, click_folder: Path, tmp_path: Path) -> None:
    plain = train(click_folder, str(base), tmp_path / "plain", settings("lora", epochs=1))
    saving = train(
        click_folder, str(base), tmp_path / "saving", settings("lora", epochs=1, gradient_checkpointing=True)
    )
    assert saving["log_loss"] == pytest.approx(plain["log_loss"], abs=1e-5)


def test_a_prefix_is_saved_for_peft_and_refused_with_the_reason(
    base: Path, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second takes the first one's place
        metrics = train(click_folder, str(base), tmp_path / "model", settings("prefix", epochs=1))
    assert capsys.readouterr().err.count("cannot be merged") == 4, "at the start and at the end"
    rows = read_click_log(click_folder / "dev.jsonl")
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1).eval()
    encoded = load_tokenizer(tmp_path / "model")(
        [row.query for row in rows], [row.document for row in rows], padding=True, return_tensors="pt"
    )

    def log_loss() -> float:
        with torch.inference_mode():
            return evaluate_ranking(rows, click_probability(model(**encoded).logits.numpy(), ["click"]))["log_loss"]

    assert log_loss() == pytest.approx(metrics["log_loss"], abs=1e-6), "PEFT computes what was trained"
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.zero_()
    assert abs(log_loss() - metrics["log_loss"]) > 2e-6, "and the prefix counts"
    with pytest.raises(CheckpointError, match=r"prefix .* cannot be merged"):
        load_checkpoint(tmp_path / "model")
    assert main(["evaluate", "--checkpoint", str(tmp_path / "model"), "--data", str(click_folder / "dev.jsonl")]) == 1
    assert "--method lora" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (settings("lora", freeze="encoder"), "--freeze encoder leaves nothing of the encoder to --method lora"),
        (settings("ia3", freeze="2"), "--freeze 2 leaves nothing"),
        (settings("prefix", freeze="1"), "--freeze with a number of layers"),
        (settings("prefix", gradient_checkpointing=True), "--gradient-checkpointing does not go with --method prefix"),
        (settings("prefix", layers=1), "--layers does not go with --method prefix"),
        (settings("prefix", max_length=48), "this base takes 16 to 44"),
    ],
)
def test_contradictions_are_refused(
    chosen: TrainSettings, fault: str, base: Path, click_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=fault):
        train(click_folder, str(base), tmp_path / "model", chosen)
