"""Measure rankings: BEIR queries and relevance judgements in, nDCG@10, Recall@k and MRR@10 out.

The measures come from trec_eval by way of pytrec_eval-terrier (extra [eval]).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from embedkit.errors import CorpusError, InputError, MissingExtraError
from embedkit.evaluation.lines import read_lines, required_text

Qrels = Mapping[str, Mapping[str, int]]
_CUTOFF = 10
_SPLITS = ("test", "dev", "validation", "train")
T = TypeVar("T")

_LARGEST_SCORE = 1_000_000  # trec_eval counts judgements by score in an array of that length


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a queries file; `task` names the task it is asked under, where the file says so."""

    id: str
    text: str
    lang: str | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class QueryMeasures:
    """The measures of one query, each 0..1, higher is better; `recall` is taken at the evaluation's depth."""

    ndcg: float
    recall: float
    mrr: float


@dataclass(frozen=True, slots=True)
class Measures:
    """The mean of `queries` queries' measures: nDCG@10 and MRR@10, and recall at `depth`."""

    queries: int
    ndcg: float
    recall: float
    mrr: float
    depth: int = 100

    def to_dict(self) -> dict[str, float | int]:
        """Return plain JSON values under the field's names (`nDCG@10`, …)."""
        return {
            "queries": self.queries,
            f"nDCG@{_CUTOFF}": self.ndcg,
            f"Recall@{self.depth}": self.recall,
            f"MRR@{_CUTOFF}": self.mrr,
        }


def read_queries(path: str | Path, stream: TextIO | None = None) -> list[Query]:
    """Read queries: JSON lines with `_id` and `text` (and `lang`, `task`), or one plain query a line.

    A line that begins with `{` makes the file JSON lines. Plain queries get their line number as id.
    `stream` is read in place of the file where it is given. Raises CorpusError with the line.
    """
    queries: list[Query] = []
    seen: set[str] = set()
    as_json: bool | None = None
    for number, line in read_lines(path, stream):
        if not line.strip():
            continue
        if as_json is None:
            as_json = line.lstrip().startswith("{")
        query = _json_query(str(path), number, line) if as_json else Query(str(number), line.strip())
        if query.id in seen:
            raise CorpusError(str(path), f"the query id {query.id!r} is used twice: make it unique", number)
        seen.add(query.id)
        queries.append(query)
    if not queries:
        raise CorpusError(str(path), "holds no query: write one a line")
    return queries


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read relevance judgements, compressed or not: query id -> document id -> grade.

    Takes BEIR's three columns (with or without a header) and TREC's four. Raises CorpusError with the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and not _is_int(cells[-1])):
            continue
        if len(cells) == 4:
            del cells[1]
        if len(cells) != 3 or not _is_int(cells[2]):
            raise CorpusError(str(path), "needs query-id, corpus-id and a whole-number score", number)
        if abs(int(cells[2])) > _LARGEST_SCORE:
            raise CorpusError(str(path), f"score {cells[2]} is beyond {_LARGEST_SCORE:,}", number)
        qrels.setdefault(cells[0], {})[cells[1]] = int(cells[2])
    if not qrels:
        raise CorpusError(str(path), "holds no relevance judgement")
    return qrels


def find_file(folder: Path, stem: str) -> Path | None:
    """Return `stem` in `folder`, or its gzip, or None."""
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def find_qrels(source: Path) -> dict[str | None, Path]:
    """Find the judgements of a BEIR folder (or a qrels file or folder) by task; None is "no task named".

    Knows `qrels.tsv`, `qrels/test.tsv` (else dev, validation, train), `qrels/TASK.tsv`, `qrels_TASK.tsv`,
    each also as `.gz`. Raises CorpusError where there is none.
    """
    if source.is_file():
        return {None: source}
    here = _tables(source)
    named: dict[str | None, Path] = {
        name.removeprefix("qrels_"): file for name, file in here.items() if name.startswith("qrels_")
    }
    if "qrels" in here:
        named[None] = here["qrels"]
    found = _tables(source / "qrels") or ({} if named else here)
    named.update({name: file for name, file in found.items() if name not in _SPLITS})
    split = next((found[s] for s in _SPLITS if s in found), None)
    if split is not None:
        named.setdefault(None, split)
    if not named:
        raise CorpusError(str(source), "holds no qrels: expected qrels.tsv, qrels/test.tsv or qrels_TASK.tsv")
    return named


def is_query_itself(query_id: str, document_id: str) -> bool:
    """Tell whether a document is the query itself: the same id, or the query's without its `q-`."""
    return query_id in (document_id, f"q-{document_id}")


def rank_documents(
    chunks: Iterable[tuple[str, float]], query_id: str | None = None, grades: Mapping[str, int] | None = None
) -> list[tuple[str, float]]:
    """Turn chunk hits (document id, score) into a document ranking: each document at its best chunk's score.

    Equal scores are ordered by id, so that a ranking never depends on the order of the chunks. Where `query_id`
    is given, the document that is the query itself is left out, unless `grades` call it relevant: then the
    ids only happen to be alike.
    """
    best: dict[str, float] = {}
    for document_id, score in chunks:
        alike = query_id is not None and is_query_itself(query_id, document_id)
        if alike and (grades or {}).get(document_id, 0) < 1:
            continue
        if score > best.get(document_id, float("-inf")):
            best[document_id] = score
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))


