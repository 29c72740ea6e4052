"""`EmbedkitVectorStore`: core's own contract for a vector store, and what its FAISS store fails."""

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
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from numpy.typing import NDArray

from embedkit.errors import FingerprintError, InputError
from embedkit_indexes import ChunkConfig, Document, Index
from embedkit_indexes.durable import Pin
from embedkit_indexes.llama_index import EmbedkitEmbedding, EmbedkitVectorStore
from tests.indexes.conftest import HashEmbedder
from tests.indexes.llama_nodes import PEOPLE, Both, node, people, where


@pytest.fixture
def both(tmp_path: Path, embedder: HashEmbedder) -> Both:
    """Both stores, empty."""
    return Both(tmp_path / "my.index", embedder)


@pytest.fixture
def store(both: Both) -> EmbedkitVectorStore:
    """Our store with five nodes."""
    both.add(people(both.embedder))
    return both.ours


def ids(nodes: list[BaseNode]) -> list[str]:
    """Return the nodes' ids."""
    return [n.node_id for n in nodes]


ALL = [p[0] for p in PEOPLE]


def test_an_empty_store_answers(both: Both) -> None:
    """Before anything is added a query finds nothing, nothing can be deleted, and no directory is made."""
    ours = both.ours
    both.check(both.query())
    ours.delete("doc1")
    ours.delete_nodes(["a"])
    ours.clear()
    assert ours.get_nodes() == [] and ours.add([]) == []
    assert ours.client is None and not Path(ours.path).exists()


def test_add_and_query(both: Both) -> None:
    """What was added is found, the nearest first, with the cosine as similarity; k bounds the answer."""
    both.add(people(both.embedder))
    assert both.check(both.query(text="the tower strikes twelve"))[0] == "clocks"
    assert len(both.check(both.query(k=2))) == 2
    assert both.ours.query(both.query(text="the tower strikes twelve", k=1)).similarities == pytest.approx(
        [1], abs=1e-3
    )


def test_delete_and_add_again(both: Both) -> None:
    """Deleting by document removes its nodes alone; what is added afterwards harms none of the others."""
    both.add(people(both.embedder))
    both.delete("doc2")
    assert set(both.check(both.query())) == {"aliens", "deer", "eels"}
    both.add([node("foxes", "doc4", "foxes hunt at dusk", {}, both.embedder)])
    both.add([node("boats", "doc2", "another ship", {"rank": "z"}, both.embedder)])
    assert set(both.check(both.query())) == {"aliens", "deer", "eels", "foxes", "boats"}
    assert both.check(both.query(where("rank", "==", "z"))) == ["boats"]
    both.delete("no such document")
    assert len(both.check(both.query())) == 5


def test_a_node_of_the_same_id_is_replaced(both: Both) -> None:
    """A node added again takes the place of the first, in one call too, the last of it counting."""
    both.add([node("a", "d", "first words", {"n": 1}, both.embedder)])
    both.add([node("a", "d", "other words", {"n": 2}, both.embedder)])
    both.add([node("b", "d", "one", {}, both.embedder), node("b", "d", "two", {}, both.embedder)])
    assert set(both.check(both.query())) == {"a", "b"}
    assert [n.get_content() for n in both.ours.get_nodes(["b", "a"])] == ["two", "other words"]


def test_delete_nodes(both: Both) -> None:
    """Nodes are deleted by id, by filter, by both, and not at all where the list of ids is empty."""
    both.add(people(both.embedder))
    both.delete_nodes([], None)
    assert len(both.check(both.query())) == 5
    both.delete_nodes(["aliens", "unknown"], None)
    both.delete_nodes(["boats", "clocks"], where("rank", "==", "b"))
    assert set(both.check(both.query())) == {"boats", "deer", "eels"}
    both.delete_nodes(None, where("year", ">", 0))
    assert both.check(both.query()) == ["boats"]


def test_get_nodes(store: EmbedkitVectorStore) -> None:
    """Nodes come by id in the order asked for, by filter, by both; unknown ids are passed over."""
    assert ids(store.get_nodes(["eels", "nobody", "aliens", "eels"])) == ["eels", "aliens"]
    assert ids(store.get_nodes(["eels", "aliens"], where("rank", "==", "a"))) == ["aliens"]
    assert ids(store.get_nodes()) == ALL
    assert store.get_nodes([]) == []


