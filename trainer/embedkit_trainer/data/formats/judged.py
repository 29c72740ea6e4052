"""Rows from judged queries: who is relevant to whom by id, and the passages' texts out of a corpus of any size."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from embedkit.errors import CorpusError
from embedkit_trainer.data.rows import Row


class JudgedQuery(NamedTuple):
    """A query, the ids of what answers it and of what is known not to, and its line in the queries' file."""

    text: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    line: int = 0


class Passages:
    """Hold the passages asked for, by id, in a temporary file: memory is that of ids and offsets alone.

    The corpus is read once from front to end, so that it may be compressed and in many files; passages that
    nobody asks for are never kept. Use it as a context manager.
    """

    def __init__(self, wanted: Collection[str], corpus: Iterable[tuple[str, str]]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for identifier, text in corpus:
            if identifier in wanted and identifier not in self._spans:
                data = text.encode("utf-8", "surrogatepass")
                self._spans[identifier] = (end, len(data))
                end += self._file.write(data)
                if len(self._spans) == len(wanted):
                    break

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return how many of the wanted passages the corpus holds."""
        return len(self._spans)

    def get(self, identifier: str) -> str | None:
        """Return a passage's text, None where the corpus lacks it."""
        span = self._spans.get(identifier)
        if span is None:
            return None
        self._file.seek(span[0])
        return self._file.read(span[1]).decode("utf-8", "surrogatepass")


def judged_rows(
    queries: Sequence[JudgedQuery], corpus: Iterable[tuple[str, str]], where: Path, prefix: str = ""
) -> Iterator[Row]:
    """Yield one row for each query and positive; the query's other positives are never among its negatives.

    `prefix` goes before every id, so that corpora that count alike do not clash. Passages that the corpus lacks are
    left out; CorpusError names `where` when it lacks every positive.
    """
    wanted = {identifier for query in queries for identifier in (*query.positives, *query.negatives)}
    with Passages(wanted, corpus) as passages:
        found = False
        for query in queries:
            known = set(query.positives)
            negatives = [(n, passages.get(n)) for n in query.negatives if n not in known]
            held = [(n, text) for n, text in negatives if text is not None]
            for identifier in query.positives:
                positive = passages.get(identifier)
                if positive is None:
                    continue
                found = True
                yield Row(
                    query.text,
                    positive,
                    tuple(text for _, text in held),
                    positive_id=prefix + identifier,
                    negative_ids=tuple(prefix + n for n, _ in held),
                    line=query.line,
                )
        if wanted and not found:
            example = next(iter(wanted))
            raise CorpusError(
                str(where), f"none of the judged passages is in the corpus (such as id {example!r}): check that they belong together"
            )  # fmt: skip


def judge(
    queries: Iterable[tuple[int, str, str]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    relevant: int = 1,
    refused: int = 0,
) -> list[JudgedQuery]:
    """Join (line, id, text) with judgements: grades from `relevant` on are positives, those up to `refused` negatives."""
    judged = []
    for line, identifier, text in queries:
        grades = qrels.get(identifier, {})
        positives = tuple(d for d, grade in grades.items() if grade >= relevant)
        if positives:
            negatives = tuple(d for d, grade in grades.items() if grade <= refused)
            judged.append(JudgedQuery(text, positives, negatives, line))
    return judged
