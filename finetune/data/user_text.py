"""The user text, made from what a user clicked: one function, so that training and serving agree.

This file is in the repository twice, byte for byte: finetune/data/user_text.py makes the texts that a model learns
from, and client/clickbert/user_text.py, which may import nothing from there, those that it is asked with. Change both;
a test compares them.
"""

from collections.abc import Sequence

SEPARATOR = " ; "


def user_text(history: Sequence[str], last: int = 12) -> str:
    """Join the titles that a user clicked `last`, the most recent first, to one user text.

    `history` has the titles in the order of the clicks, the most recent last, as logs have them. The text begins with
    the most recent: where a pair is too long, the end of a text is cut off, and so the oldest titles go first. Runs of
    whitespace within a title become one space. Empty titles are skipped, and do not count among the `last`. A user
    without history has the empty text.

        >>> user_text(["Rain tomorrow", "", "Tennis: the final  "])
        'Tennis: the final ; Rain tomorrow'

    Raises:
        ValueError: `last` is less than 1.
        TypeError: `history` is one string, not a sequence of them.
    """
    if last < 1:
        raise ValueError(f"last is {last}; it must be 1 or more titles")
    if isinstance(history, str):
        raise TypeError("history is one string; give a sequence of titles, the most recent last")
    titles = [title for clicked in reversed(history) if (title := " ".join(clicked.split()))]
    return SEPARATOR.join(titles[:last])
