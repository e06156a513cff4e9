"""The commands that train."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE
from finetune.training.settings import add_options, from_options


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    train = commands.add_parser("train", help="fine-tune a BERT on a click log", allow_abbrev=False)
    train.add_argument(
        "--data",
        type=Path,
        default=SAMPLE,
        help="folder with train.jsonl[.gz] and dev.jsonl[.gz]; default: %(default)s",
    )
    train.add_argument(
        "--base-model", default="minilm", help='"minilm" (offline), a folder, or a hub name; default: %(default)s'
    )
    train.add_argument("--output", type=Path, default=DEMO, help="folder of the checkpoint; default: %(default)s")
    train.add_argument(
        "--restart", action="store_true", help="drop a run that was stopped, instead of going on with it"
    )
    add_options(train)
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from finetune.training.run import is_first_process, train
    from finetune.training.trainer import SHOWN

    metrics = train(options.data, options.base_model, options.output, from_options(options), restart=options.restart)
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
    if is_first_process():
        print(f"{options.output}: saved; dev {shown}")
