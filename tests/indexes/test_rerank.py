"""The second stage of a search: what is scored, how hits are ordered, what is told of the cost."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedkit import Reranker, RerankerInfo, Task, get_reranker
from embedkit.errors import InputError, RerankerError, UnknownNameError
from embedkit.rerankers.base import RerankWarning, Scores
from embedkit_indexes import Document, Index, open_indexes
from embedkit_indexes.reranking import DEPTH
from tests.embedkit.tiny_rerankers import plain_scores, save_cross_encoder

if TYPE_CHECKING:
    from tests.indexes.conftest import HashEmbedder

QUERY = "word1 word2 word3"


class Digits(Reranker):
    """Score by the share of odd digits in a text, rounded so that many are equal; keep what was asked."""

    def __init__(self, instructed: bool = False, values: Any = None) -> None:
        self.info = RerankerInfo("digits", 64, "test", instructed)
        self.values = values
        self.asked: list[tuple[str, list[str], str | None]] = []

    def _score(self, query: str, texts: Sequence[str], instruction: str | None) -> Scores:
        self.asked.append((query, list(texts), instruction))
        if self.values is not None:
            return Scores(self.values)
        return Scores([value_of(t) for t in texts], sum(map(len, texts)))


def value_of(text: str) -> float:
    """Return the share of odd digits in a text, in tenths."""
    digits = [c for c in text if c.isdigit()]
    return round(sum(c in "13579" for c in digits) / max(1, len(digits)), 1)


@pytest.fixture
def index(tmp_path: Path, embedder: HashEmbedder, documents: list[Document]) -> Index:
    """An index of 200 documents."""
    Index.build(tmp_path / "index", documents, embedder)
    return Index.open(tmp_path / "index", embedder)


def test_order_is_the_rerankers(index: Index) -> None:
    """The candidates of the first stage are ordered by the reranker's score, equal ones as before, and cut to k."""
    first = index.search(QUERY, k=30)
    found = index.search(QUERY, k=7, rerank=Digits(), rerank_depth=30)
    expected = sorted(first.hits, key=lambda h: -value_of(h.text))[:7]
    assert [h.chunk_id for h in found.hits] == [h.chunk_id for h in expected]
    assert [h.first_rank for h in found.hits] == [h.rank for h in expected] != list(range(1, 8))
    assert [h.rank for h in found.hits] == list(range(1, 8))
    assert [h.score for h in found.hits] == [h.score for h in expected]
    assert [h.rerank_score for h in found.hits] == [pytest.approx(value_of(h.text)) for h in found.hits]


def test_cost_is_told(index: Index) -> None:
    """A result counts the pairs and tokens of the second stage and its seconds; without one it has None everywhere."""
    reranker = Digits()
    found = index.search(QUERY, k=5, rerank=reranker, rerank_depth=20)
    assert found.rerank is not None
    assert (found.rerank.reranker, found.rerank.candidates) == ("digits", 20)
    assert found.rerank.tokens == sum(map(len, reranker.asked[0][1])) and found.rerank.seconds > 0
    plain = index.search(QUERY, k=5)
    assert plain.rerank is None
    assert {(h.rerank_score, h.first_rank) for h in plain.hits} == {(None, None)}
    for result in (found, plain):
        told = json.loads(json.dumps(result.to_dict()))
        assert told == json.loads(json.dumps(asdict(result)))
        assert pickle.loads(pickle.dumps(result)) == result


def test_depth_is_at_least_k(index: Index) -> None:
    """The depth is 50 where nobody says, k where that is more, and all there is where that is less."""
    reranker = Digits()
    for k, depth in ((5, {}), (60, {}), (5, {"rerank_depth": 2}), (5, {"rerank_depth": 999})):
        index.search(QUERY, k=k, rerank=reranker, **depth)  # type: ignore[arg-type]
    assert [len(texts) for _, texts, _ in reranker.asked] == [DEPTH, 60, 5, 200]


@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
def test_every_mode_and_filter(index: Index, mode: Any) -> None:
    """Candidates come from any mode, filters hold, and first-stage scores stay those of that mode."""
    asked: dict[str, Any] = {"mode": mode, "where": "year >= 2010", "lang": "en"}
    first = {h.chunk_id: h for h in index.search(QUERY, k=40, **asked).hits}
    found = index.search(QUERY, k=10, rerank=Digits(), rerank_depth=40, **asked)
    assert found.hits
    for hit in found.hits:
        before = first[hit.chunk_id]
        assert hit.metadata["year"] >= 2010 and hit.lang == "en"
        assert (hit.score, hit.cosine, hit.bm25) == (before.score, before.cosine, before.bm25)


