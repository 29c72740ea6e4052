"""Shrink a run to a miniature of itself: the same steps in seconds on a CPU, on a tiny model and a slice of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from itertools import islice
from pathlib import Path

from embedkit.errors import InputError
from embedkit_trainer.config.base_models import find_architecture
from embedkit_trainer.config.records import (
    TEACHER_SCORES,
    DevConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from embedkit_trainer.data.sources import path_exists

ROWS = 32
BATCH = 8
STEPS = 6
WARMUP = 2
LENGTH = 64
_NEGATIVES = 2
_DEV_QUERIES = 20
_CHUNK = 8 * LENGTH
_ACCUMULATION = 2
_TEXTS_PER_SOURCE = 200
_TEACHER_SEED = 1
_WIDTHS = (16, 32, 48)


def shrink(config: RunConfig, work: Path) -> RunConfig:
    """Return the miniature of a run; its tiny model, and its teacher's, are written below `work`.

    What stays: architecture, tuning, pooling, template, loss, sources and their order, the stages, GradCache where
    chunks are set. What shrinks: model, rows, batch, steps, lengths, negatives. A source whose path is not there is
    replaced by the sample of its format that is shipped. Raises InputError where there is no sample.
    """
    work = work.expanduser()
    stages = tuple(_stage(stage) for stage in config.stages)
    texts = list(_texts(stages))
    models = work / "tiny"
    architecture = find_architecture(config.model.name)
    base = _make(models, architecture.model_type, texts, config.seed)
    stages = tuple(_with_teacher(stage, models, texts, config.seed) for stage in stages)
    return replace(
        config,
        model=_model(config.model, base),
        stages=stages,
        dev=_dev(config.dev),
        precision="float32",
        device="cpu",
        save_every=STEPS // 2,
        tracker="none",
        backend="auto" if config.backend == "deepspeed" else config.backend,
    )


def sample_path(format_name: str) -> Path:
    """Return the shipped sample of a format: a file or a folder. Raises InputError where there is none.

    "scored" is a sample of "rows" whose rows have negatives and a teacher's scores.
    """
    folder = Path(str(resources.files("embedkit_trainer") / "recipes" / "samples" / format_name))
    if not folder.exists():
        raise InputError(f"no sample of the format {format_name!r} is shipped: name a path that exists")
    return folder


def stand_ins(before: RunConfig, after: RunConfig) -> list[str]:
    """Return the paths that were not there, so that shipped samples stand in for them."""
    return [
        source.path
        for old, new in zip(before.stages, after.stages, strict=True)
        for source, small in zip(old.sources, new.sources, strict=True)
        if source.path != small.path
    ]


def _model(model: ModelConfig, base: str) -> ModelConfig:
    return replace(
        model,
        name=base,
        revision=None,
        tuning="lora" if model.tuning == "qlora" else model.tuning,
        attention=None,
        trust_remote_code=False,
    )


def _stage(stage: StageConfig) -> StageConfig:
    steps = min(stage.max_steps or STEPS, STEPS)
    scored = stage.loss.name in TEACHER_SCORES and stage.teacher is None
    return replace(
        stage,
        sources=tuple(_source(source, scored) for source in stage.sources),
        batch_size=min(stage.batch_size, BATCH),
        epochs=float(STEPS),  # more than enough rows for the steps, whatever the slices hold
        max_steps=steps,
        query_length=min(stage.query_length, LENGTH),
        document_length=min(stage.document_length, LENGTH),
        negatives=min(stage.negatives, _NEGATIVES),
        loss=_loss(stage.loss),
        optimizer=_optimizer(stage.optimizer),
        chunk_tokens=None if stage.chunk_tokens is None else min(stage.chunk_tokens, _CHUNK),
        graph_tokens=None if stage.graph_tokens is None else min(stage.graph_tokens, _CHUNK),
        accumulation=min(stage.accumulation, _ACCUMULATION),
        packing=False,
        train_tokens_from=0,  # the tiny model has a vocabulary of its own
    )


def _source(source: SourceConfig, scored: bool) -> SourceConfig:
    path = source.path
    if not path_exists(path):
        path = str(sample_path("scored" if scored and source.format == "rows" else source.format))
    negatives = None if source.negatives is None else min(source.negatives, _NEGATIVES)
    return replace(
        source,
        path=path,
        ratio=1.0,
        limit=min(source.limit or ROWS, ROWS),
        negatives=negatives,
        block=math.gcd(source.block, BATCH),  # what divides the batch divides the rows
    )


def _loss(loss: LossConfig) -> LossConfig:
    widths = _WIDTHS[-len(loss.matryoshka) :] if loss.matryoshka else ()
    return replace(loss, matryoshka=widths, matryoshka_weights=loss.matryoshka_weights[: len(widths)])


def _optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
    return replace(optimizer, warmup_steps=min(optimizer.warmup_steps, WARMUP), warmup_ratio=None)


def _dev(dev: DevConfig | None) -> DevConfig | None:
    if dev is None:
        return None
    kept = [i for i, folder in enumerate(dev.folders) if Path(folder).is_dir()]
    if not kept:
        return None

    def chosen(values: tuple[str, ...]) -> tuple[str, ...]:
        return values if len(values) != len(dev.folders) else tuple(values[i] for i in kept)

    return replace(
        dev,
        folders=tuple(dev.folders[i] for i in kept),
        tasks=chosen(dev.tasks),
        instructions=chosen(dev.instructions),
        every=STEPS // 2,
        queries=_DEV_QUERIES,
    )


def _with_teacher(stage: StageConfig, models: Path, texts: list[str], seed: int) -> StageConfig:
    if stage.teacher is None:
        return stage
    folder = _make(models, "bert", texts, seed + _TEACHER_SEED)
    return replace(stage, teacher=replace(stage.teacher, embedder=folder))


def _make(folder: Path, model_type: str, texts: list[str], seed: int) -> str:
    from embedkit_trainer.config.tiny_model import make_tiny_model

    return str(make_tiny_model(folder, model_type, texts, seed))


def _texts(stages: tuple[StageConfig, ...]) -> Iterator[str]:
    """Yield the texts that the tiny tokenizer is trained on: a few rows of every source, and the instructions."""
    from embedkit_trainer.data.formats.registry import load_rows

    for stage in stages:
        for source in stage.sources:
            yield from source.instructions or ()
            for row in islice(load_rows(source.format, source.path), _TEXTS_PER_SOURCE):
                yield from (row.query, row.positive, *row.negatives)
                if row.instruction:
                    yield row.instruction
