"""The LlamaIndex embedding in real indexes, retrievers and pipelines."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import QueryBundle, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo, Task
from embedkit.embedders.openai import OpenAIEmbedder
from embedkit.errors import EmbedderError, InputError, UnknownNameError
from embedkit.llama_index import EmbedkitEmbedding
from tests.embedkit.embedding_server import EmbeddingServer

TRANSLATION = "Retrieve translations of the given text in another language"
TEXTS = {
    "answer": "the train station is near the river",
    "translation": "wo ist der bahnhof",
    "other": "cats sleep all day",
}


class TaskEmbedder(Embedder):
    """Point a query at the document that its instruction asks for; documents have fixed places."""

    def __init__(self, weights: str = "w1") -> None:
        self.info = EmbedderInfo("task-embedder", 4, 512, "mean", weights, instruction_trained=True)
        self.calls: list[list[str]] = []
        self.delay = 0.0
        self.until: Callable[[], bool] | None = None
        self.running = self.most = 0

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.calls.append(list(texts))
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(self.delay)
        end = time.monotonic() + 30
        while self.until and not self.until() and time.monotonic() < end:
            time.sleep(0.001)
        self.running -= 1
        return np.array([self._place(text) for text in texts])

    def _place(self, text: str) -> list[float]:
        if text.startswith("Instruct: "):
            return [0.1, 1, 0, 0.1] if "translations" in text else [1, 0.1, 0, 0.1]
        places = {
            TEXTS["answer"]: [1, 0, 0, 0],
            TEXTS["translation"]: [0, 1, 0, 0],
            TEXTS["other"]: [0, 0, 1, 0],
        }
        return [float(x) for x in places.get(text, [0, 0, 0, 1])]


@pytest.fixture
def embedding() -> EmbedkitEmbedding:
    """Wrap a fresh embedder."""
    return EmbedkitEmbedding(TaskEmbedder())


@pytest.fixture
def index(embedding: EmbedkitEmbedding) -> VectorStoreIndex:
    """Build a real index over the three texts."""
    return VectorStoreIndex([TextNode(text=t, id_=i) for i, t in TEXTS.items()], embed_model=embedding)


def first(index: VectorStoreIndex, embedding: EmbedkitEmbedding, query: str | QueryBundle) -> str:
    """Return the id of the best node."""
    retriever = index.as_retriever(embed_model=embedding, similarity_top_k=1)
    return str(retriever.retrieve(query)[0].node.node_id)


def test_two_tasks_over_one_index(index: VectorStoreIndex, embedding: EmbedkitEmbedding) -> None:
    """The same query finds the answer under one task and the translation under another, in one index."""
    query = "where is the train station"
    assert first(index, embedding.for_task("qa"), query) == "answer"
    assert first(index, embedding.for_task("bitext"), query) == "translation"
    assert first(index, embedding.for_instruction(TRANSLATION), query) == "translation"
    assert first(index, embedding.for_task(Task("mine", TRANSLATION)), query) == "translation"


async def test_async_retrieval(index: VectorStoreIndex, embedding: EmbedkitEmbedding) -> None:
    """Concurrent async retrievals under two tasks each find their own document."""
    retrievers = [
        index.as_retriever(embed_model=embedding.for_task(task), similarity_top_k=1)
        for task in ("qa", "bitext") * 10
    ]
    found = await asyncio.gather(*(r.aretrieve("where is the train station") for r in retrievers))
    assert [hits[0].node.node_id for hits in found] == ["answer", "translation"] * 10


def test_reused_query_bundle_keeps_its_vector(index: VectorStoreIndex, embedding: EmbedkitEmbedding) -> None:
    """The documented trap: LlamaIndex keeps the first task's vector in a bundle, and a fresh bundle is free of it."""
    bundle = QueryBundle("where is the train station")
    assert first(index, embedding.for_task("qa"), bundle) == "answer"
    assert first(index, embedding.for_task("bitext"), bundle) == "answer"
    assert first(index, embedding.for_task("bitext"), QueryBundle(bundle.query_str)) == "translation"


