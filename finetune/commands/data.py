"""The commands that make click logs and look at them."""

# Each command imports what it needs: PyTorch takes seconds to import, and --help should not wait for it.
# ruff: noqa: PLC0415

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.commands.options import SAMPLE, check_page, positive
from finetune.data.row import KEYS, ClickRow

LOG = "a click log, .jsonl[.gz]"


def add_commands(commands: Any) -> None:
    """Add the parsers of this module's commands."""
    sample = commands.add_parser("sample", help="write a sample click log", allow_abbrev=False)
    sample.add_argument("--output", type=Path, default=SAMPLE, help="folder for the three files; default: %(default)s")
    sample.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sample.set_defaults(run=_sample)
    _add_imports(commands.add_parser("import", help="write a click log from another format", allow_abbrev=False))
    split = commands.add_parser("split", help="cut a click log into train, dev and test", allow_abbrev=False)
    split.add_argument("file", type=Path, metavar="FILE", help=LOG)
    split.add_argument(
        "--by",
        choices=("user", "group", "time"),
        required=True,
        help="user: a user is in one file only; group: a group is; time: train is earlier than dev, and dev than test",
    )
    split.add_argument("--dev", type=float, default=0.1, help="share of dev; default: %(default)s")
    split.add_argument("--test", type=float, default=0.1, help="share of test; default: %(default)s")
    split.add_argument("--seed", type=int, default=0, help="another one draws other users or groups; default: 0")
    split.add_argument("--output", type=Path, required=True, help="folder for the files")
    split.set_defaults(run=_split)
    describe = commands.add_parser("describe", help="show what a click log holds", allow_abbrev=False)
    describe.add_argument("file", type=Path, metavar="FILE", help=LOG)
    describe.add_argument("--page", type=Path, metavar="FILE.html", help="write a page with pictures, too")
    describe.set_defaults(run=_describe)


def _add_imports(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = formats.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--output", type=_log, required=True, metavar="FILE.jsonl[.gz]", help="the click log")
        added.set_defaults(run=run)
        return added

    mind = add("mind", _import_mind, "MIND, Microsoft's news log")
    mind.add_argument("folder", type=Path, metavar="FOLDER", help="has behaviors.tsv and news.tsv")
    mind.add_argument("--last", type=positive, default=12, help="clicked titles in the user text; default: %(default)s")
    mind.add_argument("--abstracts", action="store_true", help="documents are title and abstract, not the title alone")
    esci = add("esci", _import_esci, "Amazon's shopping queries, judged by people: a click is the label E, exact")
    esci.add_argument(
        "examples", type=Path, metavar="EXAMPLES", help="query, product_id, esci_label, ...; Parquet or CSV"
    )
    esci.add_argument("products", type=Path, metavar="PRODUCTS", help="product_id, product_title, ...; Parquet or CSV")
    esci.add_argument(
        "--click-labels", nargs="+", choices=("E", "S", "C", "I"), default=["E"], metavar="LABEL",
        help="labels that count as a click, of E, S, C and I; default: E",
    )  # fmt: skip
    for name, text in (("csv", "a CSV file (UTF-8, with a header)"), ("parquet", "a Parquet file")):
        table = add(name, _import_table, f"{text} with a row for each candidate that was shown")
        table.add_argument("file", type=Path, metavar="FILE")
        if name == "csv":
            table.add_argument("--delimiter", type=_character, help="default: a tab for .tsv[.gz], else a comma")
        for key in KEYS:
            if key != "features":
                table.add_argument(f"--{key}-column", metavar="NAME", help=f"default: {key}")
        table.add_argument("--feature-columns", nargs="+", default=[], metavar="NAME", help="columns of numbers")
        table.add_argument("--other-columns", nargs="+", default=[], metavar="NAME", help="columns to keep as text")


def _sample(options: argparse.Namespace) -> None:
    from finetune.data.sample.draw import write_sample

    for name, summary in write_sample(options.output, options.seed).items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in summary.items())
        print(f"{options.output / name}.jsonl: {shown}")


def _import_mind(options: argparse.Namespace) -> None:
    from finetune.data.imports.mind import BEHAVIORS, read_mind

    skipped: Counter[str] = Counter()
    with _progress(options.folder / BEHAVIORS) as watch:
        _write(options.output, read_mind(options.folder, options.last, options.abstracts, skipped, watch), skipped)


def _import_esci(options: argparse.Namespace) -> None:
    from finetune.data.imports.esci import read_esci
    from finetune.data.imports.tables import is_parquet

    skipped: Counter[str] = Counter()
    with _progress(options.examples, is_parquet(options.examples)) as watch:
        rows = read_esci(options.examples, options.products, options.click_labels, skipped, watch)
        _write(options.output, rows, skipped)


def _import_table(options: argparse.Namespace) -> None:
    from finetune.data.imports.table import COLUMNS, Columns, read_rows

    given = {key: getattr(options, f"{key}_column") for key in COLUMNS}
    named = {key: name for key, name in given.items() if name is not None}
    columns = Columns(named, options.feature_columns, options.other_columns)
    parquet = options.format == "parquet"
    delimiter = None if parquet else options.delimiter
    with _progress(options.file, parquet) as watch:
        _write(options.output, read_rows(options.file, columns, parquet, delimiter, watch), Counter())


def _write(output: Path, rows: Iterable[ClickRow], skipped: Counter[str]) -> None:
    from finetune.data.writing import write_rows

    print(f"{output}: {write_rows(output, rows):,} rows")
    for what, count in skipped.items():
        if count:
            print(f"{count:,} {what}{'' if 'kept' in what else ', left out'}")


def _split(options: argparse.Namespace) -> None:
    from finetune.data.describe.description import moment
    from finetune.data.split import split_log

    with _progress(options.file) as watch:
        found = split_log(options.file, options.output, options.by, options.dev, options.test, options.seed, watch)
    for name, summary in found.items():
        times = f", {moment(summary.start)} to {moment(summary.end)}" if summary.start is not None else ""
        counts = f"{summary.rows:,} rows, {summary.groups:,} groups, {summary.users:,} users"
        print(f"{options.output / name}.jsonl: {counts}{times}")


def _describe(options: argparse.Namespace) -> None:
    from finetune.data.clicklog import iterate_click_log
    from finetune.data.describe.description import describe, tables

    if options.page:
        check_page(options.page)
    with _progress(options.file) as watch:
        description = describe(iterate_click_log(options.file, watch))
    print("\n\n".join(str(table) for table in tables(description)))
    if options.page:
        from finetune.data.describe.page import write_page

        write_page(options.page, options.file, description)
        print(f"\n{options.page}: the same, with pictures")


@contextmanager
def _progress(path: Path, parquet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far a file is read: yields what is told the bytes, or of a Parquet file the rows, so far."""
    from tqdm import tqdm

    if parquet:
        from finetune.data.imports.tables import count_rows

        total, unit = count_rows(path), " rows"
    else:
        total, unit = path.stat().st_size if path.exists() else 0, "B"
    with tqdm(total=total, desc=path.name, unit=unit, unit_scale=True, leave=False) as bar:
        # (the log that is read a second time begins again)
        yield lambda reached: bar.update(reached - bar.n) if reached != bar.n else None


def _log(text: str) -> Path:
    if not text.endswith((".jsonl", ".jsonl.gz")):
        raise argparse.ArgumentTypeError(f"{text} does not end in .jsonl or .jsonl.gz")
    return Path(text)


def _character(text: str) -> str:
    character = {r"\t": "\t", "tab": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character; for a tab, write tab")
    return character
