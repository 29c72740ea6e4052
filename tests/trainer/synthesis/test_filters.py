"""Each filter takes out what is wrong, by its own reason, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import InputError
from embedkit_indexes.corpus.language import identify_language, known_languages
from embedkit_trainer.data.files import row_files
from embedkit_trainer.synthesis.filters.compliance import LengthFilter, word_limits
from embedkit_trainer.synthesis.filters.contamination import ContaminationFilter
from embedkit_trainer.synthesis.filters.duplicates import DuplicateFilter
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Filter
from embedkit_trainer.synthesis.filters.language import LanguageFilter
from embedkit_trainer.synthesis.filters.near import NearDuplicateFilter, NearIndex
from embedkit_trainer.synthesis.filters.pipeline import read_examples
from embedkit_trainer.synthesis.filters.words import count_words
from tests.trainer.synthesis.made_rows import example, reasons, write

SEED_SET = Path(__file__).resolve().parents[3] / "examples" / "synthetic"

GERMAN = "Der letzte Bus nach Hause fährt heute wegen der Bauarbeiten schon um zehn Uhr abends."
INDONESIAN = "Bus terakhir pulang malam ini berangkat pukul sepuluh karena ada perbaikan jalan."
ENGLISH = "The last bus home leaves at ten tonight because of the roadworks in the old town."


def _languages(sure: float = 0.8) -> LanguageFilter:
    return LanguageFilter(identify_language, known_languages(), sure)


def test_duplicates_are_dropped_by_all_their_texts() -> None:
    """The second of two equal rows goes; one that differs in instruction or negatives stays."""
    rows = [
        example(),
        example(),
        example(instruction="Find the answer"),
        example(negatives=["By the moon."]),
        example(negatives=["By the moon."], id="another"),
    ]
    assert reasons(DuplicateFilter(), rows) == ["", "exact-duplicate", "", "", "exact-duplicate"]


def test_rows_whose_own_texts_repeat_are_mended_or_dropped() -> None:
    """A positive that is its query goes; a negative that is the positive leaves its row with its id and score."""
    twice = example(
        negatives=["By the sun. ", "By luck.", "By luck."],
        negative_ids=["a", "b", "c"],
        teacher_scores=[4, 3, 2, 1],
    )
    same, mended = DuplicateFilter().check([example("x", "x"), twice])
    assert isinstance(same, Dropped) and same.reason == "positive-is-query"
    assert isinstance(mended, Changed)
    assert mended.after.record["negatives"] == ["By luck."]
    assert mended.after.record["negative_ids"] == ["b"]
    assert mended.after.record["teacher_scores"] == [4.0, 2.0]
    assert mended.before is twice


def test_a_text_surely_in_another_language_drops_its_row() -> None:
    """Query by lang_q, documents by lang_d, each negative too; the reason names the text."""
    rows = [
        example(ENGLISH, GERMAN, lang_q="en", lang_d="de"),
        example(ENGLISH, GERMAN, lang_q="en", lang_d="en"),
        example(GERMAN, ENGLISH, lang_q="en", lang_d="en"),
        example(ENGLISH, ENGLISH, negatives=[ENGLISH, GERMAN], lang="en"),
        example("東京は日本の首都です", "Tokyo", lang_q="en", lang_d="en"),
    ]
    outcomes = _languages().check(rows)
    assert [isinstance(o, Dropped) for o in outcomes] == [False, True, True, True, True]
    assert "negatives[1] is said to be en, but is de" in getattr(outcomes[3], "detail", "")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lang_q": "ms", "lang_d": "ms"},
        {"lang_q": "su", "lang_d": "jv"},
        {"lang_q": "ms-Latn", "lang_d": "MS"},
    ],
)
def test_close_relatives_and_unnamed_languages_pass(keys: dict[str, Any]) -> None:
    """Malay is not told from Indonesian for sure, nor is a language that the detector does not know."""
    assert reasons(_languages(), [example(INDONESIAN, INDONESIAN, **keys)]) == [""]


def test_most_swapped_languages_are_found() -> None:
    """Of the seed set's queries of 40 characters and more, said to be in another language, nine in ten are found."""
    import random

    draw = random.Random(5)
    rows = [e for e in read_examples(row_files(SEED_SET)) if len(e.row.query) >= 40]
    codes = sorted({str(e.language("q")) for e in rows})
    swapped = [
        example(e.row.query, lang_q=draw.choice([c for c in codes if c != e.language("q")])) for e in rows
    ]
    assert reasons(_languages(), swapped).count("other-language") > 0.9 * len(rows)


