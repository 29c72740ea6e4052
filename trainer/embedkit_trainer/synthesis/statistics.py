"""What is in a set of training rows: counts, lengths and what it cost, in one pass over the files."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.synthesis.filters.example import Example
from embedkit_trainer.synthesis.filters.near import NearIndex
from embedkit_trainer.synthesis.filters.words import count_words

UNSAID = "not said"
_EVERY = 1024  # rows between two words of progress
_PERCENTILES = (5, 25, 50, 75, 95)
# A placeholder of more values (a task drawn from a pool) is counted by how many there are.
_VALUES = 200


@dataclass(frozen=True, slots=True)
class Lengths:
    """Say how long texts are, in words (estimated where a script has no spaces)."""

    count: int
    mean: float
    percentiles: Mapping[int, float]
    longest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Lengths:
        """Return the summary of some lengths, one or more."""
        found = np.asarray(values, np.float64)
        cuts = np.percentile(found, _PERCENTILES)
        marks = {p: round(float(cut), 1) for p, cut in zip(_PERCENTILES, cuts, strict=True)}
        return cls(len(found), round(float(found.mean()), 1), marks, round(float(found.max()), 1))


@dataclass(slots=True)
class Statistics:
    """Hold the counts of a set of rows.

    `languages` are those of the queries, `document_languages` of the documents, `pairs` where the two differ.
    `placeholders` count the values by placeholder, `values` say how many there are of one with more than 200 (which
    are then not listed). `instructions` are distinct ones among `instructed` rows. `tokens` (of prompts, of answers)
    and `cost` are sums over the `priced` rows that say them. `near_duplicates` counts rows that are nearly an earlier
    one by `likeness`; None: not looked for. `rejected` counts answers that did not become rows, by reason; `rejects_cost`
    is what they cost. Its tokens and theirs together are what a run used.
    """

    rows: int = 0
    types: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    document_languages: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    languages_by_type: dict[str, Counter[str]] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    templates: Counter[str] = field(default_factory=Counter)
    placeholders: dict[str, Counter[str]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    negatives: Counter[int] = field(default_factory=Counter)
    instructed: int = 0
    instructions: int = 0
    priced: int = 0
    tokens: tuple[int, int] = (0, 0)
    cost: float = 0.0
    duplicates: int = 0
    likeness: float = 0.8
    near_duplicates: int | None = None
    lengths: dict[str, Lengths] = field(default_factory=dict)
    lengths_by_type: dict[str, dict[str, Lengths]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_tokens: tuple[int, int] = (0, 0)
    rejected_cost: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, counts from the largest."""
        from dataclasses import fields

        record = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        record["near_duplicate_rate"] = (
            None if self.near_duplicates is None else round(self.near_duplicates / max(1, self.rows), 6)
        )
        return record


def _plain(value: Any) -> Any:
    if isinstance(value, Counter):
        return {str(key): n for key, n in value.most_common()}
    if isinstance(value, Lengths):
        marks = {f"p{p}": cut for p, cut in value.percentiles.items()}
        return {"count": value.count, "mean": value.mean, **marks, "longest": value.longest}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def gather(
    examples: Iterable[Example],
    *,
    likeness: float | None = 0.8,
    watch: Callable[[int], None] | None = None,
) -> Statistics:
    """Count what is in the examples; `likeness` tells near-duplicates (None: they are not looked for).

    Memory: 30 bytes a row for lengths and exact duplicates, some more for each distinct value, and about 3.5 kB a row
    for near-duplicates. Raises InputError where there are no rows, MissingExtraError where near-duplicates are looked
    for and datasketch is not installed.
    """
    found = _Gathering(None if likeness is None else NearIndex(likeness))
    for number, example in enumerate(examples, 1):
        found.add(example)
        if watch is not None and number % _EVERY == 0:
            watch(number)
    if not found.made.rows:
        raise InputError("there are no rows to count: check the path")
    if likeness is not None:
        found.made.likeness = likeness
    return found.finished()


