"""The map is computed once, kept beside the index, outlives changes of it, and is never in their way."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedkit import Embedder, EmbedderInfo
from embedkit_cli.server import corpus_map
from embedkit_cli.server.corpus_map import CorpusMap, Layout, key_of, placed, read_layout
from embedkit_cli.server.projection import project
from embedkit_indexes import Document, Index
from embedkit_indexes.chunk_vectors import ChunkVectors


class Letters(Embedder):
    """Count letters: near texts have near vectors."""

    info = EmbedderInfo(name="letters", dim=32, max_length=64, pooling="none", weights="letters")

    def count_tokens(self, texts: object) -> list[int]:
        """Count words."""
        assert isinstance(texts, list | tuple)
        return [len(t.split()) for t in texts]

    def _embed(self, texts: object) -> np.ndarray:
        assert isinstance(texts, list | tuple)
        return np.array([np.bincount([ord(c) % 32 for c in t], minlength=32) for t in texts], np.float32)


def _documents(*words: str, count: int = 20) -> list[Document]:
    return [Document(f"{w}-{n}", f"{w * 3} {n}") for w in words for n in range(count)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Forty documents in two groups."""
    Index.build(tmp_path / "index", _documents("lemon", "quartz"), Letters())
    return Index.open(tmp_path / "index", Letters())


@pytest.fixture
def maps(index: Index) -> Iterator[CorpusMap]:
    """The map of the index, not yet asked for."""
    made = CorpusMap(index.directory)
    yield made
    made.close()


def _wait(maps: CorpusMap, index: Index) -> Layout:
    end = time.monotonic() + 400
    while (state := maps.state(index)).computing:
        assert time.monotonic() < end, "the map takes too long"
        time.sleep(0.05)
    assert state.layout is not None, state.problem
    return state.layout


def test_a_map_is_computed_once_and_kept_with_the_index(index: Index, maps: CorpusMap) -> None:
    """The first look has it computed; another server finds it beside the index, and computes nothing."""
    first = maps.state(index)
    assert (first.layout, first.computing, first.status()) == (None, True, "computing")
    layout = _wait(maps, index)
    assert layout.key == key_of(index) and len(layout.points) == 40 and np.abs(layout.points).max() <= 1
    groups = layout.points[:20].mean(axis=0), layout.points[20:].mean(axis=0)
    spread = np.linalg.norm(layout.points[:20] - groups[0], axis=1).mean()
    assert np.linalg.norm(groups[0] - groups[1]) > spread
    again = CorpusMap(index.directory).state(index)
    assert not again.computing and again.layout is not None
    np.testing.assert_array_equal(again.layout.points, layout.points)


def test_changes_of_the_index_keep_the_map_and_are_not_kept_by_it(index: Index, maps: CorpusMap) -> None:
    """Adding, deleting and verifying go on beside the file; an older map shows until the new one is there."""
    before = _wait(maps, index)
    index.add(_documents("velvet", count=3))
    index.delete(["lemon-0"])
    index.verify()
    index.refresh()
    assert read_layout(index.directory / "map.npz") is not None
    state = maps.state(index)
    assert state.computing and state.layout is not None and state.layout.key == before.key
    after = _wait(maps, index)
    assert after.key == key_of(index) and len(after.points) == 42


def test_a_chunk_that_is_not_on_the_map_stands_among_its_neighbours(index: Index, maps: CorpusMap) -> None:
    """A new chunk is placed within its nearest neighbours, one of the map where it is, a deleted one nowhere."""
    layout = _wait(maps, index)
    index.add([Document("new", "lemonlemonlemon 7")])
    index.delete(["quartz-0"])
    index.refresh()
    new = int(max(h.chunk_id for h in index.search("lemonlemonlemon 7", k=42).hits))
    points = placed(index, layout, np.array([0, 20, new, 999], np.int64))
    assert set(points) == {0, new}
    np.testing.assert_allclose(points[0], layout.points[0], atol=1e-4)
    lemons = layout.points[:20]
    assert (lemons.min(axis=0) - 1e-3 <= points[new]).all() and (
        points[new] <= lemons.max(axis=0) + 1e-3
    ).all()


