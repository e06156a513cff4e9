"""The form of michaelfeil/infinity: `documents`, an answer like Cohere's, errors like OpenAI's or FastAPI's."""

import time
from typing import Any

from clickbert.http.forms.form import Fields, Form, Ranking, Rerank

_NO_MODEL = "default/not-specified"  # what its clients send where the caller names none


def _read(fields: Fields) -> Rerank:
    model = fields.optional_text("model")
    return Rerank(
        fields.text("query"),
        fields.texts("documents"),
        None if model == _NO_MODEL else model,
        top_n=fields.count("top_n"),
        return_texts=fields.flag("return_documents"),
        raw_scores=fields.flag("raw_scores"),
    )


def _answer(ranking: Ranking) -> Any:
    texts = ranking.asked.return_texts
    return {
        "object": "rerank",
        "id": ranking.identifier,
        "created": int(time.time()),
        "model": ranking.model,
        "results": [
            {"relevance_score": each.score, "index": each.index, **({"document": each.text} if texts else {})}
            for each in ranking.documents
        ],
        "usage": {"prompt_tokens": ranking.tokens, "total_tokens": ranking.tokens},
    }


def _error(status: int, message: str) -> Any:
    if status == 422:  # FastAPI's own, which infinity sends and its client reads
        return {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
    return {"error": {"message": message, "type": None, "param": None, "code": status}}


FORM = Form(_read, _answer, _error)
