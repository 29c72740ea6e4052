"""Carry an index to Parquet and back: chunks, vectors and what they were made with; nothing is embedded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorpusError, InputError
from embedkit.syncing import sync_file, sync_folder
from embedkit_indexes.durable import store_errors
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.reports import BuildProgress
from embedkit_indexes.segment import Segment
from embedkit_indexes.segment_format import chunk_schema, document_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from embedkit_indexes.snapshot import Snapshot

_KEY = b"embedkit"
# A sha256 for each row group: what another hand or a bad disk has altered would get checksums of its own.
_DIGESTS = b"embedkit.sha256"
# What a manifest says of the embedder and the chunks, without which vectors are numbers.
_CARRIED = (
    "fingerprint", "embedder", "spec", "options", "chunker", "engine", "probes", "dtype", "dim", "sources", "tasks", "skipped",
    "next_id",
)  # fmt: skip
_ROWS = 8192


def export_parquet(
    snapshot: Snapshot,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[BuildProgress], None] | None = None,
) -> int:
    """Write the chunks that are not deleted to one Parquet file, a row each; return how many.

    Columns: those of a hit, `hash`, `vector` (float16 or float32 lists), and the document's, `document_…`. The file's
    metadata holds what `ParquetIndex` needs of the manifest. Raises StoreError, InputError where the file is there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.resolve().is_relative_to(snapshot.directory.resolve()):
        raise InputError(f"{path} lies inside the index: name a file elsewhere")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path} is there already: name another file, or --force (overwrite=True) replaces it"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder: make it first, or name a file elsewhere")
    manifest = snapshot.manifest
    plain = manifest.to_dict()
    told = json.dumps({"format": 1, **{name: plain[name] for name in _CARRIED}}, ensure_ascii=False)
    told = json.dumps({"told": told, "sha256": hashlib.sha256(told.encode()).hexdigest()})
    value = pa.float16() if manifest.dtype == "float16" else pa.float32()
    vector = pa.field("vector", pa.list_(value, manifest.dim))
    schema = pa.schema([*chunk_schema(), vector, *_document_fields()], metadata={_KEY: told.encode()})
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    written = 0
    with store_errors(path):
        try:
            with pq.ParquetWriter(
                str(beside), schema, compression="zstd", write_page_checksum=True
            ) as writer:
                digests = []
                for segment in snapshot.segments:
                    for batch in _batches(segment, schema, vector.type):
                        writer.write_batch(batch)
                        written += batch.num_rows
                        if progress:
                            progress(BuildProgress(0, written, 0, "exporting"))
                        digests.append(_digest(batch))
                writer.add_key_value_metadata({_DIGESTS: json.dumps(digests)})
            sync_file(beside)
            beside.replace(path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    return written


def _document_fields() -> list[pa.Field]:
    schema = document_schema()
    return [f.with_name(f"document_{f.name}") for f in schema if f.name != "id"]


def _batches(segment: Segment, schema: pa.Schema, vector: pa.DataType) -> Iterator[pa.RecordBatch]:
    """Yield the chunks that are not deleted, each with its vector and its document's columns."""
    import numpy as np
    import pyarrow as pa

    at = 0
    documents = pa.Table.from_batches(segment.document_batches)
    for batch in segment.batches:
        for start in range(0, batch.num_rows, _ROWS):
            part = batch.slice(start, _ROWS)
            rows = np.arange(at + start, at + start + part.num_rows)
            if segment.alive is not None:
                kept = segment.alive.mask[rows]
                part, rows = part.filter(pa.array(kept)), rows[kept]
            if not len(rows):
                continue
            flat = pa.array(np.ascontiguousarray(segment.vectors[rows]).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, vector.list_size)
            owner = np.searchsorted(segment.first_rows, rows, side="right") - 1
            own = documents.take(pa.array(owner)).combine_chunks()
            columns = [
                own.column(f.name.removeprefix("document_")).combine_chunks() for f in _document_fields()
            ]
            yield pa.record_batch([*part.columns, vectors, *columns], schema=schema)
        at += batch.num_rows


def _digest(batch: pa.RecordBatch) -> str:
    """Return a sha256 over the values of a batch, however they lie in its buffers."""
    digest = hashlib.sha256()
    for field, column in zip(batch.schema, batch.columns, strict=True):
        digest.update(f"{field.name} {column.null_count} {len(column)}\n".encode())
        if field.name == "vector":
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
        else:
            values = column.to_pylist()
            digest.update(json.dumps([v.hex() if isinstance(v, bytes) else v for v in values]).encode())
    return digest.hexdigest()


class ParquetIndex:
    """Read what `export_parquet` wrote."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        if not path.is_file():
            raise CorpusError(str(path), "no such file")
        try:
            self._file = pq.ParquetFile(str(path), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as e:
            raise CorpusError(str(path), f"is no Parquet file: {e}") from e
        told = (self._file.schema_arrow.metadata or {}).get(_KEY)
        if told is None:
            raise CorpusError(
                str(path), "was not written by `embedkit export`: index its texts with `embedkit index`"
            )
        try:
            outer = json.loads(told)
            if hashlib.sha256(outer["told"].encode()).hexdigest() != outer["sha256"]:
                raise ValueError("its checksum is not that of its content")
            self.told: dict[str, Any] = json.loads(outer["told"])
            self._digests = json.loads((self._file.metadata.metadata or {})[_DIGESTS])
            if len(self._digests) != self._file.num_row_groups:
                raise ValueError(f"{len(self._digests)} checksums for {self._file.num_row_groups} row groups")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CorpusError(str(path), f"is damaged ({e}): export it again") from e
        if self.told.get("format") != 1:
            raise CorpusError(str(path), "was written by a newer embedkit: update embedkit")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows."""
        import pyarrow as pa

        for number, digest in enumerate(self._digests):
            try:
                table = self._file.read_row_group(number).combine_chunks()
                table.validate(full=True)
                (batch,) = table.to_batches()
                if _digest(batch) != digest:
                    raise ValueError("its rows are not those that were exported")
            except (pa.ArrowException, OSError, ValueError) as e:
                why = " ".join(str(e).split())
                raise CorpusError(str(self.path), f"is damaged ({why}): export it again") from e
            yield batch

    def manifest(self) -> Manifest:
        """Return a manifest of no segments, with all that the file tells."""
        from embedkit_indexes.manifest import Probe

        told = {name: self.told[name] for name in _CARRIED}
        told["probes"] = tuple(Probe(p["text"], tuple(p["vector"])) for p in told["probes"])
        told["tasks"], told["sources"] = tuple(told["tasks"]), tuple(told["sources"])
        empty = {
            "documents": 0, "chunks": 0, "tokens": 0, "truncated_chunks": 0, "truncated_tokens": 0, "coverage": 1.0,
            "languages": {}, "created": "", "updated": "", "version": "", "generation": 0, "segments": (),
        }  # fmt: skip
        return Manifest(**{**empty, **told})
