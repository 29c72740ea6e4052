"""MS MARCO, BEIR folders, and the JSON lines in which Tevatron and many hubs publish retrieval sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError
from embedkit.evaluation import read_qrels
from embedkit_trainer.data.formats import files
from embedkit_trainer.data.formats.judged import JudgedQuery, judge, judged_rows
from embedkit_trainer.data.rows import Row

_MOST_NEGATIVES = 64
_TABLES = (".tsv", ".txt")


def msmarco(path: Path) -> Iterator[Row]:
    """Read MS MARCO's passages, in one of three layouts.

    A folder with `collection.tsv` (pid, passage), `queries.train.tsv` (qid, query) and `qrels.train.tsv`
    (qid, 0, pid, 1), where wanted beside `qidpidtriples*.tsv` (qid, positive pid, negative pid). Or a file
    `triples*.tsv` of three texts. Or JSON lines with `query`, `positive_passages`, `negative_passages`.
    """
    if path.is_dir() and files.find(path, "collection.tsv"):
        yield from _collection(path)
        return
    for file in files.inputs(path, ".jsonl", ".json", ".tsv"):
        yield from _triples(file) if files.plain_name(file).endswith(_TABLES) else passage_lines(file)


def msmarco_document(path: Path) -> Iterator[Row]:
    """Read a folder of MS MARCO's documents: `msmarco-docs.tsv` (docid, url, title, body), queries and qrels.

    The two are `msmarco-doctrain-queries.tsv` and `msmarco-doctrain-qrels.tsv`.
    """
    queries = files.need(path, "*doctrain-queries.tsv")
    judged = judge(_queries(queries), read_qrels(files.need(path, "*doctrain-qrels.tsv")))
    documents = files.need(path, "msmarco-docs.tsv")
    corpus = ((c[0], files.titled(c[2], c[3])) for _, c in files.table(documents, 4))
    yield from judged_rows(judged, corpus, documents)


def beir(path: Path) -> Iterator[Row]:
    """Read a BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/train.tsv`; grades of 0 and below are negatives."""
    queries = files.need(path, "queries.jsonl")
    qrels = read_qrels(files.need(path, "qrels/train.tsv", "train.tsv", "qrels.tsv"))
    corpus = files.need(path, "corpus.jsonl")
    asked = (
        (line, _identifier(r, queries, line), files.text_of(r, "text", queries, line))
        for line, r in files.records(queries)
    )
    yield from judged_rows(judge(asked, qrels), corpus_lines([corpus]), corpus)


def passages(path: Path) -> Iterator[Row]:
    """Read JSON lines with `query`, `positive_passages`, `negative_passages`: a file, a glob or a folder of them."""
    for file in files.inputs(path, ".jsonl", ".json", ".parquet"):
        yield from passage_lines(file)


def passage_lines(file: Path, prefix: str = "") -> Iterator[Row]:
    """Yield a row for each positive of each line; passages are `{"docid", "title", "text"}`, title optional."""
    for line, record in files.records(file):
        query = files.text_of(record, "query", file, line)
        positives = _passages(record, "positive_passages", file, line)
        negatives = _passages(record, "negative_passages", file, line)
        if not positives and "positive_passages" not in record:
            raise CorpusError(str(file), "has no 'positive_passages'", line)
        known = {identifier for identifier, _ in positives if identifier} | {text for _, text in positives}
        kept = [(i, text) for i, text in negatives if i not in known and text not in known]
        for identifier, text in positives:
            yield Row(
                query,
                text,
                tuple(t for _, t in kept),
                positive_id=prefix + identifier if identifier else None,
                negative_ids=tuple(prefix + i if i else None for i, _ in kept),
                line=line,
            )


def corpus_lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield (id, text under its title) of corpora as JSON lines: `docid`, `_id` or `id`; `text` or `contents`."""
    for file in paths:
        for line, record in files.records(file):
            key = "contents" if "text" not in record and "contents" in record else "text"
            text = files.text_of(record, key, file, line)
            if key == "contents":  # Pyserini's: the title, a blank line, the text
                text = text.replace("\n\n", "\n", 1)
            yield _identifier(record, file, line), files.titled(record.get("title"), text)


def corpus_table(file: Path, header: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of a two-column table."""
    return ((cells[0], cells[1]) for _, cells in files.table(file, 2, header=header))


def _collection(folder: Path) -> Iterator[Row]:
    collection = files.need(folder, "collection.tsv")
    triples = files.find(folder, "qidpidtriples*.tsv")
    texts = list(_queries(files.need(folder, "queries.train.tsv", "queries.tsv")))
    qrels = files.find(folder, "qrels.train.tsv", "qrels.tsv")
    if qrels is None and triples is None:
        raise CorpusError(str(folder), "holds neither qrels.train.tsv nor qidpidtriples*.tsv (.gz)")
    judged = judge(texts, read_qrels(qrels)) if qrels else []
    if triples:
        judged = _with_triples(triples, texts, judged)
    yield from judged_rows(judged, corpus_table(collection), collection)


def _with_triples(
    file: Path, texts: list[tuple[int, str, str]], judged: list[JudgedQuery]
) -> list[JudgedQuery]:
    """Add each query's negatives, a few dozen at most, and the positives that no judgement names."""
    answers: dict[str, dict[str, None]] = {}
    refused: dict[str, dict[str, None]] = {}
    for _, (query, positive, negative, *_) in files.table(file, 3):
        answers.setdefault(query, {})[positive] = None
        most = refused.setdefault(query, {})
        if len(most) < _MOST_NEGATIVES:
            most[negative] = None
    known = {query.line: query.positives for query in judged}
    both = []
    for line, identifier, text in texts:
        positives = tuple(dict.fromkeys((*known.get(line, ()), *answers.get(identifier, ()))))
        if positives:
            both.append(JudgedQuery(text, positives, tuple(refused.get(identifier, ())), line))
    return both


def _triples(file: Path) -> Iterator[Row]:
    def same(item: tuple[int, list[str]]) -> tuple[str, str]:
        return item[1][0], item[1][1]

    for (query, positive), run in groupby(files.table(file, 3), same):
        rows = list(run)
        if re.fullmatch(r"\d+", positive):
            raise CorpusError(
                str(file), "holds ids, not texts: give the folder with its collection.tsv and queries", rows[0][0]
            )  # fmt: skip
        negatives = tuple(dict.fromkeys(cells[2] for _, cells in rows))[:_MOST_NEGATIVES]
        yield Row(query, positive, negatives, negative_ids=(None,) * len(negatives), line=rows[0][0])


def _queries(file: Path) -> Iterator[tuple[int, str, str]]:
    return ((line, cells[0], cells[1]) for line, cells in files.table(file, 2))


def _identifier(record: files.Record, file: Path, line: int) -> str:
    key = next((k for k in ("_id", "docid", "id") if k in record), "_id")
    return files.text_of(record, key, file, line)


def _passages(record: files.Record, key: str, file: Path, line: int) -> list[tuple[str | None, str]]:
    found: list[tuple[str | None, str]] = []
    for value in files.list_of(record, key, file, line):
        passage: Any = {"text": value} if isinstance(value, str) else value
        item = files.as_object(passage, file, line)
        identifier = item.get("docid")
        text = files.titled(item.get("title"), files.text_of(item, "text", file, line))
        found.append((None if identifier is None else str(identifier), text))
    return found
