"""The commands that train."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from pathlib import Path
from typing import Any

from finetune.commands.options import DEMO, SAMPLE, positive, share
from finetune.names import MINILM
from finetune.training.settings import SettingsError, add_options, from_options


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    train = commands.add_parser("train", help="fine-tune a BERT on a click log", allow_abbrev=False)
    _add_training(train)
    train.add_argument(
        "--from-checkpoint", type=Path, metavar="CHECKPOINT",
        help="make a checkpoint faster by training it on its own scores: user_once for full attention, and --layers "
        "for fewer of its own",
    )  # fmt: skip
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

    pretrain = commands.add_parser(
        "pretrain", help="go on pre-training a base on a domain's texts, by masked words", allow_abbrev=False
    )
    texts = pretrain.add_mutually_exclusive_group(required=True)
    texts.add_argument("--texts", type=Path, metavar="FILE", help="a UTF-8 file with a text a line")
    texts.add_argument("--data", type=Path, metavar="FOLDER", help="a folder whose train.jsonl[.gz] has the texts")
    _add_base(pretrain)
    pretrain.add_argument("--output", type=Path, required=True, help="folder of the new base, for train --base-model")
    pretrain.add_argument("--epochs", type=positive, default=3, help="default: %(default)s")
    pretrain.add_argument("--batch-size", type=positive, default=32, help="texts a step; default: %(default)s")
    pretrain.add_argument("--learning-rate", type=float, default=1e-4, help="default: %(default)s")
    pretrain.add_argument(
        "--mask", type=share, default=0.15, help="share of words that are guessed; default: %(default)s"
    )
    pretrain.add_argument("--max-length", type=positive, help="longest text in tokens; default: what the base allows")
    pretrain.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_restart(pretrain)
    pretrain.set_defaults(run=_pretrain)

    mean = commands.add_parser(
        "average", help="save the mean of the weights of checkpoints that began at one base", allow_abbrev=False
    )
    mean.add_argument("--checkpoints", type=Path, nargs="+", required=True, metavar="CHECKPOINT", help="two or more")
    mean.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    mean.set_defaults(run=_average)

    search = commands.add_parser(
        "search", help="look for better settings: rate, batch, epochs, decay, dropout, weights", allow_abbrev=False
    )
    search.add_argument(
        "--minutes", type=float, required=True, metavar="N", help="no trial begins after so many; the last one ends"
    )
    _add_training(search)
    search.set_defaults(run=_search)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training run."""
    parser.add_argument(
        "--data",
        type=Path,
        default=SAMPLE,
        help="folder with train.jsonl[.gz] and dev.jsonl[.gz]; default: %(default)s",
    )
    _add_base(parser)
    parser.add_argument("--output", type=Path, default=DEMO, help="folder of the checkpoint; default: %(default)s")
    _add_restart(parser)
    add_options(parser)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-model", default=MINILM, help='"minilm" (offline), a folder, or a hub name; default: %(default)s'
    )


def _add_restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--restart", action="store_true", help="drop a run that was stopped, instead of going on with it"
    )


def _train(options: argparse.Namespace) -> None:
    from finetune.training.loop.dev import shown
    from finetune.training.recipes.carry import carry
    from finetune.training.run import train

    settings = from_options(options)
    if not options.from_checkpoint:
        metrics = train(options.data, options.base_model, options.output, settings, restart=options.restart)
    elif options.base_model != MINILM:
        raise SettingsError("--from-checkpoint is the base itself; leave --base-model out")
    else:
        metrics = carry(options.data, options.from_checkpoint, options.output, settings, restart=options.restart)
    _report(f"{options.output}: saved; dev {shown(metrics)}")


def _distil(options: argparse.Namespace) -> None:
    from finetune.training.loop.dev import shown
    from finetune.training.recipes.distil import Teachers
    from finetune.training.run import train

    metrics = train(
        options.data, options.base_model, options.output, from_options(options), restart=options.restart,
        teachers=Teachers(tuple(options.teachers), options.teacher_weight),
    )  # fmt: skip
    _report(f"{options.output}: saved; dev {shown(metrics)}")


def _pretrain(options: argparse.Namespace) -> None:
    from finetune.training.recipes.pretrain import PretrainSettings, pretrain

    settings = PretrainSettings(
        options.epochs, options.batch_size, options.learning_rate, options.mask, options.max_length, options.seed
    )
    before, after = pretrain(
        options.texts or options.data, options.base_model, options.output, settings, restart=options.restart
    )
    _report(f"{options.output}: saved; masked-word loss on held-out texts {before:.4f} nats before, {after:.4f} after")


def _average(options: argparse.Namespace) -> None:
    from finetune.training.recipes.averaging import average

    average(options.checkpoints, options.output)
    _report(f"{options.output}: saved; the mean of {len(options.checkpoints)} checkpoints")


def _search(options: argparse.Namespace) -> None:
    from finetune.training.loop.dev import shown
    from finetune.training.recipes.search import Search

    search = Search(options.data, options.base_model, options.output, from_options(options), restart=options.restart)
    search.run(options.minutes)
    rows = search.table()
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "error"]
    table = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    number, metrics = search.best()
    print(f"{options.output}: saved; trial {number}, dev {shown(metrics)}")


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _report(text: str) -> None:
    from finetune.training.loop.processes import is_first_process

    if is_first_process():
        print(text)
