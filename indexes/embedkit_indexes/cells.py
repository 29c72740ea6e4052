"""Read single cells of an Arrow batch: faster than Arrow's scalars, and never outside its buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class Cells:
    """Give the rows of a batch as dictionaries of the named columns: strings and integers without nulls.

    Raises IndexError where an altered file's offsets lead outside it, UnicodeDecodeError where its text is none.
    """

    def __init__(self, batch: pa.RecordBatch, names: Sequence[str]) -> None:
        import numpy as np

        self._numbers: list[tuple[str, NDArray[np.integer[Any]]]] = []
        self._strings: list[tuple[str, NDArray[np.int32], memoryview]] = []
        for name in names:
            array = batch.column(name)
            buffers = array.buffers()
            if str(array.type) == "string":
                offsets = np.frombuffer(buffers[1], np.int32)[array.offset : array.offset + len(array) + 1]
                self._strings.append((name, offsets, memoryview(buffers[2] or b"")))
            else:
                dtype = np.dtype(str(array.type))
                self._numbers.append((name, np.frombuffer(buffers[1], dtype)[array.offset :]))

    def row(self, place: int) -> dict[str, Any]:
        """Return one row."""
        out: dict[str, Any] = {name: numbers.item(place) for name, numbers in self._numbers}
        for name, offsets, text in self._strings:
            start, end = offsets.item(place), offsets.item(place + 1)
            if not 0 <= start <= end <= len(text):
                raise IndexError(f"{name} of row {place} lies at {start} to {end} of {len(text)} bytes")
            out[name] = str(text[start:end], "utf-8")
        return out
