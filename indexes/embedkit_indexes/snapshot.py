"""One version of an index: its segments, held open together and searched as one."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit.errors import CorruptIndexError
from embedkit.tasks import Task
from embedkit_indexes.manifest import NAME, Manifest
from embedkit_indexes.planner import SearchEffort
from embedkit_indexes.rows import RowSet
from embedkit_indexes.segment import FilterFields, Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.cells import Cells
    from embedkit_indexes.filters import Condition
    from embedkit_indexes.request import SearchRequest

# Bitmaps of the last filters: 1 to 9 MB each for a million chunks, by what was asked of them.
_FILTERS_KEPT = 8


class Ranking(NamedTuple):
    """What one query found: scores and row numbers, best first. `rows` run over all segments."""

    scores: list[float]
    rows: list[int]


class Snapshot:
    """Hold the segments of one manifest: what is deleted or replaced later stays readable here."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.directory = directory
        self.segments = [Segment(directory, r) for r in manifest.segments]
        # What a hit calls the directory of each segment: where one index is searched, there is nothing to tell apart.
        self.origins = [""] * len(self.segments)
        self.languages = list(manifest.languages)
        self._stamp = b""
        self._filters: OrderedDict[str, list[RowSet | None]] = OrderedDict()

    @staticmethod
    def open(directory: Path) -> Snapshot:
        """Open the latest version. Raises NotAnIndexError, CorruptIndexError."""
        while True:
            before = _stamp(directory)
            try:
                snapshot = Snapshot(directory, Manifest.read(directory))
                snapshot._stamp = before
            except CorruptIndexError:
                # A change that ended just now may have taken the old folders away.
                if _stamp(directory) == before:
                    raise
                continue
            # Only now, with the folders pinned, is it certain that they are whole.
            if _stamp(directory) == before:
                return snapshot

    def outdated(self, directory: Path) -> bool:
        """Return whether the directory holds another version. Raises NotAnIndexError, CorruptIndexError."""
        return _stamp(directory) != self._stamp and Manifest.read(directory) != self.manifest

    def __len__(self) -> int:
        """Return the number of chunks that are not deleted."""
        return self.manifest.chunks

    def map(self) -> None:
        """Map all files that a search needs, and open the engines."""
        for segment in self.segments:
            segment.map()
            _ = segment.engine

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks stored with this version, by name."""
        return {t["name"]: Task(**t) for t in self.manifest.tasks}

    @cached_property
    def offsets(self) -> list[int]:
        """The number of each segment's first row, and of the row after the last."""
        out = [0]
        for segment in self.segments:
            out.append(out[-1] + len(segment))
        return out

    def allowed(self, condition: Condition | None) -> list[RowSet | None]:
        """Return the rows of each segment that are not deleted and satisfy the condition, None for all.

        Raises UnknownNameError for a field that no segment has, InputError for one of another type.
        """
        if condition is None:
            return [s.alive for s in self.segments]
        key = str(condition)
        with suppress(KeyError):  # not there, or another thread's filter pushes it out just now
            self._filters.move_to_end(key)
            return self._filters[key]
        from embedkit_indexes.filters import check

        fields = [FilterFields(s) for s in self.segments]
        check(condition, fields)
        found: list[RowSet | None] = [
            RowSet(condition.mask(f)) & s.alive for f, s in zip(fields, self.segments, strict=True)
        ]
        self._filters[key] = found
        if len(self._filters) > _FILTERS_KEPT:
            self._filters.popitem(last=False)
        return found

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        allowed: Sequence[RowSet | None],
        effort: SearchEffort | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k best scores and row numbers for each query, [queries, k], -inf and -1 where there are fewer."""
        parts = [
            (segment.engine.search(vectors, min(k, len(segment)), rows, effort), offset)
            for segment, rows, offset in zip(self.segments, allowed, self.offsets, strict=False)
            if rows is None or rows.count
        ]
        if len(parts) == 1 and not parts[0][1]:
            return parts[0][0]
        import numpy as np

        if not parts:
            return np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
        scores = np.concatenate([s for (s, _), _ in parts], axis=1)
        numbers = np.concatenate([np.where(n < 0, -1, n + offset) for (_, n), offset in parts], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(numbers, order, axis=1)

    def lexical(self, query: str, k: int, allowed: Sequence[RowSet | None]) -> Ranking:
        """Return the chunks with the query's words, by BM25."""
        from embedkit_indexes.lexical import search_lexical

        scores, segments, rows = search_lexical([s.lexical for s in self.segments], query, k, allowed)
        numbers = [self.offsets[s] + int(r) for s, r in zip(segments, rows, strict=True)]
        return Ranking([float(s) for s in scores], numbers)

    def cosine(self, vector: NDArray[np.float32], numbers: Sequence[int]) -> list[float]:
        """Return the cosine of a query vector, float32 [dim], and each of these rows."""
        import numpy as np

        out = []
        for number in numbers:
            segment, row = self.place(number)
            out.append(float(np.asarray(self.segments[segment].vectors[row], np.float32) @ vector))
        return out

    def place(self, number: int) -> tuple[int, int]:
        """Return the segment and the row in it that a number stands for."""
        segment = bisect_right(self.offsets, number) - 1
        return segment, number - self.offsets[segment]

    def plan(self, request: SearchRequest) -> dict[str, Any]:
        """Say in plain values how a search goes: of the largest segment, and how many there are."""
        allowed = self.allowed(request.condition)
        out: dict[str, Any] = {"mode": request.mode, "k": request.k}
        if self.segments and request.mode != "lexical":
            at = max(range(len(self.segments)), key=lambda i: len(self.segments[i]))
            out |= self.segments[at].engine.plan(request.k, allowed[at], request.effort)
        if request.condition is not None:
            out["filter"] = str(request.condition)
            out["matches"] = sum(
                r.count if r is not None else len(s) for r, s in zip(allowed, self.segments, strict=True)
            )
        return out | {"segments": len(self.segments)}

    def places(self, numbers: Sequence[int]) -> list[tuple[Cells, int, str]]:
        """Return where these rows lie: their segment's cells, the row in it, and the directory of one of several."""
        segments, origins = self.segments, self.origins
        if len(segments) == 1:
            cells, origin = segments[0].cells, origins[0]
            return [(cells, number, origin) for number in numbers]
        return [(segments[s].cells, row, origins[s]) for s, row in map(self.place, numbers)]

    @cached_property
    def document_ids(self) -> list[str]:
        """The document of every row, the deleted ones too."""
        return [d for s in self.segments for d in s.document_ids]


def _stamp(directory: Path) -> bytes:
    """Return the manifest as it stands, unread: another version differs."""
    try:
        return (directory / NAME).read_bytes()
    except OSError:
        return b""
