"""What a run would do, without its weights: rows, lengths, rendered examples, steps, negatives per query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedkit_trainer.backend import work_folder
from embedkit_trainer.config.base_models import ParameterCount, count_parameters
from embedkit_trainer.config.records import (
    CONTRASTIVE,
    TEACHER_SCORES,
    LossConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
)
from embedkit_trainer.data.plan import BatchPlan
from embedkit_trainer.data.sources import check_scores, open_stores, tokenizer_pair
from embedkit_trainer.data.store import TokenStore
from embedkit_trainer.optimization import warmup_steps

if TYPE_CHECKING:
    from embedkit.embedders.tokens import TokenBuilder

_PERCENTILES = (50, 95, 100)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Hold percentiles of lengths in tokens, and the share of texts that were cut."""

    median: int
    p95: int
    longest: int
    cut: float


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Hold one text as it is encoded: the exact string, its ids, and what each id stands for.

    `ends_with_special` says whether the last token, which last-token pooling reads, is one that is added (EOS).
    """

    side: str
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    ends_with_special: bool


@dataclass(frozen=True, slots=True)
class Example:
    """Hold one row as it is trained on."""

    line: int
    instruction: str | None
    texts: tuple[EncodedText, ...]


@dataclass(frozen=True, slots=True)
class SourceSurvey:
    """Describe one source: `rows` it holds, `taken` in an epoch, tokens of all its texts, lengths, examples.

    `negatives` is the mean number of a row's negatives that are used.
    """

    name: str
    path: str
    rows: int
    taken: int
    tokens: int
    instructed: int
    negatives: float
    queries: Lengths
    documents: Lengths
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class StageSurvey:
    """Describe one stage.

    `batch_size` is the global batch; `queries_per_update` counts the accumulated batches too, which share no
    negatives. `negatives_per_query` is the most that a query can have, before any is masked.
    """

    name: str
    sources: tuple[SourceSurvey, ...]
    examples: int
    steps: int
    steps_per_epoch: int
    updates: int
    warmup: int
    batch_size: int
    per_process: float
    accumulation: int
    queries_per_update: int
    negatives_per_query: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Describe a run: its stages, processes, and parameters (None where the base's configuration is not at hand)."""

    stages: tuple[StageSurvey, ...]
    processes: int
    parameters: ParameterCount | None

    def figures(self) -> dict[str, Any]:
        """Return what `fidelity` compares, by key path or figure's name."""
        figures: dict[str, Any] = {}
        if self.parameters is not None:
            figures["trainable_parameters"] = self.parameters.trained
        for stage in self.stages:
            path = f"stages.{stage.name}"
            figures[f"{path}.examples"] = stage.examples
            figures[f"{path}.steps"] = stage.updates
            figures[f"{path}.negatives_per_query"] = stage.negatives_per_query
            figures[f"{path}.optimizer.warmup_steps"] = stage.warmup
        return figures


