"""transformers' Trainer with what is ours: the losses of a click log, its metrics on dev, averaged weights.

Batches, mixed precision, accumulation, checkpoints, resuming, several processes and trackers are the Trainer's.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from finetune.names import SIMILARITY, TOPIC
from finetune.objectives.clicks import Objective
from finetune.objectives.distillation import Distillation
from finetune.objectives.understanding import similarity_loss, topic_loss
from finetune.training.batches import Collator, Items, SimilarLengths
from finetune.training.loop.callbacks import AVERAGE, Progress, RunningAverage, switch_step
from finetune.training.loop.dev import Metrics
from finetune.training.loop.processes import is_first_process
from finetune.training.methods.adversarial import Adversary
from finetune.training.model import UNBIASED, Batch, JointModel
from finetune.training.parameters import parameter_groups
from finetune.training.settings import TrainSettings
from release.names import EMBEDDING, LOGITS, TOPIC_LOGITS


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
        found: list[Metrics | None] = [None]
        if is_first_process():  # the others take its figures, so that all decide alike
            with self.average.swapped_in() if self.average else nullcontext():
                found[0] = {f"eval_{name}": value for name, value in self.measure(self.model).items()}
            self.model.train()
        metrics: Metrics = broadcast_object_list(found)[0]
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        counts = self.state.global_step > switch_step(self.model, self.state)
        return counts and bool(super()._determine_best_metric(metrics, trial))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Before the Trainer's own state, which it writes last: a checkpoint that has that is whole.
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "write"):
                    callback.write(Path(str(output_dir or self.args.output_dir)))

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
