"""Metadata as typed columns: found while the rows are written, mapped when a filter asks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes.column_types import ColumnBuilder, Key, kinds_of, leaves
from embedkit_indexes.segment_format import NODE_CONTENT, NODE_TEXT

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "metadata.arrow"
# More would be one column for each document of a corpus whose keys are data; the rare ones stay with the chunks.
COLUMNS_LIMIT = 256
_SPOOL = "metadata.spool"
_KEYS_LIMIT = 65_536
_DISTINCT_LIMIT = 4096
_DISTINCT_CHARACTERS = 1 << 24
_BATCH_ROWS = 1 << 16
_BATCH_BYTES = 32 << 20
_LEFT_OUT = b"embedkit.left_out"


class ColumnsWriter:
    """Write the metadata of rows as they come; memory holds a window of them, and the distinct values of some keys.

    Objects become columns of dotted names (`author.name`). A key whose values are all booleans, integers, numbers,
    strings, or lists of one of the last three, has a column of that type; any other mixture is kept as JSON, and so are
    fractions beside integers that no float holds (2**53 + 1): as numbers of one type they would lose digits. NaN and
    infinity are missing values, and so are numbers that no float holds. Of more than `COLUMNS_LIMIT` keys those in the
    most rows have columns.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool: IO[str] | None = None
        self._keys: dict[str, Key] = {}
        self._characters = 0
        self._overflow = False

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the metadata of consecutive rows, values as `json_value` returns them."""
        gathered: dict[str, tuple[list[int], list[Any]]] = {}
        for number, row in enumerate(rows):
            for name, value in leaves(row):
                if name in (NODE_CONTENT, NODE_TEXT):
                    continue  # nothing to filter by: they would take as much room again
                places, values = gathered.setdefault(name, ([], []))
                if not places or places[-1] != number:
                    places.append(number)
                    values.append(value)
        kept = {}
        for name, (places, values) in gathered.items():
            if name not in self._keys and len(self._keys) >= _KEYS_LIMIT:
                self._overflow = True
                continue
            key = self._keys.setdefault(name, Key())
            key.count += len(values)
            kept[name] = [places if len(places) < len(rows) else None, self._note(key, values)]
        if self._spool is None:
            self._spool = (self._folder / _SPOOL).open("w+", encoding="utf-8")
        self._spool.write(json.dumps([len(rows), kept]) + "\n")

    def _note(self, key: Key, values: list[Any]) -> list[Any]:
        """Enter the values' kinds, and the strings where they are few; return the values as they can be stored."""
        kinds, values = kinds_of(values)
        key.kinds |= kinds
        if key.distinct is not None and kinds <= {"null", "str"}:
            new = {v for v in values if v is not None} - key.distinct
            self._characters += sum(map(len, new))
            key.distinct |= new
            if len(key.distinct) > _DISTINCT_LIMIT or self._characters > _DISTINCT_CHARACTERS:
                self._characters -= sum(map(len, key.distinct))
                key.distinct = None
        return values

    def finish(self) -> list[str]:
        """Write the columns' file and return its name; nothing, and no name, where no row has metadata."""
        try:
            if self._spool is None or not self._keys:
                return []
            self._spool.seek(0)
            self._build(self._spool)
            return [FILE]
        finally:
            self.close()

    def _build(self, windows: IO[str]) -> None:
        import pyarrow as pa

        ranked = sorted(self._keys, key=lambda name: (-self._keys[name].count, name))
        chosen = set(ranked[:COLUMNS_LIMIT])
        builders = [ColumnBuilder(name, key) for name, key in self._keys.items() if name in chosen]
        note = json.dumps({"names": ranked[COLUMNS_LIMIT:], "more": self._overflow})
        schema = pa.schema([b.field for b in builders], metadata={_LEFT_OUT: note})
        with pa.ipc.new_file(str(self._folder / FILE), schema) as out:
            rows = size = 0
            for window in windows:
                count, columns = json.loads(window)
                for b in builders:
                    b.add(count, *columns.get(b.field.name, ([], [])))
                rows, size = rows + count, size + len(window)
                if rows >= _BATCH_ROWS or size >= _BATCH_BYTES:
                    out.write_batch(pa.record_batch([b.take() for b in builders], schema=schema))
                    rows = size = 0
            if rows:
                out.write_batch(pa.record_batch([b.take() for b in builders], schema=schema))

    def close(self) -> None:
        """Remove the temporary file; what is not finished is lost."""
        if self._spool is not None:
            self._spool.close()
            (self._folder / _SPOOL).unlink(missing_ok=True)


