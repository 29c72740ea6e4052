"""Any sequence of changes equals a dictionary and brute force."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedkit.errors import InputError
from embedkit_indexes import ChunkConfig, Document, F, Index

from .changing import litter
from .conftest import HashEmbedder

EMBEDDER = HashEmbedder(16)
CHUNKING = ChunkConfig(context=False)
# Long ones are cut into several chunks; equal texts of several documents share a vector.
TEXTS = [" ".join(f"word{i + j}" for j in range(60 if i % 5 == 0 else 3)) for i in range(12)]

documents_of = st.builds(
    lambda number, text, year, lang: Document(
        f"d{number}", TEXTS[text], lang=lang, source=f"s{number % 3}", metadata={"year": year}
    ),
    st.integers(0, 11), st.integers(0, 11), st.integers(2000, 2003), st.sampled_from(["en", "de", "ja"]),
)  # fmt: skip
batches = st.lists(documents_of, min_size=1, max_size=6, unique_by=lambda d: d.id)
Model = dict[str, Document]


class Row(NamedTuple):
    """What is compared of a chunk."""

    document: str
    position: int
    text: str
    year: int
    lang: str
    source: str
    start: int
    end: int


def rows_of(index: Index) -> dict[int, Row]:
    """Return all chunks by their ids."""
    hits = index.search("word1", k=1000).hits
    return {
        h.chunk_id: Row(
            h.document_id, h.position, h.text, h.metadata["year"], h.lang, h.source, h.start, h.end
        )
        for h in hits
    }


def holds(rows: dict[int, Row], model: Model) -> None:
    """Check that the chunks are those of the documents, whole."""
    by_document: dict[str, list[Row]] = {}
    for row in rows.values():
        by_document.setdefault(row.document, []).append(row)
    assert by_document.keys() == model.keys()
    for id, found in by_document.items():
        document = model[id]
        found.sort(key=lambda r: r.position)
        assert [r.position for r in found] == list(range(len(found)))
        assert all(r.text == document.text[r.start : r.end] for r in found)
        covered = {at for r in found for at in range(r.start, r.end)}
        assert "".join(c for at, c in enumerate(document.text) if at not in covered).strip() == ""
        assert {(r.year, r.lang, r.source) for r in found} == {
            (document.metadata["year"], document.lang, document.source)
        }


class Changes(RuleBasedStateMachine):
    """An index, the dictionary that it must equal, and a reader that stays behind."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="embedkit-"))
        self._sync = os.fsync
        os.fsync = lambda fd: None  # what reaches the disk is another test's fact

    @initialize(documents=batches)
    def build(self, documents: list[Document]) -> None:
        """Begin with an index of some documents, and a reader."""
        Index.build(self.folder / "i", documents, EMBEDDER, chunking=CHUNKING)
        self.model: Model = {d.id: d for d in documents}
        self.index = Index.open(self.folder / "i", EMBEDDER)
        self.rows = rows_of(self.index)
        self.next_id = 0
        self.generation = 1
        self.keep_reader()

    def keep_reader(self) -> None:
        """Have a reader of this version."""
        self.reader = Index.open(self.folder / "i", EMBEDDER)
        self.reader_rows = dict(self.rows)

    def settle(self, changed: set[str] | None = None) -> None:
        """Compare the index with the dictionary after a change of these documents (None: of no chunk's id)."""
        old, self.rows = self.rows, rows_of(self.index)
        holds(self.rows, self.model)
        kept = {
            id: row
            for id, row in old.items()
            if row.document not in (changed or ()) and row.document in self.model
        }
        assert kept.items() <= self.rows.items()
        assert all(id >= self.next_id for id in self.rows.keys() - old.keys())
        self.next_id = max([self.next_id, *(id + 1 for id in self.rows)])
        assert self.next_id <= self.index.manifest.next_id
        assert self.index.manifest.generation >= self.generation
        self.generation = self.index.manifest.generation

    def changed(self, documents: list[Document]) -> set[str]:
        """Return the ids of those that the index does not hold as they are."""
        return {d.id for d in documents if self.model.get(d.id) != d}

    @rule(documents=batches)
    def add(self, documents: list[Document]) -> None:
        """Documents with new ids are added; one that is there makes the whole addition fail."""
        if any(d.id in self.model for d in documents):
            with pytest.raises(InputError, match="holds already"):
                self.index.add(documents)
            self.settle()
            documents = [d for d in documents if d.id not in self.model]
        if documents:
            assert self.index.add(documents).added == len(documents)
            self.model.update({d.id: d for d in documents})
        self.settle()

    @rule(documents=batches)
    def upsert(self, documents: list[Document]) -> None:
        """The report counts what was added, updated and unchanged, as the dictionary does."""
        changed = self.changed(documents)
        report = self.index.upsert(documents)
        new = [d for d in documents if d.id not in self.model]
        counts = (len(new), len(changed) - len(new), len(documents) - len(changed))
        assert (report.added, report.updated, report.unchanged) == counts
        self.model.update({d.id: d for d in documents})
        self.settle(changed)

    @rule(documents=batches)
    def sync(self, documents: list[Document]) -> None:
        """What did not come is removed; asked again, nothing changes, not even the version."""
        changed = self.changed(documents)
        report = self.index.sync(documents)
        assert report.removed == len(self.model.keys() - {d.id for d in documents})
        self.model = {d.id: d for d in documents}
        self.settle(changed)
        again = self.index.sync(documents)
        assert (again.unchanged, again.embedded, again.generation) == (len(documents), 0, self.generation)

    @rule(numbers=st.sets(st.integers(0, 11), min_size=1, max_size=5))
    def delete(self, numbers: set[int]) -> None:
        """Ids that are there are deleted, the others passed over."""
        ids = {f"d{n}" for n in numbers}
        assert self.index.delete(sorted(ids)).removed == len(ids & self.model.keys())
        self.model = {id: d for id, d in self.model.items() if id not in ids}
        self.settle()

    @rule(year=st.integers(2000, 2004), source=st.sampled_from(["s0", "s1", "s2"]))
    def delete_where(self, year: int, source: str) -> None:
        """A filter deletes the documents that satisfy it."""
        if not self.model:
            return
        report = self.index.delete(where=(F("year") >= year) & (F("source") == source))
        gone = {id for id, d in self.model.items() if d.metadata["year"] >= year and d.source == source}
        assert report.removed == len(gone)
        self.model = {id: d for id, d in self.model.items() if id not in gone}
        self.settle()

    @rule()
    def compact(self) -> None:
        """One segment at most, nothing else is different, and nothing is embedded."""
        assert self.index.compact().embedded == 0
        assert len(self.index.manifest.segments) == bool(self.model)
        self.settle()

    @rule()
    def reopen(self) -> None:
        """What is opened again verifies and is the same."""
        self.index = Index.open(self.folder / "i", EMBEDDER)
        self.index.verify()
        self.settle()

    @rule()
    def refresh(self) -> None:
        """A reader that stayed behind has its own version whole, and then the latest."""
        assert rows_of(self.reader) == self.reader_rows
        self.reader.verify()
        behind = self.reader.manifest.generation != self.generation
        assert self.reader.refresh() == behind
        assert rows_of(self.reader) == self.rows
        self.keep_reader()

    @rule()
    def carry(self) -> None:
        """Exported and restored elsewhere, and over itself, it is the same to the chunks' ids."""
        exported = self.folder / "e.parquet"
        count = self.index.export(exported, overwrite=True)
        assert count == len(self.rows)
        if not count:
            return
        Index.restore(self.folder / "other", exported, overwrite=True)
        assert rows_of(Index.open(self.folder / "other", EMBEDDER)) == self.rows
        Index.restore(self.folder / "i", exported, overwrite=True)
        self.index.refresh()
        self.settle()

    @invariant()
    def searches_as_brute_force_does(self) -> None:
        """The best scores, under a filter too, are those of a product over all vectors."""
        if not hasattr(self, "index"):
            return
        query = EMBEDDER.encode_query(["word3 word8"])[0]
        for where in (None, "year >= 2002", 'lang != "en"'):
            passing = {
                id: row
                for id, row in self.rows.items()
                if where is None or (row.year >= 2002 if "year" in where else row.lang != "en")
            }
            if not self.model:
                break
            hits = self.index.search("word3 word8", k=5, where=where).hits
            assert len(hits) == min(5, len(passing))
            if not passing:
                continue
            ids = list(passing)
            scores = EMBEDDER.encode_document([passing[id].text for id in ids]) @ query
            best = np.sort(scores)[::-1][:5]
            np.testing.assert_allclose([h.score for h in hits], best, atol=2e-3)
            own = dict(zip(ids, scores, strict=True))
            np.testing.assert_allclose([h.score for h in hits], [own[h.chunk_id] for h in hits], atol=2e-3)

    @invariant()
    def counts_as_a_new_index_does(self) -> None:
        """Documents and languages are the dictionary's."""
        if not hasattr(self, "index"):
            return
        manifest = self.index.manifest
        languages = [d.lang for d in self.model.values()]
        assert manifest.documents == len(self.model)
        assert manifest.chunks == len(self.rows)
        assert dict(manifest.languages) == {lang: languages.count(lang) for lang in set(languages)}
        assert self.index.document_languages() == {id: d.lang for id, d in self.model.items()}

    def teardown(self) -> None:
        """In the end all counts are those of an index built of the same documents at once; no litter is left."""
        try:
            if self.__dict__.get("model"):
                Index.build(self.folder / "new", self.model.values(), EMBEDDER, chunking=CHUNKING)
                new, old = (Index.open(self.folder / n).manifest for n in ("new", "i"))
                for name in ("documents", "chunks", "tokens", "truncated_chunks", "truncated_tokens"):
                    assert getattr(old, name) == getattr(new, name)
                assert dict(old.languages) == dict(new.languages)
                assert old.coverage == pytest.approx(new.coverage)
                del self.reader
                self.index.delete(["none of these"])
                assert litter(self.folder / "i") == set()
        finally:
            os.fsync = self._sync
            shutil.rmtree(self.folder)


def _run(examples: int, steps: int, **options: Any) -> None:
    run_state_machine_as_test(
        Changes,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_changes_in_miniature() -> None:
    """Six sequences of up to 14 changes."""
    _run(6, 14, phases=[Phase.generate])


@pytest.mark.soak
def test_changes() -> None:
    """Two hundred sequences of up to 40 changes."""
    _run(200, 40, derandomize=False)