def test_documents_carry_no_instruction(embedding: EmbedkitEmbedding) -> None:
    """Under every view documents are encoded bare, in batches, to plain floats."""
    view = embedding.for_task("qa")
    rows = view.get_text_embedding_batch(list(TEXTS.values()))
    assert rows[0] == [1.0, 0.0, 0.0, 0.0]
    assert {type(x) for row in rows for x in row} == {float}
    assert {type(x) for x in view.get_query_embedding("q")} == {float}
    model = embedding._model.embedder
    assert isinstance(model, TaskEmbedder)
    assert sorted(model.calls[0]) == sorted(TEXTS.values())


def test_views_share_the_model(embedding: EmbedkitEmbedding) -> None:
    """A view, and a deep copy, hold the same embedder; the first embedding keeps its own task."""
    view = embedding.for_task("qa")
    assert view._model.embedder is embedding._model.embedder
    assert copy.deepcopy(view)._model is view._model
    assert (embedding.task, view.task, view.for_instruction("x").task) == (None, "qa", None)
    assert view.for_instruction("find x").instruction == "find x"
    assert view.for_instruction("find x").for_task("qa").instruction is None


def test_names(embedding: EmbedkitEmbedding) -> None:
    """The model's name is the embedder's; a wrong task or two instructions are refused when given."""
    assert embedding.model_name == "task-embedder"
    assert embedding.class_name() == "EmbedkitEmbedding"
    with pytest.raises(UnknownNameError, match="bitext"):
        embedding.for_task("bittext")
    with pytest.raises(InputError, match="choose one"):
        EmbedkitEmbedding(TaskEmbedder(), task="qa", instruction="find x")


async def test_event_loop_stays_free(embedding: EmbedkitEmbedding) -> None:
    """While the model works, the event loop goes on; calls take turns in a model that serves one at a time."""
    model = embedding._model.embedder
    assert isinstance(model, TaskEmbedder)
    ticks = 0
    # Each of the three calls goes on until the loop has.
    model.until = lambda: ticks >= 20 * len(model.calls)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await asyncio.gather(
        embedding.aget_query_embedding("q"),
        embedding.aget_text_embedding("d"),
        embedding.aget_text_embedding_batch(["a", "b", "c"]),
    )
    ticking.cancel()
    assert len(model.calls) == 3 and ticks >= 60
    assert model.most == 1


def test_what_is_no_embedder_or_cache_is_refused(embedding: EmbedkitEmbedding) -> None:
    """Both are one sentence, said when the embedding is made and not at its first use."""
    wrong: Any = 5
    with pytest.raises(InputError, match="embedder is 5, int: give its name"):
        EmbedkitEmbedding(wrong)
    with pytest.raises(InputError, match="embeddings_cache is 5: give a key-value store"):
        EmbedkitEmbedding(embedding.model, embeddings_cache=wrong)


def test_threads_take_turns(embedding: EmbedkitEmbedding) -> None:
    """Synchronous calls from several threads take turns too."""
    model = embedding._model.embedder
    assert isinstance(model, TaskEmbedder)
    model.delay = 0.01
    views = [embedding.for_task(task) for task in ("qa", "bitext") * 4]
    threads = [threading.Thread(target=view.get_query_embedding, args=("q",)) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model.calls) == 8
    assert model.most == 1


async def test_cache_keeps_roles_and_tasks_apart() -> None:
    """With LlamaIndex's embedding cache a text has other vectors as document and under each task, each computed once."""
    model = TaskEmbedder()
    store = SimpleKVStore()
    embedding = EmbedkitEmbedding(model, embeddings_cache=store)
    text = TEXTS["answer"]
    views = [embedding.for_task("qa"), embedding.for_task("bitext"), embedding]
    expected = [
        model.encode_query([text], "qa"),
        model.encode_query([text], "bitext"),
        model.encode_query([text]),
    ]
    model.calls.clear()
    for _ in range(2):
        assert embedding.get_text_embedding(text) == [1.0, 0.0, 0.0, 0.0]
        assert (await embedding.aget_text_embedding_batch([text])) == [[1.0, 0.0, 0.0, 0.0]]
        for view, row in zip(views, expected, strict=True):
            assert view.get_query_embedding(text) == row[0].tolist()
            assert (await view.aget_query_embedding(text)) == row[0].tolist()
    assert len(model.calls) == 4
    EmbedkitEmbedding(other := TaskEmbedder("w2"), embeddings_cache=store).get_text_embedding(text)
    assert len(other.calls) == 1


