"""A search service on Flask and gunicorn that ranks with ClickBERT, in forked processes of several threads.

One `Ranker` stands at the top of the module. With `--preload` gunicorn imports the module once and then forks: every
worker process works on with its own connection, which its first call opens, and all threads of a worker share it.

    pip install ./client flask gunicorn
    export CLICKBERT_URL=localhost:8001
    gunicorn --chdir examples --preload --workers 2 --threads 16 flask_service:app
    curl localhost:8000/search --json '{"query": "coffee", "documents": ["a bar", "a cafe"], "top_k": 1}'

A thread waits while its call is at the server, so `--threads` is how many searches a process can have under way.
SIGHUP starts new workers and lets the old ones answer what they have; SIGTERM ends the same way.
"""

import os

from flask import Flask, abort, request
from flask.typing import ResponseReturnValue

from clickbert import (
    ClickBertError,
    ConnectionFailedError,
    InvalidInputError,
    Ranker,
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

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 8 * 2**20  # bytes; a larger body is 413 and never read whole
ranker = Ranker(os.environ.get("CLICKBERT_URL", "localhost:8001"))


@app.post("/search")
def search() -> ResponseReturnValue:
    """Rank the documents of a JSON body for its query. The ranker checks the types, so nothing is checked twice."""
    body = request.get_json()
    try:
        query, documents = body["query"], body["documents"]
    except (TypeError, KeyError):
        abort(400, "expected a JSON object with query and documents")
    ranked = ranker.rank(query, documents, body.get("top_k"), timeout=body.get("timeout", 2.0))
    return {"results": ranked}


@app.errorhandler(RecursionError)
def too_deep(error: RecursionError) -> ResponseReturnValue:
    """Refuse JSON that is nested thousands of times."""
    return {"error": "the JSON is nested too deep"}, 400


@app.errorhandler(ClickBertError)
def failed(error: ClickBertError) -> ResponseReturnValue:
    """Say whose fault it is. A server's whole message is for the log; it holds no text of a caller's either."""
    status = STATUSES.get(type(error), 502)
    if status == 422:
        return {"error": str(error)}, status
    app.logger.warning("search failed: %s: %s", type(error).__name__, error)
    return {"error": type(error).__name__}, status, {"Retry-After": "1"} if status == 503 else {}
