"""Metadata columns: the types that are found, and what becomes of files that were altered."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes import columns as columns_module
from embedkit_indexes.columns import FILE, Columns, ColumnsWriter
from embedkit_indexes.filters import F

Rows = Sequence[Mapping[str, Any]]


def _written(folder: Path, *windows: Rows) -> Columns:
    writer = ColumnsWriter(folder)
    for window in windows:
        writer.write(window)
    writer.finish()
    return Columns.open(folder)


def _values(columns: Columns, name: str) -> list[Any]:
    column = columns.column(name)
    assert column is not None
    return list(column.to_pylist())


@pytest.mark.parametrize(
    ("values", "type"),
    [
        ([True, None, False], "booleans"),
        ([1, -(2**63), 2**63 - 1], "integers"),
        ([1, 2.5], "numbers"),
        ([1, 2**63], "numbers"),
        ([2**53 + 1, 1], "integers"),
        ([2**53, 0.5], "numbers"),
        ([2**53 + 1, 0.5], "values of several types"),
        ([1, 2**63 + 1], "values of several types"),
        ([[2**53 + 1], [1]], "lists of integers"),
        ([[2**53, 0.5], [1]], "lists of numbers"),
        ([[2**53 + 1], [0.5]], "values of several types"),
        ([[2**53 + 1, 0.5]], "values of several types"),
        (["a", "b"], "strings"),
        (["2024-05-01", "2023-01-01"], "strings"),
        ([["a"], [], ["b", None]], "lists of strings"),
        ([[1], [2, 3]], "lists of integers"),
        ([[1], [2.5]], "lists of numbers"),
        ([[1], ["a"]], "values of several types"),
        ([1, "a"], "values of several types"),
        ([True, 1], "values of several types"),
        (["a", ["a"]], "values of several types"),
        ([[[1]]], "values of several types"),
        ([None, None], "nothing"),
    ],
)
def test_a_column_has_the_type_that_holds_all_its_values(
    tmp_path: Path, values: list[Any], type: str
) -> None:
    """The type is found over all rows, also where they come in several windows."""
    columns = _written(tmp_path, *([{"key": v}] for v in values))
    assert columns.types == {"key": type}
    assert columns.rows == len(values)


def test_values_come_back_in_their_rows(tmp_path: Path) -> None:
    """Windows, rows without the key, rows without metadata: each value stands where it was written."""
    rows: list[dict[str, Any]] = [{"a": 1}, {}, {"b": "x"}, {"a": 4, "b": "y"}, {}]
    columns = _written(tmp_path, rows[:2], [], rows[2:4], rows[4:])
    assert _values(columns, "a") == [1, None, None, 4, None]
    assert _values(columns, "b") == [None, None, "x", "y", None]
    assert columns.column("c") is None


def _pair(i: int) -> list[dict[str, Any]]:
    return [{"a": i, "b": str(i % 2)}, {"a": -i}]


def test_batches_end_between_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of several batches holds the same rows as one of one."""
    monkeypatch.setattr(columns_module, "_BATCH_ROWS", 3)
    columns = _written(tmp_path, *(_pair(i) for i in range(5)))
    column = columns.column("a")
    assert column is not None
    assert column.num_chunks == 3
    assert column.to_pylist() == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4]
    assert _values(columns, "b") == ["0", None, "1", None, "0", None, "1", None, "0", None]


def test_objects_become_dotted_names(tmp_path: Path) -> None:
    """An object's keys are columns behind its name; one that is too deep stays JSON."""
    deep: Any = 1
    for _ in range(12):
        deep = {"d": deep}
    columns = _written(tmp_path, [{"author": {"name": "Ada", "born": {"year": 1815}}, "e": {}}, deep])
    assert _values(columns, "author.name") == ["Ada", None]
    assert _values(columns, "author.born.year") == [1815, None]
    assert "e" not in columns.names
    assert columns.types[".".join("d" * 8)] == "values of several types"


def test_numbers_that_are_none_are_missing(tmp_path: Path) -> None:
    """NaN, infinity, and integers beyond every float are missing, alone and in lists; what a float would round is JSON."""
    columns = _written(
        tmp_path,
        [{"x": float("nan"), "y": 10**400, "z": [1.5, float("inf")]}, {"x": 2.5, "y": 10**300, "z": []}],
    )
    assert _values(columns, "x") == [None, 2.5]
    assert _values(columns, "y") == [None, str(10**300).encode()]
    assert _values(columns, "z") == [[1.5, None], []]