def test_clear(store: EmbedkitVectorStore, both: Both) -> None:
    """Clearing leaves an index without nodes, to which nodes can be added."""
    store.clear()
    assert store.get_nodes() == [] and store.query(both.query()).ids == []
    both.simple.clear()
    both.add(people(both.embedder)[:2])
    assert set(both.check(both.query())) == {"aliens", "boats"}


def test_restricted_queries(store: EmbedkitVectorStore, both: Both) -> None:
    """A query keeps to node ids and to source documents; an empty list of ids restricts nothing."""
    query = both.query()
    query.node_ids = ["deer", "eels", "unknown"]
    assert set(both.check(query)) == {"deer", "eels"}
    query.doc_ids = ["doc3", "doc2"]
    assert store.query(query).ids == ["eels"]
    query.node_ids = []
    assert set(store.query(query).ids or []) == {"boats", "clocks", "eels"}


def test_modes(store: EmbedkitVectorStore, both: Both) -> None:
    """Words find by words, hybrid fuses both by alpha, from words alone to vectors alone."""
    query = both.query(text="a blue alien", k=3)
    query.query_str = "sargasso"
    for mode in ("sparse", "text_search"):
        query.mode = VectorStoreQueryMode(mode)
        assert store.query(query).ids == ["eels"]
    found = {}
    for mode in ("hybrid", "semantic_hybrid"):
        query.mode = VectorStoreQueryMode(mode)
        for query.alpha in (0.0, 0.3, None, 1.0):
            found[query.alpha] = store.query(query).ids or []
    assert found[0.0] == ["eels"]
    assert found[0.3][0] == "eels"
    assert {"eels", "aliens"} <= set(found[None])
    assert found[1.0] == both.check(both.query(text="a blue alien", k=3))
    query.hybrid_top_k = 1
    assert store.query(query).ids == ["aliens"]


@pytest.mark.parametrize("threshold", [None, 0.2, 0.5, 0.9, 1.0])
def test_mmr(store: EmbedkitVectorStore, both: Both, threshold: float | None) -> None:
    """Maximal marginal relevance gives core's choice and scores, by the threshold of the call or of the query."""
    query = both.query(k=3)
    query.mode = VectorStoreQueryMode.MMR
    assert len(both.check(query, mmr_threshold=threshold)) == 3
    chosen = both.simple.query(query, mmr_threshold=0.1).ids
    query.mmr_threshold = 0.1
    assert store.query(query).ids == chosen
    assert len(store.query(query, mmr_prefetch_k=3).ids or []) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": VectorStoreQueryMode.SVM}, "'svm' is not supported: use one of default, mmr"),
        ({"query_embedding": None}, "no vector"),
        (
            {"query_embedding": [1.0, 0.0]},
            "2 numbers, the index holds vectors of 32: embed queries with hash-32",
        ),
        ({"query_embedding": [float("nan")] * 32}, "NaN"),
        ({"mode": VectorStoreQueryMode.TEXT_SEARCH}, "needs words"),
        ({"mode": VectorStoreQueryMode.HYBRID, "query_str": "a", "alpha": 1.5}, "alpha is 1.5"),
        ({"similarity_top_k": 0}, "k is 0"),
    ],
)
def test_wrong_queries(store: EmbedkitVectorStore, both: Both, change: dict[str, Any], sentence: str) -> None:
    """What cannot be asked is an InputError of one sentence."""
    query = both.query()
    for name, value in change.items():
        setattr(query, name, value)
    with pytest.raises(InputError, match=sentence):
        store.query(query)


@pytest.mark.parametrize(
    "options", [{"mmr_threshold": 2}, {"mmr_prefetch_k": 1}, {"mmr_prefetch_factor": 0.5}]
)
def test_wrong_mmr_options(store: EmbedkitVectorStore, both: Both, options: dict[str, Any]) -> None:
    """Options of MMR outside their range are refused."""
    query = both.query(k=2)
    query.mode = VectorStoreQueryMode.MMR
    with pytest.raises(InputError, match=next(iter(options))):
        store.query(query, **options)


