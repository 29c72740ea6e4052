"""Corpora and indexes: `Index` is built once from documents and searched under any task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit_indexes.context import Context, ContextConfig, build_context
    from embedkit_indexes.corpus.chunking import ChunkConfig
    from embedkit_indexes.corpus.options import ReadOptions, ReadReport
    from embedkit_indexes.corpus.readers import read_corpus
    from embedkit_indexes.corpus.records import Document, Skipped
    from embedkit_indexes.filters import Condition, F
    from embedkit_indexes.group import IndexGroup, open_indexes
    from embedkit_indexes.index import Index
    from embedkit_indexes.planner import EngineConfig, SearchEffort
    from embedkit_indexes.reader import IndexReader
    from embedkit_indexes.reports import BuildProgress, BuildReport
    from embedkit_indexes.results import RankedChunk, SearchHit, SearchResult
    from embedkit_indexes.where import parse_where

# Read on first use: a search needs neither readers nor chunker, and starts the sooner.
_HOMES = {
    "build_context": "context",
    "BuildProgress": "reports",
    "BuildReport": "reports",
    "Condition": "filters",
    "Context": "context",
    "ContextConfig": "context",
    "EngineConfig": "planner",
    "F": "filters",
    "IndexGroup": "group",
    "IndexReader": "reader",
    "SearchEffort": "planner",
    "open_indexes": "group",
    "parse_where": "where",
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
    "Condition",
    "Context",
    "ContextConfig",
    "Document",
    "EngineConfig",
    "F",
    "Index",
    "IndexGroup",
    "IndexReader",
    "RankedChunk",
    "ReadOptions",
    "ReadReport",
    "SearchEffort",
    "SearchHit",
    "SearchResult",
    "Skipped",
    "build_context",
    "open_indexes",
    "parse_where",
    "read_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"embedkit_indexes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
