"""What the command line asks of an index that is there, and what it was built with: they agree, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    from embedkit.embedder import Embedder
    from embedkit_cli.options import EmbedderChoice
    from embedkit_indexes import Index
    from embedkit_indexes.manifest import Manifest

_CHUNK_TOKENS = 256  # ChunkConfig's where it is told nothing
_ENGINE = ("--engine", "--recall", "--memory-budget")


def check_settings(directory: str, manifest: Manifest, told: Mapping[str, Any]) -> None:
    """Refuse an option that says otherwise than the index was built. Raises InputError naming both."""
    for option, asked, built in _settings(manifest, told):
        if asked is not None and asked != built:
            way = "add --force to build it anew"
            if option in _ENGINE:
                way = f"change it with `embedkit compact {directory} {option} {asked}`, which embeds nothing"
            raise InputError(
                f"{directory} was built with {option} {_plain(built)}, not {_plain(asked)}: leave the option out, or {way}"
            )
    if told.get("tune_queries") is not None:
        raise InputError(
            f"{directory} is there already, and --tune-queries tunes a new index: leave it out, or add --force"
        )


def _settings(manifest: Manifest, told: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    chunker, engine = manifest.chunker, manifest.engine
    longest = min(int(manifest.embedder.get("max_length", _CHUNK_TOKENS)), _CHUNK_TOKENS)
    yield "--max-tokens", told.get("max_tokens"), chunker.get("max_tokens") or longest
    yield "--overlap", told.get("overlap"), chunker.get("overlap_tokens")
    yield "--no-split", told.get("no_split") or None, not chunker.get("split", True)
    yield "--vectors", told.get("vectors"), manifest.dtype
    yield "--engine", told.get("engine"), engine.get("type")
    yield "--recall", told.get("recall"), engine.get("recall")
    yield "--memory-budget", told.get("memory_budget"), engine.get("memory_budget")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def opened_for(index: Index, name: str | None, choice: EmbedderChoice) -> Embedder | None:
    """Return the embedder that the options describe, None where they say nothing: then the index opens its own.

    Options alone, or with the index's own embedder, come on top of those that it was built with.
    """
    if name is None and not choice.options:
        return None
    manifest = index.manifest
    if not manifest.spec or (name is not None and choice.spec != manifest.spec):
        return choice.open() if name is not None else None
    from embedkit.registry import reopen_embedder

    return reopen_embedder(manifest.spec, {**manifest.options, **choice.options})