METADATA = {
    "text": "x", "number": 1, "big": 2**60 + 1, "float": 0.1, "none": None, "flag": True, "": "empty key",
    "list": [1, "a", None, [2]], "object": {"a": {"b": [1]}, "empty": {}}, "a.b": 1, "ref_doc_id": "mine",
    "_node_content": "mine too", "źródło 日本": "naïve “quotes”", "half": "\ud800",
}  # fmt: skip
NODES = (
    TextNode(id_="t", text="  plain text\n", metadata=METADATA, excluded_embed_metadata_keys=["number"]),
    TextNode(id_="template", text="body", metadata={"a": 1}, text_template="{content} | {metadata_str}", metadata_template="{key}={value}", start_char_idx=3, end_char_idx=7, mimetype="text/markdown"),
    ImageNode(id_="image", text="a caption", image_url="https://example.org/a.png", image="aGk="),
    IndexNode(id_="index", text="points elsewhere", index_id="other"),
    Node(id_="node", text_resource=MediaResource(text="of a node"), extra_info={"k": [1]}),
    LlamaDocument(id_="document", text="whole document", metadata={"file_path": "a/b.md"}),
    TextNode(id_="surrogate", text="half \ud83d of one", metadata={}),
)  # fmt: skip


@pytest.mark.parametrize("before", NODES, ids=[n.node_id for n in NODES])
def test_nodes_survive_unchanged(tmp_path: Path, embedder: HashEmbedder, before: BaseNode) -> None:
    """A node of any class comes back equal: text, metadata of any JSON type, relationships, templates, excluded keys."""
    before = before.model_copy(deep=True)
    before.relationships = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="src", metadata={"x": 1}, hash="h"),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
    }
    store = EmbedkitVectorStore(tmp_path / "i", embedder)
    store.add(
        [before, TextNode(id_="beside", text="beside", metadata={"number": "three", "list": {}, "flag": 0})]
    )
    store.add([TextNode(id_="later", text="later", metadata={"text": 3})])  # merged into one segment
    (after,) = store.get_nodes([before.node_id])
    assert type(after) is type(before)
    assert after.model_dump() == before.model_dump()
    assert after.hash == before.hash
    assert store.client is not None
    hit = store.client.search(
        "later", mode="lexical", where=f'id = "{before.node_id}" or text contains "later"'
    ).hits[0]
    assert hit.document_id == "later"


