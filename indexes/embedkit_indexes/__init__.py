"""Corpora and indexes: `Index` is built once from documents and searched under any task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit_indexes.builder import BuildProgress, BuildReport
    from embedkit_indexes.corpus.chunking import ChunkConfig
    from embedkit_indexes.corpus.options import ReadOptions, ReadReport
    from embedkit_indexes.corpus.readers import read_corpus
    from embedkit_indexes.corpus.records import Document, Skipped
    from embedkit_indexes.index import Index
    from embedkit_indexes.results import RankedChunk, SearchHit, SearchResult

# Read on first use: a search needs neither readers nor chunker, and starts the sooner.
_HOMES = {
    "BuildProgress": "builder",
    "BuildReport": "builder",
    "ChunkConfig": "corpus.chunking",
    "Document": "corpus.records",
    "Index": "index",
    "RankedChunk": "results",
    "ReadOptions": "corpus.options",
    "ReadReport": "corpus.options",
    "SearchHit": "results",
    "SearchResult": "results",
    "Skipped": "corpus.records",
    "read_corpus": "corpus.readers",
}

__all__ = [
    "BuildProgress",
    "BuildReport",
    "ChunkConfig",
    "Document",
    "Index",
    "RankedChunk",
    "ReadOptions",
    "ReadReport",
    "SearchHit",
    "SearchResult",
    "Skipped",
    "read_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"embedkit_indexes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
