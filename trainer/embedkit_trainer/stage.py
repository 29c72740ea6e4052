"""A stage opened: its sources tokenised, its order of batches, its teacher, objective and dev sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedders.folder import adapter_files
from embedkit.hashing import joint_hash
from embedkit.tasks import resolve_instruction
from embedkit_trainer.backend import work_folder
from embedkit_trainer.config.records import TEACHER_VECTORS
from embedkit_trainer.data.batches import Batch, assemble
from embedkit_trainer.data.plan import BatchPlan
from embedkit_trainer.data.sources import check_scores, open_store, tokenizer_pair
from embedkit_trainer.data.store import TokenStore

if TYPE_CHECKING:
    from embedkit.embedders.serving import OpenedFolder
    from embedkit.embedders.tokens import TokenBuilder
    from embedkit_trainer.config.records import RunConfig, SourceConfig, StageConfig, TeacherConfig
    from embedkit_trainer.data.rendering import TokenizerPair
    from embedkit_trainer.data.teacher import NoTeacher, TeacherVectors
    from embedkit_trainer.dev import DevSet
    from embedkit_trainer.losses.objective import Objective

# Measured: on a CPU small chunks stay in the cache; a GPU wants enough rows to be busy.
_CHUNK_TOKENS = {"cpu": 2048, "cuda": 16384}
# What may change between a run and its resumption without changing what is computed.
_VOLATILE = (
    "name",
    "output",
    "work",
    "save_every",
    "keep",
    "log_every",
    "tracker",
    "merge",
    "device",
    "dev",
    "backend",
)
# How a batch is cut to fit the memory: the gradient is the same, though dropout draws others where chunks differ.
_MEMORY = ("chunk_tokens", "graph_tokens", "gradient_checkpointing")


@dataclass(frozen=True)
class Stage:
    """Hold one stage ready to run; `steps` are optimiser steps."""

    config: StageConfig
    stores: list[TokenStore]
    plan: BatchPlan
    objective: Objective
    teachers: list[TeacherVectors | NoTeacher] | None
    dev_sets: list[DevSet]
    seed: int

    @property
    def steps(self) -> int:
        """The optimiser steps of the stage, each of `accumulation` batches."""
        return max(self.plan.steps // self.config.accumulation, 1)

    def batch(self, number: int) -> Batch:
        """Return batch `number`, from 0: the same in every process and after every restart."""
        number %= self.plan.steps
        return self._assembled(self.plan.rows(number), number)

    def worst_batch(self) -> Batch:
        """Return the most expensive batch that the plan could draw."""
        costs = [
            store.costs(self.config.negatives_of(source))
            for store, source in zip(self.stores, self.config.sources, strict=True)
        ]
        return self._assembled(self.plan.worst(costs), 0, longest=True)

    def chunk_tokens(self, device: str) -> int:
        """Return the token budget of one forward pass on a kind of device."""
        return self.config.chunk_tokens or _CHUNK_TOKENS.get(device, _CHUNK_TOKENS["cuda"])

    def name_sources(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return an objective's logs with `masked_rate_0` under the source's name: `masked_rate/quora`."""
        names = {f"masked_rate_{i}": f"masked_rate/{store.name}" for i, store in enumerate(self.stores)}
        return {names.get(key, key): value for key, value in logs.items()}

    def describe_rows(self, number: int, most: int = 3) -> str:
        """Name the rows of a batch: sources with lines, and the text of the first few."""
        rows = self.plan.rows(number % self.plan.steps)
        by_source: dict[int, list[int]] = {}
        for source, row in rows:
            by_source.setdefault(source, []).append(row)
        parts = []
        for source, found in by_source.items():
            store = self.stores[source]
            lines = ", ".join(str(store.row(r).line) for r in found[:most])
            more = f" and {len(found) - most} more" if len(found) > most else ""
            parts.append(f"{store.name} (line {lines}{more})")
        return "; ".join(parts)

    def _assembled(self, rows: list[tuple[int, int]], step: int, *, longest: bool = False) -> Batch:
        return assemble(
            self.stores,
            rows,
            step=step,
            negatives=[self.config.negatives_of(s) for s in self.config.sources],
            seed=self.seed,
            teacher=self.teachers,
            longest=longest,
        )


