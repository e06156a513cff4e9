"""Our settings as the Trainer's arguments."""

import math
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from finetune.evaluation.metrics import LOWER_IS_BETTER
from finetune.training.loop.dev import FEWEST_PAIRS, SIGNIFICANT_PAIRS
from finetune.training.loop.processes import count_processes, say
from finetune.training.settings import CLICK, PAIRWISE, SettingsError, TrainSettings


def trainer_arguments(
    run: Path, items: int, known: Mapping[str, float], settings: TrainSettings, full_first: float = 0.0
) -> TrainingArguments:
    """Make the Trainer's arguments.

    Args:
        run: the run's folder.
        items: how many rows or groups an epoch has.
        known: the metrics that dev has.
        settings: how to train.
        full_first: the share of the steps before the switch of attention.

    Raises:
        SettingsError: dev lacks the metric, a tracker is not installed, or no evaluation is behind the switch.
    """
    steps = math.ceil(items / (settings.items * settings.accumulate * count_processes()))  # an epoch
    total = steps * settings.epochs  # the last evaluation is there
    if round(full_first * total) >= total:
        raise SettingsError(
            f"--full-first is {full_first}: all of the {total} steps would be with full attention, and no evaluation "
            "behind them; lower it, or give it more steps (--epochs)"
        )
    metric = settings.metric or default_metric(known, settings)
    if metric not in known:
        raise SettingsError(f"--metric is {metric!r}; dev has {', '.join(sorted(known))}")
    if "wandb" in settings.report_to and find_spec("wandb") is None:
        raise SettingsError("--report-to wandb: wandb is not installed; run `pip install wandb`, or leave it out")
    every = max(1, steps // settings.evaluations)
    by_step: dict[str, Any] = {"eval_steps": every, "save_steps": every} if settings.evaluations > 1 else {}
    when = "steps" if by_step else "epoch"
    arguments = TrainingArguments(
        output_dir=str(run),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.items,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warm_up,  # a share of all steps
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
    if arguments.n_gpu > 1:
        # One process with several GPUs would cut each batch across them, and its groups with it.
        say(f"{arguments.n_gpu} GPUs are here, and one is used; `accelerate launch -m finetune train ...` uses all")
        arguments._n_gpu = 1
    if arguments.bf16 and is_bf16_emulated():
        say(
            "warning: --precision bf16: PyTorch has no kernels for it on this CPU, and a step may take ten times as "
            "long as in fp32; leave --precision out"
        )
    return arguments


def is_bf16_emulated() -> bool:
    """Whether training is on an x86 CPU for which oneDNN has no bf16 kernels, as on those before AVX-512.

    A step of MiniLM took 10 s there, and 1 s in fp32.
    """
    on_x86 = platform.machine() in ("x86_64", "AMD64") and not torch.accelerator.is_available()
    return on_x86 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def default_metric(known: Mapping[str, float], settings: TrainSettings) -> str:
    """The metric on dev by which the best is kept, if none is chosen, of those that are known.

    That of pairs whose rates differ significantly only if there are enough to tell one model from another.
    """
    if settings.objective == CLICK:
        return "auc"
    if known.get("significant_pairs", 0) >= FEWEST_PAIRS:
        return SIGNIFICANT_PAIRS
    return "pairwise_accuracy" if settings.objective == PAIRWISE else "ndcg_at_10"
