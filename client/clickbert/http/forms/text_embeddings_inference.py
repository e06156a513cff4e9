"""The form of Hugging Face's text-embeddings-inference: `texts`, and a bare list for an answer."""

from typing import Any

from clickbert.http.forms.form import Fields, Form, Ranking, Rerank

_ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}


def _read(fields: Fields) -> Rerank:
    right = fields.choice("truncation_direction", "right", "left") == "right"
    return Rerank(
        fields.text("query"),
        fields.texts("texts"),
        fields.optional_text("model"),
        return_texts=fields.flag("return_text"),
        raw_scores=fields.flag("raw_scores"),
        # Left out it is what the server was started with, `auto_truncate`. Texts are cut at their end alone, so with
        # "left" only what fits is answered.
        may_cut=fields.flag("truncate", default=True) and right,
    )


def _answer(ranking: Ranking) -> Any:
    texts = ranking.asked.return_texts
    return [
        {"index": each.index, "score": each.score, **({"text": each.text} if texts else {})}
        for each in ranking.documents
    ]


def _error(status: int, message: str) -> Any:
    return {"error": message, "error_type": _ERROR_TYPES.get(status, "Validation" if status < 500 else "Backend")}


FORM = Form(_read, _answer, _error)
