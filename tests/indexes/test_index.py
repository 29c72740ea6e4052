"""Build, open and search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from embedkit import Task, Template, get_embedder
from embedkit.errors import EmbedderError, FingerprintError, InputError, UnknownNameError
from embedkit_indexes import (
    ChunkConfig,
    Document,
    Index,
    ReadOptions,
    ReadReport,
    read_corpus,
)
from embedkit_indexes.planner import EngineConfig

from .conftest import HashEmbedder

Documents = list[Document]


def test_hits_are_the_nearest_chunks_by_plain_numpy(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A search returns the same documents and cosines, in the same order, as a NumPy product of all vectors."""
    Index.build(tmp_path / "i", documents, embedder, chunking=ChunkConfig(context=False))
    index = Index.open(tmp_path / "i", embedder)
    matrix = embedder.encode_document([d.text for d in documents])
    for query in ("word1 word2 word3", "word77"):
        scores = matrix @ embedder.encode_query([query])[0]
        best = np.argsort(-scores)[:7]
        hits = index.search(query, k=7).hits
        assert [h.document_id for h in hits] == [documents[i].id for i in best]
        assert [h.rank for h in hits] == list(range(1, 8))
        np.testing.assert_allclose([h.score for h in hits], scores[best], atol=1e-3)


def test_rows_come_back_as_they_went_in(tmp_path: Path, embedder: HashEmbedder, documents: Documents) -> None:
    """Title, text, language, source, place and metadata of a hit are those of its document."""
    Index.build(tmp_path / "i", documents, embedder)
    hit = Index.open(tmp_path / "i", embedder).search(documents[30].text, k=1).hits[0]
    d = documents[30]
    assert (hit.document_id, hit.title, hit.lang, hit.source) == (d.id, d.title, d.lang, d.source)
    assert dict(hit.metadata) == dict(d.metadata)
    assert d.text[hit.start : hit.end] == d.text
    assert hit.text.startswith(d.title)


def test_one_index_answers_tasks_differently(tmp_path: Path, embedder: HashEmbedder) -> None:
    """The documents are embedded once; another instruction alone changes what the same query finds."""
    texts = {"q": "how to boil an egg question", "a": "boil an egg answer", "c": "boil an egg code"}
    Index.build(tmp_path / "i", [Document(i, t) for i, t in texts.items()], embedder)
    index = Index.open(tmp_path / "i", embedder)
    calls = embedder.calls
    first = {
        task: index.search("boil an egg", instruction=task * 3, k=1).hits[0].document_id
        for task in ("answer ", "code ")
    }
    assert first == {"answer ": "a", "code ": "c"}
    # One call checks the probes, one encodes each query; no document is embedded again.
    assert embedder.calls == calls + 3


