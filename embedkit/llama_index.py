"""LlamaIndex: one embedder, a view of it for every task (`pip install 'embedkit-retrieval[llama-index]'`)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError, InputError, MissingExtraError
from embedkit.registry import DEFAULT, get_embedder
from embedkit.sharing import SharedEmbedder
from embedkit.tasks import Task

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore
except ModuleNotFoundError as e:
    if (e.name or "").split(".")[0] != "llama_index":
        raise
    raise MissingExtraError("embedkit.llama_index", "llama-index") from e

_A = TypeVar("_A")
_R = TypeVar("_R")
_role: ContextVar[str] = ContextVar("_role", default="document")


class EmbedkitEmbedding(BaseEmbedding):
    """Give LlamaIndex an embedder whose queries carry a task's instruction, over documents that carry none.

    One index serves every task: build it with any view, then retrieve with `for_task` or `for_instruction`.

        embedding = EmbedkitEmbedding("bundled")
        index = VectorStoreIndex.from_documents(documents, embed_model=embedding)
        index.as_retriever(embed_model=embedding.for_task("bitext")).retrieve("Wo ist der Bahnhof?")

    Pass each retriever the query as a string: LlamaIndex writes a query's vector into the `QueryBundle` it is
    given and uses that again, so a bundle reused for another task keeps the first task's vector.

    An `embeddings_cache` is keyed by fingerprint, role and instruction besides the text (LlamaIndex alone
    keys by text, and hands a document's vector to a query). Serialised are names, task and fingerprint, never
    the embedder's options; an embedder that needs some is passed as an object, to `from_dict` too.
    """

    embedder: str = Field(description="The embedder's name or path.")
    task: str | None = Field(default=None, description="The task whose instruction queries carry.")
    instruction: str | None = Field(default=None, description="The instruction that queries carry.")
    fingerprint: str = Field(description="The embedder's fingerprint, checked when it is opened again.")
    embeddings_cache: Any | None = Field(default=None, exclude=True)
    _model: _Model = PrivateAttr()

    def __init__(
        self,
        embedder: str | Embedder = DEFAULT,
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        embed_batch_size: int = 256,
        fingerprint: str | None = None,
        embeddings_cache: BaseKVStore | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(embedder, str | Embedder):
            raise InputError(
                f"embedder is {embedder!r:.60}, {type(embedder).__name__}: give its name or an Embedder"
            )
        if not isinstance(embeddings_cache, BaseKVStore | None):
            raise InputError(
                f"embeddings_cache is {embeddings_cache!r:.60}: give a key-value store, such as SimpleKVStore()"
            )
        model = _Model(embedder)
        found = model.embedder.fingerprint
        if fingerprint is not None and fingerprint != found:
            raise EmbedderError(
                f"embedder {model.embedder.info.name!r} has the fingerprint {found}, stored was {fingerprint}: open the embedder that the index was built with"
            )
        fields = {
            **kwargs,
            "embedder": model.name,
            "fingerprint": found,
            "model_name": model.embedder.info.name,
            "embed_batch_size": embed_batch_size,
            **_query_side(model.embedder, task, instruction),
        }
        if embeddings_cache is not None:
            fields["embeddings_cache"] = _KeyedCache(embeddings_cache, found)
        super().__init__(**fields)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components are known by."""
        return "EmbedkitEmbedding"

    @property
    def model(self) -> Embedder:
        """The embedder, which every view of it shares; used elsewhere too, it still takes `parallel` calls at a time."""
        return self._model.shared

    @property
    def given(self) -> str | Embedder:
        """The name or the object that the embedder was opened by."""
        return self._model.given

    def for_task(self, task: str | Task) -> EmbedkitEmbedding:
        """Return a view of the same model whose queries carry the task's instruction.

        Raises UnknownNameError with the nearest names.
        """
        return self.model_copy(update=_query_side(self._model.embedder, task, None))

    def for_instruction(self, instruction: str | None) -> EmbedkitEmbedding:
        """Return a view of the same model whose queries carry this sentence; None is the embedder's default."""
        return self.model_copy(update=_query_side(self._model.embedder, None, instruction))

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query under this view's instruction."""
        with self._as_query():
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query under this view's instruction, beside the event loop."""
        with self._as_query():
            return await super().aget_query_embedding(query)

    @contextmanager
    def _as_query(self) -> Iterator[None]:
        # All that decides a query's vector besides the model and the text: template and instruction.
        rendered = self._model.embedder.render_query("", self.task, self.instruction)
        token = _role.set("query-" + hashlib.sha256(rendered.encode()).hexdigest()[:16])
        try:
            yield
        finally:
            _role.reset(token)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._model.encode_query(query, self.task, self.instruction)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self._model.beside(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._model.encode_documents(texts)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._model.beside(self._get_text_embeddings, texts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled for other processes (IngestionPipeline's num_workers): a named embedder is opened anew
        # there, an embedder given as an object is pickled as it says itself.
        fields = {
            "embedder": self._model.given,
            "task": self.task,
            "instruction": self.instruction,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            "fingerprint": self.fingerprint,
        }
        return _reopen, (type(self), fields)


def _reopen(cls: type[EmbedkitEmbedding], fields: dict[str, Any]) -> EmbedkitEmbedding:
    return cls(**fields)


def _query_side(
    embedder: Embedder, task: str | Task | None, instruction: str | None
) -> dict[str, str | None]:
    """Return the two fields, checked; a Task of the user's own becomes its instruction."""
    sentence = embedder.instruction_for(task, instruction)
    if isinstance(task, Task):
        return {"task": None, "instruction": sentence}
    return {"task": task, "instruction": instruction}


class _Model:
    """Share one embedder among views and threads; `parallel` calls run at a time."""

    def __init__(self, given: str | Embedder) -> None:
        self.given = given
        self.shared = SharedEmbedder.of(get_embedder(given) if isinstance(given, str) else given)
        self.embedder = self.shared.embedder
        self.name = given if isinstance(given, str) else given.info.name
        # Its own threads: those of the event loop would be held by calls that wait for their turn.
        self._threads = ThreadPoolExecutor(self.embedder.parallel, "embedkit")

    def encode_query(self, query: str, task: str | None, instruction: str | None) -> Embedding:
        row: Embedding = self.shared.encode_query([query], task, instruction)[0].tolist()
        return row

    def encode_documents(self, texts: Sequence[str]) -> list[Embedding]:
        rows: list[Embedding] = self.shared.encode_document(texts).tolist()
        return rows

    async def beside(self, function: Callable[[_A], _R], argument: _A) -> _R:
        context = copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: context.run(function, argument))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Model:
        return self


class _KeyedCache(BaseKVStore):
    """Keep vectors of other models, roles and instructions apart in a user's store, by its collections."""

    def __init__(self, store: BaseKVStore, fingerprint: str) -> None:
        self._store: BaseKVStore = store._store if isinstance(store, _KeyedCache) else store
        self._fingerprint = fingerprint

    def _in(self, collection: str) -> str:
        return f"{collection}/{self._fingerprint}/{_role.get()}"

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self._store.put(key, val, self._in(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        await self._store.aput(key, val, self._in(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return self._store.get(key, self._in(collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return await self._store.aget(key, self._in(collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return self._store.get_all(self._in(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return await self._store.aget_all(self._in(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return self._store.delete(key, self._in(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return await self._store.adelete(key, self._in(collection))
