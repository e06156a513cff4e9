"""A run that was stopped, by Ctrl-C or by kill -9, goes on where it stopped and ends with the same weights."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.training.loop.dev import Dev
from finetune.training.run import train
from finetune.training.run_folder import last_checkpoint
from finetune.training.settings import SettingsError, TrainSettings
from tests.finetune.training.interrupt import CtrlC

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "dropout": 0.2, "average": 0.9, "evaluations": 4,
    "patience": 6,
}  # fmt: skip


def command(base: Path, data: Path, output: Path) -> list[str]:
    options = [part for name, value in OPTIONS.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return [
        sys.executable, "-m", "finetune", "train", "--data", str(data), "--base-model", str(base),
        "--output", str(output), *options,
    ]  # fmt: skip


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def stop(arguments: list[str], run: Path, how: signal.Signals) -> "subprocess.CompletedProcess[str]":
    """Run a command until its run has a whole checkpoint, then send it a signal."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while last_checkpoint(run) is None:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def uninterrupted(base: Path, click_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The last line and the weights of the run that nobody stops."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(command(base, click_folder, output), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split(":", 1)[1], weights(output)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_ends_like_one_that_was_not(
    how: signal.Signals, uninterrupted: tuple[str, str], base: Path, click_folder: Path, tmp_path: Path
) -> None:
    output, run = tmp_path / "out", tmp_path / "out-run"
    arguments = command(base, click_folder, output)
    stopped = stop(arguments, run, how)
    kept = last_checkpoint(run)
    assert not output.exists()
    if how == signal.SIGINT:
        assert stopped.returncode == 130
        assert f"interrupted; {kept} is kept: give the same command again to go on" in stopped.stderr
    with pytest.raises(SettingsError, match=r"a run with another objective, epochs, .* or --restart"):
        train(click_folder, str(base), output, TrainSettings(objective="pairwise"))
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{kept}: going on from there" in done.stderr
    assert (done.stdout.splitlines()[-1].split(":", 1)[1], weights(output)) == uninterrupted
    assert last_checkpoint(run) is None, "a finished run leaves no checkpoints"
    assert list(run.glob("**/events.out.tfevents.*")), "but what TensorBoard shows"


@pytest.mark.slow
def test_a_half_written_checkpoint_does_not_count(base: Path, click_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "out-run"
    stop(command(base, click_folder, tmp_path / "out"), run, signal.SIGINT)
    whole = last_checkpoint(run)
    assert whole is not None
    newer = run / "checkpoint-99999"
    shutil.copytree(whole, newer)
    state = newer / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert last_checkpoint(run) == whole


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("first_in", ["the last step", "the evaluation"])
def test_an_evaluation_that_is_cut_short_after_the_last_step_is_done_again(
    base: Path, click_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, first_in: str
) -> None:
    """Ctrl-C twice: without that evaluation, an earlier model would count as the best."""
    settings = TrainSettings(epochs=epochs, batch_size=16, learning_rate=3e-3)
    expected = train(click_folder, str(base), tmp_path / "whole", settings)
    steps = len((click_folder / "train.jsonl").read_text(encoding="utf-8").splitlines()) // 16 * epochs
    measure, calls = Dev.measure, []

    def press(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == epochs:
            for _ in range(1 if first_in == "the last step" else 2):
                signal.raise_signal(signal.SIGINT)
        return measure(*given)

    callbacks = [CtrlC(steps)] if first_in == "the last step" else []
    monkeypatch.setattr(Dev, "measure", press)
    with pytest.raises(
        KeyboardInterrupt, match="is kept: give the same" if epochs > 1 else "no checkpoint was written"
    ):
        train(click_folder, str(base), tmp_path / "out", settings, callbacks=callbacks)
    assert not (tmp_path / "out").exists()
    assert train(click_folder, str(base), tmp_path / "out", settings) == expected
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_run_that_patience_had_ended_is_not_gone_on_with(
    base: Path, noise_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(epochs=30, batch_size=16, learning_rate=3e-3, patience=1, metric="auc")
    expected = train(noise_folder, str(base), tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        patch.setattr(Dev, "intervals", lambda *_: signal.raise_signal(signal.SIGINT))  # when it is over
        with pytest.raises(KeyboardInterrupt):
            train(noise_folder, str(base), tmp_path / "out", settings)
    measured: list[object] = []
    measure = Dev.measure
    monkeypatch.setattr(Dev, "measure", lambda *given: measured.append(given) or measure(*given))
    assert train(noise_folder, str(base), tmp_path / "out", settings) == expected
    assert not measured
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize("what", ["the weights", "what the optimizer knows, which is more"])
def test_a_disk_that_is_full_is_an_error_in_a_line(base: Path, click_folder: Path, tmp_path: Path, what: str) -> None:
    """As a limit on the size of files, here."""
    blocks = (base / "model.safetensors").stat().st_size // 1024 + (-5 if what == "the weights" else 10)
    arguments = [sys.executable, "-m", "finetune", "train", "--data", str(click_folder), "--base-model", str(base)]
    arguments += ["--output", str(tmp_path / "out"), "--epochs", "1"]
    limited = ["bash", "-c", f'ulimit -f {blocks} && exec "$@"', "bash", *arguments]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # half a file of it would break later imports
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: " in done.stderr
    assert ("File too large" if what == "the weights" else "a checkpoint cannot be written") in done.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(base: Path, joint_folder: Path, tmp_path: Path) -> None:
    """What `accelerate launch` does on several GPUs, on two processes of this CPU."""
    # On GPUs `accelerate launch` starts this very launcher; on CPUs it would need MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(base, joint_folder, tmp_path / "out")[1:]
    arguments += ["--understanding", "topic", "--understanding-weight", "learned", "--position-bias", "estimated"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    settings = json.loads((tmp_path / "out-run" / "settings.json").read_text(encoding="utf-8"))
    assert settings["understanding"] == ["topic"]
    assert done.stdout.count("saved; dev auc") == 1, "the first process alone says so"
    # Half of the batches each: a step takes what both saw.
    steps = len((joint_folder / "train.jsonl").read_text(encoding="utf-8").splitlines()) // 8 // 2
    assert f"/{3 * steps}" in done.stderr
