"""Vectors that come with their texts: `Index.build`, `add` and `upsert` with `vectors`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import InputError
from embedkit_indexes import ChunkConfig, Document, Index
from tests.indexes.conftest import HashEmbedder

LONG = " ".join(f"word{i}" for i in range(100))


def test_a_given_vector_is_stored_for_the_whole_document(tmp_path: Path, embedder: HashEmbedder) -> None:
    """With vectors a document is one chunk, its text as it is; what has none is embedded; vectors get unit length."""
    vectors = {LONG: embedder.encode_document([LONG])[0] * 9}
    rows = [Document("a", LONG, title="A"), Document("b", "other text", title="B")]
    report = Index.build(tmp_path / "i", rows, embedder, chunking=ChunkConfig(max_tokens=16), vectors=vectors)
    assert (report.chunks, report.embedded, report.reused) == (2, 1, 1)
    index = Index.open(tmp_path / "i", embedder)
    hit = index.search(LONG, k=1).hits[0]
    assert (hit.document_id, hit.text) == ("a", LONG)
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert index.search("other text", k=1).hits[0].text == "other text"
    assert index.add([Document("c", LONG)]).chunks > 5


def test_what_is_stored_is_not_replaced_by_a_given_vector(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A text that the index holds keeps its vector; the others of the same call are taken as they were given."""
    Index.build(tmp_path / "i", [Document("a", "one")], embedder)
    index = Index.open(tmp_path / "i", embedder)
    given = {t: embedder.encode_document([t])[0].tolist() for t in ("two", "one")}
    given["one"] = given["two"]
    report = index.upsert([Document("b", "one"), Document("c", "two")], vectors=given)
    assert (report.embedded, report.reused) == (0, 2)
    assert [h.score for h in index.search("one", k=2).hits] == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        ({"one": np.eye(32)[0]}, "not what hash-32 makes of it"),
        ({"one": np.zeros(32)}, "not what hash-32 makes of it"),
        ({"one": np.ones(31)}, "31 numbers, the index holds vectors of 32"),
        ({"one": "text"}, "the index holds vectors of 32"),
        ({"one": np.full(32, np.inf)}, "NaN or infinity"),
        ([np.ones(32)], "give a mapping of texts"),
    ],
)
def test_wrong_vectors_change_nothing(
    tmp_path: Path, embedder: HashEmbedder, vectors: object, sentence: str
) -> None:
    """Vectors of another model, length or type are an InputError, and leave no index or the one that was."""
    with pytest.raises(InputError, match=sentence):
        Index.build(tmp_path / "i", [Document("a", "one")], embedder, vectors=vectors)  # type: ignore[arg-type]
    assert not (tmp_path / "i").exists()
    Index.build(tmp_path / "i", [Document("b", "two")], embedder)
    index = Index.open(tmp_path / "i", embedder)
    with pytest.raises(InputError, match=sentence):
        index.add([Document("a", "one")], vectors=vectors)  # type: ignore[arg-type]
    assert len(index) == 1
    index.verify()
