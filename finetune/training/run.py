"""One run: from a base and a click log to a checkpoint.

Beside the checkpoint `NAME` lies the run's folder `NAME-run`: the Trainer's checkpoints while it is under way, then
what is worth keeping: TensorBoard's events, the settings, and the estimated position bias. A run that was stopped goes
on from there when the same command is given again.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerFast, TrainerCallback

from finetune.checkpoint.attention import user_tokens
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.save import check_output, save_checkpoint
from finetune.data.checks import check_log, check_splits
from finetune.data.clicklog import ClickRow, find_split, read_click_log
from finetune.evaluation.metrics import LOWER_IS_BETTER
from finetune.names import AGGREGATES
from finetune.objectives.distillation import (
    Distillation,
    click_distillation,
    listwise_distillation,
    pairwise_distillation,
)
from finetune.training.batches import Collator, Items
from finetune.training.build import build, build_objective
from finetune.training.loop.arguments import default_metric, trainer_arguments
from finetune.training.loop.callbacks import Patience, StopAtStep, SwitchAttention
from finetune.training.loop.dev import Dev, Metrics, plateau, shown
from finetune.training.loop.processes import is_first_process, say
from finetune.training.loop.trainer import ClickTrainer
from finetune.training.methods.augment import Augmentation, read_translated
from finetune.training.methods.few_weights import trained_share
from finetune.training.model import JointModel
from finetune.training.recipes.distil import Teachers
from finetune.training.run_folder import describe, open_run, place_of_run, read_settings, remove_checkpoints, run_to_end
from finetune.training.settings import CHOOSE, CLICK, LISTWISE, PAIRWISE, PREFIX, TrainSettings

METRICS = "metrics.json"
WARNING = "warning"  # beside the metrics there
POSITION_ODDS = "position_bias.json"
DISTILLATION = {CLICK: click_distillation, PAIRWISE: pairwise_distillation, LISTWISE: listwise_distillation}
UNMERGED = (
    "--method prefix: a prefix cannot be merged into the weights; it is saved as a PEFT adapter, which `evaluate` and "
    "`export` refuse. For a checkpoint that can be served, use --method lora"
)


def train(
    data: Path,
    base: str,
    output: Path,
    settings: TrainSettings,
    *,
    restart: bool = False,
    teachers: Teachers | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    stop: StopAtStep | None = None,
) -> Metrics:
    """Fine-tune `base` on `data`/train.jsonl, and save the weights that were best on `data`/dev.jsonl as `output`.

    Either split may be gzipped. With the same arguments it goes on where it was stopped; `restart` drops a stopped run.
    `teachers` are learned from beside the clicks; `callbacks` are the Trainer's. After a run that Ctrl-C came too late
    to stop, in its last evaluation, `stop.asked` is true.

    A model that is no better than chance, or far below its teachers, is saved, too, but the user is told.

    Returns:
        The dev metrics of what was saved; in the first process also the intervals by which a plateau is told.

    Raises:
        ClickLogError, MetricError: a split is missing or broken, or dev cannot be evaluated.
        CheckpointError: the base cannot be used, or `output` exists and is no checkpoint.
        SettingsError, PositionBiasError: the settings do not fit the data, the base, or the run that was stopped.
        TrainingError: the loss became NaN or infinite.
        KeyboardInterrupt: with how to go on.
    """
    settings.check()
    check_output(output)
    if settings.passages == CHOOSE:
        return _choose_passages(data, base, output, settings, restart=restart, teachers=teachers, callbacks=callbacks)
    stop = stop or StopAtStep()
    train_rows, dev_rows = (read_click_log(find_split(data, name)) for name in ("train", "dev"))
    for warning in [f"train: {line}" for line in check_log(train_rows)] + check_splits(train_rows, dev_rows):
        say(f"warning: {warning}")
    dev = Dev(dev_rows)  # refuses a dev split without clicks now, not after an epoch
    objective = build_objective(train_rows, settings)
    if settings.translated:
        train_rows += read_translated(Path(settings.translated), train_rows, dev_rows)
    run = place_of_run(output)
    model, tokenizer, max_length = build(base, train_rows, settings)
    trained, weights = trained_share(model)
    say(f"trained: {trained:,} of {weights:,} weights ({trained / weights:.2%})")
    if settings.method == PREFIX:
        say(UNMERGED)
    collator = Collator(train_rows, tokenizer, model.heads.settings, max_length, user_tokens(model.click.config))
    items = Items(train_rows, settings.by_group)
    called: list[TrainerCallback] = [stop, *callbacks]
    if settings.word_dropout or settings.synonyms:
        augmentation = Augmentation(tokenizer, settings)
        collator.augment = augmentation
        called.append(augmentation)
    if model.method:
        called += model.method.callbacks()
    if model.attends_fully:
        called.append(SwitchAttention(model))
    if settings.patience:
        called.append(Patience(model, settings.patience))
    arguments = trainer_arguments(run, len(items), dev.known, settings, model.full_first)
    described = _described(data, base, settings, teachers)
    with arguments.main_process_first(local=False):
        if is_first_process():
            open_run(run, described, restart=restart)
    distillation, taught = None, None
    if teachers:
        taught = _measure_teachers(teachers, dev_rows) if is_first_process() else None
        collator.teacher = torch.from_numpy(teachers.log_odds(train_rows))
        distillation = Distillation(DISTILLATION[settings.objective], teachers.weight)
    with quiet_transformers():
        trainer = ClickTrainer(
            model, arguments, items, collator, settings,
            objective, lambda current: dev.measure(current, tokenizer, max_length), called, distillation,
        )  # fmt: skip
    metrics = _metrics(trainer, run_to_end(trainer, stop, run))
    if is_first_process():
        metrics |= dev.intervals(model, tokenizer, max_length)
        _write_metrics(run, metrics, plateau(metrics, settings.objective, taught))
        _keep(model, tokenizer, run, output)
    trainer.accelerator.wait_for_everyone()
    return metrics


def _described(data: Path, base: str, settings: TrainSettings, teachers: Teachers | None) -> dict[str, Any]:
    """What must be the same for a stopped run to go on, with its teachers."""
    return describe(data, base, settings) | (teachers.describe() if teachers else {})


def _keep(model: JointModel, tokenizer: PreTrainedTokenizerFast, run: Path, output: Path) -> None:
    """Save what was trained, and remove the run's checkpoints."""
    if model.bias is not None:
        (run / POSITION_ODDS).write_text(json.dumps(model.bias.odds()) + "\n", encoding="utf-8")
        say(f"{run / POSITION_ODDS}: odds of a click by position")
    if model.method and model.prefix:
        model.method.save(model.click, tokenizer, output, model.heads)
        say(UNMERGED)
    else:
        if model.method:
            model.method.merge()
        save_checkpoint(model.click, tokenizer, output, model.heads)
    remove_checkpoints(run)


