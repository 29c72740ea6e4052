"""Find a document of an index by its id."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from embedkit_indexes.segment import Segment
from embedkit_indexes.segment_format import HASH_BYTES, id_key

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
    def _table(self) -> tuple[memoryview, memoryview, list[int]]:
        """Keys ascending, the running number of each one's document, and where each segment's numbers begin."""
        import numpy as np

        keys = [np.empty(0, np.uint64), *(s.documents("key").to_numpy() for s in self._segments)]
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        starts = [0, *accumulate(s.record.documents for s in self._segments)]
        # Memory views: `bisect` reads one number a step, where NumPy's search costs more to call than to do.
        return joined[order].data, order.data, starts

    def find(self, id: str, hash: bytes = b"") -> Place | None:
        """Return where the document with this id is, None where there is none.

        A `hash` that fits spares the look at the id, which it covers.
        """
        keys, order, starts = self._table
        wanted = id_key(id)
        for at in range(bisect_left(keys, wanted), len(keys)):
            if keys[at] != wanted:
                break
            number = order[at]
            segment = bisect_right(starts, number) - 1
            place = Place(segment, number - starts[segment])
            if not self._dead[segment][place.document] and (
                self.hash(place) == hash or self._id(place) == id
            ):
                return place
        return None

    def hash(self, place: Place) -> bytes:
        """Return the hash of a document's content."""
        at = place.document * HASH_BYTES
        return bytes(self._hashes[place.segment][at : at + HASH_BYTES])

    def _id(self, place: Place) -> str:
        value: str = self._ids[place.segment][place.document].as_py()
        return value

    @cached_property
    def _ids(self) -> list[pa.ChunkedArray]:
        return [segment.documents("id") for segment in self._segments]

    @cached_property
    def _hashes(self) -> list[bytes]:
        out = []
        for segment in self._segments:
            parts = segment.documents("hash").chunks
            out.append(
                b"".join(
                    p.buffers()[1][p.offset * HASH_BYTES : (p.offset + len(p)) * HASH_BYTES].to_pybytes()
                    for p in parts
                )
            )
        return out
