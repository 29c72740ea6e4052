"""Training rows: every form that is read and written, and every fault named with its file and line."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.errors import CorpusError, InputError, StoreError
from embedkit_trainer.data.rows import Row, read_rows, write_rows

FULL = Row(
    query="wie viel Salz?",
    positive="Zwei Löffel.",
    negatives=("Öl", "Wasser"),
    instruction="Find the answer.",
    source="cooking",
    positive_id="d1",
    negative_ids=("d2", None),
    teacher_scores=(0.9, 0.25, -1.0),
    score=3.5,
    line=1,
)
BARE = Row(query="a", positive="b", line=2)


def _write(path: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    data = [
        x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines
    ]
    path.write_bytes(b"\n".join(data) + b"\n")
    return path


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.ndjson", "r.jsonl.gz", "r.jsonl.xz", "r.jsonl.zst", "r.parquet", "R.JSONL"]
)
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    """Every kind of file holds every field of a row, and rows with 0 negatives stay so."""
    assert write_rows(tmp_path / name, iter([FULL, BARE])) == 2
    assert list(read_rows(tmp_path / name)) == [FULL, BARE]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_compressed_files_are_what_their_names_say(tmp_path: Path) -> None:
    """Another program's gzip and xz read ours."""
    write_rows(tmp_path / "a.jsonl.gz", [BARE])
    write_rows(tmp_path / "a.jsonl.xz", [BARE])
    expected = {"query": "a", "positive": "b"}
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes())) == expected
    assert json.loads(lzma.decompress((tmp_path / "a.jsonl.xz").read_bytes())) == expected


def test_loose_forms_of_a_row_are_read(tmp_path: Path) -> None:
    """The alias `negative`, integer ids, nulls, metadata, blank lines and a byte-order mark are all legal."""
    path = _write(
        tmp_path / "r.jsonl",
        b"\xef\xbb\xbf" + b'{"query": "q", "positive": "p", "negative": ["n"], "positive_id": 7}',
        "",
        {
            "query": "q",
            "positive": "p",
            "negatives": None,
            "score": None,
            "lang_q": "de",
            "task": ["x"],
            "group": 1,
        },
        {"query": "q", "positive": "p", "negatives": ["n"], "negative_ids": [3], "score": 1, "source": "own"},
    )
    first, second, third = read_rows(path, source="given")
    assert first == Row("q", "p", ("n",), positive_id="7", source="given", line=1)
    assert second == Row("q", "p", source="given", line=3)
    assert third == Row("q", "p", ("n",), negative_ids=("3",), score=1.0, source="own", line=4)


def test_a_folder_and_a_glob_mean_their_files_in_order(tmp_path: Path) -> None:
    """Files come by name, folders are searched through, other files and hidden ones are left alone."""
    for name, query in (("b.jsonl", "2"), ("a.jsonl.gz", "1"), ("sub/c.parquet", "3"), (".x.jsonl", "0")):
        write_rows(tmp_path / name, [Row(query, "p")])
    (tmp_path / "SOURCE.md").write_text("about")
    assert [r.query for r in read_rows(tmp_path)] == ["1", "2", "3"]
    assert [r.query for r in read_rows(tmp_path / "*.jsonl*")] == ["1", "2"]
    assert [r.query for r in read_rows(str(tmp_path / "**" / "*.parquet"))] == ["3"]


