"""An index through its life: what changes is embedded, what does not is not, and readers keep what they opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit import Task
from embedkit.errors import (
    CorpusError,
    CorruptIndexError,
    FingerprintError,
    InputError,
    NotAnIndexError,
    UnknownNameError,
)
from embedkit_indexes import (
    ChunkConfig,
    Document,
    EngineConfig,
    F,
    Index,
    ReadReport,
    SearchEffort,
    durable,
    open_indexes,
    read_corpus,
)
from embedkit_indexes.embedding import VectorCache
from embedkit_indexes.manifest import Manifest

from .conftest import HashEmbedder

Documents = list[Document]


class CountingEmbedder(HashEmbedder):
    """Count the texts that are embedded as documents."""

    texts = 0

    def _embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        self.texts += len(texts)
        return super()._embed(texts)


@pytest.fixture
def embedder() -> CountingEmbedder:
    """A counting embedder."""
    return CountingEmbedder()


@pytest.fixture
def index(tmp_path: Path, embedder: CountingEmbedder, documents: Documents) -> Index:
    """An index of the two hundred documents."""
    Index.build(tmp_path / "i", documents, embedder)
    return Index.open(tmp_path / "i", embedder)


def _ids(index: Index, query: str = "word1", k: int = 1000) -> set[str]:
    return {h.document_id for h in index.search(query, k=k).hits}


def _folders(index: Index) -> int:
    return len(list(index.directory.glob("segment-*")))


def test_sync_embeds_what_changed_alone(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """Of 200 documents, one new, two changed, three gone: three texts are embedded, and the counts say so."""
    now = [replace(d, text="fresh words") if d.id in {"d3", "d4"} else d for d in documents[:-3]]
    now.append(Document("new", "one more text", lang="en"))
    before = {h.document_id: h.chunk_id for h in index.search("word1", k=1000).hits}
    embedder.texts = 0
    report = index.sync(now)
    # The first search encoded the probes and a query before; only documents are embedded here.
    assert embedder.texts == 3 == report.embedded
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 2, 3, 195)
    assert (report.documents, len(index)) == (198, 198)
    assert _ids(index) == {d.id for d in now}
    after = {h.document_id: h.chunk_id for h in index.search("word1", k=1000).hits}
    assert {i for i in before if i in after and after[i] == before[i]} == set(after) - {"d3", "d4", "new"}
    assert min(after[i] for i in ("d3", "d4", "new")) >= 200


def test_sync_of_the_same_changes_nothing(index: Index, documents: Documents) -> None:
    """Without a change there is no new version, and no file is touched."""
    before = {p: p.stat().st_mtime_ns for p in index.directory.rglob("*") if p.name != "writer.lock"}
    report = index.sync(documents)
    assert (report.unchanged, report.generation, report.embedded) == (200, 1, 0)
    assert {p: p.stat().st_mtime_ns for p in index.directory.rglob("*") if p.name != "writer.lock"} == before


def test_a_text_that_moved_keeps_its_vector(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """A renamed file is another document with the same text: nothing is embedded."""
    moved = replace(documents[7], id="moved", source="elsewhere")
    index.search("the probes are encoded with the first search")
    embedder.texts = 0
    report = index.sync([*documents[:7], moved, *documents[8:]])
    assert (report.added, report.removed, report.embedded, report.reused) == (1, 1, 0, 1)
    assert embedder.texts == 0
    found = index.search(moved.text, k=1).hits[0]
    assert (found.document_id, found.source) == ("moved", "elsewhere")


def test_sync_keeps_what_could_not_be_read(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A file that cannot be decoded today does not take away what was read of it yesterday."""
    corpus = tmp_path / "c"
    corpus.mkdir()
    for name in ("a", "b"):
        (corpus / f"{name}.txt").write_text(f"the text of {name}")
    Index.build(tmp_path / "i", read_corpus([corpus]), embedder)
    (corpus / "a.txt").write_bytes(b"\x00\x01\x02" * 50)
    (corpus / "b.txt").unlink()
    report = ReadReport()
    index = Index.open(tmp_path / "i", embedder)
    (corpus / "c.txt").write_text("another text")
    done = index.sync(read_corpus([corpus], report=report), read_report=report)
    assert (done.added, done.removed, done.kept) == (1, 1, 1)
    assert _ids(index, "text") == {"a.txt", "c.txt"}


