"""The pure parts of benchmarks/bundled.py do what plain loops do."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bundled_cases import Source
from benchmarks.bundled_measures import (
    accuracy,
    bm25_scores,
    choose_weight,
    fuse,
    int8_rounded,
    ndcg,
    ranked,
    shortened,
    tokens,
)
from benchmarks.bundled_rows import BITEXT, CROSS, ENGLISH, ROWS, SAME, SWITCH, Column
from embedkit.evaluation import measure


def test_ndcg_is_that_of_trec_eval_and_of_a_plain_loop() -> None:
    """Graded judgements, short rankings and rankings without a hit all give trec_eval's figure."""
    rng = random.Random(1)
    for _ in range(50):
        grades = {d: rng.choice([0, 1, 1, 2, 3]) for d in rng.sample(range(40), 12)} | {40: 1}
        ranking = rng.sample(range(41), rng.choice([1, 5, 10, 41]))
        plain = 0.0
        for place in range(min(10, len(ranking))):
            plain += grades.get(ranking[place], 0) / math.log2(place + 2)
        best = sorted(grades.values())[::-1][:10]
        plain /= sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
        found = ndcg(ranking, grades)
        theirs = measure({"q": {str(d): g for d, g in grades.items()}}, {"q": [str(d) for d in ranking]})
        assert found == pytest.approx(plain, abs=1e-12) == theirs["q"].ndcg


def test_a_query_without_a_ranking_or_a_relevant_document_scores_zero() -> None:
    """An empty ranking counts as a miss, and so does a query that has nothing to find."""
    assert ndcg([], {1: 1}) == accuracy([], {1: 1}) == 0
    assert ndcg([1], {1: 0}) == ndcg([1], {}) == 0
    assert accuracy([1, 2], {2: 1}) == 0
    assert accuracy([2, 1], {2: 1}) == 1


def test_a_ranking_leaves_out_hidden_documents_and_keeps_the_order_of_equals() -> None:
    """A document at minus infinity is not ranked at all, however deep the ranking."""
    scores = np.array([[0.5, -np.inf, 0.9, 0.5], [-np.inf] * 4], dtype=np.float32)
    assert ranked(scores, 10) == [[2, 0, 3], []]
    assert ranked(scores, 2) == [[2, 0], []]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_reciprocal_rank_fusion_is_a_sum_over_both_rankings(weight: float) -> None:
    """A document of one ranking alone is there, with what that ranking gives it."""
    rng = random.Random(2)
    dense, lexical = rng.sample(range(30), 20), rng.sample(range(30), 12)
    sums = []
    for document in range(30):
        value = 0.0
        if document in dense:
            value += weight / (60 + dense.index(document) + 1)
        if document in lexical:
            value += (1 - weight) / (60 + lexical.index(document) + 1)
        if value:
            sums.append((-value, document))
    assert fuse(dense, lexical, weight) == [document for _, document in sorted(sums)]


def test_the_weight_keeps_bm25_on_every_training_set_before_it_raises_the_mean() -> None:
    """A better mean that costs one set more than 2% is refused; where all cost more, the mildest is taken."""
    fused = {0.1: [0.80, 0.81], 0.3: [0.79, 0.85], 0.9: [0.70, 0.99]}
    assert choose_weight(fused, [0.80, 0.80], 0.98) == 0.3
    assert choose_weight(fused, [0.99, 0.80], 0.98) == 0.1
    assert choose_weight({0.2: [0.8], 0.1: [0.8]}, [0.8], 0.98) == 0.1


def test_words_are_cut_and_scripts_without_spaces_become_bigrams() -> None:
    """Each run of a script is cut in its own way, so that a Latin name in a Chinese question stays a word."""
    assert tokens("Retrieval, of PASSAGES!") == ["retrie", "of", "passag"]
    assert tokens("東京都は2020年") == ["東京", "京都", "都は", "2020", "年"]
    assert tokens("誰是 Einstein？") == ["誰是", "einste"]
    assert tokens("서울의 날씨") == ["서울", "울의", "날씨"]
    assert tokens("ที่นี่") == [a + b for a, b in zip("ที่นี่", "ที่นี่"[1:], strict=False)]
    assert tokens("हिन्दी में") == ["हिन्दी", "में"]  # six code points: the vowel signs belong to the word
    assert tokens("…?!") == []


def test_bm25_is_that_of_a_plain_loop() -> None:
    """bm25s with k1 0.9 and b 0.4 is Lucene's formula over these terms; no common term means no rank."""
    pytest.importorskip("bm25s")
    documents = ["the tide and the moon", "bread and salt and bread", "the engine", "月と潮"]
    queries = ["the moon", "bread", "月と太陽", "nothing here", "?"]
    found = bm25_scores(documents, queries)
    cut = [tokens(d) for d in documents]
    average = sum(map(len, cut)) / len(cut)
    for query, row in zip(queries, found, strict=True):
        for words, score in zip(cut, row, strict=True):
            plain = 0.0
            for term in tokens(query):
                holders = sum(term in other for other in cut)
                idf = math.log(1 + (len(cut) - holders + 0.5) / (holders + 0.5))
                count = words.count(term)
                plain += idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * len(words) / average))
            assert score == pytest.approx(plain if plain else -math.inf, rel=1e-5)


