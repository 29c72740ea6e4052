"""Draw chunks of an index: an order that the seed and each chunk's own id decide, whatever else the index holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.reader import IndexReader


@dataclass(frozen=True, slots=True)
class SampledChunk:
    """One chunk as it is stored; `chunk_id` stays its own through every change of the index."""

    chunk_id: int
    document_id: str
    title: str
    text: str
    lang: str


def sample_chunks(index: IndexReader, seed: int | str, where: str | None = None) -> Iterator[SampledChunk]:
    """Yield all chunks, or those that satisfy `where`, in an order drawn by `seed`.

    Two chunks stand in the same order whatever is added to the index or deleted from it. Memory is 32 bytes a chunk.
    Raises UnknownNameError or InputError for a filter that cannot be asked.
    """
    import numpy as np

    from embedkit_indexes.where import parse_where

    snapshot = index._snapshot
    allowed = snapshot.allowed(parse_where(where) if where is not None else None)
    ids: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    for segment, rows, offset in zip(snapshot.segments, allowed, snapshot.offsets, strict=False):
        own = segment.column("chunk_id").to_numpy()
        kept = np.arange(len(own)) if rows is None else rows.numbers
        ids.append(own[kept])
        numbers.append(kept + offset)
    if not ids:
        return
    order = np.concatenate(numbers)[np.argsort(_drawn(np.concatenate(ids), seed), kind="stable")]
    for number in order:
        ((cells, row, _),) = snapshot.places([int(number)])
        yield SampledChunk(
            *(cells.cell(row, name) for name in ("chunk_id", "document_id", "title", "text", "lang"))
        )


def _drawn(ids: NDArray[np.int64], seed: int | str) -> NDArray[np.uint64]:
    """Return a number for each id, by splitmix64 of id and seed: uint64 [ids]."""
    import hashlib

    import numpy as np

    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    x = ids.astype(np.uint64) + np.uint64(start)  # wraps around, as it shall
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