OK: dict[str, Any] = {"query": "q", "positive": "p"}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ('{"query": "q", "positive"', ["malformed JSON"]),
        ("[" * 100_000, ["malformed JSON"]),
        ('["q", "p"]', ["expected an object", "a list"]),
        ("3", ["expected an object", "a number"]),
        ({"positive": "p"}, ["query is missing"]),
        ({"query": "q"}, ["positive is missing"]),
        ({"query": " \n", "positive": "p"}, ["query is empty"]),
        ({"query": "q", "positive": ""}, ["positive is empty"]),
        ({"query": 3, "positive": "p"}, ["query is a number, not a string"]),
        ({"query": "q", "positive": ["p"]}, ["positive is a list, not a string"]),
        ({**OK, "negatives": "n"}, ["negatives is a string, not a list"]),
        ({**OK, "negative": "n"}, ["negative is a string, not a list"]),
        ({**OK, "negatives": ["n", ""]}, ["negatives[1] is empty"]),
        ({**OK, "negatives": ["n", None]}, ["negatives[1] is missing"]),
        ({**OK, "negatives": [], "negative": []}, ["both negatives and negative"]),
        ({**OK, "negatives": ["n"], "teacher_scores": [1.0]}, ["teacher_scores holds 1", "expected 2"]),
        ({**OK, "teacher_scores": [True]}, ["teacher_scores[0] is true or false"]),
        ({**OK, "teacher_scores": 1.0}, ["teacher_scores is a number, not a list"]),
        ('{"query": "q", "positive": "p", "teacher_scores": [NaN]}', ["teacher_scores[0] is nan", "finite"]),
        ('{"query": "q", "positive": "p", "score": 1e999}', ["score is inf", "finite"]),
        (
            '{"query": "q", "positive": "p", "score": 1' + "0" * 400 + "}",
            ["score is an integer of 401 digits"],
        ),
        ({**OK, "score": 1e300}, ["score is 1e+300", "float32"]),
        ({**OK, "teacher_scores": [-1e39]}, ["teacher_scores[0] is -1e+39", "float32"]),
        ({**OK, "score": "4"}, ["score is a string, not a number"]),
        ({**OK, "negatives": ["n"], "negative_ids": ["a", "b"]}, ["negative_ids holds 2 for 1"]),
        ({**OK, "negative_ids": "a"}, ["negative_ids is a string, not a list"]),
        ({**OK, "positive_id": 1.5}, ["positive_id is a number, not a string"]),
        ({**OK, "positive_id": True}, ["positive_id is true or false"]),
        ({**OK, "instruction": ""}, ["instruction is empty"]),
        ({**OK, "instrution": "Find it."}, ["unknown key 'instrution'", "did you mean 'instruction'"]),
        ({**OK, "zzz": 1}, ["unknown key 'zzz'", "known: query, positive"]),
        (b'{"query": "\xff", "positive": "p"}', ["not UTF-8", "byte 11"]),
        ('{"query": "\\ud800", "positive": "p"}', ["half a surrogate pair"]),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(
    tmp_path: Path, second: str | bytes | dict[str, Any], words: list[str]
) -> None:
    """The rows before it come out; then one CorpusError says file, line and fault."""
    path = _write(tmp_path / "r.jsonl", OK, second)
    rows = read_rows(path)
    assert next(rows).line == 1
    with pytest.raises(CorpusError) as caught:
        next(rows)
    assert (caught.value.path, caught.value.line) == (str(path), 2)
    for word in words:
        assert word in str(caught.value)


def test_a_broken_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    """In Parquet the row's number from 1 stands for the line; a wrong column is named without one."""
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"query": ["q", "q", None], "positive": ["p", "p", "p"]}), path)
    with pytest.raises(CorpusError, match="query is missing") as caught:
        list(read_rows(path))
    assert caught.value.line == 3
    pq.write_table(pa.table({"query": ["q"], "positve": ["p"]}), path)
    with pytest.raises(CorpusError, match="unknown key 'positve': did you mean 'positive'"):
        list(read_rows(path))
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(CorpusError, match="no readable Parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.parquet"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str) -> None:
    """An empty file is told from a short one: it says that it holds no rows."""
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(
            pa.table({"query": pa.array([], pa.string()), "positive": pa.array([], pa.string())}), path
        )
    else:
        path.write_bytes(gzip.compress(b"\n \n") if name.endswith("gz") else b"\n \n")
    with pytest.raises(CorpusError, match="holds no rows"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.xz", "r.jsonl.zst"])
def test_a_cut_compressed_file_is_an_error(tmp_path: Path, name: str) -> None:
    """A download that stopped half-way never passes for a shorter source."""
    write_rows(tmp_path / name, [Row(f"query {i * i}", f"positive {i * i * i}") for i in range(3000)])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="cannot be read after line|malformed JSON"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "words"),
    [("none.jsonl", "does not exist"), ("*.jsonl", "no file of training rows matches"), ("r.csv", "by its name"),
     (".", "holds no training rows")],
)  # fmt: skip
def test_a_path_that_means_no_rows_is_an_error(tmp_path: Path, given: str, words: str) -> None:
    """A missing file, an empty glob, a foreign file and an empty folder each say so."""
    (tmp_path / "r.csv").write_text("query,positive\n")
    with pytest.raises(InputError, match=words):
        list(read_rows(tmp_path / given))


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    """Whatever stops the writing, the file that was there stays, and nothing lies beside it."""
    path = tmp_path / name
    write_rows(path, [FULL])

    def failing() -> Iterator[Row]:
        yield BARE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, failing())
    with pytest.raises(InputError, match="no rows to write"):
        write_rows(path, [])
    assert list(read_rows(path)) == [FULL]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_write_that_cannot_be_says_why(tmp_path: Path) -> None:
    """A name of no known kind and a path through a file are told apart."""
    with pytest.raises(InputError, match=r"name it .jsonl"):
        write_rows(tmp_path / "rows.csv", [BARE])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_rows(tmp_path / "file" / "r.jsonl", [BARE])


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    """A compressed file holds no time of writing, so that caches keyed by content hold."""
    write_rows(tmp_path / "a.jsonl.gz", [FULL])
    write_rows(tmp_path / "b.jsonl.gz", [replace(FULL, line=9)])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
