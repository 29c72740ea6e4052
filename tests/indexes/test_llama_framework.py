"""LlamaIndex's own index, pipeline, query engine and storage over `EmbedkitVectorStore` and `EmbedkitRetriever`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from llama_index.core import Document, QueryBundle, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from embedkit import Task
from embedkit.errors import InputError, UnknownNameError
from embedkit_indexes import Document as StoredDocument
from embedkit_indexes import F, Index, open_indexes
from embedkit_indexes.llama_index import (
    EmbedkitEmbedding,
    EmbedkitRetriever,
    EmbedkitVectorStore,
    TaskQuery,
)
from tests.indexes.conftest import HashEmbedder

# Words of two built-in tasks' instructions: HashEmbedder turns a query towards the texts that share its words.
QA = "given a question, retrieve relevant passages that answer the query"
BITEXT = "retrieve translations of the given text in another language"
TEXTS = {"qa": "relevant passages answer the question", "bitext": "translations text another language"}
MINE = Task("mine", "cats sleep all day")


@pytest.fixture
def embedding(embedder: HashEmbedder) -> EmbedkitEmbedding:
    """Wrap the deterministic embedder."""
    return EmbedkitEmbedding(embedder)


def documents() -> list[Document]:
    """Make three documents of LlamaIndex's."""
    rows = {**TEXTS, "cats": "cats sleep all day"}
    return [
        Document(id_=id, text=text, metadata={"kind": id, "n": i})
        for i, (id, text) in enumerate(rows.items())
    ]


@pytest.fixture
def store(tmp_path: Path, embedding: EmbedkitEmbedding) -> EmbedkitVectorStore:
    """An empty store."""
    return EmbedkitVectorStore(tmp_path / "my.index", embedding)


@pytest.fixture
def index(store: EmbedkitVectorStore, embedding: EmbedkitEmbedding) -> VectorStoreIndex:
    """A real VectorStoreIndex over the store."""
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(documents(), storage_context=context, embed_model=embedding)


def sources(hits: Sequence[NodeWithScore]) -> list[str | None]:
    """Return the documents of what was found."""
    return [hit.node.ref_doc_id for hit in hits]


def found(index: VectorStoreIndex) -> set[str | None]:
    """Return the documents of all nodes."""
    return set(sources(index.as_retriever(similarity_top_k=20).retrieve("anything")))


def test_one_index_serves_several_tasks(index: VectorStoreIndex, embedding: EmbedkitEmbedding) -> None:
    """Retrievers with different tasks on one VectorStoreIndex find different nodes for one query."""
    for task, expected in (("qa", "qa"), ("bitext", "bitext"), (MINE, "cats")):
        retriever = index.as_retriever(embed_model=embedding.for_task(task), similarity_top_k=1)
        assert sources(retriever.retrieve("dogs")) == [expected]


def test_documents_are_inserted_deleted_updated_and_refreshed(index: VectorStoreIndex) -> None:
    """insert, delete_ref_doc, update_ref_doc and refresh_ref_docs do what they say, and nodes come after deletions."""
    index.insert(Document(id_="dogs", text="dogs bark at night"))
    index.delete_ref_doc("qa", delete_from_docstore=True)
    assert found(index) == {"bitext", "cats", "dogs"}
    index.update_ref_doc(Document(id_="dogs", text="dogs run by day"))
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve("dogs run by day")
    assert hit.node.get_content() == "dogs run by day" and hit.score == pytest.approx(1, abs=1e-3)
    newer = [*documents()[1:], Document(id_="dogs", text="dogs swim"), Document(id_="eels", text="eels too")]
    assert index.refresh_ref_docs(newer) == [False, False, True, True]
    assert found(index) == {"bitext", "cats", "dogs", "eels"}
    index.insert_nodes([TextNode(id_="own", text="a node")])
    index.delete_nodes(["own"])
    assert None not in found(index)


async def test_async_index(index: VectorStoreIndex) -> None:
    """The index's async calls reach the store's."""
    await index.ainsert(Document(id_="dogs", text="dogs bark at night"))
    await index.adelete_ref_doc("qa")
    hits = await index.as_retriever(similarity_top_k=20).aretrieve("dogs bark")
    assert set(sources(hits)) == {"bitext", "cats", "dogs"} and sources(hits)[0] == "dogs"


