"""From a stage's sources to token stores: read, rendered and tokenised once, then found again in the cache."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedkit.contract import Template
from embedkit.errors import InputError
from embedkit_trainer.config.records import GRADED, TEACHER_SCORES, SourceConfig, StageConfig
from embedkit_trainer.data.formats.registry import get_format, load_rows
from embedkit_trainer.data.rendering import TokenizerPair
from embedkit_trainer.data.store import TokenStore, cached_store

if TYPE_CHECKING:
    from embedkit.embedders.tokens import TokenBuilder


def tokenizer_pair(queries: TokenBuilder, documents: TokenBuilder, template: Template) -> TokenizerPair:
    """Return the two builders with the key that a cached store is found by: tokenizer and special tokens."""
    parts = [queries.tokenizer.to_str(), *(f"{b.prefix}{b.suffix}" for b in (queries, documents))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return TokenizerPair(queries, documents, template, key, queries.max_length, documents.max_length)


def open_store(source: SourceConfig, tokens: TokenizerPair, cache: Path) -> TokenStore:
    """Return the tokens of one source, made below `cache` where they are not there yet.

    What the source says of instructions and licence goes before what is known of its format.

    Raises InputError for a path that does not exist and a source without rows, CorpusError for a file that cannot
    be read.
    """
    form = get_format(source.format)
    settings = replace(
        source,
        name=source.name or Path(source.path).stem,
        instructions=form.instructions if source.instructions is None else source.instructions,
        licence=source.licence or form.licence,
    )
    return cached_store(
        settings,
        tokens,
        cache,
        source_files(source.path),
        lambda: load_rows(source.format, source.path, source=settings.name),
    )


def open_stores(stage: StageConfig, tokens: TokenizerPair, cache: Path) -> list[TokenStore]:
    """Return the tokens of a stage's sources, in their order; raises as `open_store` does."""
    return [open_store(source, tokens, cache) for source in stage.sources]


def check_scores(stage: StageConfig, stores: Sequence[TokenStore]) -> None:
    """Raise InputError where the loss compares scores that the rows lack; before anything is loaded.

    Beside a contrastive part, a source without any teacher scores goes by that part alone.
    """
    rows_are_scored = stage.loss.name in TEACHER_SCORES and stage.teacher is None
    scored = [any(s.row(i).teacher_scores for i in range(len(s))) for s in stores] if rows_are_scored else []
    alone_will_do = stage.loss.contrastive_weight > 0 and any(scored)
    for store, has_scores in zip(stores, scored, strict=False):
        if not has_scores and not alone_will_do:
            raise InputError(
                f"stage {stage.name!r} follows a teacher's scores ({stage.loss.name}), but no row of source "
                f"{store.name!r} has teacher_scores: add them, name a teacher, or choose another loss"
            )
    for store in stores if stage.loss.name in GRADED else ():
        for i in range(len(store)):
            row = store.row(i)
            if np.isnan(row.score):
                raise InputError(
                    f"stage {stage.name!r} trains on graded pairs ({stage.loss.name}), but source {store.name!r}, "
                    f"line {row.line}, has no score: add it, or choose another loss"
                )


def path_exists(path: str) -> bool:
    """Say whether a file, a folder, or a glob with a match is there."""
    return Path(path).exists() or any(glob.iglob(path, recursive=True))  # noqa: PTH207


def source_files(path: str) -> list[Path]:
    """Return every file that a path (a file, a folder or a glob) means, sorted. Raises InputError for none."""
    given = Path(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [p for p in sorted(given.rglob("*")) if p.is_file()]
        problem = "is an empty folder: put the data there"
    else:
        found = [p for p in map(Path, sorted(glob.glob(path, recursive=True))) if p.is_file()]  # noqa: PTH207
        problem = "matches no file" if glob.has_magic(path) else "does not exist: check the path"
    if not found:
        raise InputError(f"{path} {problem}")
    return found
