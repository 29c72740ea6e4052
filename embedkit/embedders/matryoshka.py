"""Vectors cut to their first numbers, which a Matryoshka model is trained for (Kusupati et al., arXiv 2205.13147)."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedkit.contract import EmbedderInfo
from embedkit.errors import InputError


class DimWarning(UserWarning):
    """Warn that vectors are cut to a length that the model does not say it was trained for."""


def check_dim(dim: Any, name: str = "", full: int | None = None) -> int:
    """Return `dim` as an int. Raises InputError for what is no whole number from 1 to `full`, of the model `name`."""
    try:
        number = 0 if isinstance(dim, bool) else operator.index(dim)
    except TypeError:
        number = 0
    if number < 1 or (full is not None and number > full):
        allowed = "from 1 on" if full is None else f"from 1 to {full}, the length of {name}'s vectors"
        raise InputError(f"dim is {dim!r}: use a whole number {allowed}")
    return number


def cut(info: EmbedderInfo, dim: int | None) -> EmbedderInfo:
    """Return the description of the embedder with its vectors cut to `dim` numbers; None or all: `info` itself.

    Raises InputError as `check_dim` does.
    """
    if dim is None or (dim := check_dim(dim, info.name, info.dim)) == info.dim:
        return info
    return replace(info, dim=dim, full_dim=info.full_dim or info.dim)


def listed_dims(root: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the lengths that a model folder says its vectors may be cut to, longest first.

    They are `matryoshka_dimensions` of config.json, as vLLM reads it, and the `truncate_dim` that sentence-transformers
    saves. The latter cuts nothing here without `dim`: an index made of such a folder stays valid.
    """
    listed = config.get("matryoshka_dimensions")
    path = root / "config_sentence_transformers.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None  # whoever needs the file will say what is wrong with it
    cut = saved.get("truncate_dim") if isinstance(saved, dict) else None
    dims = [*(listed if isinstance(listed, list) else ()), cut]
    return tuple(sorted({d for d in dims if type(d) is int and d > 0}, reverse=True))


def warn_of_untrained(info: EmbedderInfo) -> None:
    """Warn where vectors are cut to a length that is not among `info.matryoshka_dims`."""
    if info.full_dim is None or info.dim in info.matryoshka_dims:
        return
    dims = " or ".join(map(str, info.matryoshka_dims))
    what = f"was trained to be cut to {dims}" if dims else "does not say that its vectors may be cut"
    warnings.warn(
        f"{info.name} {what}: the first {info.dim} of {info.full_dim} numbers may rank worse; measure it with "
        "`embedkit eval`",
        DimWarning,
        stacklevel=3,
    )
