"""Batches: every list in step with the rows, negatives drawn purely, teacher vectors where they belong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.data.batches import Batch, assemble
from embedkit_trainer.data.rows import Row
from embedkit_trainer.data.store import TokenStore
from tests.trainer.tiny_tokens import tiny_pair


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStore]:
    """Build two sources: rows with 0 to 4 negatives, and scored pairs with teacher scores."""
    folder = tmp_path_factory.mktemp("batches")
    pair, _, _ = tiny_pair(folder / "tokenizer")
    first = [
        Row(
            f"query {i}",
            f"salt {i}",
            tuple(f"pepper {'oil ' * j}{i} {j}" for j in range(i % 5)),
            positive_id=f"c{i % 3}",
        )
        for i in range(40)
    ]
    second = [
        Row(
            f"rain {i}",
            f"soup {i}",
            ("hour",),
            score=i / 2,
            teacher_scores=(1.0, float(i)) if i % 2 else None,
        )
        for i in range(10)
    ]
    return [
        TokenStore.build(first, pair, folder / "a", SourceConfig(name="a")),
        TokenStore.build(second, pair, folder / "b", SourceConfig(name="b")),
    ]


ROWS = [(0, 4), (1, 3), (0, 0), (1, 0), (0, 9), (0, 2)]


def _batch(stores: list[TokenStore], negatives: int = 2, step: int = 0, seed: int = 0) -> Batch:
    return assemble(stores, ROWS, step=step, negatives=negatives, seed=seed)


def test_all_lists_keep_step(stores: list[TokenStore]) -> None:
    """Offsets, ids and keys of each row are those of the store's row; positives come first, 0 negatives are legal."""
    batch = _batch(stores)
    assert np.diff(batch.offsets).tolist() == [3, 2, 1, 2, 3, 3]
    assert batch.offsets[0] == 0
    assert len(batch.documents) == len(batch.text_keys) == len(batch.id_keys) == batch.offsets[-1]
    assert batch.rows == ROWS
    assert batch.sources.tolist() == [0, 1, 0, 1, 0, 0]
    for b, (source, i) in enumerate(ROWS):
        row = stores[source].row(i)
        assert batch.queries[b].tolist() == row.query.tolist()
        assert batch.query_keys[b] == row.query_key
        start, end = batch.offsets[b : b + 2]
        assert batch.documents[start].tolist() == row.documents[0].tolist()
        assert batch.id_keys[start] == row.id_keys[0]
        for d in range(start, end):
            at = row.text_keys.index(int(batch.text_keys[d]))
            assert batch.documents[d].tolist() == row.documents[at].tolist()
            assert batch.id_keys[d] == row.id_keys[at]
        assert len(set(batch.text_keys[start:end].tolist())) == end - start


def test_equal_ids_meet_within_a_source_alone(stores: list[TokenStore]) -> None:
    """Rows of one class share an id key; negatives without an id have none."""
    batch = assemble(stores, [(0, 1), (0, 4), (0, 2)], step=0, negatives=1, seed=0)
    keys = batch.id_keys[batch.offsets[:-1]]
    assert keys[0] == keys[1] != keys[2] != 0
    assert set(batch.id_keys[batch.offsets[:-1] + 1].tolist()) == {0}


def test_scores_are_nan_where_a_row_has_none(stores: list[TokenStore]) -> None:
    """Scores stand beside their rows and documents, nan elsewhere; a batch without any has None."""
    batch = _batch(stores)
    assert batch.scores is not None and batch.teacher_scores is not None
    assert batch.scores.dtype == batch.teacher_scores.dtype == np.float32
    np.testing.assert_array_equal(batch.scores, [np.nan, 1.5, np.nan, 0.0, np.nan, np.nan])
    expected = np.full(14, np.nan)
    expected[3:5] = 1.0, 3.0
    np.testing.assert_array_equal(batch.teacher_scores, expected)
    bare = assemble(stores, [(0, 4)], step=0, negatives=1, seed=0)
    assert bare.scores is None
    assert bare.teacher_scores is None
    assert bare.teacher_queries is None
    assert bare.teacher_documents is None


