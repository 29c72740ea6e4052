"""Read single cells of Arrow batches: faster than Arrow's scalars, and never outside their buffers."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError

if TYPE_CHECKING:
    import pyarrow as pa


class Cells:
    """Give the cells of a mapped file's batches by row and column: strings and integers without nulls.

    While this lives, the file stays mapped, and is read from there even where it was deleted meanwhile.
    """

    def __init__(self, path: Path, batches: Sequence[pa.RecordBatch]) -> None:
        self._path = path
        self._batches = batches
        # The row that each batch begins with.
        self._starts = list(accumulate((b.num_rows for b in batches[:-1]), initial=0))
        self._columns: list[dict[str, memoryview | _Strings]] = [{} for _ in batches]

    @property
    def folder(self) -> Path:
        """The folder that the file lies in."""
        return self._path.parent

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._starts[-1] + self._batches[-1].num_rows)

    def cell(self, row: int, name: str) -> Any:
        """Return one cell; one named `metadata` is JSON, and decoded. Raises CorruptIndexError."""
        # Not `reading`: for a cell the `with` costs more than the cell.
        try:
            batch = bisect_right(self._starts, row) - 1
            columns = self._columns[batch]
            column = columns.get(name)
            if column is None:
                column = columns[name] = _opened(self._batches[batch], name)
            value = column[row - self._starts[batch]]
            return json.loads(value) if name == "metadata" else value
        except Exception as e:  # of any class: Arrow's and Python's own
            raise damaged(self._path, e) from e


def damaged(path: Path, problem: Exception) -> CorruptIndexError:
    """Return the error that names an altered file."""
    return CorruptIndexError(
        f"{path} cannot be read ({problem}): the index is damaged, rebuild with `embedkit index`"
    )


class _Strings:
    """The strings of a column.

    Raises IndexError where an altered file's offsets lead outside it, UnicodeDecodeError where its text is none.
    """

    __slots__ = ("_offsets", "_text")

    def __init__(self, offsets: memoryview, text: memoryview) -> None:
        self._offsets = offsets
        self._text = text

    def __getitem__(self, place: int) -> str:
        start, end = self._offsets[place], self._offsets[place + 1]
        if not 0 <= start <= end <= len(self._text):
            raise IndexError(f"a text lies at {start} to {end} of {len(self._text)} bytes")
        return str(self._text[start:end], "utf-8")


def _opened(batch: pa.RecordBatch, name: str) -> memoryview | _Strings:
    """Return a batch's column as what gives its cells."""
    array = batch.column(name)
    _, numbers, *rest = array.buffers()
    # Memory views cast to their numbers: an item of one costs a tenth of an item of a NumPy array.
    raw = memoryview(numbers).cast("B")
    by_four, by_eight = raw[: len(raw) // 4 * 4].cast("i"), raw[: len(raw) // 8 * 8].cast("q")
    own = slice(array.offset, array.offset + len(array))
    kind = str(array.type)
    if kind == "string":
        return _Strings(by_four[own.start : own.stop + 1], memoryview(rest[0] or b""))
    return by_four[own] if kind == "int32" else by_eight[own]
