"""A LangChain document compressor that ranks with clickbert, over gRPC: no HTTP server stands between.

    pip install ./client langchain-core
    python examples/langchain_reranker.py localhost:8001     # where Triton's gRPC port is

Put it behind any retriever, with langchain_classic's `ContextualCompressionRetriever` for one. It closes no ranker:
who makes one closes it. Both connect on their first call, so the one that is not used costs nothing.
"""

import sys
from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from clickbert import AsyncRanker, RankedDocument, Ranker


class ClickBertReranker(BaseDocumentCompressor):
    """Returns the documents best first, the `top_n` best if given, with `relevance_score` in their metadata."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    ranker: Ranker
    async_ranker: AsyncRanker
    top_n: int | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """Rank them; LangChain calls it."""
        texts = [document.page_content for document in documents]
        return _scored(documents, self.ranker.rank(query, texts, self.top_n) if texts else [])

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> Sequence[Document]:
        """Rank them without blocking the event loop."""
        texts = [document.page_content for document in documents]
        return _scored(documents, await self.async_ranker.rank(query, texts, self.top_n) if texts else [])


def _scored(documents: Sequence[Document], ranking: Sequence[RankedDocument]) -> list[Document]:
    found = [(documents[item.index], item.score) for item in ranking]
    return [doc.model_copy(update={"metadata": {**doc.metadata, "relevance_score": score}}) for doc, score in found]


if __name__ == "__main__":
    with Ranker(sys.argv[1]) as ranker:
        reranker = ClickBertReranker(ranker=ranker, async_ranker=AsyncRanker(sys.argv[1]), top_n=2)
        texts = ["a teapot", "waterproof boots", "sandals for the beach"]
        for document in reranker.compress_documents([Document(text) for text in texts], "shoes for the rain"):
            print(f"{document.metadata['relevance_score']:.4f}  {document.page_content}")