def test_negatives_change_with_the_step_purely(stores: list[TokenStore]) -> None:
    """The same (seed, step, row) draws the same negatives, whatever stands beside it; over steps each comes equally often."""
    row = stores[0].row(9)
    seen: Counter[int] = Counter()
    for step in range(400):
        batch = assemble(stores, [(0, 9)], step=step, negatives=1, seed=5)
        seen[row.text_keys.index(int(batch.text_keys[1]))] += 1
        beside = assemble(stores, [(1, 2), (0, 9)], step=step, negatives=1, seed=5)
        assert beside.text_keys[-1] == batch.text_keys[1]
    assert set(seen) == {1, 2, 3, 4}
    assert all(abs(n - 100) < 5 * np.sqrt(400 * 0.25 * 0.75) for n in seen.values())
    other = [assemble(stores, [(0, 9)], step=s, negatives=1, seed=6).text_keys[1] for s in range(50)]
    same = [assemble(stores, [(0, 9)], step=s, negatives=1, seed=5).text_keys[1] for s in range(50)]
    assert other != same


def test_each_source_has_its_number_of_negatives(stores: list[TokenStore]) -> None:
    """One number a source overrides the common one; 0 takes positives alone."""
    batch = assemble(stores, ROWS, step=0, negatives=[1, 0], seed=0)
    assert np.diff(batch.offsets).tolist() == [2, 1, 1, 1, 2, 2]


def test_the_worst_batch_takes_the_longest_negatives(stores: list[TokenStore]) -> None:
    """With `longest` no other choice of negatives has more tokens."""
    for negatives in (1, 2, 3):
        worst = assemble(stores, ROWS, step=0, negatives=negatives, seed=0, longest=True)
        most = sum(map(len, worst.documents))
        others = [_batch(stores, negatives, step) for step in range(60)]
        assert most == max(sum(map(len, b.documents)) for b in others)


class _Numbers:
    """Give vectors that hold (source, number, side)."""

    def __init__(self, source: int) -> None:
        self.source = source

    def _vectors(self, numbers: NDArray[np.int64], side: float) -> NDArray[np.float32]:
        return np.array([[self.source, n, side] for n in numbers], np.float32)

    def queries(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._vectors(rows, 0)

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._vectors(numbers, 1)


def test_teacher_vectors_belong_to_their_texts(stores: list[TokenStore]) -> None:
    """Each query and document gets the vector of its own source and number, the drawn negatives' among them."""
    batch = assemble(stores, ROWS, step=7, negatives=2, seed=0, teacher=[_Numbers(0), _Numbers(1)])
    assert batch.teacher_queries is not None and batch.teacher_documents is not None
    assert batch.teacher_queries.tolist() == [[s, i, 0] for s, i in ROWS]
    for b, (source, i) in enumerate(ROWS):
        row, start = stores[source].row(i), int(stores[source].document_starts[i])
        for d in range(*batch.offsets[b : b + 2].tolist()):
            number = start + row.text_keys.index(int(batch.text_keys[d]))
            assert batch.teacher_documents[d].tolist() == [source, number, 1]


def test_counts_that_do_not_fit_are_refused(stores: list[TokenStore]) -> None:
    """One number of negatives and one teacher a store; no number below 0."""
    with pytest.raises(InputError, match="1 negatives for 2 stores"):
        assemble(stores, ROWS, step=0, negatives=[1], seed=0)
    with pytest.raises(InputError, match="1 teachers for 2 stores"):
        assemble(stores, ROWS, step=0, negatives=1, seed=0, teacher=[_Numbers(0)])
    with pytest.raises(InputError, match="negatives is -1"):
        assemble(stores, ROWS, step=0, negatives=-1, seed=0)
