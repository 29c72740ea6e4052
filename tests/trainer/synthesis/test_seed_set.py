"""The seed set in examples/synthetic: what it holds, and that every row keeps to what it says of itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from embedkit_trainer.data.files import row_files
from embedkit_trainer.data.rows import read_rows
from embedkit_trainer.synthesis.filters.example import TYPES, Changed, Dropped, Example
from embedkit_trainer.synthesis.filters.near import NearDuplicateFilter
from embedkit_trainer.synthesis.filters.pipeline import read_examples
from embedkit_trainer.synthesis.filters.words import count_words, is_spaced
from embedkit_trainer.synthesis.languages import LANGUAGES

SEED_SET = Path(__file__).resolve().parents[3] / "examples" / "synthetic"


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """All rows, as the filters read them."""
    return list(read_examples(row_files(SEED_SET)))


def _drawn(rows: list[Example], name: str) -> Counter[str]:
    return Counter(str(e.placeholders[name]) for e in rows if name in e.placeholders)


def test_every_row_is_a_row_of_the_trainer(rows: list[Example]) -> None:
    """Read by the trainer, with an instruction and an id of its own, in the file of its type, in one of 93 languages."""
    assert len(list(read_rows(SEED_SET))) == len(rows) == 978
    assert {e.record["id"][:3] for e in rows} == {"s1-", "s2-", "s3-"}
    assert len({e.record["id"] for e in rows}) == len({e.row.instruction for e in rows}) == len(rows)
    assert all(e.type == e.file.stem and e.row.source == "embedkit-synthetic" for e in rows)
    assert {e.language(side) for e in rows for side in "qd"} <= set(LANGUAGES)


def test_counts_by_type_and_language(rows: list[Example]) -> None:
    """As README tells: six types, the asymmetric ones of unlike length most often; 81 languages, each in two rows and more."""
    types = Counter(e.type for e in rows)
    assert types == {
        "short-long": 225, "long-short": 182, "bitext": 166, "sts": 157, "short-short": 136, "long-long": 112
    }  # fmt: skip
    assert set(types) == set(TYPES)
    used = Counter(language for e in rows for language in {e.language("q"), e.language("d")})
    assert len(used) == 81
    assert min(used.values()) >= 2
    assert Counter(e.language("q") for e in rows)["en"] == 408


def test_the_rows_that_the_bundled_embedder_saw_are_told_apart(rows: list[Example]) -> None:
    """Ids that begin with s1 or s2: 650."""
    assert sum(not e.record["id"].startswith("s3-") for e in rows) == 650


def test_what_was_rare_is_there(rows: list[Example]) -> None:
    """Long passages, short and ambiguous queries, phrases, the highest difficulty, and rows without negatives."""
    sizes = _drawn(rows, "num_words")
    assert min(sizes[s] for s in ("100", "200", "300", "400", "500", "less than 10", "at least 200")) >= 4
    assert _drawn(rows, "query_length")["less than 5 words"] >= 25
    assert _drawn(rows, "clarity")["ambiguous"] >= 30
    assert _drawn(rows, "unit")["phrase"] >= 25
    assert _drawn(rows, "difficulty")["PhD"] >= 75
    assert sum(not e.row.negatives for e in rows) == 13


def test_long_passages_have_the_words_they_claim(rows: list[Example]) -> None:
    """Of 200 words and more, positive and negatives miss the number by an eighth at most."""
    long = [e for e in rows if e.type == "short-long" and int(e.placeholders["num_words"]) >= 200]
    assert len(long) >= 20
    for e in long:
        wanted = int(e.placeholders["num_words"])
        for text in (e.row.positive, *e.row.negatives):
            assert wanted * 0.875 <= count_words(text) <= wanted * 1.125, (e.record["id"], count_words(text))


def test_queries_and_labelled_texts_have_the_words_they_claim(rows: list[Example]) -> None:
    """Exactly, where words are separated by spaces."""
    for e in rows:
        if not is_spaced(e.row.query):
            continue
        words = count_words(e.row.query)
        if said := e.placeholders.get("query_length"):
            low, high = {
                "less than 5 words": (1, 4),
                "5 to 15 words": (5, 15),
                "at least 10 words": (10, 999),
            }[said]
            assert low <= words <= high, (e.record["id"], said, words)
        if e.type == "long-short":
            said = e.placeholders["num_words"]
            number = int(said.split()[-1])
            assert words < number if said.startswith("less") else words >= number, (
                e.record["id"],
                said,
                words,
            )


def test_a_text_to_classify_does_not_give_its_label_away(rows: list[Example]) -> None:
    """The label of a long-short row of two words and more is not in the text."""
    for e in rows:
        if e.type == "long-short" and len(e.row.positive.split()) > 1:
            assert e.row.positive.casefold() not in e.row.query.casefold(), e.record["id"]


def test_hard_negatives_are_neither_the_positive_nor_the_query(rows: list[Example]) -> None:
    """Under any spelling of capitals and spaces."""
    for e in rows:
        texts = [" ".join(t.casefold().split()) for t in (e.row.query, e.row.positive, *e.row.negatives)]
        assert len(set(texts)) == len(texts), e.record["id"]


def test_no_two_rows_are_nearly_the_same(rows: list[Example]) -> None:
    """None is dropped at 0.8."""
    pytest.importorskip("datasketch")
    found = NearDuplicateFilter(0.8).check(rows)
    assert [o for o in found if isinstance(o, Dropped | Changed)] == []
