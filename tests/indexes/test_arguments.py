"""Arguments of the wrong type: each is an InputError of one sentence that says what to pass, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import InputError
from embedkit_indexes import Document, EngineConfig, Index, SearchEffort, open_indexes

from .conftest import HashEmbedder

DOCUMENT = Document("a", "some text", lang="en")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EngineConfig(recall="0.9"), "recall is '0.9', str: give a number"),  # type: ignore[arg-type]
        (lambda: EngineConfig(recall=True), "recall is True, bool: give a number"),
        (lambda: EngineConfig(memory_budget="1GB"), "memory_budget is '1GB', str: give a whole number"),  # type: ignore[arg-type]
        (lambda: EngineConfig(memory_budget=1e9), "memory_budget is 1000000000.0, float: give a whole"),  # type: ignore[arg-type]
        (lambda: EngineConfig(exact_limit="all"), "exact_limit is 'all', str: give a whole number"),  # type: ignore[arg-type]
        (lambda: EngineConfig(5), "type is 5, int: give a name"),  # type: ignore[arg-type]
        (lambda: SearchEffort(recall="0.9"), "recall is '0.9', str: give a number"),  # type: ignore[arg-type]
        (lambda: Index.open(5), "directory is 5, int: give a path"),  # type: ignore[arg-type]
        (lambda: Index.open(b"i"), "directory is b'i', bytes: give a path"),  # type: ignore[arg-type]
        (lambda: open_indexes("i"), r"directories is 'i', str: give a list of paths"),
        (lambda: open_indexes(Path("i")), r"directories is PosixPath\('i'\), PosixPath: give a list"),  # type: ignore[arg-type]
        (lambda: open_indexes(5), r"directories is 5, int: give a list"),  # type: ignore[arg-type]
        (lambda: open_indexes([5]), "directory is 5, int: give a path"),  # type: ignore[list-item]
        (lambda: Index.build("i", [DOCUMENT], 5), "embedder is 5, int: pass a name"),  # type: ignore[arg-type]
        (lambda: Index.restore("i", 5), "path is 5, int: give a path"),  # type: ignore[arg-type]
    ],
)
def test_before_there_is_an_index(call: Callable[[], Any], message: str) -> None:
    """Configurations and paths."""
    with pytest.raises(InputError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("text", "documents is 'text', str: give an iterable of Documents"),
        (DOCUMENT, "documents is Document"),
        ({"a": "text"}, "documents is {'a': 'text'}, dict: give"),
        (5, "documents is 5, int: give"),
        (None, "documents is None, NoneType: give"),
        (["text"], "document 0 is str: make it a Document"),
        ([DOCUMENT, {"id": "b"}], "document 1 is dict: make it a Document"),
        ([Document(5, "text")], "document 0 has int as its id, not str"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_document(tmp_path: Path, embedder: HashEmbedder, documents: Any, message: str) -> None:
    """A build and every change say what they take; neither leaves a trace."""
    with pytest.raises(InputError, match=f"^{message}"):
        Index.build(tmp_path / "new", documents, embedder)
    assert not (tmp_path / "new").exists()
    Index.build(tmp_path / "i", [Document("here", "text", lang="en")], embedder)
    index = Index.open(tmp_path / "i", embedder)
    for change in (index.add, index.upsert, index.sync):
        with pytest.raises(InputError, match=f"^{message}"):
            change(documents)
    assert Index.open(tmp_path / "i").manifest.generation == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": [5]}, "an id to delete is 5, int: ids are strings"),
        ({"ids": 5}, "ids is 5, int: give an iterable of strings"),
        ({"ids": b"a"}, "ids is b'a', bytes: give an iterable"),
        ({"source": 5}, "source is compared with|source is 5"),
        ({"where": 5}, "where is 5, int: give a filter"),
        ({"where": ["year > 3"]}, r"where is \['year > 3'\], list: give a filter"),
    ],
)
def test_what_names_nothing_to_delete(
    tmp_path: Path, embedder: HashEmbedder, arguments: dict[str, Any], message: str
) -> None:
    """An id that is no string is no id of the index."""
    Index.build(tmp_path / "i", [DOCUMENT], embedder)
    index = Index.open(tmp_path / "i", embedder)
    with pytest.raises(InputError, match=f"^({message})"):
        index.delete(**arguments)
    with pytest.raises(InputError, match="path is 5, int"):
        index.export(5)  # type: ignore[arg-type]
    assert len(index) == 1