def test_filters_and_modes_of_a_retriever(index: VectorStoreIndex) -> None:
    """A VectorIndexRetriever hands on filters, doc_ids, modes, alpha and MMR's threshold."""
    filters = MetadataFilters(filters=[MetadataFilter(key="n", value=1, operator=FilterOperator.GTE)])
    assert set(sources(index.as_retriever(filters=filters, similarity_top_k=9).retrieve("x"))) == {
        "bitext",
        "cats",
    }
    assert sources(index.as_retriever(doc_ids=["cats"], similarity_top_k=9).retrieve("x")) == ["cats"]
    for mode in ("text_search", "hybrid", "mmr"):
        retriever = index.as_retriever(
            vector_store_query_mode=mode,
            similarity_top_k=1,
            alpha=0.5,
            vector_store_kwargs={"mmr_threshold": 0.9},
        )
        assert sources(retriever.retrieve("cats")) == ["cats"]


def test_persisted_by_llama_index(
    index: VectorStoreIndex, embedding: EmbedkitEmbedding, tmp_path: Path
) -> None:
    """A persisted StorageContext is loaded again with the store that its directory names."""
    folder = str(tmp_path / "storage")
    index.set_index_id("mine")
    index.storage_context.persist(folder)
    again = EmbedkitVectorStore.from_persist_dir(folder, embedder=embedding)
    context = StorageContext.from_defaults(vector_store=again, persist_dir=folder)
    loaded = load_index_from_storage(context, index_id="mine", embed_model=embedding)
    assert isinstance(loaded, VectorStoreIndex)
    assert found(loaded) == found(index) == {"qa", "bitext", "cats"}
    assert loaded.refresh_ref_docs(documents()) == [False, False, False]
    loaded.delete_ref_doc("qa")
    assert found(VectorStoreIndex.from_vector_store(again, embed_model=embedding)) == {"bitext", "cats"}


def test_loading_without_the_store_fails_loudly(index: VectorStoreIndex, tmp_path: Path) -> None:
    """Loaded without the store, the directory is no empty SimpleVectorStore in which nothing would be found."""
    index.storage_context.persist(str(tmp_path / "storage"))
    with pytest.raises(AttributeError):
        StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"))


def test_ingestion_pipeline(store: EmbedkitVectorStore, embedding: EmbedkitEmbedding) -> None:
    """A pipeline with a document store adds what is new, replaces what changed, and deletes what is gone."""
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), embedding],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    assert len(pipeline.run(documents=documents())) == 3
    assert pipeline.run(documents=documents()) == []
    changed = [
        documents()[1],
        Document(id_="cats", text="cats hunt at dusk"),
        Document(id_="new", text="new"),
    ]
    assert len(pipeline.run(documents=changed)) == 2
    assert {n.ref_doc_id: n.get_content() for n in store.get_nodes()} == {
        "bitext": TEXTS["bitext"], "cats": "cats hunt at dusk", "new": "new",
    }  # fmt: skip


async def test_async_ingestion(store: EmbedkitVectorStore, embedding: EmbedkitEmbedding) -> None:
    """A pipeline's `arun` adds through the async form."""
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding], vector_store=store)
    await pipeline.arun(documents=documents())
    assert {n.ref_doc_id for n in store.get_nodes()} == {"qa", "bitext", "cats"}


@pytest.mark.soak  # two processes import LlamaIndex anew
def test_ingestion_in_worker_processes(tmp_path: Path) -> None:
    """A pipeline's `num_workers` open the named embedder in processes of their own; the store adds in this one."""
    embedding = EmbedkitEmbedding("bundled")
    store = EmbedkitVectorStore(tmp_path / "i", embedding)
    IngestionPipeline(transformations=[embedding], vector_store=store).run(
        documents=documents(), num_workers=2
    )
    assert sorted(n.node_id for n in store.get_nodes()) == ["bitext", "cats", "qa"]


