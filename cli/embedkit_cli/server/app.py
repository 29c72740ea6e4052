"""The application: routes, their description, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import Parameter, Signature
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from embedkit_cli.server import answers, describing, embeddings, mapping, schemas, searching
from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.errors import ApiError, as_api_error
from embedkit_cli.server.gate import Gate
from embedkit_cli.server.pages import add_pages
from embedkit_cli.server.service import Service

Endpoint = Callable[[Service, Request], Awaitable[Response]]
_ERRORS = (400, 401, 403, 404, 405, 408, 413, 421, 429, 431, 500, 503, 504)


class _Bare(APIRoute):
    """A route whose endpoint reads and answers by itself: FastAPI describes it, and does nothing at run time."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self.endpoint


class _Application(FastAPI):
    """FastAPI behind a gate that every request passes first."""

    front: ASGIApp

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the gate let through."""
        await super().__call__(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await (self.front if scope["type"] == "http" else self.behind)(scope, receive, send)


def create_app(
    config: ServerConfig,
    opened: Callable[[], None] = lambda: None,
    failed: Callable[[BaseException], None] = lambda e: None,
) -> FastAPI:
    """Return the application; its lifespan opens what is served in a thread, which then calls one of the two."""
    service = Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        service.open_beside(opened, failed)
        yield
        service.close()

    app = _Application(
        title="embedkit", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False
    )
    app.state.service = service
    app.router.route_class = _Bare
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

    def add(method: str, path: str, endpoint: Endpoint, answer: Any, **takes: Any) -> None:
        async def handle(request: Request) -> Response:
            try:
                return await endpoint(service, request)
            except Exception as e:  # before Starlette answers it in its own words
                return as_api_error(e, request.scope["embedkit.id"]).response()

        # What FastAPI describes; the endpoint reads the request by itself.
        parameters = [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                annotation=kind,
                default=Parameter.empty if name in ("body", "model") else None,
            )
            for name, kind in takes.items()
        ]
        handle.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        told = answer if isinstance(answer, dict) else {"response_model": answer}
        errors: dict[int | str, dict[str, Any]] = {
            status: {"model": answers.ErrorAnswer} for status in _ERRORS
        }
        app.add_api_route(
            path, handle, methods=[method], name=endpoint.__name__, description=endpoint.__doc__, responses=errors, **told
        )  # fmt: skip

    add(
        "POST", "/v1/embeddings", embeddings.embeddings, answers.EmbeddingsAnswer, body=schemas.EmbeddingsBody
    )
    add("POST", "/search", searching.search, answers.SearchAnswer, body=schemas.SearchBody)
    add("GET", "/v1/models", embeddings.models, answers.ModelsAnswer)
    add("GET", "/v1/models/{model:path}", embeddings.model, answers.Model, model=str)
    add("GET", "/indexes", describing.indexes, answers.IndexesAnswer)
    add("GET", "/tasks", describing.tasks, answers.TasksAnswer, index=str | None)
    add(
        "GET", "/map", mapping.corpus_map, mapping.MapAnswer, index=str | None, chunks=str | None,
        points=bool | None,
    )  # fmt: skip
    add("GET", "/health", describing.health, answers.StatusAnswer)
    add("GET", "/ready", describing.ready, answers.StatusAnswer)
    add("GET", "/metrics", describing.metrics, {"response_class": describing.MetricsResponse})
    add_pages(app)
    app.add_exception_handler(HTTPException, _http_error)
    straight = {("POST", "/v1/embeddings"): embeddings.embeddings, ("POST", "/search"): searching.search}
    app.front = Gate(app.behind, service, straight)
    if config.cors:
        app.front = CORSMiddleware(
            app.front, allow_origins=config.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["x-request-id", "retry-after", "x-truncated-tokens"],
        )  # fmt: skip
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:80]
    message = {
        404: f"there is nothing at {path!r}: /docs lists what there is",
        405: f"{path!r} does not take {request.method[:20]}: /docs says what it takes",
    }.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=error.headers).response()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Describe the API as it is: bad input is answered with 400, not with FastAPI's own 422; keys are bearer tokens."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=_version(), routes=app.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        components = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _version() -> str:
    from importlib.metadata import version

    return version("embedkit-retrieval")
