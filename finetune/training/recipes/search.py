"""Looks for better settings with Optuna: each trial is a whole run, hopeless ones are cut short, the best is kept.

Beside the checkpoint `NAME` lies `NAME-search`: Optuna's database, from which the same command goes on; `trials.csv`,
the table of all trials; and TensorBoard's events of each. `NAME` is always the best trial so far.
"""

import csv
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.checkpoint.save import check_output
from finetune.data.clicklog import find_split, read_click_log
from finetune.evaluation.metrics import LOWER_IS_BETTER, evaluate_ranking
from finetune.training.loop.arguments import default_metric
from finetune.training.loop.callbacks import StopAtStep, switch_step
from finetune.training.loop.dev import Metrics
from finetune.training.loop.processes import say
from finetune.training.run import train
from finetune.training.run_folder import describe, place_of_run, remove_checkpoints
from finetune.training.settings import CHOOSE, LEARNED, SettingsError, TrainSettings

DATABASE, TABLE = "study.db", "trials.csv"
DESCRIBED = "described"
STATES = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped", TrialState.WAITING: "waiting",
}  # fmt: skip
# Trials that run to their end before any is cut short: the median of fewer says little.
FULL_TRIALS = 4
Row = dict[str, Any]


class Search:
    """A search that goes on where it was stopped. Settings that are not looked for stay as they are given."""

    def __init__(
        self,
        data: Path,
        base: str,
        output: Path,
        settings: TrainSettings,
        *,
        restart: bool = False,
        pruner: BasePruner | None = None,
    ) -> None:
        """Open the search, or begin one, whose first trial has the given settings themselves.

        Raises:
            SettingsError: the settings are out of range, or not those of the search that was stopped.
            ClickLogError, MetricError, CheckpointError: as `train`.
        """
        settings.check()
        check_output(output)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingsError("search runs in one process; start it with `python -m finetune search`")
        if settings.passages == CHOOSE:
            raise SettingsError(f"--passages {CHOOSE} trains three times; name a way for a search")
        self.data, self.base, self.output, self.settings = data, base, output, settings
        dev = read_click_log(find_split(data, "dev"))
        self.metric = settings.metric or default_metric(evaluate_ranking(dev, [0.5] * len(dev)), settings)
        self.folder = output.with_name(f"{output.name}-search")
        described = describe(data, base, settings)
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / DATABASE).exists():
            raise SettingsError(f"{self.folder}: is not empty and no search; choose another --output")
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder.resolve() / DATABASE}",
            study_name=output.name,
            load_if_exists=True,
            direction="minimize" if self.metric in LOWER_IS_BETTER else "maximize",
            pruner=pruner or MedianPruner(n_startup_trials=FULL_TRIALS),
        )
        before = self.study.user_attrs.get(DESCRIBED, described)
        changed = [name for name in described if described[name] != before.get(name)]
        if changed:
            raise SettingsError(
                f"{self.folder}: a search with another {', '.join(changed)} was begun here; give its command again to "
                "go on, or --restart to drop it"
            )
        self.study.set_user_attr(DESCRIBED, described)
        # The sampler begins at its seed again: with the same one, a resumed search would draw what it has drawn.
        self.study.sampler = TPESampler(seed=settings.seed + len(self.study.trials))
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):  # a kill left them so
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)
        if not self.study.trials:
            self.study.enqueue_trial(self._given())
        self._tidy()

    def run(self, minutes: float, trials: int | None = None) -> None:
        """Run trials; none begins after so many minutes, or beyond so many trials.

        Raises:
            ValueError, RuntimeError: a trial failed before any other was finished, as `train` raises them.
            KeyboardInterrupt: with how to go on.
        """
        end = time.monotonic() + 60 * minutes
        done = 0
        while time.monotonic() < end and (trials is None or done < trials):
            self._try(self.study.ask())
            done += 1

    def table(self) -> list[Row]:
        """All trials, in their order: what became of each, its metric on dev, its settings."""
        rows = []
        for trial in self.study.trials:
            if trial.state == TrialState.WAITING:
                continue
            seconds = trial.duration.total_seconds() if trial.duration else None
            rows.append({
                "trial": trial.number, "state": STATES[trial.state], self.metric: trial.value, **trial.params,
                "seconds": seconds and round(seconds), "error": trial.user_attrs.get("error", ""),
            })  # fmt: skip
        return rows

    def best(self) -> tuple[int, Metrics]:
        """The best trial's number, and its metrics on dev.

        Raises:
            SettingsError: no trial is finished.
        """
        if not self._finished():
            raise SettingsError(f"{self.folder}: no trial was finished; give the command again, with more --minutes")
        best = self.study.best_trial
        return best.number, best.user_attrs["metrics"]

    def _try(self, trial: Trial) -> None:
        """Run a trial, and record what became of it."""
        settings = replace(self.settings, **self._draw(trial), metric=self.metric)
        say(f"trial {trial.number}: {', '.join(f'{name} {value:.3g}' for name, value in trial.params.items())}")
        pruning = Pruning(trial, self.metric, settings.evaluations)
        stop = StopAtStep()
        try:
            metrics = train(
                self.data, self.base, self._place(trial.number), settings, restart=True, callbacks=[pruning], stop=stop
            )
        except optuna.TrialPruned:
            self._tell(trial, TrialState.PRUNED)
        except (ValueError, RuntimeError) as error:  # RuntimeError: a batch that is too large for the GPU
            self._tell(trial, TrialState.FAIL, " ".join(str(error).split()))
            if not self._finished():
                raise  # what all trials have in common may be why
        except KeyboardInterrupt:
            self._tell(trial, TrialState.FAIL, "Ctrl-C")
            self.study.enqueue_trial(trial.params)  # begins anew when the search goes on
            raise KeyboardInterrupt(self._how_to_go_on()) from None
        else:
            trial.set_user_attr("metrics", metrics)
            self._tell(trial, TrialState.COMPLETE, value=metrics[self.metric])
            if stop.asked:
                raise KeyboardInterrupt(self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        kept = f"; {self.output} is the best of {len(self._finished())} finished" if self._finished() else ""
        return f"{self.folder / TABLE} has all trials{kept}; give the same command again to go on"

    def _tell(self, trial: Trial, state: TrialState, error: str = "", value: float | None = None) -> None:
        if error:
            trial.set_user_attr("error", error)
        self.study.tell(trial, value, state)
        shown = f", {self.metric} {value:.4f}" if value is not None else f", {error}" if error else ""
        say(f"trial {trial.number}: {STATES[state]}{shown}")
        self._tidy()

    def _finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(states=(TrialState.COMPLETE,))

    def _draw(self, trial: Trial) -> dict[str, Any]:
        rate = self.settings.learning_rate
        drawn: dict[str, Any] = {
            "learning_rate": trial.suggest_float("learning_rate", rate / 5, rate * 5, log=True),
            "batch_size": trial.suggest_categorical("batch_size", self._batch_sizes()),
            "epochs": trial.suggest_int("epochs", 1, max(4, self.settings.epochs)),
            # What is given lies within, too.
            "weight_decay": trial.suggest_float("weight_decay", 0.0, max(0.1, self.settings.weight_decay)),
            "dropout": trial.suggest_float("dropout", 0.0, max(0.2, self.settings.dropout)),
        }
        if weights := self._task_weights():
            drawn["understanding_weight"] = tuple(
                # A weight of zero stays.
                str(trial.suggest_float(name, min(0.02, given), max(2.0, given), log=True) if given else given)
                for name, given in weights.items()
            )
        return drawn

    def _given(self) -> dict[str, Any]:
        names = ("learning_rate", "epochs", "weight_decay", "dropout")
        given: dict[str, Any] = {name: getattr(self.settings, name) for name in names}
        given["batch_size"] = self.settings.items
        return given | {name: weight for name, weight in self._task_weights().items() if weight}

    def _batch_sizes(self) -> list[int]:
        return [max(1, self.settings.items // 2), self.settings.items, 2 * self.settings.items, 4 * self.settings.items]

    def _task_weights(self) -> dict[str, float]:
        """The weights that are given, one for all tasks or one for each, by the names of a trial's parameters."""
        given = self.settings.understanding_weight
        if not self.settings.understanding or given == (LEARNED,):
            return {}
        tasks = [f"understanding_weight_{task}" for task in self.settings.understanding]
        return dict(zip(tasks if len(given) > 1 else ["understanding_weight"], map(float, given), strict=True))

    def _tidy(self) -> None:
        """Keep the best trial's checkpoint as `output`, no other, and write the table."""
        best = self._place(self.study.best_trial.number) if self._finished() else None
        if best and best.is_dir():
            check_output(self.output)
            shutil.rmtree(self.output, ignore_errors=True)
            best.rename(self.output)
        for trial in self.study.trials:
            place = self._place(trial.number)
            shutil.rmtree(place, ignore_errors=True)
            remove_checkpoints(place_of_run(place))
        rows = self.table()
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            draft = self.folder / f"{TABLE}.draft"
            with draft.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names, restval="")
                writer.writeheader()
                writer.writerows(rows)
            draft.replace(self.folder / TABLE)

    def _place(self, number: int) -> Path:
        return self.folder / f"trial-{number}"


class Pruning(TrainerCallback):
    """Reports each evaluation of a trial, and ends a trial that is worse than most were at the same epoch.

    Up to the switch of attention a trial may be at chance by design, and a shorter one switches earlier: neither is
    done there.
    """

    def __init__(self, trial: Trial, metric: str, evaluations: int) -> None:
        self.trial = trial
        self.metric = metric
        self.evaluations = evaluations  # an epoch

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        metrics: Any = None,
        **unused: Any,
    ) -> None:
        """Raises optuna.TrialPruned if the trial is hopeless."""
        if state.global_step <= switch_step(model, state):
            return
        self.trial.report(metrics[f"eval_{self.metric}"], step=round((state.epoch or 0) * self.evaluations))
        if self.trial.should_prune():
            raise optuna.TrialPruned