def test_nodes_that_point_elsewhere(store: EmbedkitVectorStore, embedding: EmbedkitEmbedding) -> None:
    """An IndexNode leads the retriever to its object, from LlamaIndex's retriever and from ours."""
    target = TextNode(id_="target", text="what it points to")
    index = VectorStoreIndex(
        objects=[IndexNode(text="cats sleep", index_id="i", obj=target)],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
    )
    assert index.as_retriever().retrieve("cats")[0].node.node_id == "target"
    ours = EmbedkitRetriever(Index.open(store.path, embedding.model), object_map={"i": target})
    assert ours.retrieve("cats")[0].node.node_id == "target"


@pytest.fixture
def built(tmp_path: Path, embedder: HashEmbedder) -> Path:
    """An index of documents, as the command line builds one."""
    rows = [
        StoredDocument(id, text, title=f"On {id}", lang="en", source=f"{id}.md", metadata={"n": i})
        for i, (id, text) in enumerate(TEXTS.items())
    ]
    rows.append(StoredDocument("cats", "cats sleep all day", lang="de", metadata={"n": 2}))
    Index.build(tmp_path / "docs.index", rows, embedder, tasks={"mine": MINE})
    return tmp_path / "docs.index"


def test_a_retriever_on_an_index_of_documents(built: Path, embedding: EmbedkitEmbedding) -> None:
    """Chunks come as TextNodes with id, text, place, title and language, the document as their source, and the cosine."""
    retriever = EmbedkitRetriever(built, task="qa", similarity_top_k=2, embedder=embedding)
    first, second = retriever.retrieve("dogs")
    assert isinstance(first.node, TextNode)
    assert (first.node.node_id, first.node.ref_doc_id, first.node.text) == (
        "qa#0",
        "qa",
        f"On qa\n{TEXTS['qa']}",
    )
    assert (first.node.start_char_idx, first.node.end_char_idx) == (0, len(TEXTS["qa"]))
    assert {"source": "qa.md", "title": "On qa", "lang": "en", "n": 0}.items() <= first.node.metadata.items()
    assert "start" not in first.node.get_content("llm") and "qa.md" in first.node.get_content("llm")  # type: ignore[arg-type]
    hits = Index.open(built, embedding.model).search("dogs", task="qa", k=2).hits
    assert [first.score, second.score] == [hit.score for hit in hits]


def test_the_task_of_each_retriever_and_query(built: Path, embedding: EmbedkitEmbedding) -> None:
    """A retriever has its task, a view another one, a query its own before both; tasks stored in the index are known."""
    retriever = EmbedkitRetriever(built, task="qa", similarity_top_k=1, embedder=embedding)
    assert sources(retriever.retrieve("dogs")) == ["qa"]
    assert sources(retriever.for_task("bitext").retrieve("dogs")) == ["bitext"]
    assert sources(retriever.for_instruction("cats sleep all day").retrieve("dogs")) == ["cats"]
    assert sources(retriever.retrieve(TaskQuery("dogs", task="bitext"))) == ["bitext"]
    assert sources(retriever.retrieve(TaskQuery("dogs", task="mine"))) == ["cats"]
    assert sources(retriever.retrieve(TaskQuery("dogs", instruction=BITEXT))) == ["bitext"]
    assert sources(retriever.retrieve(TaskQuery("dogs"))) == ["qa"]
    with pytest.raises(UnknownNameError, match="bitext"):
        retriever.retrieve(TaskQuery("dogs", task="bittext"))
    with pytest.raises(InputError, match="choose one"):
        retriever.retrieve(TaskQuery("dogs", task="qa", instruction="x"))


def test_a_bundle_s_vector_is_never_another_task_s(
    built: Path, embedding: EmbedkitEmbedding, index: VectorStoreIndex
) -> None:
    """A QueryBundle that holds the vector of an earlier task is embedded anew, and is left as it was."""
    bundle = QueryBundle("dogs")
    assert sources(
        index.as_retriever(embed_model=embedding.for_task("qa"), similarity_top_k=1).retrieve(bundle)
    ) == ["qa"]
    kept = bundle.embedding
    assert kept is not None
    retriever = EmbedkitRetriever(built, task="bitext", similarity_top_k=1, embedder=embedding)
    assert sources(retriever.retrieve(bundle)) == ["bitext"]
    assert bundle.embedding is kept
    several = QueryBundle("dogs", custom_embedding_strs=["cats sleep", "all day", "cats day"])
    assert sources(retriever.for_instruction("sleep").retrieve(several)) == ["cats"]


