"""Arguments of the wrong type, each told in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedkit.errors import InputError


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
