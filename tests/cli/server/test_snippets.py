"""The vectors of passages, kept between searches: which passage is best, what is encoded once, and what is let go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from embedkit.errors import EmbedderError
from embedkit_cli.server.batching import Batcher
from embedkit_cli.server.embedders import ServedEmbedder
from embedkit_cli.server.snippets import Passage, PassageVectors, passages
from tests.indexes.conftest import HashEmbedder


class Broken(HashEmbedder):
    """Give NaN while it is broken."""

    broken = False

    def _embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        return super()._embed(texts) * (np.nan if self.broken else 1)


@pytest.fixture
def inner() -> Broken:
    """An embedder that counts its calls."""
    return Broken()


@pytest.fixture
def embedder(inner: Broken) -> Iterator[ServedEmbedder]:
    """The same as a server has it."""
    batcher = Batcher(inner, 1000, 1_000_000)
    yield ServedEmbedder(inner, "hash", batcher)
    batcher.close()


def text(number: int) -> str:
    """Return a text of four passages, one of which is about the number."""
    rest = [f"this sentence number {i} tells of something else again." for i in range(3)]
    return " ".join([*rest, f"only here it is about topic{number} and about topic{number} alone."])


def best(kept: PassageVectors, embedder: ServedEmbedder, *numbers: int) -> list[str | None]:
    """Ask for the best passages of texts."""
    queries = embedder.encode_query([f"about topic{n}" for n in numbers])
    asked = [(vector, text(n)) for vector, n in zip(queries, numbers, strict=True)]
    found = kept.best(embedder, asked)
    return [None if p is None else t[p.start : p.end] for p, (_, t) in zip(found, asked, strict=True)]


def test_the_best_passage_is_the_nearest(embedder: ServedEmbedder) -> None:
    """Of each text the passage that says what the query says, whatever else is asked with it."""
    assert len(passages(text(1))) == 4
    for number, found in zip((3, 5, 3), best(PassageVectors(), embedder, 3, 5, 3), strict=True):
        assert found == f"only here it is about topic{number} and about topic{number} alone."


def test_a_text_of_one_passage_is_not_encoded(inner: Broken, embedder: ServedEmbedder) -> None:
    """Where there is nothing to choose the model is not asked; a text without a passage has none."""
    vector = np.zeros(32, np.float32)
    found = PassageVectors().best(embedder, [(vector, "one"), (vector, " \n")])
    assert (found, inner.calls) == ([Passage(0, 3), None], 0)


def encoded(inner: Broken, kept: PassageVectors, embedder: ServedEmbedder, *numbers: int) -> bool:
    """Say whether passages had to be encoded for an answer; the queries always are."""
    before = inner.calls
    best(kept, embedder, *numbers)
    return inner.calls > before + 1


def test_what_was_encoded_is_kept_within_so_many_bytes(inner: Broken, embedder: ServedEmbedder) -> None:
    """Texts asked for again are not encoded again; beyond the limit in bytes goes what was not asked for the longest."""
    of_one = 4 * 32 * 4 + len(text(1))
    kept = PassageVectors(most=int(2.5 * of_one))
    assert [encoded(inner, kept, embedder, n) for n in (1, 2, 1, 3)] == [True, True, False, True]
    assert [encoded(inner, kept, embedder, n) for n in (1, 3, 2)] == [False, False, True]
    assert [encoded(inner, kept, embedder, n) for n in (3, 1)] == [False, True]


def test_more_than_is_kept_is_answered_all_the_same(embedder: ServedEmbedder) -> None:
    """A search whose passages alone are more than the limit gets its answers, and nothing of it stays."""
    kept = PassageVectors(most=10)
    assert all(found and "topic" in found for found in best(kept, embedder, *range(50)))
    assert kept.size == 0


def test_passages_that_fail_leave_nothing(inner: Broken, embedder: ServedEmbedder) -> None:
    """An embedder that fails fails the search, and the next one is answered."""
    kept = PassageVectors()
    query = embedder.encode_query(["about topic1"])[0]
    inner.broken = True
    with pytest.raises(EmbedderError):
        kept.best(embedder, [(query, text(1))])
    inner.broken = False
    assert best(kept, embedder, 1) == ["only here it is about topic1 and about topic1 alone."]


def test_embedders_do_not_share_vectors(inner: Broken, embedder: ServedEmbedder) -> None:
    """The same text under another model is encoded anew."""
    kept = PassageVectors()
    other_inner = Broken(64, "hash-2")
    other = ServedEmbedder(other_inner, "other", Batcher(other_inner, 1000, 1_000_000))
    assert best(kept, embedder, 1) == best(kept, other, 1)
    assert other_inner.calls == 2
