"""The form of Cohere's /v1/rerank and /v2/rerank, with what Jina's has beside it, and infinity's under `/v1`.

Their fields do not contradict each other, so one answer serves all three: `meta` is Cohere's, `usage` Jina's and
infinity's. No figure is billed, so there are no `billed_units`.
"""

from typing import Any

from clickbert.http.forms.form import Fields, Form, Ranking, RefusalError, Rerank
from clickbert.http.forms.infinity import FORM as INFINITY


def _read(fields: Fields) -> Rerank:
    if not fields.equals("rank_fields", ["text"]):
        raise RefusalError(422, "rank_fields is not supported: a document is ranked by its `text`, so leave it out")
    return INFINITY.read(fields)


def _answer(version: str, ranking: Ranking) -> Any:
    texts = ranking.asked.return_texts
    answer = INFINITY.answer(ranking)
    for result in answer["results"]:
        if texts:
            result["document"] = {"text": result["document"]}
    return {
        **answer,
        "meta": {"api_version": {"version": version}, "tokens": {"input_tokens": ranking.tokens, "output_tokens": 0}},
    }


def _error(_: int, message: str) -> Any:
    return {"message": message, "detail": message}  # Cohere's field, and the one that Jina's clients show


V1 = Form(_read, lambda ranking: _answer("1", ranking), _error)
V2 = Form(_read, lambda ranking: _answer("2", ranking), _error)
