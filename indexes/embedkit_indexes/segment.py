"""A segment: the chunks of one change, in files that are written once and then memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError, StoreError
from embedkit_indexes.cells import Cells, damaged
from embedkit_indexes.durable import Pin
from embedkit_indexes.manifest import SegmentRecord
from embedkit_indexes.rows import RowSet
from embedkit_indexes.segment_format import CHUNKS, DOCUMENTS, HASH_BYTES, VECTORS, chunk_schema, with_lead

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embedkit_indexes.columns import Columns
    from embedkit_indexes.faiss_engine import Engine
    from embedkit_indexes.lexical import LexicalIndex

# The names that a filter knows beside the metadata's, and the columns that hold them.
FIELDS = {
    "id": "document_id",
    "source": "source",
    "title": "title",
    "lang": "lang",
    "position": "position",
    "text": "text",
}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what an altered or missing file makes its readers raise into a CorruptIndexError that names it."""
    try:
        yield
    except StoreError:
        raise
    except Exception as e:  # of any class: Arrow's, NumPy's and Python's own
        raise damaged(path, e) from e


class Segment:
    """Read a segment by memory map: opening costs nothing, rows are read when asked for.

    While it lives, its folder stays, even where a later version of the index has no need of it.
    """

    def __init__(self, directory: Path, record: SegmentRecord) -> None:
        self.folder = directory / record.name
        self.record = record
        self._bits = b""
        with reading(self.folder):
            self._pins = [Pin(self.folder)]
        if record.deletions is not None:
            path = directory / record.deletions.name
            with reading(path):
                self._pins.append(Pin(path))
                # Now: where files cannot be pinned, a later version may take it away.
                self._bits = path.read_bytes()
                if len(self._bits) != (record.documents + 7) // 8:
                    raise ValueError(f"{len(self._bits)} bytes for {record.documents} documents")

    def __len__(self) -> int:
        """Return the number of chunks, the deleted ones too."""
        return self.record.chunks

    @cached_property
    def vectors(self) -> NDArray[Any]:
        """All vectors, float16 or float32 [chunks, dim], read-only and mapped."""
        import numpy as np
        import pyarrow as pa

        with reading(self.folder / VECTORS):
            column = self._open(VECTORS)[0].column(0)
            values, dim = column.values, column.type.list_size
            dtype = np.dtype(np.float16 if pa.types.is_float16(values.type) else np.float32)
            # Not `to_numpy`: where pandas is installed, that imports it, a third of a second of a search.
            count = len(column) * dim
            flat = np.frombuffer(values.buffers()[1], dtype, count, values.offset * dtype.itemsize)
            if len(column) != len(self):
                raise ValueError(f"it holds {len(column)} vectors, not {len(self)}")
            return flat.reshape(len(column), dim)

    @cached_property
    def engine(self) -> Engine:
        """The search over the vectors."""
        from embedkit_indexes.faiss_engine import open_engine

        return open_engine(self.folder, self.vectors, self.record.engine)

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The search over the words."""
        from embedkit_indexes.lexical import LexicalIndex

        return LexicalIndex.open(self.folder)

    @cached_property
    def metadata(self) -> Columns:
        """The typed columns of the metadata."""
        from embedkit_indexes.columns import Columns

        columns = Columns.open(self.folder)
        if columns.rows not in {0, len(self)}:
            raise CorruptIndexError(
                f"{self.folder}: the metadata covers {columns.rows} chunks, not {len(self)}: rebuild the index"
            )
        return columns

    @cached_property
    def alive(self) -> RowSet | None:
        """The chunks that are not deleted, None for all."""
        import numpy as np

        if self.record.deletions is None:
            return None
        return RowSet(np.repeat(self.live_documents, np.diff(self.first_rows)))

    @cached_property
    def live_documents(self) -> NDArray[np.bool_]:
        """Which documents are not deleted, bool [documents]."""
        import numpy as np

        count = self.record.documents
        if self.record.deletions is None:
            return np.ones(count, dtype=bool)
        return ~RowSet.unpack(np.frombuffer(self._bits, np.uint8), count).mask

    @cached_property
    def cells(self) -> Cells:
        """The cells of the chunks, which can be read longer than the segment lives."""
        return Cells(self.folder / CHUNKS, self.batches)

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """The chunks, a batch at a time, mapped."""
        batches = self._open(CHUNKS)
        if (found := sum(b.num_rows for b in batches)) != len(self):
            raise CorruptIndexError(f"{self.folder / CHUNKS} holds {found} chunks, not {len(self)}")
        with reading(self.folder / CHUNKS):
            if batches[0].schema.names == [name for name in chunk_schema().names if name != "lead"]:
                return [with_lead(b) for b in batches]
            return batches

    def map(self) -> None:
        """Map the chunks and the vectors now."""
        _ = self.vectors, self.cells

    def _open(self, name: str) -> list[Any]:
        """Return a file's record batches, at least one, mapped."""
        import pyarrow as pa

        with reading(self.folder / name):
            reader = pa.ipc.open_file(pa.memory_map(str(self.folder / name)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            if not batches:
                raise ValueError("it holds no batch")
            return batches

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one whole column of the chunks, its offsets checked."""
        return self._column(CHUNKS, self.batches, name)

    def documents(self, name: str) -> pa.ChunkedArray:
        """Return one whole column of the documents, its offsets checked."""
        return self._column(DOCUMENTS, self.document_batches, name)

    def strings(self, name: str) -> list[str]:
        """Return one whole column of the documents that holds strings."""
        with reading(self.folder / DOCUMENTS):
            found: list[str] = self.documents(name).to_pylist()
            return found

    @cached_property
    def document_ids(self) -> list[str]:
        """The document of every chunk, the deleted ones too."""
        with reading(self.folder / CHUNKS):
            found: list[str] = self.column("document_id").to_pylist()
            return found

    def _column(self, file: str, batches: Sequence[pa.RecordBatch], name: str) -> pa.ChunkedArray:
        import pyarrow as pa

        from embedkit_indexes.columns import check_array

        with reading(self.folder / file):
            arrays = [b.column(name) for b in batches]
            for array in arrays:
                check_array(array)
            return pa.chunked_array(arrays)

    @cached_property
    def document_batches(self) -> list[pa.RecordBatch]:
        """The documents, a batch at a time, mapped."""
        batches = self._open(DOCUMENTS)
        if (found := sum(b.num_rows for b in batches)) != self.record.documents:
            raise CorruptIndexError(
                f"{self.folder / DOCUMENTS} holds {found} documents, not {self.record.documents}"
            )
        return batches

    @cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """The row of each document's first chunk, int64 [documents + 1]: the last is the number of chunks."""
        import numpy as np

        # Not `to_numpy`: see `vectors`.
        counts = [
            np.frombuffer(c.buffers()[1], np.int32, len(c), c.offset * 4)
            for c in self.documents("chunks").chunks
        ]
        if any((c < 0).any() for c in counts):
            raise CorruptIndexError(
                f"{self.folder / DOCUMENTS} counts less than no chunks: rebuild the index"
            )
        ends = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
        if ends[-1] != len(self):
            raise CorruptIndexError(
                f"{self.folder / DOCUMENTS} counts {ends[-1]} chunks, not {len(self)}: rebuild the index"
            )
        return ends

    @cached_property
    def hashes(self) -> NDArray[np.uint8]:
        """The hash of each chunk's text, uint8 [chunks, 16]."""
        import numpy as np

        parts = [
            np.frombuffer(c.buffers()[1], np.uint8, len(c) * HASH_BYTES, c.offset * HASH_BYTES)
            for c in self.column("hash").chunks
        ]
        return np.concatenate(parts).reshape(-1, HASH_BYTES)


class FilterFields:
    """What a filter may ask of a segment: the chunk's own fields and its metadata."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.rows = len(segment)

    def names(self) -> list[str]:
        """Return every name, the metadata's as they stand and behind `metadata.`."""
        return [*FIELDS, *self._segment.metadata.names]

    def column(self, name: str) -> pa.ChunkedArray | None:
        """Return a column, None where the segment has none of that name."""
        if name in FIELDS:
            return self._segment.column(FIELDS[name])
        columns = self._segment.metadata
        if name in columns.names:
            return columns.column(name)
        return columns.column(name.removeprefix("metadata."))