def test_sync_with_nothing_changes_nothing(index: Index) -> None:
    """An empty corpus (a drive that is not mounted) is refused, not taken for an order to delete all."""
    with pytest.raises(InputError, match="nothing was removed"):
        index.sync([])
    assert len(Index.open(index.directory)) == 200


def test_add_refuses_an_id_that_is_there(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """`add` names the id and changes nothing; `upsert` replaces the document."""
    with pytest.raises(InputError, match="'d9'.*holds already.*upsert"):
        index.add([Document("fine", "text"), replace(documents[9], text="other")])
    assert len(Index.open(index.directory)) == 200
    report = index.upsert([Document("fine", "text"), replace(documents[9], text="other")])
    assert (report.added, report.updated, len(index)) == (1, 1, 201)
    assert index.search("other", k=1).hits[0].document_id == "d9"


def test_delete_by_id_source_and_filter(index: Index, documents: Documents) -> None:
    """Each way deletes just those documents; what is not there is passed over; nothing at all is refused."""
    assert index.delete(["d1", "d2", "nowhere"]).removed == 2
    old = {d.id for d in documents if d.metadata["year"] < 2005} - {"d1", "d2"}
    assert index.delete(where=F("year") < 2005).removed == len(old)
    assert _ids(index) == {d.id for d in documents} - old - {"d1", "d2"}
    assert index.delete(source="memory", where="lang = 'zh'").removed > 0
    assert "zh" not in index.manifest.languages
    with pytest.raises(InputError, match="nothing was named"):
        index.delete()
    with pytest.raises(UnknownNameError, match="yeer"):
        index.delete(where="yeer < 2005")
    assert index.delete(source="memory").documents == 0
    assert index.search("word1").hits == ()
    assert index.add([Document("again", "word1")]).chunks == 1
    assert _ids(index) == {"again"}


def test_compact_leaves_one_segment_and_no_trace_of_the_deleted(index: Index, documents: Documents) -> None:
    """After deletions and additions, compaction keeps hits and chunk ids, and the deleted texts leave the disk."""
    index.add([Document("secret", "unmistakable-word", lang="en")])
    index.delete(["secret", *(f"d{i}" for i in range(50))])
    before = index.search("word1 word2", k=500)
    report = index.compact()
    assert (report.segments, report.chunks, _folders(index)) == (1, 150, 1)
    assert index.search("word1 word2", k=500) == before
    index.verify()
    stored = b"".join(p.read_bytes() for p in index.directory.rglob("*") if p.is_file())
    assert b"unmistakable-word" not in stored
    assert index.compact().generation == report.generation


def test_small_changes_do_not_pile_up(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """Forty additions of five documents leave a few segments, and every document is found."""
    Index.build(tmp_path / "i", [Document("first", "word", lang="en")], embedder)
    index = Index.open(tmp_path / "i", embedder)
    for n in range(40):
        index.add([Document(f"{n}-{i}", f"word{n} word{i}", lang="en") for i in range(5)])
    assert len(index.manifest.segments) <= 5
    assert len(_ids(index)) == 201
    assert _folders(index) == len(index.manifest.segments)
    assert len({h.chunk_id for h in index.search("word", k=500).hits}) == 201


def test_a_reader_keeps_its_version_until_it_refreshes(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """A snapshot answers as before through any change, its files stay until it is gone, `refresh` moves on."""
    reader = Index.open(index.directory, embedder)
    before = reader.search("word1 word2", k=300)
    index.delete([f"d{i}" for i in range(150)])
    index.compact()
    index.add([Document("late", "word1 word2", lang="en")])
    assert reader.search("word1 word2", k=300) == before
    assert _folders(index) == len(index.manifest.segments) + 1
    assert reader.refresh()
    assert not reader.refresh()
    assert reader.search("word1 word2", k=1).hits[0].document_id == "late"
    del reader
    index.add([Document("later", "text", lang="en")])
    assert _folders(index) == len(index.manifest.segments)


def test_a_reader_that_never_searched_keeps_its_version_too(index: Index, embedder: CountingEmbedder) -> None:
    """What is opened is held from then on, though nothing was read of it yet."""
    reader = Index.open(index.directory, embedder)
    index.delete([f"d{i}" for i in range(199)])
    index.compact()
    assert len(reader.search("word1", k=500).hits) == 200


def test_refresh_refuses_another_embedder(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """A reader whose index was rebuilt with other weights says so, and goes on with what it has."""
    reader = Index.open(index.directory, embedder)
    Index.build(index.directory, documents, HashEmbedder(weights="hash-2"), overwrite=True)
    with pytest.raises(FingerprintError, match="cannot be compared"):
        reader.refresh()
    assert len(reader.search("word1", k=500).hits) == 200


def test_migrate_serves_the_old_until_the_new_is_there(index: Index, documents: Documents) -> None:
    """Every chunk is embedded anew under the other fingerprint; a reader of the old goes on; ids stay."""
    reader = Index.open(index.directory, HashEmbedder())
    index.delete(["d0"])
    ids = {h.document_id: h.chunk_id for h in index.search("word1", k=500).hits}
    other = HashEmbedder(weights="hash-2", dim=48)
    report = index.migrate(other)
    assert (report.embedded, report.segments, report.documents) == (199, 1, 199)
    assert (index.manifest.fingerprint, index.manifest.dim) == (other.fingerprint, 48)
    assert {h.document_id: h.chunk_id for h in index.search("word1", k=500).hits} == ids
    index.verify()
    matrix = other.encode_document([documents[5].text, f"Title 5\n{documents[5].text}"])
    hit = index.search(documents[5].text, k=1).hits[0]
    assert hit.score == pytest.approx(float(matrix[0] @ matrix[1]), abs=1e-3)
    assert len(reader.search("word1", k=500).hits) == 200


def test_what_a_killed_run_embedded_is_taken_over(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A build of three windows that dies in the third embeds that one alone when it is run again."""
    texts = [Document(f"d{i}", f"text number {i}", lang="en") for i in range(5000)]

    class Dying(CountingEmbedder):
        def _embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
            if self.texts + len(texts) > 4096 + 2:
                raise KeyboardInterrupt
            return super()._embed(texts)

    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / "i", texts, Dying(), chunking=ChunkConfig(context=False))
    embedder.texts = 0
    report = Index.build(tmp_path / "i", texts, embedder, chunking=ChunkConfig(context=False))
    assert (report.reused, report.embedded) == (4096, 904)
    assert not list((tmp_path / "i").glob("embedding-*"))
    index = Index.open(tmp_path / "i", embedder)
    found = index.search_many(["text number 17", "text number 4999"], k=1)
    assert [r.hits[0].document_id for r in found] == ["d17", "d4999"]


def test_vectors_of_another_embedder_are_not_taken_over(tmp_path: Path, documents: Documents) -> None:
    """What a killed build embedded with other weights is thrown away."""

    class Dying(HashEmbedder):
        def _embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
            if len(texts) == 2:  # the probes come last
                raise KeyboardInterrupt
            return super()._embed(texts)

    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / "i", documents, Dying(weights="hash-2"))
    assert len(list((tmp_path / "i").glob("embedding-*/*.shard"))) == 1
    report = Index.build(tmp_path / "i", documents, HashEmbedder())
    assert (report.reused, report.embedded) == (0, 200)


def test_export_and_restore(tmp_path: Path, index: Index, documents: Documents) -> None:
    """A Parquet file brings back the same hits, ids and counts without the embedder; another file is refused."""
    index.delete(["d1"])
    index.add([Document("long", "word " * 500, lang="en")])
    index.delete(["d2"])
    path = tmp_path / "e.parquet"
    assert index.export(path) == len(index)
    with pytest.raises(InputError, match="is there already"):
        index.export(path)
    report = Index.restore(tmp_path / "copy", path)
    copy = Index.open(tmp_path / "copy", HashEmbedder())
    copy.verify()
    assert (report.documents, report.chunks) == (index.manifest.documents, len(index))
    for name in ("tokens", "languages", "coverage", "fingerprint", "chunker"):
        assert getattr(copy.manifest, name) == getattr(index.manifest, name)
    assert copy.search("word1 word", k=500) == index.search("word1 word", k=500)
    assert copy.add([Document("next", "text", lang="en")]).added == 1
    assert max(h.chunk_id for h in copy.search("text", k=500).hits) == index.manifest.next_id
    assert set(pq.read_schema(path).names) >= {"document_id", "text", "vector", "chunk_id"}
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(CorpusError, match="is no Parquet file"):
        Index.restore(tmp_path / "y", tmp_path / "x.parquet")
    assert not (tmp_path / "y").exists()


def test_several_indexes_are_searched_as_one(
    tmp_path: Path, index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """The group's hits are those of one index of all documents, each with its directory; other embedders are refused."""
    Index.build(tmp_path / "one", documents[:80], embedder, tasks={"a": Task("a", "Sentence A")})
    Index.build(tmp_path / "two", documents[80:], embedder)
    group = open_indexes([tmp_path / "one", tmp_path / "two"], embedder)
    assert len(group) == 200
    for query in ("word1 word2", "word77"):
        alone, together = index.search(query, k=20).hits, group.search(query, k=20).hits
        assert [(h.document_id, h.score) for h in together] == [(h.document_id, h.score) for h in alone]
        assert {h.index for h in together} == {str(tmp_path / "one"), str(tmp_path / "two")}
    assert group.search("word1", task="a").instruction == "Sentence A"
    words = [(h.document_id, h.score) for h in group.search("word5", mode="lexical").hits]
    assert words == [(h.document_id, h.score) for h in index.search("word5", mode="lexical").hits]
    with pytest.raises(InputError, match="named twice"):
        open_indexes([tmp_path / "one", tmp_path / "two" / ".." / "one"])
    Index.build(tmp_path / "other", documents, HashEmbedder(weights="hash-2"))
    with pytest.raises(FingerprintError, match="hash-32.*cannot be compared"):
        open_indexes([tmp_path / "one", tmp_path / "other"])


def test_filters_hold_over_segments_and_deletions(index: Index, documents: Documents) -> None:
    """Every hit satisfies the filter, all that do are found, and a field of one segment alone is known."""
    index.add([Document("tagged", "word1", lang="en", metadata={"tag": "x", "year": 2019})])
    index.delete(["d19"])
    wanted = {d.id for d in documents if d.metadata["year"] >= 2015} - {"d19"} | {"tagged"}
    hits = index.search("word1", k=500, where="year >= 2015").hits
    assert {h.document_id for h in hits} == wanted
    assert [h.document_id for h in index.search("word1", where=F("tag") == "x").hits] == ["tagged"]
    german = index.search("word1", k=500, where="year < 2005", lang="de").hits
    assert {h.lang for h in german} == {"de"}
    assert index.search("word1", where="year > 3000").hits == ()
    with pytest.raises(UnknownNameError, match="colour"):
        index.search("word1", where="colour = 'red'")
    with pytest.raises(InputError, match="year"):
        index.search("word1", where="year >= 'abc'")


def test_hybrid_ranks_by_both_and_words_never_gate(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A chunk that only one of the two finds is among the hits; weights of zero leave the other's order."""
    texts = ["alpha beta", "alpha gamma", "delta", "epsilon zeta"]
    Index.build(
        tmp_path / "i", [Document(str(i), t, lang="en") for i, t in enumerate(texts)], embedder,
        chunking=ChunkConfig(context=False), dtype="float32",
    )  # fmt: skip
    index = Index.open(tmp_path / "i", embedder)
    hybrid = index.search("alpha delta", mode="hybrid", k=4)
    assert {h.document_id for h in hybrid.hits} == {"0", "1", "2", "3"}
    assert hybrid.hits[-1].document_id == "3"
    assert hybrid.hits[-1].bm25 is None
    cosines = {h.document_id: h.cosine for h in hybrid.hits}
    dense = {h.document_id: h.score for h in index.search("alpha delta", k=4).hits}
    assert cosines == pytest.approx(dense, abs=1e-6)
    words = index.search("alpha delta", mode="lexical", k=4)
    assert {h.document_id for h in words.hits} == {"0", "1", "2"}
    assert all(h.score == h.bm25 for h in words.hits)
    only = index.search("alpha delta", mode="hybrid", weights=(1, 0), k=4).hits
    assert [h.document_id for h in only] == [h.document_id for h in index.search("alpha delta", k=4).hits]
    with pytest.raises(InputError, match="weights"):
        index.search("alpha", mode="hybrid", weights=(0, 0))
    with pytest.raises(UnknownNameError, match="mode"):
        index.search("alpha", mode="hybird")  # type: ignore[arg-type]


def test_effort_is_a_recall_or_parameters(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A trained engine takes a recall or its own parameters; with recall 1 the hits are the exact ones."""
    rng = np.random.default_rng(0)
    documents = [
        Document(f"d{i}", " ".join(f"w{j}" for j in rng.integers(0, 400, 8)), lang="en") for i in range(3000)
    ]
    Index.build(tmp_path / "a", documents, embedder, engine=EngineConfig(exact_limit=500))
    Index.build(tmp_path / "b", documents, embedder)
    trained, exact = Index.open(tmp_path / "a", embedder), Index.open(tmp_path / "b", embedder)
    assert trained.manifest.segments[0].engine["type"] != "exact"
    query = "w1 w2 w3 w4"
    wanted = exact.search(query).hits
    assert [h.document_id for h in trained.search(query, effort=1.0).hits] == [h.document_id for h in wanted]
    assert trained.search(query, effort=SearchEffort(nprobe=4, refine=50)).hits
    with pytest.raises(InputError, match="recall is 2"):
        trained.search(query, effort=2.0)


def test_float32_vectors_are_kept_where_asked(tmp_path: Path, documents: Documents) -> None:
    """With dtype "float32" scores are exact to 1e-6; the manifest says what is stored; another dtype is refused."""
    embedder = HashEmbedder()
    Index.build(tmp_path / "i", documents, embedder, dtype="float32", chunking=ChunkConfig(context=False))
    index = Index.open(tmp_path / "i", embedder)
    assert index.manifest.dtype == "float32"
    matrix = embedder.encode_document([d.text for d in documents])
    hit = index.search("word1 word2", k=1).hits[0]
    assert hit.score == pytest.approx(
        float((matrix @ embedder.encode_query(["word1 word2"])[0]).max()), abs=1e-6
    )
    with pytest.raises(InputError, match="float16 or float32"):
        Index.build(tmp_path / "j", documents, embedder, dtype="int8")


def test_the_report_of_a_change_counts_the_whole_index(index: Index, documents: Documents) -> None:
    """Documents, chunks, tokens and languages are those of a fresh build of the same documents."""
    index.delete([f"d{i}" for i in range(30)])
    index.add([replace(documents[0], id="again"), Document("long", "word " * 300, lang="en")])
    fresh = index.directory.parent / "fresh"
    now = [*documents[30:], replace(documents[0], id="again"), Document("long", "word " * 300, lang="en")]
    Index.build(fresh, now, HashEmbedder())
    a, b = index.manifest, Manifest.read(fresh)
    for name in ("documents", "chunks", "tokens", "truncated_chunks", "coverage", "languages"):
        assert getattr(a, name) == getattr(b, name), name


def test_what_counts_is_never_rolled_back(
    index: Index, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trouble after the manifest's renaming, even to read it again, leaves the new version whole."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(durable, "drop_leftovers", fail)
    index.delete(["d0"])
    monkeypatch.setattr(Manifest, "read", fail)
    with pytest.raises(OSError, match="Too many"):
        index.delete(["d1"])
    monkeypatch.undo()
    Index.open(index.directory).verify()
    assert len(Index.open(index.directory)) in (198, 199)


def test_other_changes_leave_what_a_killed_one_embedded(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A deletion and an addition between a killed synchronisation and its next try cost it nothing."""
    first = [Document(f"d{i}", f"text number {i}", lang="en") for i in range(10)]
    Index.build(tmp_path / "i", first, embedder)
    many = [Document(f"n{i}", f"new text {i}", lang="en") for i in range(5000)]

    class Dying(CountingEmbedder):
        def _embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
            if self.texts > 4098:
                raise KeyboardInterrupt
            return super()._embed(texts)

    with pytest.raises(KeyboardInterrupt):
        Index.open(tmp_path / "i", Dying()).sync([*first, *many])
    index = Index.open(tmp_path / "i", embedder)
    index.delete(["d3"])
    index.add([Document("x", "something else", lang="en")])
    report = index.sync([*first, *many])
    assert (report.reused, report.embedded) == (4096 + 1, 904)
    assert not list((tmp_path / "i").glob("embedding-*"))


def test_a_group_does_not_mix_embedders_on_refresh(
    tmp_path: Path, embedder: CountingEmbedder, documents: Documents
) -> None:
    """Where one index of a group was migrated, `refresh` refuses, and the group goes on as it was."""
    for name in ("a", "b"):
        Index.build(tmp_path / name, [replace(d, id=name + d.id) for d in documents], embedder)
    group = open_indexes([tmp_path / "a", tmp_path / "b"], embedder)
    before = group.search("word1", k=20)
    Index.open(tmp_path / "b", embedder).migrate(HashEmbedder(weights="hash-2"))
    with pytest.raises(FingerprintError, match="cannot be compared"):
        group.refresh()
    assert group.search("word1", k=20) == before


def test_an_altered_vector_is_not_taken_over(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """A synchronisation that would copy vectors of a file that was altered is refused, naming the file."""
    path = next(index.directory.rglob("vectors.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    changed = [replace(d, metadata={"note": "x"}) for d in documents]
    with pytest.raises(CorruptIndexError, match=r"vectors\.arrow was altered"):
        Index.open(index.directory, embedder).sync(changed)


def test_blank_documents_make_no_segment(index: Index) -> None:
    """A document without text is no chunk, and leaves the index as it is."""
    report = index.upsert([Document("blank", "  \n", lang="en")])
    assert (report.chunks, len(index.manifest.segments)) == (200, 1)


def test_words_need_no_embedder(index: Index) -> None:
    """Mode "lexical" answers where the embedder is a program's own and was not passed."""
    alone = Index.open(index.directory)
    assert alone.search("word5", mode="lexical").hits == index.search("word5", mode="lexical").hits


def test_a_rebuilt_directory_is_another_version(
    index: Index, embedder: CountingEmbedder, documents: Documents
) -> None:
    """A reader notices that its directory was removed and built anew, though the numbers of the versions are equal."""
    reader = Index.open(index.directory, embedder)
    shutil.rmtree(index.directory)
    Index.build(index.directory, documents[:20], embedder)
    assert Index.open(index.directory).manifest.generation == reader.manifest.generation
    assert reader.refresh()
    assert len(reader) == 20


def test_many_small_batches_become_few(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """Compaction gathers the chunks of many small changes into a few batches."""
    Index.build(tmp_path / "i", [Document("first", "word", lang="en")], embedder)
    index = Index.open(tmp_path / "i", embedder)
    for n in range(10):
        index.add([Document(str(n), f"word{n}", lang="en")])
    index.compact()
    with pa.ipc.open_file(str(next(index.directory.rglob("chunks.arrow")))) as file:
        assert file.num_record_batches == 1


def test_a_wrong_engine_is_refused_before_the_work(
    tmp_path: Path, embedder: CountingEmbedder, documents: Documents
) -> None:
    """An unknown engine, by name or as a factory string, costs no embedding."""
    embedder.texts = 0
    with pytest.raises(UnknownNameError, match="ivf-rabitq"):
        EngineConfig("ivf_rabitq")
    with pytest.raises(InputError, match="FAISS cannot build the engine 'IVFnonsense'"):
        Index.build(tmp_path / "i", documents, embedder, engine=EngineConfig("IVFnonsense"))
    assert embedder.texts == 0


def test_a_damaged_export_is_refused(tmp_path: Path, index: Index) -> None:
    """A flipped bit in an exported file is found on the way in: one CorpusError, and no index."""
    path = tmp_path / "e.parquet"
    index.export(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(4, len(whole) - 4, 40):
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            Index.restore(tmp_path / "copy", path)
        except CorpusError:
            assert not (tmp_path / "copy").exists()
        else:
            copy = Index.open(tmp_path / "copy", HashEmbedder())
            assert copy.search("word1", k=500) == index.search("word1", k=500)
            shutil.rmtree(tmp_path / "copy")


def test_a_users_own_files_stay(tmp_path: Path, embedder: CountingEmbedder, documents: Documents) -> None:
    """What only looks like the index's own is neither taken for it nor removed; a place that holds it is refused."""
    place = tmp_path / "i"
    (place / "segment-2023").mkdir(parents=True)
    with pytest.raises(NotAnIndexError, match="segment-2023"):
        Index.build(place, documents, embedder)
    (place / "segment-2023").rmdir()
    Index.build(place, documents, embedder)
    for name in ("segment-mine", "embedding-notes.md", "deleted-items.csv", "draft.tmp"):
        (place / name).write_text("precious")
    index = Index.open(place, embedder)
    index.delete(["d1"])
    index.compact()
    assert {p.name for p in place.iterdir() if p.is_file() and p.read_bytes() == b"precious"} == {
        "segment-mine", "embedding-notes.md", "deleted-items.csv", "draft.tmp",
    }  # fmt: skip


def test_a_small_change_of_a_trained_index_is_exact(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """A factory string that cannot be trained on the rows of a small change does not block the index."""
    documents = [Document(f"d{i}", f"w{i} w{i % 50}", lang="en") for i in range(3000)]
    Index.build(tmp_path / "i", documents, embedder, engine=EngineConfig("IVF256,Flat"))
    index = Index.open(tmp_path / "i", embedder)
    index.add([Document(f"n{i}", f"v{i}", lang="en") for i in range(150)])
    assert [s.engine["type"] for s in index.manifest.segments] == ["IVF256,Flat", "exact"]
    assert index.search("v7", k=1).hits[0].document_id == "n7"
    with pytest.raises(InputError, match="refines by itself"):
        Index.build(tmp_path / "j", documents, embedder, engine=EngineConfig("IVF16,SQ8,RFlat"))


def test_repeated_texts_do_not_stop_a_graph(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """Three hundred equal texts among others: the graph is built, and finds what is not repeated."""
    documents = [Document(f"d{i}", f"w{i} v{i % 400}", lang="en") for i in range(1500)]
    documents += [Document(f"same{i}", "licence header", lang="en") for i in range(300)]
    Index.build(tmp_path / "i", documents, embedder, engine=EngineConfig("hnsw"))
    index = Index.open(tmp_path / "i", embedder)
    assert index.manifest.segments[0].engine["type"] == "hnsw"
    assert index.search("licence header", k=300).hits[299].score == pytest.approx(1, abs=2e-3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_searches_batches(tmp_path: Path) -> None:
    """After batches in the parent, a forked child answers several queries at once."""
    code = (
        "import os, sys\n"
        "from tests.indexes.conftest import HashEmbedder\n"
        "from embedkit_indexes import Document, Index\n"
        "e = HashEmbedder()\n"
        "Index.build(sys.argv[1], [Document(f'd{i}', f'w{i}', lang='en') for i in range(3000)], e)\n"
        "index = Index.open(sys.argv[1], e)\n"
        "index.search_many([f'w{i}' for i in range(64)])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    found = index.search_many([f'w{i}' for i in range(64)], k=1)\n"
        "    os._exit(0 if [r.hits[0].document_id for r in found] == [f'd{i}' for i in range(64)] else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i")],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "EMBEDKIT_THREADS": "2", "OMP_NUM_THREADS": "2"},
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0


def test_an_export_goes_elsewhere_than_into_the_index(index: Index) -> None:
    """A path inside the index's directory is refused: the manifest could be replaced by it."""
    with pytest.raises(InputError, match="inside the index"):
        index.export(index.directory / "embedkit.json", overwrite=True)


def test_half_a_surrogate_in_an_id_is_named(tmp_path: Path, embedder: CountingEmbedder) -> None:
    """Such an id, which no file takes, is refused with the document's number."""
    with pytest.raises(InputError, match="document 1 has half a surrogate"):
        Index.build(tmp_path / "i", [Document("a", "x"), Document("\ud800", "hello")], embedder)


def test_half_a_shard_goes_with_the_next_change(index: Index) -> None:
    """What a writer that died in the middle of a shard left does not keep the folder of shards."""
    index.add([Document("x", "text", lang="en")])
    made = VectorCache(index.directory, index.manifest.fingerprint, index.manifest.dim, "float16").folder
    made.mkdir()
    (made / "half.tmp").write_bytes(b"x")
    index.add([Document("y", "another text", lang="en")])
    assert not made.exists()