def _metrics(trainer: ClickTrainer, best: Path) -> Metrics:
    """Load the best weights into the model, and return their metrics on dev."""
    trainer.load_weights(best)
    evaluations = [entry for entry in trainer.state.log_history if "eval_auc" in entry]
    found = [entry for entry in evaluations if best.name == f"checkpoint-{entry['step']}"][-1]
    return {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}


def _measure_teachers(teachers: Teachers, rows: Sequence[ClickRow]) -> Metrics:
    """Measure the teachers on dev, and say how good they are; returns the metrics of them all together."""
    *single, together = teachers.evaluate(rows)
    for name, metrics in [*single, together] if len(single) > 1 else single:
        say(f"{name}: dev {shown(metrics)}")
    return together[1]


def _write_metrics(run: Path, metrics: Metrics, stuck: str | None) -> None:
    """Write the metrics of what is kept, and warn if the training is stuck."""
    if stuck:
        say(f"warning: {stuck}")
    content = {**metrics, **({WARNING: stuck} if stuck else {})}
    (run / METRICS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _choose_passages(data: Path, base: str, output: Path, settings: TrainSettings, **others: Any) -> Metrics:
    """Train once for each way to aggregate passages, and keep the one that is best on dev, with its run.

    A way that is finished is not trained again when a stopped choice goes on.
    """
    found: dict[str, Metrics] = {}
    stop = StopAtStep()
    folders = {way: output.with_name(f"{output.name}-{way}") for way in AGGREGATES}
    for way, folder in folders.items():
        own = replace(settings, passages=way)
        done = None if others["restart"] else _finished(folder, _described(data, base, own, others["teachers"]))
        if stop.asked:
            raise KeyboardInterrupt("give the same command again to go on")
        found[way] = done or train(data, base, folder, own, stop=stop, **others)
        metric = settings.metric or default_metric(found[way], settings)
        say(f"passages by {way}: dev {metric} {found[way][metric]:.4f}")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(found, key=lambda way: sign * found[way][metric])
    if is_first_process():
        for old, kept in ((output, folders[best]), (place_of_run(output), place_of_run(folders[best]))):
            shutil.rmtree(old, ignore_errors=True)
            kept.rename(old)
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(place_of_run(folder), ignore_errors=True)
    PartialState().wait_for_everyone()
    return found[best]


def _finished(output: Path, described: dict[str, Any]) -> Metrics | None:
    """The metrics of a finished run with these settings; None if there is none."""
    run = place_of_run(output)
    if not output.exists() or not (run / METRICS).exists() or read_settings(run) != described:
        return None
    content: dict[str, Any] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name != WARNING}