def survey(config: RunConfig, examples: int = 1) -> Survey:
    """Read and tokenise a run's data (into the cache that training uses) and say what would happen.

    No weights are loaded. Raises InputError and CorpusError for data that cannot be trained on.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    cache = work_folder(config) / "cache"
    stages = tuple(_stage(stage, config, cache, processes, examples) for stage in config.stages)
    return Survey(stages, processes, count_parameters(config.model))


def outline(config: RunConfig) -> dict[str, Any]:
    """Return those of `Survey.figures` that are known before the data is read."""
    figures: dict[str, Any] = {}
    parameters = count_parameters(config.model)
    if parameters is not None:
        figures["trainable_parameters"] = parameters.trained
    for stage in config.stages:
        negatives = max(stage.negatives_of(source) for source in stage.sources)
        most = negatives_per_query(stage.loss, stage.batch_size, negatives)
        figures[f"stages.{stage.name}.negatives_per_query"] = most
    return figures


def negatives_per_query(loss: LossConfig, batch_size: int, negatives: int) -> int:
    """Return how many documents a query's positive competes with: the other positives and all hard negatives.

    Accumulated batches add none.
    """
    if loss.name not in CONTRASTIVE:
        return negatives if loss.name in TEACHER_SCORES else 0
    return batch_size * (1 + negatives) - 1 if loss.in_batch else negatives


def _stage(stage: StageConfig, config: RunConfig, cache: Path, processes: int, examples: int) -> StageSurvey:
    from embedkit_trainer.model import load_tokens

    opened, queries, documents = load_tokens(config.model, stage.query_length, stage.document_length)
    stores = open_stores(stage, tokenizer_pair(queries, documents, opened.template), cache)
    check_scores(stage, stores)
    plan = BatchPlan.of(stage, [len(s) for s in stores], seed=config.seed)
    updates = max(1, plan.steps // stage.accumulation)
    sources = tuple(
        _source(stage, i, store, (queries, documents), examples) for i, store in enumerate(stores)
    )
    most = max(s.negatives for s in sources)
    return StageSurvey(
        name=stage.name,
        sources=sources,
        examples=sum(s.taken for s in sources),
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        updates=updates,
        warmup=warmup_steps(stage.optimizer, updates),
        batch_size=stage.batch_size,
        per_process=stage.batch_size / processes,
        accumulation=stage.accumulation,
        queries_per_update=stage.batch_size * stage.accumulation,
        negatives_per_query=negatives_per_query(stage.loss, stage.batch_size, round(most)),
        remarks=tuple(_remarks(stage, config.model, plan, sources)),
    )


def _source(
    stage: StageConfig,
    number: int,
    store: TokenStore,
    builders: tuple[TokenBuilder, TokenBuilder],
    examples: int,
) -> SourceSurvey:
    source = stage.sources[number]
    counts = store.counts
    negatives = np.minimum(np.diff(store.document_starts) - 1, stage.negatives_of(source))
    return SourceSurvey(
        name=source.name,
        path=source.path,
        rows=counts.rows,
        taken=max(1, int(counts.rows * source.ratio + 1e-6)),
        tokens=counts.query_tokens + counts.document_tokens,
        instructed=counts.instructed,
        negatives=float(negatives.mean()),
        queries=_lengths(store.query_lengths, counts.truncated_queries),
        documents=_lengths(store.all_document_lengths, counts.truncated_documents),
        examples=tuple(_example(store, i, builders) for i in range(min(examples, counts.rows))),
    )


def _lengths(lengths: NDArray[np.int32], cut: int) -> Lengths:
    median, p95, longest = np.percentile(lengths, _PERCENTILES, method="higher").astype(int).tolist()
    return Lengths(median, p95, longest, cut / len(lengths))


def _example(store: TokenStore, i: int, builders: tuple[TokenBuilder, TokenBuilder]) -> Example:
    rendered, tokens = store.rendered(i), store.row(i)
    queries, documents = builders
    texts = [_encoded("query", rendered.query, tokens.query, queries)]
    for n, (text, ids) in enumerate(zip(rendered.documents, tokens.documents, strict=True)):
        texts.append(_encoded("positive" if n == 0 else "negative", text, ids, documents))
    return Example(tokens.line, rendered.instruction, tuple(texts))


def _encoded(side: str, text: str, ids: NDArray[np.int32], builder: TokenBuilder) -> EncodedText:
    numbers = tuple(ids.tolist())
    names = tuple(builder.tokenizer.id_to_token(i) or "?" for i in numbers)
    added = bool(builder.suffix) and numbers[-len(builder.suffix) :] == builder.suffix
    return EncodedText(side, text, numbers, names, added)


def _remarks(
    stage: StageConfig, model: ModelConfig, plan: BatchPlan, sources: Sequence[SourceSurvey]
) -> list[str]:
    remarks = []
    if stage.accumulation > 1:
        remarks.append(
            f"accumulation {stage.accumulation} sums gradients of {stage.accumulation} batches; it does not enlarge "
            "the pool of negatives: raise batch_size for that (chunk_tokens keeps the memory)"
        )
    wanted = [s for s in sources if stage.negatives and s.negatives < min(1, stage.negatives)]
    if wanted and stage.loss.name in CONTRASTIVE:
        names = ", ".join(s.name for s in wanted)
        remarks.append(f"rows without hard negatives in {names}: `embedkit mine` finds some")
    small = [s.name for s in sources if s.rows < stage.batch_size]
    if small and stage.batches == "one-source":
        remarks.append(
            f"fewer rows than a batch in {', '.join(small)}: their batches, and pools of negatives, are smaller"
        )
    for source in sources:
        ends = [t for e in source.examples for t in e.texts if not t.ends_with_special]
        if ends and model.pooling == "last":
            remarks.append(f"{source.name}: the last token of a {ends[0].side} is no special one")
    return remarks
