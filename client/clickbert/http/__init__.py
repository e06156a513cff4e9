"""Rerank over HTTP, in the forms of text-embeddings-inference, infinity, Cohere and Jina.

`clickbert.http:app` is the ASGI app for any server, set up by the environment (`clickbert.http.settings`); `clickbert
serve` runs it on uvicorn. The distribution's extra `http` brings what this room imports.
"""

from typing import Any

try:
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
except ImportError as exc:
    raise ImportError(
        f"clickbert.http needs {exc.name}, which comes with an extra: pip install 'clickbert[http]'"
    ) from exc


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, and not when a module of this room is imported."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clickbert.http.app import make_app  # noqa: PLC0415 (they import this module)
    from clickbert.http.settings import Settings  # noqa: PLC0415

    globals()["app"] = app = make_app(Settings.from_environment())
    return app
