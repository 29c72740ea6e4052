"""The token store: a source tokenised once into memory-mapped Arrow files, read row by row without copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedkit.contract import Template
from embedkit.errors import InputError
from embedkit.hashing import joint_hash
from embedkit_trainer.config.records import SourceConfig
from embedkit_trainer.data.folders import is_intact, make_once, read_manifest
from embedkit_trainer.data.rendering import Rendered, TokenizerPair, render
from embedkit_trainer.data.rows import Row
from embedkit_trainer.data.store_writer import BATCH_ROWS, FORMAT, StoreCounts, write_store

if TYPE_CHECKING:
    import pyarrow as pa


class TokenRow(NamedTuple):
    """Hold one row's token ids, `[length]` int32 each and read-only; `documents` begins with the positive.

    `query_key` hashes the rendered query, `text_keys` each document's text, `id_keys` its id (0: none). `score` is
    nan where the row has none; `line` is where the row stands in its file.
    """

    query: NDArray[np.int32]
    documents: tuple[NDArray[np.int32], ...]
    query_key: int
    text_keys: tuple[int, ...]
    id_keys: tuple[int, ...]
    teacher_scores: tuple[float, ...] | None
    score: float
    line: int


class _View:
    """Show one record batch as arrays over the mapped file.

    Offsets and keys are memoryviews: indexing one gives a Python int, three times faster than NumPy's scalars.
    """

    __slots__ = (
        "document_offsets", "document_values", "id_keys", "lines", "query_keys", "query_offsets", "query_values",
        "row_offsets", "score_offsets", "scored", "scores", "teacher_scores", "text_keys",
    )  # fmt: skip

    def __init__(self, batch: pa.RecordBatch) -> None:
        column = {name: batch.column(name) for name in batch.schema.names}
        documents = column["documents"]
        self.query_offsets = _memory(column["query"].offsets)
        self.query_values: NDArray[np.int32] = column["query"].values.to_numpy()
        self.row_offsets = _memory(documents.offsets)
        self.document_offsets = _memory(documents.values.offsets)
        self.document_values: NDArray[np.int32] = documents.values.values.to_numpy()
        self.query_keys = _memory(column["query_key"])
        self.text_keys = _memory(column["text_keys"].values)
        self.id_keys = _memory(column["id_keys"].values)
        self.score_offsets = _memory(column["teacher_scores"].offsets)
        self.teacher_scores = _memory(column["teacher_scores"].values)
        self.scored = len(self.teacher_scores) > 0
        self.scores = _memory(column["score"])
        self.lines = _memory(column["line"])


def _memory(column: pa.Array) -> memoryview:
    return memoryview(column.to_numpy())


def _circle(start: int, end: int, first: int, count: int | None) -> Sequence[int]:
    """Return `start`, the positive, and `count` of the negatives between it and `end`, in a circle from `first`."""
    others = end - start - 1
    if count is None or count >= others:
        return range(start, end)
    return [start, *[start + 1 + (first + n) % others for n in range(count)]]


class TokenStore:
    """Give a source's rows as token ids; nothing is loaded before it is asked for.

    `query_lengths` `[n]`, `document_lengths` `[n]` (the longest document of each row) and `all_document_lengths`
    `[counts.documents]` count tokens; row i's documents begin at `document_starts[i]` of the last.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        import pyarrow as pa

        self.folder = folder
        self.name: str = manifest["name"]
        self.licence: str = manifest["licence"]
        self.template = Template.of(manifest["template"])
        self.counts = StoreCounts(**manifest["counts"])
        self.digest: str = manifest["digest"]
        self.instructed_digest: str = manifest["instructed_digest"]
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
        self._views: list[_View | None] = [None] * self._file.num_record_batches
        self.query_lengths = self._lengths("query_lengths", np.int32)
        self.document_lengths = self._lengths("document_lengths", np.int32)
        self.all_document_lengths = self._lengths("all_document_lengths", np.int32)
        self.document_starts = self._lengths("document_starts", np.int64)

    @classmethod
    def build(
        cls, rows: Iterable[Row], tokens: TokenizerPair, folder: Path, source: SourceConfig | None = None
    ) -> TokenStore:
        """Tokenise `rows` into `folder`, replacing a broken one, or open it where it is intact already.

        Raises InputError for a source without rows; CorpusError where a row cannot be read or has no tokens.
        """
        settings = source or SourceConfig()
        make_once(folder, lambda beside: write_store(rows, tokens, beside, settings))
        return cls(folder, read_manifest(folder))

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Open a finished store. Raises InputError where it is missing, half-written or altered."""
        if not is_intact(folder):
            raise InputError(f"{folder} is no intact token store: delete it and build it again")
        return cls(folder, read_manifest(folder))

    def __len__(self) -> int:
        return self.counts.rows

    def row(self, i: int, first: int = 0, count: int | None = None) -> TokenRow:
        """Return row i with its positive and `count` negatives (None: all), taken in a circle from number `first`."""
        view, j = self._view(i)
        start, end = view.row_offsets[j], view.row_offsets[j + 1]
        kept = _circle(start, end, first, count)
        edges, values = view.document_offsets, view.document_values
        scores = None
        if view.scored:
            at = view.score_offsets[j]
            if view.score_offsets[j + 1] > at:
                scores = tuple([view.teacher_scores[at + d - start] for d in kept])
        text_keys, id_keys = view.text_keys, view.id_keys
        return TokenRow(
            view.query_values[view.query_offsets[j] : view.query_offsets[j + 1]],
            tuple([values[edges[d] : edges[d + 1]] for d in kept]),
            view.query_keys[j],
            tuple([text_keys[d] for d in kept]),
            tuple([id_keys[d] for d in kept]),
            scores,
            view.scores[j],
            view.lines[j],
        )

    def document_numbers(self, i: int, first: int = 0, count: int | None = None) -> Sequence[int]:
        """Return the numbers, counted through the store, of the documents that `row` gives for these arguments."""
        start, end = self.document_starts[i : i + 2].tolist()
        return _circle(start, end, first, count)

    def texts(self, i: int) -> Row:
        """Return row i as it was read, with the instruction that it is trained with."""
        batch, j = divmod(self._checked(i), BATCH_ROWS)
        return self._text_rows(batch, j, 1)[0]

    def text_batches(self) -> Iterable[list[Row]]:
        """Yield all rows as `texts` gives them, one record batch at a time."""
        for batch in range(self._texts.num_record_batches):
            yield self._text_rows(batch, 0, BATCH_ROWS)

    def rendered(self, i: int) -> Rendered:
        """Return the exact strings that row i's token ids were made of."""
        return render(self.texts(i), self.template)

    def largest_id(self) -> int:
        """Return the largest token id of all texts; reads the whole store."""
        views = (self._view(i)[0] for i in range(0, self.counts.rows, BATCH_ROWS))
        return max(int(max(v.query_values.max(), v.document_values.max())) for v in views)

    def costs(self, negatives: int) -> NDArray[np.int64]:
        """Return `[n]` upper bounds of the tokens of each row: its query and 1 + `negatives` of its longest document."""
        documents = np.minimum(np.diff(self.document_starts), 1 + negatives)
        costs: NDArray[np.int64] = self.query_lengths + documents * self.document_lengths.astype(np.int64)
        return costs

    def _view(self, i: int) -> tuple[_View, int]:
        batch, j = divmod(self._checked(i), BATCH_ROWS)
        view = self._views[batch]
        if view is None:
            view = self._views[batch] = _View(self._file.get_batch(batch))
        return view, j

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.counts.rows:
            raise IndexError(f"row {i} of a store of {self.counts.rows} rows")
        return i

    def _lengths(self, name: str, kind: type[Any]) -> NDArray[Any]:
        return np.memmap(self.folder / f"{name}.bin", dtype=kind, mode="r")

    @cached_property
    def _texts(self) -> Any:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.folder / "texts.arrow")))

    def _text_rows(self, batch: int, start: int, count: int) -> list[Row]:
        records = self._texts.get_batch(batch).slice(start, count).to_pylist()
        rows = []
        for j, record in enumerate(records, start=batch * BATCH_ROWS + start):
            tokens = self.row(j)
            positive, *negatives = record.pop("documents")
            record["negative_ids"] = tuple(record["negative_ids"] or ())
            score = None if np.isnan(tokens.score) else tokens.score
            rows.append(
                Row(
                    positive=positive,
                    negatives=tuple(negatives),
                    teacher_scores=tokens.teacher_scores,
                    score=score,
                    line=tokens.line,
                    **record,
                )
            )
        return rows


def cached_store(
    source: SourceConfig,
    tokens: TokenizerPair,
    cache: Path,
    files: Sequence[Path],
    rows: Callable[[], Iterable[Row]],
) -> TokenStore:
    """Return the store of a source, tokenised only where `cache` does not hold it yet.

    `files` are all that `rows` reads. Raises as `TokenStore.build` does.
    """
    folder = cache / "tokens" / store_address(source, tokens, files)
    make_once(folder, lambda beside: write_store(rows(), tokens, beside, source))
    # The licence decides no token, so it may change without a new store.
    return TokenStore(folder, {**read_manifest(folder), "licence": source.licence})


def store_address(source: SourceConfig, tokens: TokenizerPair, files: Sequence[Path]) -> str:
    """Return 32 hex digits over all that decides a store's content."""
    record = {
        "format": [FORMAT, version("embedkit-retrieval")],
        "files": joint_hash(files),
        "tokens": [tokens.key, *tokens.limits()],
        "template": asdict(tokens.template),
        "source": [source.name, source.format, source.limit],
        "instructions": [list(source.instructions or ()), source.instruction_dropout],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
