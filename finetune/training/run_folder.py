"""The folder of a run, beside its checkpoint: the Trainer's checkpoints while it is under way, and how to go on."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from finetune.data.clicklog import find_split
from finetune.names import ESTIMATED, NONE
from finetune.training.loop.callbacks import Patience, StopAtStep
from finetune.training.loop.processes import is_first_process, say
from finetune.training.settings import SettingsError, TrainSettings
from release.files import sha256

RUN_SETTINGS = "settings.json"
TRAINER_STATE = "trainer_state.json"
TORCH_WRITES = ("inline_container", "PytorchStreamWriter")  # PyTorch has no class for a file that it could not write


def place_of_run(output: Path) -> Path:
    """The run's folder of a checkpoint."""
    return output.with_name(f"{output.name}-run")


def describe(data: Path, base: str, settings: TrainSettings) -> dict[str, Any]:
    """What must be the same for a stopped run to go on."""
    paths = {name: find_split(data, name) for name in ("train", "dev")}
    paths |= {name: Path(path) for name in ("synonyms", "translated") if (path := getattr(settings, name))}
    if settings.position_bias not in (NONE, ESTIMATED):
        paths["position_bias"] = Path(settings.position_bias)
    files = {name: sha256(path) for name, path in paths.items()}
    # As JSON has it: lists for tuples.
    described: dict[str, Any] = json.loads(json.dumps({"base": base, "data": files, **asdict(settings)}))
    return described


def open_run(run: Path, described: dict[str, Any], *, restart: bool) -> None:
    """Make the run's folder, or find that a stopped run there can go on.

    Raises:
        SettingsError: a run with other settings or data was stopped there, or the folder is no run's.
    """
    path = run / RUN_SETTINGS
    if run.exists() and not path.exists() and (not run.is_dir() or any(run.iterdir())):
        raise SettingsError(f"{run}: is not empty and no training run, so it is not used; choose another --output")
    if restart:
        shutil.rmtree(run, ignore_errors=True)
    if last_checkpoint(run) is not None:
        before = read_settings(run)
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


def run_to_end(trainer: Trainer, stop: StopAtStep, run: Path) -> Path:
    """Train to the end, from the run's last checkpoint if it was stopped, and return the best checkpoint.

    A run that ends without any checkpoint leaves no folder.

    Raises:
        KeyboardInterrupt: with how to go on.
        OSError, SafetensorError: the disk is full.
    """
    checkpoint = last_checkpoint(run)
    if checkpoint:
        say(f"{checkpoint}: going on from there")
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if any(
            each.is_over(trainer.args, state)
            for each in trainer.callback_handler.callbacks
            if isinstance(each, Patience)
        ):
            trainer.state = state  # it had ended, and what comes after it was stopped
            return best_checkpoint(run, state)
    was_cut = False
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        stop.asked = was_cut = True
    except RuntimeError as error:
        if any(word in str(error) for word in TORCH_WRITES):
            raise OSError(f"{run}: a checkpoint cannot be written ({error}); is the disk full?") from error
        raise
    finally:
        if "wandb" in (trainer.args.report_to or ()) and (wandb := sys.modules.get("wandb")):
            wandb.finish()  # else the next run of this process would go into the same one
        kept = last_checkpoint(run)
        if kept is None and is_first_process():
            shutil.rmtree(run, ignore_errors=True)
    # After the last step the evaluation may be cut short, too: the best of those before it is not the best.
    if was_cut or (stop.asked and trainer.state.global_step < trainer.state.max_steps):
        how = f"{kept} is kept: give the same command again to go on" if kept else "no checkpoint was written yet"
        raise KeyboardInterrupt(how)
    return best_checkpoint(run, trainer.state)


def best_checkpoint(run: Path, state: TrainerState) -> Path:
    """Where the best checkpoint of a run lies."""
    return run / f"checkpoint-{state.best_global_step}"


def read_settings(run: Path) -> dict[str, Any]:
    """What a run's folder says of its settings."""
    settings: dict[str, Any] = json.loads((run / RUN_SETTINGS).read_text(encoding="utf-8"))
    return settings


def remove_checkpoints(run: Path) -> None:
    """Remove a finished run's checkpoints; what TensorBoard shows stays."""
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; None if there is none. A kill may leave the newest half written."""
    found = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]), reverse=True)
    return next((folder for folder in found if _is_whole(folder)), None)


def _is_whole(folder: Path) -> bool:
    try:  # the Trainer writes this file last
        json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
