"""What fits together in a stage, whichever of its tables says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedkit_trainer.config.checks import check_config
from embedkit_trainer.config.records import (
    LossConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TeacherConfig,
)
from embedkit_trainer.data.dry_run import outline

SOURCE = SourceConfig(path="rows.jsonl", name="rows")


def _config(loss: LossConfig, *negatives: int | None, **stage: object) -> RunConfig:
    sources = tuple(replace(SOURCE, name=f"s{i}", negatives=n) for i, n in enumerate(negatives))
    settings = StageConfig(sources=sources, loss=loss, batch_size=8, negatives=0)
    return RunConfig(model=ModelConfig("org/model"), stages=(replace(settings, **stage),))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [LossConfig("margin_mse"), LossConfig(in_batch=False)])
def test_negatives_may_be_a_sources_own(loss: LossConfig) -> None:
    """A loss of own negatives is refused where no source brings any, and taken where one does."""
    assert len(check_config(_config(loss, None, 0), need_data=False)) == 1
    assert check_config(_config(loss, None, 4), need_data=False) == []


def test_figures_before_the_data_count_a_sources_own_negatives() -> None:
    """The most that a query competes with is that of the source that brings most."""
    config = _config(LossConfig(), None, 3, negatives=1)
    assert outline(config)["stages.train.negatives_per_query"] == 8 * 4 - 1


def test_scores_need_a_teacher_of_each_text() -> None:
    """A teacher of the positive alone compares nothing by scores."""
    config = _config(LossConfig("distil_kl"), 2, teacher=TeacherConfig("teacher", target="positive"))
    (problem,) = check_config(config, need_data=False)
    assert "teacher.target = 'positive'" in problem
