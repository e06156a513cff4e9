"""The pages, and the description of the API: files that go out as they are."""

from collections.abc import Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/openapi.json": ("openapi.json", "application/json"),
}
# They load nothing, speak to this server alone, and are shown in no other page.
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def static_routes() -> list[Route]:
    """Return a route for each file, read now."""
    return [Route(path, _endpoint(*what)) for path, what in _FILES.items()]


def _endpoint(name: str, media_type: str) -> Callable[[Request], Response]:
    content = resources.files("clickbert.http").joinpath("pages", name).read_bytes()
    return lambda _: Response(content, media_type=media_type, headers=_HEADERS)
