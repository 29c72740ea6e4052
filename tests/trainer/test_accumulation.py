"""`accumulation`: the gradient of a step is the mean over its batches, not their sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from embedkit_trainer.config.records import ModelConfig, RunConfig, SourceConfig, StageConfig
from embedkit_trainer.data.rows import Row, write_rows
from embedkit_trainer.events import Event, StepEvent
from embedkit_trainer.loop import train
from tests.embedkit.tiny_models import BERT, TEXTS, save_model


def test_accumulated_batches_are_averaged(tmp_path: Path) -> None:
    """A step over the same batch twice has the gradient of a step over it once: clipping means the same."""
    base = save_model(tmp_path / "bert", "Bert", BERT)
    write_rows(tmp_path / "rows.jsonl", [Row(text, f"{text} {i}") for i, text in enumerate(TEXTS)])
    stage = StageConfig(
        sources=(SourceConfig(path=str(tmp_path / "rows.jsonl")),),
        batch_size=len(TEXTS),  # an epoch is one batch: the second one of a step is the first again
        query_length=32,
        document_length=32,
    )
    config = RunConfig(model=ModelConfig(str(base), pooling="mean", dropout=0.0), device="cpu")
    norms = []
    for count in (1, 2):
        events: list[Event] = []
        stages = (replace(stage, accumulation=count),)
        train(replace(config, stages=stages, output=str(tmp_path / f"model{count}")), events.append)
        (step,) = [e for e in events if isinstance(e, StepEvent)]
        norms.append(step.grad_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