def test_int8_rounds_to_the_nearest_of_255_steps() -> None:
    """The largest magnitude of a vector survives exactly, the others move by at most half a step; zeros stay."""
    vectors = np.random.default_rng(3).standard_normal((7, 33)).astype(np.float32)
    vectors[4] = 0
    found = int8_rounded(vectors)
    assert found.dtype == np.float32
    for row, rounded in zip(vectors.tolist(), found.tolist(), strict=True):
        step = max(abs(x) for x in row) / 127
        for x, y in zip(row, rounded, strict=True):
            expected = round(x / step) * step if step else 0.0
            assert y == pytest.approx(expected, abs=1e-6)
            assert abs(x - y) <= step / 2 + 1e-6


def test_a_short_vector_is_the_prefix_at_unit_length() -> None:
    """The cosine of two prefixes is their dot product; a row of zeros stays."""
    vectors = np.array([[3, 4, 12], [0, 0, 1]], dtype=np.float32)
    assert shortened(vectors, 2).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_every_row_passes_and_fails_at_its_bar() -> None:
    """Figures just above the bars pass every row; the worst case a set below them fails it and is named."""
    names = {*ENGLISH, *SAME, *CROSS, *BITEXT, *SWITCH}
    low = dict.fromkeys(names, 0.3)
    high = {m: dict.fromkeys(names, 0.61) for m in ("ndcg", "fused", "accuracy", "int8", "dim128")}
    column = Column({**high, "other": dict.fromkeys(names, 0.5)}, low, low)
    assert all(row.judge(column).passed for row in ROWS.values())
    for row in ROWS.values():
        worse = {**column.measures, row.measure: dict.fromkeys(names, 0.05)}
        verdict = row.judge(Column(worse, low, low))
        assert not verdict.passed
        assert row.name in ("bitext", "int8", "dim128") or verdict.misses == list(row.cases)


def _data(folder: Path) -> Path:
    place, train = folder / "eval" / "small", folder / "train" / "small"
    place.mkdir(parents=True)
    train.mkdir(parents=True)

    def write(path: Path, *records: object) -> None:
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    write(
        place / "corpus.jsonl",
        {"_id": "b", "title": "Moon", "text": "tide", "lang": "en"},
        {"_id": "a", "title": "", "text": "bread", "lang": "en"},
        {"_id": "c", "title": "", "text": "Brot", "lang": "de"},
    )
    write(
        place / "queries.jsonl",
        {"_id": "q-a", "text": "bread", "lang": "en"},
        {"_id": "b", "text": "tide", "lang": "en"},
        {"_id": "x", "text": "Mond", "lang": "de"},
    )
    table = ["query-id\tcorpus-id\tscore", "q-a\tb\t1", "q-a\tc\t2", "b\tb\t1", "x\tc\t1"]
    (place / "qrels.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    write(
        train / "pairs.jsonl",
        {"query": "one", "positive": "p", "task": "faq"},
        {"query": "one", "positive": "r", "task": "faq"},
        {"query": "two", "positive": "p", "task": "faq"},
    )
    instructions = {"eval_sets": {"small": "Find."}, "train_tasks": {"faq": ["Answer.", "Else."]}}
    (folder / "INSTRUCTIONS.json").write_text(json.dumps(instructions), encoding="utf-8")
    return folder


def test_a_case_is_restricted_to_its_languages_and_knows_the_query_itself(tmp_path: Path) -> None:
    """A document with the query's id is hidden, unless it is judged relevant; titles stand before texts."""
    case = Source(_data(tmp_path)).case("small", "small", "en", "en")
    assert case.documents == ["bread", "Moon\n\ntide"]
    assert case.queries == ["bread", "tide"]
    assert case.grades == [{1: 1}, {1: 1}]
    assert case.itself == [0, None]
    assert case.instruction == "Find."


def test_a_training_case_holds_each_passage_once(tmp_path: Path) -> None:
    """A question asked twice is one query with two answers, and a shared passage is one document."""
    case = Source(_data(tmp_path)).training_case("small")
    assert case.documents == ["p", "r"]
    assert dict(zip(case.queries, case.grades, strict=True)) == {"one": {0: 1, 1: 1}, "two": {0: 1}}
    assert case.instruction == "Answer."


@pytest.mark.skipif("EMBEDKIT_DATA" not in os.environ, reason="EMBEDKIT_DATA names no data folder")
def test_bm25_finds_most_answers_of_a_real_set() -> None:
    """On the smallest real set BM25 is the strong rival that the table takes it for."""
    pytest.importorskip("bm25s")
    case = Source(Path(os.environ["EMBEDKIT_DATA"])).case("norquad_test", "norquad_test")
    rankings = ranked(bm25_scores(case.documents, case.queries), 10)
    assert np.mean([ndcg(r, g) for r, g in zip(rankings, case.grades, strict=True)]) > 0.85
