"""GET /map: what it answers, what it refuses, and what asking for it again and again costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from embedkit_cli.server.app import create_app
from embedkit_cli.server.config import Limits, ServedPath, ServerConfig
from embedkit_indexes.chunk_vectors import ChunkVectors
from tests.cli.server.conftest import Server, wait_for

pytest.importorskip("openTSNE")


def test_the_map_of_an_index(server: Server) -> None:
    """It has a point for each chunk; `points=false` says how far it is, `chunks` gives points of some alone."""
    ready = wait_for(lambda: (told := server.get("/map?index=shop").json)["status"] == "ready" and told, 400)
    assert ready["points"]["document_id"] == ["cancel", "refund", "script", "deutsch"]
    told = server.get("/map?index=shop&points=false").json
    assert told == ready | {"points": None}
    first = ready["points"]["chunk_id"][0]
    some = server.get(f"/map?index=shop&chunks={first},999").json
    assert some["placed"] == {str(first): [ready["points"]["x"][0], ready["points"]["y"][0]]}


@pytest.mark.parametrize(
    ("asked", "field"),
    [("chunks=x", "chunks"), ("chunks=" + "1," * 800 + "1", "chunks"), ("points=maybe", "points"),
     ("chunks=-1", "chunks"), ("chunks=" + "9" * 19, "chunks")],
)  # fmt: skip
def test_what_is_no_chunk_is_refused(server: Server, asked: str, field: str) -> None:
    """Words, more ids than a page's hits can be, and numbers that no chunk has: 400 at the parameter."""
    answer = server.get(f"/map?index=shop&{asked}")
    assert (answer.status, answer.json["error"]["param"]) == (400, field)


def test_a_map_counts_as_a_search(sample_index: Path) -> None:
    """Where as many searches as the server takes are under way, a map is refused as they are."""
    config = ServerConfig(indexes=(ServedPath("sample", sample_index),), hosts=(), limits=Limits(searches=0))
    with TestClient(create_app(config)) as client:
        wait_for(lambda: client.get("/ready").status_code == 200)
        answer = client.get("/map")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_points_are_read_once(sample_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for again, the map of the same version reads no chunk; nor does a client that waits for the map."""
    read: list[int] = []
    cells = ChunkVectors.cells

    def counted(self: ChunkVectors, ids: object, names: object) -> object:
        read.append(1)
        return cells(self, ids, names)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkVectors, "cells", counted)
    config = ServerConfig(indexes=(ServedPath("sample", sample_index),), hosts=())
    with TestClient(create_app(config)) as client:
        wait_for(lambda: client.get("/ready").status_code == 200)
        wait_for(lambda: client.get("/map?points=false").json()["status"] == "ready", 400)
        assert not read
        assert client.get("/map").content == client.get("/map").content
    assert len(read) == 1
