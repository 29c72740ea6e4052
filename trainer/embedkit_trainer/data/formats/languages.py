"""Retrieval in many languages: MIRACL, Mr. TyDi, DuReader-retrieval, T2Ranking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from embedkit.errors import CorpusError
from embedkit.evaluation import read_qrels
from embedkit_trainer.data.formats import files
from embedkit_trainer.data.formats.judged import judge, judged_rows
from embedkit_trainer.data.formats.retrieval import corpus_lines, corpus_table, passage_lines
from embedkit_trainer.data.rows import Row

_HEADER = frozenset({"qid", "pid", "-", "query", "text", "passage", "rel", "index", "score"})
_VERSIONED = re.compile(r"v\d+\.\d+-([a-z]+)")


def miracl(path: Path) -> Iterator[Row]:
    """Read MIRACL: its repositories' files, or JSON lines with `positive_passages` and `negative_passages`.

    A folder with `topics…-xx-train.tsv` (qid, query), `qrels…-xx-train.tsv` (TREC) and the corpus `docs*.jsonl`
    (`docid`, `title`, `text`), for one language or for several side by side. Passages judged 0 are hard negatives.
    Ids get the language put before them, for the corpora count alike.
    """
    yield from _by_language(path, "*topics*train*.tsv", "*qrels*train*.tsv")


def mrtydi(path: Path) -> Iterator[Row]:
    """Read Mr. TyDi: `topic.train.tsv`, `qrels.train.txt` and `docs.jsonl` (`id`, `contents`), or JSON lines.

    As `miracl` otherwise: one language in the folder, or several (`mrtydi-v1.1-finnish/…`) side by side.
    """
    yield from _by_language(path, "topic*train*.tsv", "qrels*train*.txt")


def dureader(path: Path) -> Iterator[Row]:
    """Read DuReader-retrieval in one of three layouts.

    JSON lines with `query`, `positive_passages`, `negative_passages`; the organisers' JSON lines with `question`
    and `answer_paragraphs` (`paragraph_id`, `paragraph_text`), which hold no negatives; or the baseline's
    `dual.train.tsv` (query, title, positive, title, negative, 0).
    """
    for file in files.inputs(path, ".jsonl", ".json", ".tsv"):
        if files.plain_name(file).endswith(".tsv"):
            for line, cells in files.table(file, 5):
                positive, negative = (
                    files.titled(cells[1], cells[2]),
                    files.titled(cells[3], cells[4]),
                )
                if positive != negative:
                    yield Row(cells[0], positive, (negative,), negative_ids=(None,), line=line)
        elif _has_key(file, "answer_paragraphs"):
            yield from _paragraphs(file)
        else:
            yield from passage_lines(file)


def t2ranking(path: Path) -> Iterator[Row]:
    """Read T2Ranking's folder: `collection.tsv`, `queries.train.tsv`, and `qrels.train.tsv` in grades from 0 to 3.

    Grades 2 and 3 are positives and 0 is a hard negative; 1 is neither. Where there is only
    `qrels.retrieval.train.tsv` (qid, pid), all it names are positives. `train.mined.tsv` is not read: 200 million
    lines; mine with your own embedder instead (`embedkit mine`).
    """
    collection = files.need(path, "collection.tsv")
    queries = files.need(path, "queries.train.tsv")
    graded = files.find(path, "qrels.train.tsv")
    qrels: dict[str, dict[str, int]] = {}
    if graded is not None:
        qrels, relevant = read_qrels(graded), 2
    else:
        relevant = 1
        for _, cells in files.table(files.need(path, "qrels.retrieval.train.tsv"), 2, header=_HEADER):
            qrels.setdefault(cells[0], {})[cells[1]] = 1
    asked = ((line, cells[0], cells[1]) for line, cells in files.table(queries, 2, header=_HEADER))
    judged = judge(asked, qrels, relevant=relevant)
    yield from judged_rows(judged, corpus_table(collection, _HEADER), collection)


def _by_language(path: Path, topics: str, qrels: str) -> Iterator[Row]:
    """Read every language of a folder in turn; without topic files, JSON lines."""
    found = files.find_all(path, topics) if path.is_dir() else []
    if not found:
        for file in files.inputs(path, ".jsonl", ".parquet"):
            yield from passage_lines(file, _prefix(file))
        return
    for file in found:
        prefix = _prefix(file)
        judgements = [p for p in files.find_all(path, qrels) if _prefix(p) == prefix]
        corpus = [p for p in files.inputs(path, ".jsonl") if _prefix(p) == prefix]
        if not judgements or not corpus:
            lacks = "qrels" if not judgements else "corpus (docs*.jsonl)"
            raise CorpusError(str(file), f"there is no {lacks} of the same language in {path}")
        asked = ((line, cells[0], cells[1]) for line, cells in files.table(file, 2))
        yield from judged_rows(judge(asked, read_qrels(judgements[0])), corpus_lines(corpus), file, prefix)


def _prefix(file: Path) -> str:
    """Return `xx:` for a file whose path names a language behind the set's version, else nothing."""
    found = _VERSIONED.findall(file.as_posix())
    return f"{found[-1]}:" if found else ""


def _has_key(file: Path, key: str) -> bool:
    return next((key in record for _, record in files.records(file)), False)


def _paragraphs(file: Path) -> Iterator[Row]:
    for line, record in files.records(file):
        question = files.text_of(record, "question", file, line)
        for value in files.list_of(record, "answer_paragraphs", file, line):
            paragraph = files.as_object(value, file, line)
            text = files.text_of(paragraph, "paragraph_text", file, line)
            yield Row(
                question, text, positive_id=files.text_of(paragraph, "paragraph_id", file, line), line=line
            )
