"""One run: from a base and a click log to a checkpoint.

Beside the checkpoint `NAME` lies the run's folder `NAME-run`: the Trainer's checkpoints while it is under way, then
what is worth keeping: TensorBoard's events, the settings, and the estimated position bias. A run that was stopped goes
on from there when the same command is given again.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from finetune.checkpoint.base_model import load_base, resolve_base
from finetune.checkpoint.heads import AGGREGATES, Heads, HeadSettings, Passages
from finetune.checkpoint.load import label_names
from finetune.checkpoint.quiet import quiet_transformers
from finetune.checkpoint.save import check_output, save_checkpoint
from finetune.checkpoint.tokenizer import SHORTEST
from finetune.data.checks import check_log, check_splits
from finetune.data.clicklog import ClickRow, find_split, read_click_log
from finetune.evaluation.metrics import click_probability, evaluate_ranking
from finetune.evaluation.scoring import score_documents
from finetune.objectives.clicks import ClickLoss, ListwiseLoss, Objective, pairwise_loss
from finetune.objectives.distillation import (
    Distillation,
    click_distillation,
    listwise_distillation,
    pairwise_distillation,
)
from finetune.objectives.position_bias import ESTIMATED, NONE, PositionBias, PositionBiasError, read_odds
from finetune.objectives.understanding import SIMILARITY, TOPIC, TaskWeights
from finetune.training.augment import Augmentation, read_translated
from finetune.training.batches import Collator, Items
from finetune.training.distil import Teachers
from finetune.training.methods import Method, trained_share
from finetune.training.model import JointModel
from finetune.training.parameters import freeze
from finetune.training.settings import (
    CHOOSE,
    CLICK,
    FULL,
    LISTWISE,
    LOWER_IS_BETTER,
    PAIRWISE,
    PREFIX,
    SettingsError,
    TrainSettings,
)
from finetune.training.trainer import ClickTrainer, Metrics, StopAtStep, last_checkpoint

RUN_SETTINGS = "settings.json"
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
) -> Metrics:
    """Fine-tune `base` on `data`/train.jsonl, and save the weights that were best on `data`/dev.jsonl as `output`.

    Either split may be gzipped. With the same arguments it goes on where it was stopped; `restart` drops a stopped run.
    `teachers` are learned from beside the clicks; `callbacks` are the Trainer's.

    Returns:
        The dev metrics of what was saved.

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
    train_rows, dev_rows = (read_click_log(find_split(data, name)) for name in ("train", "dev"))
    for warning in [f"train: {line}" for line in check_log(train_rows)] + check_splits(train_rows, dev_rows):
        say(f"warning: {warning}")
    evaluate_ranking(dev_rows, [0.5] * len(dev_rows))  # refuses a dev split without clicks now, not after an epoch
    if settings.translated:
        train_rows += read_translated(Path(settings.translated), train_rows, dev_rows)
    run = output.with_name(f"{output.name}-run")
    model, tokenizer, max_length = build(base, train_rows, settings)
    trained, weights = trained_share(model)
    say(f"trained: {trained:,} of {weights:,} weights ({trained / weights:.2%})")
    if settings.method == PREFIX:
        say(UNMERGED)
    collator = Collator(train_rows, tokenizer, model.heads.settings, max_length)
    labels = label_names(model.click)

    def measure(current: JointModel) -> Metrics:
        logits = score_documents(current.click, current.heads, tokenizer, dev_rows, max_length)
        return evaluate_ranking(dev_rows, click_probability(logits, labels if logits.shape[1] > 1 else labels[-1:]))

    stop = StopAtStep()
    items = Items(train_rows, settings.by_group)
    called: list[TrainerCallback] = [stop, *callbacks]
    if settings.word_dropout or settings.synonyms:
        augmentation = Augmentation(tokenizer, settings)
        collator.augment = augmentation
        called.append(augmentation)
    if model.method:
        called += model.method.callbacks()
    if settings.patience:
        called.append(EarlyStoppingCallback(settings.patience))
    arguments = _arguments(run, len(items), dev_rows, settings)
    described = describe(data, base, settings) | (teachers.describe() if teachers else {})
    with arguments.main_process_first(local=False):
        if is_first_process():
            open_run(run, described, restart=restart)
    distillation = None
    if teachers:
        collator.teacher = torch.from_numpy(teachers.log_odds(train_rows))
        distillation = Distillation(DISTILLATION[settings.objective], teachers.weight)
    with quiet_transformers():
        trainer = ClickTrainer(
            model, arguments, items, collator, settings,
            _objective(train_rows, settings), measure, called, distillation,
        )  # fmt: skip
    metrics = _metrics(trainer, run_to_end(trainer, stop, run))
    if is_first_process():
        _keep(model, tokenizer, run, output)
    trainer.accelerator.wait_for_everyone()
    return metrics


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
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)


