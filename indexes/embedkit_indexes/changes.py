"""Build an index, and change one: add, upsert, synchronise, delete, compact, re-embed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit.errors import CorruptIndexError, InputError, NotAnIndexError, StoreError
from embedkit_indexes import durable, faiss_engine
from embedkit_indexes import manifest as manifests
from embedkit_indexes.corpus.options import ReadReport
from embedkit_indexes.corpus.records import Document, check_documents
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.planner import choose
from embedkit_indexes.pruning import nothing_to_index
from embedkit_indexes.reports import BuildProgress, BuildReport
from embedkit_indexes.settings import IndexSettings
from embedkit_indexes.writer import Mode, Vectors, Writer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.exchange import ParquetIndex
    from embedkit_indexes.filters import Condition

Progress = Callable[[BuildProgress], None]


def build(
    directory: Path,
    settings: IndexSettings,
    documents: Iterable[Document],
    progress: Progress | None = None,
    read_report: ReadReport | None = None,
    *,
    overwrite: bool = False,
    queries: Sequence[str] | None = None,
    vectors: Vectors | None = None,
) -> BuildReport:
    """Make a new index; one that is there is replaced, in one step at the end, where `overwrite` is true."""
    check_documents(documents)
    with durable.store_errors(directory):
        check_target(directory, overwrite)
    faiss_engine.check(settings.engine, settings.dim)

    def make(base: Manifest | None) -> Writer:
        return Writer(directory, settings, base, progress, anew=True, vectors=vectors)

    with _change(directory, make) as (writer, started):
        writer.ingest(documents, "add")
        if not writer.counts.embedded + writer.counts.reused:
            raise InputError(nothing_to_index(read_report))
        manifest = writer.commit(skipped=_reasons(read_report), queries=_encoded(settings, queries))
    return _report(writer, manifest, started, read_report)


def ingest(
    directory: Path,
    settings: Callable[[Manifest], IndexSettings],
    documents: Iterable[Document],
    mode: Mode,
    *,
    progress: Progress | None = None,
    read_report: ReadReport | None = None,
    vectors: Vectors | None = None,
) -> BuildReport:
    """Add documents, replace those of the same id ("upsert"), or make the index hold just these ("sync").

    With "sync", documents of a source that could not be read this time stay. A corpus, or one of its sources, without
    any document changes nothing: InputError.
    """
    check_documents(documents)
    with _change(directory, _writer(directory, settings, progress, vectors)) as (writer, started):
        writer.ingest(documents, mode, read_report)
        manifest = writer.commit(skipped=_reasons(read_report))
    return _report(writer, manifest, started, read_report)


def delete(
    directory: Path,
    settings: Callable[[Manifest], IndexSettings],
    ids: Iterable[str] = (),
    condition: Condition | None = None,
    *,
    dry_run: bool = False,
) -> BuildReport:
    """Delete documents by id, and those of which a chunk satisfies the condition; with `dry_run`, count them alone."""
    with _change(directory, _writer(directory, settings, None)) as (writer, started):
        writer.remove_ids(ids)
        if condition is not None:
            writer.check(condition)
            writer.remove_where(condition)
        manifest = Manifest.read(directory) if dry_run else writer.commit()
    return _report(writer, manifest, started, None)


def compact(
    directory: Path, settings: Callable[[Manifest], IndexSettings], progress: Progress | None = None
) -> BuildReport:
    """Write all segments as one, without what is deleted, under the engine of `settings`; nothing is embedded."""
    with _change(directory, _writer(directory, settings, progress)) as (writer, started):
        _check_engine(writer)
        manifest = writer.commit(compact=True)
    return _report(writer, manifest, started, None)


def migrate(
    directory: Path, settings: Callable[[Manifest], IndexSettings], progress: Progress | None = None
) -> BuildReport:
    """Embed all chunks with another embedder; the index serves as it is until the new vectors are complete."""
    with _change(directory, _writer(directory, settings, progress)) as (writer, started):
        writer.reembed()
        manifest = writer.commit()
    return _report(writer, manifest, started, None)


def restore(
    directory: Path, exported: ParquetIndex, progress: Progress | None = None, *, overwrite: bool = False
) -> BuildReport:
    """Make an index of what `export_parquet` wrote; nothing is embedded."""
    told = exported.manifest()
    with durable.store_errors(directory):
        check_target(directory, overwrite)

    def make(base: Manifest | None) -> Writer:
        if base is None:
            start = replace(told, generation=0)
        else:
            # A chunk's number never comes twice, whatever the file holds.
            start = replace(told, generation=base.generation, next_id=max(base.next_id, told.next_id))
        return Writer(directory, IndexSettings.of(told), start, progress, anew=True)

    with _change(directory, make) as (writer, started):
        writer.take_over(exported.batches())
        if not writer.counts.added:
            raise InputError(f"{exported.path} holds no chunk: export an index that has some")
        manifest = writer.commit(skipped=told.skipped)
    return _report(writer, manifest, started, None)


def sweep(directory: Path) -> None:
    """Remove what no version needs and no reader holds any more, unless a writer is at work."""
    with suppress(StoreError), durable.store_errors(directory), durable.writer_lock(directory):
        durable.drop_leftovers(directory, Manifest.read(directory).names(), shards=False)


def _writer(
    directory: Path,
    settings: Callable[[Manifest], IndexSettings],
    progress: Progress | None,
    vectors: Vectors | None = None,
) -> Callable[[Manifest | None], Writer]:
    def make(base: Manifest | None) -> Writer:
        # Read under the lock: another writer may have changed it since the caller opened it.
        base = base or Manifest.read(directory)
        return Writer(directory, settings(base), base, progress, vectors=vectors)

    return make


@contextmanager
def _change(directory: Path, make: Callable[[Manifest | None], Writer]) -> Iterator[tuple[Writer, float]]:
    """Hold the lock while a writer works; whatever is raised before its manifest counts leaves what was there."""
    started, owner = time.perf_counter(), os.getpid()
    with durable.store_errors(directory):
        fresh = durable.make_directory(directory)
        with durable.writer_lock(directory):
            writer: Writer | None = None
            try:
                writer = make(_base(directory))
                yield writer, started
            except BaseException:
                if os.getpid() != owner:
                    raise  # a forked child that ends here: the change is its parent's
                # An interrupt may come between the manifest's renaming and here: then the new version is in force.
                if writer is not None and not writer.committed:
                    writer.roll_back()
                if fresh or not (directory / manifests.NAME).exists():
                    _clear(directory)
                raise


def _check_engine(writer: Writer) -> None:
    """Raise InputError for an engine that is unknown or does not fit the memory budget, before all is copied."""
    import numpy as np

    own = writer.settings
    rows = sum(s.live for s in writer.base.segments) if writer.base else 0
    faiss_engine.check(own.engine, own.dim)
    choose(rows, own.dim, own.engine, np.dtype(own.dtype).itemsize)


def _base(directory: Path) -> Manifest | None:
    try:
        return Manifest.read(directory)
    except (NotAnIndexError, CorruptIndexError):
        # What cannot be read now, and is no damage, must not restart the numbers: it is raised.
        return None


def _clear(directory: Path) -> None:
    """Remove the directory where a failed build has left nothing in it but the lock."""
    with suppress(OSError):
        if {p.name for p in directory.iterdir()} == {durable.LOCK}:
            (directory / durable.LOCK).unlink()
            directory.rmdir()


def check_target(directory: Path, overwrite: bool) -> None:
    """Refuse a place where an index would harm what is there; cheap, so callers may ask before the work."""
    if directory.exists() and not directory.is_dir():
        raise NotAnIndexError(f"{directory} is a file: name a directory for the index")
    if (directory / manifests.NAME).exists():
        if not overwrite:
            raise InputError(f"{directory} holds an index already: --force (overwrite=True) replaces it")
        return
    if directory.exists():
        strangers = [p.name for p in directory.iterdir() if not durable.belongs(p.name)]
        if strangers:
            raise NotAnIndexError(
                f"{directory} holds other things ({strangers[0]} …) and no index: name a new or empty directory"
            )


def _encoded(settings: IndexSettings, queries: Sequence[str] | None) -> NDArray[np.float32] | None:
    return settings.opened.encode_query(list(queries)) if queries else None


def _reasons(report: ReadReport | None) -> dict[str, int]:
    return dict(report.reasons) if report else {}


def _report(
    writer: Writer, manifest: Manifest, started: float, read_report: ReadReport | None
) -> BuildReport:
    counts = writer.counts
    engines = {str(s.engine["type"]): s.chunks for s in manifest.segments}
    return BuildReport(
        documents=manifest.documents,
        chunks=manifest.chunks,
        tokens=manifest.tokens,
        truncated_chunks=manifest.truncated_chunks,
        truncated_tokens=manifest.truncated_tokens,
        coverage=manifest.coverage,
        blank_vectors=counts.blank,
        seconds=time.perf_counter() - started,
        engine=max(engines, key=lambda name: engines[name], default="none"),
        skipped=tuple(read_report.skipped) if read_report else (),
        skipped_count=read_report.total_skipped if read_report else 0,
        languages=manifest.languages,
        added=counts.added,
        updated=counts.updated,
        removed=counts.removed,
        unchanged=counts.unchanged,
        kept=counts.kept,
        embedded=counts.embedded,
        reused=counts.reused,
        segments=len(manifest.segments),
        generation=manifest.generation,
    )
