"""From a click log to a checkpoint, on the command line.

`sample` writes a sample click log, `train` fine-tunes a BERT on a click log, and `evaluate` evaluates a checkpoint; its
last line of output is JSON. Progress and errors go to stderr. Run from the repository's root:

    python -m finetune sample --output data/sample
    python -m finetune train --data data/sample --base-model minilm --output checkpoints/demo
    python -m finetune evaluate --checkpoint checkpoints/demo --data data/sample/test.jsonl
    python -m finetune evaluate --checkpoint minilm --data data/sample/test.jsonl    # the base, for comparison
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SAMPLE = Path("data/sample")
DEMO = Path("checkpoints/demo")
COUNTS = ("pairs", "groups", "ranked_groups", "impressions", "clicks")


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand. Returns 0 on success, 1 on bad input or a failed write, 2 on bad usage, 130 on Ctrl-C."""
    options = _parser().parse_args(arguments)
    commands = {"sample": _sample, "train": _train, "evaluate": _evaluate}
    try:
        commands[options.command](options)
    except KeyboardInterrupt:
        outcome = "" if options.command == "evaluate" else f"; nothing was written to {options.output}"
        print(f"\ninterrupted{outcome}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # this package's errors are ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    sample = commands.add_parser("sample", help="write a sample click log", allow_abbrev=False)
    sample.add_argument("--output", type=Path, default=SAMPLE, help="folder for the three files; default: %(default)s")
    sample.add_argument("--seed", type=int, default=0, help="default: %(default)s")

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
    train.add_argument("--epochs", type=_positive, default=2, help="default: %(default)s")
    train.add_argument("--batch-size", type=_positive, default=8, help="default: %(default)s")
    train.add_argument("--learning-rate", type=float, default=1e-4, help="default: %(default)s; for BERT-base, 3e-5")
    train.add_argument("--max-length", type=_positive, help="longest pair in tokens; default: what the base allows")
    train.add_argument("--labels", type=int, choices=(1, 2), default=1, help="1 (sigmoid) or 2 (softmax); default: 1")
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")

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
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


# Each command imports what it needs: PyTorch takes seconds to import, and --help and `sample` should not wait for it.


def _sample(options: argparse.Namespace) -> None:
    from finetune.data.sample import write_sample  # noqa: PLC0415

    for name, summary in write_sample(options.output, options.seed).items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in summary.items())
        print(f"{options.output / name}.jsonl: {shown}")


def _train(options: argparse.Namespace) -> None:
    from finetune.training import TrainSettings, train  # noqa: PLC0415

    settings = TrainSettings(
        options.epochs, options.batch_size, options.learning_rate, options.max_length, options.labels, options.seed
    )
    metrics = train(options.data, options.base_model, options.output, settings)
    print(f"{options.output}: saved, dev AUC {metrics['auc']:.4f}")


def _evaluate(options: argparse.Namespace) -> None:
    from finetune.data.clicklog import read_click_log  # noqa: PLC0415
    from finetune.evaluation import evaluate  # noqa: PLC0415

    metrics, missing = evaluate(options.checkpoint, read_click_log(options.data), options.click_label)
    if missing:
        print(f"{options.checkpoint}: no weights for {', '.join(missing)}; they are random (seed 0)", file=sys.stderr)
    for name, value in metrics.items():
        print(f"{name:<20}{value:>12,.{0 if name in COUNTS else 4}f}")
    document: dict[str, Any] = {"checkpoint": options.checkpoint, "data": str(options.data), **metrics}
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
