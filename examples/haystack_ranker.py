"""A Haystack component that ranks with clickbert, over gRPC: no HTTP server stands between.

    pip install ./client haystack-ai
    python examples/haystack_ranker.py localhost:8001     # where Triton's gRPC port is

A `Pipeline` runs it, awaits it, closes it, and writes it to YAML with its parameters. A token is read from the
environment (CLICKBERT_TOKEN), so that no YAML holds it. Haystack reads a component of yours from YAML again with
`Pipeline.loads(..., allowed_modules=["haystack_ranker"])`.
"""

import os
import sys
from dataclasses import replace

from haystack import Document, component

from clickbert import AsyncRanker, Connection, RankedDocument, Ranker


@component
class ClickBertRanker:
    """Returns the documents best first, the `top_k` best if given, each with its click probability as `score`."""

    def __init__(self, url: str, model: str = "clickbert_onnx", top_k: int | None = None) -> None:
        self.url, self.model, self.top_k = url, model, top_k
        connection = Connection(url, token=os.environ.get("CLICKBERT_TOKEN"))
        self._ranker, self._async_ranker = Ranker(connection, model), AsyncRanker(connection, model)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Rank them; Haystack calls it."""
        texts = [document.content or "" for document in documents]
        limit = self.top_k if top_k is None else top_k
        return _scored(documents, self._ranker.rank(query, texts, limit) if texts else [])

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rank them without blocking the event loop."""
        texts = [document.content or "" for document in documents]
        limit = self.top_k if top_k is None else top_k
        return _scored(documents, await self._async_ranker.rank(query, texts, limit) if texts else [])

    def close(self) -> None:
        """Close the connection of `run`."""
        self._ranker.close()

    async def close_async(self) -> None:
        """Close both connections."""
        self._ranker.close()
        await self._async_ranker.close()


def _scored(documents: list[Document], ranking: list[RankedDocument]) -> dict[str, list[Document]]:
    return {"documents": [replace(documents[item.index], score=item.score) for item in ranking]}


if __name__ == "__main__":
    ranker = ClickBertRanker(sys.argv[1], top_k=2)
    texts = ["a teapot", "waterproof boots", "sandals for the beach"]
    for document in ranker.run("shoes for the rain", [Document(content=text) for text in texts])["documents"]:
        print(f"{document.score:.4f}  {document.content}")
    ranker.close()
