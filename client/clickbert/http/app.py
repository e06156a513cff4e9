"""The ASGI app: its routes, and what every request goes through."""

import hmac
import math
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clickbert.http.bodies import read_body
from clickbert.http.failures import HANDLERS
from clickbert.http.forms.choice import BY_PATH, form_of
from clickbert.http.forms.form import Fields, Ranking, RefusalError
from clickbert.http.hang_up import unless_hung_up
from clickbert.http.metrics import HUNG_UP, Watch
from clickbert.http.served import Served
from clickbert.http.settings import Settings
from clickbert.http.static import static_routes
from clickbert.wire.transport import AsyncTransport


def make_app(settings: Settings, transport: AsyncTransport | None = None) -> Starlette:
    """Return the app. It connects to Triton at the first call; `transport` replaces the connection, for tests."""
    registry = CollectorRegistry()
    app = _App(settings, registry)
    routes = [
        *(Route(path, app.rerank, methods=["POST"]) for path in BY_PATH),
        Route("/v1/models", app.models),
        Route("/info", app.info),
        Route("/health", app.health),
        Route("/metrics", app.metrics),
        *static_routes(),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        app.served = Served(settings, registry, transport)
        try:
            yield
        finally:
            await app.served.close()

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-timeout"],
    )
    starlette = Starlette(
        routes=routes,
        middleware=[
            Middleware(Watch, registry=registry, paths=[route.path for route in routes]),
            *([cors] if settings.cors_origins else []),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    starlette.router.redirect_slashes = False  # a path that is not described is not there
    return starlette


class _App:
    """The endpoints. `served` is there from the app's start to its end."""

    served: Served

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._settings, self._registry = settings, registry
        self._began = int(time.time())

    async def rerank(self, request: Request) -> Response:
        """Rank, in whatever form the path and the body say."""
        began = time.monotonic()
        self._check_token(request)
        timeout = self._timeout(request)
        try:
            body = await read_body(request, self._settings.max_bytes, timeout)
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        form = request.state.form = form_of(request.scope, body)
        asked = form.read(Fields(body, self._settings.max_documents))
        del body  # unknown fields, which may be many times as large as their JSON, do not wait with the call
        model = self.served.find(asked.model)
        left = max(timeout - (time.monotonic() - began), 0.001)
        scored = await unless_hung_up(request.receive, self.served.rank(model, asked, left))
        if scored is None:
            return Response(status_code=HUNG_UP)
        return JSONResponse(form.answer(Ranking(asked, str(uuid.uuid4()), model, scored.documents, scored.tokens)))

    async def models(self, request: Request) -> Response:
        """List the models, as OpenAI's API does; each was `created` when this process began."""
        self._check_token(request)
        listed = [
            {"id": model, "object": "model", "created": self._began, "owned_by": "clickbert"}
            for model in self.served.models
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def info(self, request: Request) -> Response:
        """Describe the first model, as text-embeddings-inference does, as far as it is known here."""
        self._check_token(request)
        model = self.served.models[0]
        release = await self.served.release(model, self._timeout(request))
        labels = dict(enumerate(release.labels))
        return JSONResponse(
            {
                "model_id": model,
                "served_model_name": model,
                "model_sha": None,
                "model_version": release.version,
                "model_type": {
                    "reranker": {
                        "id2label": {str(number): label for number, label in labels.items()},
                        "label2id": {label: number for number, label in labels.items()},
                    }
                },
                "max_input_length": release.tokenizer.max_length,
                "max_batch_tokens": None if math.isinf(release.limits.max_tokens) else int(release.limits.max_tokens),
                "max_client_batch_size": self._settings.max_documents,
                "auto_truncate": True,
                "version": _version(),
            }
        )

    async def health(self, _: Request) -> Response:
        """Tell whether every model can rank."""
        failing = await self.served.failing()
        if failing:
            return JSONResponse({"status": "unavailable", "models": failing}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Answer Prometheus."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _check_token(self, request: Request) -> None:
        wanted = self._settings.token
        if wanted is None:
            return
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(sent.strip().encode(), wanted.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise RefusalError(
                401, "this server wants a valid token: Authorization: Bearer ...", {"www-authenticate": "Bearer"}
            )

    def _timeout(self, request: Request) -> float:
        """Return the seconds that the call may take."""
        text = request.headers.get("x-request-timeout")
        if text is None:
            return self._settings.timeout
        try:
            wanted = float(text)
        except ValueError:
            wanted = math.nan
        if not 0 < wanted < math.inf:
            raise RefusalError(400, "X-Request-Timeout is not a number of seconds above 0")
        return min(wanted, self._settings.timeout)


def _version() -> str:
    try:
        return metadata.version("clickbert")
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"
