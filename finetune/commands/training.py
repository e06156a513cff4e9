"""The commands that train."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE, share
from finetune.training.settings import add_options, from_options


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    train = commands.add_parser("train", help="fine-tune a BERT on a click log", allow_abbrev=False)
    _add_training(train)
    train.set_defaults(run=_train)

    distil = commands.add_parser(
        "distil", help="fine-tune a BERT on what an ensemble of checkpoints gives", allow_abbrev=False
    )
    distil.add_argument(
        "--teachers", type=Path, nargs="+", required=True, metavar="CHECKPOINT", help="the ensemble's checkpoints"
    )
    distil.add_argument(
        "--teacher-weight", type=share, default=0.5, metavar="SHARE",
        help="the teachers' share of the click's loss; the rest is the clicks'; default: %(default)s",
    )  # fmt: skip
    _add_training(distil)
    distil.set_defaults(run=_distil)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training run."""
    parser.add_argument(
        "--data",
        type=Path,
        default=SAMPLE,
        help="folder with train.jsonl[.gz] and dev.jsonl[.gz]; default: %(default)s",
    )
    parser.add_argument(
        "--base-model", default="minilm", help='"minilm" (offline), a folder, or a hub name; default: %(default)s'
    )
    parser.add_argument("--output", type=Path, default=DEMO, help="folder of the checkpoint; default: %(default)s")
    parser.add_argument(
        "--restart", action="store_true", help="drop a run that was stopped, instead of going on with it"
    )
    add_options(parser)


def _train(options: argparse.Namespace) -> None:
    from finetune.training.run import train

    metrics = train(options.data, options.base_model, options.output, from_options(options), restart=options.restart)
    print(f"{options.output}: saved; dev {_shown(metrics)}")


def _distil(options: argparse.Namespace) -> None:
    from finetune.data.clicklog import find_split, read_click_log
    from finetune.training.distil import Teachers
    from finetune.training.run import train

    teachers = Teachers(tuple(options.teachers), options.teacher_weight)
    for name, metrics in teachers.evaluate(read_click_log(find_split(options.data, "dev"))).items():
        print(f"{name}: dev {_shown(metrics)}")
    metrics = train(
        options.data, options.base_model, options.output, from_options(options), restart=options.restart,
        teachers=teachers,
    )  # fmt: skip
    print(f"{options.output}: saved; dev {_shown(metrics)}")


def _shown(metrics: dict[str, float]) -> str:
    from finetune.training.trainer import SHOWN

    return ", ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