def test_short_names_pass_in_any_language() -> None:
    """Five letters of a name are of no language."""
    assert reasons(_languages(), [example("Uganda", "Гаага", lang_q="sw", lang_d="uk")]) == [""]


@pytest.mark.parametrize(
    ("said", "limits"),
    [
        ("less than 5 words", (0, 4)),
        ("5 to 15 words", (5, 15)),
        ("5-15", (5, 15)),
        ("at least 10 words", (10, None)),
        ("at most 20", (0, 20)),
        ("50", (50, 50)),
        (200, (200, 200)),
        ("a few", None),
        (None, None),
        (True, None),
    ],
)
def test_asked_lengths_are_read(said: Any, limits: tuple[int, int | None] | None) -> None:
    """The classes of the paper's table, plain numbers, and nothing where nothing is asked."""
    assert word_limits(said) == limits


def test_lengths_are_those_that_were_drawn() -> None:
    """num_words may be missed by twice, query_length by a quarter; a long-short row's long text is its query."""

    def drawn(query: int, positive: int, kind: str = "short-long", **placeholders: Any) -> Any:
        return example("w " * query, "v " * positive, task=kind, metadata={"placeholders": placeholders})

    rows = [
        drawn(4, 50, query_length="less than 5 words", num_words="50"),
        drawn(6, 50, query_length="less than 5 words"),
        drawn(18, 50, query_length="5 to 15 words"),
        drawn(19, 50, query_length="5 to 15 words"),
        drawn(7, 50, query_length="at least 10 words"),
        drawn(10, 24, num_words="50"),
        drawn(10, 101, num_words=50),
        drawn(60, 2, "long-short", num_words="at least 50"),
        drawn(20, 2, "long-short", num_words="at least 50"),
    ]
    expected = [
        "",
        "query-length",
        "",
        "query-length",
        "query-length",
        "num-words",
        "num-words",
        "",
        "num-words",
    ]
    assert reasons(LengthFilter(), rows) == expected


@pytest.mark.parametrize(
    ("unit", "words", "reason"),
    [
        ("phrase", 18, ""),
        ("phrase", 19, "unit"),
        ("sentence", 76, "unit"),
        ("passage", 11, "unit"),
        ("page", 1, ""),
    ],
)
def test_a_unit_has_its_size(unit: str, words: int, reason: str) -> None:
    """A phrase is short, a passage is not; a unit of one's own is not judged."""
    row = example("w " * 18, "w " * words, task="sts", metadata={"unit": unit})
    assert reasons(LengthFilter(), [row]) == [reason]


def test_placeholders_beside_other_metadata_count() -> None:
    """Rows that keep what was drawn in metadata itself, as examples/synthetic does, are judged alike."""
    row = example("a b", "c " * 5, metadata={"num_words": "50", "model": "m", "tokens": [1, 2]})
    assert reasons(LengthFilter(), [row]) == ["num-words"]
    assert dict(row.placeholders) == {"num_words": "50"}


def test_an_unfilled_placeholder_is_found_and_code_is_not() -> None:
    """`{num_words}` and a name that was drawn are left-overs; other braces are text."""
    left = example("a", "A text of {num_words} words")
    drawn = example("a", "Something in {language}", metadata={"placeholders": {"language": "French"}})
    code = example('f"{name}: {value}"', r"\frac{a}{b} {x}", metadata={"placeholders": {"clarity": "clear"}})
    assert reasons(LengthFilter(), [left, drawn, code]) == ["unfilled-placeholder"] * 2 + [""]


def test_words_are_counted_in_every_script() -> None:
    """Spaces where there are some; an estimate by characters where there are none."""
    assert count_words("one two  three\n") == 3
    assert count_words("मेरी दादी रोज़ सुबह पानी देती हैं") == 7
    assert 6 <= count_words("东京是日本的首都，人口很多。") <= 10
    assert 4 <= count_words("ปู่ของฉันขายควายสองตัว") <= 8


def test_contamination_is_a_shared_sequence_or_a_whole_text(tmp_path: Path) -> None:
    """Thirteen words in a row; of a shorter text the whole; case and punctuation do not matter, instructions neither."""
    evaluation = write(
        tmp_path / "queries.jsonl",
        {"_id": "1", "text": "Why do the leaves of some trees turn red in autumn before they fall off?"},
        {"_id": "2", "query": "How tall is the Eiffel Tower?", "positives": ["Yes."]},
    )
    words = "in the garden why do the leaves of some trees turn red in autumn before they fell"
    rows = [
        example("a b c d", f"{words} and more"),
        example("a b c d", words.replace("autumn", "spring")),
        example("how TALL is the eiffel tower", "324 m"),
        example("how tall is the eiffel tower in spring", "yes"),
        example("a b c d", "e", negatives=["f", words]),
        example("a b c d", "e", instruction="How tall is the Eiffel Tower?"),
    ]
    found = ContaminationFilter([evaluation]).check(rows)
    assert [isinstance(o, Dropped) for o in found] == [True, False, True, False, True, False]
    assert "negatives[1] shares text" in getattr(found[4], "detail", "")
    assert reasons(ContaminationFilter([evaluation], 8), rows[1:2]) == ["contaminated"]


