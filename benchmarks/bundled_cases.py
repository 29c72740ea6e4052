"""Read what `bundled.py` measures: one case is documents, queries and judgements in one pair of languages."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from embedkit.evaluation import (
    Query,
    find_file,
    is_query_itself,
    read_qrels,
    read_queries,
    restrict_qrels,
    sample,
)
from embedkit.evaluation.lines import read_lines

TRAINING_SETS = ("jaquad", "drcd", "iapp_th", "arcd", "norquad", "medquad")


@dataclass(frozen=True)
class Case:
    """Documents in the order of their ids, queries, and for each query grades by the document's position.

    `itself` is the position of the document that is the query itself, None where there is none.
    """

    name: str
    documents: list[str]
    queries: list[str]
    grades: list[dict[int, int]]
    itself: list[int | None]
    instruction: str


@dataclass(frozen=True)
class Source:
    """The data folder, and how many queries of a case are asked (None: all)."""

    data: Path
    count: int | None = None
    seed: int = 0

    def case(
        self,
        name: str,
        folder: str,
        query_lang: str | None = None,
        doc_lang: str | None = None,
        qrels: str = "qrels",
    ) -> Case:
        """Read one case of `eval/folder`, restricted to these languages."""
        place = self.data / "eval" / folder
        corpus = [d for d in _corpus(place) if doc_lang is None or d["lang"] == doc_lang]
        position = {d["_id"]: i for i, d in enumerate(corpus)}
        judged = _judged(place, qrels, tuple(position))
        asked = [
            q for q in _queries(place) if q.id in judged and (query_lang is None or q.lang == query_lang)
        ]
        chosen = sample(asked, self.count, self.seed)
        if not chosen:
            raise ValueError(f"{place} has no judged query for {query_lang} -> {doc_lang}: check the data")
        grades = [{position[d]: g for d, g in judged[q.id].items()} for q in chosen]
        key = folder if qrels == "qrels" else f"{folder}/{qrels}"
        return Case(
            name,
            [f"{d['title']}\n\n{d['text']}" if d.get("title") else d["text"] for d in corpus],
            [q.text for q in chosen],
            grades,
            [_itself(q.id, position, g) for q, g in zip(chosen, grades, strict=True)],
            self.instructions("eval_sets")[key],
        )

    def training_case(self, name: str, count: int = 200) -> Case:
        """Make a small retrieval set of training questions and the distinct passages that answer them."""
        place = self.data / "train" / name
        plain = place / "pairs.jsonl"
        path = plain if plain.is_file() else place / "pairs.jsonl.xz"
        rows = [json.loads(line) for _, line in read_lines(path) if line.strip()]
        by_question: dict[str, list[str]] = {}
        for row in rows:
            by_question.setdefault(row["query"], []).append(row["positive"])
        questions = sorted(by_question)
        chosen = random.Random(self.seed).sample(questions, min(count, len(questions)))
        documents = sorted({p for q in chosen for p in by_question[q]})
        position = {d: i for i, d in enumerate(documents)}
        return Case(
            f"train/{name}",
            documents,
            chosen,
            [{position[p]: 1 for p in by_question[q]} for q in chosen],
            [None] * len(chosen),
            self.instructions("train_tasks")[rows[0]["task"]][0],
        )

    def instructions(self, part: str) -> Any:
        """Return a part of INSTRUCTIONS.json."""
        return json.loads((self.data / "INSTRUCTIONS.json").read_text(encoding="utf-8"))[part]


def _itself(query: str, position: dict[str, int], grades: dict[int, int]) -> int | None:
    for document in (query, query.removeprefix("q-")):
        place = position.get(document)
        if place is not None and is_query_itself(query, document) and grades.get(place, 0) < 1:
            return place
    return None


@cache
def _judged(place: Path, qrels: str, documents: tuple[str, ...]) -> dict[str, dict[str, int]]:
    return restrict_qrels(_qrels(place, qrels), documents)


@cache
def _qrels(place: Path, qrels: str) -> dict[str, dict[str, int]]:
    return read_qrels(_found(place, f"{qrels}.tsv"))


@cache
def _queries(place: Path) -> list[Query]:
    return read_queries(_found(place, "queries.jsonl"))


@cache
def _corpus(place: Path) -> list[dict[str, str]]:
    return sorted(_records(place), key=lambda d: d["_id"])


def _records(place: Path) -> Iterator[dict[str, str]]:
    for _, line in read_lines(_found(place, "corpus.jsonl")):
        if line.strip():
            yield json.loads(line)


def _found(place: Path, stem: str) -> Path:
    path = find_file(place, stem)
    if path is None:
        raise FileNotFoundError(f"{place} holds neither {stem} nor {stem}.gz: EMBEDKIT_DATA is incomplete")
    return path
