"""GET /map: where the chunks of an index lie on a plane, for the page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from embedkit_cli.server.errors import invalid, json_bytes
from embedkit_cli.server.service import Service

if TYPE_CHECKING:
    from embedkit_cli.server.corpus_map import Layout
    from embedkit_cli.server.indexes import ServedIndex
    from embedkit_indexes import Index

_MOST_ASKED = 800
_LABEL = 80


class MapPoints(BaseModel):
    """The chunks on the map, column by column; `label` is a title, or how the text begins."""

    x: list[float]
    y: list[float]
    chunk_id: list[int]
    document_id: list[str]
    lang: list[str]
    label: list[str]


class MapAnswer(BaseModel):
    """The map of one version of the index; a stale one shows an older version until the new one is computed."""

    index: str
    generation: int
    status: Literal["ready", "computing", "unavailable"]
    stale: bool
    computing: bool
    message: str | None
    chunks: int
    points: MapPoints | None
    placed: dict[str, tuple[float, float]] | None = None


async def corpus_map(service: Service, request: Request) -> Response:
    """Show a point for each chunk, or for the chunks asked for alone; the first request has the map computed.

    With `points=false` the answer says how far the map is, and no more.
    """
    service.check_ready()
    asked = request.query_params
    served = service.indexes.get(asked.get("index"))
    wanted = _wanted(asked.get("chunks"))
    points = asked.get("points", "true")
    if points not in ("true", "false"):
        raise invalid("points: give true or false", "points")
    make = partial(_answer, served, wanted, points == "true")
    with service.searchers.place():
        content = await service.searchers.run(make)
    return Response(content, media_type="application/json")


def _wanted(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",", _MOST_ASKED)
    if len(parts) > _MOST_ASKED:
        raise invalid(f"chunks: {_MOST_ASKED:,} may be asked for at once, these are more", "chunks")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise invalid("chunks: give chunk ids with commas between them, such as 3,14", "chunks")
    return [int(part) for part in parts]


def _answer(served: ServedIndex, wanted: list[int] | None, points: bool) -> bytes:
    from embedkit_cli.server.corpus_map import key_of

    index = served.current()
    state = served.map.state(index)
    layout = state.layout
    out: dict[str, Any] = {
        "index": served.name,
        "generation": index.manifest.generation,
        "status": state.status(),
        "stale": layout is not None and layout.key != key_of(index),
        "computing": state.computing,
        "message": state.problem,
        "chunks": index.manifest.chunks,
        "points": None,
    }
    if layout is not None and points:
        if wanted is None:
            key = (key_of(index), layout.key)
            out["points"] = orjson.Fragment(served.map.kept(key, lambda: _points(index, layout)))
        else:
            out |= _placed(index, layout, wanted)
    return json_bytes(out)


def _points(index: Index, layout: Layout) -> bytes:
    import numpy as np

    from embedkit_indexes.chunk_vectors import ChunkVectors

    chunks = ChunkVectors(index)
    there = np.flatnonzero(chunks.known(layout.chunk_ids))
    ids = layout.chunk_ids[there]
    documents, languages, titles, texts = chunks.cells(ids, ("document_id", "lang", "title", "text"))
    labels = [_label(title or text) for title, text in zip(titles, texts, strict=True)]
    x, y = np.round(layout.points[there].astype(np.float64), 4).T.tolist() if len(there) else ([], [])
    return json_bytes(
        {
            "x": x,
            "y": y,
            "chunk_id": ids.tolist(),
            "document_id": documents,
            "lang": languages,
            "label": labels,
        }
    )


def _label(text: str) -> str:
    line = " ".join(text[: 4 * _LABEL].split())
    return line if len(line) <= _LABEL else line[: _LABEL - 1].rstrip() + "…"


def _placed(index: Index, layout: Layout, wanted: list[int]) -> dict[str, Any]:
    import numpy as np

    from embedkit_cli.server.corpus_map import placed

    found = placed(index, layout, np.array(wanted, np.int64))
    return {"placed": {str(chunk): point for chunk, point in found.items()}}
