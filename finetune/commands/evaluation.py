"""`evaluate`: how good a checkpoint is on a click log."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE, check_page


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
    evaluate.add_argument(
        "--by",
        metavar="FIELD",
        action="append",
        default=[],
        help="all metrics for each value of a field, too: topic, position, user or any other key of the log; may be "
        "repeated",
    )
    evaluate.add_argument(
        "--bootstrap",
        metavar="DRAWS",
        type=_draws,
        default=1000,
        help="draws of groups for the 95%% intervals, 0 for none; default: %(default)s",
    )
    evaluate.add_argument(
        "--page", metavar="FILE.html", type=Path, help="write the evaluation as a page with pictures, too"
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from finetune.data.clicklog import read_click_log
    from finetune.evaluation.checkpoint import evaluate
    from finetune.evaluation.report import screen_lines, to_document

    rows = read_click_log(options.data)
    if options.page:
        check_page(options.page)
    evaluation = evaluate(options.checkpoint, rows, options.click_label, options.by, options.bootstrap)
    if evaluation.missing:
        missing = ", ".join(evaluation.missing)
        print(f"{options.checkpoint}: no weights for {missing}; they are random (seed 0)", file=sys.stderr)
    about = options.checkpoint, str(options.data)
    for line in screen_lines(evaluation):
        print(line)
    print(json.dumps(to_document(*about, evaluation), allow_nan=False))
    if options.page:
        from finetune.evaluation.page import write_page

        write_page(options.page, *about, evaluation)


def _draws(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number
