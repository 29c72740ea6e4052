"""What `embedkit info` tells of an index, beside its counts: sources, segments, engines and what they measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit_cli.output import counted, size_text

if TYPE_CHECKING:
    from embedkit_indexes import Index
    from embedkit_indexes.manifest import Manifest, SegmentRecord

_COUNTS = ("documents", "chunks", "tokens", "truncated_tokens", "coverage")
# Of an engine's description: what is told elsewhere.
_ELSEWHERE = ("type", "files", "curve", "rows", "dim", "recall")
_MOST_SEGMENTS = 12
_MOST_POINTS = 12


class Columns(NamedTuple):
    """A small table of numbers; a last column called `engine` holds text."""

    names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def summary(directory: str, index: Index, *, verified: bool) -> dict[str, Any]:
    """Return what people are shown of an index, in its order: text, mappings and `Columns`."""
    manifest = index.manifest
    embedder = manifest.embedder
    total = sum(record.bytes for _, record in manifest.files())
    shown = {
        "directory": directory,
        **{name: getattr(manifest, name) for name in _COUNTS},
        "skipped": _counted(manifest.skipped),
        "languages": _counted(manifest.languages),
        "sources": _sources(directory, manifest),
        "embedder": f"{manifest.spec or embedder['name']}, {dimensions(manifest.dim, embedder)}",
        "options": _named(manifest.options),
        "fingerprint": manifest.fingerprint,
        "chunker": _named(manifest.chunker),
        "vectors": manifest.dtype,
        "engine": _named({k: v for k, v in manifest.engine.items() if v is not None}),
        "segments": _segments(manifest.segments),
    }
    for number, segment in enumerate(manifest.segments, 1):
        if curve := _curve(segment.engine):
            shown["measured" if len(manifest.segments) == 1 else f"measured {number}"] = curve
    return shown | {
        "size": size_text(total) + (", every file verified" if verified else ""),
        "created": f"{manifest.created} by embedkit {manifest.version}",
        "updated": f"{manifest.updated}, generation {manifest.generation}",
        "tasks": ", ".join(index.tasks),
    }


def dimensions(dim: int, embedder: Mapping[str, Any]) -> str:
    """Return how long an index's vectors are, and what of the model's own length that is."""
    full, dims = embedder.get("full_dim"), embedder.get("matryoshka_dims")
    length = f"{dim} of {full}" if full else str(dim)
    return f"{length} dimensions" + (f" (trained to be cut to {', '.join(map(str, dims))})" if dims else "")


def _sources(directory: str, manifest: Manifest) -> str:
    from embedkit.errors import CorruptIndexError
    from embedkit_cli.origins import Origin

    try:
        return ", ".join(origin.shown for origin in Origin.of(manifest, Path(directory)))
    except CorruptIndexError:
        return "unknown"


def _segments(segments: Sequence[SegmentRecord]) -> Columns:
    rows = []
    for s in segments[:_MOST_SEGMENTS]:
        told = _named({k: v for k, v in s.engine.items() if k not in _ELSEWHERE and isinstance(v, int | str)})
        size = sum(record.bytes for record in s.files.values())
        rows.append(
            (
                f"{s.live:,}",
                f"{s.chunks - s.live:,}",
                size_text(size),
                f"{s.engine['type']}{told and ': '}{told}",
            )
        )
    if len(segments) > _MOST_SEGMENTS:
        rest = segments[_MOST_SEGMENTS:]
        deleted = sum(s.chunks - s.live for s in rest)
        rows.append(
            (f"{sum(s.live for s in rest):,}", f"{deleted:,}", "", f"in {counted(len(rest), 'more segment')}")
        )
    return Columns(("chunks", "deleted", "size", "engine"), rows)


def _curve(engine: Mapping[str, Any]) -> Columns | None:
    """Return the settings that an engine measured, [] where it is exact; all that differ by much if they are many."""
    points = [p for p in engine.get("curve") or () if isinstance(p, Mapping)]
    if not points:
        return None
    if len(points) > _MOST_POINTS:
        last = len(points) - 1
        points = [points[round(i * last / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
    effort = "ef_search" if str(engine["type"]).startswith("hnsw") else "nprobe"
    rows = []
    for p in points:
        seconds = float(p.get("seconds") or 0)
        rate = f"{1 / seconds:,.0f}" if seconds else ""
        rows.append(
            (
                f"{p.get('effort'):,}",
                f"{p.get('refine', p.get('rerank')):,}",
                f"{float(p.get('recall', 0)):.3f}",
                rate,
            )
        )
    return Columns((effort, "refine", "recall@10", "queries/s"), rows)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
