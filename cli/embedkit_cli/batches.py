"""Many queries at once: search them task by task, print them in the file's order, rank whole documents."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from embedkit.errors import InputError
from embedkit.evaluation import Qrels, Query, rank_documents, read_queries
from embedkit_cli.output import json_text, note, untrained_note
from embedkit_cli.progress import Meter
from embedkit_cli.search_options import How

if TYPE_CHECKING:
    from embedkit.tasks import Task
    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes.reader import IndexReader

_BATCH = 256
_TREC_TAG = "embedkit"


@dataclass(frozen=True, slots=True)
class Asking:
    """How queries are asked: under which task or instruction, for how many hits, in which language, by which search."""

    task: Task | None = None
    instruction: str | None = None
    k: int = 10
    lang: str | None = None
    how: How = field(default_factory=How)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Index.search_many` and `rank`, `k` apart."""
        return {"task": self.task, "instruction": self.instruction, "lang": self.lang, **self.how.arguments}

    def ignored_by(self, index: IndexReader) -> bool:
        """Tell whether an instruction goes to an embedder that did not learn to obey any."""
        if self.how.mode == "lexical":
            return False
        embedder = index.embedder
        sentence = embedder.instruction_for(self.task, self.instruction)
        return sentence is not None and not embedder.info.instruction_trained


def run_queries(index: IndexReader, book: TaskBook, path: str, asking: Asking, form: str) -> None:
    """Search every query of a file and print hits as JSON lines, or documents as a TREC run.

    Where `asking` names neither task nor instruction, each query's own task holds.
    """
    if path == "-" and sys.stdin is None:
        raise InputError("standard input '-' is closed: pipe the queries in, or name a file")
    queries = read_queries(path, sys.stdin if path == "-" else None)
    free = asking.task is None and asking.instruction is None
    own = {q.task for q in queries if free and q.task is not None}
    tasks = {
        name: book.find(name) for name in sorted(own)
    }  # an unknown name fails before anything is printed
    told = False
    with Meter("queries") as meter:
        meter.expect(len(queries))
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            lines: dict[str, str] = {}
            for task in dict.fromkeys(tasks.get(q.task or "", asking.task) for q in batch):
                asked = [q for q in batch if tasks.get(q.task or "", asking.task) == task]
                under = replace(asking, task=task)
                lines.update((_trec if form == "trec" else _jsonl)(index, asked, under))
                if not told and under.ignored_by(index):
                    told = True
                    note(untrained_note(index.embedder.info.name))
            for query in batch:
                click.echo(lines[query.id], nl=False)
            meter.update("searching", start + len(batch))


def document_ranking(
    index: IndexReader, queries: Sequence[Query], asking: Asking, qrels: Qrels | None = None
) -> list[list[tuple[str, float]]]:
    """Return each query's best `asking.k` documents (id, score).

    With `qrels`, the document that is the query itself is left out, see `rank_documents`.
    Chunks are asked for until every query has that many documents or none is left.
    """
    k = asking.k
    chunks, documents = index.manifest.chunks, max(1, index.manifest.documents)
    depth = min(k + 2 if chunks <= documents else 2 * (k + 2) * chunks // documents, chunks)
    rankings: list[list[tuple[str, float]]] = [[] for _ in queries]
    pending = list(range(len(queries)))
    while pending:
        texts = [queries[i].text for i in pending]
        found = index.rank(texts, k=max(1, depth), **asking.arguments)
        short = []
        for i, chunks_found in zip(pending, found, strict=True):
            name = queries[i].id
            ranking = (
                rank_documents(chunks_found)
                if qrels is None
                else rank_documents(chunks_found, name, qrels.get(name))
            )
            rankings[i] = ranking[:k]
            if len(ranking) < k and len(chunks_found) >= depth and depth < chunks:
                short.append(i)
        pending, depth = short, min(depth * 4, chunks)
    return rankings


def _jsonl(index: IndexReader, queries: Sequence[Query], asking: Asking) -> dict[str, str]:
    texts = [q.text for q in queries]
    found = index.search_many(texts, k=asking.k, **asking.arguments)
    records = ({"_id": q.id, **r.to_dict()} for q, r in zip(queries, found, strict=True))
    return {record["_id"]: json_text(record, indent=None) + "\n" for record in records}


def _trec(index: IndexReader, queries: Sequence[Query], asking: Asking) -> dict[str, str]:
    rankings = document_ranking(index, queries, asking)
    return {
        query.id: "".join(
            f"{_column(query.id)} Q0 {_column(document_id)} {rank} {score:.6f} {_TREC_TAG}\n"
            for rank, (document_id, score) in enumerate(ranking, 1)
        )
        for query, ranking in zip(queries, rankings, strict=True)
    }


def _column(identifier: str) -> str:
    """Return an id without white space, which separates the columns of a TREC run: `my%20file.txt`."""
    return re.sub(r"\s", lambda found: quote(found[0]), identifier)
