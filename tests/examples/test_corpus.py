"""The sample corpus in examples/corpus is complete and consistent."""

import csv
import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
TASKS = ("qa", "duplicate", "paraphrase", "bitext", "topic", "code")
KINDS = {"passage", "question", "paraphrase", "sentence", "code", "remark"}
Record = dict[str, str]
Records = dict[str, Record]
Qrels = dict[str, dict[str, dict[str, int]]]
LANGUAGES = {"en", "zh", "es", "ar", "hi", "ru", "de", "fr", "ja", "sw", "th", "tr"}


def read_jsonl(name: str) -> list[Record]:
    """Return the records of a file of the corpus."""
    lines = (CORPUS / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def squeeze(text: str) -> str:
    """Return text without differences of space and case."""
    return " ".join(text.split()).casefold()


def table(heading: str) -> dict[str, dict[str, str]]:
    """Rows of the README's table whose first header cell is `heading`, by first cell."""
    rows: dict[str, dict[str, str]] = {}
    inside = False
    for line in (CORPUS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == heading:
            inside, names = True, cells
        elif inside and set(cells[0]) != {"-"}:
            rows[cells[0]] = dict(zip(names, cells, strict=False))
    return rows


@pytest.fixture(scope="module")
def docs() -> Records:
    """The documents by id."""
    return {doc["_id"]: doc for doc in read_jsonl("corpus.jsonl")}


@pytest.fixture(scope="module")
def queries() -> Records:
    """The queries by id."""
    return {query["_id"]: query for query in read_jsonl("queries.jsonl")}


@pytest.fixture(scope="module")
def qrels() -> Qrels:
    """qrels[task][query id] is a dict from document id to score."""
    result: Qrels = {}
    for task in TASKS:
        result[task] = defaultdict(dict)
        with (CORPUS / "qrels" / f"{task}.tsv").open(encoding="utf-8", newline="") as f:
            rows = list(csv.reader(f, delimiter="\t"))
        assert rows[0] == ["query-id", "corpus-id", "score"]
        for query_id, doc_id, score in rows[1:]:
            assert doc_id not in result[task][query_id], (task, query_id, doc_id)
            result[task][query_id][doc_id] = int(score)
    return result


def test_ids_are_unique(docs: Records, queries: Records) -> None:
    """No document id and no query id is used twice."""
    assert len(read_jsonl("corpus.jsonl")) == len(docs)
    assert len(read_jsonl("queries.jsonl")) == len(queries)
    assert not docs.keys() & queries.keys()


def test_fields(docs: Records, queries: Records) -> None:
    """Every line has exactly the documented fields, filled with text."""
    for doc in docs.values():
        assert set(doc) == {"_id", "title", "text", "lang", "kind", "topic"}
        assert all(isinstance(value, str) for value in doc.values())
        assert doc["kind"] in KINDS
        assert doc["text"].strip() == doc["text"] != ""
        assert doc["topic"] and doc["lang"]
        assert doc["title"] or doc["kind"] != "passage"
    for query in queries.values():
        assert set(query) == {"_id", "text", "lang"}
        assert query["text"].strip() == query["text"] != ""


def test_files_are_plain_utf8() -> None:
    """Letters are written as themselves, not as \\u escapes, and none is a replacement character."""
    for path in sorted(CORPUS.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            assert b"\r" not in raw and raw.endswith(b"\n"), path.name
            assert "\ufffd" not in raw.decode("utf-8"), path.name
            assert not re.search(rb"(?<!\\)\\u[0-9a-f]{4}", raw), path.name


def test_size(docs: Records, queries: Records) -> None:
    """There are about 300 documents and about 100 queries."""
    assert 290 <= len(docs) <= 330
    assert 80 <= len(queries) <= 110


def test_languages(docs: Records, queries: Records) -> None:
    """Twelve natural languages have ten documents or more, of all sorts, and four queries or more."""
    natural = Counter(d["lang"] for d in docs.values() if d["kind"] != "code")
    assert {lang for lang, n in natural.items() if n >= 10} >= LANGUAGES
    asked = Counter(query["lang"] for query in queries.values())
    for lang in LANGUAGES:
        assert asked[lang] >= 4, lang
        kinds = {d["kind"] for d in docs.values() if d["lang"] == lang}
        assert {"passage", "question"} <= kinds, lang
        assert kinds & {"sentence", "paraphrase"}, lang


def test_topics(docs: Records) -> None:
    """Every topic is a cluster of ten to twenty documents, and ten topics or more have code."""
    sizes = Counter(doc["topic"] for doc in docs.values())
    assert 20 <= len(sizes) <= 24
    assert all(10 <= n <= 20 for n in sizes.values()), sizes
    assert len({d["topic"] for d in docs.values() if d["kind"] == "code"}) >= 10


def test_qrels_point_at_what_exists(docs: Records, queries: Records, qrels: Qrels) -> None:
    """Every id in the qrels exists, and every score is 1 or 2."""
    for task in TASKS:
        assert qrels[task], task
        for query_id, relevant in qrels[task].items():
            assert query_id in queries
            assert relevant.keys() <= docs.keys()
            assert set(relevant.values()) <= {1, 2}


def test_every_query_is_judged(queries: Records, qrels: Qrels) -> None:
    """Every query has relevant documents, and at least 25 queries have three tasks or more."""
    tasks = {q: [t for t in TASKS if q in qrels[t]] for q in queries}
    assert all(tasks.values())
    assert sum(len(names) >= 3 for names in tasks.values()) >= 25


def test_every_document_is_relevant_for_something(docs: Records, qrels: Qrels) -> None:
    """No document is there for nothing: each is relevant to some query."""
    used = {d for task in TASKS for relevant in qrels[task].values() for d in relevant}
    assert used == docs.keys()


def test_tasks_want_different_documents(queries: Records, qrels: Qrels) -> None:
    """For one query, the documents of qa, duplicate, bitext and code are disjoint."""
    for query_id in queries:
        for one, two in combinations(("qa", "duplicate", "bitext", "code"), 2):
            assert not qrels[one].get(query_id, {}).keys() & qrels[two].get(query_id, {}).keys()


@pytest.mark.parametrize("task, same", [("bitext", False), ("duplicate", True), ("paraphrase", True)])
def test_language_of_relevant_documents(
    docs: Records, queries: Records, qrels: Qrels, task: str, same: bool
) -> None:
    """A translation is in another language than the query, a duplicate or paraphrase in the same."""
    for query_id, relevant in qrels[task].items():
        if task == "bitext":
            assert len({docs[d]["lang"] for d in relevant}) == len(relevant), query_id
        for d in relevant:
            assert (docs[d]["lang"] == queries[query_id]["lang"]) is same, (query_id, d)


def test_kind_of_relevant_documents(docs: Records, qrels: Qrels) -> None:
    """Each task asks for documents of the kinds that can serve it."""
    allowed = {
        "qa": {"passage"},
        "duplicate": {"question"},
        "paraphrase": {"paraphrase", "sentence"},
        "bitext": {"question", "sentence", "paraphrase"},
        "code": {"code"},
        "topic": KINDS,
    }
    for task, kinds in allowed.items():
        for relevant in qrels[task].values():
            assert {docs[d]["kind"] for d in relevant} <= kinds, task


def test_topic_is_the_cluster_without_translations(docs: Records, queries: Records, qrels: Qrels) -> None:
    """For the topic task, a query's cluster is relevant as a whole, except its translations."""
    for query_id in queries:
        bitext = qrels["bitext"].get(query_id, {}).keys()
        relevant = qrels["topic"][query_id].keys()
        topics = {docs[d]["topic"] for d in relevant | bitext}
        assert len(topics) == 1
        assert relevant == {d for d in docs if docs[d]["topic"] in topics} - bitext


def test_no_text_twice(docs: Records, queries: Records) -> None:
    """No two documents have the same text, nor do two queries, and no query is a document."""
    texts = [squeeze(doc["text"]) for doc in docs.values()]
    asked = [squeeze(query["text"]) for query in queries.values()]
    assert len(set(texts)) == len(texts)
    assert len(set(asked)) == len(asked)
    assert not set(texts) & set(asked)


def test_passages_are_short(docs: Records) -> None:
    """Documents are one line to about 120 words long; 900 characters is the limit."""
    assert max(len(doc["text"]) for doc in docs.values()) <= 900
    assert min(len(doc["text"]) for doc in docs.values()) <= 30


def test_python_code_compiles(docs: Records) -> None:
    """The Python documents are valid Python."""
    for doc in docs.values():
        if doc["lang"] == "python":
            assert compile(doc["text"], doc["_id"], "exec") is not None


def test_readme_counts(docs: Records, queries: Records, qrels: Qrels) -> None:
    """The numbers in the README are those of the files."""
    text = (CORPUS / "README.md").read_text(encoding="utf-8")
    topics = {doc["topic"] for doc in docs.values()}
    found = re.search(r"(\d+) short documents and (\d+) queries on (\d+) everyday", text)
    assert found is not None
    assert [int(n) for n in found.groups()] == [len(docs), len(queries), len(topics)]

    kinds = Counter(doc["kind"] for doc in docs.values())
    assert {k: int(row["documents"]) for k, row in table("kind").items()} == kinds

    languages = table("lang")
    assert {k: int(row["documents"]) for k, row in languages.items()} == Counter(
        doc["lang"] for doc in docs.values()
    )
    assert {k: int(row["queries"]) for k, row in languages.items() if row["queries"] != "0"} == Counter(
        query["lang"] for query in queries.values()
    )

    tasks = table("task")
    assert tuple(tasks) == TASKS
    for task, row in tasks.items():
        assert int(row["queries"]) == len(qrels[task])
        assert int(row["pairs"]) == sum(map(len, qrels[task].values()))
