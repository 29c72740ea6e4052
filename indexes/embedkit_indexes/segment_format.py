"""What a segment's files are called and hold: columns, hashes, and how a chunk becomes a row."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from embedkit_indexes.corpus.records import Chunk, Document

CHUNKS = "chunks.arrow"
DOCUMENTS = "documents.arrow"
VECTORS = "vectors.arrow"
HASH_BYTES = 16
# In place of the white space before a chunk, where that is not known.
UNKNOWN_LEAD = "?"
# What a program stores for itself beside a user's metadata, under names that begin so: shown nowhere.
HIDDEN = "_node_"
# A node of LlamaIndex's as JSON, and where its own text stands in the chunk's: [start, end].
NODE_CONTENT = f"{HIDDEN}content"
NODE_TEXT = f"{HIDDEN}text"


def chunk_schema() -> pa.Schema:
    """Return the columns of a chunk."""
    import pyarrow as pa

    return pa.schema(
        [
            ("chunk_id", pa.int64()),
            ("document_id", pa.string()),
            ("position", pa.int32()),
            ("title", pa.string()),
            ("text", pa.string()),
            ("lang", pa.string()),
            ("source", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("lead", pa.string()),
            ("metadata", pa.string()),
            ("hash", pa.binary(HASH_BYTES)),
        ]
    )


def with_lead(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns of chunks; `lead` is unknown to an index that was written before it was stored."""
    import pyarrow as pa

    schema = chunk_schema()
    known = batch.schema.names
    columns = [
        pa.repeat(UNKNOWN_LEAD, batch.num_rows)
        if f.name == "lead" and f.name not in known
        else batch.column(f.name)
        for f in schema
    ]
    return pa.record_batch(columns, schema=schema)


def document_schema() -> pa.Schema:
    """Return the columns of a document; `key` is 64 bits of its id's hash, `hash` covers all that a reader gave."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("key", pa.uint64()),
            ("hash", pa.binary(HASH_BYTES)),
            ("source", pa.string()),
            ("lang", pa.string()),
            ("chunks", pa.int32()),
            ("characters", pa.int64()),
            ("uncovered", pa.int64()),
            ("tokens", pa.int64()),
            ("truncated_chunks", pa.int32()),
            ("truncated_tokens", pa.int64()),
        ]
    )


def id_key(id: str) -> int:
    """Return 64 bits of an id's hash, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def document_hash(document: Document) -> bytes:
    """Return 16 bytes over all of a document that decides its chunks and what is stored of them, its id too."""
    d = document
    metadata = stored_metadata(d) if d.metadata else ""
    parts = [
        v.encode("utf-8", "surrogatepass")
        for v in (d.id, d.text, d.title, d.lang or "", d.source, d.form, metadata)
    ]
    digest = hashlib.blake2b(struct.pack("<7q", *map(len, parts)), digest_size=HASH_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def text_hash(text: str) -> bytes:
    """Return 16 bytes over the text that is embedded."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


def chunk_row(chunk: Chunk, metadata: str) -> tuple[Any, ...]:
    """Return a chunk's columns between its number and its hash."""
    d = chunk.document
    return (
        d.id,
        chunk.position,
        d.title,
        chunk.text,
        d.lang or "und",
        d.source,
        chunk.start,
        chunk.end,
        chunk.lead,
        metadata,
    )


def stored_metadata(document: Document) -> str:
    """Return a document's metadata as JSON. Raises InputError where it is nested too deep."""
    return json.dumps(_metadata(document), ensure_ascii=False)


def _metadata(document: Document) -> Any:
    # Imported here: a search needs no readers.
    from embedkit_indexes.corpus.fields import json_value

    try:
        return json_value(document.metadata)
    except RecursionError as e:
        raise InputError(f"the metadata of document {document.id!r} is {e}: make it flatter") from None
