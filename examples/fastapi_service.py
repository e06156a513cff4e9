"""A search service on FastAPI that ranks with ClickBERT, hundreds of searches at once in one process.

One `AsyncRanker` lives as long as the app: the lifespan makes it, all requests share its connection, and at the end it
is closed after the last of them. A search has a deadline, which goes down to the server, and a caller that hangs up
cancels its search there.

    pip install ./client fastapi uvicorn
    export CLICKBERT_URL=localhost:8001
    uvicorn --app-dir examples fastapi_service:app --port 8000
    curl localhost:8000/search --json '{"query": "coffee", "documents": ["a bar", "a cafe"], "top_k": 1}'

With `--workers 4` each process has a ranker of its own, and nothing else changes. Uvicorn reads bodies of any size: set
a limit in the proxy in front of it.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from clickbert import (
    AsyncRanker,
    ClickBertError,
    ConnectionFailedError,
    InvalidInputError,
    RankedDocument,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)

# Any other error is 502: the caller can do nothing about it.
STATUSES: dict[type[ClickBertError], int] = {
    InvalidInputError: 422,
    ServerOverloadedError: 503,
    ServerUnavailableError: 503,
    ConnectionFailedError: 503,
    ServerTimeoutError: 504,
}
logger = logging.getLogger("uvicorn.error")  # uvicorn shows it


class Search(BaseModel):
    """What a caller sends. `timeout` is in seconds."""

    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=1000)]
    top_k: Annotated[int | None, Field(ge=1)] = None
    timeout: Annotated[float, Field(gt=0, le=60)] = 2.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the ranker before the first request, and close it after the last."""
    async with AsyncRanker(os.environ.get("CLICKBERT_URL", "localhost:8001")) as app.state.ranker:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/search")
async def search(asked: Search, request: Request) -> dict[str, list[RankedDocument]]:
    """Rank the documents for the query, the best first. FastAPI itself would rank on for a caller who has gone."""
    ranker: AsyncRanker = request.app.state.ranker
    ranking = asyncio.create_task(ranker.rank(asked.query, asked.documents, asked.top_k, timeout=asked.timeout))
    hanging_up = asyncio.create_task(hung_up(request))
    try:
        await asyncio.wait([ranking, hanging_up], return_when=asyncio.FIRST_COMPLETED)
        if not ranking.done():
            raise HTTPException(499)  # nobody reads it
        return {"results": await ranking}
    finally:
        ranking.cancel()  # does nothing to one that is done
        hanging_up.cancel()


async def hung_up(request: Request) -> None:
    """Wait until the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@app.exception_handler(ClickBertError)
async def failed(request: Request, error: ClickBertError) -> JSONResponse:
    """Say whose fault it is. A server's whole message is for the log; it holds no text of a caller's either."""
    status = STATUSES.get(type(error), 502)
    if status == 422:
        return JSONResponse({"error": str(error)}, status)
    logger.warning("search failed: %s: %s", type(error).__name__, error)
    return JSONResponse({"error": type(error).__name__}, status, {"Retry-After": "1"} if status == 503 else None)


@app.exception_handler(RequestValidationError)
async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """Say what is wrong and where. FastAPI's own answer repeats the input, and fails if that is no valid JSON."""
    wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return JSONResponse({"error": "; ".join(wrong)}, 422)
