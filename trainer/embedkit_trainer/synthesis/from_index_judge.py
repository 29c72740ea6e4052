"""The model as judge: which of the passages near a query answer it, the one it was written for among them.

As in Gecko (arXiv 2403.20327, section 3.2) the passage that a query was written for need not be its best answer.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedkit.errors import InputError
from embedkit_trainer.data.rows import Row
from embedkit_trainer.mining.negatives import Candidate, MiningConfig, Scorer, Search, mine_negatives
from embedkit_trainer.synthesis.answers import Reason, Rejected, read_numbers
from embedkit_trainer.synthesis.plan import PlannedRequest, RequestPlan
from embedkit_trainer.synthesis.settings import SynthesisConfig
from embedkit_trainer.synthesis.store import Store
from embedkit_trainer.synthesis.types import TaskType

_BATCH = 64
_KEPT = 2048
_SCHEMA = {
    "type": "object",
    "properties": {"answers": {"type": "array", "items": {"type": "integer"}}},
    "required": ["answers"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Case:
    """Hold a query and the passages that may answer it; the first is the one that it was written for."""

    query: str
    passages: tuple[Candidate, ...]


class Cases:
    """Find each query's passages, many queries at once; the last few thousand are kept.

    Near-positive scores are no reason to leave a passage out here: the judge decides.
    """

    def __init__(
        self, search: Search, positive_scores: Scorer, candidates: int, mining: MiningConfig
    ) -> None:
        self._search, self._scores = search, positive_scores
        self._mining = MiningConfig(
            negatives=candidates,
            min_rank=mining.min_rank,
            max_rank=mining.max_rank,
            max_ratio=None,
            sampling="top",
            scores=True,
        )
        self.rows: dict[int, Row] = {}
        self._found: OrderedDict[int, Case] = OrderedDict()
        self._after: dict[int, int] = {}

    def set_records(self, records: Mapping[int, Mapping[str, Any]], kind: TaskType) -> None:
        """Take the queries: stored examples by their numbers."""
        self.rows = {number: row_of(record, kind) for number, record in records.items()}
        self._numbers = list(self.rows)
        self._after = {number: place for place, number in enumerate(self._numbers)}

    def __contains__(self, number: object) -> bool:
        """Return whether there is a query of that number."""
        return number in self.rows

    def __getitem__(self, number: int) -> Case:
        """Return the case of a query; the queries after it are searched for along with it."""
        if number not in self._found:
            place = self._after[number]
            batch = self._numbers[place : place + _BATCH]
            rows = [self.rows[n] for n in batch]
            mined = mine_negatives(rows, self._search, self._scores, self._mining)
            for n, row in zip(batch, mined, strict=True):
                self._found[n] = _case(row)
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        return self._found[number]


def row_of(record: Mapping[str, Any], kind: TaskType) -> Row:
    """Return a stored query as a row without negatives."""
    made = kind.row(record)
    return Row(
        query=made["query"],
        positive=made["positive"],
        instruction=made["instruction"],
        source=made["source"],
        positive_id=record["document_id"],
    )


def _case(row: Row) -> Case:
    scores = row.teacher_scores or ()
    ids = (row.positive_id, *row.negative_ids)
    texts = (row.positive, *row.negatives)
    return Case(row.query, tuple(Candidate(*found) for found in zip(ids, texts, scores, strict=True)))


@dataclass(frozen=True, slots=True)
class JudgeRequest(PlannedRequest):
    """Ask which passages answer a query; `order` says which passage of the case each number of the prompt is."""

    case: Case = Case("", ())
    order: tuple[int, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that an answer has to meet."""
        return _SCHEMA

    def parse(self, text: str, finish_reason: str) -> dict[str, Any]:
        """Return the verdict: places of the passages that answer, best first, and the passages. Raises Rejected."""
        numbers = read_numbers(text, finish_reason, "answers")
        if not all(type(n) is int and 1 <= n <= len(self.order) for n in numbers):
            raise Rejected(Reason.WRONG_SCHEMA, f"the numbers must lie between 1 and {len(self.order)}")
        if len(set(numbers)) < len(numbers):
            raise Rejected(Reason.WRONG_SCHEMA, "a number occurs twice")
        passages = [dict(zip(("id", "text", "score"), p, strict=True)) for p in self.case.passages]
        return {"answers": [self.order[n - 1] for n in numbers], "passages": passages}


def fill(template: str, wanted: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Return a value for each placeholder that is filled. Raises InputError where there is none."""
    if unknown := sorted(set(wanted.values()) - set(values)):
        raise InputError(
            f"template {template}: a placeholder is filled from {unknown[0]!r}, and there are only {', '.join(values)}"
        )
    return {name: values[source] for name, source in wanted.items()}


class JudgePlan(RequestPlan):
    """Plan the judging: request i is for query i, its passages in an order drawn anew."""

    def __init__(self, config: SynthesisConfig, task: str, cases: Cases) -> None:
        super().__init__(config, {})
        self._task, self._cases = task, cases
        (kind,) = self.kinds
        self._kind = replace(kind, words={kind.query: 4, kind.positive: 0})

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what the plan is made of, the task and the number of candidates among them."""
        own = {"task": self._task, "candidates": str(asdict(self._cases._mining))}
        return {**super().parts, **own}

    def request(self, number: int) -> JudgeRequest:
        """Return request `number`; there must be a query of that number."""
        source = random.Random(f"{self.config.seed}/{self._kind.name}/{number}")
        case = self._cases[number]
        model = self._models.draw(source)
        template = source.choice(self.templates[self._kind.name])
        drawn = self._draw(source, template)
        order = list(range(len(case.passages)))
        source.shuffle(order)
        shown = "\n\n".join(f"[{i}]\n{case.passages[n].text}" for i, n in enumerate(order, 1))
        filled = {"task": self._task, "query": case.query, "passages": shown}
        values = drawn | fill(template.name, template.filled, filled)
        return JudgeRequest(
            number, self._kind, template, model, template.render(values), self._task, ("en", "en"), drawn, case,
            tuple(order),
        )  # fmt: skip


class JudgeStore(Store):
    """Keep verdicts; only `cases` that there are, by number, are asked about."""

    def __init__(self, folder: Path, digest: str, parts: Mapping[str, str], cases: Container[int]) -> None:
        super().__init__(folder, digest, parts)
        self._cases = cases

    def undone(self, total: int, retry_failed: bool = False) -> Iterator[int]:
        """Yield the queries below `total` that were not judged, or with `retry_failed` not usably."""
        return (n for n in super().undone(total, retry_failed) if n in self._cases)

    def count_undone(self, total: int, retry_failed: bool = False) -> int:
        """Return how many queries `undone` would yield."""
        return sum(1 for _ in self.undone(total, retry_failed))
