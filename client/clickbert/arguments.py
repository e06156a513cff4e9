"""Checks of what callers pass. Each raises `InvalidInputError`, before anything is sent."""

from collections.abc import Sequence

from clickbert.errors import InvalidInputError

MAX_TIMEOUT = 365 * 24 * 3600.0  # seconds; gRPC's clock, in nanoseconds, overflows two centuries later


def check_settings(model: str, timeout: float, max_documents: int) -> None:
    """Check a ranker's own settings."""
    _check_text(model, "model")
    if not model:
        raise InvalidInputError("model is empty, expected a model's name")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidInputError(f"timeout is {timeout!r}, expected seconds above 0, at most a year")
    _check_count("max_documents", max_documents)


def check_query(query: str) -> None:
    """Check one query; it may be empty."""
    _check_text(query, "query")


def check_documents(documents: Sequence[str], max_documents: int) -> tuple[str, ...]:
    """Return a copy of the documents: the caller may change the list while the call runs."""
    _check_sequence(documents, "documents", "texts", max_documents)
    for index, document in enumerate(documents):
        _check_text(document, f"documents[{index}]")
    return tuple(documents)


def check_pairs(pairs: Sequence[tuple[str, str]], max_documents: int) -> tuple[tuple[str, str], ...]:
    """Return a copy of the (query, document) pairs."""
    _check_sequence(pairs, "pairs", "(query, document) pairs", max_documents)
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise InvalidInputError(f"pairs[{index}] is {_type_of(pair)}, expected (query, document)")
        query, document = pair
        _check_text(query, f"pairs[{index}][0]")
        _check_text(document, f"pairs[{index}][1]")
        checked.append((query, document))
    return tuple(checked)


def check_top_k(top_k: int | None) -> None:
    """Check how many results are wanted; None is all."""
    if top_k is not None:
        _check_count("top_k", top_k)


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


def _check_text(text: object, name: str) -> None:
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
