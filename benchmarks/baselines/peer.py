"""Another rerank server with the same checkpoint, asked in Cohere's form over HTTP (Infinity has it)."""

from __future__ import annotations

import contextlib
import http.client
import json
from urllib.parse import urlsplit

from benchmarks import BenchmarkError
from benchmarks.load_gen.workload import Request

MODEL = "clickbert"  # the name under which it serves the model
TIMEOUT = 120  # seconds


class Peer:
    """A running peer, asked by any number of threads, never by way of a proxy.

    Each request has a connection of its own, because the peer closes one that idles between two turns. To open one on
    this machine takes less than a thousandth of a request.

    Raises:
        BenchmarkError: the URL is none.
    """

    def __init__(self, url: str) -> None:
        self.url, parts = url.rstrip("/"), urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            self.kind, self.host, self.port, self.path = (
                kinds[parts.scheme],
                parts.hostname or "",
                parts.port,
                parts.path,
            )
        except (KeyError, ValueError):
            self.host = ""
        if not self.host:
            raise BenchmarkError(f"{url!r} is not the URL of a rerank server, like http://127.0.0.1:7997")

    def score(self, request: Request) -> list[float]:
        """The click probabilities of a request's candidates, in their order.

        Raises:
            BenchmarkError: it answers with an error, in another form, or not at all.
        """
        body = json.dumps({"model": MODEL, "query": request.query, "documents": request.documents})
        try:
            with contextlib.closing(self.kind(self.host, self.port, timeout=TIMEOUT)) as connection:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", f"{self.path.rstrip('/')}/rerank", body, headers)
                answer = connection.getresponse()
                content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise BenchmarkError(f"{self.url} does not answer: {exc}; check that the rerank server runs there") from exc
        if answer.status != http.HTTPStatus.OK:
            raise BenchmarkError(f"{self.url} answered {answer.status}: {content[:200]!r}")
        try:
            results = sorted(json.loads(content)["results"], key=lambda result: int(result["index"]))
            return [float(result["relevance_score"]) for result in results]
        except (ValueError, KeyError, TypeError) as exc:
            raise BenchmarkError(
                f"{self.url} did not answer in the form of a rerank server: {content[:200]!r}"
            ) from exc
