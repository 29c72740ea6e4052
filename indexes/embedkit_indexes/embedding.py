"""Embed what has no vector yet: those of the same texts are taken over, and what is done survives a kill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder
from embedkit.syncing import sync_folder
from embedkit_indexes.corpus.chunking import ChunkConfig, ChunkReport, chunk_documents
from embedkit_indexes.corpus.records import Document
from embedkit_indexes.durable import SHARDS
from embedkit_indexes.given import GivenVectors
from embedkit_indexes.reports import Counts
from embedkit_indexes.segment import Segment
from embedkit_indexes.segment_format import HASH_BYTES, text_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.segment_writer import SegmentWriter

    Tell = Callable[[str, int], None]

_DIGEST = 32
# Wide enough that sorting by length leaves little padding, small enough that progress moves.
_WINDOW = 2048


class VectorCache:
    """Find vectors by the hash of their text: in segments of the same embedder, and in the shards of a killed run.

    A shard is one window's hashes and vectors with a sha256 behind them, so that half of one is never taken for a
    whole. Shards lie in the index's directory until the change is committed.
    """

    def __init__(self, directory: Path, fingerprint: str, dim: int, dtype: str) -> None:
        import numpy as np

        name = hashlib.sha256(f"{fingerprint} {dim} {dtype}".encode()).hexdigest()[:12]
        self.folder = directory / f"{SHARDS}{name}"
        self._dim = dim
        self._dtype = np.dtype(dtype)
        self._sources: list[tuple[NDArray[np.uint8], NDArray[Any], Path | Segment]] = []
        self._sound: set[int] = set()
        self._own: set[Path] = set()
        self._keys: NDArray[np.uint64] | None = None
        self._order: NDArray[np.int64] | None = None

    def take(self, segments: Sequence[Segment]) -> None:
        """Add the shards, and the vectors of segments of the same embedder."""
        for path in sorted(self.folder.glob("*.shard")):
            self._read(path)
        for segment in segments:
            if segment.vectors.dtype == self._dtype and segment.vectors.shape[1] == self._dim:
                self._sources.append((segment.hashes, segment.vectors, segment))

    def _read(self, path: Path) -> None:
        import numpy as np

        data = path.read_bytes()
        count = (len(data) - _DIGEST) // (HASH_BYTES + self._dim * self._dtype.itemsize)
        body = data[:-_DIGEST]
        if count < 1 or hashlib.sha256(body).digest() != data[-_DIGEST:]:
            path.unlink()
            return
        hashes = np.frombuffer(body, np.uint8, count * HASH_BYTES).reshape(count, HASH_BYTES)
        vectors = np.memmap(path, self._dtype, mode="r", offset=count * HASH_BYTES, shape=(count, self._dim))
        self._sources.append((hashes.copy(), vectors, path))

    def look_up(self, hashes: NDArray[np.uint8], out: NDArray[Any]) -> NDArray[np.bool_]:
        """Write the vectors of the hashes, uint8 [n, 16], that are known to `out`, [n, dim]; say which were."""
        import numpy as np

        found = np.zeros(len(hashes), dtype=bool)
        if not self._sources:
            return found
        if self._keys is None or self._order is None:
            keys = np.concatenate([_words(h)[:, 0] for h, _, _ in self._sources])
            self._order = np.argsort(keys, kind="stable")
            self._keys = keys[self._order]
        starts = np.cumsum([0, *(len(h) for h, _, _ in self._sources)])
        wanted = _words(hashes)
        at = np.searchsorted(self._keys, wanted[:, 0])
        near = at < len(self._keys)
        near[near] = self._keys[at[near]] == wanted[near, 0]
        for i in np.flatnonzero(near):
            place = int(self._order[at[i]])
            source = int(np.searchsorted(starts, place, side="right")) - 1
            stored, vectors, _ = self._sources[source]
            row = place - int(starts[source])
            if (stored[row] == hashes[i]).all():
                self._check(source)
                out[i] = vectors[row]
                found[i] = True
        return found

    def _check(self, source: int) -> None:
        """Note a shard that is used; verify a segment: what was altered would get a new checksum and never be found.

        Raises CorruptIndexError.
        """
        if source in self._sound:
            return
        origin = self._sources[source][2]
        if isinstance(origin, Segment):
            origin.record.verify(origin.folder.parent)
        else:
            self._own.add(origin)
        self._sound.add(source)

    def put(self, hashes: NDArray[np.uint8], vectors: NDArray[Any]) -> None:
        """Keep a window's vectors until the change is committed."""
        import numpy as np

        self.folder.mkdir(exist_ok=True)
        body = np.ascontiguousarray(hashes).tobytes() + np.ascontiguousarray(vectors).tobytes()
        path = self.folder / f"{hashlib.sha256(hashes.tobytes()).hexdigest()[:24]}.shard"
        beside = path.with_suffix(".tmp")
        with beside.open("wb") as f:
            f.write(body)
            f.write(hashlib.sha256(body).digest())
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
        self._own.add(path)
        sync_folder(self.folder)

    def drop(self, *, whole: bool) -> None:
        """Remove the shards that were written or used: their vectors are stored now. With `whole`, all."""
        # Half a shard is nobody's: the lock is held.
        gone = self.folder.glob("*") if whole else [*self._own, *self.folder.glob("*.tmp")]
        for path in gone:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


