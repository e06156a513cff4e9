"""The rerank clients of LangChain, LlamaIndex, Haystack, Cohere and infinity, each with this project's URL.

A function for each: it makes the client as its users do, and returns what ranks a query's documents with it.
"""

import asyncio

from task import Rank, Ranking, Target, run

ALL = 1000  # to a client that must be told a number


def cohere_v2(at: Target) -> Rank:
    import cohere

    client = cohere.ClientV2(api_key=at.token, base_url=at.url)

    def rank(query: str, documents: list[str]) -> Ranking:
        answer = client.rerank(model=at.model, query=query, documents=documents, top_n=at.top_n)
        return [(result.index, result.relevance_score) for result in answer.results]

    return rank


def cohere_v2_async(at: Target) -> Rank:
    import cohere

    async def ask(query: str, documents: list[str]) -> Ranking:
        client = cohere.AsyncClientV2(api_key=at.token, base_url=at.url)
        answer = await client.rerank(model=at.model, query=query, documents=documents)
        return [(result.index, result.relevance_score) for result in answer.results]

    return lambda query, documents: asyncio.run(ask(query, documents))


def cohere_v1(at: Target) -> Rank:
    import cohere

    client = cohere.Client(api_key=at.token, base_url=at.url)

    def rank(query: str, documents: list[str]) -> Ranking:
        objects = [{"text": document} for document in documents]
        answer = client.rerank(model=at.model, query=query, documents=objects, return_documents=True)
        for result in answer.results:
            assert result.document.text == documents[result.index]
        return [(result.index, result.relevance_score) for result in answer.results]

    return rank


def infinity(at: Target) -> Rank:
    return _infinity(at, model=at.model, top_n=at.top_n, return_documents=True)


def infinity_raw(at: Target) -> Rank:
    """Raw scores, from the model that infinity's client names where its caller names none."""
    return _infinity(at, raw_scores=True)


def _infinity(at: Target, **settings: object) -> Rank:
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    client = AuthenticatedClient(base_url=at.url, token=at.token, raise_on_unexpected_status=True)

    def rank(query: str, documents: list[str]) -> Ranking:
        results = rerank.sync(client=client, body=RerankInput(query=query, documents=documents, **settings)).results
        for result in results:
            assert not settings.get("return_documents") or result.document == documents[result.index]
        return [(result.index, result.relevance_score) for result in results]

    return rank


def langchain_cohere(at: Target) -> Rank:
    from langchain_cohere import CohereRerank

    return _langchain(CohereRerank(cohere_api_key=at.token, base_url=at.url, model=at.model, top_n=at.top_n))


def langchain_infinity(at: Target) -> Rank:
    from infinity_client.client import Client
    from langchain_community.document_compressors import InfinityRerank

    headers = {"Authorization": f"Bearer {at.token}"}
    client = Client(base_url=at.url, headers=headers, raise_on_unexpected_status=True)
    return _langchain(InfinityRerank(client=client, model=at.model, top_n=at.top_n))


def langchain_jina(at: Target) -> Rank:
    from langchain_community.document_compressors import JinaRerank, jina_rerank

    jina_rerank.JINA_API_URL = f"{at.url}/v1/rerank"  # it has no parameter for it
    return _langchain(JinaRerank(jina_api_key=at.token, model=at.model, top_n=at.top_n))


def _langchain(compressor) -> Rank:
    from langchain_core.documents import Document

    def rank(query: str, documents: list[str]) -> Ranking:
        given = [Document(text, metadata={"index": index}) for index, text in enumerate(documents)]
        results = compressor.compress_documents(given, query)
        return [(result.metadata["index"], result.metadata["relevance_score"]) for result in results]

    return rank


def llama_index_cohere(at: Target) -> Rank:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _llama_index(CohereRerank(api_key=at.token, base_url=at.url, model=at.model, top_n=at.top_n or ALL))


def llama_index_jina(at: Target) -> Rank:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _llama_index(JinaRerank(api_key=at.token, base_url=f"{at.url}/v1", model=at.model, top_n=at.top_n or ALL))


def llama_index_tei(at: Target) -> Rank:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return _llama_index(TextEmbeddingInference(base_url=at.url, auth_token=f"Bearer {at.token}", top_n=at.top_n or ALL))


def _llama_index(postprocessor) -> Rank:
    from llama_index.core.schema import NodeWithScore, TextNode

    def rank(query: str, documents: list[str]) -> Ranking:
        nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(documents)]
        return [(int(found.node.id_), found.score) for found in postprocessor.postprocess_nodes(nodes, query_str=query)]

    return rank


def haystack_cohere(at: Target) -> Rank:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    key = Secret.from_token(at.token)
    return _haystack(CohereRanker(model=at.model, api_key=key, api_base_url=at.url, top_k=at.top_n or ALL))


def haystack_jina(at: Target) -> Rank:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    key, url = Secret.from_token(at.token), f"{at.url}/v1/rerank"
    return _haystack(JinaRanker(model=at.model, api_key=key, base_url=url, top_k=at.top_n))


def haystack_tei(at: Target) -> Rank:
    return _haystack(_haystack_tei(at))


def haystack_tei_raw(at: Target) -> Rank:
    return _haystack(_haystack_tei(at, raw_scores=True))


def haystack_tei_async(at: Target) -> Rank:
    component = _haystack_tei(at)

    def rank(query: str, documents: list[str]) -> Ranking:
        found = asyncio.run(component.run_async(query=query, documents=_haystack_documents(documents)))
        return [(int(result.id), result.score) for result in found["documents"]]

    return rank


def _haystack_tei(at: Target, **settings: bool):
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return HuggingFaceTEIRanker(
        url=at.url, token=Secret.from_token(at.token), top_k=at.top_n or ALL, max_retries=1, **settings
    )


def _haystack(component) -> Rank:
    def rank(query: str, documents: list[str]) -> Ranking:
        found = component.run(query=query, documents=_haystack_documents(documents))
        return [(int(result.id), result.score) for result in found["documents"]]

    return rank


def _haystack_documents(texts: list[str]) -> list:
    from haystack import Document

    return [Document(id=str(index), content=text) for index, text in enumerate(texts)]  # same texts, two documents


if __name__ == "__main__":
    run(
        [
            cohere_v2,
            cohere_v2_async,
            cohere_v1,
            infinity,
            infinity_raw,
            langchain_cohere,
            langchain_infinity,
            langchain_jina,
            llama_index_cohere,
            llama_index_jina,
            llama_index_tei,
            haystack_cohere,
            haystack_jina,
            haystack_tei,
            haystack_tei_raw,
            haystack_tei_async,
        ]
    )
