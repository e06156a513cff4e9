"""What the app is told: by the environment for any ASGI server, and by the options of `clickbert serve`.

    CLICKBERT_URL              Triton's host and gRPC port, or several with commas (localhost:8001)
    CLICKBERT_CA_FILE, CLICKBERT_CERTIFICATE_FILE, CLICKBERT_KEY_FILE
                               for TLS to Triton, as in `clickbert.Connection`
    CLICKBERT_TOKEN            the token that Triton or its gateway wants
    CLICKBERT_MODELS           the models to serve, with commas; the first answers where a body names none
    CLICKBERT_HTTP_TOKEN       the token that callers must send; unset: none
    CLICKBERT_TIMEOUT          seconds of a call, and the most that a caller may ask for (10)
    CLICKBERT_MAX_DOCUMENTS    documents of a call (1000)
    CLICKBERT_MAX_BYTES        bytes of a body (2,000,000)
    CLICKBERT_CORS_ORIGINS     web origins whose pages may call, with commas; unset: none

An empty variable counts as unset.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from clickbert.calls.arguments import MAX_TIMEOUT
from clickbert.connection import Connection
from clickbert.errors import InvalidInputError
from clickbert.wire.protocol import DEFAULT_MODEL

_TOKEN = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"\*|https?://[^\s/,]+")
_NUMBER = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Settings:
    """Checked when made; raises `InvalidInputError`, which shows no token."""

    connection: Connection
    models: tuple[str, ...] = (DEFAULT_MODEL,)  # the first answers where a body names none
    token: str | None = field(default=None, repr=False)  # what callers must send
    timeout: float = 10.0  # seconds, reading the body included
    max_documents: int = 1000
    max_bytes: int = 2_000_000  # JSON is parsed in the event loop: 0.1 s a megabyte at worst
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.models or not all(self.models) or len(set(self.models)) < len(self.models):
            raise InvalidInputError("the models to serve: expected names, each once")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise InvalidInputError(
                "the token for callers (CLICKBERT_HTTP_TOKEN) is empty or holds a space, a line break or another"
                " character that a header cannot carry; expected printable ASCII"
            )
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise InvalidInputError(f"the timeout is {self.timeout:g}, expected seconds above 0, at most a year")
        if self.max_documents < 1 or self.max_bytes < 1:
            raise InvalidInputError("the most documents and the most bytes of a call: expected numbers from 1 up")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidInputError(
                    f"the CORS origin {origin!r}: expected scheme and host as browsers send them, like"
                    " https://shop.example, or * for any"
                )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables above."""

        def read(name: str, default: str = "") -> str:
            return environment.get(f"CLICKBERT_{name}") or default

        return cls(
            Connection.from_environment(environment),
            _listed(read("MODELS", DEFAULT_MODEL)),
            read("HTTP_TOKEN") or None,
            _seconds(read("TIMEOUT", "10")),
            _number("CLICKBERT_MAX_DOCUMENTS", read("MAX_DOCUMENTS", "1000")),
            _number("CLICKBERT_MAX_BYTES", read("MAX_BYTES", "2000000")),
            _listed(read("CORS_ORIGINS")),
        )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which the check refuses


def _number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidInputError(f"{name}: expected a whole number from 1 up")
    return int(text)