def test_several_queries_and_indexes(
    tmp_path: Path, embedder: HashEmbedder, documents: list[Document]
) -> None:
    """Queries at once give what each gives alone, over two indexes as one; hits name theirs."""
    halves = [tmp_path / "a", tmp_path / "b"]
    for folder, part in zip(halves, (documents[:100], documents[100:]), strict=True):
        Index.build(folder, part, embedder)
    group = open_indexes(halves, embedder)
    queries = [QUERY, "word40 word50", "word7"]
    together = group.search_many(queries, k=5, rerank=Digits(), rerank_depth=30)
    alone = [group.search(q, k=5, rerank=Digits(), rerank_depth=30) for q in queries]
    assert [r.hits for r in together] == [r.hits for r in alone]
    assert {h.index for r in together for h in r.hits} == {str(h) for h in halves}
    ranked = group.rank(queries, k=5, rerank=Digits(), rerank_depth=30)
    assert [[tuple(c) for c in r] for r in ranked] == [
        [(h.document_id, h.rerank_score) for h in r.hits] for r in together
    ]


def test_the_reranker_gets_the_instruction(index: Index, embedder: HashEmbedder) -> None:
    """It is that of the task or the caller's words, in a search by words too, else the embedder's default."""
    reranker = Digits(instructed=True)
    recipe = Task("recipe", "Find the recipe")
    index.search(QUERY, rerank=reranker, task=recipe)
    index.search(QUERY, rerank=reranker, instruction="In my words")
    index.search(QUERY, rerank=reranker, task="qa", mode="lexical")
    index.search(QUERY, rerank=reranker)
    embedder.info = replace(embedder.info, default_task="qa")
    index.search(QUERY, rerank=reranker)
    qa = "Given a question, retrieve passages that answer the question"
    assert [i for _, _, i in reranker.asked] == ["Find the recipe", "In my words", qa, None, qa]


def test_an_untrained_reranker_warns_only_of_what_was_asked(
    index: Index, recwarn: pytest.WarningsRecorder
) -> None:
    """An instruction that it cannot obey is warned of; where none was given nothing is said."""
    index.search(QUERY, rerank=Digits())
    assert not recwarn.list
    with pytest.warns(RerankWarning, match="digits takes no instruction"):
        index.search(QUERY, rerank=Digits(), task="qa")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([float("nan")] + [0.0] * 49, "NaN or infinity for 1 of 50"),
        ([0.0] * 49, r"shape \(49,\), expected \(50,\)"),
        (["a"] * 50, "failed on 50 texts"),
    ],
)
def test_broken_scores_are_refused(index: Index, values: list[Any], message: str) -> None:
    """NaN, a wrong number of scores and what is no number raise an error; no order is made of them."""
    with pytest.raises(RerankerError, match=message):
        index.search(QUERY, rerank=Digits(values=values))


def test_wrong_arguments_are_refused(index: Index) -> None:
    """A name instead of a reranker, and a senseless depth, are told before anything is searched."""
    with pytest.raises(InputError, match=r"rerank is 'llm:x', str.*get_reranker"):
        index.search(QUERY, rerank="llm:x")  # type: ignore[arg-type]
    for depth in (0, -1, 2.5):
        with pytest.raises(InputError, match="rerank_depth is"):
            index.search(QUERY, rerank=Digits(), rerank_depth=depth)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        index.search(QUERY, rerank=Digits(), task="recipee", mode="lexical")


def test_nothing_found_is_no_error(index: Index) -> None:
    """A search without candidates asks the reranker for nothing, and tells so."""
    reranker = Digits()
    found = index.search(QUERY, where="year = 1", rerank=reranker)
    assert not found.hits and not reranker.asked
    assert found.rerank is not None and found.rerank.candidates == 0


def test_cross_encoder_over_an_index(index: Index, tmp_path: Path) -> None:
    """A tiny seeded cross-encoder orders an index's hits as plain transformers scores their texts."""
    pytest.importorskip("torch")
    folder = save_cross_encoder(tmp_path / "model")
    candidates = index.search(QUERY, k=12).hits
    scores = plain_scores(folder, QUERY, [h.text for h in candidates], 64)[:, 0]
    found = index.search(QUERY, k=12, rerank=get_reranker(str(folder)), rerank_depth=12)
    assert [h.first_rank for h in found.hits] == [i + 1 for i in np.argsort(-scores, kind="stable")]
    np.testing.assert_allclose([h.rerank_score or 0 for h in found.hits], np.sort(scores)[::-1], atol=1e-5)
