"""What a training run tells while it works, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimiser step: `step` of `steps` in its stage, counted from 1.

    `tokens_per_second` counts real tokens of all processes; `negatives_per_query` is the mean number of candidates
    that a query's positive competes with; `logs` holds what the objective reports.
    """

    stage: str
    step: int
    steps: int
    loss: float
    lr: float
    tokens_per_second: float
    negatives_per_query: float
    grad_norm: float
    seconds_left: float
    logs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DevEvent:
    """nDCG@10 on the dev sets after `step` steps of `stage`; `best` where no earlier mean was higher."""

    stage: str
    step: int
    scores: Mapping[str, float]
    mean: float
    best: bool


@dataclass(frozen=True, slots=True)
class NoteEvent:
    """A sentence for the user."""

    text: str


Event: TypeAlias = StepEvent | DevEvent | NoteEvent
Listener: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a run ended.

    `folder` holds the finished model, or the checkpoints where the run was `stopped` by a signal. `best` is the
    best mean nDCG@10 of the dev sets, None without any.
    """

    folder: Path
    steps: int
    seconds: float
    best: float | None
    stopped: bool
