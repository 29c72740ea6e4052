"""What a build or a change tells while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embedkit_indexes.corpus.records import Skipped


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build has come; `phase` is "embedding", "merging" or what the engine does."""

    documents: int
    chunks: int
    tokens: int
    phase: str


@dataclass(slots=True)
class Counts:
    """What a change did, in documents and chunks."""

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    kept: int = 0
    embedded: int = 0
    reused: int = 0
    blank: int = 0


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build or a change did, and what the index holds now.

    `added`, `updated`, `removed` and `unchanged` count documents, `kept` those that did not come but may
    stand in what could not be read. `embedded` counts the chunks that went through the embedder, `reused` those whose vector was
    there. `documents`, `chunks`, `tokens`, `coverage`, `truncated_*` and `languages` are of the index as it is now:
    `coverage` is the share of the documents' characters, white space apart, that lie in some chunk;
    `truncated_tokens` counts those of `truncated_chunks` that the embedder did not see; `blank_vectors` the new
    chunks of which it knows no token. `skipped` lists the first records left out, `skipped_count` counts all of
    them. `generation` is the index's version: the same as before where nothing changed.
    """

    documents: int
    chunks: int
    tokens: int
    truncated_chunks: int
    truncated_tokens: int
    coverage: float
    blank_vectors: int
    seconds: float
    engine: str
    skipped: tuple[Skipped, ...]
    skipped_count: int
    languages: Mapping[str, int]
    added: int
    updated: int
    removed: int
    unchanged: int
    kept: int
    embedded: int
    reused: int
    segments: int
    generation: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)
