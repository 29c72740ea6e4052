"""Nodes with vectors, and the two stores that are compared: embedkit's and core's own simple one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from embedkit import Embedder
from embedkit_indexes.llama_index import EmbedkitVectorStore

PEOPLE: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("aliens", "doc1", "avatar is a blue alien", {"weight": 1.0, "rank": "a", "quality": ["medium", "high"], "identifier": "6FTR78Ziwl"}),
    ("boats", "doc2", "a long ship crosses the sea", {"weight": 2.0, "rank": "c", "quality": ["medium"], "identifier": "6FTR78Yun"}),
    ("clocks", "doc2", "the tower strikes twelve", {"weight": 3.0, "rank": "b", "quality": ["low"], "identifier": "6FTR78BkM"}),
    ("deer", "", "deer eat young leaves", {"year": 1994, "draft": True, "note": ""}),
    ("eels", "doc3", "eels swim to the sargasso", {"year": 1994.5, "tags": [], "note": "Sargasso SEA", "none": None}),
)  # fmt: skip


def node(id: str, ref: str, text: str, metadata: Mapping[str, Any], embedder: Embedder) -> TextNode:
    """Make a node whose vector is of its text alone: no metadata is embedded."""
    relationships: dict[NodeRelationship, Any] = (
        {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=ref)} if ref else {}
    )
    return TextNode(
        id_=id,
        text=text,
        metadata=dict(metadata),
        excluded_embed_metadata_keys=list(metadata),
        relationships=relationships,
        embedding=embedder.encode_document([text])[0].tolist(),
    )


def people(embedder: Embedder) -> list[BaseNode]:
    """Make five nodes of three documents and none, whose metadata has keys and types that differ."""
    return [node(*row, embedder) for row in PEOPLE]


class Both:
    """The same changes made to an embedkit store and to core's simple one."""

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self.embedder = embedder
        self.ours = EmbedkitVectorStore(path, embedder)
        self.simple = SimpleVectorStore()

    def add(self, nodes: Sequence[BaseNode]) -> None:
        """Add nodes to both; both return the ids."""
        assert self.ours.add(nodes) == self.simple.add(nodes)

    def delete(self, ref_doc_id: str) -> None:
        """Delete a document's nodes from both."""
        self.ours.delete(ref_doc_id)
        self.simple.delete(ref_doc_id)

    def delete_nodes(self, ids: list[str] | None, filters: MetadataFilters | None) -> None:
        """Delete nodes from both."""
        self.ours.delete_nodes(ids, filters)
        self.simple.delete_nodes(ids, filters)

    def query(
        self, filters: MetadataFilters | None = None, k: int = 10, text: str = "the sea"
    ) -> VectorStoreQuery:
        """Make a query of a text's vector."""
        vector = self.embedder.encode_query([text])[0].tolist()
        return VectorStoreQuery(query_embedding=vector, similarity_top_k=k, filters=filters)

    def check(self, query: VectorStoreQuery, **options: Any) -> list[str]:
        """Ask both, and see that the answers are the same; return the ids."""
        ours, simple = self.ours.query(query, **options), self.simple.query(query, **options)
        assert ours.ids == simple.ids
        assert ours.nodes is not None
        assert [n.node_id for n in ours.nodes] == simple.ids
        # Stored in 16 bits a number.
        for mine, theirs in zip(ours.similarities or [], simple.similarities or [], strict=True):
            assert abs(mine - theirs) < 2e-3
        return ours.ids or []


def where(key: str, operator: str, value: Any = None) -> MetadataFilters:
    """Make filters of one test."""
    return MetadataFilters(filters=[one(key, operator, value)])


def one(key: str, operator: str, value: Any = None) -> MetadataFilter:
    """Make one test."""
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def group(condition: str, *parts: MetadataFilter | MetadataFilters) -> MetadataFilters:
    """Join tests and groups of them."""
    return MetadataFilters(filters=list(parts), condition=FilterCondition(condition))
