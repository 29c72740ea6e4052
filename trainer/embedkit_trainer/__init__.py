"""embedkit_trainer: from a plain config to an embedder that the toolkit serves unchanged.

report = train(load_config("gte-base"))

Names are imported when they are first used: `import embedkit_trainer` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit_trainer.config.file import load_config
    from embedkit_trainer.config.records import RunConfig
    from embedkit_trainer.data.rows import Row, read_rows, write_rows
    from embedkit_trainer.events import DevEvent, Event, NoteEvent, StepEvent, TrainReport
    from embedkit_trainer.loop import train
    from embedkit_trainer.mining.negatives import MiningConfig, mine_from_vectors, mine_negatives

_HOMES = {
    "DevEvent": "events",
    "Event": "events",
    "MiningConfig": "mining.negatives",
    "NoteEvent": "events",
    "Row": "data.rows",
    "RunConfig": "config.records",
    "StepEvent": "events",
    "TrainReport": "events",
    "load_config": "config.file",
    "mine_from_vectors": "mining.negatives",
    "mine_negatives": "mining.negatives",
    "read_rows": "data.rows",
    "train": "loop",
    "write_rows": "data.rows",
}
__all__ = [
    "DevEvent",
    "Event",
    "MiningConfig",
    "NoteEvent",
    "Row",
    "RunConfig",
    "StepEvent",
    "TrainReport",
    "load_config",
    "mine_from_vectors",
    "mine_negatives",
    "read_rows",
    "train",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
