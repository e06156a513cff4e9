"""The commands that make click logs and look at them."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.options import SAMPLE


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    sample = commands.add_parser("sample", help="write a sample click log", allow_abbrev=False)
    sample.add_argument("--output", type=Path, default=SAMPLE, help="folder for the three files; default: %(default)s")
    sample.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sample.set_defaults(run=_sample)


def _sample(options: argparse.Namespace) -> None:
    from finetune.data.sample import write_sample

    for name, summary in write_sample(options.output, options.seed).items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in summary.items())
        print(f"{options.output / name}.jsonl: {shown}")
