"""What a form is, and how the fields of a body are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clickbert.calls.arguments import check_text
from clickbert.calls.session import RankedDocument
from clickbert.errors import InvalidInputError

MAX_CHARACTERS = 100_000  # of a text: many times what any model reads, and tokenized in a fraction of a second
_JSON_TYPES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class RefusalError(Exception):
    """The request is refused with this status; the message holds no text of the caller's."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Rerank:
    """What is asked, whatever the form."""

    query: str
    texts: Sequence[str]
    model: str | None = None
    top_n: int | None = None
    return_texts: bool = False
    raw_scores: bool = False
    may_cut: bool = True  # whether a text beyond the model's limit is cut, as the model's tokenizer does, or refused


@dataclass(frozen=True)
class Ranking:
    """The answer, whatever the form."""

    asked: Rerank
    identifier: str
    model: str
    documents: Sequence[RankedDocument]  # best first
    tokens: int  # that the model read; a text that occurs twice is read once


class Form(NamedTuple):
    """A peer's form; `answer` and `error` return what goes out as JSON."""

    read: Callable[["Fields"], Rerank]
    answer: Callable[[Ranking], Any]
    error: Callable[[int, str], Any]


class Fields:
    """A body, whose fields are checked as they are read. One that is null counts as left out; unknown ones are ignored.

    Every method raises `RefusalError`.
    """

    def __init__(self, body: Mapping[str, Any], max_documents: int) -> None:
        self._body, self._max_documents = body, max_documents

    def __contains__(self, name: str) -> bool:
        return self._body.get(name) is not None

    def equals(self, name: str, value: object) -> bool:
        """Tell whether a field is this, or left out."""
        return name not in self or self._body[name] == value

    def text(self, name: str) -> str:
        """Return a field that must be a string."""
        return _checked_text(self._body.get(name), name)

    def texts(self, name: str) -> list[str]:
        """Return a field that must be a list of strings, or of objects with a string `text`."""
        values = self._body.get(name)
        if not isinstance(values, list):
            raise _wrong(name, values, "a list of strings")
        if not values:
            raise RefusalError(422, f"{name} is empty: there is nothing to rank")
        if len(values) > self._max_documents:
            raise RefusalError(
                413, f"{name} has {len(values):,} entries, but this server takes {self._max_documents:,} a call"
            )
        return [
            _checked_text(value["text"], f"{name}[{index}].text")
            if isinstance(value, dict) and "text" in value
            else _checked_text(value, f"{name}[{index}]", "a string, or an object with `text`")
            for index, value in enumerate(values)
        ]

    def optional_text(self, name: str) -> str | None:
        """Return a field that may be a string."""
        return self.text(name) if name in self else None

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a field that may be true or false."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def count(self, name: str) -> int | None:
        """Return a field that may be a whole number from 1 up."""
        value = self._body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _wrong(name, value, "a whole number from 1 up")
        return value

    def choice(self, name: str, *choices: str) -> str:
        """Return a field that may be one of these, in lower case; left out it is the first."""
        value = self.optional_text(name)
        if value is None:
            return choices[0]
        if value.lower() not in choices:
            raise RefusalError(422, f"{name} is not one of {', '.join(choices)}")
        return value.lower()


def _checked_text(value: object, name: str, expected: str = "a string") -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, expected)
    if len(value) > MAX_CHARACTERS:
        raise RefusalError(
            413, f"{name} has {len(value):,} characters, but this server takes {MAX_CHARACTERS:,} a text: shorten it"
        )
    message = ""
    try:
        check_text(value, name)
    except InvalidInputError as exc:
        message = str(exc)
    if message:
        raise RefusalError(422, message)
    return value


def _wrong(name: str, value: object, expected: str) -> RefusalError:
    return RefusalError(422, f"{name} is {_JSON_TYPES.get(type(value), 'a number')}, expected {expected}")
