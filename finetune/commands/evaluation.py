"""`evaluate`: how good a checkpoint is on a click log."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE

COUNTS = ("pairs", "groups", "ranked_groups", "impressions", "clicks")


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    evaluate = commands.add_parser("evaluate", help="evaluate a checkpoint on a click log", allow_abbrev=False)
    evaluate.add_argument(
        "--checkpoint",
        default=str(DEMO),
        help="a checkpoint's folder, or a base as in `train --base-model`; default: %(default)s",
    )
    evaluate.add_argument(
        "--data", type=Path, default=SAMPLE / "test.jsonl", help="a click log, .jsonl[.gz]; default: %(default)s"
    )
    evaluate.add_argument(
        "--click-label", metavar="LABEL", help="name or index of the label that means a click, if the names do not tell"
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from finetune.data.clicklog import read_click_log
    from finetune.evaluation.checkpoint import evaluate

    metrics, missing = evaluate(options.checkpoint, read_click_log(options.data), options.click_label)
    if missing:
        print(f"{options.checkpoint}: no weights for {', '.join(missing)}; they are random (seed 0)", file=sys.stderr)
    for name, value in metrics.items():
        print(f"{name:<20}{value:>12,.{0 if name in COUNTS else 4}f}")
    document: dict[str, Any] = {"checkpoint": options.checkpoint, "data": str(options.data), **metrics}
    print(json.dumps(document, allow_nan=False))
