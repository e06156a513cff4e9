"""Which form a request has: by its path, and where two peers share one, by its body."""

from collections.abc import Mapping

from starlette.types import Scope

from clickbert.http.forms import cohere, infinity, text_embeddings_inference
from clickbert.http.forms.form import Form, RefusalError

_SHARED = "/rerank"
BY_PATH = {_SHARED: text_embeddings_inference.FORM, "/v1/rerank": cohere.V1, "/v2/rerank": cohere.V2}
_OTHER = cohere.V2  # in which other paths are refused


def path_of(scope: Scope) -> str:
    """Return the path within the app, which may be mounted in another one."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def form_of(scope: Scope, body: Mapping[str, object]) -> Form:
    """Return the form of a request to rank."""
    path = path_of(scope)
    if path != _SHARED or body.get("texts") is not None:  # null counts as left out
        return BY_PATH[path]
    if body.get("documents") is not None:
        return infinity.FORM
    raise RefusalError(422, "the body has neither `texts` nor `documents`")


def form_before_body(scope: Scope) -> Form:
    """Return the form in which a request is refused whose body was not read."""
    return BY_PATH.get(path_of(scope), _OTHER)
