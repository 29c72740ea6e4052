"""Write a segment: chunks and vectors as they come, then what is searched."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder
from embedkit_indexes.columns import ColumnsWriter
from embedkit_indexes.corpus.chunking import ChunkReport
from embedkit_indexes.corpus.records import Chunk, Document
from embedkit_indexes.segment import Segment
from embedkit_indexes.segment_format import (
    CHUNKS,
    DOCUMENTS,
    VECTORS,
    chunk_row,
    chunk_schema,
    document_schema,
    id_key,
    stored_metadata,
    with_lead,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Encode = Callable[[Sequence[str], Sequence[bytes]], NDArray[Any]]

_RAW = "vectors.raw"
# Documents are written once the chunker has left them behind: it looks a window of 256 ahead.
_AHEAD = 1024
_BATCH_ROWS = 2048


@dataclass(slots=True)
class _Pending:
    document: Document
    hash: bytes
    chunks: int = 0
    tokens: int = 0
    truncated_chunks: int = 0
    truncated_tokens: int = 0


class SegmentWriter:
    """Write chunks, documents and vectors as they come: memory holds a window of them.

    Vectors go to a raw file first, because Arrow wants to know their number before it writes one
    contiguous batch, and only a contiguous batch can be searched where it lies.
    """

    def __init__(self, folder: Path, dim: int, dtype: str, next_id: int) -> None:
        import pyarrow as pa

        self.folder = folder
        self.next_id = next_id
        self._dim = dim
        self._dtype = dtype
        self._columns = ColumnsWriter(folder)
        self._chunks = pa.ipc.new_file(str(folder / CHUNKS), chunk_schema())
        self._documents = pa.ipc.new_file(str(folder / DOCUMENTS), document_schema())
        self._chunk_batches = _Batches(self._chunks)
        self._document_batches = _Batches(self._documents)
        self._raw = (folder / _RAW).open("wb")
        self._pending: deque[_Pending] = deque()
        self.rows = 0
        self.document_count = 0
        self._last: str | None = None

    def expect(self, document: Document, hash: bytes) -> None:
        """Note a document whose chunks will come, in the order of their documents."""
        self._pending.append(_Pending(document, hash))

    def write(
        self, chunks: Sequence[Chunk], hashes: Sequence[bytes], vectors: NDArray[Any], report: ChunkReport
    ) -> None:
        """Append chunks, the hashes of their texts and their vectors, [len(chunks), dim]."""
        import pyarrow as pa

        schema = chunk_schema()
        stored = [stored_metadata(c.document) for c in chunks]
        columns = zip(
            *(
                (self.next_id + i, *chunk_row(c, m), h)
                for i, (c, m, h) in enumerate(zip(chunks, stored, hashes, strict=True))
            ),
            strict=True,
        )
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)]
        self._write(pa.record_batch(arrays, schema=schema), vectors, [json.loads(m) for m in stored])
        self.next_id += len(chunks)
        self._count(chunks)
        if len(self._pending) > 2 * _AHEAD:
            self._flush(len(self._pending) - _AHEAD, report)

    def _write(self, batch: Any, vectors: NDArray[Any], metadata: Sequence[Mapping[str, Any]]) -> None:
        import numpy as np

        self._chunk_batches.write(batch)
        self._columns.write(metadata)
        self._raw.write(np.ascontiguousarray(vectors, dtype=self._dtype).data)
        self.rows += batch.num_rows

    def _count(self, chunks: Sequence[Chunk]) -> None:
        """Add the chunks to their documents, which come in the same order."""
        at = iter(self._pending)
        pending = next(at)
        for chunk in chunks:
            while pending.document.id != chunk.document.id:
                pending = next(at)
            pending.chunks += 1
            pending.tokens += chunk.tokens
            pending.truncated_tokens += chunk.truncated
            pending.truncated_chunks += chunk.truncated > 0

    def _flush(self, count: int, report: ChunkReport) -> None:
        import pyarrow as pa

        rows = []
        for _ in range(count):
            p = self._pending.popleft()
            d = p.document
            rows.append(
                (
                    d.id, id_key(d.id), p.hash, d.source, d.lang or "und", p.chunks, len(d.text),
                    report.gaps.pop(d.id, 0), p.tokens, p.truncated_chunks, p.truncated_tokens,
                )
            )  # fmt: skip
        if rows:
            schema = document_schema()
            arrays = [pa.array(c, type=f.type) for c, f in zip(zip(*rows, strict=True), schema, strict=True)]
            self._document_batches.write(pa.record_batch(arrays, schema=schema))
            self.document_count += count

    def copy(self, segment: Segment, encode: Encode | None = None, embedder: Embedder | None = None) -> None:
        """Append what is not deleted of another segment, ids and all; with `encode` and `embedder`, embedded anew."""
        import pyarrow as pa

        # The copy gets checksums of its own: what was altered would never be found again.
        segment.record.verify(segment.folder.parent)
        alive, at = segment.alive, 0
        tokens: list[int] = []
        for batch in segment.batches:
            end = at + batch.num_rows
            mask = None if alive is None else alive.mask[at:end]
            kept = batch if mask is None else batch.filter(pa.array(mask))
            if kept.num_rows:
                if encode is None or embedder is None:
                    vectors = segment.vectors[at:end] if mask is None else segment.vectors[at:end][mask]
                else:
                    texts = kept.column("text").to_pylist()
                    vectors = encode(texts, kept.column("hash").to_pylist())
                    tokens += embedder.count_tokens(
                        [embedder.info.template.render_document(t) for t in texts]
                    )
                self._write(kept, vectors, [json.loads(m) for m in kept.column("metadata").to_pylist()])
            at = end
        at = 0
        counts = iter(tokens)
        for batch in segment.document_batches:
            live = segment.live_documents[at : at + batch.num_rows]
            kept = batch if live.all() else batch.filter(pa.array(live))
            if kept.num_rows:
                self._document_batches.write(_recounted(kept, counts, embedder) if embedder else kept)
                self.document_count += kept.num_rows
            at += batch.num_rows

    def write_exported(self, batch: pa.RecordBatch) -> None:
        """Append chunks that come with their vector and their document's columns; ids and all."""
        import numpy as np
        import pyarrow as pa

        chunks = with_lead(batch)
        vectors = batch.column("vector")
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        metadata = [json.loads(m) for m in chunks.column("metadata").to_pylist()]
        self._write(chunks, flat.reshape(-1, self._dim), metadata)
        if len(chunks):
            self.next_id = max(self.next_id, int(np.max(chunks.column("chunk_id").to_numpy())) + 1)
        # A document's chunks follow one another, in this batch and over its end.
        schema = document_schema()
        ids = chunks.column("document_id").to_pylist()
        first = [i for i, id in enumerate(ids) if id != (ids[i - 1] if i else self._last)]
        self._last = ids[-1] if ids else self._last
        columns = [
            batch.column("document_id" if f.name == "id" else f"document_{f.name}").take(
                pa.array(first, pa.int64())
            )
            for f in schema
        ]
        if first:
            self._document_batches.write(pa.record_batch(columns, schema=schema))
            self.document_count += len(first)

    def finish(self, report: ChunkReport | None = None) -> None:
        """Close the files and bring the vectors into their form."""
        import numpy as np
        import pyarrow as pa

        self._flush(len(self._pending), report or ChunkReport())
        self._chunk_batches.flush()
        self._document_batches.flush()
        self._columns.finish()
        self.close()
        raw = self.folder / _RAW
        if not self.rows:
            raw.unlink()
            return
        flat = np.memmap(raw, dtype=self._dtype, mode="r", shape=(self.rows * self._dim,))
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat), self._dim)
        with pa.ipc.new_file(str(self.folder / VECTORS), pa.schema([("vector", column.type)])) as f:
            f.write_batch(pa.record_batch([column], names=["vector"]))
        del column, flat
        raw.unlink()

    def close(self) -> None:
        """Close the files as they are."""
        self._chunks.close()
        self._documents.close()
        self._raw.close()
        self._columns.close()

    def texts(self) -> Iterator[str]:
        """Yield the texts of the chunks, from the file."""
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(self.folder / CHUNKS)))
        for i in range(reader.num_record_batches):
            yield from reader.get_batch(i).column("text").to_pylist()


class _Batches:
    """Gather small batches before they are written: a file of many would be slow to open."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._held:
            for batch in pa.Table.from_batches(self._held).combine_chunks().to_batches():
                self._file.write_batch(batch)
        self._held, self._rows = [], 0


def _recounted(batch: pa.RecordBatch, tokens: Iterator[int], embedder: Embedder) -> pa.RecordBatch:
    """Return documents with the token counts of another embedder, given chunk by chunk."""
    import pyarrow as pa

    limit = embedder.info.max_length
    rows = []
    for count in batch.column("chunks").to_pylist():
        own = [next(tokens) for _ in range(count)]
        beyond = [n - limit for n in own if n > limit]
        rows.append((sum(own), len(beyond), sum(beyond)))
    new = dict(zip(("tokens", "truncated_chunks", "truncated_tokens"), zip(*rows, strict=True), strict=True))
    schema = document_schema()
    arrays = [pa.array(new[f.name], type=f.type) if f.name in new else batch.column(f.name) for f in schema]
    return pa.record_batch(arrays, schema=schema)
