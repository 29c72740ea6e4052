"""One change of an index, from the lock to the manifest that makes it count."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedkit.errors import InputError, NotAnIndexError
from embedkit_indexes import durable, pruning
from embedkit_indexes.corpus.chunking import ChunkConfig, ChunkReport
from embedkit_indexes.corpus.identity import Seen
from embedkit_indexes.corpus.language import detect_language
from embedkit_indexes.corpus.options import ReadReport
from embedkit_indexes.corpus.records import Document, check_document
from embedkit_indexes.embedding import CachedEmbedder, VectorCache, embed_documents, embed_segments
from embedkit_indexes.finishing import (
    as_segment,
    finish_segment,
    merge_segments,
    plan_merge,
    query_holder,
    read_queries,
    with_deletions,
)
from embedkit_indexes.given import GivenVectors
from embedkit_indexes.lexical import build_lexical
from embedkit_indexes.lookup import DocumentLookup, Place
from embedkit_indexes.manifest import Manifest, SegmentRecord
from embedkit_indexes.planner import EngineConfig
from embedkit_indexes.reports import BuildProgress, Counts
from embedkit_indexes.segment import FilterFields, Segment
from embedkit_indexes.segment_format import document_hash
from embedkit_indexes.segment_writer import SegmentWriter
from embedkit_indexes.settings import IndexSettings
from embedkit_indexes.statistics import make_manifest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embedkit_indexes.filters import Condition

Mode = Literal["add", "upsert", "sync"]
Vectors = Mapping[str, "Sequence[float] | NDArray[Any]"]
# A given vector is of a whole text: what comes with one is not cut, and gets nothing before it.
_WHOLE = ChunkConfig(split=False, context=False)


class Writer:
    """Change an index under its lock: nothing counts before `commit`, and a kill at any moment leaves what was.

    `base` is the version there is; `anew` makes a new index in its place, of which it takes nothing but the numbers
    that never come twice.
    """

    def __init__(
        self,
        directory: Path,
        settings: IndexSettings,
        base: Manifest | None,
        progress: Callable[[BuildProgress], None] | None = None,
        *,
        anew: bool = False,
        vectors: Vectors | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.base = base
        self.counts = Counts()
        self._anew = anew or base is None
        self._sealing = False
        self._whole = self._anew
        self._progress = progress
        self._segments = [Segment(directory, r) for r in (base.segments if base and not anew else ())]
        self._dead = [~s.live_documents for s in self._segments]
        self._lookup = DocumentLookup(self._segments, self._dead)
        self._next_id = base.next_id if base else 0
        self._fresh: SegmentWriter | None = None
        self._folders: list[Path] = []
        self._report = ChunkReport()
        self._cache = VectorCache(directory, settings.fingerprint, settings.dim, settings.dtype)
        self._given = None if vectors is None else GivenVectors(vectors, settings.dim)

    # What is asked for

    def ingest(
        self, documents: Iterable[Document], mode: Mode, read_report: ReadReport | None = None
    ) -> None:
        """Embed what is new or changed. "sync" also removes what did not come, unless its source was not readable.

        Raises InputError for a document that is none, an id that comes twice or, with "add", is there already; with
        "sync", for a source of which there is nothing any more, or nothing at all.
        """
        import numpy as np

        seen = [np.zeros(s.record.documents, dtype=bool) for s in self._segments]
        self._embed(self._changed(documents, mode, seen))
        if mode == "sync":
            if not self.counts.added + self.counts.updated + self.counts.unchanged:
                raise InputError(
                    f"{pruning.nothing_to_index(read_report)}; nothing was removed: `embedkit delete` empties an index"
                )
            self._whole = True
            self._prune(seen, read_report or ReadReport())

    def _changed(
        self, documents: Iterable[Document], mode: Mode, seen: list[NDArray[np.bool_]]
    ) -> Iterator[tuple[Document, bytes]]:
        ids = Seen()
        for number, given in enumerate(documents):
            check_document(given, number)
            if ids.first(given.id, given.id) is not None:
                raise InputError(
                    f"document {number} has the id {given.id!r:.60} of an earlier one: make ids unique"
                )
            hash = document_hash(given)
            place = self._lookup.find(given.id, hash) if self._segments else None
            if place is not None:
                if mode == "add":
                    raise InputError(
                        f"document {number} has the id {given.id!r:.60}, which {self.directory} holds already: "
                        "use upsert to replace it"
                    )
                seen[place.segment][place.document] = True
                if self._lookup.hash(place) == hash:
                    self.counts.unchanged += 1
                    continue
                self._kill(place)
                self.counts.updated += 1
            else:
                self.counts.added += 1
            lang = given.lang or detect_language(given.text, given.title)
            yield replace(given, lang=lang), hash

    def _prune(self, seen: list[NDArray[np.bool_]], report: ReadReport) -> None:
        gone = [~s & ~d for s, d in zip(seen, self._dead, strict=True)]
        kept = pruning.keep(gone, self._segments, report, self.directory)
        for number, mask in enumerate(kept):
            self.counts.kept += int(mask.sum())
            gone[number] &= ~mask
            self.counts.removed += int(gone[number].sum())
            self._dead[number] |= gone[number]

    def remove_ids(self, ids: Iterable[str]) -> None:
        """Delete documents by id; those that are not there are passed over."""
        for id in ids:
            if (place := self._lookup.find(id)) is not None:
                self._kill(place)
                self.counts.removed += 1

    def check(self, condition: Condition) -> None:
        """Raise UnknownNameError or InputError for a condition that no segment can be asked."""
        from embedkit_indexes.filters import check

        check(condition, [FilterFields(s) for s in self._segments])

    def remove_where(self, condition: Condition) -> None:
        """Delete the documents of which any chunk satisfies the condition."""
        import numpy as np

        for number, segment in enumerate(self._segments):
            mask = condition.mask(FilterFields(segment))
            hit = np.flatnonzero(mask)
            rows = np.searchsorted(segment.first_rows, hit, side="right") - 1
            gone = np.zeros(segment.record.documents, dtype=bool)
            gone[rows] = True
            gone &= ~self._dead[number]
            self.counts.removed += int(gone.sum())
            self._dead[number] |= gone

    def _kill(self, place: Place) -> None:
        self._dead[place.segment][place.document] = True

    def reembed(self) -> None:
        """Embed every chunk of the base anew, its text as it is stored, into one segment."""
        if not self._segments:
            return
        self._whole = True
        self._cache.take([])
        writer = self._start()
        if self.base is not None and self.base.fingerprint == self.settings.fingerprint:
            self._cache.take(self._segments)
        try:
            embed_segments(self._segments, writer, self._embedder(), self._tell)
            writer.finish()
        finally:
            writer.close()
        self._segments, self._dead = [], []

    def take_over(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Store chunks that come with their vectors, as `export_parquet` wrote them."""
        writer = self._start()
        try:
            for batch in batches:
                writer.write_exported(batch)
                self._tell("importing", writer.rows)
            writer.finish()
        finally:
            writer.close()
        self.counts.added = writer.document_count

    # Embedding

    def _embed(self, documents: Iterator[tuple[Document, bytes]]) -> None:
        # The first document decides whether there is anything to write.
        head = list(islice(documents, 1))
        if not head:
            return
        writer = self._start()
        self._cache.take(self._segments)
        try:
            embed_documents(
                chain(head, documents), writer, self._embedder(), report=self._report, tell=self._tell,
                chunking=self.settings.chunking if self._given is None else _WHOLE,
            )  # fmt: skip
            writer.finish(self._report)
        finally:
            writer.close()
        self._tell("indexing", writer.rows)

    def _embedder(self) -> CachedEmbedder:
        embedder = self.settings.opened
        if self._given is not None:
            self._given.check(embedder)
        return CachedEmbedder(embedder, self._cache, self.settings.dtype, self.counts, self._given)

    def _start(self) -> SegmentWriter:
        writer = self._new_writer()
        self._fresh = writer
        return writer

    def _new_writer(self) -> SegmentWriter:
        folder = durable.new_folder(self.directory)
        self._folders.append(folder)
        return SegmentWriter(folder, self.settings.dim, self.settings.dtype, self._next_id)

    def _new_bitmap(self) -> Path:
        path = self.directory / f"{durable.DELETED}{secrets.token_hex(6)}.bits"
        self._folders.append(path)
        return path

    # What makes it count

    def commit(
        self,
        *,
        compact: bool = False,
        skipped: Mapping[str, int] | None = None,
        queries: NDArray[np.float32] | None = None,
    ) -> Manifest:
        """Write the new version; return the old manifest where nothing changed.

        `queries`, float32 [n, dim], are real ones to tune the engine on, in place of those that the index keeps.
        """
        records = self._records(compact, queries)
        base = self.base
        manifest = make_manifest(
            self.directory, self.settings, base, records, next_id=self._next_id, skipped=skipped
        )
        if self._anew:
            manifest = replace(manifest, created=manifest.updated)
        elif base is not None and manifest.same_content(base):
            manifest = base
        if manifest is not base:
            self._sealing = True
            manifest.write(self.directory)
        # What is written counts now: what cannot be cleared away is litter, and no failure.
        with suppress(OSError):
            self._clean(manifest, compact)
        return manifest

    @property
    def committed(self) -> bool:
        """Whether the new manifest counts, or may: in doubt, what was written has to stay."""
        if not self._sealing:
            return False
        try:
            found = Manifest.read(self.directory).generation
        except NotAnIndexError:
            return False
        except OSError:
            return True
        return self.base is None or found != self.base.generation

    def _clean(self, manifest: Manifest, compact: bool) -> None:
        self._segments = []  # their pins would keep what is to go
        self._lookup = DocumentLookup([], [])
        # What another change has embedded before it was killed stays for it, unless this one went over all there is.
        self._cache.drop(whole=self._whole)
        durable.drop_leftovers(self.directory, manifest.names(), shards=self._anew or compact)

    def _records(self, compact: bool, queries: NDArray[np.float32] | None) -> list[SegmentRecord]:
        import numpy as np

        fresh = self._fresh_segment()
        old = [
            with_deletions(segment, dead, self._new_bitmap())
            for segment, dead in zip(self._segments, self._dead, strict=True)
            if np.diff(segment.first_rows)[~dead].any()
        ]
        parts = [*old, *([fresh] if fresh else [])]
        other = self.base is not None and EngineConfig(**self.base.engine) != self.settings.engine
        merged, rest = plan_merge(parts, bool(fresh), compact, other_engine=other)
        records = [s.record for s in rest]
        if not merged:
            return records
        own = queries is not None or self._anew
        holder = None if own else query_holder(self.base, self.settings.fingerprint)
        if holder is not None:
            queries = read_queries(self.directory, holder, self.settings.dim)
        keep = holder is None or all(r.name != holder.name for r in records)
        new = fresh if merged == [fresh] and fresh is not None else self._merged(merged)
        tell = lambda what: self._tell(what, new.record.chunks)  # noqa: E731
        return [*records, finish_segment(new, self.settings.engine, queries, tell, keep_queries=keep)]

    def _merged(self, segments: Sequence[Segment]) -> Segment:
        writer = self._new_writer()
        self._tell("merging", sum(s.record.live for s in segments))
        return merge_segments(segments, writer)

    def _fresh_segment(self) -> Segment | None:
        writer = self._fresh
        if writer is None or not writer.rows:
            return None
        build_lexical(writer.folder, writer.texts())
        self._next_id = writer.next_id
        return as_segment(writer)

    def roll_back(self) -> None:
        """Remove what was written for a change that is not to be; what is embedded stays for the next try."""
        self._segments = []
        if self._fresh is not None:
            # On a full disk what is still to be written fails once more.
            with suppress(Exception):
                self._fresh.close()
        for path in self._folders:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _tell(self, phase: str, chunks: int) -> None:
        if self._progress:
            c = self.counts
            self._progress(
                BuildProgress(c.added + c.updated + c.unchanged, chunks, self._report.tokens, phase)
            )