def build(
    base: str, rows: Sequence[ClickRow], settings: TrainSettings
) -> tuple[JointModel, PreTrainedTokenizerFast, int]:
    """Make the model to train on `rows`, its tokenizer, and its longest pair in tokens.

    Raises:
        CheckpointError, SettingsError, PositionBiasError: as `train`.
    """
    set_seed(settings.seed)
    click, tokenizer, longest = load_base(resolve_base(base), settings.labels, settings.seed)
    if settings.method == PREFIX:
        longest -= settings.rank  # a prefix takes the first positions
    max_length = settings.max_length or longest
    if not SHORTEST <= max_length <= longest:
        raise SettingsError(f"--max-length is {max_length}; this base takes {SHORTEST} to {longest} tokens")
    tokenizer.model_max_length = max_length  # saved with the tokenizer, so the model is served as it was trained
    set_dropout(click, settings.dropout)
    torch.manual_seed(settings.seed)
    method = Method(click, settings) if settings.method != FULL else None
    heads = Heads(_head_settings(rows, settings), int(click.config.hidden_size))
    weights = TaskWeights(("click", *settings.understanding), settings.task_weights)
    model = JointModel(click, heads, _position_bias(rows, settings), weights, method)
    freeze(model, settings.freeze)
    return model, tokenizer, max_length


