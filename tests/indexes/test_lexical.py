"""Facts about lexical search: its terms, its file, and that it returns what plain BM25 returns."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes import lexical_build
from embedkit_indexes.lexical import Bm25, LexicalIndex, build_lexical, merge_lexical, search_lexical
from embedkit_indexes.lexical_file import NAME
from embedkit_indexes.lexical_tokens import term_hash, tokenize
from embedkit_indexes.rows import RowSet

Segment = tuple[list[str], NDArray[np.bool_]]  # texts, and which rows still exist


def build(folder: Path, texts: Sequence[str], window: int = lexical_build.WINDOW) -> LexicalIndex:
    """Build and open an index; nothing but its one file is left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    assert build_lexical(folder, texts, window) == [NAME]
    assert [p.name for p in folder.iterdir()] == [NAME]
    return LexicalIndex.open(folder)


def brute_force(
    segments: Sequence[Segment], query: str, k1: float = 0.9, b: float = 0.4
) -> dict[tuple[int, int], float]:
    """Score every row that exists and has a term of the query, straight from the formula."""
    rows = {
        (s, r): Counter(tokenize(t)) for s, (texts, _) in enumerate(segments) for r, t in enumerate(texts)
    }
    mean = sum(map(Counter.total, rows.values())) / max(1, len(rows))
    scores: dict[tuple[int, int], float] = {}
    for term in tokenize(query):
        df = sum(term in counts for counts in rows.values())
        idf = math.log1p((len(rows) - df + 0.5) / (df + 0.5))
        for (s, r), counts in rows.items():
            if counts[term] and segments[s][1][r]:
                part = idf * counts[term] / (counts[term] + k1 * (1 - b + b * counts.total() / mean))
                scores[s, r] = scores.get((s, r), 0.0) + part
    return scores


def check(indexes: Sequence[LexicalIndex], segments: Sequence[Segment], query: str, k: int) -> None:
    """Compare a search with brute force: the same rows, scores and order, whatever ties do."""
    allowed = [None if kept.all() else RowSet(kept) for _, kept in segments]
    scores, numbers, rows = search_lexical(indexes, query, k, allowed)
    expected = brute_force(segments, query)
    assert [str(a.dtype) for a in (scores, numbers, rows)] == ["float32", "int64", "int64"]
    assert len(scores) == len(numbers) == len(rows) == min(k, len(expected))
    found = list(zip(numbers.tolist(), rows.tolist(), strict=True))
    assert len(set(found)) == len(found)
    np.testing.assert_allclose(scores, [expected[f] for f in found], rtol=1e-4)
    np.testing.assert_allclose(scores, sorted(expected.values(), reverse=True)[:k], rtol=1e-4)
    keys = [(-float(s), *f) for s, f in zip(scores, found, strict=True)]
    assert keys == sorted(keys)


