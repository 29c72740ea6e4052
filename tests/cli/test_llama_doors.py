"""Both doors to one index: built through LlamaIndex and used by the command line, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine

from embedkit_cli.main import cli
from embedkit_indexes.llama_index import EmbedkitEmbedding, EmbedkitRetriever, EmbedkitVectorStore

CANCEL = "You can cancel your plan at any time, in the settings."


def run(*arguments: object) -> str:
    """Run a command; return what it prints on stdout."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def embedding() -> EmbedkitEmbedding:
    """The bundled embedder, opened once."""
    return EmbedkitEmbedding("bundled")


@pytest.fixture
def store(tmp_path: Path, embedding: EmbedkitEmbedding) -> EmbedkitVectorStore:
    """An index of three nodes, built through LlamaIndex."""
    store = EmbedkitVectorStore(tmp_path / "my.index", embedding)
    rows = ((CANCEL, 2020), ("The invoice comes by mail.", "2021"), ("Bread needs time.", None))
    VectorStoreIndex.from_documents(
        [
            Document(id_=f"d{i}", text=text, metadata={"file_name": f"{i}.md", "year": year})
            for i, (text, year) in enumerate(rows)
        ],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=embedding,
    )
    return store


def test_the_command_line_uses_an_index_of_nodes(store: EmbedkitVectorStore, tmp_path: Path) -> None:
    """info, verify, search, delete, compact, migrate and export work, and LlamaIndex sees what they did."""
    path = store.path
    assert "3" in run("info", path) and "bundled" not in run("verify", path)
    shown = run("search", path, "how do I cancel?", "--task", "qa", "-k", 1)
    assert CANCEL in " ".join(shown.split()) and "0.md" in shown
    assert "year:" not in shown and "_node_" not in shown
    told = json.loads(run("search", path, "invoice", "--hybrid", "--where", 'year = "2021"', "--json"))
    (hit,) = told["hits"]
    assert hit["metadata"] == {"file_name": "1.md", "year": "2021", "ref_doc_id": "d1"}
    run("delete", path, "--where", 'ref_doc_id = "d2"')
    assert {n.ref_doc_id for n in store.get_nodes()} == {"d0", "d1"}
    before = store.get_nodes()
    run("compact", path)
    run("export", path, tmp_path / "out.parquet")
    run("import", tmp_path / "out.parquet", "-o", tmp_path / "copy.index")
    run("migrate", tmp_path / "copy.index", "--dim", 128)
    assert store.get_nodes() == before
    copy = EmbedkitVectorStore(tmp_path / "copy.index")
    assert copy.get_nodes() == before
    assert copy.client is not None and copy.client.manifest.dim == 128
    (found,) = EmbedkitRetriever(copy.path, task="qa", similarity_top_k=1).retrieve("how do I cancel?")
    assert found.node.get_content() == CANCEL


def test_the_command_line_adds_to_an_index_of_nodes(store: EmbedkitVectorStore, tmp_path: Path) -> None:
    """Files added by the command line are cut as it cuts them, and come as nodes beside the others."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ships.md").write_text("# Ships\n\nA long ship crosses the sea.\n")
    run("add", tmp_path / "notes", "-o", store.path)
    found = {n.ref_doc_id: n.get_content() for n in store.get_nodes()}
    assert len(found) == 4 and any("crosses the sea" in text for text in found.values())


def test_llama_index_uses_an_index_of_the_command_line(tmp_path: Path, embedding: EmbedkitEmbedding) -> None:
    """An index of files answers in a query engine of two lines, and takes nodes, which the command line finds."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "plans.md").write_text(f"# Plans\n\n{CANCEL}\n")
    path = tmp_path / "docs.index"
    run("index", tmp_path / "docs", "-o", path)
    retriever = EmbedkitRetriever(path, task="qa")
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert CANCEL in str(engine.query("how do I cancel?"))
    index = VectorStoreIndex.from_vector_store(EmbedkitVectorStore(path), embed_model=embedding)
    index.insert(Document(text="A ship crosses the sea."))
    assert "A ship crosses" in run("search", path, "boats", "-k", 1)
    assert "verified" in run("info", path, "--verify")
