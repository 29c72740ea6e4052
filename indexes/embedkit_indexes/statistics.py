"""Count what an index holds, from its documents that are not deleted, and describe it in a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedkit.tasks import dump_tasks
from embedkit_indexes.manifest import Manifest, Probe, SegmentRecord
from embedkit_indexes.segment import Segment
from embedkit_indexes.settings import IndexSettings

PROBES = (
    "The moon pulls the ocean into tides twice a day.",
    "def area(radius): return 3.14159 * radius ** 2",
)
_SUMS = ("chunks", "characters", "uncovered", "tokens", "truncated_chunks", "truncated_tokens")


def make_manifest(
    directory: Path,
    settings: IndexSettings,
    base: Manifest | None,
    records: Sequence[SegmentRecord],
    *,
    next_id: int,
    skipped: Mapping[str, int] | None,
) -> Manifest:
    """Describe an index of these segments. The probes of `base` stay where its embedder does."""
    from importlib.metadata import version

    sums, languages = Counter[str](), Counter[str]()
    documents = 0
    for record in records:
        segment = Segment(directory, record)
        live = segment.live_documents
        documents += int(live.sum())
        for name in _SUMS:
            sums[name] += int(segment.documents(name).to_numpy()[live].sum())
        languages.update(_languages(segment))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    same = base is not None and base.fingerprint == settings.fingerprint
    return Manifest(
        fingerprint=settings.fingerprint,
        embedder=settings.described,
        spec=settings.spec,
        options=settings.options,
        chunker={"fingerprint": settings.chunking.fingerprint(), **asdict(settings.chunking)},
        engine=asdict(settings.engine),
        segments=tuple(records),
        probes=base.probes if same and base is not None else _probes(settings),
        dtype=settings.dtype,
        dim=settings.dim,
        documents=documents,
        chunks=sums["chunks"],
        tokens=sums["tokens"],
        truncated_chunks=sums["truncated_chunks"],
        truncated_tokens=sums["truncated_tokens"],
        coverage=1.0 - sums["uncovered"] / sums["characters"] if sums["characters"] else 1.0,
        languages=dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        created=base.created if base else now,
        updated=now,
        version=version("embedkit-retrieval"),
        generation=base.generation + 1 if base else 1,
        next_id=next_id,
        sources=settings.sources,
        tasks=tuple(dump_tasks(settings.tasks.values())),
        skipped=dict(skipped if skipped is not None else base.skipped if base else {}),
    )


def _probes(settings: IndexSettings) -> tuple[Probe, ...]:
    vectors = settings.opened.encode_document(PROBES)
    return tuple(Probe(t, tuple(round(float(x), 6) for x in v)) for t, v in zip(PROBES, vectors, strict=True))


def _languages(segment: Segment) -> dict[str, int]:
    import pyarrow as pa

    column: Any = segment.documents("lang").filter(pa.array(segment.live_documents))
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
