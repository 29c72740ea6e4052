"""`EmbedkitRetriever`: an open index as LlamaIndex's retriever, the task chosen for each retriever or each query."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from embedkit.embedder import Embedder
from embedkit.errors import InputError, UnknownNameError
from embedkit.llama_index import EmbedkitEmbedding
from embedkit.sharing import SharedEmbedder
from embedkit.tasks import Task, get_task
from embedkit_indexes.conditions import And
from embedkit_indexes.index import Index
from embedkit_indexes.llama_filters import condition_of
from embedkit_indexes.llama_nodes import nodes_of
from embedkit_indexes.llama_search import search_hits
from embedkit_indexes.reader import IndexReader
from embedkit_indexes.request import EVEN, Mode, checked_queries, make_request

if TYPE_CHECKING:
    import numpy as np
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.schema import IndexNode
    from numpy.typing import NDArray

    from embedkit_indexes.filters import Condition
    from embedkit_indexes.planner import SearchEffort


@dataclass
class TaskQuery(QueryBundle):
    """A query with a task of its own, or an instruction; without either it has the retriever's."""

    task: str | Task | None = None
    instruction: str | None = None


class EmbedkitRetriever(BaseRetriever):
    """Search an index of embedkit's under a task: one index, any number of retrievers.

        engine = RetrieverQueryEngine.from_args(EmbedkitRetriever("docs.index", task="qa"), llm=llm)
        print(engine.query("how do I cancel my plan?"))

    `index` is a directory (each query sees its latest version), or what `Index.open` or `open_indexes` returned. A
    query's own task goes before the retriever's: `retrieve(TaskQuery("…", task="bitext"))`, also through a query engine.
    The query is always embedded under its task: a vector that another retriever left in a QueryBundle is not looked at.

    `filters` are LlamaIndex's, `where` and `lang` those of `Index.search`, and a node passes all of them; so are `mode`,
    `weights` and `effort`. Chunks of documents become TextNodes with the document as their source; nodes that LlamaIndex
    stored come back as they were. Raises as `Index.search` does.
    """

    def __init__(
        self,
        index: str | Path | IndexReader,
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | None = None,
        where: str | Condition | None = None,
        lang: str | None = None,
        mode: Mode = "dense",
        weights: Sequence[float] = EVEN,
        effort: SearchEffort | float | None = None,
        embedder: Embedder | EmbedkitEmbedding | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        own = embedder.model if isinstance(embedder, EmbedkitEmbedding) else embedder
        if isinstance(index, IndexReader) and own is not None:
            raise InputError(
                "an open index has its embedder: leave embedder out, or pass the index's directory"
            )
        self._follows = not isinstance(index, IndexReader)
        self._index = index if isinstance(index, IndexReader) else Index.open(index, own)
        self._lang = lang
        self._mode: Mode = mode
        self._weights = weights
        self._effort = effort
        self.similarity_top_k = similarity_top_k
        # Checked now, not at the first query.
        request = make_request(
            task,
            instruction,
            similarity_top_k,
            lang=lang,
            where=where,
            effort=effort,
            mode=mode,
            weights=weights,
        )
        conditions = [c for c in (condition_of(filters), request.condition) if c is not None]
        self._condition = And(tuple(conditions)) if len(conditions) == 2 else next(iter(conditions), None)
        self._ask(task, instruction)
        super().__init__(
            callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose
        )

    def _ask(self, task: str | Task | None, instruction: str | None) -> None:
        self._task = self._found(task, instruction)
        self._instruction = instruction

    def _found(self, task: str | Task | None, instruction: str | None) -> Task | None:
        if task is not None and instruction is not None:
            raise InputError(f"task {task!r} and an instruction were given: choose one")
        return get_task(task, self._index.tasks) if isinstance(task, str) else task

    def for_task(self, task: str | Task) -> EmbedkitRetriever:
        """Return a retriever over the same open index that asks under this task. Raises UnknownNameError."""
        view = copy.copy(self)
        view._ask(task, None)
        return view

    def for_instruction(self, instruction: str | None) -> EmbedkitRetriever:
        """Return a retriever over the same open index that asks so; None is the embedder's default."""
        view = copy.copy(self)
        view._ask(None, instruction)
        return view

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbedkitRetriever:
        return copy.copy(self)  # over the same open index, which cannot be copied

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        index = self._index
        if self._follows and isinstance(index, Index):
            index.refresh()
        task, instruction = self._task, self._instruction
        if isinstance(query_bundle, TaskQuery) and (query_bundle.task or query_bundle.instruction):
            task = self._found(query_bundle.task, query_bundle.instruction)
            instruction = query_bundle.instruction
        texts = checked_queries(query_bundle.embedding_strs or [query_bundle.query_str])
        request = make_request(
            task, instruction, self.similarity_top_k, lang=None, where=self._condition, effort=self._effort,
            mode=self._mode, weights=self._weights,
        )  # fmt: skip
        snapshot, embedder = index._opened(request)
        if self._lang is not None and self._lang not in snapshot.languages:
            raise UnknownNameError("language", self._lang, snapshot.languages)
        vector = None if embedder is None else _encoded(embedder, texts, task, instruction)
        hits = search_hits(
            snapshot, vector=vector, text=query_bundle.query_str, k=self.similarity_top_k,
            condition=self._condition, mode=self._mode, weights=self._weights, effort=self._effort,
        )  # fmt: skip
        return [NodeWithScore(node=n, score=hit.score) for n, hit in zip(nodes_of(hits), hits, strict=True)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _encoded(
    embedder: Embedder, texts: list[str], task: Task | None, instruction: str | None
) -> NDArray[np.float32]:
    """Return the query's vector, float32 [dim]: the mean of those of several texts, as a query transform gives them."""
    import numpy as np

    vectors = SharedEmbedder.of(embedder).encode_query(texts, task, instruction)
    if len(vectors) == 1:
        row: NDArray[np.float32] = vectors[0]
        return row
    mean = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    unit: NDArray[np.float32] = (mean / length if length else mean).astype(np.float32)
    return unit
