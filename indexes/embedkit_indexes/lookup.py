"""Find a document of an index by its id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from embedkit_indexes.segment import HASH_BYTES, Segment
from embedkit_indexes.segment_writer import id_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class Place(NamedTuple):
    """Where a document is: the segment's number and the document's number in it."""

    segment: int
    document: int


class DocumentLookup:
    """Find the documents that are not deleted, by 64 bits of their id's hash and then the id itself.

    `dead` holds a mask a segment, bool [documents]; whoever changes one changes what is found.
    """

    def __init__(self, segments: Sequence[Segment], dead: Sequence[NDArray[np.bool_]]) -> None:
        self._segments = segments
        self._dead = dead

    @cached_property
    def _table(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Keys ascending, the running number of each one's document, and where each segment's numbers begin."""
        import numpy as np

        keys = [np.empty(0, np.uint64), *(s.documents("key").to_numpy() for s in self._segments)]
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        starts = np.cumsum([0, *(s.record.documents for s in self._segments)])
        return joined[order], order, starts

    def find(self, id: str) -> Place | None:
        """Return where the document with this id is, None where there is none."""
        import numpy as np

        keys, order, starts = self._table
        wanted = np.uint64(id_key(id))
        for at in range(int(np.searchsorted(keys, wanted)), len(keys)):
            if keys[at] != wanted:
                break
            number = int(order[at])
            segment = int(np.searchsorted(starts, number, side="right")) - 1
            place = Place(segment, number - int(starts[segment]))
            if not self._dead[segment][place.document] and self._text("id", place) == id:
                return place
        return None

    def hash(self, place: Place) -> bytes:
        """Return the hash of a document's content."""
        value = self._text("hash", place)
        if len(value) != HASH_BYTES:
            raise ValueError(f"a hash of {len(value)} bytes")
        return value  # type: ignore[return-value]

    def _text(self, name: str, place: Place) -> str | bytes:
        value: str | bytes = self._columns(name)[place.segment][place.document].as_py()
        return value

    def _columns(self, name: str) -> list[pa.ChunkedArray]:
        if name not in self._cache:
            self._cache[name] = [s.documents(name) for s in self._segments]
        return self._cache[name]

    @cached_property
    def _cache(self) -> dict[str, list[pa.ChunkedArray]]:
        return {}
