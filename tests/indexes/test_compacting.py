"""`Index.compact`: another engine for an index that is there, without embedding anything again."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.errors import CorruptIndexError, InputError, UnknownNameError
from embedkit_indexes import Document, EngineConfig, Index, SearchEffort

from .conftest import HashEmbedder

ROWS = [Document(f"d{i}", f"w{i} v{i % 50} u{i % 7}", lang="en") for i in range(1500)]
HNSW = EngineConfig("hnsw", recall=0.9)


@pytest.fixture
def index(tmp_path: Path, embedder: HashEmbedder) -> Index:
    """An index of two segments, searched exactly, with a deletion."""
    Index.build(tmp_path / "i", ROWS[:1400], embedder)
    index = Index.open(tmp_path / "i", embedder)
    index.add(ROWS[1400:])
    index.delete(["d7"])
    return index


def _engines(index: Index) -> list[str]:
    return [s.engine["type"] for s in index.manifest.segments]


def _files(index: Index) -> dict[str, bytes]:
    found = [p for p in index.directory.rglob("*") if p.is_file() and p.name != "writer.lock"]
    return {str(p): p.read_bytes() for p in found}


def test_another_engine_without_embedding(index: Index, embedder: HashEmbedder) -> None:
    """The engine is built over the stored vectors, and holds for the changes that follow."""
    before = index.search("w3 v3", k=5, effort=SearchEffort(recall=1))
    calls = embedder.calls
    report = index.compact(engine=HNSW)
    assert embedder.calls == calls
    assert (report.embedded, report.segments, _engines(index)) == (0, 1, ["hnsw"])
    assert EngineConfig(**index.manifest.engine) == HNSW
    assert index.search("w3 v3", k=5, effort=SearchEffort(recall=1)) == before
    index.verify()
    index.upsert([Document("new", "w3 fresh", lang="en")])
    index.compact()
    assert _engines(index) == ["hnsw"]


def test_one_segment_gets_another_engine_too(index: Index) -> None:
    """What is one segment already is written anew for another engine, and left alone for the same one."""
    index.compact()
    report = index.compact(engine=HNSW)
    assert _engines(index) == ["hnsw"]
    assert index.compact(engine=HNSW).generation == index.compact().generation == report.generation
    index.compact(engine=EngineConfig())
    assert _engines(index) == ["exact"]


def test_an_index_without_documents_takes_an_engine(index: Index) -> None:
    """The engine of an empty index is that of the documents to come."""
    index.delete(where="id exists")
    index.compact(engine=HNSW)
    index.add(ROWS)
    assert _engines(index) == ["hnsw"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (EngineConfig(memory_budget=1000), "memory budget is 1,000 bytes: raise it"),
        (EngineConfig("exact", memory_budget=10_000), "as exact, and the memory budget"),
        (EngineConfig("IVFnonsense"), "FAISS cannot build the engine 'IVFnonsense'"),
    ],
)
def test_an_engine_that_cannot_be_leaves_the_index(
    index: Index, engine: EngineConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit, or is unknown to FAISS, is refused before anything is copied; not a byte changes."""
    before = _files(index)
    monkeypatch.setattr("embedkit_indexes.writer.merge_segments", lambda *_: pytest.fail("it was copied"))
    with pytest.raises(InputError, match=message):
        index.compact(engine=engine)
    assert _files(index) == before
    assert len(index.search("w3", k=2000).hits) == 1499


def test_an_engine_that_is_none_is_named(index: Index) -> None:
    """A name in place of an EngineConfig says what to pass."""
    with pytest.raises(InputError, match="engine is 'hnsw', str: pass an EngineConfig"):
        index.compact(engine="hnsw")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        index.compact(engine=EngineConfig("hsnw"))


ASKED = [f"w{i} u{i % 7}" for i in range(300)]


@pytest.fixture
def tuned(tmp_path: Path, embedder: HashEmbedder) -> Index:
    """An index with a graph that was tuned on 300 real queries."""
    Index.build(tmp_path / "t", ROWS[:1200], embedder, engine=HNSW, tuning_queries=ASKED)
    return Index.open(tmp_path / "t", embedder)


def _kept(index: Index) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in index.directory.rglob("queries.f16")}


def _tuned_on(index: Index) -> list[str]:
    return [s.engine.get("tuned_on", "") for s in index.manifest.segments]


def test_tuning_queries_are_kept_for_later_merges(tuned: Index) -> None:
    """The vectors of 256 of them lie with a segment, and what is merged or built later is measured on them."""
    (first,) = _kept(tuned).values()
    assert len(first) == 256 * 32 * 2
    tuned.add(ROWS[1200:1500])
    tuned.compact()
    assert (_tuned_on(tuned), list(_kept(tuned).values())) == (["queries"], [first])
    tuned.compact(engine=EngineConfig("ivf-sq8"))
    assert (_engines(tuned), _tuned_on(tuned)) == (["ivf-sq8"], ["queries"])
    assert list(_kept(tuned).values()) == [first]
    tuned.verify()


def test_tuning_queries_outlive_the_documents(tuned: Index, embedder: HashEmbedder) -> None:
    """They stay where a change replaces all that they lay with, and go with the embedder that made them."""
    (first,) = _kept(tuned).values()
    tuned.sync([Document(f"new{i}", f"w{i} fresh", lang="en") for i in range(1200)])
    assert (_tuned_on(tuned), list(_kept(tuned).values())) == (["queries"], [first])
    tuned.migrate(HashEmbedder(24, weights="hash-2"))
    assert (_tuned_on(tuned), _kept(tuned)) == (["documents"], {})


def test_tuning_queries_are_kept_once(tuned: Index) -> None:
    """A new segment beside the one that keeps them is measured on them, and has no copy."""
    kept = _kept(tuned)
    tuned.add([Document(f"n{i}", f"w{i} more", lang="en") for i in range(200)])
    assert len(tuned.manifest.segments) == 2
    assert _kept(tuned) == kept
    assert _tuned_on(tuned) == ["queries", "queries"]


def test_altered_tuning_queries_are_damage(tuned: Index) -> None:
    """A flipped bit is named, by `verify` and by the change that would measure on them."""
    (path,) = tuned.directory.rglob("queries.f16")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptIndexError, match=r"queries\.f16 was altered"):
        tuned.verify()
    with pytest.raises(CorruptIndexError, match=r"queries\.f16 was altered"):
        tuned.add([Document("new", "w1", lang="en")])
