"""GET /indexes, /tasks, /health, /ready and /metrics."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from embedkit.tasks import BUILT_IN_TASKS
from embedkit_cli.server.errors import ApiError
from embedkit_cli.server.indexes import ServedIndex
from embedkit_cli.server.service import Service


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


class MetricsResponse(Response):
    """Prometheus' text format."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"


async def health(service: Service, request: Request) -> Response:
    """Say that the process lives."""
    del service, request
    return _json({"status": "ok"})


async def ready(service: Service, request: Request) -> Response:
    """Say whether indexes and embedders are open; one index that is gone does not take the others out of service."""
    del request
    service.check_ready()
    if len(service.indexes) and all(served.index is None for served in service.indexes):
        raise ApiError(503, "no index is there at present")
    return _json({"status": "ready"})


async def metrics(service: Service, request: Request) -> Response:
    """Give figures in Prometheus' format."""
    del request
    return MetricsResponse(service.metrics.text())


async def indexes(service: Service, request: Request) -> Response:
    """List the indexes that are there at present."""
    del request
    service.check_ready()
    found = [_index(served) for served in service.indexes if served.index is not None]
    return _json({"indexes": found, "rerankers": list(service.rerankers)})


def _index(served: ServedIndex) -> dict[str, Any]:
    index = served.current()
    manifest = index.manifest
    info = index.embedder.info
    return {
        "name": served.name,
        "documents": manifest.documents,
        "chunks": manifest.chunks,
        "languages": dict(manifest.languages),
        "embedder": {
            "name": info.name,
            "fingerprint": manifest.fingerprint,
            "dim": info.dim,
            "instruction_trained": info.instruction_trained,
        },
        "generation": manifest.generation,
        "updated": manifest.updated,
        "tasks": list(index.tasks),
    }


async def tasks(service: Service, request: Request) -> Response:
    """List the tasks stored with an index, then the built-in ones."""
    service.check_ready()
    name = request.query_params.get("index")
    records: list[dict[str, str]] = []
    default = None
    if len(service.indexes) or name is not None:
        served = service.indexes.get(name)
        index = served.current()
        default = index.embedder.info.default_task
        records = [_task(task, served.name) for task in index.tasks.values()]
    own = {record["name"] for record in records}
    records += [_task(task, "built-in") for task in BUILT_IN_TASKS.values() if task.name not in own]
    return _json({"tasks": records, "default": default})


def _task(task: Any, source: str) -> dict[str, str]:
    return {
        "name": task.name,
        "instruction": task.instruction,
        "description": task.description,
        "source": source,
    }