def test_few_distinct_strings_are_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated strings are stored once; beyond the limit a column holds them as they come."""
    import pyarrow as pa

    monkeypatch.setattr(columns_module, "_DISTINCT_LIMIT", 3)
    columns = _written(tmp_path, [{"few": "abc"[i % 3], "many": f"{i}"} for i in range(9)])
    few, many = columns.column("few"), columns.column("many")
    assert few is not None
    assert many is not None
    assert pa.types.is_dictionary(few.type)
    assert pa.types.is_string(many.type)
    assert few.to_pylist() == list("abc" * 3)
    assert many.to_pylist() == [f"{i}" for i in range(9)]


def test_without_metadata_there_is_no_file(tmp_path: Path) -> None:
    """No key in any row: no file is written, and the folder opens with no columns."""
    without: list[list[dict[str, Any]]] = [[], [{}, {}]]
    for rows in without:
        writer = ColumnsWriter(tmp_path)
        writer.write(rows)
        assert writer.finish() == []
    assert list(tmp_path.iterdir()) == []
    assert Columns.open(tmp_path).names == []
    assert Columns.open(tmp_path).column("a") is None


def test_finish_leaves_the_columns_file_alone(tmp_path: Path) -> None:
    """The temporary file is gone after `finish`, and after `close` without it."""
    writer = ColumnsWriter(tmp_path)
    writer.write([{"a": 1}])
    assert writer.finish() == [FILE]
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    (tmp_path / FILE).unlink()
    writer = ColumnsWriter(tmp_path)
    writer.write([{"a": 1}])
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_rarest_keys_have_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the keys of the most rows have columns; a filter on another says so, a typo does not."""
    monkeypatch.setattr(columns_module, "COLUMNS_LIMIT", 2)
    columns = _written(
        tmp_path, [{"rare": 1, "often": 1}, {"always": 2, "often": 3}, {"always": 1, "often": 1}]
    )
    assert columns.names == ["often", "always"]
    with pytest.raises(InputError, match="only the 2 in most chunks"):
        columns.column("rare")
    assert columns.column("ofen") is None


def test_keys_without_end_are_not_all_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the names were too many to keep, an unknown name may have been one of them, and says so."""
    monkeypatch.setattr(columns_module, "_KEYS_LIMIT", 5)
    columns = _written(tmp_path, [{f"key{i}": i} for i in range(20)])
    assert columns.names == [f"key{i}" for i in range(5)]
    with pytest.raises(InputError, match="of the many metadata keys"):
        columns.column("key7")


_MIXED: list[dict[str, Any]] = [
    {"i": i, "f": i / 2, "s": f"t{i % 5}", "u": f"unique {i}", "l": ["a"] * (i % 4), "m": [i, "x"][i % 2]}
    for i in range(200)
]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """Whatever length is left, opening raises CorruptIndexError that names the file."""
    _written(tmp_path, _MIXED)
    whole = (tmp_path / FILE).read_bytes()
    for size in [0, 1, 8, *random.Random(0).sample(range(len(whole)), 20)]:
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(CorruptIndexError, match=FILE):
            Columns.open(tmp_path)


def test_an_altered_file_harms_no_process(tmp_path: Path) -> None:
    """A flipped byte may change an answer (`verify` finds it), but never crashes or raises what is no CorruptIndexError."""
    _written(tmp_path, _MIXED)
    whole = bytearray((tmp_path / FILE).read_bytes())
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        altered = bytearray(whole)
        altered[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        # A new file each time: the old one is mapped still.
        (tmp_path / FILE).unlink()
        (tmp_path / FILE).write_bytes(altered)
        try:
            columns = Columns.open(tmp_path)
            for name in set(columns.names) & set("ifsulm"):
                source = _Source(columns)
                (F(name) == 3).mask(source)
                (F(name) == "unique 3").mask(source)
                F(name).contains("a").mask(source)
        except CorruptIndexError:
            refused += 1
    assert refused > 10


class _Source:
    def __init__(self, columns: Columns) -> None:
        self.rows = columns.rows
        self.column = columns.column
        self.names = lambda: columns.names


def test_a_key_with_two_columns_is_damage(tmp_path: Path) -> None:
    """A file whose altered names make two columns one key is refused, not asked for a column that is not unique."""
    import pyarrow as pa

    batch = pa.record_batch([pa.array([1]), pa.array([2])], names=["number", "number"])
    with pa.ipc.new_file(str(tmp_path / FILE), batch.schema) as file:
        file.write_batch(batch)
    with pytest.raises(CorruptIndexError, match=FILE):
        Columns.open(tmp_path)
