"""A small index, the changes that faults are tried on, and all that it holds, to be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from embedkit_indexes import ChunkConfig, Document, EngineConfig, Index

from .conftest import HashEmbedder

ENGINE = EngineConfig(exact_limit=100)
CHUNKING = ChunkConfig(context=False)


def documents(first: int, last: int, edition: int = 0) -> list[Document]:
    """Return documents with seeded words: the same number and edition give the same text."""
    return [
        Document(
            f"d{i}",
            " ".join(f"word{(i * 31 + edition * 17 + j * j * 7) % 120}" for j in range(9)) + f" n{i}",
            lang="en" if i % 3 else "de",
            source=f"part{i % 4}",
            metadata={"number": i, "edition": edition},
        )
        for i in range(first, last)
    ]


def first_embedder() -> HashEmbedder:
    """Return the embedder of the index that is changed."""
    return HashEmbedder(16)


def second_embedder() -> HashEmbedder:
    """Return the embedder that `migrate` brings in."""
    return HashEmbedder(24, weights="hash-2")


def make_base(place: Path) -> None:
    """Build an index of two segments, one with an engine of its own, both with deletions, and an export beside it."""
    Index.build(place, documents(0, 130), first_embedder(), engine=ENGINE, chunking=CHUNKING)
    index = Index.open(place, first_embedder())
    index.add(documents(130, 150))
    index.export(place.parent / "exported.parquet")
    index.delete(["d3", "d140"])


def _build(place: Path) -> None:
    Index.build(
        place, documents(0, 120, 1), first_embedder(), engine=ENGINE, chunking=CHUNKING, overwrite=True
    )


def _sync(place: Path) -> None:
    Index.open(place, first_embedder()).sync([*documents(10, 120), *documents(120, 160, 1)])


# What is killed: each makes of the base, or of nothing, one new state.
CHANGES: dict[str, Callable[[Path], object]] = {
    "first build": _build,
    "build": _build,
    "add": lambda p: Index.open(p, first_embedder()).add(documents(150, 160)),
    "upsert": lambda p: Index.open(p, first_embedder()).upsert(documents(100, 155, 1)),
    "sync": _sync,
    "delete": lambda p: Index.open(p, first_embedder()).delete(["d5", "d141"], where="number < 3"),
    "delete most": lambda p: Index.open(p, first_embedder()).delete(where="number > 20"),
    "compact": lambda p: Index.open(p, first_embedder()).compact(),
    "migrate": lambda p: Index.open(p, first_embedder()).migrate(second_embedder()),
    "restore": lambda p: Index.restore(p, p.parent / "exported.parquet", overwrite=True),
}


class State(NamedTuple):
    """All that one version of an index holds: rows by chunk id."""

    generation: int
    fingerprint: str
    rows: dict[int, tuple[object, ...]]


def open_index(place: Path) -> Index:
    """Open an index with the one of the two embedders that it belongs to."""
    found = Index.open(place).manifest.fingerprint
    embedder = next(e for e in (first_embedder(), second_embedder()) if e.fingerprint == found)
    return Index.open(place, embedder)


def state(place: Path) -> State | None:
    """Verify an index and return what it holds, None where there is none; each of its searches must agree."""
    if not (place / "embedkit.json").exists():
        return None
    index = open_index(place)
    index.verify()
    hits = index.search("word1", k=10_000).hits
    rows: dict[int, tuple[object, ...]] = {
        h.chunk_id: (h.document_id, h.position, h.text, h.lang, h.source, dict(h.metadata), round(h.score, 3))
        for h in hits
    }
    assert len(rows) == len(hits) == len(index)
    words = {h.chunk_id for h in index.search("word1", k=10_000, mode="lexical").hits}
    assert words == {id for id, row in rows.items() if "word1" in str(row[2]).split()}
    german = {h.chunk_id for h in index.search("word1", k=10_000, where='lang = "de"').hits}
    assert german == {id for id, row in rows.items() if row[3] == "de"}
    return State(index.manifest.generation, index.manifest.fingerprint, rows)


def litter(place: Path) -> set[str]:
    """Return the names in an index's directory that its manifest does not need."""
    needed = Index.open(place).manifest.names() | {"embedkit.json", "writer.lock"}
    return {p.name for p in place.iterdir()} - needed