def zipf_texts(rng: random.Random, rows: int, words: int = 60) -> list[str]:
    """Return texts of up to 30 words, the i-th word 1/i as frequent as the first."""
    vocabulary = [f"w{i}" for i in range(words)]
    weights = [1 / (i + 1) for i in range(words)]
    return [" ".join(rng.choices(vocabulary, weights, k=rng.randint(0, 30))) for _ in range(rows)]


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "dd", "ee", "日本語", "ไทย"]), max_size=8).map(" ".join),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_search_equals_brute_force(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Over segments, with deletions, before and after a merge, the best k rows are those of the plain formula."""
    root = tmp_path_factory.mktemp("lexical")
    segments: list[Segment] = []
    indexes = []
    for i, texts in enumerate(data.draw(st.lists(TEXTS, min_size=1, max_size=3))):
        kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
        segments.append((texts, kept))
        indexes.append(build(root / str(i), texts, window=data.draw(st.integers(1, 20))))
    query = data.draw(
        st.lists(st.sampled_from(["a", "b", "c", "dd", "x", "日本", "ไทย"]), max_size=5).map(" ".join)
    )
    k = data.draw(st.integers(1, 8))
    check(indexes, segments, query, k)
    kept_texts = [t for texts, kept in segments for t, there in zip(texts, kept, strict=True) if there]
    (root / "merged").mkdir()
    merge_lexical(
        root / "merged", [(i, RowSet(kept)) for i, (_, kept) in zip(indexes, segments, strict=True)]
    )
    merged = LexicalIndex.open(root / "merged")
    check([merged], [(kept_texts, np.ones(len(kept_texts), bool))], query, k)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
@pytest.mark.parametrize("k", [1, 10, 5000])
def test_skipping_frequent_terms_changes_nothing(tmp_path: Path, share: float, k: int) -> None:
    """On 3,000 rows of Zipf's words, where most postings are skipped, the result is still the formula's."""
    rng = random.Random(5)
    segments = []
    indexes = []
    for i in range(2):
        texts = zipf_texts(rng, 1500)
        segments.append((texts, np.array([rng.random() < share for _ in texts])))
        indexes.append(build(tmp_path / str(i), texts))
    for query in ("w59 w0", "w0 w1 w2", "w40 w41 w0 w0 w1 w7", "w55", "nothing w3"):
        check(indexes, segments, query, k)


def test_a_merge_is_the_file_of_a_fresh_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, ranges and merges do not show: the file is the same, byte by byte, as when built in one piece."""
    texts = zipf_texts(random.Random(2), 400)
    whole = (build(tmp_path / "whole", texts).path).read_bytes()
    monkeypatch.setattr(lexical_build, "RANGE", 50)
    assert build(tmp_path / "windows", texts, window=100).path.read_bytes() == whole
    kept = np.arange(300) % 3 > 0
    some = [t for t, there in zip(texts[:300], kept, strict=True) if there]
    a = build(tmp_path / "a", texts[:300])
    b = build(tmp_path / "b", texts[300:])
    (tmp_path / "c").mkdir()
    merge_lexical(tmp_path / "c", [(a, RowSet(kept)), (b, None)])
    fresh = build(tmp_path / "fresh", [*some, *texts[300:]])
    assert (tmp_path / "c" / NAME).read_bytes() == fresh.path.read_bytes()


def test_scores_do_not_depend_on_the_spread(tmp_path: Path) -> None:
    """The same rows in one segment or in three give the same scores, to the last bit, in the same order."""
    texts = zipf_texts(random.Random(3), 300)
    one = [build(tmp_path / "one", texts)]
    three = [build(tmp_path / str(i), texts[i * 100 : i * 100 + 100]) for i in range(3)]
    for query in ("w1 w20 w3", "w0", "w50 w30"):
        scores, _, rows = search_lexical(one, query, 20)
        other, numbers, inside = search_lexical(three, query, 20)
        np.testing.assert_array_equal(scores, other)
        np.testing.assert_array_equal(rows, numbers * 100 + inside)


def test_nothing_to_find(tmp_path: Path) -> None:
    """No rows, no allowed row, no known term or no term at all give no result, not an error."""
    empty = build(tmp_path / "empty", [])
    blank = build(tmp_path / "blank", ["", "!!!"])
    full = build(tmp_path / "full", ["one", "two"])
    assert len(search_lexical([], "one", 3)[0]) == 0
    for query in ("three", "", "?!"):
        assert len(search_lexical([empty, blank, full], query, 3)[0]) == 0
    assert len(search_lexical([full], "one", 3, [RowSet(np.zeros(2, bool))])[0]) == 0
    assert search_lexical([empty, blank, full], "one", 3)[1].tolist() == [2]


def test_parameters(tmp_path: Path) -> None:
    """`k1` and `b` are those of the formula; impossible ones, and k below 1, are refused in one sentence."""
    texts = zipf_texts(random.Random(4), 50)
    index = build(tmp_path, texts)
    scores, _, rows = search_lexical([index], "w1 w5", 50, bm25=Bm25(k1=2.0, b=0.9))
    expected = brute_force([(texts, np.ones(50, bool))], "w1 w5", 2.0, 0.9)
    np.testing.assert_allclose(scores, [expected[0, r] for r in rows.tolist()], rtol=1e-4)
    with pytest.raises(InputError, match="k1"):
        Bm25(k1=-1)
    with pytest.raises(InputError, match="b between"):
        Bm25(b=1.5)
    with pytest.raises(InputError, match="at least one"):
        search_lexical([index], "w1", 0)


def test_long_rows_and_frequent_terms_saturate(tmp_path: Path) -> None:
    """Counts stop at 255 and lengths at 65,535; the order stays."""
    index = build(tmp_path, ["a " * 300 + "b", "a b " * 40_000, "c"])
    assert index.counts.max() == 255
    assert index.lengths.tolist() == [301, 65_535, 1]
    assert index.total_length == 80_302
    assert search_lexical([index], "a", 3)[2].tolist() == [0, 1]


def test_truncated_or_altered_files_are_refused_or_answer(tmp_path: Path) -> None:
    """A file cut short is refused at open; a flipped byte is refused, or leads to no crash and no row beyond the end."""
    build(tmp_path, zipf_texts(random.Random(6), 200))
    (tmp_path / "merged").mkdir()
    path = tmp_path / NAME
    good = path.read_bytes()
    rng = random.Random(7)
    for length in [0, 1, 7, 15, 16, 100, len(good) - 1, *(rng.randrange(len(good)) for _ in range(20))]:
        path.write_bytes(good[:length])
        with pytest.raises(CorruptIndexError):
            LexicalIndex.open(tmp_path)
    for place in [*range(0, 400, 4), *(rng.randrange(len(good)) for _ in range(100))]:
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :])
        try:
            index = LexicalIndex.open(tmp_path)
            rows = search_lexical([index], " ".join(f"w{i}" for i in range(60)), 200)[2]
            assert rows.max() < index.size
            merge_lexical(tmp_path / "merged", [(index, None)])
        except CorruptIndexError:
            pass
    path.unlink()
    with pytest.raises(CorruptIndexError, match="lexical"):
        LexicalIndex.open(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a later version says that embedkit must be updated."""
    monkeypatch.setattr("embedkit_indexes.lexical_file.VERSION", 2)
    build(tmp_path, ["a"])
    monkeypatch.undo()
    with pytest.raises(CorruptIndexError, match="version 2"):
        LexicalIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Retrieval, retrievers!", ["retrie", "retrie"]),
        ("don't  stop", ["don", "t", "stop"]),
        ("Straße ＡＢＣ naïve", ["strass", "abc", "naïve"]),
        ("получает", ["получ"]),
        ("हिन्दी में", ["हिन्द", "में"]),
        ("والكتاب المدرسة كِتَاب", ["كتاب", "مدرسه", "كتاب"]),
        ("日本語 東", ["日本", "本語", "東"]),
        ("Python言語です", ["python", "言語", "語で", "です"]),
        ("ﾊﾟｿｺﾝ ㍿", ["パソ", "ソコ", "コン", "株式", "式会", "会社"]),
        ("헌법은", ["헌법", "법은"]),
        ("เชียงใหม่", ["เชีย", "ยง", "งให", "ใหม่"]),
        ("ខ្មែរ", ["ខ្មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("getUserName", ["getusername", "get", "user", "name"]),
        ("HTTPServer.parse_json()", ["httpserver", "parse_json", "http", "server", "parse", "json"]),
        ("NASA utf8 __init__", ["nasa", "utf8", "init"]),
        ("soft\u00adhyphen", ["softhy"]),
        ("\ud800 a", ["a"]),
        ("", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    """Words are cut, names in code are split, scripts without spaces give pairs."""
    assert Counter(tokenize(text)) == Counter(terms)


@given(st.text(max_size=80))
@settings(max_examples=200)
def test_terms_of_any_text(text: str) -> None:
    """Any text has terms without white space or upper case, the same after NFKC, and each has a hash of 64 bits."""
    terms = tokenize(text)
    assert all(t and not any(c.isspace() for c in t) for t in terms)
    assert all(0 <= term_hash(t) < 1 << 64 for t in terms)
    assert Counter(tokenize(f"{text} {text}")) == Counter(terms * 2)


def test_hashes_are_the_same_in_every_process() -> None:
    """Python's own hash of a string changes with the process; a term's does not."""
    code = "from embedkit_indexes.lexical_tokens import term_hash; print(term_hash('日本'))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    assert int(done.stdout) == term_hash("日本") == 4223062404410717160


def test_opening_reads_the_header_alone(tmp_path: Path) -> None:
    """The header is JSON in the first kilobyte and says how many rows and terms there are."""
    index = build(tmp_path, ["one two", "two"])
    raw = index.path.read_bytes()
    header = json.loads(raw[16 : 16 + int.from_bytes(raw[8:12], "little")])
    assert (header["version"], header["size"], header["total_length"]) == (1, 2, 3)
    assert header["end"] == len(raw)
