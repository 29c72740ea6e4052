"""The search page at /, and the API's description at /docs: files of this package, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

_HERE = Path(__file__).resolve().parent
PAGE = _HERE / "page"
_API_DOCS = _HERE / "api_docs"
_SWAGGER = Path(fastapi_offline.__file__).parent / "static"
_SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")


class _Page(StaticFiles):
    """Files that a browser asks for again: after an update none of the old ones stays beside the new."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def add_pages(app: FastAPI) -> None:
    """Serve the page's files, and those of /docs, each by a route of its own or from one folder."""
    app.router.routes += [
        _file("/", PAGE / "index.html"),
        Mount("/static", _Page(directory=PAGE)),
        _file("/docs", _API_DOCS / "index.html"),
        _file("/docs/start.js", _API_DOCS / "start.js"),
        *(_file(f"/docs/{name}", _SWAGGER / name) for name in _SWAGGER_FILES),
    ]


def _file(path: str, file: Path) -> Route:
    async def send(request: Request) -> Response:
        del request
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    return Route(path, send, methods=["GET"])
