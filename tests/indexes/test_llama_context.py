"""`EmbedkitContext` after real retrievers: merged, numbered, within the budget, led back to the documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.utils import get_tokenizer

from embedkit.errors import InputError
from embedkit_indexes import ChunkConfig, Document, Index, open_indexes
from embedkit_indexes.llama_index import (
    EmbedkitContext,
    EmbedkitEmbedding,
    EmbedkitRetriever,
    EmbedkitVectorStore,
)
from tests.indexes.test_context import HOSTILE, numbered
from tests.indexes.test_context_joins import CODE, MARKDOWN

if TYPE_CHECKING:
    from tests.indexes.conftest import HashEmbedder


def shown(nodes: list[NodeWithScore]) -> str:
    """Return what a response synthesizer shows of nodes."""
    return "\n\n".join(n.node.get_content(MetadataMode.LLM) for n in nodes)


@pytest.fixture
def retriever(tmp_path: Path, embedder: HashEmbedder) -> EmbedkitRetriever:
    """A retriever of all chunks of two documents."""
    documents = [numbered("aa", 90), numbered("bb", 90)]
    Index.build(tmp_path / "i", documents, embedder, chunking=ChunkConfig(max_tokens=40))
    return EmbedkitRetriever(Index.open(tmp_path / "i", embedder), similarity_top_k=50)


def test_passages_are_the_documents_own_text(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Chunks of Markdown and of code that an index holds become the document again, indentation and all."""
    for name, text, form in (("plans.md", MARKDOWN, "markdown"), ("plan.py", CODE, "code")):
        document = Document(name, text, form=form, lang="python" if form == "code" else "en")  # type: ignore[arg-type]
        config = ChunkConfig(max_tokens=16, overlap_tokens=0, context=False)
        Index.build(tmp_path / name, [document], embedder, chunking=config)
        retriever = EmbedkitRetriever(Index.open(tmp_path / name, embedder), similarity_top_k=50)
        found = retriever.retrieve("cancel refund money")
        assert len(found) > 3
        (passage,) = EmbedkitContext(budget=100_000).postprocess_nodes(found)
        assert isinstance(passage.node, TextNode)
        assert passage.node.text == text.strip()


def test_chunks_of_an_index_become_passages(retriever: EmbedkitRetriever) -> None:
    """All chunks of a document are one node with its text, its place, its number, and the document as its source."""
    found = retriever.retrieve("aa3 aa4 aa5.")
    passages = EmbedkitContext(budget=100_000).postprocess_nodes(found)
    assert [p.node.metadata["embedkit_citation"] for p in passages] == ["[1]", "[2]"]
    for passage in passages:
        node = passage.node
        text = numbered(str(node.ref_doc_id), 90).text
        assert isinstance(node, TextNode)
        assert node.text.endswith(text) and node.text.startswith(f"Title {node.ref_doc_id}")
        assert (node.start_char_idx, node.end_char_idx) == (0, len(text))
        assert node.metadata["embedkit_cited"] == (
            f"Title {node.ref_doc_id} — docs/{node.ref_doc_id}.md#{node.ref_doc_id}, characters 0–{len(text)}"
        )
        seen = node.get_content(MetadataMode.LLM)
        assert f"embedkit_citation: {node.metadata['embedkit_citation']}" in seen and "node_ids" not in seen
    assert passages[0].score == max(n.score or 0 for n in found)


@pytest.mark.parametrize("budget", [40, 100, 170, 400])
def test_the_budget_holds_for_what_the_model_sees(retriever: EmbedkitRetriever, budget: int) -> None:
    """Text and metadata together stay within the budget, by LlamaIndex's own tokenizer or one's own count."""
    found = retriever.retrieve("aa3 aa4 aa5.")
    tokenize = get_tokenizer()
    by_default = EmbedkitContext(budget=budget).postprocess_nodes(found)
    assert len(tokenize(shown(by_default))) <= budget
    own = EmbedkitContext(budget=budget, count_tokens=len).postprocess_nodes(found)
    assert len(shown(own)) <= budget
    assert by_default or budget < 100


def test_nodes_that_llamaindex_cut_are_merged(embedder: HashEmbedder, tmp_path: Path) -> None:
    """Overlapping nodes of SentenceSplitter's become one text of the document, in the store or beside any index."""
    texts = {name: numbered(name, 240).text for name in ("aa", "bb")}
    documents = [LlamaDocument(id_=n, text=t, metadata={"file_path": f"{n}.txt"}) for n, t in texts.items()]
    splitter = SentenceSplitter(chunk_size=120, chunk_overlap=30)
    nodes = splitter.get_nodes_from_documents(documents)
    assert len(nodes) > 6
    store = EmbedkitVectorStore(tmp_path / "nodes", EmbedkitEmbedding(embedder))
    index = VectorStoreIndex.from_vector_store(store, embed_model=EmbedkitEmbedding(embedder))
    index.insert_nodes(nodes)
    found = index.as_retriever(similarity_top_k=50).retrieve("aa3 bb4")
    assert len(found) == len(nodes)
    passages = EmbedkitContext(budget=100_000).postprocess_nodes(found)
    assert {p.node.ref_doc_id: p.node.get_content() for p in passages} == texts
    # The same nodes, through embedkit's own call: cited by the document that they were cut from.
    context = Index.open(tmp_path / "nodes", embedder).context("aa3 bb4", k=50, budget=100_000)
    assert {b.document_id: b.text for b in context.blocks} == texts
    assert {b.source for b in context.blocks} == {"aa.txt", "bb.txt"}


