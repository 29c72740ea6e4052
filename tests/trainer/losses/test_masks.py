"""Masks: false negatives are found by id, by text and by an equal query, and by nothing else."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedkit_trainer.data.batches import Batch
from embedkit_trainer.losses.masks import false_negative_masks
from tests.trainer.made_batches import make_batch


def _brute_force(batch: Batch, identity: bool, text: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return query_document and query_query by the definition, pair by pair."""
    rows, documents = len(batch.offsets) - 1, len(batch.text_keys)
    positives = batch.offsets[:-1]

    def same(a: int, b: int) -> bool:
        by_id = identity and batch.id_keys[a] == batch.id_keys[b] != 0
        return bool(a == b or by_id or (text and batch.text_keys[a] == batch.text_keys[b]))

    def equal_query(i: int, k: int) -> bool:
        return bool((identity or text) and batch.query_keys[i] == batch.query_keys[k])

    of_documents = np.zeros((rows, documents), dtype=np.bool_)
    of_queries = np.zeros((rows, rows), dtype=np.bool_)
    for i in range(rows):
        for j in range(documents):
            explicit = batch.offsets[i] <= j < batch.offsets[i + 1]
            shared = any(equal_query(i, k) and same(int(positives[k]), j) for k in range(rows))
            of_documents[i, j] = j != positives[i] and (
                same(int(positives[i]), j) or (shared and not explicit)
            )
        for k in range(rows):
            of_queries[i, k] = i == k or equal_query(i, k) or same(int(positives[i]), int(positives[k]))
    return of_documents, of_queries


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_masks_equal_the_definition(data: st.DataObject, identity: bool, text: bool) -> None:
    """For random ids, texts, queries and ragged negatives, pair by pair; the mirrored masks follow from them."""
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    documents, rows = sum(counts), len(counts)

    def keys(size: int, least: int, most: int) -> NDArray[np.int64]:
        return np.array(data.draw(st.lists(st.integers(least, most), min_size=size, max_size=size)))

    batch = make_batch(
        counts,
        id_keys=keys(documents, 0, 4),
        text_keys=keys(documents, -4, 4),
        query_keys=keys(rows, 0, 5),
        sources=keys(rows, 0, 2),
    )
    masks = false_negative_masks(batch, identity=identity, text=text)
    of_documents, of_queries = _brute_force(batch, identity, text)
    assert (masks.query_document.numpy() == of_documents).all()
    assert (masks.query_query.numpy() == of_queries).all()
    positives = batch.offsets[:-1]
    itself = positives[:, None] == np.arange(documents)
    assert (masks.document_document.numpy() == (of_documents | itself)).all()
    assert (masks.document_query.numpy() == of_documents[:, positives].T).all()
    for source, rate in masks.rate_by_source.items():
        of_source = of_documents[batch.sources == source]
        assert rate == pytest.approx(of_source.sum() / max(of_source.size - len(of_source), 1))
    assert set(masks.rate_by_source) == set(batch.sources.tolist())


def test_instruction_negatives_stay() -> None:
    """One question under two instructions renders two queries: each one's positive is the other's negative."""
    batch = make_batch([1, 1, 1], query_keys=np.array([11, 12, 11]))
    masks = false_negative_masks(batch, identity=True, text=True)
    assert masks.query_document.tolist() == [
        [False, False, True],
        [False, False, False],
        [True, False, False],
    ]
    assert masks.query_query.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_rows_of_one_class_mask_each_other() -> None:
    """Rows whose positives share an id, as an intent's label, are no negatives; id 0 is no id."""
    batch = make_batch([1, 1, 1, 1], id_keys=np.array([5, 5, 0, 0]))
    masks = false_negative_masks(batch, identity=True, text=False)
    assert masks.query_document.sum() == 2
    assert masks.query_document[0, 1]
    assert masks.query_document[1, 0]


def test_own_negative_named_so_stays_unless_it_is_the_positive() -> None:
    """Another row's answer to the same query may be named a negative; a copy of the positive may not."""
    texts = np.array([1, 2, 1, 2])
    batch = make_batch([3, 1], query_keys=np.array([7, 7]), text_keys=texts)
    masks = false_negative_masks(batch, identity=True, text=True)
    assert masks.query_document[0].tolist() == [False, False, True, True]


def test_answers_known_elsewhere_are_left_out_wherever_they_stand() -> None:
    """A third row's hard negative that is a known answer of my query, by text, is none of my negatives."""
    batch = make_batch([1, 1, 2], query_keys=np.array([7, 7, 8]), text_keys=np.array([1, 2, 3, 2]))
    masks = false_negative_masks(batch, identity=False, text=True)
    assert masks.query_document[0].tolist() == [False, True, False, True]
    assert masks.query_document[2].tolist() == [False, False, False, False]


def test_both_flags_off_mask_nothing_but_self() -> None:
    """The plain in-batch loss: duplicates stay negatives, and only a query itself is left out."""
    batch = make_batch(
        [1, 1], query_keys=np.array([7, 7]), text_keys=np.array([1, 1]), id_keys=np.array([3, 3])
    )
    masks = false_negative_masks(batch, identity=False, text=False)
    assert not masks.query_document.any()
    assert torch.equal(masks.query_query, torch.eye(2, dtype=torch.bool))
    assert masks.rate_by_source == {0: 0.0}


def test_rate_counts_candidates_of_each_source() -> None:
    """Of source 4's two rows one loses one of its two candidates; source 9's row one of two."""
    batch = make_batch([1, 1, 1], text_keys=np.array([1, 2, 1]), sources=np.array([4, 4, 9]))
    assert false_negative_masks(batch, identity=True, text=True).rate_by_source == {4: 0.25, 9: 0.5}


def test_one_row_alone_has_no_candidates() -> None:
    """A batch of one pair masks nothing and divides by nothing."""
    assert false_negative_masks(make_batch([1]), identity=True, text=True).rate_by_source == {0: 0.0}


@pytest.mark.parametrize("classes", [10**12, 3000, 5])
def test_large_batches_are_masked_fast(classes: int) -> None:
    """4096 queries with 16384 documents take 0.2 to 0.6 s, whether all differ or few classes repeat."""
    draw = np.random.default_rng(0)
    batch = make_batch(
        [4] * 4096,
        query_keys=draw.integers(1, classes, 4096),
        id_keys=draw.integers(0, classes, 16384),
        text_keys=draw.integers(1, 10 * classes, 16384),
    )
    start = time.process_time()
    false_negative_masks(batch, identity=True, text=True)
    assert time.process_time() - start < 5, "a loop over pairs would take minutes"