def open_stages(config: RunConfig, note: Callable[[str], None]) -> tuple[OpenedFolder, list[Stage], str]:
    """Open every stage: tokenise what is not in the cache yet, compute what the teacher has not embedded.

    Returns the resolved base, the stages, and the run's fingerprint over config and data. Raises InputError or
    CorpusError for what is missing or broken.
    """
    from embedkit_trainer.model import load_tokens

    cache = work_folder(config) / "cache"
    stages = []
    instructed = False
    for number, stage in enumerate(config.stages):
        opened, queries, documents = load_tokens(config.model, stage.query_length, stage.document_length)
        tokens = tokenizer_pair(queries, documents, opened.template)
        stores = [_store(source, tokens, cache, note) for source in stage.sources]
        instructed |= any(store.counts.instructed for store in stores)
        told = resolve_instruction(default_task(config, opened, instructed), None)
        stages.append(
            _open(
                config, number, stores, cache=cache, text=(opened, queries, documents), told=told, note=note
            )
        )
    return opened, stages, _run_id(config, opened, stages)


def default_task(config: RunConfig, opened: OpenedFolder, instructed: bool) -> str | None:
    """Return the task of a query that names none, once served; `instructed` says that rows had instructions."""
    return config.model.default_task or opened.default_task or ("search" if instructed else None)


def _open(
    config: RunConfig,
    number: int,
    stores: list[TokenStore],
    *,
    cache: Path,
    text: tuple[OpenedFolder, TokenBuilder, TokenBuilder],
    told: str | None,
    note: Callable[[str], None],
) -> Stage:
    from embedkit_trainer.dev import load_dev_sets
    from embedkit_trainer.losses.objective import build_objective

    stage = config.stages[number]
    seed = config.seed + number
    check_scores(stage, stores)
    plan = BatchPlan.of(stage, [len(s) for s in stores], seed=seed)
    teachers = None
    if stage.teacher is not None:
        # Vectors are regressed as they are; scores are compared whatever the widths.
        regresses = stage.loss.name in TEACHER_VECTORS or stage.frozen_documents
        dim = text[0].folder.config.get("hidden_size") if regresses else None
        teachers = _teachers(stage, stage.teacher, stores, cache, note, dim=dim)
    dev = config.dev
    dev_sets = load_dev_sets(dev, text[0].template, text[1], text[2], default=told) if dev else []
    objective = build_objective(stage.loss, stage.teacher, [s.distil for s in stage.sources])
    return Stage(stage, stores, plan, objective, teachers, dev_sets, seed)


def _store(
    source: SourceConfig, tokens: TokenizerPair, cache: Path, note: Callable[[str], None]
) -> TokenStore:
    store = open_store(source, tokens, cache)
    cut = store.counts.truncated_queries + store.counts.truncated_documents
    if cut:
        note(
            f"source {store.name}: {store.counts.truncated_queries:,} queries and "
            f"{store.counts.truncated_documents:,} documents reach the limit of {tokens.limits()[0]} and "
            f"{tokens.limits()[1]} tokens: what is beyond was cut"
        )
    return store


def _teachers(
    stage: StageConfig,
    config: TeacherConfig,
    stores: list[TokenStore],
    cache: Path,
    note: Callable[[str], None],
    *,
    dim: int | None,
) -> list[TeacherVectors | NoTeacher]:
    from embedkit import get_embedder
    from embedkit_trainer.data.teacher import NoTeacher, TeacherVectors

    note(f"the teacher {config.embedder} embeds the texts that it has not embedded yet")
    embedder = get_embedder(config.embedder)
    return [
        TeacherVectors.build(embedder, store, cache, target=config.target, as_query=config.as_query, dim=dim)
        if source.distil or stage.frozen_documents
        else NoTeacher(embedder.info.dim)
        for store, source in zip(stores, stage.sources, strict=True)
    ]


def _run_id(config: RunConfig, opened: OpenedFolder, stages: list[Stage]) -> str:
    """Return 16 hex digits over all that decides what is computed: a checkpoint belongs to one of them."""
    from embedkit_trainer.saving.export import base_revision

    record: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in _VOLATILE}
    # A folder's name stays when its weights are others.
    record["base"] = base_revision(opened.folder)
    if opened.adapter is not None:
        record["adapter"] = joint_hash(adapter_files(opened.adapter))
    record["teachers"] = [[t.name for t in stage.teachers or ()] for stage in stages]
    record["stores"] = [[s.folder.name for s in stage.stores] for stage in stages]
    for stage in record["stages"]:
        for key in _MEMORY:
            del stage[key]
        for source in stage["sources"]:
            del source["path"], source["licence"]
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
