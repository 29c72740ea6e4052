"""Corpora and indexes: `Index` is built once from documents and searched under any task."""

from embedkit_indexes.builder import BuildProgress, BuildReport
from embedkit_indexes.corpus.chunking import ChunkConfig
from embedkit_indexes.corpus.options import ReadOptions, ReadReport
from embedkit_indexes.corpus.readers import read_corpus
from embedkit_indexes.corpus.records import Document, Skipped
from embedkit_indexes.index import Index
from embedkit_indexes.results import SearchHit, SearchResult

__all__ = [
    "BuildProgress",
    "BuildReport",
    "ChunkConfig",
    "Document",
    "Index",
    "ReadOptions",
    "ReadReport",
    "SearchHit",
    "SearchResult",
    "Skipped",
    "read_corpus",
]
