"""The user text from history: its order, what is cut first, and that the client makes the same."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.user_text import SEPARATOR, user_text

ROOT = Path(__file__).parents[3]


def test_the_most_recent_title_comes_first() -> None:
    assert user_text(["oldest", "middle", "newest"]) == "newest ; middle ; oldest"


def test_only_the_last_clicks_count_and_empty_titles_do_not() -> None:
    history = [f"title {number}" for number in range(20)]
    assert user_text(history).split(SEPARATOR) == [f"title {number}" for number in range(19, 7, -1)]
    assert user_text(["one", "", "two", " \n", "three", ""], last=2) == "three ; two"


def test_whitespace_is_one_space() -> None:
    assert user_text(["  a\tb \n\n c "]) == "a b c"


def test_no_history_is_the_empty_text() -> None:
    assert user_text([]) == user_text(["", "  "]) == ""


@given(st.lists(st.text()), st.integers(1, 20))
def test_it_begins_with_what_a_shorter_history_gives(history: list[str], last: int) -> None:
    text = user_text(history, last)
    assert text.startswith(user_text(history, 1)), "cut at its end, the text keeps the most recent title"
    assert user_text(history, last + 1).startswith(text)
    assert text == text.strip()


def test_refuses_what_is_no_history() -> None:
    with pytest.raises(TypeError, match="one string"):
        user_text("Rain tomorrow")
    with pytest.raises(ValueError, match="last is 0"):
        user_text(["Rain tomorrow"], last=0)


def test_the_client_has_the_same_file() -> None:
    ours, clients = (ROOT / "finetune/data/user_text.py", ROOT / "client/clickbert/user_text.py")
    assert ours.read_bytes() == clients.read_bytes()
