"""Rank documents with a BERT click model on a Triton server.

    from clickbert import Ranker

    with Ranker("localhost:8001") as ranker:
        for result in ranker.rank("coffee near me", ["a bar", "a cafe"]):
            print(result.score, result.text)

The model's tokenizer comes from the server, so there is nothing to copy and nothing to go stale. `AsyncRanker` is the
same for asyncio. `user_text` makes the user text from the titles that a user clicked, as training does. All errors are
`ClickBertError`s; `clickbert.errors` shows the family.
"""

import os

# gRPC looks at this once, when it is imported: see clickbert.channels.forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")

from clickbert.async_ranker import AsyncRanker
from clickbert.calls.session import RankedDocument
from clickbert.connection import Connection
from clickbert.errors import (
    AuthenticationError,
    ClickBertError,
    ConnectionFailedError,
    InvalidInputError,
    ModelNotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RankerClosedError,
    ServerError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from clickbert.ranker import Ranker
from clickbert.user_text import user_text

__all__ = [
    "AsyncRanker",
    "AuthenticationError",
    "ClickBertError",
    "Connection",
    "ConnectionFailedError",
    "InvalidInputError",
    "ModelNotFoundError",
    "PermissionDeniedError",
    "ProtocolError",
    "RankedDocument",
    "Ranker",
    "RankerClosedError",
    "ServerError",
    "ServerOverloadedError",
    "ServerTimeoutError",
    "ServerUnavailableError",
    "user_text",
]
