"""transformers' Trainer with what is ours: the losses of a click log, its metrics on dev, averaged weights, Ctrl-C.

Batches, mixed precision, accumulation, checkpoints, resuming, several processes and trackers are the Trainer's.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.objectives.clicks import Objective
from finetune.objectives.distillation import Distillation
from finetune.objectives.understanding import SIMILARITY, TOPIC, similarity_loss, topic_loss
from finetune.training.adversarial import Adversary
from finetune.training.batches import Collator, Items, SimilarLengths
from finetune.training.model import UNBIASED, Batch, JointModel
from finetune.training.parameters import parameter_groups
from finetune.training.settings import TrainSettings
from release.names import EMBEDDING, LOGITS, TOPIC_LOGITS

AVERAGE = "average.safetensors"
# What is shown of the metrics on dev, in this order; the rest is in TensorBoard.
SHOWN = ("auc", "log_loss", "ndcg_at_10", "pairwise_accuracy", "significant_pair_accuracy")
Metrics = dict[str, float]


class TrainingError(ValueError):
    """Raised when training cannot go on; the message says at which step, and what to change."""


class ClickTrainer(Trainer):
    """Trains a `JointModel` on a click log."""

    model: JointModel
    objective: Objective

    def __init__(
        self,
        model: JointModel,
        arguments: TrainingArguments,
        items: Items,
        collator: Collator,
        settings: TrainSettings,
        objective: Objective,
        measure: Callable[[JointModel], Metrics],
        callbacks: list[TrainerCallback],
        distillation: Distillation | None = None,
    ) -> None:
        self.settings = settings
        self.objective = objective
        self.measure = measure
        self.distillation = distillation
        self.items = items
        self.adversary: Adversary | None = None
        if settings.adversarial:
            self.adversary = Adversary(model.click.get_input_embeddings(), settings.adversarial)
        self.average = RunningAverage(model, settings.average) if settings.average else None
        super().__init__(
            model,
            arguments,
            data_collator=collator,
            train_dataset=items,
            eval_dataset=items,  # only so that the Trainer evaluates; `evaluate` has its own
            callbacks=[*callbacks, *([self.average] if self.average else [])],
        )
        self.remove_callback(PrinterCallback)  # prints every log as a dictionary
        self.add_callback(Progress())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SimilarLengths(self.items.lengths, self.args.train_batch_size, self.settings.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the chosen optimizer on our groups of parameters."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(parameter_groups(self.model, self.settings), **options)
        return self.optimizer

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Computes a batch's loss and gradients; with an adversary twice."""

        def learn() -> Tensor:
            # The Trainer removes nothing from the batch, but a loss may.
            return Trainer.training_step(self, model, dict(inputs), num_items_in_batch)

        return self.adversary.step(learn) if self.adversary else learn()

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses of all tasks."""
        outputs = model(**inputs)
        losses = task_losses(self.objective, outputs, inputs)
        if self.distillation:
            losses["click"] = self.distillation(losses["click"], outputs[UNBIASED], inputs["teacher"], inputs["groups"])
        loss = self.model.weights(losses)
        penalty = self.model.method.penalty() if self.model.method else None
        if penalty is not None:
            loss = loss + penalty
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {loss.item():g}; lower --learning-rate"
            )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *unused: Any, **options: Any) -> Metrics:
        """Measures on dev, with the averaged weights if there are any."""
        with self.average.swapped_in() if self.average else _nothing():
            metrics = {f"eval_{name}": value for name, value in self.measure(self.model).items()}
        self.model.train()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_weights(self, checkpoint: Path) -> None:
        """Loads a checkpoint's weights: the averaged ones if it has any."""
        path = checkpoint / AVERAGE
        self.model.load_state_dict(load_file(path if path.exists() else checkpoint / "model.safetensors"))


def task_losses(objective: Objective, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Every task's loss by name."""
    logits, clicks, impressions = outputs[LOGITS], batch["clicks"], batch["impressions"]
    losses = {"click": objective(logits, clicks, impressions, batch["groups"])}
    if TOPIC_LOGITS in outputs:
        losses[TOPIC] = topic_loss(outputs[TOPIC_LOGITS], batch["topics"])
    if EMBEDDING in outputs:
        losses[SIMILARITY] = similarity_loss(outputs[EMBEDDING], batch["queries"], batch["documents"], clicks)
    return losses


class RunningAverage(TrainerCallback):
    """An exponential average of the weights, updated after each step: less noise than the weights of the last step.

    It lies in every checkpoint, so that a resumed run goes on with it.
    """

    def __init__(self, model: JointModel, decay: float) -> None:
        self.model = model
        average: Any = get_ema_multi_avg_fn  # has no types
        self.average = AveragedModel(model, multi_avg_fn=average(decay), use_buffers=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """A resumed run goes on with the average of its checkpoint."""
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / AVERAGE
        if state.global_step and path.exists():
            self.average.module.load_state_dict(load_file(path))
            self.average.n_averaged.fill_(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        """Take the step's weights in. Those of the warm-up count for nothing: the average starts behind it."""
        if state.global_step <= args.get_warmup_steps(state.max_steps):
            self.average.module.load_state_dict(self.model.state_dict())
            self.average.n_averaged.fill_(1)
        else:
            self.average.update_parameters(self.model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        """Write the average into the checkpoint that was just written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            draft = folder / f"{AVERAGE}.draft"
            save_file(self.average.module.state_dict(), draft)
            draft.replace(folder / AVERAGE)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averaged weights for a while."""
        own = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)


class Progress(ProgressCallback):
    """The Trainer's bar, with the loss behind it and a line for each evaluation."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **unused: Any) -> None:
        """Show the loss, or the metrics on dev."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
        if "eval_auc" in logs:
            shown = ", ".join(f"{name} {logs[f'eval_{name}']:.4f}" for name in SHOWN if f"eval_{name}" in logs)
            tqdm.write(f"epoch {state.epoch:.3g}: dev {shown}", file=sys.stderr)


class StopAtStep(TrainerCallback):
    """Ctrl-C ends a run after the step that it is at, with a checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C while the block runs."""
        before = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        try:
            signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread, which alone gets signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        """Stop if it was asked for."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Leave out the evaluation of an epoch that did not end: a run that was never stopped has none there."""
        if self.asked and state.epoch % 1:
            control.should_evaluate = control.should_save = False


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; None if there is none. A kill may leave the newest half written."""
    found = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]), reverse=True)
    return next((folder for folder in found if _is_whole(folder)), None)


def _is_whole(folder: Path) -> bool:
    try:  # the Trainer writes this file last
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