def test_a_large_corpus_is_sampled_by_seed(
    index: Index, maps: CorpusMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit a sample is laid out, the same one each time."""
    monkeypatch.setattr(corpus_map, "_SAMPLE", 12)
    layout = _wait(maps, index)
    assert len(layout.chunk_ids) == 12 and (np.diff(layout.chunk_ids) > 0).all()
    (index.directory / "map.npz").unlink()
    other = CorpusMap(index.directory)
    np.testing.assert_array_equal(_wait(other, index).chunk_ids, layout.chunk_ids)


def test_a_broken_file_is_computed_anew_and_one_that_cannot_be_written_stays_in_memory(
    index: Index, maps: CorpusMap, tmp_path: Path
) -> None:
    """Neither damage nor a directory without room for the file keeps the map from a client."""
    (index.directory / "map.npz").write_bytes(b"PK\x03\x04 no such archive")
    assert len(_wait(maps, index).points) == 40
    (tmp_path / "file").write_text("no directory")
    homeless = CorpusMap(tmp_path / "file")
    assert len(_wait(homeless, index).points) == 40
    assert len(_wait(homeless, index).points) == 40


def test_a_missing_extra_is_named(
    index: Index, maps: CorpusMap, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the extra the map is unavailable; the command that mends it stands in the log, once."""
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    states = [maps.state(index) for _ in range(3)]
    assert {state.status() for state in states} == {"unavailable"}
    assert {state.problem for state in states} == {"this server was installed without what lays out a map"}
    told = "the map needs the extra [map]: pip install 'embedkit-retrieval[map]'"
    assert [record.message for record in caplog.records] == [told]


def test_placing_takes_no_more_memory_for_many_chunks(tmp_path: Path) -> None:
    """Eight hundred chunks are placed among thousands in blocks, each in the middle of its nearest neighbours."""
    words = np.random.default_rng(0).choice(list("abcdefghijklmnop"), (4000, 12))
    Index.build(tmp_path / "index", [Document(str(n), "".join(w)) for n, w in enumerate(words)], Letters())
    index = Index.open(tmp_path / "index", Letters())
    points = np.random.default_rng(1).uniform(-1, 1, (3200, 2)).astype(np.float32)
    layout = Layout("key", np.arange(3200, dtype=np.int64), points)
    wanted = np.arange(3200, 4000, dtype=np.int64)
    placed(index, layout, wanted[:1])  # the index's own columns are read once
    tracemalloc.start()
    found = placed(index, layout, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All 800 x 3,200 scores at once, with their order, are 40 MB.
    assert peak < 12_000_000
    chunks = ChunkVectors(index)
    scores = chunks.vectors(wanted) @ chunks.vectors(layout.chunk_ids).T
    for chunk, row in zip(wanted, scores, strict=True):
        fifth = np.sort(row)[-5]
        if np.count_nonzero(row >= fifth) == 5:
            middle = np.median(points[row >= fifth], axis=0)
            np.testing.assert_allclose(found[int(chunk)], middle, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 20])
def test_few_or_equal_vectors_have_a_layout(count: int) -> None:
    """No number of chunks is too small, equal ones and empty ones have points too, and the same ones each time."""
    points = project(np.full((count, 4), 0.5, np.float32))
    assert points.shape == (count, 2) and np.isfinite(points).all()
    zeros = project(np.zeros((count, 4), np.float32))
    assert zeros.shape == (count, 2) and np.isfinite(zeros).all()
    rows = np.random.default_rng(1).standard_normal((count, 4)).astype(np.float32)
    np.testing.assert_array_equal(project(rows), project(rows))
