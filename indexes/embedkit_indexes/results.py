"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One chunk found.

    `score` is the cosine of query and chunk, -1..1, higher is nearer; with mode "hybrid" the fused rank (a sum of
    weight / (60 + rank), of use for the order alone), with mode "lexical" the BM25 score. `cosine` and `bm25` say what
    each of the two gave, None where it was not asked or did not find the chunk. `chunk_id` stays the chunk's own
    through every change; `index` names the directory where several were searched.
    """

    rank: int
    score: float
    document_id: str
    position: int
    title: str
    text: str
    lang: str
    source: str
    start: int
    end: int
    metadata: Mapping[str, Any]
    chunk_id: int = -1
    cosine: float | None = None
    bm25: float | None = None
    index: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits of one query, best first, and what was really encoded for it.

    `truncated` counts the tokens of `encoded` beyond what the embedder sees of a text. `task` is the task's name, None
    for a free instruction or a bare query; `obeys` is False where the embedder was not trained on instructions and an
    instruction was given all the same.
    """

    query: str
    task: str | None
    instruction: str | None
    encoded: str
    obeys: bool
    truncated: int
    hits: tuple[SearchHit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class RankedChunk(NamedTuple):
    """A chunk found, by its document's id; several chunks of one document come several times."""

    document_id: str
    score: float
