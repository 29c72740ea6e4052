"""Reading word2vec and GloVe files, good and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedkit import get_embedder
from embedkit.embedders import word_vectors
from embedkit.embedders.word_vectors import read_word_vectors
from embedkit.errors import InputError

FORMATS = ("word2vec-text", "word2vec-binary", "word2vec-binary-newlines", "glove")


def write(path: Path, form: str, words: list[str], table: NDArray[np.float32]) -> Path:
    """Write word vectors in the layout that the original tools give."""
    header = f"{len(words)} {table.shape[1]}\n".encode()
    if form.startswith("word2vec-binary"):
        end = b"\n" if form.endswith("newlines") else b""
        rows = [
            w.encode() + b" " + v.astype("<f4").tobytes() + end for w, v in zip(words, table, strict=True)
        ]
    else:
        # word2vec and fastText leave a space at the line's end, GloVe does not.
        end = b" \n" if form == "word2vec-text" else b"\n"
        rows = [
            " ".join([w, *map(repr, map(float, v))]).encode() + end for w, v in zip(words, table, strict=True)
        ]
    body = b"".join(rows) if form == "glove" else header + b"".join(rows)
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


words_strategy = st.lists(
    st.text(
        st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters="\x85"), min_size=1, max_size=8
    ).filter(lambda w: not w.isspace() and not _is_number(w)),
    unique=True,
    min_size=1,
    max_size=30,
)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(words=words_strategy, dim=st.integers(3, 9))
def test_round_trip(tmp_path: Path, form: str, suffix: str, words: list[str], dim: int) -> None:
    """Every layout, gzipped or not, gives back the words and the exact float32 vectors written."""
    table = np.random.default_rng(dim).standard_normal((len(words), dim)).astype(np.float32)
    found = read_word_vectors(write(tmp_path / f"v{suffix}", form, words, table), cache=False)
    assert list(found.rows) == words
    assert found.table.dtype == np.float32
    np.testing.assert_array_equal(found.table, table)


@pytest.mark.parametrize("form", FORMATS)
def test_blocks_and_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Reading in blocks smaller than a row gives the same table, and `limit` its first rows."""
    words = [f"w{i}" for i in range(50)]
    table = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)
    path = write(tmp_path / "v", form, words, table)
    monkeypatch.setattr(word_vectors, "_READ", 17)
    np.testing.assert_array_equal(read_word_vectors(path).table, table)
    first = read_word_vectors(path, limit=3)
    assert list(first.rows) == words[:3]
    np.testing.assert_array_equal(first.table, table[:3])


def test_words_with_spaces(tmp_path: Path) -> None:
    """GloVe's few words that hold spaces are read, as are tabs between the numbers."""
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\nat name@domain.com 4 5 6\n. . . 7 8 9\ntab\t1\t1\t1\n")
    found = read_word_vectors(path)
    assert list(found.rows) == ["the", "at name@domain.com", ". . .", "tab"]
    np.testing.assert_array_equal(found.table, [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]])


TEXT_FAULTS = {
    "too few numbers": (b"2 3\na 1 2 3\nb 1 2\n", r"line 3: has 2 numbers, expected 3"),
    "too many numbers": (b"2 3\na 1 2 3\nb 1 2 3 4\n", r"line 3: has 4 numbers, expected 3"),
    # The two counts cancel out, so a total over the file would not show them.
    "too many, then too few": (b"a 1 2 3\nb 1 2 3 4\nc 1 2\n", r"line 2: has 4 numbers, expected 3"),
    "no float": (b"2 3\na 1 2 3\nb 1 x2 3\n", r"line 3: has b'x2' where a number should be"),
    "NaN": (b"a 1 2 3\nb 1 nan 3\n", r"line 2: holds NaN or infinity"),
    "overflow": (b"a 1 2 3\nb 1 1e99 3\n", r"line 2: holds NaN or infinity"),
    "broken UTF-8": (
        b"a 1 2 3\nb\xff 1 2 3\n",
        r"line 2: has the word b'b\\xff', which is not UTF-8.*bad_words",
    ),
    "duplicate": (b"2 3\na 1 2 3\na 1 2 3\n", r"line 3: has the word 'a' a second time.*bad_words"),
    "fewer rows than promised": (b"3 3\na 1 2 3\nb 1 2 3\n", r"promises 3 words, the file holds 2"),
    "more rows than promised": (b"1 3\na 1 2 3\nb 1 2 3\n", r"promises 1 words, the file holds 2"),
    "header alone": (b"5 3\n", r"promises 5 words, the file holds 0"),
    "empty": (b"", r"holds no word vector"),
    "prose": (b"It was a dark night.\n", r"line 1: is b'It was a dark night"),
    "fastText model": (b"\xba\x16\x4f\x2f\x0c\0\0\0", r"fastText model.*\.vec"),
}


@pytest.mark.parametrize("name", TEXT_FAULTS)
def test_damaged_text(tmp_path: Path, name: str) -> None:
    """Each fault of a text file is one InputError with the file and the line."""
    content, message = TEXT_FAULTS[name]
    path = tmp_path / "damaged.vec"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_word_vectors(path)
    assert str(path) in str(caught.value)


