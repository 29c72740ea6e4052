"""Teacher vectors: each text's own vector, computed once, resumed after a kill, repaired after damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import get_embedder
from embedkit.contract import EmbedderInfo
from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError, InputError
from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.data.batches import assemble
from embedkit_trainer.data.rendering import TokenizerPair
from embedkit_trainer.data.rows import Row
from embedkit_trainer.data.store import TokenStore
from embedkit_trainer.data.store_writer import BATCH_ROWS
from embedkit_trainer.data.teacher import TeacherVectors
from tests.trainer.tiny_tokens import tiny_pair


class Hashed(Embedder):
    """Give a vector that depends on the text alone, count the texts, and fail where told."""

    def __init__(self, name: str = "hashed", dim: int = 8) -> None:
        self.info = EmbedderInfo(name, dim, 512, "mean", f"weights of {name}", instruction_trained=True)
        self.seen: list[str] = []
        self.fail_at: int | None = None

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        self.seen.extend(texts)
        if self.fail_at is not None and len(self.seen) >= self.fail_at:
            raise RuntimeError("killed")
        seeds = [int.from_bytes(t.encode()[-8:], "big") + len(t) for t in texts]
        return np.stack([np.random.default_rng(s).normal(size=self.info.dim) for s in seeds])


def _rows(n: int) -> list[Row]:
    return [
        Row(
            f"q{i}",
            f"p{i}",
            tuple(f"n{i}-{j}" for j in range(i % 3)),
            instruction="Find it." if i % 2 else None,
        )
        for i in range(n)
    ]


def _pair(key: str) -> TokenizerPair:
    from embedkit.contract import Template

    return TokenizerPair(
        lambda texts: [[1, 2]] * len(texts), lambda texts: [[3]] * len(texts), Template(), key
    )


def _store(folder: Path, n: int, key: str = "k") -> TokenStore:
    return TokenStore.build(_rows(n), _pair(key), folder / f"store-{n}-{key}", SourceConfig(name="s"))


def test_each_text_has_its_own_vector(tmp_path: Path) -> None:
    """Queries are encoded bare, as documents are; the vectors are the embedder's, to float16."""
    embedder = get_embedder("bundled")
    pair, _, _ = tiny_pair(tmp_path / "tokenizer")
    rows = [
        Row("how much salt?", "two spoons", ("a bicycle", "rain")),
        Row("wie spät ist es?", "eleven", instruction="Find the answer."),
    ]
    store = TokenStore.build(rows, pair, tmp_path / "store", SourceConfig(name="s"))
    teacher = TeacherVectors.build(embedder, store, tmp_path / "cache", dim=384)
    texts = ["how much salt?", "wie spät ist es?", "two spoons", "a bicycle", "rain", "eleven"]
    expected = embedder.encode_document(texts)
    assert teacher.dim == 384
    np.testing.assert_allclose(teacher.queries(np.array([0, 1])), expected[:2], atol=1e-3)
    np.testing.assert_allclose(teacher.documents(np.arange(4)), expected[2:], atol=1e-3)
    np.testing.assert_allclose(teacher.row(1), expected[[1, 5]], atol=1e-3)
    assert teacher.queries(np.array([0])).dtype == np.float32
    batch = assemble([store], [(0, 1), (0, 0)], step=0, negatives=2, seed=0, teacher=[teacher])
    assert batch.teacher_queries is not None and batch.teacher_documents is not None
    np.testing.assert_allclose(batch.teacher_queries, expected[[1, 0]], atol=1e-3)
    np.testing.assert_allclose(batch.teacher_documents[:2], expected[[5, 2]], atol=1e-3)


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    """Vectors are found by the texts and the teacher: another tokenizer finds them too, another teacher does not."""
    embedder = Hashed()
    store = _store(tmp_path, 50)
    first = TeacherVectors.build(embedder, store, tmp_path / "cache")
    assert len(embedder.seen) == 50 + store.counts.documents
    embedder.seen.clear()
    again = TeacherVectors.build(embedder, _store(tmp_path, 50, "other"), tmp_path / "cache")
    assert again.folder == first.folder
    assert not embedder.seen
    other = Hashed("other")
    assert TeacherVectors.build(other, store, tmp_path / "cache").folder != first.folder
    assert TeacherVectors.build(embedder, _store(tmp_path, 51), tmp_path / "cache").folder != first.folder


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """After a failure in the third shard, the next run encodes that shard and what follows, to the same vectors."""
    store = _store(tmp_path, 4 * BATCH_ROWS)
    whole = TeacherVectors.build(Hashed(), store, tmp_path / "whole")
    embedder = Hashed()
    per_shard = [len(_texts(store, s)) for s in range(4)]
    embedder.fail_at = sum(per_shard[:2]) + per_shard[2] // 2
    with pytest.raises(EmbedderError, match="killed"):
        TeacherVectors.build(embedder, store, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "teacher").iterdir() if not p.suffix]
    embedder.fail_at = None
    embedder.seen.clear()
    calls: list[tuple[int, int]] = []
    teacher = TeacherVectors.build(
        embedder, store, tmp_path / "cache", progress=lambda *done: calls.append(done)
    )
    assert sorted(embedder.seen) == sorted(_texts(store, 2) + _texts(store, 3))
    assert calls[-1] == (len(store), len(store))
    rows, documents = np.arange(len(store)), np.arange(store.counts.documents)
    np.testing.assert_array_equal(teacher.queries(rows), whole.queries(rows))
    np.testing.assert_array_equal(teacher.documents(documents), whole.documents(documents))