class _Gathering:
    """What is needed to count, beside the counts."""

    def __init__(self, near: NearIndex | None) -> None:
        self.made = Statistics(near_duplicates=None if near is None else 0)
        self._near = near
        self._instructions: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._lengths: dict[tuple[str, str], array[float]] = {}

    def add(self, example: Example) -> None:
        made, row, kind = self.made, example.row, example.type
        made.rows += 1
        made.types[kind] += 1
        made.negatives[len(row.negatives)] += 1
        self._count_languages(example, kind)
        self._count_origin(example.metadata)
        for name, value in example.placeholders.items():
            made.placeholders.setdefault(name, Counter())[_shown(value)] += 1
        if row.instruction:
            made.instructed += 1
            self._instructions.add(_digest(row.instruction))
        texts = {"query": row.query, "positive": row.positive}
        for name, text in (*texts.items(), *(("negative", text) for text in row.negatives)):
            self._lengths.setdefault((kind, name), array("f")).append(count_words(text))
        whole = _digest("\0".join((row.instruction or "", row.query, row.positive, *row.negatives)))
        if whole in self._seen:
            made.duplicates += 1
        self._seen.add(whole)
        if self._near is not None and made.near_duplicates is not None:
            made.near_duplicates += self._near.find(row.query, row.positive) is not None

    def _count_languages(self, example: Example, kind: str) -> None:
        made = self.made
        query, document = (example.language(side) or UNSAID for side in "qd")
        made.languages[query] += 1
        made.document_languages[document] += 1
        made.languages_by_type.setdefault(kind, Counter())[query] += 1
        if query != document:
            made.pairs[f"{query}-{document}"] += 1

    def _count_origin(self, metadata: Mapping[str, Any]) -> None:
        made = self.made
        made.models[str(metadata.get("model") or UNSAID)] += 1
        made.templates[str(metadata.get("template") or UNSAID)] += 1
        tokens, cost = _spent(metadata)
        if tokens is not None:
            made.priced += 1
            made.tokens = (made.tokens[0] + tokens[0], made.tokens[1] + tokens[1])
            made.cost += cost

    def finished(self) -> Statistics:
        made = self.made
        made.instructions = len(self._instructions)
        for name, counts in list(made.placeholders.items()):
            if len(counts) > _VALUES:
                made.values[name] = len(counts)
                del made.placeholders[name]
        names = dict.fromkeys(name for _, name in self._lengths)
        for name in names:
            parts = [values for (_, other), values in self._lengths.items() if other == name]
            made.lengths[name] = Lengths.of(np.concatenate([np.asarray(v) for v in parts]).tolist())
        for (kind, name), values in self._lengths.items():
            made.lengths_by_type.setdefault(kind, {})[name] = Lengths.of(values)
        made.cost = round(made.cost, 6)
        return made


def count_rejected(made: Statistics, failures: Iterable[Mapping[str, Any]]) -> None:
    """Add the answers that did not become rows: their reasons, tokens and cost."""
    for failure in failures:
        made.rejected[str(failure.get("reason") or UNSAID)] += 1
        tokens, cost = _spent(failure)
        if tokens is not None:
            before = made.rejected_tokens
            made.rejected_tokens = (before[0] + tokens[0], before[1] + tokens[1])
            made.rejected_cost = round(made.rejected_cost + cost, 6)


def read_failures(folder: Path) -> Iterable[Mapping[str, Any]]:
    """Return the failures in a run's output, or in one store of it. Raises InputError where there is no store."""
    from embedkit_trainer.synthesis.store import FAILURES, read_records

    stores = sorted(plan.parent for plan in (*folder.glob("plan.json"), *folder.glob("*/plan.json")))
    if not stores:
        raise InputError(
            f"{folder} is no output of a run: give the folder that `embedkit synth generate` wrote"
        )
    return chain.from_iterable(read_records(store, FAILURES) for store in stores)


def near_available() -> bool:
    """Say whether near-duplicates can be looked for."""
    try:
        NearIndex(1.0)
    except MissingExtraError:
        return False
    return True


def _spent(record: Mapping[str, Any]) -> tuple[tuple[int, int] | None, float]:
    tokens, cost = record.get("tokens"), record.get("cost")
    match tokens:
        case [int(sent), int(answered)]:
            return (sent, answered), float(cost) if isinstance(cost, int | float) else 0.0
    return None, 0.0


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
