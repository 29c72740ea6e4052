"""Write a token store: rows are rendered, tokenised and written batch by batch, so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import CorpusError, InputError
from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.data.folders import write_manifest
from embedkit_trainer.data.rendering import Rendered, TokenizerPair, id_key, render, text_key
from embedkit_trainer.data.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
BATCH_ROWS = 1024
# Python's lists of ids are ten times as large as the array they become.
_TEXTS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Count what a store holds; `truncated_*` are the texts that fill the limit, `instructed` the rows that carry one."""

    rows: int = 0
    documents: int = 0
    query_tokens: int = 0
    document_tokens: int = 0
    truncated_queries: int = 0
    truncated_documents: int = 0
    instructed: int = 0


@dataclass(frozen=True, slots=True)
class _Ids:
    values: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def offsets(self) -> NDArray[np.int32]:
        return _offsets(self.lengths)


def write_store(rows: Iterable[Row], tokens: TokenizerPair, folder: Path, source: SourceConfig) -> None:
    """Write the store's files and manifest into `folder`, which exists.

    Raises InputError for a source without rows, CorpusError for a text that has no tokens.
    """
    import pyarrow as pa

    totals = dict.fromkeys(StoreCounts.__dataclass_fields__, 0)
    bare, instructed = blake2b(digest_size=16), blake2b(digest_size=16)
    limited = iter(rows) if source.limit is None else islice(rows, source.limit)
    with ExitStack() as stack:
        token_file = stack.enter_context(pa.ipc.new_file(str(folder / "tokens.arrow"), _token_schema()))
        text_file = stack.enter_context(pa.ipc.new_file(str(folder / "texts.arrow"), _text_schema()))
        names = ("query_lengths", "document_lengths", "all_document_lengths", "document_starts")
        lengths = {n: stack.enter_context((folder / f"{n}.bin").open("wb")) for n in names}
        lengths["document_starts"].write(np.zeros(1, np.int64).tobytes())
        for batch in _batches(limited):
            rendered = [
                render(r, tokens.template, source.instructions or (), source.instruction_dropout)
                for r in batch
            ]
            queries = _tokenised(tokens.query, [r.query for r in rendered])
            documents = _tokenised(tokens.document, list(chain.from_iterable(r.documents for r in rendered)))
            _check_tokens(batch, queries, documents, source)
            edges = _offsets([1 + len(r.negatives) for r in batch])
            token_file.write_batch(_token_batch(batch, rendered, queries, documents, source.name))
            text_file.write_batch(_text_batch(batch, rendered))
            lengths["query_lengths"].write(queries.lengths.tobytes())
            lengths["all_document_lengths"].write(documents.lengths.tobytes())
            longest = np.maximum.reduceat(documents.lengths, edges[:-1])
            lengths["document_lengths"].write(longest.astype(np.int32).tobytes())
            lengths["document_starts"].write((edges[1:] + np.int64(totals["documents"])).tobytes())
            _count(totals, rendered, queries, documents, tokens.limits())
            for row, strings in zip(batch, rendered, strict=True):
                _digest(bare, row.query, row.positive, *row.negatives)
                _digest(instructed, strings.instruction or "")
    if not totals["rows"]:
        raise InputError(
            f"the source {source.name or source.path!r} holds no rows: take it out, or check its path"
        )
    write_manifest(
        folder,
        {
            "format": FORMAT,
            "name": source.name,
            "licence": source.licence,
            "template": asdict(tokens.template),
            "counts": totals,
            "digest": bare.hexdigest(),
            "instructed_digest": bare.hexdigest() + instructed.hexdigest(),
        },
    )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def _tokenised(tokenise: Callable[[Sequence[str]], list[list[int]]], texts: list[str]) -> _Ids:
    values, lengths = [], []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        ids = tokenise(texts[start : start + _TEXTS_AT_ONCE])
        sizes = np.fromiter(map(len, ids), np.int32, len(ids))
        values.append(np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum())))
        lengths.append(sizes)
    return _Ids(np.concatenate(values), np.concatenate(lengths))