def test_evaluation_sets_are_read_in_every_form(tmp_path: Path) -> None:
    """Plain lines, compressed JSON lines, Parquet, and folders of them; Chinese by its characters."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("the first of the plain texts\n", encoding="utf-8")
    with gzip.open(tmp_path / "set" / "b.jsonl.gz", "wt", encoding="utf-8") as f:
        f.write(json.dumps({"passage": {"title": "the second of the nested texts"}}) + "\n")
    pq.write_table(pa.table({"text": ["东京是日本的首都"], "id": ["x"]}), tmp_path / "set" / "c.parquet")
    rows = [
        example("the first of the plain texts"),
        example("The second of the nested texts"),
        example("东京是日本的首都。"),
        example("a third of the other texts"),
    ]
    assert reasons(ContaminationFilter([tmp_path / "set"]), rows) == ["contaminated"] * 3 + [""]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("a.pdf", "x", "is no evaluation set by its name"),
        ("a.txt", "one two\n", "holds no text of 4 words or more"),
        ("a.jsonl", "{broken\n", "malformed JSON"),
    ],
)
def test_an_evaluation_set_that_is_none_is_named(
    tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    """Nothing is filtered against a set that was not read."""
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=sentence):
        ContaminationFilter([tmp_path / name])


def test_near_duplicates_need_both_texts_alike() -> None:
    """A reworded row goes; the same passage for another query, and the same query with another passage, stay."""
    pytest.importorskip("datasketch")
    passage = (
        "Quarantine stations slit the envelopes with spiked tongs and hung them over burning sulphur so that the fumes "
        "could reach the paper inside, and clerks then applied a cachet that certified the treatment of the letter."
    )
    query = "how were letters disinfected in the harbours during the great cholera outbreaks of the century"
    other = "Bees find their way home by the sun, by the polarised light of the sky, and by landmarks they learnt."
    rows = [
        example(query, passage),
        example(query + "?", passage.replace("spiked tongs", "spiked pincers")),
        example("which cachets did postal clerks apply to treated mail in quarantine stations", passage),
        example(query, other),
    ]
    assert reasons(NearDuplicateFilter(0.8), rows) == ["", "near-duplicate", "", ""]
    kept, dropped = NearDuplicateFilter(0.8).check(rows[:2])
    assert kept is rows[0]
    assert "rows.jsonl, line 1" in getattr(dropped, "detail", "")


def test_near_duplicates_by_likeness() -> None:
    """Of 200 texts with one word in twenty replaced nearly all are found at 0.7, of unlike ones none."""
    pytest.importorskip("datasketch")
    import random

    draw = random.Random(3)
    index = NearIndex(0.7)
    found = wrong = 0
    for _ in range(200):
        query, positive = ([f"w{draw.randrange(5000)}" for _ in range(40)] for _ in range(2))
        wrong += index.find(" ".join(query), " ".join(positive)) is not None
        query[7] = positive[21] = "replaced"
        found += index.find(" ".join(query), " ".join(positive)) is not None
    assert found >= 190 and wrong == 0


def test_the_seed_set_passes_every_filter_of_texts() -> None:
    """Rows written by hand in many languages: no filter of texts drops one."""
    pytest.importorskip("datasketch")
    rows = list(read_examples(row_files(SEED_SET)))
    judges: list[Filter] = [DuplicateFilter(), _languages(), LengthFilter(), NearDuplicateFilter(0.7)]
    for judge in judges:
        assert [o for o in judge.check(rows) if isinstance(o, Dropped | Changed)] == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LengthFilter(0.5), "factor of num_words is 0.5"),
        (lambda: LengthFilter(slack=0), "slack of query_length is 0"),
        (lambda: _languages(1.5), "confidence is 1.5"),
        (lambda: NearDuplicateFilter(0), "likeness is 0"),
        (lambda: ContaminationFilter([], 2), "sequences of 2 words"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, sentence: str) -> None:
    """One sentence names the setting and its value."""
    with pytest.raises(InputError, match=sentence):
        make()
