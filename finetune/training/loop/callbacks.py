"""What the Trainer calls at each step and evaluation: averages, attention, early stopping, progress, Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    IntervalStrategy,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.training.loop.dev import shown
from finetune.training.loop.processes import say
from finetune.training.model import JointModel

AVERAGE = "average.safetensors"


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

    def write(self, folder: Path) -> None:
        """Write the average into a checkpoint that is being written."""
        save_file(self.average.module.state_dict(), folder / AVERAGE)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the model the averaged weights for a while."""
        own = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)


def switch_step(model: JointModel, state: TrainerState) -> int:
    """How many steps a run begins with full attention though it will be saved with another; 0 for most runs.

    Evaluations up to there measure what has learned nothing of what is saved, so none of them counts.
    """
    return round(model.full_first * state.max_steps)


class SwitchAttention(TrainerCallback):
    """Lets a training for `user_once` begin with full attention: under its mask alone, one may never leave a plateau.

    It goes by the step alone, so that a resumed run switches where it would have switched. Evaluations measure what
    will be saved, with the mask, from the first one on.
    """

    def __init__(self, model: JointModel) -> None:
        self.model = model

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Choose the step's attention."""
        self.model.attends_fully = state.global_step < switch_step(self.model, state)


class Patience(TrainerCallback):
    """Stops a run after so many evaluations without a better one; those before the switch of attention do not count.

    It counts from the run's own history, so that a resumed run stops where it would have stopped. (The Trainer's
    EarlyStoppingCallback begins at 0 again.)
    """

    def __init__(self, model: JointModel, evaluations: int) -> None:
        self.model = model
        self.evaluations = evaluations

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        """Stop if the last evaluations were no better than one before them."""
        if self.is_over(args, state):
            control.should_training_stop = True

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the last evaluations were no better than one before them."""
        name = f"eval_{args.metric_for_best_model}"
        switch = switch_step(self.model, state)
        values = [entry[name] for entry in state.log_history if name in entry and entry["step"] > switch]
        if not args.greater_is_better:
            values = [-value for value in values]
        last, before = values[-self.evaluations :], values[: -self.evaluations]
        return bool(before) and max(last) <= max(before)


class Progress(ProgressCallback):
    """The Trainer's bar, with the loss behind it and a line for each evaluation."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **unused: Any) -> None:
        """Show the loss, or the metrics on dev."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
        if "eval_auc" in logs:
            say(f"epoch {state.epoch:.3g}: dev {shown({name.removeprefix('eval_'): logs[name] for name in logs})}")


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
        """Stop if it was asked for: all processes at the same step, or one would wait for the others for ever."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            asked = torch.tensor(int(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_training_stop = True
            # The end of an epoch saves by itself, behind its evaluation: a run that goes on from here would have none.
            if state.epoch is None or state.epoch % 1 or args.eval_strategy != IntervalStrategy.EPOCH:
                control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        """Leave out the evaluation of an epoch that did not end: a run that was never stopped has none there."""
        if self.asked and state.epoch is not None and state.epoch % 1:
            control.should_evaluate = control.should_save = False
