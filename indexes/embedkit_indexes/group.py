"""Search several indexes as one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from embedkit.embedder import Embedder
from embedkit.errors import FingerprintError, InputError
from embedkit_indexes.arguments import as_path
from embedkit_indexes.index import Index
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.reader import IndexReader
from embedkit_indexes.snapshot import Snapshot


class GroupSnapshot(Snapshot):
    """The segments of several indexes, one after the other."""

    def __init__(self, directories: Sequence[Path], snapshots: Sequence[Snapshot]) -> None:
        first = snapshots[0].manifest
        sums = {n: sum(getattr(s.manifest, n) for s in snapshots) for n in ("documents", "chunks")}
        super().__init__(directories[0], replace(first, segments=(), **sums))
        self.segments = [segment for s in snapshots for segment in s.segments]
        self.origins = [str(d) for d, s in zip(directories, snapshots, strict=True) for _ in s.segments]
        self._chunks = sum(len(s) for s in snapshots)
        self.tasks = {n: t for s in reversed(snapshots) for n, t in s.tasks.items()}
        self.languages = list(dict.fromkeys(lang for s in snapshots for lang in s.languages))

    def __len__(self) -> int:
        """Return the number of chunks of all indexes."""
        return self._chunks


class IndexGroup(IndexReader):
    """Several indexes of one embedder, searched as one; each is changed on its own.

    Tasks stored with any of them are found, those of an earlier one first. The words of all count together.
    """

    def __init__(self, indexes: Sequence[Index], embedder: Embedder | None = None) -> None:
        first = indexes[0]
        snapshots = [i._snapshot for i in indexes]
        super().__init__(first.directory, GroupSnapshot([i.directory for i in indexes], snapshots), embedder)
        self.indexes = tuple(indexes)
        self._parts = snapshots

    def __len__(self) -> int:
        """Return the number of chunks of all indexes."""
        return len(self._snapshot)

    def __repr__(self) -> str:
        return f"IndexGroup({', '.join(repr(str(i.directory)) for i in self.indexes)}, {len(self)} chunks)"

    def refresh(self) -> bool:
        """See the latest version of each index from now on; return whether any was newer."""
        with self._loading:
            return self._refresh()

    def _refresh(self) -> bool:
        # A member may have gone ahead alone, where a refresh failed at another one.
        ahead = [i._snapshot for i in self.indexes] != self._parts
        if not ahead and not any(i._snapshot.outdated(i.directory) for i in self.indexes):
            return False
        check_one_embedder(
            [i.directory for i in self.indexes], [Manifest.read(i.directory) for i in self.indexes]
        )
        embedder = self.__dict__.get("embedder", self._given)
        if embedder is not None:
            self._check_fingerprint(embedder, Manifest.read(self.directory))
        newer = [i.refresh() for i in self.indexes]
        check_one_embedder([i.directory for i in self.indexes], [i.manifest for i in self.indexes])
        self._parts = [i._snapshot for i in self.indexes]
        self._snapshot = GroupSnapshot(
            [i.directory for i in self.indexes], [i._snapshot for i in self.indexes]
        )
        return ahead or any(newer)

    def verify(self) -> None:
        """Read all files of all indexes and compare their checksums. Raises CorruptIndexError."""
        for index in self.indexes:
            index.verify()


def open_indexes(directories: Sequence[str | Path], embedder: Embedder | None = None) -> Index | IndexGroup:
    """Open indexes to be searched as one; a single one is opened as `Index.open` does.

    Raises InputError where none or one twice is named, FingerprintError where their embedders differ.
    """
    if isinstance(directories, str | bytes | os.PathLike) or not isinstance(directories, Iterable):
        raise InputError(
            f"directories is {directories!r:.60}, {type(directories).__name__}: give a list of paths, or call Index.open"
        )
    paths = [as_path(d) for d in directories]
    if not paths:
        raise InputError("no index was named: give one or more directories")
    if len(paths) == 1:
        return Index.open(paths[0], embedder)
    real = [p.resolve() for p in paths]
    for path in real:
        if real.count(path) > 1:
            raise InputError(f"{paths[real.index(path)]} was named twice: name each index once")
    indexes = [Index.open(p, embedder) for p in paths]
    check_one_embedder(paths, [i.manifest for i in indexes])
    return IndexGroup(indexes, embedder)


def check_one_embedder(paths: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raise FingerprintError where two indexes were built with different embedders."""
    first = manifests[0]
    for path, other in zip(paths, manifests, strict=True):
        if other.fingerprint != first.fingerprint:
            raise FingerprintError(
                f"{paths[0]} was built with {first.embedder['name']} ({first.fingerprint}), {path} with "
                f"{other.embedder['name']} ({other.fingerprint}): their vectors cannot be compared; search them one "
                "by one, or re-embed one with `embedkit migrate`"
            )
