"""Find rerankers by name or path; plug-ins are listed from package metadata without importing them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError, RerankerError, UnknownNameError
from embedkit.plug_ins import find_plug_ins, open_plug_in
from embedkit.rerankers.base import Reranker

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "embedkit.rerankers"


@cache
def list_rerankers() -> dict[str, EntryPoint]:
    """Return the installed reranker kinds by name, sorted, none of them imported."""
    return find_plug_ins(GROUP)


def get_reranker(name_or_path: str, /, **options: Any) -> Reranker:
    """Open a reranker.

    `name_or_path` is a Hugging Face id (`cross-encoder/ms-marco-MiniLM-L6-v2`), a model folder, or a kind and its
    model: `cross-encoder:FOLDER`, `llm:MODEL@http://host/v1`, `embedder:NAME` for late re-scoring by another embedder.
    `options` go to the reranker. Raises UnknownNameError, InputError or MissingExtraError; RerankerError, naming the
    plug-in, where its import or opening fails; EmbedderError for model files that cannot be read.
    """
    kind, model = _split(name_or_path)
    kinds = list_rerankers()
    if kind not in kinds:
        raise UnknownNameError("reranker", kind, kinds, "A model folder or a Hugging Face id will do too.")
    # mypy: the base class is abstract, and any subclass of it will do.
    return open_plug_in(kinds[kind], model, options, Reranker, RerankerError)  # type: ignore[type-abstract]


def _split(spec: str) -> tuple[str, str]:
    if not isinstance(spec, str):
        raise InputError(
            f"the reranker's name is {spec!r:.60}, {type(spec).__name__}: give a text, str(path) of a path"
        )
    if not spec:
        raise InputError("the reranker's name is empty: give a folder, a Hugging Face id, or kind:model")
    kinds = list_rerankers()
    if spec in kinds:
        # A folder that happens to be called so is ./llm.
        return spec, ""
    if (folder := _existing(spec)) is not None:
        return "cross-encoder", str(folder)
    kind, colon, model = spec.partition(":")
    if colon and kind in kinds:
        return kind, model
    if "/" in spec and not colon:
        if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
            raise InputError(f"reranker path {spec!r} does not exist: check it")
        return "cross-encoder", spec
    return kind if colon else spec, ""


def _existing(spec: str) -> Path | None:
    try:
        path = Path(spec).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long a name, a user who is not there
        return None