async def test_retrieving_at_once(built: Path, embedding: EmbedkitEmbedding) -> None:
    """Concurrent retrievals under two tasks each find their own."""
    retriever = EmbedkitRetriever(built, similarity_top_k=1, embedder=embedding)
    views = [retriever.for_task(task) for task in ("qa", "bitext") * 10]
    answers = await asyncio.gather(*(view.aretrieve("dogs") for view in views))
    assert [sources(a)[0] for a in answers] == ["qa", "bitext"] * 10


def test_a_retriever_s_restrictions(built: Path, embedding: EmbedkitEmbedding) -> None:
    """Filters of LlamaIndex's, `where`, `lang` and the mode narrow a search, each alone and together."""
    index = Index.open(built, embedding.model)
    low = MetadataFilters(filters=[MetadataFilter(key="n", value=2, operator=FilterOperator.LT)])
    title = MetadataFilters(filters=[MetadataFilter(key="title", value="On qa")])

    def ask(**options: object) -> set[str | None]:
        return set(sources(EmbedkitRetriever(index, similarity_top_k=9, **options).retrieve("cats")))  # type: ignore[arg-type]

    assert ask() == {"qa", "bitext", "cats"}
    assert ask(filters=low) == {"qa", "bitext"}
    assert ask(filters=title) == {"qa"}
    assert ask(where=F("n") > 0, filters=low) == {"bitext"}
    assert ask(where="n > 0", lang="de") == {"cats"}
    assert ask(mode="lexical") == {"cats"}
    assert ask(mode="hybrid", weights=(0, 1)) == {"cats"}
    with pytest.raises(UnknownNameError, match="de, en"):
        ask(lang="xx")
    with pytest.raises(UnknownNameError, match="mode"):
        ask(mode="sparse")
    with pytest.raises(InputError, match="leave embedder out"):
        ask(embedder=embedding)


def test_a_retriever_follows_its_index(built: Path, embedder: HashEmbedder) -> None:
    """A retriever on a directory sees what is added later; one on an open index, or on several, what its owner refreshes."""
    following, fixed = (
        EmbedkitRetriever(where, similarity_top_k=9, embedder=own)
        for where, own in ((built, embedder), (Index.open(built, embedder), None))
    )
    Index.build(built.parent / "more.index", [StoredDocument("more", "more of it")], embedder)
    both = EmbedkitRetriever(open_indexes([built, built.parent / "more.index"], embedder), similarity_top_k=9)
    Index.open(built, embedder).add([StoredDocument("later", "later text")])
    assert len(following.retrieve("x")) == 4 and len(fixed.retrieve("x")) == 3
    more = str(built.parent / "more.index")
    assert set(sources(both.retrieve("x"))) == {
        *(f"{built}#{id}" for id in ("qa", "bitext", "cats")),
        f"{more}#more",
    }


async def test_query_engine(built: Path, embedding: EmbedkitEmbedding) -> None:
    """In a RetrieverQueryEngine the task comes from the retriever or the query, and the prompt holds what was found."""
    retriever = EmbedkitRetriever(built, task="qa", similarity_top_k=1, embedder=embedding)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    answer = engine.query("dogs")
    assert [n.node_id for n in answer.source_nodes] == ["qa#0"] and TEXTS["qa"] in str(answer)
    assert TEXTS["bitext"] in str(engine.query(TaskQuery("dogs", task="bitext")))
    assert TEXTS["bitext"] in str(await engine.aquery(TaskQuery("dogs", task="bitext")))


def test_a_retriever_over_nodes(
    index: VectorStoreIndex, store: EmbedkitVectorStore, embedding: EmbedkitEmbedding
) -> None:
    """On an index that LlamaIndex built, the retriever gives the original nodes."""
    retriever = EmbedkitRetriever(store.path, task="qa", similarity_top_k=1, embedder=embedding)
    (hit,) = retriever.retrieve("dogs")
    assert [hit.node] == store.get_nodes([hit.node.node_id])
    assert hit.node.metadata == {"kind": "qa", "n": 0}
