"""The map of a corpus: a point for each chunk, computed once beside the searches and kept in the index's directory."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from embedkit.errors import MissingExtraError
from embedkit.syncing import sync_file
from embedkit_indexes.durable import MAP

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes import Index

log = logging.getLogger("embedkit.server")
# Above this many chunks a seeded sample is laid out.
_SAMPLE = 20_000
_NEIGHBOURS = 5
_BLOCK = 64


class Layout(NamedTuple):
    """Where chunks lie: `chunk_ids` int64 [n] and `points` float32 [n, 2]; `key` tells the version of the index."""

    key: str
    chunk_ids: NDArray[np.int64]
    points: NDArray[np.float32]


class MapState(NamedTuple):
    """The newest layout there is, whether a newer one is under way, and why there is none where there is none."""

    layout: Layout | None
    computing: bool
    problem: str | None

    def status(self) -> str:
        """Return what a client is told: ready, computing or unavailable."""
        return "ready" if self.layout else "computing" if self.computing else "unavailable"


class CorpusMap:
    """The map of one index; asked for the first time, it is computed in the background."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / MAP
        self._lock = threading.Lock()
        self._layout: Layout | None = None
        self._read: tuple[int, int] | None = None
        self._kept: tuple[Hashable, bytes] | None = None
        self._keeping = threading.Lock()
        self._under_way: str | None = None
        self._failed: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def state(self, index: Index) -> MapState:
        """Return what there is for this version of the index, and begin what is missing."""
        key = key_of(index)
        with self._lock:
            if self._layout is None or self._layout.key != key:
                self._look()
            layout = self._layout
            if layout is not None and layout.key == key:
                return MapState(layout, False, None)
            if find_spec("openTSNE") is None and not self._failed:
                log.warning("%s", MissingExtraError("the map", "map"))
                self._failed[key] = "this server was installed without what lays out a map"
            if key in self._failed or self._closed:
                return MapState(layout, False, self._failed.get(key, "the server is stopping"))
            if self._under_way is None:
                self._under_way = key
                threading.Thread(
                    target=self._compute, args=(index, key), name="embedkit-map", daemon=True
                ).start()
            return MapState(layout, True, None)

    def _look(self) -> None:
        """Read the file where it is another than the one that was read last."""
        try:
            told = self._file.stat()
        except OSError:
            return
        seen = (told.st_ino, told.st_mtime_ns)
        if seen != self._read:
            self._read = seen
            self._layout = read_layout(self._file) or self._layout

    def kept(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return what was made for this key; make it where the last was made for another."""
        with self._keeping:
            if self._kept is None or self._kept[0] != key:
                self._kept = key, make()
            return self._kept[1]

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _compute(self, index: Index, key: str) -> None:
        # Where a link in the path is switched meanwhile, the map stays with its own index.
        file = Path(os.path.realpath(self._file))
        try:
            layout = self._laid_out(index, key)
            write_layout(file, layout)
            with self._lock:
                self._layout = layout
        except Exception as e:
            if not self._closed:
                log.error("the map of %s could not be computed", self._file.parent, exc_info=e)
            with self._lock:
                self._failed[key] = "the map could not be computed: the server's log says why"
        finally:
            with self._lock:
                self._under_way = None

    def _laid_out(self, index: Index, key: str) -> Layout:
        import numpy as np

        from embedkit_indexes.chunk_vectors import ChunkVectors

        chunks = ChunkVectors(index)
        ids = chunks.ids
        if len(ids) > _SAMPLE:
            ids = np.sort(np.random.default_rng(0).choice(ids, _SAMPLE, replace=False))
        told = BytesIO()
        np.save(told, chunks.vectors(ids))
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is stopping")
            # -P: what lies in the working directory is not imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "embedkit_cli.server.projection"],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        answer, problem = self._process.communicate(told.getvalue())
        if self._process.returncode:
            raise RuntimeError(problem.decode(errors="replace")[-2000:])
        points = np.load(BytesIO(answer), allow_pickle=False)
        return _checked(Layout(key, ids, points))


def key_of(index: Index) -> str:
    """Return what tells a version of an index from every other, one built anew in the same place too."""
    manifest = index.manifest
    parts = [(s.name, s.deletions.name if s.deletions else "") for s in manifest.segments]
    return hashlib.sha256(repr((manifest.fingerprint, parts)).encode()).hexdigest()


def placed(index: Index, layout: Layout, wanted: NDArray[np.int64]) -> dict[int, tuple[float, float]]:
    """Return points for these chunks: their own, else the middle of their nearest neighbours on the map."""
    import numpy as np

    from embedkit_indexes.chunk_vectors import ChunkVectors

    chunks = ChunkVectors(index)
    wanted = wanted[chunks.known(wanted)]
    at = {int(i): n for n, i in enumerate(layout.chunk_ids)}
    out = {int(i): _point(layout.points[at[int(i)]]) for i in wanted if int(i) in at}
    rest = np.array([i for i in wanted if int(i) not in out], np.int64)
    there = np.flatnonzero(chunks.known(layout.chunk_ids))
    if len(rest) and len(there):
        sample = chunks.vectors(layout.chunk_ids[there])
        near = min(_NEIGHBOURS, len(there))
        # In blocks: all scores at once would take gigabytes.
        for some in np.split(rest, range(_BLOCK, len(rest), _BLOCK)):
            scores = chunks.vectors(some) @ sample.T
            nearest = np.argpartition(scores, len(there) - near, axis=1)[:, -near:]
            # The median: neighbours of two regions would place it between them, where nothing is.
            middles = np.median(layout.points[there[nearest]], axis=1)
            out |= {int(i): _point(middle) for i, middle in zip(some, middles, strict=True)}
    return out


def _point(point: NDArray[np.floating]) -> tuple[float, float]:
    return round(float(point[0]), 4), round(float(point[1]), 4)


def read_layout(file: Path) -> Layout | None:
    """Return the layout that is stored, None where there is none that can be read."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as held:
            return _checked(Layout(str(held["key"]), held["chunk_ids"], held["points"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_layout(file: Path, layout: Layout) -> None:
    """Store a layout in one step; where nothing can be written it stays in memory."""
    import numpy as np

    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as f:
            np.savez(f, key=np.array(layout.key), chunk_ids=layout.chunk_ids, points=layout.points)
        sync_file(beside)
        beside.replace(file)
    except OSError as e:
        log.info("the map is kept in memory, as %s cannot be written: %s", file, e.strerror or e)
        try:
            beside.unlink(missing_ok=True)
        except OSError:
            return


def _checked(layout: Layout) -> Layout:
    import numpy as np

    count = len(layout.chunk_ids)
    if layout.chunk_ids.dtype != np.int64 or layout.points.shape != (count, 2):
        raise ValueError("this is no layout")
    if not np.isfinite(layout.points).all():
        raise ValueError("a point is no number")
    return layout
