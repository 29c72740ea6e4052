"""A segment: chunks and vectors of one build, as Arrow files that are written once and then memory-mapped."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes.corpus.fields import json_value
from embedkit_indexes.corpus.records import Chunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNKS = "chunks.arrow"
VECTORS = "vectors.arrow"
_RAW = "vectors.raw"


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("document_id", pa.string()),
            ("position", pa.int32()),
            ("title", pa.string()),
            ("text", pa.string()),
            ("lang", pa.string()),
            ("source", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("metadata", pa.string()),
        ]
    )


class SegmentWriter:
    """Write chunks and vectors as they come: memory holds one window of them.

    Vectors go to a raw file first, because Arrow wants to know their number before it writes one
    contiguous batch, and only a contiguous batch can be searched where it lies.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        import pyarrow as pa

        self._folder = folder
        self._dim = dim
        self._schema = _schema()
        self._chunks = pa.ipc.new_file(str(folder / CHUNKS), self._schema)
        self._raw = (folder / _RAW).open("wb")
        self.rows = 0

    def write(self, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Append chunks and their vectors, float32 [len(chunks), dim]."""
        import pyarrow as pa

        columns = zip(*(_row(c) for c in chunks), strict=True)
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, self._schema, strict=True)]
        self._chunks.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._raw.write(vectors.data)
        self.rows += len(chunks)

    def finish(self) -> NDArray[np.float32]:
        """Close the files and return the vectors, float32 [rows, dim], mapped."""
        import numpy as np
        import pyarrow as pa

        self.close()
        raw = self._folder / _RAW
        flat = np.memmap(raw, dtype=np.float32, mode="r", shape=(self.rows * self._dim,))
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat), self._dim)
        with pa.ipc.new_file(str(self._folder / VECTORS), pa.schema([("vector", column.type)])) as f:
            f.write_batch(pa.record_batch([column], names=["vector"]))
        del column, flat
        raw.unlink()
        return Segment(self._folder).vectors

    def close(self) -> None:
        """Close the files as they are."""
        self._chunks.close()
        self._raw.close()


class Segment:
    """Read a segment by memory map: opening costs nothing, rows are read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """All vectors, float32 [rows, dim], read-only and mapped."""
        import numpy as np

        column = self._open(VECTORS)[0].column(0)
        values, dim = column.values, column.type.list_size
        # Not `to_numpy`: where pandas is installed, that imports it, a third of a second of a search.
        buffer = values.buffers()[1]
        count = len(column) * dim
        flat = (
            np.frombuffer(buffer, np.float32, count, values.offset * 4) if count else np.empty(0, np.float32)
        )
        return flat.reshape(len(column), dim)

    @cached_property
    def _batches(self) -> tuple[list[Any], list[int]]:
        """The chunks' record batches, and the row number that each one ends before."""
        batches = self._open(CHUNKS)
        return batches, list(accumulate(b.num_rows for b in batches))

    def map(self) -> None:
        """Map both files now: what is mapped stays, even when a rebuild removes the folder."""
        _ = self.vectors, self._batches

    def _open(self, name: str) -> list[Any]:
        """Return a file's record batches, at least one, mapped."""
        import pyarrow as pa

        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self._folder / name)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            if not batches:
                raise pa.ArrowInvalid("it holds no batch")
        except (pa.ArrowException, OSError) as e:
            raise CorruptIndexError(
                f"{self._folder / name} is no readable Arrow file ({e}): rebuild with `embedkit index`"
            ) from e
        return batches

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the chunks of these row numbers, in their order, `metadata` decoded."""
        batches, ends = self._batches
        out = []
        for number in numbers:
            i = bisect_right(ends, number)
            batch = batches[i]
            place = number - ends[i] + batch.num_rows
            # Scalar by scalar: `take` would load pyarrow.compute, which costs a search more than its answer.
            row = {f: c[place].as_py() for f, c in zip(batch.schema.names, batch.columns, strict=True)}
            row["metadata"] = json.loads(row["metadata"])
            out.append(row)
        return out

    def column(self, name: str) -> Any:
        """Return one whole column as a pyarrow ChunkedArray."""
        import pyarrow as pa

        return pa.chunked_array([b.column(name) for b in self._batches[0]])


def _row(chunk: Chunk) -> tuple[Any, ...]:
    d = chunk.document
    try:
        metadata = json.dumps(json_value(d.metadata), ensure_ascii=False)
    except RecursionError as e:
        raise InputError(f"the metadata of document {d.id!r} is {e}: make it flatter") from None
    return (
        d.id,
        chunk.position,
        d.title,
        chunk.text,
        d.lang or "und",
        d.source,
        chunk.start,
        chunk.end,
        metadata,
    )
