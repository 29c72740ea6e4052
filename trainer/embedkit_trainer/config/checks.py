"""What a well-formed run can still have wrong: numbers out of range, parts that do not fit together, missing files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedkit_trainer.config.records import (
    CONTRASTIVE,
    GRADED,
    TEACHER_SCORES,
    TEACHER_VECTORS,
    DevConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from embedkit_trainer.config.schema import suggest

#: Formats whose rows carry a graded score, and those whose rows can carry a teacher's scores.
_GRADED_FORMATS = ("rows", "sts")


def check_config(config: RunConfig, need_data: bool = True) -> list[str]:
    """Return one line, key path first, for each thing that is wrong; `need_data` looks for the files too."""
    problems = [*_run(config), *_model(config.model, config)]
    if not config.stages:
        problems.append("stages: there is none: add [[stages]] with at least one [[stages.sources]]")
    problems += _doubles("stages", [s.name for s in config.stages])
    for stage in config.stages:
        problems += _stage(stage, config, need_data)
    if config.dev is not None:
        problems += _dev(config.dev, need_data)
    return problems


def _run(config: RunConfig) -> Iterator[str]:
    yield from _least(config, "", seed=0, save_every=1, keep=1, log_every=1)
    if not config.output.strip():
        yield "output is empty: name the folder that the model goes to"
    elif _same(config.output, config.model.name):
        yield f"output {config.output!r} is the folder of the base model: choose another, nothing may overwrite it"
    elif config.work and _inside(config.work, config.output):
        yield (
            f"work {config.work!r} is inside output {config.output!r}, which the finished model takes for itself: "
            "choose another"
        )
    if config.tracker != "none" and find_spec(config.tracker) is None:
        yield f'tracker = {config.tracker!r} is not installed: pip install {config.tracker}, or write "none"'
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", config.device):
        yield f"device = {config.device!r} is not known: give auto, cpu, cuda, cuda:0 … or mps"
    if config.backend == "deepspeed" and find_spec("deepspeed") is None:
        yield "backend = 'deepspeed' is not installed: pip install deepspeed, or write \"fsdp2\""
    if config.backend in ("deepspeed", "fsdp2") and any(s.train_tokens_from for s in config.stages):
        yield f'backend = {config.backend!r} cuts the token table up, so train_tokens_from cannot keep rows of it: write "ddp"'


def _model(model: ModelConfig, config: RunConfig) -> Iterator[str]:
    if not model.name.strip():
        yield "model.name is missing: name a folder or a hub id, such as mistralai/Mistral-7B-v0.1"
    elif (Path(model.name).is_absolute() or model.name.startswith(".")) and not Path(model.name).exists():
        yield f"model.name {model.name!r} does not exist: check the path"
    if model.tuning == "full" and model.lora != LoraConfig():
        yield 'model.lora has values, but model.tuning is "full": write "lora" or "qlora", or take them out'
    if model.tuning != "full":
        yield from _least(model.lora, "model.lora", r=1, lora_alpha=1)
        yield from _between(model.lora, "model.lora", lora_dropout=(0, 1, "[)"))
        if not model.lora.target_modules:
            yield 'model.lora.target_modules is empty: name modules, or write "all-linear"'
        elif isinstance(pattern := model.lora.target_modules, str):
            yield from _pattern("model.lora.target_modules", pattern)
    if model.tuning == "qlora":
        if config.device in ("cpu", "mps"):
            yield f"model.tuning = 'qlora' needs CUDA, but device is {config.device!r}: write \"lora\""
        if find_spec("bitsandbytes") is None:
            yield "model.tuning = 'qlora' needs bitsandbytes: pip install bitsandbytes, or write \"lora\""
    if model.dropout is not None:
        yield from _between(model, "model", dropout=(0, 1, "[)"))


def _stage(stage: StageConfig, config: RunConfig, need_data: bool) -> Iterator[str]:
    path = f"stages.{stage.name}"
    if not stage.name or any(c.isspace() or c == "." for c in stage.name):
        yield f"{path}: the name must be one word without dots"
    contrastive = stage.loss.name in CONTRASTIVE and stage.loss.in_batch
    yield from _least(
        stage, path, batch_size=1, query_length=4, document_length=4, negatives=0, accumulation=1
    )
    if stage.batch_size == 1 and contrastive and not any(map(stage.negatives_of, stage.sources)):
        yield f"{path}.batch_size = 1 has no negatives at all: give 2 or more, or negatives"
    yield from _between(stage, path, epochs=(0, 1_000_000, "(]"))
    yield from _least(stage, path, max_steps=1, chunk_tokens=1, graph_tokens=1, alpha=0)
    longest = max(stage.query_length, stage.document_length)
    if stage.chunk_tokens is not None and 0 < stage.chunk_tokens < longest:
        yield f"{path}.chunk_tokens = {stage.chunk_tokens} cannot hold one text of {longest} tokens: give {longest} or more"
    for pattern in stage.trainable:
        yield from _pattern(f"{path}.trainable", pattern)
    if stage.packing and config.device in ("cpu", "mps"):
        yield f"{path}.packing needs CUDA, but device is {config.device!r}: take it out"
    yield from _loss(stage.loss, f"{path}.loss")
    yield from _fit(stage, path)
    yield from _kept(stage, path)
    yield from _optimizer(stage.optimizer, f"{path}.optimizer")
    if not stage.sources:
        yield f"{path}.sources: there is none: add [[stages.sources]] with a path"
    yield from _doubles(f"{path}.sources", [s.name for s in stage.sources])
    for source in stage.sources:
        yield from _source(source, f"{path}.sources.{source.name or '?'}")
    missing = [repr(s.path) for s in stage.sources if s.path and not _found(s.path)] if need_data else []
    if missing:
        is_there = "does not exist" if len(missing) == 1 else "do not exist"
        yield f"{path}.sources: {', '.join(missing)} {is_there}: check the path, or try the run with --tiny"


def _fit(stage: StageConfig, path: str) -> Iterator[str]:
    """Check that the loss gets what it compares with."""
    loss = stage.loss
    negatives = max((stage.negatives_of(s) for s in stage.sources), default=stage.negatives)
    if loss.name in TEACHER_VECTORS and stage.teacher is None:
        yield f'{path}.loss.name = {loss.name!r} needs a teacher: add [stages.teacher] with embedder = "…"'
    unused = not stage.frozen_documents and loss.name not in (*TEACHER_VECTORS, *TEACHER_SCORES)
    if unused and stage.teacher is not None:
        yield f"{path}.teacher is not used by the loss {loss.name!r}: take it out, or choose distil_cosine"
    if stage.teacher is not None and not stage.teacher.embedder:
        yield f"{path}.teacher.embedder is missing: name an embedder or a model folder"
    if loss.name in TEACHER_SCORES and stage.teacher is not None and stage.teacher.target != "own":
        yield f'{path}.teacher.target = {stage.teacher.target!r} compares nothing by scores: write "own"'
    if loss.name == "margin_mse" and negatives == 0:
        yield f"{path}.loss.name = 'margin_mse' compares a positive with negatives: set {path}.negatives"
    if loss.name in CONTRASTIVE and not loss.in_batch and negatives == 0:
        yield f"{path}.loss.in_batch = false leaves no negatives: set {path}.negatives to 1 or more"
    if loss.name in GRADED:
        for source in stage.sources:
            if source.format not in _GRADED_FORMATS:
                yield (
                    f"{path}.loss.name = {loss.name!r} needs scored pairs, but the format {source.format!r} of "
                    f"source {source.name!r} has none: use sts or rows"
                )


def _kept(stage: StageConfig, path: str) -> Iterator[str]:
    """Check what a stage leaves out or as it is: sources without a teacher, frozen documents and tokens, blocks."""
    loss = stage.loss
    for source in stage.sources:
        if source.block > 1 and source.format != "rows":
            yield (
                f"{path}.sources.{source.name}.block = {source.block} needs rows as they stand in the file, and the "
                f'format {source.format!r} leaves some out: convert it, and write format = "rows"'
            )
    left = [s.name for s in stage.sources if not s.distil]
    if left and loss.name not in TEACHER_VECTORS:
        yield f"{path}.sources.{left[0]}.distil = false has nothing to leave out: the loss {loss.name!r} follows no teacher"
    elif left and not loss.contrastive_weight:
        yield f"{path}.sources.{left[0]}.distil = false leaves no loss: set {path}.loss.contrastive_weight"
    elif left and stage.batches == "mixed":
        yield f'{path}.sources.{left[0]}.distil = false needs batches of one source: set {path}.batches = "one-source"'
    if stage.train_tokens_from and stage.optimizer.weight_decay:
        yield f"{path}.train_tokens_from keeps token vectors that weight decay would shrink: set optimizer.weight_decay = 0"
    if stage.frozen_documents and stage.teacher is None:
        yield f'{path}.frozen_documents keeps the vectors of a teacher: add [stages.teacher] with embedder = "…"'


def _loss(loss: LossConfig, path: str) -> Iterator[str]:
    yield from _above(loss, path, temperature=0, teacher_temperature=0, mask_similarity=0, score_scale=0)
    yield from _least(loss, path, contrastive_weight=0)
    widths = loss.matryoshka
    if any(w < 1 for w in widths) or len(widths) != len(set(widths)):
        yield f"{path}.matryoshka = {list(widths)} must be widths of 1 or more, each of them once"
    if loss.matryoshka_weights and len(loss.matryoshka_weights) != len(widths):
        yield f"{path}.matryoshka_weights has {len(loss.matryoshka_weights)} numbers for {len(widths)} widths"
    if any(w <= 0 for w in loss.matryoshka_weights):
        yield f"{path}.matryoshka_weights = {list(loss.matryoshka_weights)} must be above 0"


def _optimizer(optimizer: OptimizerConfig, path: str) -> Iterator[str]:
    yield from _above(optimizer, path, lr=0, eps=0, embedding_lr=0)
    yield from _least(optimizer, path, weight_decay=0, warmup_steps=0, max_grad_norm=0)
    yield from _between(optimizer, path, warmup_ratio=(0, 1, "[]"), lr_end=(0, 1, "[]"))
    if optimizer.schedule == "constant" and optimizer.lr_end:
        yield f'{path}.lr_end = {optimizer.lr_end} ends no decay: the schedule is "constant"'
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield f"{path}.betas = {list(optimizer.betas)} must both be from 0 up to, not including, 1"


def _source(source: SourceConfig, path: str) -> Iterator[str]:
    yield from _between(source, path, ratio=(0, 1, "(]"), instruction_dropout=(0, 1, "[]"))
    yield from _above(source, path, weight=0)
    yield from _least(source, path, negatives=0, limit=1)
    if any(not i.strip() for i in source.instructions or ()):
        yield f"{path}.instructions has an empty one: write what the query should find"
    known = _formats()
    if known and source.format not in known:
        yield f"{path}.format = {source.format!r} is unknown: {suggest(source.format, known)}"
    if not source.path:
        yield f"{path}.path is missing: name a file, a folder or a glob"


def _dev(dev: DevConfig, need_data: bool) -> Iterator[str]:
    yield from _least(dev, "dev", every=1, queries=1)
    if not dev.folders:
        yield "dev.folders is empty: name BEIR folders, or take [dev] out"
    for name, values in (("tasks", dev.tasks), ("instructions", dev.instructions)):
        if values and len(values) not in (1, len(dev.folders)):
            yield f"dev.{name} has {len(values)} for {len(dev.folders)} folders: give one for each, or one for all"
    if dev.tasks and dev.instructions:
        yield "dev.tasks and dev.instructions are both given: choose one"
    for folder in dev.folders if need_data else ():
        if not any((Path(folder) / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz")):
            yield f"dev.folders {folder!r} is no BEIR folder: it has no corpus.jsonl"


def _formats() -> Sequence[str]:
    from embedkit_trainer.data.formats.registry import FORMATS

    return list(FORMATS)


def _found(path: str) -> bool:
    from embedkit_trainer.data.sources import path_exists

    return path_exists(path)


def _same(output: str, model: str) -> bool:
    return bool(model) and Path(model).exists() and os.path.realpath(output) == os.path.realpath(model)


def _inside(path: str, folder: str) -> bool:
    """Say whether a path is a folder or lies in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _pattern(where: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except re.error as e:
        yield f"{where} {pattern!r} is no regular expression: {e}"


def _doubles(path: str, names: Sequence[str]) -> Iterator[str]:
    for name in sorted({n for n in names if n and names.count(n) > 1}):
        yield f"{path} has {names.count(name)} called {name!r}: give each a name of its own"


def _least(record: Any, path: str, **bounds: float) -> Iterator[str]:
    for key, bound in bounds.items():
        value = getattr(record, key)
        if value is not None and value < bound:
            yield f"{_key(path, key)} = {value} is too small: give {bound} or more"


def _above(record: Any, path: str, **bounds: float) -> Iterator[str]:
    for key, bound in bounds.items():
        value = getattr(record, key)
        if value is not None and value <= bound:
            yield f"{_key(path, key)} = {value} must be above {bound}"


def _between(record: Any, path: str, **bounds: tuple[float, float, str]) -> Iterator[str]:
    """Check bounds written as in mathematics: "(]" leaves the lower one out and takes the upper one in."""
    for key, (low, high, ends) in bounds.items():
        value = getattr(record, key)
        if value is None:
            continue
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        if not (above and below):
            words = f"{'from' if ends[0] == '[' else 'above'} {low} {'to' if ends[1] == ']' else 'and below'} {high}"
            yield f"{_key(path, key)} = {value} is out of range: give a number {words}"


def _key(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
