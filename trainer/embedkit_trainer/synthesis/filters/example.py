"""One row as the filters see it, and what a filter says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from embedkit_trainer.data.rows import Row

TYPES = ("short-long", "long-short", "short-short", "long-long", "sts", "bitext")
UNKNOWN = "unknown"
#: What `metadata` holds beside the placeholders.
_OWN = frozenset(("request", "type", "model", "template", "tokens", "cost", "placeholders"))


@dataclass(frozen=True, slots=True)
class Example:
    """Hold a row, the object it was read from (ignored keys and all), and its file."""

    row: Row
    record: Mapping[str, Any]
    file: Path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the row's metadata; empty where it has none."""
        found = self.record.get("metadata")
        return found if isinstance(found, Mapping) else {}

    @property
    def type(self) -> str:
        """Return the task type, `unknown` where the row does not say it."""
        found = self.record.get("task") or self.metadata.get("type")
        return found if isinstance(found, str) else UNKNOWN

    @property
    def placeholders(self) -> Mapping[str, Any]:
        """Return what was drawn for the row: `metadata.placeholders`, or what else the metadata holds."""
        found = self.metadata.get("placeholders")
        if isinstance(found, Mapping):
            return found
        return {name: value for name, value in self.metadata.items() if name not in _OWN}

    def language(self, side: str) -> str | None:
        """Return the language of the queries (`q`) or the documents (`d`), None where the row does not say it."""
        found = self.record.get(f"lang_{side}") or self.record.get("lang")
        return found if isinstance(found, str) else None

    def with_row(self, row: Row) -> Example:
        """Return the example with other texts; every key that the trainer ignores stays."""
        record = dict(self.record)
        negatives = "negative" if record.get("negative") is not None else "negatives"
        record["positive"] = row.positive
        for key, value in (
            (negatives, list(row.negatives)),
            ("negative_ids", list(row.negative_ids)),
            ("teacher_scores", None if row.teacher_scores is None else list(row.teacher_scores)),
            ("positive_id", row.positive_id),
        ):
            if value:
                record[key] = value
            else:
                record.pop(key, None)
        return replace(self, row=row, record=record)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Say that an example goes: the reason, short and the same for many, and what was seen in this one."""

    example: Example
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Say that an example stays with other texts."""

    before: Example
    after: Example
    reason: str
    detail: str


Outcome = Example | Dropped | Changed


class Filter(Protocol):
    """Judge examples, a batch at a time and in their order; what it saw before may count (duplicates).

    `parallel` says that an answer depends on its own example alone and that the filter can be sent to another process.
    """

    name: ClassVar[str]
    parallel: ClassVar[bool]

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example, in their order."""
        ...


@runtime_checkable
class WholeFilter(Protocol):
    """Judge examples once all were seen: batches come back in their order, and each outcome in its batch."""

    name: ClassVar[str]

    def check_all(self, batches: Iterator[list[Example]]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each batch."""
        ...