class Columns:
    """Read the metadata columns of a segment by memory map: a column is touched when a filter names it."""

    def __init__(self, path: Path, schema: pa.Schema | None, batches: Sequence[pa.RecordBatch]) -> None:
        self._path = path
        self._schema = schema
        self._batches = batches
        self._checked: dict[str, pa.ChunkedArray] = {}

    @classmethod
    def open(cls, folder: Path) -> Columns:
        """Map the folder's columns; none where no row had metadata. Raises CorruptIndexError for an unreadable file."""
        import pyarrow as pa

        path = folder / FILE
        if not path.exists():
            return cls(path, None, [])
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            if len(set(reader.schema.names)) != len(reader.schema.names):
                raise ValueError("a key has two columns")
            columns = cls(path, reader.schema, batches)
            _ = columns.types, columns._left_out
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as e:
            raise _corrupt(path, e) from e
        return columns

    @property
    def rows(self) -> int:
        """How many rows the file covers: all of the segment's, or none where there is no file."""
        return sum(b.num_rows for b in self._batches)

    @property
    def names(self) -> list[str]:
        """The keys that have a column."""
        return list(self.types)

    @cached_property
    def types(self) -> dict[str, str]:
        """Each key's type in words, as in "integers", "lists of strings", "values of several types"."""
        from embedkit_indexes.column_masks import describe

        return {} if self._schema is None else {f.name: describe(f.type) for f in self._schema}

    @cached_property
    def _left_out(self) -> tuple[frozenset[str], bool]:
        if self._schema is None:
            return frozenset(), False
        note = json.loads(self._schema.metadata[_LEFT_OUT])
        return frozenset(note["names"]), bool(note["more"])

    def column(self, name: str) -> pa.ChunkedArray | None:
        """Return a key's values, one a row, null where missing; None where no row has the key.

        Binary values are JSON. Raises InputError for a key that is too rare among too many to have a column,
        CorruptIndexError for values that would lead outside the file.
        """
        import pyarrow as pa

        if self._schema is None or name not in self.types:
            names, more = self._left_out
            if name in names or more:
                raise InputError(
                    f"cannot filter by {name!r}: of the many metadata keys only the {COLUMNS_LIMIT} in most chunks have "
                    "a column; filter by one of those, or put rare keys into one list"
                )
            return None
        if name not in self._checked:
            try:
                chunks = [b.column(name) for b in self._batches]
                for chunk in chunks:
                    check_array(chunk)
            except (pa.ArrowException, LookupError, ValueError) as e:
                raise _corrupt(self._path, e) from e
            self._checked[name] = pa.chunked_array(chunks, type=self._schema.field(name).type)
        return self._checked[name]


def check_array(array: pa.Array) -> None:
    """Raise ArrowException or ValueError where offsets or codes of an altered file lead outside its buffers.

    Arrow reads what they say without a look, and the process would die of it.
    """
    import numpy as np
    import pyarrow as pa

    array.validate()
    kind = array.type
    if not len(array):
        return
    if pa.types.is_dictionary(kind):
        array.dictionary.validate(full=True)
        width = np.dtype(kind.index_type.to_pandas_dtype())
        codes = np.frombuffer(array.indices.buffers()[1], width, len(array), array.offset * width.itemsize)
        if not 0 <= codes.min() <= codes.max() < max(len(array.dictionary), 1):
            raise ValueError("a code has no value")
    elif pa.types.is_list(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind):
        offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)
        if (offsets[1:] < offsets[:-1]).any():
            raise ValueError("its offsets go backwards")
        if pa.types.is_list(kind):
            check_array(array.values)


def _corrupt(path: Path, problem: Exception) -> CorruptIndexError:
    return CorruptIndexError(f"{path} is damaged ({problem}): rebuild with `embedkit index`")
