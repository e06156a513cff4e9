"""Checks of what callers pass. Each raises `InvalidInputError`, before anything is sent."""

from collections.abc import Sequence
from typing import Literal, get_args

from clickbert.errors import InvalidInputError

MAX_TIMEOUT = 365 * 24 * 3600.0  # seconds; gRPC's clock, in nanoseconds, overflows two centuries later
LongDocuments = Literal["truncate", "passages"]
TRUNCATE, PASSAGES = LONG_DOCUMENTS = get_args(LongDocuments)


def check_settings(model: str, timeout: float, max_documents: int) -> None:
    """Check a ranker's own settings."""
    check_text(model, "model")
    if not model:
        raise InvalidInputError("model is empty, expected a model's name")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidInputError(f"timeout is {timeout!r}, expected seconds above 0, at most a year")
    _check_count("max_documents", max_documents)


def check_texts(texts: Sequence[str], name: str, limit: int) -> tuple[str, ...]:
    """Return a copy of the texts: the caller may change the list while the call runs."""
    _check_sequence(texts, name, "texts", limit)
    for index, text in enumerate(texts):
        check_text(text, f"{name}[{index}]")
    return tuple(texts)


def check_pairs(pairs: Sequence[tuple[str, str]], max_documents: int) -> tuple[tuple[str, str], ...]:
    """Return a copy of the (query, document) pairs."""
    _check_sequence(pairs, "pairs", "(query, document) pairs", max_documents)
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise InvalidInputError(f"pairs[{index}] is {_type_of(pair)}, expected (query, document)")
        query, document = pair
        check_text(query, f"pairs[{index}][0]")
        check_text(document, f"pairs[{index}][1]")
        checked.append((query, document))
    return tuple(checked)


def check_top_k(top_k: int | None) -> None:
    """Check how many results are wanted; None is all."""
    if top_k is not None:
        _check_count("top_k", top_k)


def check_long_documents(long_documents: str) -> None:
    """Check how documents beyond the model's limit are to be read."""
    if long_documents not in LONG_DOCUMENTS:
        raise InvalidInputError(
            f"long_documents is {long_documents!r}, expected one of {', '.join(map(repr, LONG_DOCUMENTS))}"
        )


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} is {value!r}, expected a whole number from 1 up")


def _check_sequence(values: object, name: str, of_what: str, limit: int) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{name} is {_type_of(values)}, expected a list of {of_what}: wrap it in list() or []")
    if not values:
        raise InvalidInputError(f"{name} is empty: there is nothing to score")
    if len(values) > limit:
        raise InvalidInputError(
            f"{name} has {len(values):,} entries, but the limit is {limit:,} a call;"
            " send fewer, or raise max_documents where the ranker is made"
        )


def check_text(text: object, name: str) -> None:
    """Check one text; it may be empty."""
    if not isinstance(text, str):
        raise InvalidInputError(f"{name} is {_type_of(text)}, expected a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidInputError(
            f"{name} holds a lone surrogate, {text[exc.start]!r} at character {exc.start}, which UTF-8 cannot encode;"
            " decode the text with the right encoding where it is read"
        ) from exc


def _type_of(value: object) -> str:
    return f"of type {type(value).__name__}"
