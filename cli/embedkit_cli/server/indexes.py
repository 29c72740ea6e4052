"""The indexes of a server, each kept at its latest version by a thread that looks for a new one."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedkitError, FingerprintError
from embedkit_cli.server.config import ServedPath
from embedkit_cli.server.corpus_map import CorpusMap
from embedkit_cli.server.embedders import unrefused
from embedkit_cli.server.errors import ApiError

if TYPE_CHECKING:
    from embedkit_cli.server.embedders import EmbedderPool
    from embedkit_indexes import Index

log = logging.getLogger("embedkit.server")
_TRIES = 3
_LONGEST_WAIT = 60.0
Stamp = tuple[int, int, int]


class ServedIndex:
    """One index under its name. `index` is one version of it, and stays that: a search sees nothing change."""

    def __init__(self, path: ServedPath, pool: EmbedderPool, swapped: Callable[[], Any]) -> None:
        self._swapped = swapped
        self.name = path.name
        self.directory = path.directory
        self.map = CorpusMap(path.directory)
        self._pool = pool
        self._stamp: Stamp | None = None
        self._said = ""
        # The version that could not be opened last, and when it is tried again.
        self._failed: Stamp | None = None
        self._again = self._wait = 0.0
        self.index: Index | None = None

    def current(self) -> Index:
        """Return the version to search. Raises ApiError 503 where the index is gone or not open yet."""
        index = self.index
        if index is None:
            raise ApiError(
                503, f"the index {self.name!r} is not there at present: try again later", param="index",
                headers={"Retry-After": "5"},
            )  # fmt: skip
        return index

    def open(self) -> None:
        """Open the latest version, and have it warm before the first search. Raises as `Index.open` does."""
        from embedkit_indexes import Index

        stamp = _stamp(self.directory)
        # A version keeps to its own files where a link in the path is switched.
        directory = Path(os.path.realpath(self.directory))
        for tries_left in reversed(range(_TRIES)):
            manifest = Index.open(directory).manifest
            try:
                index = Index.open(directory, self._pool.of_index(manifest, str(self.directory)))
                break
            except FingerprintError:
                # Migrated between the two: the next look finds the new embedder.
                if not tries_left:
                    raise
        # Compares the probe vectors; the search maps the files and opens the engines.
        _ = index.embedder
        index.search("warm up", k=1)
        self.index, self._stamp, self._said = index, stamp, ""

    def look(self) -> None:
        """Go on to a new version where there is one; keep the old where the new cannot be opened."""
        try:
            stamp = _stamp(self.directory)
        except OSError as e:  # a permission, or a disk that fails: no sign that the index is gone
            self._say("cannot be looked at", e)
            return
        if stamp is None:
            if self.index is not None:
                log.warning(
                    "the index %s is gone from %s: its searches are refused", self.name, self.directory
                )
            self.index = None
            return
        if stamp == self._stamp and self.index is not None:
            return
        if stamp == self._failed and time.monotonic() < self._again:
            return
        try:
            self.open()
            self._swapped()
            log.info("the index %s is served in version %d", self.name, self.current().manifest.generation)
        except (EmbedkitError, ApiError, OSError) as e:
            self._wait = min(2 * self._wait, _LONGEST_WAIT) if stamp == self._failed else 1.0
            self._failed, self._again = stamp, time.monotonic() + self._wait
            self._say("has a new version that cannot be served", e)

    def _say(self, what: str, error: Exception) -> None:
        """Log an error once, not at every look."""
        if str(error) != self._said:
            log.warning("the index %s %s: %s", self.name, what, error)
            self._said = str(error)


class ServedIndexes:
    """All indexes, looked up by name alone: no part of a request is a path."""

    def __init__(
        self, paths: Iterable[ServedPath], pool: EmbedderPool, swapped: Callable[[], Any] = lambda: None
    ) -> None:
        self._served = {path.name: ServedIndex(path, pool, swapped) for path in paths}
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[ServedIndex]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def get(self, name: str | None) -> ServedIndex:
        """Return an index, the first for None. Raises ApiError 404."""
        if not self._served:
            raise ApiError(404, "this server serves no index, embeddings only", param="index")
        if name is None:
            return next(iter(self._served.values()))
        served = self._served.get(name)
        if served is None:
            known = ", ".join(list(self._served)[:20])
            raise ApiError(
                404,
                f"there is no index {name!r:.80}: this server has {known}",
                param="index",
                code="index_not_found",
            )
        return served

    def watch(self, seconds: float) -> None:
        """Look for new versions every so many seconds, in a thread of its own, until `stop`."""

        def run() -> None:
            unrefused.set(True)
            while not self._stop.wait(seconds):
                for served in self:
                    try:
                        served.look()
                    except Exception:  # the thread has to live on
                        log.exception("looking for a new version of the index %s failed", served.name)

        threading.Thread(target=run, name="embedkit-refresh", daemon=True).start()

    def stop(self) -> None:
        """End the threads, and maps that are being computed."""
        self._stop.set()
        for served in self:
            served.map.close()


def _stamp(directory: Path) -> Stamp | None:
    """Return what changes whenever the manifest is replaced, None where there is none. Raises OSError."""
    from embedkit_indexes.manifest import NAME

    try:
        told = (directory / NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return told.st_ino, told.st_mtime_ns, told.st_size
