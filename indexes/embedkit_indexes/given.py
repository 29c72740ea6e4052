"""Vectors that come with their texts: checked to be the embedder's own, and stored in place of an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError
from embedkit_indexes.segment_format import text_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder

# bf16 against float32 or int8 arithmetic over the same weights gave 0.994 at the lowest; another model gives about 0.
_SAME = 0.99


class ForeignVectorsError(InputError):
    """Report vectors that are not what the index's embedder makes of their texts."""


class GivenVectors:
    """Hold the vectors of texts by the texts' hashes, scaled to unit length; those of zeros alone stay so.

    Raises InputError for a vector that is not `dim` finite numbers.
    """

    def __init__(self, vectors: Mapping[str, Sequence[float] | NDArray[Any]], dim: int) -> None:
        if not isinstance(vectors, Mapping):
            raise InputError(
                f"vectors is {vectors!r:.60}, {type(vectors).__name__}: give a mapping of texts to their vectors"
            )
        self._rows = {text_hash(text): _unit(text, vector, dim) for text, vector in vectors.items()}
        self._sample = next(((t, text_hash(t)) for t in vectors if t.strip()), None)

    def check(self, embedder: Embedder) -> None:
        """Embed one of the texts: raises ForeignVectorsError where its vector is of another model or text."""
        if self._sample is None:
            return
        text, hash = self._sample
        own, given = embedder.encode_document([text])[0], self._rows[hash]
        cosine = float(own @ given)
        if cosine < _SAME and (own.any() or given.any()):
            raise ForeignVectorsError(
                f"the vector given for {text!r:.60} is not what {embedder.info.name} makes of it (cosine {cosine:.2f}): "
                "give vectors of the index's own embedder, made of the document's side, or none"
            )

    def look_up(self, hash: bytes) -> NDArray[np.float32] | None:
        """Return the vector of the text with this hash, float32 [dim], None where none was given."""
        return self._rows.get(hash)


def _unit(text: str, vector: Any, dim: int) -> NDArray[np.float32]:
    import numpy as np

    try:
        row = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError):
        row = np.empty(0)
    if row.shape != (dim,):
        found = f"{row.shape[0]:,} numbers" if row.ndim == 1 and row.size else f"{vector!r:.60}"
        raise InputError(
            f"the vector given for {text!r:.60} is {found}, the index holds vectors of {dim:,}: give those of the "
            "index's own embedder"
        )
    if not np.isfinite(row).all():
        raise InputError(f"the vector given for {text!r:.60} holds NaN or infinity: give finite numbers")
    peak = float(np.abs(row).max(initial=0.0))
    # By the peak first, so that no square over- or underflows.
    row = row / peak if peak else row
    length = float(np.linalg.norm(row))
    unit: NDArray[np.float32] = (row / length if length else row).astype(np.float32)
    return unit
