"""The one map from the client's errors to HTTP's statuses, and how refusals go out, in the form of their request."""

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clickbert.errors import (
    ClickBertError,
    ConnectionFailedError,
    InvalidInputError,
    ModelNotFoundError,
    RankerClosedError,
    ServerError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from clickbert.http.forms.choice import form_before_body
from clickbert.http.forms.form import Form, RefusalError

_logger = logging.getLogger("clickbert.http")
_SOON = {"retry-after": "1"}
# The first that fits. A caller is not told the message, which names the server and how it is reached; the log is.
_ANSWERS: tuple[tuple[type[ClickBertError], int, str], ...] = (
    # Its message does not tell whether others are before this call, or its own documents alone are too many.
    (
        ServerOverloadedError,
        429,
        "the model server is overloaded: try again after a pause, send fewer documents, or allow more time",
    ),
    (ServerTimeoutError, 504, "no result within the time of this call: allow more, or send fewer documents"),
    (ServerUnavailableError, 503, "the model server does not serve this model right now: try again later"),
    (ConnectionFailedError, 503, "the model server cannot be reached: try again later"),
    (ModelNotFoundError, 503, "the model server does not have this model: whoever runs this server must load it"),
    (RankerClosedError, 503, "this server is ending: try again"),
    # A wrong token, an answer that breaks the contract: nothing that a caller could change.
    (ServerError, 502, "the model server failed: whoever runs this server finds the reason in its log"),
)


def refusal(error: ClickBertError) -> RefusalError:
    """Return how a failed call is answered."""
    if isinstance(error, InvalidInputError):
        return RefusalError(422, str(error))
    for kind, status, message in _ANSWERS:
        if isinstance(error, kind):
            return RefusalError(status, message, _SOON if status in (429, 503) else None)
    return RefusalError(500, "this server failed: whoever runs it finds the reason in its log")


def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RefusalError)
    return _error(request, exc.status, exc.message, exc.headers)


def _failed(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ClickBertError)
    answer = refusal(exc)
    if answer.status >= 500:
        _logger.warning("answered %d: %s: %s", answer.status, type(exc).__name__, exc)
    return _refused(request, answer)


def _no_route(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    allowed = (exc.headers or {}).get("Allow")
    message = f"this path takes {allowed} alone" if allowed else "this server has no such path: see /docs"
    return _error(request, exc.status_code, message, dict(exc.headers or {}))


def _error(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    form: Form = getattr(request.state, "form", None) or form_before_body(request.scope)
    return JSONResponse(form.error(status, message), status, headers)


HANDLERS = {RefusalError: _refused, HTTPException: _no_route, ClickBertError: _failed}