class Watched(HashEmbedder):
    """Say what was embedded, and take as long over it as is wanted."""

    def __init__(self, until: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.until = until

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        end = time.monotonic() + 30
        while not self.until() and time.monotonic() < end:
            time.sleep(0.001)
        self.seen += texts
        return super()._embed(texts)


def test_given_vectors_are_taken(tmp_path: Path) -> None:
    """Nodes with vectors are not embedded again, save one in each call; a node without a vector is embedded."""
    embedder = Watched()
    nodes = people(embedder)
    store = EmbedkitVectorStore(tmp_path / "i", embedder)
    store.add(nodes[:1])
    store.add(nodes[3:4])
    embedder.seen.clear()
    nodes[2].embedding = None
    store.add(nodes[1:3])
    assert sorted(embedder.seen) == sorted([nodes[1].get_content(), nodes[2].get_content()])
    query = VectorStoreQuery(query_embedding=embedder.encode_document([nodes[2].get_content()])[0].tolist())
    assert store.query(query).ids == ["clocks"]


def test_foreign_vectors_are_refused(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Vectors of another model, another length or without a number are refused in a sentence, and nothing is stored."""
    store = EmbedkitVectorStore(tmp_path / "i", embedder)
    other = node("a", "", "some text", {}, HashEmbedder(32, "hash-2"))
    other.embedding = list(reversed(other.embedding or []))
    for vector, sentence in (
        (other.embedding, "not what hash-32 makes of it"),
        ([0.0] * 32, "not what hash-32 makes of it"),
        ([1.0] * 8, "8 numbers, the index holds vectors of 32"),
        ([float("nan")] * 32, "NaN"),
    ):
        other.embedding = vector
        with pytest.raises(InputError, match=sentence):
            store.add([other])
    assert store.client is None
    with pytest.raises(InputError, match="node 'b' has no text to embed"):
        store.add([TextNode(id_="b", text=" \n")])


def test_vectors_of_other_contents(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Vectors of the text without its metadata, or with all of it, are taken, and the chunk holds what was embedded."""
    for mode in (MetadataMode.NONE, MetadataMode.ALL):
        made = TextNode(
            id_="a", text="some text", metadata={"x": "one", "y": "two"}, excluded_embed_metadata_keys=["x"]
        )
        content = made.get_content(metadata_mode=mode)
        made.embedding = (embedder.encode_document([content])[0] * 7).tolist()
        store = EmbedkitVectorStore(tmp_path / mode.value, embedder)
        store.add([made])
        index = Index.open(tmp_path / mode.value, embedder)
        hit = index.search(content, k=1).hits[0]
        assert hit.text == content and hit.score == pytest.approx(1, abs=1e-3)
        assert store.get_nodes(["a"])[0].get_content() == "some text"


def test_what_add_returned_from_is_on_the_disk(tmp_path: Path) -> None:
    """A process killed right after `add` and `delete` has lost nothing of them."""
    code = (
        "import os, sys; from llama_index.core.schema import TextNode\n"
        "from embedkit_indexes.llama_index import EmbedkitVectorStore\n"
        f"store = EmbedkitVectorStore({str(tmp_path / 'i')!r})\n"
        "store.add([TextNode(id_='a', text='one'), TextNode(id_='b', text='two')])\n"
        "store.delete_nodes(['a']); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert ids(EmbedkitVectorStore(tmp_path / "i").get_nodes()) == ["b"]
    Index.open(tmp_path / "i").verify()


def test_persist_and_reload(store: EmbedkitVectorStore, both: Both, tmp_path: Path) -> None:
    """`persist` writes where the index is, relative to the file; it opens by that file, its folder, and its own path."""
    file = tmp_path / "elsewhere" / "default__vector_store.json"
    store.persist(str(file))
    assert str(tmp_path) not in file.read_text()
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    for again in (
        EmbedkitVectorStore.from_persist_path(str(moved / "elsewhere" / file.name), embedder=both.embedder),
        EmbedkitVectorStore.from_persist_dir(str(moved / "elsewhere"), embedder=both.embedder),
        EmbedkitVectorStore.from_persist_path(str(moved / "my.index")),
        EmbedkitVectorStore(moved / "my.index"),
    ):
        assert again.query(both.query()).ids == both.simple.query(both.query()).ids
    moved.rename(tmp_path)


def test_wrong_pointers(store: EmbedkitVectorStore, tmp_path: Path) -> None:
    """Another store's file, a missing one, and a file system elsewhere are refused in a sentence."""
    import fsspec  # type: ignore[import-untyped]

    (tmp_path / "a.json").write_text(json.dumps({"embedding_dict": {}}))
    with pytest.raises(InputError, match="was not written by"):
        EmbedkitVectorStore.from_persist_path(str(tmp_path / "a.json"))
    with pytest.raises(InputError, match="does not exist"):
        EmbedkitVectorStore.from_persist_path(str(tmp_path / "b.json"))
    with pytest.raises(InputError, match="local disk"):
        store.persist("a.json", fs=fsspec.filesystem("memory"))
    store.persist(str(tmp_path / "c.json"), fs=fsspec.filesystem("file"))
    assert EmbedkitVectorStore.from_persist_path(str(tmp_path / "c.json")).path.endswith("my.index")


def test_serialisation(tmp_path: Path, store: EmbedkitVectorStore, both: Both) -> None:
    """A dict and a pickle bring the store back; options, which may hold keys, are in neither."""
    again: EmbedkitVectorStore = pickle.loads(pickle.dumps(store))
    assert again.query(both.query()).ids == store.query(both.query()).ids
    named = EmbedkitVectorStore(tmp_path / "my.index", "bundled", embedder_options={"dim": 128})
    assert "128" not in str(named.to_dict()) + repr(named)
    reopened = EmbedkitVectorStore.from_dict(store.to_dict())
    assert ids(reopened.get_nodes()) == ALL


def test_another_embedder_is_refused(store: EmbedkitVectorStore) -> None:
    """An index is not opened with another embedder than its own; what is no embedder is refused at once."""
    with pytest.raises(FingerprintError, match="hash-32"):
        EmbedkitVectorStore(store.path, HashEmbedder(16)).get_nodes()
    with pytest.raises(InputError, match="EmbedkitEmbedding, an embedder or"):
        EmbedkitVectorStore(store.path, 3)  # type: ignore[arg-type]


async def test_async_forms(tmp_path: Path, both: Both) -> None:
    """Every async form does what the other one does, and the event loop goes on meanwhile."""
    ticks = 0
    ours = EmbedkitVectorStore(tmp_path / "i", Watched(lambda: ticks > 20))

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    nodes = people(both.embedder)
    ticks = 0
    assert await ours.async_add(nodes) == ALL
    assert ticks > 20
    await asyncio.gather(*(ours.async_add([n]) for n in nodes), ours.adelete("doc2"))
    await ours.adelete("doc2")
    assert (await ours.aquery(both.query(k=1))).ids == ours.query(both.query(k=1)).ids
    await ours.adelete_nodes(["deer"])
    assert set(ids(await ours.aget_nodes())) == {"aliens", "eels"}
    assert ids(await ours.aget_nodes(filters=where("rank", "==", "a"))) == ["aliens"]
    await ours.aclear()
    assert await ours.aget_nodes() == []
    ticking.cancel()


def test_threads_and_stores_of_one_index(both: Both) -> None:
    """Threads that write through two stores, and others that query meanwhile, lose nothing and fail at nothing."""
    stores = [both.ours, EmbedkitVectorStore(both.ours.path, both.embedder)]
    stores[0].add(people(both.embedder))
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for i in range(3):
                stores[number % 2].add(
                    [node(f"{number}-{i}", f"doc{number}", f"text {number} {i}", {"n": i}, both.embedder)]
                )
            stores[number % 2].delete_nodes([f"{number}-0"])
        except BaseException as e:
            failures.append(e)

    def read() -> None:
        try:
            while any(t.is_alive() for t in writers):
                assert stores[0].query(both.query(k=2)).ids
                assert ids(stores[1].get_nodes(["aliens"])) == ["aliens"]
        except BaseException as e:
            failures.append(e)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in (*writers, *readers):
        thread.join()
    assert not failures
    assert set(ids(stores[0].get_nodes())) == {*ALL, *(f"{n}-{i}" for n in range(4) for i in (1, 2))}


def test_a_store_on_an_index_of_documents(tmp_path: Path, embedder: HashEmbedder) -> None:
    """An index of cut documents gives TextNodes; its documents are deleted whole, and nodes stand beside them uncut."""
    text = " ".join(f"word{i}" for i in range(120))
    Index.build(
        tmp_path / "i", [Document("long", text, title="Long", source="a.md", metadata={"year": 2020}), Document("short", "two words", metadata={"year": "x"})],
        embedder, chunking=ChunkConfig(max_tokens=32),
    )  # fmt: skip
    store = EmbedkitVectorStore(tmp_path / "i", embedder)
    nodes = store.get_nodes(filters=where("title", "==", "Long"))
    assert len(nodes) > 2 and nodes[1].node_id == "long#1" and nodes[1].ref_doc_id == "long"
    assert nodes == store.get_nodes(filters=where("ref_doc_id", "==", "long"))
    assert store.get_nodes(["long#1"]) == [nodes[1]]
    assert store.get_nodes(["long", "long#99", "#1"]) == []
    assert isinstance(nodes[1], TextNode) and nodes[1].start_char_idx
    assert text[nodes[1].start_char_idx : nodes[1].end_char_idx] in nodes[1].text
    assert ids(store.get_nodes(filters=where("year", "==", "x"))) == ["short#0"]
    with pytest.raises(InputError, match=r"1 of \d+ were to be deleted"):
        store.delete_nodes(["long#1"])
    long = TextNode(id_="node", text=text, metadata={"lang": "xx"})
    store.add([long])
    (again,) = store.get_nodes(["node"])
    assert again.get_content() == text and again.metadata == {"lang": "xx"}
    assert ids(store.get_nodes(filters=where("lang", "==", "xx"))) == ["node"]
    store.delete_nodes(["short#0"])
    store.delete("long")
    assert ids(store.get_nodes()) == ["node"]


def test_an_embedding_is_shared(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A store over an EmbedkitEmbedding uses its model; vectors and given names are of one fingerprint."""
    embedding = EmbedkitEmbedding(embedder)
    store = EmbedkitVectorStore(tmp_path / "i", embedding.for_task("qa"))
    store.add(people(embedder))
    assert store.client is not None and store.client.embedder is embedding.model
    assert store.client.manifest.fingerprint == embedding.fingerprint


def test_a_deep_copy_is_a_store_of_its_own(store: EmbedkitVectorStore, both: Both) -> None:
    """A deep copy opens the index itself: what one adds, the other finds; a pin on its files is never copied."""
    store.get_nodes()
    again = copy.deepcopy(store)
    assert again._index is None
    again.delete_nodes([ALL[0]])
    assert ids(store.get_nodes()) == ids(store.model_copy(deep=True).get_nodes()) == ALL[1:]
    with pytest.raises(TypeError, match="open the index again"):
        copy.copy(Pin(Path(store.path)))


def test_nodes_may_come_from_a_generator(both: Both) -> None:
    """The ids of all nodes are returned, also where they can be gone through once only."""
    given = people(both.embedder)
    assert both.ours.add(n for n in given) == ids(list(given))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, "text", ["text"], [TextNode(text="x"), None]])
def test_what_is_no_node_is_refused(both: Both, wrong: Any) -> None:
    """Whatever else is added is an InputError, and nothing is stored."""
    with pytest.raises(InputError, match="give a list of nodes"):
        both.ours.add(wrong)
    assert both.ours.client is None


def test_metadata_too_deep_to_be_stored(both: Both) -> None:
    """Metadata that pydantic cannot write is an InputError that names the node."""
    deep: Any = 1
    for _ in range(400):
        deep = {"a": deep}
    bad = TextNode(id_="n", text="x", metadata={"m": deep}, excluded_embed_metadata_keys=["m"])
    with pytest.raises(InputError, match="node 'n' cannot be written"):
        both.ours.add([bad])


def test_a_foreign_vector_of_metadata_alone(both: Both) -> None:
    """A node without text is told that its vector is not the index's, not that it has no text."""
    foreign = both.embedder.encode_document(["another text"])[0].tolist()
    with pytest.raises(InputError, match="is not what hash-32 makes of it"):
        both.ours.add([TextNode(text="", metadata={"a": "b"}, embedding=foreign)])


def test_metadata_alone_after_vectors_of_text_alone(both: Both) -> None:
    """What earlier nodes' vectors were made of does not keep a node of metadata alone out."""
    alone = both.embedder.encode_document(["a text"])[0].tolist()
    both.ours.add([TextNode(id_="t", text="a text", metadata={"a": "b"}, embedding=alone)])
    both.ours.add([TextNode(id_="m", text="", metadata={"a": "b"})])
    assert ids(both.ours.get_nodes()) == ["t", "m"]


@pytest.mark.parametrize("k", [0, -1, 2.5, None, "3"])
@pytest.mark.parametrize("mode", ["default", "text_search", "hybrid", "mmr"])
def test_wrong_numbers_of_results(store: EmbedkitVectorStore, both: Both, mode: str, k: Any) -> None:
    """Each mode refuses a `similarity_top_k` that is no whole number from 1 on."""
    query = both.query(k=k)
    query.mode, query.query_str = VectorStoreQueryMode(mode), "ship"
    with pytest.raises(InputError, match="k is"):
        store.query(query)


def test_a_prefetch_beyond_all_numbers(store: EmbedkitVectorStore, both: Both) -> None:
    """However many nodes are to be looked at for variety, there are no more than there are."""
    query = both.query(k=10)
    query.mode = VectorStoreQueryMode.MMR
    assert set(store.query(query, mmr_prefetch_factor=1e308).ids or []) == set(ALL)