def _check_tokens(batch: list[Row], queries: _Ids, documents: _Ids, source: SourceConfig) -> None:
    owners = np.repeat(np.arange(len(batch)), [1 + len(r.negatives) for r in batch])
    for what, bad in (("query", np.flatnonzero(queries.lengths == 0)),
                      ("document", owners[documents.lengths == 0])):  # fmt: skip
        if len(bad):
            row = batch[int(bad[0])]
            raise CorpusError(
                source.path or source.name or "row",
                f"the tokenizer finds no token in a {what} of the row {row.query[:60]!r}: leave the row out",
                row.line or None,
            )


def _count(
    totals: dict[str, int],
    rendered: list[Rendered],
    queries: _Ids,
    documents: _Ids,
    limits: tuple[int | None, int | None],
) -> None:
    totals["rows"] += len(rendered)
    totals["documents"] += len(documents.lengths)
    totals["instructed"] += sum(r.instruction is not None for r in rendered)
    for name, ids, limit in (("queries", queries, limits[0]), ("documents", documents, limits[1])):
        totals["query_tokens" if name == "queries" else "document_tokens"] += len(ids.values)
        if limit is not None:
            totals[f"truncated_{name}"] += int((ids.lengths >= limit).sum())


def _token_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "query": pa.list_(pa.int32()),
            "documents": pa.list_(pa.list_(pa.int32())),
            "query_key": pa.int64(),
            "text_keys": pa.list_(pa.int64()),
            "id_keys": pa.list_(pa.int64()),
            "teacher_scores": pa.list_(pa.float32()),
            "score": pa.float64(),
            "line": pa.int64(),
        }
    )


def _text_schema() -> pa.Schema:
    import pyarrow as pa

    # 64-bit offsets: long documents with many negatives pass 2 GiB a batch.
    texts = pa.large_list(pa.large_string())
    plain = {name: pa.large_string() for name in ("query", "instruction", "source", "positive_id")}
    return pa.schema({**plain, "documents": texts, "negative_ids": texts})


def _token_batch(
    batch: list[Row],
    rendered: list[Rendered],
    queries: _Ids,
    documents: _Ids,
    source: str,
) -> pa.RecordBatch:
    import pyarrow as pa

    edges = _offsets([1 + len(r.negatives) for r in batch])
    text_keys = [text_key(t) for r in batch for t in (r.positive, *r.negatives)]
    id_keys = [id_key(i, source) for r in batch for i in (r.positive_id, *_padded_ids(r))]
    scores = [r.teacher_scores or () for r in batch]
    columns = [
        _lists(queries.offsets(), pa.array(queries.values)),
        _lists(edges, _lists(documents.offsets(), pa.array(documents.values))),
        pa.array([text_key(r.query) for r in rendered], pa.int64()),
        _lists(edges, pa.array(text_keys, pa.int64())),
        _lists(edges, pa.array(id_keys, pa.int64())),
        _lists(_offsets([len(s) for s in scores]), pa.array(list(chain.from_iterable(scores)), pa.float32())),
        pa.array(np.array([math.nan if r.score is None else r.score for r in batch], np.float64)),
        pa.array([r.line for r in batch], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_token_schema())


def _text_batch(batch: list[Row], rendered: list[Rendered]) -> pa.RecordBatch:
    import pyarrow as pa

    records: dict[str, list[Any]] = {
        "query": [r.query for r in batch],
        "instruction": [r.instruction for r in rendered],
        "source": [r.source for r in batch],
        "positive_id": [r.positive_id for r in batch],
        "documents": [[r.positive, *r.negatives] for r in batch],
        "negative_ids": [list(r.negative_ids) for r in batch],
    }
    return pa.RecordBatch.from_pydict(records, schema=_text_schema())


def _padded_ids(row: Row) -> tuple[str | None, ...]:
    return row.negative_ids or (None,) * len(row.negatives)


def _lists(offsets: NDArray[np.int32], values: pa.Array) -> pa.Array:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _offsets(lengths: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _digest(state: Any, *texts: str) -> None:
    """Feed texts to a hash so that no two lists of texts feed the same bytes."""
    for text in texts:
        data = text.encode()
        state.update(b"%d:" % len(data))
        state.update(data)
    state.update(b";")
