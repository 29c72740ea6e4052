"""Arguments as a program gives them, made what is worked with; one of the wrong type is told in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.registry import full_name, get_embedder

if TYPE_CHECKING:
    from embedkit_indexes.filters import Condition


def as_path(value: Any, name: str = "directory") -> Path:
    """Return an argument as a path. Raises InputError for what is none."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{name} is {value!r:.60}, {type(value).__name__}: give a path")
    return Path(value)


def checked_ids(ids: Any) -> list[str]:
    """Return ids as a list, a single one too. Raises InputError for what is none."""
    if isinstance(ids, str):
        return [ids]
    if isinstance(ids, bytes) or not isinstance(ids, Iterable):
        raise InputError(f"ids is {ids!r:.60}, {type(ids).__name__}: give an iterable of strings")
    wanted = list(ids)
    for id in wanted:
        if not isinstance(id, str):
            raise InputError(f"an id to delete is {id!r:.60}, {type(id).__name__}: ids are strings")
    return wanted


def checked_condition(source: Any, where: Any) -> Condition | None:
    """Return as one condition what `source` and `where` ask for, None for nothing. Raises InputError for another type."""
    from embedkit_indexes.filters import Condition, F
    from embedkit_indexes.where import parse_where

    if where is not None and not isinstance(where, str | Condition):
        raise InputError(
            f"where is {where!r:.60}, {type(where).__name__}: give a filter, as in 'year > 2020' or F(\"year\") > 2020"
        )
    if not isinstance(source, str | None):
        raise InputError(f"source is {source!r:.60}, {type(source).__name__}: give a string, as hits have it")
    condition = parse_where(where) if isinstance(where, str) else where
    if source is None:
        return condition
    return F("source") == source if condition is None else (F("source") == source) & condition


def opened_embedder(embedder: Embedder | str, spec: str, options: Mapping[str, Any]) -> tuple[Embedder, str]:
    """Return an embedder, opened where it is a name, and the name by which it opens again: `spec` where it is given."""
    if isinstance(embedder, str):
        spec = full_name(spec or embedder)
        embedder = get_embedder(embedder, **options)
    return embedder, spec