def set_dropout(model: torch.nn.Module, share: float) -> None:
    """Set every dropout of a BERT, attention's included."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def _head_settings(rows: Sequence[ClickRow], settings: TrainSettings) -> HeadSettings:
    topics: tuple[str, ...] = ()
    if TOPIC in settings.understanding:
        topics = tuple(sorted({topic for row in rows for topic in row.topics}))
        if len(topics) < 2:
            raise SettingsError(
                f"--understanding topic needs rows with a 'topic', of two or more; the training split has {len(topics)}"
            )
    if SIMILARITY in settings.understanding and not any(row.query and row.clicks for row in rows):
        raise SettingsError("--understanding similarity needs user texts with clicks; the training split has none")
    passages = None
    if settings.passages in AGGREGATES:
        passages = Passages(settings.passages, settings.passage_overlap, settings.passage_best)
    return HeadSettings(
        topics=topics,
        several_topics=any(len(row.topics) > 1 for row in rows) and bool(topics),
        embedding_size=settings.embedding_size if SIMILARITY in settings.understanding else 0,
        passages=passages,
    )


def _position_bias(rows: Sequence[ClickRow], settings: TrainSettings) -> PositionBias | None:
    if settings.position_bias == NONE:
        return None
    deepest = max((row.position or 0 for row in rows), default=0)
    if deepest == 0:
        raise PositionBiasError(
            "--position-bias needs rows with a 'position'; the training split has none: leave it out, or import them"
        )
    if settings.position_bias == ESTIMATED:
        return PositionBias(deepest)
    return PositionBias(deepest, read_odds(Path(settings.position_bias)))


def _objective(rows: Sequence[ClickRow], settings: TrainSettings) -> Objective:
    if settings.objective == CLICK:
        return ClickLoss(float(np.mean([row.impressions for row in rows])))
    if settings.objective == PAIRWISE:
        return pairwise_loss
    clicks: dict[str, float] = {}
    for row in rows:
        clicks[row.group] = clicks.get(row.group, 0.0) + row.clicks
    return ListwiseLoss(float(np.mean([count for count in clicks.values() if count])))


def _arguments(run: Path, items: int, dev: Sequence[ClickRow], settings: TrainSettings) -> TrainingArguments:
    steps = math.ceil(math.ceil(items / settings.items) / settings.accumulate)  # an epoch
    every = max(1, steps // settings.evaluations)
    metric = settings.metric or default_metric(dev, settings)
    known = evaluate_ranking(dev, [0.5] * len(dev))
    if metric not in known:
        raise SettingsError(f"--metric is {metric!r}; dev has {', '.join(sorted(known))}")
    if "wandb" in settings.report_to and find_spec("wandb") is None:
        raise SettingsError("--report-to wandb: wandb is not installed; run `pip install wandb`, or leave it out")
    by_step: dict[str, Any] = {"eval_steps": every, "save_steps": every} if settings.evaluations > 1 else {}
    when = "steps" if by_step else "epoch"
    return TrainingArguments(
        output_dir=str(run),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.items,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(settings.warm_up * steps * settings.epochs)),
        weight_decay=settings.weight_decay,
        optim=settings.optimizer,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        eval_strategy=when,
        save_strategy=when,
        **by_step,
        save_total_limit=2,  # the best and the last
        metric_for_best_model=metric,
        greater_is_better=metric not in LOWER_IS_BETTER,
        logging_steps=max(1, steps // 20),
        report_to=["tensorboard", *settings.report_to],
        run_name=run.name,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),  # bf16 on a CPU must be asked for so
        ddp_find_unused_parameters=False,  # all are used, some (the weights of tasks) only behind the forward pass
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        data_seed=settings.seed,
        disable_tqdm=True,
    )


def default_metric(dev: Sequence[ClickRow], settings: TrainSettings) -> str:
    """The metric on dev by which the best is kept, if none is chosen."""
    if settings.objective == CLICK:
        return "auc"
    known = evaluate_ranking(dev, [0.5] * len(dev))
    if "significant_pair_accuracy" in known:
        return "significant_pair_accuracy"
    return "pairwise_accuracy" if settings.objective == PAIRWISE else "ndcg_at_10"


def run_to_end(trainer: Trainer, stop: StopAtStep, run: Path) -> Path:
    """Train to the end, from the run's last checkpoint if it was stopped, and return the best checkpoint.

    A run that ends without any checkpoint leaves no folder.

    Raises:
        KeyboardInterrupt: with how to go on.
    """
    checkpoint = last_checkpoint(run)
    if checkpoint:
        say(f"{checkpoint}: going on from there")
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        stop.asked = True
    finally:
        if "wandb" in (trainer.args.report_to or ()) and (wandb := sys.modules.get("wandb")):
            wandb.finish()  # else the next run of this process would go into the same one
        kept = last_checkpoint(run)
        if kept is None and is_first_process():
            shutil.rmtree(run, ignore_errors=True)
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        how = f"{kept} is kept: give the same command again to go on" if kept else "no checkpoint was written yet"
        raise KeyboardInterrupt(how)
    return run / f"checkpoint-{trainer.state.best_global_step}"


def _metrics(trainer: ClickTrainer, best: Path) -> Metrics:
    """Load the best weights into the model, and return their metrics on dev."""
    trainer.load_weights(best)
    evaluations = [entry for entry in trainer.state.log_history if "eval_auc" in entry]
    found = [entry for entry in evaluations if best.name == f"checkpoint-{entry['step']}"][-1]
    return {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}


def describe(data: Path, base: str, settings: TrainSettings) -> dict[str, Any]:
    """What must be the same for a stopped run to go on."""
    paths = {name: find_split(data, name) for name in ("train", "dev")}
    paths |= {name: Path(path) for name in ("synonyms", "translated") if (path := getattr(settings, name))}
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    described: dict[str, Any] = json.loads(json.dumps({"base": base, "data": files, **chosen}))
    return described


def open_run(run: Path, described: dict[str, Any], *, restart: bool) -> None:
    """Make the run's folder, or find that a stopped run there can go on.

    Raises:
        SettingsError: a run with other settings or data was stopped there.
    """
    path = run / RUN_SETTINGS
    if restart:
        shutil.rmtree(run, ignore_errors=True)
    if last_checkpoint(run) is not None:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        changed = [name for name in described if described[name] != before.get(name)]
        if changed:
            raise SettingsError(
                f"{run}: a run with another {', '.join(changed)} was stopped here; give its command again to go on, "
                "or --restart to drop it"
            )
        return
    shutil.rmtree(run, ignore_errors=True)  # a finished run, or one that was stopped before its first checkpoint
    run.mkdir(parents=True)
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _choose_passages(data: Path, base: str, output: Path, settings: TrainSettings, **others: Any) -> Metrics:
    """Train once for each way to aggregate passages, and keep the one that is best on dev."""
    dev = read_click_log(find_split(data, "dev"))
    metric = settings.metric or default_metric(dev, settings)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    found: dict[str, Metrics] = {}
    folders = {way: output.with_name(f"{output.name}-{way}") for way in AGGREGATES}
    for way, folder in folders.items():
        found[way] = train(data, base, folder, replace(settings, passages=way), **others)
        say(f"passages by {way}: dev {metric} {found[way][metric]:.4f}")
    best = max(found, key=lambda way: sign * found[way][metric])
    check_output(output)
    shutil.rmtree(output, ignore_errors=True)
    folders.pop(best).rename(output)
    for folder in folders.values():
        shutil.rmtree(folder)
    return found[best]


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first: the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"  # set by every launcher


def say(text: str) -> None:
    """Tell the user something, on stderr."""
    if is_first_process():
        tqdm.write(text, file=sys.stderr)  # does not break a progress bar
