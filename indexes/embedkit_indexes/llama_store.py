"""`EmbedkitVectorStore`: an index as LlamaIndex's vector store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.llama_index import EmbedkitEmbedding
from embedkit.registry import DEFAULT, full_name, get_embedder
from embedkit_indexes.arguments import as_path
from embedkit_indexes.given import ForeignVectorsError
from embedkit_indexes.index import Index
from embedkit_indexes.llama_async import AsyncVectorStore
from embedkit_indexes.llama_filters import Everything, condition_of
from embedkit_indexes.llama_nodes import embedded_text, id_of, node_of, stored_document
from embedkit_indexes.llama_pointer import read_pointer, write_pointer
from embedkit_indexes.llama_search import answer_query, hits_where
from embedkit_indexes.manifest import NAME
from embedkit_indexes.segment_format import NODE_CONTENT

if TYPE_CHECKING:
    from embedkit_indexes.conditions import Condition

# What a node's vector may have been made of, the likeliest first.
_EMBEDDED = (MetadataMode.EMBED, MetadataMode.ALL, MetadataMode.NONE)
# One writer an index, whatever stores of this process write to it: others wait here, and are not refused.
_writers: dict[Path, threading.RLock] = {}
_writers_lock = threading.Lock()


class EmbedkitVectorStore(AsyncVectorStore):
    """Keep LlamaIndex's nodes in an embedkit index, which the command line searches too.

        store = EmbedkitVectorStore("my.index", embedding)
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embedding)

    The index is made by the first `add`; one that is there is opened, whoever built it. What a call has returned from is
    on the disk. `embedder` is an EmbedkitEmbedding, an embedder or its name; without one, the index's own is used, for a
    new index the bundled one. It checks the vectors that nodes come with (one a call) and embeds nodes without any.

    Any number of threads may use a store; a second process that writes at the same time is refused. Each call sees the
    latest version of the index. Raises InputError and the errors of `Index`.
    """

    stores_text: bool = True
    path: str = Field(description="The index's directory.")
    embedder: str | None = Field(
        default=None, description="The embedder's name or path; None is the index's own."
    )
    _given: Embedder | None = PrivateAttr(default=None)
    _options: dict[str, Any] = PrivateAttr(default_factory=dict)
    _index: Index | None = PrivateAttr(default=None)
    _made_of: MetadataMode = PrivateAttr(default=MetadataMode.EMBED)
    _opening: Any = PrivateAttr(default_factory=threading.RLock)

    def __init__(
        self,
        path: str | Path,
        embedder: str | Embedder | EmbedkitEmbedding | None = None,
        *,
        embedder_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given: Embedder | None = None
        if isinstance(embedder, EmbedkitEmbedding):
            given, embedder = embedder.model, embedder.given if isinstance(embedder.given, str) else None
        elif isinstance(embedder, Embedder):
            given, embedder = embedder, None
        elif not isinstance(embedder, str | None):
            raise InputError(
                f"embedder is {embedder!r:.60}, {type(embedder).__name__}: give an EmbedkitEmbedding, an embedder or "
                "its name"
            )
        super().__init__(**{**kwargs, "path": str(as_path(path, "path")), "embedder": embedder})
        self._given = given
        self._options = dict(embedder_options or {})

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components are known by."""
        return "EmbedkitVectorStore"

    @property
    def client(self) -> Index | None:
        """The open index in its latest version, None where nothing was added yet."""
        with self._opening:
            if self._index is None:
                if not (Path(self.path) / NAME).exists():
                    return None
                self._index = Index.open(self.path, self._opened())
        self._index.refresh()
        return self._index

    def _opened(self) -> Embedder | None:
        """Return the embedder that the user named, opened once; None where the index's own is to be used."""
        with self._opening:
            if self._given is None and self.embedder is not None:
                self._given = get_embedder(self.embedder, **self._options)
            return self._given

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes, in place of those with the same ids; return their ids.

        The vector of a node is taken as it is; one of them is embedded again, to see that it is the index's embedder's,
        of the node's text with the metadata that is meant to be embedded (else: with all metadata, or with none).
        """
        del add_kwargs
        listed = list(nodes) if isinstance(nodes, Iterable) else [nodes]
        for node in listed:
            if not isinstance(node, BaseNode):
                raise InputError(f"nodes holds {node!r:.60}, {type(node).__name__}: give a list of nodes")
        last = {node.node_id: node for node in listed}
        if last:
            self._store(list(last.values()))
        return [node.node_id for node in listed]

    def _store(self, nodes: Sequence[BaseNode]) -> None:
        tried: list[ForeignVectorsError] = []
        for mode in sorted(_EMBEDDED, key=lambda m: m is not self._made_of):
            try:
                texts = [embedded_text(node, mode) for node in nodes]
            except InputError:
                if mode is MetadataMode.EMBED and not tried:
                    raise
                continue  # nodes of metadata alone have no text without it
            try:
                self._store_as(nodes, texts)
                self._made_of = mode
                return
            except ForeignVectorsError as e:
                tried.append(e)
        raise tried[0]

    def _store_as(self, nodes: Sequence[BaseNode], texts: Sequence[str]) -> None:
        pairs = list(zip(nodes, texts, strict=True))
        documents = [stored_document(node, text) for node, text in pairs]
        vectors = {text: node.embedding for node, text in pairs if node.embedding is not None}
        with self._writing():
            index = self.client
            if index is not None:
                index.upsert(documents, vectors=vectors)
            else:
                name = self.embedder or (DEFAULT if self._given is None else "")
                embedder = self._opened() or get_embedder(DEFAULT, **self._options)
                self._given = embedder
                Index.build(
                    self.path, documents, embedder, vectors=vectors,
                    embedder_spec=full_name(name) if name else "", embedder_options=self._options,
                )  # fmt: skip

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that were made of a document; of an index of documents, the document."""
        del delete_kwargs
        self._remove(condition_of(None, doc_ids=[ref_doc_id]))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes with these ids that pass the filters; without ids all that pass.

        Raises InputError where that would take a part of a document: an index deletes whole ones.
        """
        del delete_kwargs
        self._remove(condition_of(filters, node_ids=node_ids))

    def clear(self) -> None:
        """Delete all nodes; the index stays, with its embedder and its tasks."""
        self._remove(None)

    def _remove(self, condition: Condition | None) -> None:
        with self._writing():
            index = self.client
            if index is None or not len(index):
                return
            self._check_whole(index, condition)
            index.delete(where=Everything() if condition is None else condition)

    def _check_whole(self, index: Index, condition: Condition | None) -> None:
        if condition is None:
            return
        taken: dict[str, int] = {}
        for hit in hits_where(index._snapshot, condition):
            if NODE_CONTENT not in hit.metadata:
                taken[hit.document_id] = taken.get(hit.document_id, 0) + 1
        if not taken:
            return
        held = dict.fromkeys(taken, 0)
        for hit in hits_where(index._snapshot, condition_of(None, doc_ids=list(taken))):
            held[hit.document_id] = held.get(hit.document_id, 0) + 1
        for id, count in taken.items():
            if held[id] > count:
                raise InputError(
                    f"{id_of(id, 0)} … are chunks of the document {id!r}, of which {count} of {held[id]} were to be "
                    "deleted: delete the whole document, delete(ref_doc_id)"
                )

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes with these ids, in their order, that pass the filters; without ids all that pass.

        Ids that are not there are passed over.
        """
        index = self.client
        if index is None:
            return []
        found = [node_of(h) for h in hits_where(index._snapshot, condition_of(filters, node_ids=node_ids))]
        if node_ids is None:
            return found
        by_id = {node.node_id: node for node in found}
        return [by_id[id] for id in dict.fromkeys(node_ids) if id in by_id]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to a query, best first.

        Modes: default (cosine), sparse and text_search (BM25 of the query's words), hybrid and semantic_hybrid (both,
        fused by rank; `alpha` is the vectors' weight, 0.5), mmr (`mmr_threshold`, `mmr_prefetch_k`). No `node_ids`, or an
        empty list, which is what a VectorStoreIndex passes, stand for all.
        """
        index = self.client
        if index is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        hits = answer_query(index._snapshot, query, kwargs)
        nodes = [node_of(hit) for hit in hits]
        return VectorStoreQueryResult(
            nodes=nodes, similarities=[hit.score for hit in hits], ids=[node.node_id for node in nodes]
        )

    def persist(
        self,
        persist_path: str = f"{DEFAULT_PERSIST_DIR}/{DEFAULT_PERSIST_FNAME}",
        fs: Any = None,
    ) -> None:
        """Write a small file that says where the index is: the index itself is on the disk already.

        Raises InputError for another file system than the local one, which an index lies on.
        """
        write_pointer(persist_path, Path(self.path), self.embedder, fs)

    @classmethod
    def from_persist_path(
        cls,
        persist_path: str,
        fs: Any = None,
        embedder: str | Embedder | EmbedkitEmbedding | None = None,
    ) -> EmbedkitVectorStore:
        """Open the index that a file of `persist` names, or that is the directory `persist_path` itself.

        Pass the embedder where it was given as an object. Raises InputError for a file that `persist` did not write.
        """
        path, name = read_pointer(persist_path, fs)
        return cls(path, name if embedder is None else embedder)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = "default",
        fs: Any = None,
        embedder: str | Embedder | EmbedkitEmbedding | None = None,
    ) -> EmbedkitVectorStore:
        """Open the index that a StorageContext, persisted to this directory, had as its vector store."""
        return cls.from_persist_path(
            str(Path(persist_dir) / f"{namespace}__{DEFAULT_PERSIST_FNAME}"), fs, embedder
        )

    def _writing(self) -> threading.RLock:
        with _writers_lock:
            return _writers.setdefault(Path(self.path).resolve(), threading.RLock())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> EmbedkitVectorStore:
        # The index it has open cannot be copied: the copy opens it anew.
        given = self._given if self._given is not None else self.embedder
        copied = type(self)(self.path, given, embedder_options=self._options)
        copied.embedder = self.embedder
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.embedder if self.embedder is not None else self._given
        return type(self), (self.path, given)
