"""Hits read what is stored with a chunk when they are first asked for it, and are plain values all the same."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from embedkit.errors import CorruptIndexError
from embedkit_indexes import Document, Index, SearchHit, SearchResult, open_indexes
from embedkit_indexes.cells import Cells
from embedkit_indexes.results import CELLS, SECOND_STAGE

from .conftest import HashEmbedder

Documents = list[Document]


class Counting(HashEmbedder):
    """Remember how often tokens were counted."""

    counted = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the call too."""
        self.counted += 1
        return super().count_tokens(texts)


@pytest.fixture
def embedder() -> Counting:
    """A fresh embedder."""
    return Counting()


@pytest.fixture
def index(tmp_path: Path, embedder: Counting, documents: Documents) -> Index:
    """An index of two segments, some of its documents deleted."""
    Index.build(tmp_path / "i", documents[:180], embedder)
    index = Index.open(tmp_path / "i", embedder)
    index.add(documents[180:])
    index.delete(["d3", "d190"])
    assert len(index.manifest.segments) == 2
    return index


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each column was read."""
    read: Counter[str] = Counter()
    cell = Cells.cell

    def counted(self: Cells, row: int, name: str) -> object:
        read[name] += 1
        return cell(self, row, name)

    monkeypatch.setattr(Cells, "cell", counted)
    return read


def _plain(hit: SearchHit) -> SearchHit:
    """Return an equal hit that was made in the ordinary way."""
    return SearchHit(**{f.name: getattr(hit, f.name) for f in fields(SearchHit)})


def test_a_search_reads_no_row(index: Index, reads: Counter[str]) -> None:
    """Ranks and scores cost no reading; what is asked for is read, once, and nothing beside it."""
    hits = index.search("word1 word2", k=10, mode="hybrid").hits
    assert [h.rank for h in hits] == list(range(1, 11))
    assert sorted((h.score for h in hits), reverse=True) == [h.score for h in hits]
    assert [h.index for h in hits] == [""] * 10
    assert any(h.cosine is not None and h.bm25 is not None for h in hits)
    assert not reads
    assert [hits[0].text, hits[0].text, hits[4].text] == [hits[0].text, hits[0].text, hits[4].text]
    assert reads == {"text": 2}


def test_what_is_read_is_what_was_stored(index: Index, documents: Documents) -> None:
    """Each cell of each hit, in every segment, is its document's."""
    stored = {d.id: d for d in documents}
    hits = index.search("word1", k=500).hits
    assert len(hits) == 198
    for hit in hits:
        document = stored[hit.document_id]
        assert (hit.title, hit.lang, hit.source) == (document.title, document.lang, document.source)
        assert hit.metadata == document.metadata
        assert document.text[hit.start : hit.end] in hit.text
        assert hit.position == 0
    assert sorted(h.chunk_id for h in hits) == [n for n in range(200) if n not in (3, 190)]


def test_a_group_reads_from_each_of_its_indexes(
    tmp_path: Path, embedder: Counting, documents: Documents
) -> None:
    """A hit of several indexes, one of them empty, reads from its own and names it."""
    parts = (documents[:80], documents[80:81], documents[81:])
    for name, part in zip("abc", parts, strict=True):
        Index.build(tmp_path / name, part, embedder)
    Index.open(tmp_path / "b", embedder).delete(["d80"])
    group = open_indexes([tmp_path / name for name in "abc"], embedder)
    for hit in group.search("word1 word2", k=500).hits:
        number = int(hit.document_id[1:])
        assert documents[number].text in hit.text
        assert hit.index == str(tmp_path / ("a" if number < 80 else "c"))


def test_a_hit_is_a_plain_value(index: Index) -> None:
    """Unread hits and results compare, print, copy, pickle and turn into dictionaries as those made by hand."""

    def found() -> SearchResult:
        return index.search("word1 word2", k=5)

    hand = [_plain(h) for h in found().hits]
    assert list(found().hits) == hand
    assert hand == list(found().hits)
    assert [repr(h) for h in found().hits] == [repr(h) for h in hand]
    assert [asdict(h) for h in found().hits] == [asdict(h) for h in hand]
    assert [replace(h, score=0.5) for h in found().hits] == [replace(h, score=0.5) for h in hand]
    copies: list[Callable[[Any], Any]] = [
        copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)),
    ]  # fmt: skip
    for copied in copies:
        assert copied(found()) == found()
        assert [copied(h) for h in found().hits] == hand
    with pytest.raises(TypeError, match="unhashable"):
        hash(found().hits[0])  # as ever: metadata is a dictionary
    assert found().hits[0] != found().hits[1]


