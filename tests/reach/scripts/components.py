"""The components of examples/, as LangChain and Haystack run them, on Triton itself."""

import asyncio

from task import Rank, Ranking, Target, run


def langchain(at: Target) -> Rank:
    from langchain_core.documents import Document
    from langchain_reranker import ClickBertReranker

    from clickbert import AsyncRanker, Ranker

    reranker = ClickBertReranker(ranker=Ranker(at.url, at.model), async_ranker=AsyncRanker(at.url, at.model))

    def rank(query: str, documents: list[str]) -> Ranking:
        given = [Document(text, id=str(index), metadata={"from": index}) for index, text in enumerate(documents)]
        found = reranker.compress_documents(given, query)
        assert found == asyncio.run(reranker.acompress_documents(given, query))
        assert not any("relevance_score" in document.metadata for document in given), "the caller's own stay"
        assert all(document.metadata["from"] == int(document.id) for document in found)
        return [(int(document.id), document.metadata["relevance_score"]) for document in found]

    return rank


def langchain_best(at: Target) -> Rank:
    """The two best, behind a retriever."""
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_reranker import ClickBertReranker

    from clickbert import AsyncRanker, Ranker

    class All(BaseRetriever):
        """Finds every document."""

        documents: list[Document]

        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
            return self.documents

    connections = {"ranker": Ranker(at.url, at.model), "async_ranker": AsyncRanker(at.url, at.model)}
    reranker = ClickBertReranker(**connections, top_n=2)

    def rank(query: str, documents: list[str]) -> Ranking:
        retriever = All(documents=[Document(text, id=str(index)) for index, text in enumerate(documents)])
        chain = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=retriever)
        found = chain.invoke(query)
        assert found == asyncio.run(chain.ainvoke(query))
        return [(int(document.id), document.metadata["relevance_score"]) for document in found]

    return rank


def haystack(at: Target) -> Rank:
    """In a pipeline that was written to YAML and read again."""
    from haystack import Document, Pipeline
    from haystack_ranker import ClickBertRanker

    made = Pipeline()
    made.add_component("ranker", ClickBertRanker(at.url, at.model))
    pipeline = Pipeline.loads(made.dumps(), allowed_modules=["haystack_ranker"])

    def rank(query: str, documents: list[str]) -> Ranking:
        given = [Document(id=str(index), content=text) for index, text in enumerate(documents)]
        asked = {"ranker": {"query": query, "documents": given}}
        found = pipeline.run(asked)["ranker"]["documents"]
        assert found == asyncio.run(pipeline.run_async(asked))["ranker"]["documents"]
        best = pipeline.run({"ranker": {**asked["ranker"], "top_k": 2}})["ranker"]["documents"]
        assert best == found[:2]
        return [(int(document.id), document.score) for document in found]

    return rank


def nothing_to_rank(at: Target) -> Rank:
    """A retriever that found nothing."""
    from haystack_ranker import ClickBertRanker
    from langchain_reranker import ClickBertReranker

    from clickbert import AsyncRanker, Ranker

    reranker = ClickBertReranker(ranker=Ranker(at.url, at.model), async_ranker=AsyncRanker(at.url, at.model))
    component = ClickBertRanker(at.url, at.model)

    def rank(query: str, documents: list[str]) -> Ranking:
        assert component.run(query, []) == asyncio.run(component.run_async(query, [])) == {"documents": []}
        assert asyncio.run(reranker.acompress_documents([], query)) == []
        return reranker.compress_documents([], query)

    return rank


if __name__ == "__main__":
    run([langchain, langchain_best, haystack, nothing_to_rank])
