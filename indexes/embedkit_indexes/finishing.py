"""Bring a segment into its final form: less what is deleted, merged with others, with an engine that was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError
from embedkit.syncing import sync_file
from embedkit_indexes import durable, faiss_engine
from embedkit_indexes.lexical import merge_lexical
from embedkit_indexes.manifest import Deletions, FileRecord, Manifest, SegmentRecord
from embedkit_indexes.planner import EngineConfig, SearchEffort
from embedkit_indexes.rows import RowSet
from embedkit_indexes.segment import Segment
from embedkit_indexes.tuning import QUERIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.segment_writer import SegmentWriter

# At most QUERIES vectors of 16 bits a number: what a later merge builds is measured on them too.
TUNING = "queries.f16"
# A new segment takes in those before it that hold at most so many times its chunks: each chunk is copied a few
# times in all, and their number grows with the logarithm of the index's size.
_GROWTH = 4
# Beyond this share of deleted chunks a segment is written anew.
_DEAD_SHARE = 0.5


def as_segment(writer: SegmentWriter) -> Segment:
    """Return what a writer has finished as a segment, without an engine and checksums yet."""
    folder = writer.folder
    return Segment(folder.parent, SegmentRecord(folder.name, writer.document_count, writer.rows, {}, {}))


def with_deletions(segment: Segment, dead: NDArray[np.bool_], path: Path) -> Segment:
    """Return the segment with the documents that are deleted now, bool [documents], in a bitmap of its own at `path`.

    Where no more are deleted than before it is returned as it is, and nothing is written.
    """
    import numpy as np

    if np.array_equal(dead, ~segment.live_documents):
        return segment
    # Not `tofile`, which says nothing on a full disk.
    path.write_bytes(RowSet(dead).packed.tobytes())
    sync_file(path)
    chunks = int(segment.documents("chunks").to_numpy()[dead].sum())
    deletions = Deletions(path.name, FileRecord.of(path), int(dead.sum()), chunks)
    return Segment(path.parent, replace(segment.record, deletions=deletions))


def merge_segments(segments: Sequence[Segment], writer: SegmentWriter) -> Segment:
    """Write what is not deleted of the segments as one, its words included."""
    try:
        for segment in segments:
            writer.copy(segment)
        writer.finish()
    finally:
        writer.close()
    merge_lexical(writer.folder, [(s.lexical, s.alive) for s in segments])
    return as_segment(writer)


def finish_segment(
    segment: Segment,
    config: EngineConfig,
    queries: NDArray[np.float32] | None,
    tell: Callable[[str], None],
    *,
    keep_queries: bool = False,
) -> SegmentRecord:
    """Give a segment its engine, check it, force all to the disk and describe it.

    `queries`, float32 [n, dim], are real ones to tune on; with `keep_queries` they are stored for the changes to come.
    """
    folder = segment.folder
    engine = faiss_engine.build(folder, segment.vectors, config, queries, tell)
    if queries is not None and keep_queries:
        _write_queries(folder, queries)
    _find_themselves(folder, segment.vectors, engine)
    durable.sync_files(folder)
    files = {p.name: FileRecord.of(p) for p in sorted(folder.iterdir())}
    return replace(segment.record, engine=engine, files=files)


def _write_queries(folder: Path, queries: NDArray[np.float32]) -> None:
    import numpy as np

    # Those that were measured: `held_out` draws the same.
    chosen = np.random.default_rng(1).choice(len(queries), min(QUERIES, len(queries)), replace=False)
    (folder / TUNING).write_bytes(queries[np.sort(chosen)].astype(np.float16).tobytes())


def query_holder(base: Manifest | None, fingerprint: str) -> SegmentRecord | None:
    """Return the segment that keeps the queries it was tuned on, where they are of the embedder with this fingerprint."""
    if base is None or base.fingerprint != fingerprint:
        return None
    return next((s for s in base.segments if TUNING in s.files), None)


def read_queries(directory: Path, record: SegmentRecord, dim: int) -> NDArray[np.float32]:
    """Return the queries that a segment keeps, float32 [n, dim]. Raises CorruptIndexError where they were altered."""
    import numpy as np

    path = directory / record.name / TUNING
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record.files[TUNING].sha256 or len(data) % (2 * dim):
        raise CorruptIndexError(f"{path} was altered: the index is damaged, rebuild with `embedkit index`")
    return np.frombuffer(data, np.float16).reshape(-1, dim).astype(np.float32)


def plan_merge(
    parts: list[Segment], fresh: bool, compact: bool, *, other_engine: bool = False
) -> tuple[list[Segment], list[Segment]]:
    """Return the segments that become one, and those that stay as they are; the last of `parts` may be new.

    With `other_engine`, `compact` also writes anew what is one segment already.
    """
    if compact:
        whole = len(parts) == 1 and not fresh and parts[0].record.deletions is None and not other_engine
        return ([], parts) if whole else (parts, [])
    at = len(parts) - 1 if fresh else len(parts)
    rows = sum(s.record.live for s in parts[at:])
    while fresh and at and parts[at - 1].record.live <= _GROWTH * rows:
        at -= 1
        rows += parts[at].record.live
    merged = parts[at:]
    rest: list[Segment] = []
    for segment in parts[:at]:
        deletions = segment.record.deletions
        worn = deletions is not None and deletions.chunks > _DEAD_SHARE * segment.record.chunks
        (merged if worn else rest).append(segment)
    merged.sort(key=parts.index)
    return merged, rest


def _find_themselves(folder: Path, vectors: NDArray[Any], engine: Mapping[str, Any]) -> None:
    """Search for a few of the vectors themselves: each must come back with a score of one."""
    import numpy as np

    rows = np.unique(np.linspace(0, len(vectors) - 1, 16).astype(np.int64))
    queries = np.ascontiguousarray(vectors[rows], dtype=np.float32)
    queries = queries[queries.any(axis=1)]
    if not len(queries):
        return
    opened = faiss_engine.open_engine(folder, vectors, engine)
    scores, _ = opened.search(queries, 1, effort=SearchEffort(recall=1.0))
    # An exact engine would do the same once more.
    by_engine = scores if engine["type"] == "exact" else opened.search(queries, 1)[0]
    # A graph or cells may miss some: many equal texts can lead a walk astray.
    if (scores < 0.998).any() or float((by_engine >= 0.998).mean()) < 0.5:
        raise CorruptIndexError(
            f"the new index does not find its own vectors (score {float(scores.min()):.3f} instead of 1): nothing was "
            "replaced; run `embedkit doctor`"
        )
