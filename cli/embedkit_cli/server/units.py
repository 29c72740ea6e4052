"""What is encoded for requests, and the calls of an embedder that encode it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError
from embedkit.texts import is_visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "document", "rendered"]


class Unit(NamedTuple):
    """A text to encode: a query under its instruction, a document, or a string that is rendered already."""

    role: Role
    instruction: str | None
    text: str


class UnitEncoder:
    """Encode texts of all roles in as few calls of an embedder as it allows."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        # A class that encodes queries or documents in a way of its own has to be asked by role.
        kind = type(embedder)
        self._one_call = (
            kind.encode_query is Embedder.encode_query and kind.encode_document is Embedder.encode_document
        )

    def vectors(self, units: Sequence[Unit]) -> NDArray[np.float32]:
        """Return vectors `[n, dim]`. Raises what the embedder raises, EmbedderError for another shape."""
        if self._one_call or all(unit.role == "rendered" for unit in units):
            out = self._embedder.encode_rendered([self._rendered(unit) for unit in units])
        else:
            out = self._by_kind(units)
        expected = (len(units), self._embedder.info.dim)
        if out.shape != expected:
            raise EmbedderError(
                f"embedder {self._embedder.info.name!r} gave vectors of shape {out.shape}, not {expected}"
            )
        return out

    def tokens(self, units: Sequence[Unit]) -> list[int]:
        """Return each text's tokens. Raises as `vectors` does."""
        counts = self._embedder.count_tokens([self._rendered(unit) for unit in units])
        if len(counts) != len(units):
            raise EmbedderError(
                f"embedder {self._embedder.info.name!r} counted the tokens of {len(counts)} texts, not of {len(units)}"
            )
        return counts

    def _by_kind(self, units: Sequence[Unit]) -> NDArray[np.float32]:
        import numpy as np

        out = np.empty((len(units), self._embedder.info.dim), np.float32)
        for kind in dict.fromkeys(unit[:2] for unit in units):
            rows = [row for row, unit in enumerate(units) if unit[:2] == kind]
            out[rows] = self._of_kind(*kind, [units[row].text for row in rows])
        return out

    def _of_kind(self, role: Role, instruction: str | None, texts: list[str]) -> NDArray[np.float32]:
        if role == "query":
            return self._embedder.encode_query(texts, instruction=instruction)
        return (self._embedder.encode_document if role == "document" else self._embedder.encode_rendered)(
            texts
        )

    def _rendered(self, unit: Unit) -> str:
        template = self._embedder.info.template
        if unit.role == "query":
            return template.render_query(unit.text, unit.instruction)
        # A document without a visible character is no error: as in `encode_document`, its vector is all zeros.
        if unit.role == "document" and is_visible(unit.text):
            return template.render_document(unit.text)
        return unit.text