def _texts(store: TokenStore, shard: int) -> list[str]:
    rows = list(store.text_batches())[shard]
    return [t for r in rows for t in (r.query, r.positive, *r.negatives)]


@pytest.mark.parametrize("name", ["documents.npy", "queries.npy"])
def test_a_damaged_shard_alone_is_encoded_again(tmp_path: Path, name: str) -> None:
    """A flipped byte is found at the next start, and only its shard is computed anew."""
    store = _store(tmp_path, 3 * BATCH_ROWS)
    embedder = Hashed()
    teacher = TeacherVectors.build(embedder, store, tmp_path / "cache")
    expected = teacher.row(2 * BATCH_ROWS + 900)
    file = teacher.folder / name
    del teacher
    data = bytearray(file.read_bytes())
    data[-5] ^= 255
    file.write_bytes(data)
    embedder.seen.clear()
    again = TeacherVectors.build(embedder, store, tmp_path / "cache")
    assert sorted(embedder.seen) == sorted(_texts(store, 2))
    np.testing.assert_array_equal(again.row(2 * BATCH_ROWS + 900), expected)
    file.write_bytes(data[:50])
    embedder.seen.clear()
    again = TeacherVectors.build(embedder, store, tmp_path / "cache")
    assert len(embedder.seen) == store.counts.documents + len(store)
    np.testing.assert_array_equal(again.row(2 * BATCH_ROWS + 900), expected)


def test_target_positive_encodes_no_query(tmp_path: Path) -> None:
    """There the query regresses its positive's vector, the texts of the queries being what the teacher cannot read."""
    embedder = Hashed()
    store = _store(tmp_path, 20)
    teacher = TeacherVectors.build(embedder, store, tmp_path / "cache", target="positive")
    assert not [t for t in embedder.seen if t.startswith("q")]
    rows = np.array([3, 0, 19])
    np.testing.assert_array_equal(teacher.queries(rows), teacher.documents(store.document_starts[rows]))
    np.testing.assert_allclose(
        teacher.queries(rows), embedder.encode_document(["p3", "p0", "p19"]), atol=1e-3
    )


def test_queries_may_be_the_teachers_queries(tmp_path: Path) -> None:
    """With `as_query` the teacher sees each query under its row's instruction, in a cache of its own."""
    embedder = Hashed()
    store = _store(tmp_path, 4)
    bare = TeacherVectors.build(embedder, store, tmp_path / "cache")
    embedder.seen.clear()
    teacher = TeacherVectors.build(embedder, store, tmp_path / "cache", as_query=True)
    assert teacher.folder != bare.folder
    assert {t for t in embedder.seen if "q" in t} == {
        "q0", "q2", "Instruct: Find it.\nQuery: q1", "Instruct: Find it.\nQuery: q3"
    }  # fmt: skip
    np.testing.assert_allclose(
        teacher.queries(np.array([1])), embedder.encode_query(["q1"], instruction="Find it."), atol=1e-3
    )


def test_repeated_texts_are_encoded_once(tmp_path: Path) -> None:
    """A label that is every row's positive costs one encoding a shard."""
    rows = [Row(f"q{i}", "label", ("label", "other")) for i in range(100)]
    store = TokenStore.build(rows, _pair("k"), tmp_path / "s")
    embedder = Hashed()
    teacher = TeacherVectors.build(embedder, store, tmp_path / "cache")
    assert sorted(embedder.seen) == sorted(["label", "other", *(f"q{i}" for i in range(100))])
    np.testing.assert_array_equal(teacher.row(5)[1], teacher.row(99)[2])


def test_a_teacher_of_another_width_is_refused_first(tmp_path: Path) -> None:
    """The widths are compared before anything is encoded, and both are named."""
    embedder = Hashed(dim=8)
    with pytest.raises(InputError, match="'hashed' gives 8 dimensions, the student 64"):
        TeacherVectors.build(embedder, _store(tmp_path, 3), tmp_path / "cache", dim=64)
    assert not embedder.seen
