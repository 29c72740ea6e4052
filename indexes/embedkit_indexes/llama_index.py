"""LlamaIndex over an index: `EmbedkitVectorStore`, `EmbedkitRetriever`, `EmbedkitContext` (`pip install 'embedkit-retrieval[llama-index]'`)."""

from __future__ import annotations

# First: it names the missing extra.
from embedkit.llama_index import EmbedkitEmbedding
from embedkit_indexes.llama_context import EmbedkitContext
from embedkit_indexes.llama_retriever import EmbedkitRetriever, TaskQuery
from embedkit_indexes.llama_store import EmbedkitVectorStore

__all__ = ["EmbedkitContext", "EmbedkitEmbedding", "EmbedkitRetriever", "EmbedkitVectorStore", "TaskQuery"]