class CachedEmbedder:
    """Give the document vectors of texts, embedding only those that neither the cache nor the caller has.

    `counts` takes up how many.
    """

    def __init__(
        self,
        embedder: Embedder,
        cache: VectorCache,
        dtype: str,
        counts: Counts,
        given: GivenVectors | None = None,
    ) -> None:
        self.embedder = embedder
        self.counts = counts
        self._cache = cache
        self._dtype = dtype
        self._given = given

    def encode(self, texts: Sequence[str], hashes: Sequence[bytes]) -> NDArray[Any]:
        """Return the vectors [len(texts), dim], in the index's dtype."""
        import numpy as np

        keys = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(texts), HASH_BYTES)
        vectors = np.empty((len(texts), self.embedder.info.dim), dtype=self._dtype)
        known = self._cache.look_up(keys, vectors)
        if self._given is not None:
            for i in np.flatnonzero(~known).tolist():
                row = self._given.look_up(hashes[i])
                if row is not None:
                    vectors[i], known[i] = row, True
        missing = np.flatnonzero(~known)
        self.counts.reused += len(texts) - len(missing)
        if len(missing):
            # The same text twice in a window is embedded once.
            _, first, back = np.unique(keys[missing], axis=0, return_index=True, return_inverse=True)
            order = np.sort(first)
            made = self.embedder.encode_document([texts[missing[i]] for i in order]).astype(self._dtype)
            place = np.searchsorted(order, first[back.reshape(-1)])
            vectors[missing] = made[place]
            self._cache.put(keys[missing[order]], made)
            self.counts.embedded += len(order)
            self.counts.reused += len(missing) - len(order)
        return vectors


def embed_documents(
    documents: Iterable[tuple[Document, bytes]],
    writer: SegmentWriter,
    embedder: CachedEmbedder,
    *,
    chunking: ChunkConfig,
    report: ChunkReport,
    tell: Tell,
) -> None:
    """Cut documents, each given with its hash, into chunks and write them with their vectors, a window at a time."""

    def expected() -> Iterator[Document]:
        for document, hash in documents:
            writer.expect(document, hash)
            yield document

    pieces = chunk_documents(expected(), embedder.embedder, chunking, report)
    while window := list(islice(pieces, _WINDOW)):
        hashes = [text_hash(c.text) for c in window]
        vectors = embedder.encode([c.text for c in window], hashes)
        embedder.counts.blank += int((~vectors.any(axis=1)).sum())
        writer.write(window, hashes, vectors, report)
        tell("embedding", writer.rows)


def embed_segments(
    segments: Sequence[Segment], writer: SegmentWriter, embedder: CachedEmbedder, tell: Tell
) -> None:
    """Write the chunks of segments, their text as it is stored, with the vectors of this embedder."""

    def encode(texts: Sequence[str], hashes: Sequence[bytes]) -> NDArray[Any]:
        vectors = embedder.encode(texts, hashes)
        tell("embedding", embedder.counts.embedded + embedder.counts.reused)
        return vectors

    for segment in segments:
        writer.copy(segment, encode, embedder.embedder)


def _words(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    import numpy as np

    return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)