def test_the_result_records_what_was_encoded(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """`encoded` is the exact string, `task` and `instruction` what it was made from, `obeys` the truth."""
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    bare = index.search("word1")
    assert (bare.task, bare.instruction, bare.encoded, bare.obeys) == (None, None, "word1", True)
    task = index.search("word1", task="bitext")
    assert task.task == "bitext"
    assert task.encoded == f"Instruct: {task.instruction}\nQuery: word1"
    free = index.search("word1", instruction="Find {braces}")
    assert (free.task, free.encoded) == (None, "Instruct: Find {braces}\nQuery: word1")


def test_a_task_stored_with_the_index_comes_before_the_built_in_one(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """An index's own `qa` replaces the built-in one for that index; unknown names are answered with near ones."""
    Index.build(tmp_path / "i", documents, embedder, tasks={"qa": Task("qa", "Our own sentence")})
    index = Index.open(tmp_path / "i", embedder)
    assert index.search("word1", task="qa").instruction == "Our own sentence"
    with pytest.raises(UnknownNameError, match="did you mean .*duplicate"):
        index.search("word1", task="duplicat")


def test_search_many_equals_searching_one_by_one(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A batch gives each query the hits that it gets alone."""
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    queries = [f"word{i} word{i + 1}" for i in range(40)]
    together = index.search_many(queries, k=5)
    for query, result in zip(queries, together, strict=True):
        alone = index.search(query, k=5)
        assert [h.document_id for h in result.hits] == [h.document_id for h in alone.hits]
        np.testing.assert_allclose([h.score for h in result.hits], [h.score for h in alone.hits], atol=1e-6)


def test_more_than_there_is_gives_all_there_is(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """k beyond the corpus returns every chunk once."""
    Index.build(tmp_path / "i", documents[:5], embedder)
    hits = Index.open(tmp_path / "i", embedder).search("word1", k=10_000).hits
    assert sorted(h.document_id for h in hits) == [f"d{i}" for i in range(5)]


def test_bad_questions_are_refused(tmp_path: Path, embedder: HashEmbedder, documents: Documents) -> None:
    """An empty query, k below 1, two instructions and an absent language are each one InputError."""
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    with pytest.raises(InputError, match="query is empty"):
        index.search("  \n")
    with pytest.raises(InputError, match="query 2 is empty"):
        index.search_many(["word1", ""])
    with pytest.raises(InputError, match="k is 0"):
        index.search("word1", k=0)
    with pytest.raises(InputError, match="choose one"):
        index.search("word1", task="qa", instruction="x")
    with pytest.raises(UnknownNameError, match="unknown language 'fr'"):
        index.search("word1", lang="fr")


@pytest.mark.parametrize("exact_limit", [1000, 50])
def test_a_language_filter_never_starves(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, exact_limit: int
) -> None:
    """`lang` returns the nearest chunks of that language, k of them while there are k, on every engine."""
    engine = EngineConfig(exact_limit=exact_limit)
    Index.build(tmp_path / "i", documents, embedder, engine=engine, chunking=ChunkConfig(context=False))
    index = Index.open(tmp_path / "i", embedder)
    german = [d for d in documents if d.lang == "de"]
    assert len(german) == 10
    hits = index.search("word1 word2", k=10, lang="de").hits
    scores = embedder.encode_document([d.text for d in german]) @ embedder.encode_query(["word1 word2"])[0]
    assert [h.document_id for h in hits] == [german[i].id for i in np.argsort(-scores)]
    assert len(index.search("word1", k=25, lang="de").hits) == 10


def test_another_embedder_is_refused_with_both_fingerprints(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """Opening with other weights names both fingerprints and the way out, whatever the models are called."""
    Index.build(tmp_path / "i", documents, embedder)
    other = HashEmbedder(weights="hash-2")
    with pytest.raises(FingerprintError) as e:
        Index.open(tmp_path / "i", other)
    assert embedder.fingerprint in str(e.value)
    assert other.fingerprint in str(e.value)
    assert "rebuild" in str(e.value)


def test_the_same_weights_run_wrongly_are_found_out(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """An embedder with the right fingerprint whose vectors differ fails the probe check on the first search."""

    class Broken(HashEmbedder):
        def _one(self, text: str) -> np.ndarray:
            return super()._one(text[::-1])

    Index.build(tmp_path / "i", documents, embedder)
    with pytest.raises(EmbedderError, match="probe texts"):
        Index.open(tmp_path / "i", Broken()).search("word1")


def test_an_index_reopens_its_own_embedder(tmp_path: Path) -> None:
    """An index built by name opens that embedder itself, and stores the bundled model's full name."""
    Index.build(
        tmp_path / "i", [Document("a", "Tides come twice a day."), Document("b", "Bread needs salt.")]
    )
    index = Index.open(tmp_path / "i")
    assert index.manifest.spec == "openvino:embedkit-small-v1"
    assert index.search("the sea rises and falls", k=1).hits[0].document_id == "a"
    assert index.embedder.fingerprint == get_embedder("bundled").fingerprint


def test_an_index_of_a_programs_own_embedder_says_how_to_open_it(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """Without a stored name, a search without the embedder explains what to pass."""
    Index.build(tmp_path / "i", documents, embedder)
    with pytest.raises(InputError, match=r"Index.open\(directory, embedder\)"):
        Index.open(tmp_path / "i").search("word1")


def test_secrets_are_not_stored(tmp_path: Path, embedder: HashEmbedder, documents: Documents) -> None:
    """An embedder's API key never reaches the index's files; its other options do."""
    options = {"api_key": "sk-very-secret", "base_url": "https://me:very-secret@host/v1", "dim": 32}
    Index.build(tmp_path / "i", documents, embedder, embedder_spec="openai:x", embedder_options=options)
    stored = b"".join(p.read_bytes() for p in (tmp_path / "i").rglob("*") if p.is_file())
    assert b"very-secret" not in stored
    assert Index.open(tmp_path / "i").manifest.options == {"base_url": "https://host/v1", "dim": 32}


def test_options_of_the_embedder_come_back(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template is stored and opens the index again, an adapter's path is absolute, what is no plain value is refused early."""
    words = tmp_path / "words.txt"
    words.write_text("moon 1 0\nsea 0 1\n")
    template = Template(document="sea {text}")
    Index.build(tmp_path / "t", [Document("a", "moon")], str(words), embedder_options={"template": template})
    index = Index.open(tmp_path / "t")
    assert index.search("moon").hits[0].score == pytest.approx(0.5**0.5, abs=1e-3)
    assert index.embedder.info.template == template
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    options: dict[str, object] = {"adapter": "./lora"}
    Index.build("a", documents, embedder, embedder_spec="transformer:x", embedder_options=options)
    assert Index.open("a").manifest.options == {"adapter": str(tmp_path.resolve() / "lora")}
    calls = embedder.calls
    with pytest.raises(InputError, match="option limit is .*cannot store"):
        Index.build("b", documents, embedder, embedder_options={"limit": np.int64(5)})
    assert (embedder.calls, (tmp_path / "b").exists()) == (calls, False)


def test_an_index_does_not_ask_for_the_machine_that_built_it(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """Device and token budget are not stored: what was built on four GPUs opens where there is none."""
    options = {"device": ["cuda:0", "cuda:1"], "token_budget": 16384, "dtype": "float32"}
    Index.build(tmp_path / "i", documents, embedder, embedder_spec="transformer:x", embedder_options=options)
    assert Index.open(tmp_path / "i").manifest.options == {"dtype": "float32"}


def test_documents_are_streamed(tmp_path: Path, embedder: HashEmbedder) -> None:
    """No more than a few windows of documents are alive at once, however long the corpus."""
    alive: set[int] = set()
    most = 0

    class Counted(str):
        number: int

        def __del__(self) -> None:
            alive.discard(self.number)

    def stream() -> Iterator[Document]:
        nonlocal most
        for i in range(12_000):
            text = Counted(f"word{i} word{i % 7}")
            text.number = i
            alive.add(i)
            most = max(most, len(alive))
            yield Document(f"d{i}", text, lang="en")
            del text

    report = Index.build(tmp_path / "i", stream(), embedder)
    assert report.documents == 12_000
    assert most < 6_000


def test_texts_the_embedder_knows_nothing_of_are_counted(tmp_path: Path) -> None:
    """A zero vector is stored, counted in the report, and never ranks above a real hit."""

    class Partial(HashEmbedder):
        def _one(self, text: str) -> np.ndarray:
            return super()._one(text) * ("known" in text)

    embedder = Partial()
    documents = [Document("a", "known words"), Document("b", "nothing here")]
    report = Index.build(tmp_path / "i", documents, embedder)
    assert report.blank_vectors == 1
    hits = Index.open(tmp_path / "i", embedder).search("known words", k=2).hits
    assert [(h.document_id, round(h.score, 3)) for h in hits] == [("a", 1.0), ("b", 0.0)]


def test_explain_tells_the_string_its_tokens_and_the_plan(tmp_path: Path) -> None:
    """`explain` shows the exact string, the tokens that the model sees, and how many vectors are scanned."""
    Index.build(
        tmp_path / "i", [Document("a", "Tides come twice a day."), Document("b", "Bread needs salt.")]
    )
    told = Index.open(tmp_path / "i").explain("tides?", task="qa", k=5)
    assert told["encoded"].endswith("\nQuery: tides?")
    assert (told["tokens"][0], told["tokens"][-1]) == ("[CLS]", "[SEP]")
    assert told["token_count"] == len(told["tokens"])
    assert told["plan"]["engine"] == "exact"
    assert told["plan"]["scanned"] == 2
    assert told["obeys"] is True


def test_explain_and_search_name_the_task_that_holds(tmp_path: Path, documents: Documents) -> None:
    """Without a task, both name the embedder's default one; with an instruction in words, none."""
    embedder = HashEmbedder()
    embedder.info = replace(embedder.info, default_task="search")
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    for words, task in ((None, "search"), ("Find the recipe", None)):
        result = index.search("word1", instruction=words)
        told = index.explain("word1", instruction=words)
        assert (result.task, result.instruction) == (told["task"], told["instruction"])
        assert result.task == task


def test_an_index_inside_a_corpus_is_no_document(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """A folder that holds an index beside its documents can be indexed again: the index is reported, not read."""
    (tmp_path / "a.txt").write_text("Tides come twice a day.")
    Index.build(tmp_path / "index", documents, embedder)
    report = ReadReport()
    read = list(read_corpus([tmp_path], ReadOptions(strict=True), report))
    assert [d.id for d in read] == ["a.txt"]
    assert dict(report.reasons) == {"an index": 1}


def test_ranks_are_the_hits_without_their_rows(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """`rank` gives the same document ids and scores as `search_many`, and each document's language is told."""
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    queries = ["word1 word2", "word9"]
    hits = [[(h.document_id, h.score) for h in r.hits] for r in index.search_many(queries, k=30, lang="en")]
    assert index.rank(queries, k=30, lang="en") == hits
    assert index.document_languages() == {d.id: d.lang for d in documents}


def test_the_language_of_documents_from_a_program_is_detected(tmp_path: Path, embedder: HashEmbedder) -> None:
    """A Document without a language gets one, in counts, filters and hits alike; digits alone get `und`."""
    texts = [
        "Der Mond zieht das Meer zweimal am Tag an sich heran.",
        "月球的引力使海水每天涨落两次。",
        "12 34",
    ]
    Index.build(tmp_path / "i", [Document(str(i), t) for i, t in enumerate(texts)], embedder)
    index = Index.open(tmp_path / "i", embedder)
    assert dict(index.manifest.languages) == {"de": 1, "und": 1, "zh": 1}
    for lang, text in (("de", "0"), ("zh", "1"), ("und", "2")):
        assert [(h.document_id, h.lang) for h in index.search("12", lang=lang).hits] == [(text, lang)]


def test_coverage_and_truncation_are_reported(tmp_path: Path, embedder: HashEmbedder) -> None:
    """The report and the manifest say that every character lies in a chunk, and what was cut off where it was not split."""
    texts = [Document("long", "word " * 500, lang="en"), Document("short", "word", lang="en")]
    whole = Index.build(tmp_path / "a", texts, embedder)
    assert (whole.coverage, whole.truncated_tokens) == (1.0, 0)
    cut = Index.build(tmp_path / "b", texts, embedder, chunking=ChunkConfig(split=False))
    assert (cut.chunks, cut.truncated_chunks) == (2, 1)
    assert cut.truncated_tokens > 400
    assert Index.open(tmp_path / "b").manifest.truncated_tokens == cut.truncated_tokens


def test_a_strangers_index_is_not_trusted(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index can neither let a model's own code run, nor send the API key to an address of its choice."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("EMBEDKIT_TRUST_REMOTE_CODE", raising=False)
    for name, spec, options, match in (
        ("a", "openai:x", {"base_url": "https://elsewhere.example/v1", "dim": 32}, "OPENAI_BASE_URL"),
        ("b", "transformer:org/model", {"trust_remote_code": True}, "EMBEDKIT_TRUST_REMOTE_CODE=1"),
    ):
        Index.build(tmp_path / name, documents, embedder, embedder_spec=spec, embedder_options=options)
        with pytest.raises(InputError, match=match):
            Index.open(tmp_path / name).search("word1")


def test_a_query_beyond_the_embedders_length_is_counted(tmp_path: Path) -> None:
    """`truncated` tells how many of a query's tokens the embedder does not see."""
    Index.build(tmp_path / "i", [Document("a", "Tides come twice a day.", lang="en")])
    index = Index.open(tmp_path / "i")
    assert index.search("tide").truncated == 0
    assert index.search("tide " * 300).truncated == 302 - 256


def test_first_searches_from_many_threads_open_one_embedder(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads that search a freshly opened index open its embedder once and agree."""
    Index.build(tmp_path / "i", documents, embedder, embedder_spec="hash:x")
    opened: list[str] = []

    def reopen(spec: str, options: object) -> HashEmbedder:
        del options
        opened.append(spec)
        time.sleep(0.1)
        return HashEmbedder()

    monkeypatch.setattr("embedkit_indexes.reader.reopen_embedder", reopen)
    index = Index.open(tmp_path / "i")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: index.search("word1 word2", k=3), range(8)))
    assert opened == ["hash:x"]
    assert all(result == found[0] for result in found)


@pytest.mark.parametrize("query", [None, 5, ["x"], b"x"])
def test_a_query_that_is_no_text_is_refused(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents, query: object
) -> None:
    """A query of another type is an InputError that names the type."""
    Index.build(tmp_path / "i", documents, embedder)
    with pytest.raises(InputError, match=f"query is {type(query).__name__}, not str"):
        Index.open(tmp_path / "i", embedder).search(query)  # type: ignore[arg-type]


def test_k_is_any_whole_number(tmp_path: Path, embedder: HashEmbedder, documents: Documents) -> None:
    """NumPy's integers count like Python's; fractions and text are refused. An iterator of queries is a list."""
    Index.build(tmp_path / "i", documents, embedder)
    index = Index.open(tmp_path / "i", embedder)
    assert len(index.search("word1", k=np.int64(2)).hits) == 2  # type: ignore[arg-type]
    assert len(index.search_many(iter(["word1", "word2"]))) == 2  # type: ignore[arg-type]
    for k in (2.5, "3", None):
        with pytest.raises(InputError, match="give a whole number"):
            index.search("word1", k=k)  # type: ignore[arg-type]


def test_metadata_of_a_program_is_stored_as_json(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Dates, NumPy values, NaN and broken text in a document's metadata are stored as a reader would store them."""
    metadata = {
        "day": date(2020, 1, 2),
        "n": np.float32(1.5),
        "a": np.arange(2),
        "nan": float("nan"),
        "s": "\ud800",
    }
    Index.build(tmp_path / "i", [Document("1", "word1", metadata=metadata)], embedder)
    hit = Index.open(tmp_path / "i", embedder).search("word1").hits[0]
    assert hit.metadata == {"day": "2020-01-02", "n": 1.5, "a": [0, 1], "nan": None, "s": "\ufffd"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": "1", "text": "x"}, "document 1 is dict: make it a Document"),
        (Document(5, "x"), "document 1 has int as its id, not str"),  # type: ignore[arg-type]
        (Document("1", None), "document 1 has NoneType as its text"),  # type: ignore[arg-type]
        (Document("1", "x", metadata=5), "document 1 has int as its metadata, not Mapping"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_document_is_named(
    tmp_path: Path, embedder: HashEmbedder, document: Document, message: str
) -> None:
    """A document of another type, or with a field of another type, is an InputError with its number."""
    with pytest.raises(InputError, match=message):
        Index.build(tmp_path / "i", [Document("0", "fine"), document], embedder)
    assert not (tmp_path / "i" / "embedkit.json").exists()


def test_duplicate_ids_from_a_program_are_refused(tmp_path: Path, embedder: HashEmbedder) -> None:
    """Two Documents with one id are refused with the id, and nothing is stored."""
    with pytest.raises(InputError, match="document 2 has the id 'a' of an earlier one"):
        Index.build(tmp_path / "i", [Document("a", "x"), Document("b", "y"), Document("a", "z")], embedder)
    assert not (tmp_path / "i").exists()


def test_a_name_in_place_of_an_embedder_is_refused(
    tmp_path: Path, embedder: HashEmbedder, documents: Documents
) -> None:
    """`Index.open(directory, "bundled")` says what to pass."""
    Index.build(tmp_path / "i", documents, embedder)
    with pytest.raises(InputError, match="get_embedder"):
        Index.open(tmp_path / "i", "bundled")  # type: ignore[arg-type]
