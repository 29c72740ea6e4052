"""Run an evaluation: queries under their tasks against one index, measured overall, by task and by language pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.evaluation import (
    Measures,
    Qrels,
    Query,
    QueryMeasures,
    find_qrels,
    mean,
    measure,
    read_qrels,
    restrict_qrels,
)
from embedkit_cli.batches import Asking, document_ranking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedkit_cli.tasks import TaskBook
    from embedkit_indexes import Index

_BATCH = 256
UNKNOWN_LANG = "und"  # ISO 639's code for an undetermined language; an index filters by it too
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One set of judgements and how its queries are asked."""

    qrels: Qrels
    asking: Asking


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The measures under one task; `obeys` is False where the embedder ignores the instruction."""

    task: str | None
    instruction: str | None
    obeys: bool
    measures: Measures


@dataclass(frozen=True, slots=True)
class PairScore:
    """The measures of queries of one language against the documents of one language alone."""

    query_lang: str
    document_lang: str
    measures: Measures


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found."""

    overall: Measures
    tasks: tuple[TaskScore, ...]
    pairs: tuple[PairScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "overall": self.overall.to_dict(),
            "tasks": [
                {"task": t.task, "instruction": t.instruction, "obeys": t.obeys, **t.measures.to_dict()}
                for t in self.tasks
            ],
            "languages": [
                {"query": p.query_lang, "document": p.document_lang, **p.measures.to_dict()}
                for p in self.pairs
            ],
        }


class Remembering(Embedder):
    """Wrap an embedder so that a query asked against several document languages is encoded once."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.info = inner.info
        self._known: dict[str, NDArray[Any]] = {}

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The wrapped embedder's tokenizer."""
        return self.inner.tokenizer

    @property
    def fingerprint(self) -> str:
        """The wrapped embedder's fingerprint."""
        return self.inner.fingerprint

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        import numpy as np

        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self.inner._embed(new)), strict=True))
        return np.stack([self._known[t] for t in texts])


def load_cases(qrels_path: Path, book: TaskBook, asking: Asking) -> list[Case]:
    """Read the judgements; each file's name is its task unless `asking` has a task or instruction for all.

    Raises UnknownNameError for a file named after no task, before anything is embedded.
    """
    free = asking.task is None and asking.instruction is None
    files = sorted(find_qrels(qrels_path).items(), key=lambda item: item[0] or "")
    askings = [replace(asking, task=book.find(name)) if free and name else asking for name, _ in files]
    return [Case(read_qrels(file), asking) for asking, (_, file) in zip(askings, files, strict=True)]


def judged_queries(queries: Sequence[Query], cases: Sequence[Case], lang: str | None) -> list[Query]:
    """Return the queries of this language that some case judges. Raises InputError where none is left."""
    judged = {q for case in cases for q in case.qrels}
    kept = [q for q in queries if q.id in judged and (lang is None or canonical(q.lang) == canonical(lang))]
    if not kept:
        seen = sorted({q.lang or "none" for q in queries})[:20]
        raise InputError(
            f"no judged query is left of {len(queries)} (language {lang or 'any'}; the queries' are {', '.join(seen)}; "
            f"{len(judged)} ids are judged): check --query-lang and the ids"
        )
    return kept


def canonical(lang: str | None) -> str:
    """Return a language code as readers store it (`ace` for `ace-Latn`)."""
    from embedkit_indexes.corpus.language import iso_code

    return iso_code(lang) if lang else UNKNOWN_LANG


class Judge:
    """Rank and measure cases on one index.

    Judgements are cut to the documents that the index holds. `lang` cuts them, and the search, to the documents
    of one language. A language pair is searched among its documents alone.
    """

    def __init__(
        self,
        index: Index,
        book: TaskBook,
        *,
        lang: str | None = None,
        by_pair: bool = True,
        advance: Advance = lambda count: None,
    ) -> None:
        self._index = index
        self._book = book
        self._lang = lang
        self._by_pair = by_pair
        self._advance = advance
        self._languages = {d: code for d, code in index.document_languages().items() if lang in (None, code)}
        self._rows: list[QueryMeasures] = []
        self._tasks: list[TaskScore] = []
        self._pairs: dict[tuple[str, str], list[QueryMeasures]] = {}

    def run(self, cases: Sequence[Case], queries: Sequence[Query]) -> Report:
        """Return the report. Raises InputError where no query has a relevant document."""
        for case in cases:
            for asking, asked in self._split(case, queries):
                self._judge(case.qrels, asking, asked)
        if not self._rows:
            raise InputError("no query has a relevant document among these: check the ids and --doc-lang")
        depth = cases[0].asking.k
        pairs = (PairScore(*pair, mean(rows, depth)) for pair, rows in sorted(self._pairs.items()))
        return Report(mean(self._rows, depth), tuple(self._tasks), tuple(pairs))

    def _split(self, case: Case, queries: Sequence[Query]) -> list[tuple[Asking, list[Query]]]:
        # A query's own task holds where neither the file's name nor the command line says one.
        asked = [q for q in queries if q.id in case.qrels]
        if case.asking.task is not None or case.asking.instruction is not None:
            return [(case.asking, asked)]
        return [
            (
                replace(case.asking, task=self._book.find(name) if name else None),
                [q for q in asked if q.task == name],
            )
            for name in dict.fromkeys(q.task for q in asked)
        ]

    def _judge(self, judged: Qrels, asking: Asking, queries: Sequence[Query]) -> None:
        qrels: Qrels = restrict_qrels({q.id: judged[q.id] for q in queries}, self._languages)
        found = self._measure(qrels, replace(asking, lang=self._lang), queries)
        self._rows += found.values()
        sentence = self._index.embedder.instruction_for(asking.task, asking.instruction)
        name = asking.task.name if asking.task else None
        obeys = not asking.ignored_by(self._index)
        self._tasks.append(TaskScore(name, sentence, obeys, mean(found.values(), asking.k)))
        if not self._by_pair:
            return
        by_document: dict[str, Mapping[str, QueryMeasures]] = {}
        langs = sorted(set(self._languages.values()))
        for lang in langs:
            if len(langs) == 1:
                by_document[lang] = found
                continue
            cut = restrict_qrels(qrels, [d for d, code in self._languages.items() if code == lang])
            by_document[lang] = self._measure(cut, replace(asking, lang=lang), queries)
        query_lang = {q.id: canonical(q.lang) for q in queries}
        for lang, rows in by_document.items():
            for query_id, row in rows.items():
                self._pairs.setdefault((query_lang[query_id], lang), []).append(row)

    def _measure(self, qrels: Qrels, asking: Asking, queries: Sequence[Query]) -> dict[str, QueryMeasures]:
        asked = [q for q in queries if q.id in qrels]
        rankings: dict[str, list[str]] = {}
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            found = document_ranking(self._index, batch, asking, qrels)
            rankings.update((q.id, [d for d, _ in ranking]) for q, ranking in zip(batch, found, strict=True))
            self._advance(len(batch))
        return measure(qrels, rankings, asking.k)
