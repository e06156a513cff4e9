"""What the commands' options share: default paths, and kinds of numbers."""

import argparse
from pathlib import Path

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
