"""A set of rows of one segment: those a filter lets through and no deletion has taken."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RowSet:
    """Hold the rows by a mask, bool [rows]; what is derived from it is made once."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask

    def __len__(self) -> int:
        """Return how many rows the segment has, in the set or not."""
        return len(self.mask)

    def __and__(self, other: RowSet | None) -> RowSet:
        """Return the rows that lie in both; None stands for all rows."""
        return self if other is None else RowSet(self.mask & other.mask)

    @cached_property
    def count(self) -> int:
        """How many rows are in the set."""
        import numpy as np

        return int(np.count_nonzero(self.mask))

    @cached_property
    def packed(self) -> NDArray[np.uint8]:
        """The set as a bitmap, eight rows a byte, the lowest bit first, as FAISS and the files hold it."""
        import numpy as np

        return np.packbits(self.mask, bitorder="little")

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """The rows in the set, ascending, int64 [count]."""
        import numpy as np

        return np.flatnonzero(self.mask)

    @staticmethod
    def unpack(packed: NDArray[np.uint8], rows: int) -> RowSet:
        """Return the set that a bitmap of `rows` rows holds."""
        import numpy as np

        return RowSet(np.unpackbits(packed, count=rows, bitorder="little").astype(bool))
