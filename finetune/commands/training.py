"""The commands that train."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE, positive


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
    train.add_argument("--epochs", type=positive, default=2, help="default: %(default)s")
    train.add_argument("--batch-size", type=positive, default=8, help="default: %(default)s")
    train.add_argument("--learning-rate", type=float, default=1e-4, help="default: %(default)s; for BERT-base, 3e-5")
    train.add_argument("--max-length", type=positive, help="longest pair in tokens; default: what the base allows")
    train.add_argument("--labels", type=int, choices=(1, 2), default=1, help="1 (sigmoid) or 2 (softmax); default: 1")
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from finetune.training.run import TrainSettings, train

    settings = TrainSettings(
        options.epochs, options.batch_size, options.learning_rate, options.max_length, options.labels, options.seed
    )
    metrics = train(options.data, options.base_model, options.output, settings)
    print(f"{options.output}: saved, dev AUC {metrics['auc']:.4f}")
