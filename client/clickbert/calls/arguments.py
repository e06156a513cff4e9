"""Checks of what callers pass. Each raises `InvalidInputError`, before anything is sent."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from clickbert.errors import InvalidInputError
from clickbert.telemetry.observer import Observer

MAX_TIMEOUT = 365 * 24 * 3600.0  # seconds; gRPC's clock, in nanoseconds, overflows two centuries later
LongDocuments = Literal["truncate", "passages"]
Mask = Callable[[str], str]
TRUNCATE, PASSAGES = LONG_DOCUMENTS = get_args(LongDocuments)
Truncate = Literal["longest", "document"]
LONGEST, DOCUMENT = TRUNCATES = get_args(Truncate)


def check_settings(
    model: str, timeout: float, max_documents: int, retries: int, mask: Mask | None, observers: Sequence[Observer]
) -> None:
    """Check a ranker's own settings."""
    check_text(model, "model")
    if not model:
        raise InvalidInputError("model is empty, expected a model's name")
    check_timeout(timeout)
    _check_count("max_documents", max_documents)
    _check_count("retries", retries, least=0)
    if mask is not None and not callable(mask):
        raise InvalidInputError(f"mask is {_type_of(mask)}, expected a function from text to text, or None")
    if isinstance(observers, str | bytes) or not isinstance(observers, Sequence):
        raise InvalidInputError(f"observers is {_type_of(observers)}, expected a list of observers: wrap it in []")
    for index, observer in enumerate(observers):
        if not callable(getattr(observer, "observe", None)) or not callable(getattr(observer, "headers", None)):
            raise InvalidInputError(
                f"observers[{index}] is {_type_of(observer)}, expected the methods observe(call) and headers();"
                " see clickbert.telemetry.observer"
            )


def check_timeout(timeout: float) -> None:
    """Check how long a call may take."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidInputError(f"timeout is {_shown(timeout)}, expected seconds above 0, at most a year")


def apply_mask(mask: Mask, texts: Sequence[str]) -> list[str]:
    """Return the texts as `mask` makes them; one that occurs twice is masked once."""
    masked: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        failure = ""
        try:
            result = mask(text)
        except Exception as exc:
            failure = type(exc).__name__
        if failure:  # raised out here, so that no error holds another one that may hold the text
            raise InvalidInputError(f"mask failed with {failure} on a text of {_described(text)}")
        check_text(result, "what mask returned")
        masked[text] = result
    return [masked[text] for text in texts]


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


def check_reading(long_documents: str, truncate: str) -> None:
    """Check how pairs beyond the model's limit are to be read."""
    _check_choice("long_documents", long_documents, LONG_DOCUMENTS)
    _check_choice("truncate", truncate, TRUNCATES)
    if long_documents == PASSAGES and truncate != LONGEST:
        raise InvalidInputError(
            f"truncate is {truncate!r}, but with long_documents={PASSAGES!r} documents are not truncated: leave one out"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInputError(f"{name} is {_shown(value)}, expected one of {', '.join(map(repr, choices))}")


def _check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInputError(f"{name} is {_shown(value)}, expected a whole number from {least} up")


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
    surrogate = -1
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        surrogate = exc.start
    if surrogate >= 0:  # raised out here, because Python's error holds the whole text
        raise InvalidInputError(
            f"{name} ({_described(text)}) holds a lone surrogate at character {surrogate}, which UTF-8 cannot"
            " encode; decode the text with the right encoding where it is read"
        )


def _type_of(value: object) -> str:
    return f"of type {type(value).__name__}"


def _shown(value: object) -> str:
    """Show a number; of anything else only its type: it may be a text in the wrong place."""
    return repr(value) if isinstance(value, int | float) else _type_of(value)


def _described(text: str) -> str:
    """Describe a text without showing it: enough for whoever has the texts to find it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{len(text):,} characters, SHA-256 {digest}..."