def test_ingestion_pipeline(embedding: EmbedkitEmbedding) -> None:
    """A pipeline embeds nodes, caches by fingerprint, and embeds anew when the weights are others."""
    documents = [Document(text=t, id_=i) for i, t in TEXTS.items()]
    pipeline = IngestionPipeline(transformations=[embedding])
    nodes = pipeline.run(documents=documents)
    assert nodes[1].embedding == [0.0, 1.0, 0.0, 0.0]
    model = embedding._model.embedder
    assert isinstance(model, TaskEmbedder)
    pipeline.run(documents=documents)
    assert len(model.calls) == 1
    pipeline.transformations = [EmbedkitEmbedding(other := TaskEmbedder("w2"))]
    pipeline.run(documents=documents)
    assert len(other.calls) == 1


def test_persisted_index(index: VectorStoreIndex, embedding: EmbedkitEmbedding, tmp_path: Path) -> None:
    """An index written to disk and loaded again serves every task."""
    index.storage_context.persist(str(tmp_path))
    loaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=embedding
    )
    assert isinstance(loaded, VectorStoreIndex)
    assert first(loaded, embedding.for_task("bitext"), "where is the train station") == "translation"


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    """Write a tiny embedder that opens by its path."""
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 0 0\ndog 0 1 0\n")
    return path


@pytest.mark.filterwarnings("ignore::embedkit.InstructionWarning")
def test_serialisation(glove: Path) -> None:
    """to_dict, JSON and pickle bring back an embedding opened by path, with its task and the same vectors."""
    embedding = EmbedkitEmbedding(str(glove), task="qa", embed_batch_size=7)
    data = json.loads(json.dumps(embedding.to_dict()))
    expected = embedding.get_query_embedding("cat dog dog")
    for again in (
        EmbedkitEmbedding.from_dict(data),
        EmbedkitEmbedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
    ):
        assert again.get_query_embedding("cat dog dog") == expected
        assert (again.task, again.embed_batch_size, again.model_name) == ("qa", 7, "glove.txt")


def test_changed_model_is_refused(glove: Path) -> None:
    """A serialised embedding whose model has changed since is refused with both fingerprints."""
    embedding = EmbedkitEmbedding(str(glove))
    data, pickled = embedding.to_dict(), pickle.dumps(embedding)
    glove.write_text("cat 1 0 1\ndog 0 1 0\n")
    for reopen in (lambda: EmbedkitEmbedding.from_dict(data), lambda: pickle.loads(pickled)):
        with pytest.raises(EmbedderError, match=rf"ek1:\w+, stored was {embedding.fingerprint}"):
            reopen()


def test_object_embedders(embedding: EmbedkitEmbedding) -> None:
    """An embedder given as an object is pickled itself, and handed to from_dict again."""
    again = pickle.loads(pickle.dumps(embedding.for_task("bitext")))
    assert again.get_query_embedding("q") == embedding.for_task("bitext").get_query_embedding("q")
    reopened = EmbedkitEmbedding.from_dict(embedding.to_dict(), embedder=TaskEmbedder())
    assert reopened.fingerprint == embedding.fingerprint
    with pytest.raises(UnknownNameError, match="task-embedder"):
        EmbedkitEmbedding.from_dict(embedding.to_dict())


def test_no_secret_is_serialised() -> None:
    """A remote embedder's key is in no payload, dict, JSON, representation or pickle."""
    key = "sk-secret-0123456789"
    with EmbeddingServer() as server:
        embedding = EmbedkitEmbedding(
            OpenAIEmbedder.open("m", base_url=server.url, api_key=key, dim=8), task="qa"
        )
        shown: list[Any] = [embedding.to_payload(), embedding.to_dict(), embedding.to_json(), repr(embedding)]
        assert not any(key in str(text) for text in shown)
        assert key.encode() not in pickle.dumps(embedding)
        assert len(embedding.get_text_embedding("a")) == 8


def test_missing_extra() -> None:
    """Without llama-index-core the import names the pip command."""
    code = (
        "import sys; sys.modules['llama_index'] = None\n"
        "try: import embedkit.llama_index\n"
        "except ImportError as e: print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().startswith(
        "MissingExtraError embedkit.llama_index needs the extra [llama-index]: pip install"
    )
