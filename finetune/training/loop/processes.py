"""Several processes of one run (`accelerate launch`): one of them writes files and speaks."""

import os
import sys

from tqdm import tqdm


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first: the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"  # set by every launcher


def count_processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(text: str) -> None:
    """Tell the user something, on stderr."""
    if is_first_process():
        tqdm.write(text, file=sys.stderr)  # does not break a progress bar
