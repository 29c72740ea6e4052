"""Read the stored vectors of an index, and what a chunk is called, by chunk ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.reader import IndexReader


class ChunkVectors:
    """The vectors of one version of an index, which stays open as long as this does."""

    def __init__(self, index: IndexReader) -> None:
        self._snapshot = index._snapshot

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all chunks that are not deleted, ascending."""
        return self._table[0]

    @cached_property
    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids ascending, and the row number of each."""
        import numpy as np

        snapshot = self._snapshot
        ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for segment, offset in zip(snapshot.segments, snapshot.offsets, strict=False):
            own = segment.column("chunk_id").to_numpy()
            kept = np.arange(len(own)) if segment.alive is None else segment.alive.numbers
            ids.append(own[kept])
            rows.append(kept + offset)
        joined = np.concatenate(ids)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(rows)[order]

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of these are ids of chunks that are there, bool [ids]."""
        import numpy as np

        own = self.ids
        if not len(own):
            return np.zeros(len(ids), bool)
        found: NDArray[np.bool_] = own[np.searchsorted(own, ids).clip(max=len(own) - 1)] == ids
        return found

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of chunks that are there, float32 [ids, dim]."""
        import numpy as np

        snapshot = self._snapshot
        rows = self._rows(ids)
        out = np.empty((len(ids), snapshot.manifest.dim), np.float32)
        for segment, offset in zip(snapshot.segments, snapshot.offsets, strict=False):
            own = np.flatnonzero((rows >= offset) & (rows < offset + len(segment)))
            out[own] = segment.vectors[rows[own] - offset]
        return out

    def cells(self, ids: NDArray[np.int64], names: Sequence[str]) -> list[list[Any]]:
        """Return columns of the chunk table, such as `document_id`, for chunks that are there."""
        places = self._snapshot.places([int(row) for row in self._rows(ids)])
        return [[cells.cell(row, name) for cells, row, _ in places] for name in names]

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        import numpy as np

        own, rows = self._table
        found: NDArray[np.int64] = rows[np.searchsorted(own, ids)]
        return found
