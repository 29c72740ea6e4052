"""Drawing chunks of an index at random."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.errors import InputError
from embedkit.registry import get_embedder
from embedkit_indexes import Document, Index
from embedkit_indexes.sampling import sample_chunks

WORDS = "alpha 1 0\nbeta 0 1\n"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """An index of twenty documents."""
    (tmp_path / "words.txt").write_text(WORDS)
    documents = [Document(f"d{i}", f"alpha {i}", lang="en" if i % 2 else "de") for i in range(20)]
    embedder = get_embedder(str(tmp_path / "words.txt"))
    Index.build(tmp_path / "index", documents, embedder)
    return Index.open(tmp_path / "index", embedder)


def test_every_chunk_once_in_an_order_of_the_seed(index: Index) -> None:
    """A draw yields every chunk once; its order is the seed's."""
    first = list(sample_chunks(index, 1))
    assert sorted(c.document_id for c in first) == sorted(f"d{i}" for i in range(20))
    assert all(c.text == f"alpha {c.document_id[1:]}" for c in first)
    assert list(sample_chunks(index, 1)) == first
    assert list(sample_chunks(index, 2)) != first


def test_the_order_outlives_changes(index: Index) -> None:
    """What is added and deleted leaves the others in their order; what is deleted is not drawn."""
    before = [c.document_id for c in sample_chunks(index, 1)]
    index.add([Document(f"new{i}", f"beta {i}") for i in range(5)])
    index.delete(["d3", "d4"])
    after = [c.document_id for c in sample_chunks(index, 1)]
    assert len(after) == 23
    assert [d for d in after if not d.startswith("new")] == [d for d in before if d not in ("d3", "d4")]


def test_a_filter_leaves_the_rest_out(index: Index) -> None:
    """`where` is a search's."""
    assert {c.lang for c in sample_chunks(index, 1, 'lang = "de"')} == {"de"}
    with pytest.raises(InputError):
        next(sample_chunks(index, 1, "lang ="))