def test_skipped_words(tmp_path: Path) -> None:
    """bad_words='skip' leaves out broken and repeated words, keeps the first of a pair and checks the count."""
    path = tmp_path / "v.vec"
    path.write_bytes(b"4 3\na 1 2 3\nb\xff 4 5 6\na 7 8 9\nc 1 1 1\n")
    found = read_word_vectors(path, bad_words="skip")
    assert list(found.rows) == ["a", "c"]
    np.testing.assert_array_equal(found.table, [[1, 2, 3], [1, 1, 1]])


@pytest.mark.parametrize("lost", [1, 11, 12, 13, 20])
def test_truncated_binary(tmp_path: Path, lost: int) -> None:
    """A binary file that lost any bytes at its end is refused, with the offset of the row that is cut."""
    path = write(
        tmp_path / "v.bin", "word2vec-binary", ["alpha", "beta", "gamma"], np.ones((3, 3), np.float32) * 0.3
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    last = len(whole) - len(b"gamma ") - 12 if lost < 18 else len(whole) - len(b"beta gamma ") - 24
    with pytest.raises(InputError, match=rf"byte {last}: the last vector is cut short"):
        read_word_vectors(path)


def test_binary_with_wrong_dimension(tmp_path: Path) -> None:
    """A header with the wrong dimension throws the words out of step: refused with a byte offset."""
    table = np.random.default_rng(2).standard_normal((20, 8)).astype(np.float32)
    path = write(tmp_path / "v.bin", "word2vec-binary", [f"w{i}" for i in range(20)], table)
    path.write_bytes(path.read_bytes().replace(b"20 8\n", b"20 7\n", 1))
    with pytest.raises(InputError, match=r"byte \d+: "):
        read_word_vectors(path)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    form=st.sampled_from(FORMATS), cut=st.integers(0, 400), junk=st.binary(max_size=40), zipped=st.booleans()
)
def test_damage_never_crashes(tmp_path: Path, form: str, cut: int, junk: bytes, zipped: bool) -> None:
    """A file cut anywhere with junk behind it is read or refused with InputError: nothing else is raised."""
    words = [f"w{i}" for i in range(12)]
    table = np.random.default_rng(3).standard_normal((12, 5)).astype(np.float32)
    path = write(tmp_path / ("v.gz" if zipped else "v"), form, words, table)
    path.write_bytes(path.read_bytes()[:cut] + junk)
    try:
        found = read_word_vectors(path, cache=False)
    except InputError as e:
        assert "v" in str(e)
    else:
        assert len(found.rows) == len(found.table) > 0
        assert np.isfinite(found.table).all()


def test_parsed_table_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second opening maps the stored table; another content, limit or a broken cache is read anew."""
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(word_vectors, "_CACHED_FROM", 0)
    words, table = ["a", "b", "c\r"], np.random.default_rng(4).standard_normal((3, 4)).astype(np.float32)
    path = write(tmp_path / "v.bin", "word2vec-binary", words, table)
    assert not isinstance(read_word_vectors(path).table, np.memmap)
    again = read_word_vectors(path)
    assert isinstance(again.table, np.memmap)
    assert list(again.rows) == words
    np.testing.assert_array_equal(again.table, table)
    assert len(read_word_vectors(path, limit=2).rows) == 2
    for file in (tmp_path / "cache").rglob("table.npy"):
        file.write_bytes(file.read_bytes()[:-5])
    np.testing.assert_array_equal(read_word_vectors(path).table, table)
    assert isinstance(read_word_vectors(path).table, np.memmap)
    write(path, "word2vec-binary", words, table * 2)
    np.testing.assert_array_equal(read_word_vectors(path).table, table * 2)


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made costs nothing but time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBEDKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(word_vectors, "_CACHED_FROM", 0)
    path = write(tmp_path / "v", "glove", ["a", "b"], np.ones((2, 3), np.float32))
    assert len(read_word_vectors(path).rows) == 2


@pytest.mark.parametrize("name", ["v.vec", "v.bin", "v.txt", "v.txt.gz", "v.bin.gz"])
def test_registry_knows_the_files(tmp_path: Path, name: str) -> None:
    """`get_embedder` takes the path of a word-vector file, gzipped or not, without naming the kind."""
    path = write(tmp_path / name, "word2vec-text", ["a", "b"], np.eye(2, 3, dtype=np.float32))
    assert get_embedder(str(path)).info.dim == 3


def test_an_endless_line_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without newlines is given up after a bounded read, with its path."""
    monkeypatch.setattr(word_vectors, "_LONGEST_LINE", 1 << 20)
    (tmp_path / "endless.txt").write_bytes(b"moon 1 0\n" + b"x" * (10 << 20))
    with pytest.raises(InputError, match=r"endless\.txt holds no word vectors"):
        read_word_vectors(tmp_path / "endless.txt")