def test_a_query_engine_answers_from_passages(retriever: EmbedkitRetriever) -> None:
    """In a query engine the model is shown the passages, and the response's sources are they."""
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[EmbedkitContext(budget=300)]
    )
    answer = engine.query("aa3 aa4 aa5.")
    assert "embedkit_citation: [1]" in str(answer)
    assert answer.source_nodes[0].metadata["embedkit_citation"] == "[1]"


def test_duplicates_and_nodes_without_text_are_left_out() -> None:
    """A copy in another document is named; a node of blanks takes no number; a place that cannot be true is not told."""
    first = TextNode(id_="1", text=HOSTILE, start_char_idx=5, end_char_idx=9)
    nodes = [first, TextNode(id_="2", text=HOSTILE.replace(" ", "  ")), TextNode(id_="3", text=" ")]
    passages = EmbedkitContext().postprocess_nodes([NodeWithScore(node=n) for n in nodes])
    (passage,) = passages
    assert passage.node.metadata["embedkit_also_in"] == ["2"] and passage.node.get_content() == HOSTILE
    assert "start" not in passage.node.metadata and passage.score is None
    assert EmbedkitContext().postprocess_nodes([]) == []


def test_what_a_node_brings_stays() -> None:
    """A node's own metadata is neither replaced nor dropped, whatever it is called, and the model sees it."""
    own = {
        "start": "2024-01-01", "end": 7, "document_id": "CRM-77", "citation": "BGH I ZR 1/24", "position": 3,
        "cited": 12, "node_ids": "x", "also_in": "y",
    }  # fmt: skip
    text = "Cancel the plan on Monday."
    node = TextNode(id_="n1", text=text, metadata=own, start_char_idx=0, end_char_idx=len(text))
    (passage,) = EmbedkitContext().postprocess_nodes([NodeWithScore(node=node)])
    assert own.items() <= passage.node.metadata.items()
    seen = passage.node.get_content(MetadataMode.LLM)
    assert all(f"{name}: {value}" in seen for name, value in own.items())


def test_a_passage_has_no_place_of_a_chunk(retriever: EmbedkitRetriever) -> None:
    """Of embedkit's own chunks the place in the metadata goes: the passage is longer; a user's `start` stays."""
    found = retriever.retrieve("aa3")
    for n in found:
        n.node.metadata["end"] = "never"
    for passage in EmbedkitContext(budget=100_000).postprocess_nodes(found):
        assert not {"position", "start"} & passage.node.metadata.keys()
        assert passage.node.metadata["end"] == "never"


def test_documents_of_two_indexes_share_an_id(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A retriever of several indexes finds both, and their passages are of both, each cited by its source."""
    for name, words in (("one", "aa"), ("two", "bb")):
        document = replace(numbered(words, 60), id="same")
        Index.build(tmp_path / name, [document], embedder, chunking=ChunkConfig(max_tokens=40))
        store = EmbedkitVectorStore(tmp_path / name, EmbedkitEmbedding(embedder))
        store.add([TextNode(id_="node", text=f"A node of {name}.")])
    group = open_indexes([tmp_path / "one", tmp_path / "two"], embedder)
    found = EmbedkitRetriever(group, similarity_top_k=50).retrieve("aa1 bb1")
    assert len({n.node.node_id for n in found}) == len(found) == len(group)
    assert len({n.node.ref_doc_id for n in found if "same" in str(n.node.ref_doc_id)}) == 2
    passages = [p.node for p in EmbedkitContext(budget=100_000).postprocess_nodes(found)]
    texts = {numbered(words, 60).text for words in ("aa", "bb")}
    assert texts | {"A node of one.", "A node of two."} == {
        p.get_content().rpartition("\n")[2] for p in passages
    }
    cited = [p.metadata["embedkit_cited"] for p in passages if p.metadata["embedkit_document_id"] == "same"]
    assert sorted(cited) == [
        f"Title {words} — docs/{words}.md#same, characters 0–{len(numbered(words, 60).text)}"
        for words in ("aa", "bb")
    ]


def test_mistakes_are_told_at_once() -> None:
    """Wrong settings are an error when they are given."""
    with pytest.raises(InputError, match="budget is 0"):
        EmbedkitContext(budget=0)
    with pytest.raises(InputError, match="count_tokens"):
        EmbedkitContext(count_tokens=5)  # type: ignore[arg-type]


def test_it_is_serialised_by_its_settings() -> None:
    """A postprocessor comes back from its dictionary as it was."""
    again = EmbedkitContext.from_dict(EmbedkitContext(budget=7, order="source").to_dict())
    assert (again.budget, again.order) == (7, "source")
