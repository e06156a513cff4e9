"""What the commands' options share: default paths, kinds of numbers, and where a page may be written."""

import argparse
import errno
from pathlib import Path
from tempfile import TemporaryFile

SAMPLE = Path("data/sample")
DEMO = Path("checkpoints/demo")


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{number} is not from 0 to 1")
    return number


def check_page(page: Path) -> None:
    """Raise OSError if no file can be written there, before minutes of computing."""
    if page.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(page))
    page.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=page.parent):
        pass
