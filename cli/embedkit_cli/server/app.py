"""The application: routes, their description, and the middleware around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from embedkit_cli.server import describing, embeddings, searching
from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.errors import ApiError
from embedkit_cli.server.gate import Gate
from embedkit_cli.server.service import Service

Endpoint = Callable[[Service, Request], Awaitable[Response]]
_POST = {"POST": ["/v1/embeddings", "/search"]}


class _Bare(APIRoute):
    """A route whose endpoint reads and answers by itself: FastAPI describes it, and does nothing at run time."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self.endpoint


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

    app = FastAPI(
        title="embedkit", docs_url=None, redoc_url=None, openapi_url="/openapi.json", lifespan=lifespan
    )
    app.state.service = service
    app.router.route_class = _Bare

    def add(path: str, endpoint: Endpoint, method: str = "GET", **told: Any) -> None:
        async def handle(request: Request) -> Response:
            return await endpoint(service, request)

        handle.__doc__ = endpoint.__doc__
        app.add_api_route(path, handle, methods=[method], name=endpoint.__name__, **told)

    add("/v1/embeddings", embeddings.embeddings, "POST")
    add("/search", searching.search, "POST")
    add("/v1/models", embeddings.models)
    add("/health", describing.health)
    add("/ready", describing.ready)
    add("/metrics", describing.metrics)
    add("/indexes", describing.indexes)
    add("/tasks", describing.tasks)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, service=service)
    if config.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["x-request-id", "retry-after"],
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