def restrict_qrels(qrels: Qrels, documents: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return the judgements of these documents alone, without the queries that have no relevant one left."""
    keep = set(documents)
    reduced = {q: {d: g for d, g in grades.items() if d in keep} for q, grades in qrels.items()}
    return {q: grades for q, grades in reduced.items() if any(g > 0 for g in grades.values())}


def sample(items: Sequence[T], count: int | None, seed: int = 0) -> list[T]:
    """Return `count` items in their order, the same ones for the same seed; all where `count` is None."""
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise InputError(f"a sample of {count} is too small: give 1 or more")
    chosen = random.Random(seed).sample(range(len(items)), count)
    return [items[i] for i in sorted(chosen)]


def measure(
    qrels: Qrels, rankings: Mapping[str, Sequence[str]], depth: int = 100
) -> dict[str, QueryMeasures]:
    """Measure rankings (query id -> document ids, best first) against judgements, query by query.

    Queries without a relevant document are left out; a query without a ranking counts as 0 (trec_eval
    would leave it out and flatter the mean). Grades below 1 are not relevant; nDCG's gain is the grade.
    Ranks go into trec_eval, not scores: it would break ties by descending id. Raises MissingExtraError.
    """
    try:
        from pytrec_eval import RelevanceEvaluator
    except ImportError as e:
        raise MissingExtraError("evaluation", "eval") from e
    if depth < _CUTOFF:
        raise InputError(f"the depth {depth} is below {_CUTOFF}, which nDCG@{_CUTOFF} needs: raise it")
    judged = {q: dict(grades) for q, grades in qrels.items() if any(g > 0 for g in grades.values())}
    full = {q: _as_run(r[:depth]) for q, r in rankings.items() if q in judged and r}
    cut = {q: _as_run(r[:_CUTOFF]) for q, r in rankings.items() if q in judged and r}
    deep = RelevanceEvaluator(judged, {f"ndcg_cut.{_CUTOFF}", f"recall.{depth}"}).evaluate(full)
    # trec_eval's reciprocal rank knows no cut-off: the run is cut for it.
    shallow = RelevanceEvaluator(judged, {"recip_rank"}).evaluate(cut)
    zero = QueryMeasures(0.0, 0.0, 0.0)
    return {
        q: QueryMeasures(deep[q][f"ndcg_cut_{_CUTOFF}"], deep[q][f"recall_{depth}"], shallow[q]["recip_rank"])
        if q in deep
        else zero
        for q in judged
    }


def mean(per_query: Iterable[QueryMeasures], depth: int = 100) -> Measures:
    """Average the measures of queries; all zeros where there is none."""
    rows = list(per_query)
    n = max(1, len(rows))
    return Measures(
        len(rows), sum(r.ndcg for r in rows) / n, sum(r.recall for r in rows) / n, sum(r.mrr for r in rows) / n, depth
    )  # fmt: skip


def pooled(groups: Sequence[Measures]) -> Measures:
    """Return the mean over all queries of several groups, each query alike. Raises InputError for none."""
    if not groups:
        raise InputError("there is no group of queries to take the mean of")
    queries = sum(g.queries for g in groups)
    n = max(1, queries)
    return Measures(
        queries,
        sum(g.ndcg * g.queries for g in groups) / n,
        sum(g.recall * g.queries for g in groups) / n,
        sum(g.mrr * g.queries for g in groups) / n,
        groups[0].depth,
    )


def _as_run(documents: Sequence[str]) -> dict[str, float]:
    return {d: float(-rank) for rank, d in enumerate(documents)}


def _json_query(path: str, number: int, line: str) -> Query:
    import json

    try:
        record: Any = json.loads(line)
    except ValueError as e:
        raise CorpusError(path, f"is no JSON: {e}", number) from e
    except RecursionError as e:
        raise CorpusError(path, "is no JSON that can be read: nested too deeply", number) from e
    if not isinstance(record, dict):
        raise CorpusError(path, f"needs an object, got {type(record).__name__}", number)
    identifier = record.get("_id", record.get("id", number))
    text = required_text(path, number, record, "text")
    lang, task = record.get("lang"), record.get("task")
    for name, value in (("lang", lang), ("task", task)):
        if value is not None and not isinstance(value, str):
            raise CorpusError(path, f'"{name}" must be a string, got {value!r}', number)
    return Query(str(identifier), text, lang, task)


def _is_int(cell: str) -> bool:
    return cell.strip().lstrip("+-").isdigit()


def _tables(folder: Path) -> dict[str, Path]:
    files = sorted(folder.glob("*.tsv")) + sorted(folder.glob("*.tsv.gz"))
    return {f.name.removesuffix(".gz").removesuffix(".tsv"): f for f in files}
