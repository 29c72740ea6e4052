"""From an answer, or from what came instead of one, to the record that a store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedkit_trainer.synthesis.answers import LARGEST, Rejected
from embedkit_trainer.synthesis.budget import price
from embedkit_trainer.synthesis.plan import PlannedRequest
from embedkit_trainer.synthesis.store import Store


@dataclass(slots=True)
class Usage:
    """Count what one planned request took so far, over all tries; `lost` tokens may have been billed without an answer."""

    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lost_in: int = 0
    lost_out: int = 0


class Recorder:
    """Store what came of requests, and count it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.stored = 0
        self.reasons: dict[str, int] = {}

    @property
    def rejected(self) -> int:
        """How many were not taken."""
        return sum(self.reasons.values())

    def answer(self, planned: PlannedRequest, answer: Mapping[str, Any], usage: Usage, **more: Any) -> None:
        """Store an answer that was taken; `more` joins the record."""
        self._store.append(_record(planned, usage) | {"answer": answer} | more)
        self.stored += 1

    def failure(
        self, planned: PlannedRequest, rejected: Rejected, text: str, usage: Usage, **more: Any
    ) -> None:
        """Store why an answer was not taken, with the model's text."""
        raw = text.encode(errors="replace")[:LARGEST].decode(errors="ignore")
        found = {"reason": str(rejected.reason), "detail": rejected.detail, "raw": raw}
        self._store.fail(_record(planned, usage) | found | more)
        self.reasons[rejected.reason] = self.reasons.get(rejected.reason, 0) + 1


def _record(planned: PlannedRequest, usage: Usage) -> dict[str, Any]:
    cost = price(planned.model, usage.tokens_in, usage.tokens_out)
    record = planned.about() | {
        "tokens": [usage.tokens_in, usage.tokens_out],
        "cost": round(cost, 9),
        "attempts": usage.attempts,
    }
    if usage.lost_in:
        lost = price(planned.model, usage.lost_in, usage.lost_out)
        record["lost"] = {"tokens": usage.lost_in + usage.lost_out, "cost": round(lost, 9)}
    return record