def test_a_result_as_a_dictionary_is_all_there_is(index: Index, embedder: Counting) -> None:
    """`to_dict` is what `asdict` gives, JSON can hold it, and to change it does not change the hit."""
    result = index.search("word1 word2", k=5)
    told = result.to_dict()
    assert told == asdict(index.search("word1 word2", k=5))
    assert list(told) == [f.name for f in fields(SearchResult)]
    assert [list(h) for h in told["hits"]] == [[f.name for f in fields(SearchHit)]] * 5
    assert json.loads(json.dumps(told))["hits"][0]["metadata"] == result.hits[0].metadata
    told["hits"][0]["metadata"]["year"] = -1
    assert result.hits[0].metadata["year"] != -1


def test_hits_cannot_be_changed(index: Index) -> None:
    """A hit is frozen before and after it is read; a name that is none is no attribute, whatever is read by then."""
    hit = index.search("word1", k=1).hits[0]
    for _ in range(2):
        for name in ("text", "rank", "chunk_id"):
            with pytest.raises(FrozenInstanceError):
                setattr(hit, name, "other")
        with pytest.raises(AttributeError, match="wording"):
            _ = hit.wording  # type: ignore[attr-defined]
        assert asdict(hit)["text"] != "other"


def test_the_cells_are_fields_of_a_hit() -> None:
    """What is read late are fields of the class, and all that neither the search nor its second stage gives."""
    given = {"rank", "score", "cosine", "bm25", "index"}
    assert {f.name for f in fields(SearchHit)} == CELLS | given | SECOND_STAGE


def test_a_hit_can_be_read_whatever_becomes_of_its_index(index: Index, documents: Documents) -> None:
    """Found before its document was deleted, the index compacted, refreshed and removed, a hit gives what it was."""
    first, second = (index.search(documents[30].text, k=200) for _ in range(2))
    expected = first.to_dict()
    index.delete(where="year >= 2000")
    index.add([Document("late", "word1", lang="en")])
    index.compact()
    assert len(index.search("word1", k=200).hits) == 1
    assert len([p for p in index.directory.iterdir() if p.is_dir()]) == 1
    shutil.rmtree(index.directory)
    assert second.hits[0].document_id == "d30"
    assert second.to_dict() == expected


def test_damage_is_told_where_it_is_read(index: Index, documents: Documents) -> None:
    """An altered text raises CorruptIndexError naming the file when that cell is asked for, each time; others are read."""
    path = max(index.directory.rglob("chunks.arrow"), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    text = documents[30].text.encode()
    assert whole.count(text) == 1
    path.unlink()
    path.write_bytes(whole.replace(text, b"\xff" * len(text)))
    reader = Index.open(index.directory, HashEmbedder())
    hit, *others = reader.search(documents[30].text, k=20).hits
    assert (hit.document_id, hit.title) == ("d30", "Title 30")
    for read in (lambda: hit.text, lambda: hit.text, lambda: asdict(hit), lambda: pickle.dumps(hit)):
        with pytest.raises(CorruptIndexError, match=r"chunks.arrow cannot be read \(.*rebuild"):
            read()
    assert all(documents[int(h.document_id[1:])].text in h.text for h in others)


def test_tokens_beyond_the_embedders_sight_are_counted_when_asked(index: Index, embedder: Counting) -> None:
    """`truncated` is the rendered query's tokens beyond `max_length`; a search that nobody asks for it counts none."""
    before = embedder.counted
    short, long = index.search_many(["word1", "word1 " * 100], instruction="Find it")
    index.rank(["word1 " * 100])
    assert embedder.counted == before
    assert (short.truncated, long.truncated) == (0, embedder.count_tokens([long.encoded])[0] - 64)
    assert long.truncated > 0
    assert embedder.counted == before + 3
    assert pickle.loads(pickle.dumps(index.search("word1 " * 100, instruction="Find it"))).truncated > 0
    assert index.search("word1 " * 100, mode="lexical").truncated == 0
    assert index.explain("word1 " * 100, instruction="Find it")["truncated"] == long.truncated


def test_threads_may_read_the_same_hits(index: Index) -> None:
    """Hits that eight threads read at the same time give each of them the same."""
    expected = index.search("word1 word2", k=100).to_dict()
    for _ in range(5):
        result = index.search("word1 word2", k=100)
        with ThreadPoolExecutor(8) as pool:
            assert all(told == expected for told in pool.map(lambda r: r.to_dict(), [result] * 8))
