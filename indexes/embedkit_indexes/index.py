"""`Index`: build it once from documents, search it under any instruction, change it for years."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.tasks import Task
from embedkit_indexes.arguments import as_path, checked_condition, checked_ids, opened_embedder
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.planner import EngineConfig
from embedkit_indexes.reader import IndexReader
from embedkit_indexes.snapshot import Snapshot

if TYPE_CHECKING:
    from embedkit_indexes.corpus.chunking import ChunkConfig
    from embedkit_indexes.corpus.options import ReadReport
    from embedkit_indexes.corpus.records import Document
    from embedkit_indexes.filters import Condition
    from embedkit_indexes.reports import BuildProgress, BuildReport
    from embedkit_indexes.settings import IndexSettings
    from embedkit_indexes.writer import Mode, Vectors


class Told(TypedDict, total=False):
    """What `add`, `upsert` and `sync` may be told beside the documents.

    `tasks` and `sources` are stored in place of the index's own. With `vectors`, those of some texts as the index's
    embedder makes them, each document is one chunk, and only what has no vector is embedded.
    """

    progress: Callable[[BuildProgress], None]
    read_report: ReadReport
    tasks: Mapping[str, Task]
    sources: Sequence[Mapping[str, Any]]
    vectors: Vectors


class Index(IndexReader):
    """A corpus, embedded once: only the query carries a task, so that one index serves them all.

    An open index is a snapshot: changes made later, by this process or another, are seen after `refresh`. Its own
    `add`, `upsert`, `sync`, `delete`, `compact` and `migrate` refresh it. Any number of threads may search.
    """

    @staticmethod
    def build(
        directory: str | Path,
        documents: Iterable[Document],
        embedder: Embedder | str = "bundled",
        *,
        chunking: ChunkConfig | None = None,
        tasks: Mapping[str, Task] | None = None,
        embedder_spec: str = "",
        embedder_options: Mapping[str, Any] | None = None,
        progress: Callable[[BuildProgress], None] | None = None,
        read_report: ReadReport | None = None,
        overwrite: bool = False,
        engine: EngineConfig | None = None,
        dtype: str = "float16",
        sources: Sequence[Mapping[str, Any]] = (),
        tuning_queries: Sequence[str] | None = None,
        vectors: Vectors | None = None,
    ) -> BuildReport:
        """Embed `documents` and store them as an index in `directory`.

        `embedder` is a name for `get_embedder` (then `embedder_options` go to it and both are stored, save
        secrets, `device` and `token_budget`) or an object (then say in `embedder_spec` how to open it again, or pass
        it to `open`). `tasks` are stored with the index. `engine` says how vectors are searched, `dtype` ("float16",
        "float32") how they are stored; `tuning_queries` are real queries to tune the engine on. `sources` are
        remembered for the next `sync`. An index that is there is replaced, in one step at the end, where `overwrite`
        is true. What a killed build has embedded is not embedded again. `vectors` as `Told` has them.

        Raises InputError for a corpus without text, or vectors that are not the embedder's, NotAnIndexError where the directory holds other things,
        StoreError for the disk's troubles, EmbedderError for NaN or wrong shapes. Whatever is raised, the
        index that was there stays whole.
        """
        # Imported here: a search needs none of it, and starts the sooner.
        from embedkit_indexes.changes import build
        from embedkit_indexes.corpus.chunking import ChunkConfig
        from embedkit_indexes.settings import IndexSettings

        path = as_path(directory)
        options = dict(embedder_options or {})
        embedder, embedder_spec = opened_embedder(embedder, embedder_spec, options)
        settings = IndexSettings(
            "", {}, 0, chunking=chunking or ChunkConfig(), tasks=tasks or {}, engine=engine or EngineConfig(),
            dtype=dtype, sources=tuple(sources),
        ).using(embedder, embedder_spec, options)  # fmt: skip
        return build(
            path,
            settings,
            documents,
            progress,
            read_report,
            overwrite=overwrite,
            queries=tuning_queries,
            vectors=vectors,
        )

    @classmethod
    def open(cls, directory: str | Path, embedder: Embedder | None = None) -> Index:
        """Open an index; without `embedder`, the one it was built with is opened on the first search.

        Raises NotAnIndexError, CorruptIndexError, or FingerprintError where `embedder` is another one.
        """
        if embedder is not None and not isinstance(embedder, Embedder):
            raise InputError(
                f"embedder {embedder!r} is {type(embedder).__name__}: pass an Embedder (get_embedder(name))"
            )
        path = as_path(directory)
        return cls(path, Snapshot.open(path), embedder)

    def refresh(self) -> bool:
        """See the latest version from now on; return whether there was a newer one.

        Searches under way end on the version they began with. Raises FingerprintError, and stays as it is, where the
        index was rebuilt or migrated to another embedder than the one in use.
        """
        if not self._snapshot.outdated(self.directory):
            return False
        # Not while a first search opens the embedder: it is checked against the version that it is opened for.
        with self._loading:
            snapshot = Snapshot.open(self.directory)
            embedder = self.__dict__.get("embedder", self._given)
            if embedder is not None:
                self._check_fingerprint(embedder, snapshot.manifest)
            self._snapshot = snapshot
            return True

    def _settle(self) -> None:
        """See one's own change, and let go of what only this index still held."""
        from embedkit_indexes.changes import sweep

        if self.refresh():
            sweep(self.directory)

    def __repr__(self) -> str:
        m = self.manifest
        return f"Index({str(self.directory)!r}, {m.documents} documents, {m.chunks} chunks, {m.embedder['name']})"

    def add(self, documents: Iterable[Document], **told: Unpack[Told]) -> BuildReport:
        """Add documents; InputError where an id is there already."""
        return self._ingest(documents, "add", **told)

    def upsert(self, documents: Iterable[Document], **told: Unpack[Told]) -> BuildReport:
        """Add documents, in place of those with the same ids; what did not change is not embedded again."""
        return self._ingest(documents, "upsert", **told)

    def sync(self, documents: Iterable[Document], **told: Unpack[Told]) -> BuildReport:
        """Make the index hold just these documents: embed what is new or changed, delete what is not among them.

        Documents of a source that `read_report` says could not be read stay. Raises InputError, and changes nothing,
        where there is no document at all, or none in one of its sources that gave some before.
        """
        return self._ingest(documents, "sync", **told)

    def _ingest(
        self,
        documents: Iterable[Document],
        mode: Mode,
        *,
        progress: Callable[[BuildProgress], None] | None = None,
        read_report: ReadReport | None = None,
        tasks: Mapping[str, Task] | None = None,
        sources: Sequence[Mapping[str, Any]] | None = None,
        vectors: Vectors | None = None,
    ) -> BuildReport:
        from dataclasses import replace

        from embedkit_indexes.changes import ingest

        def settings(manifest: Manifest) -> IndexSettings:
            own = self._settings(manifest)
            return replace(
                own,
                tasks=own.tasks if tasks is None else tasks,
                sources=own.sources if sources is None else tuple(sources),
            )

        report = ingest(
            self.directory,
            settings,
            documents,
            mode,
            progress=progress,
            read_report=read_report,
            vectors=vectors,
        )
        self._settle()
        return report

    def delete(
        self,
        ids: Iterable[str] = (),
        *,
        source: str | None = None,
        where: str | Condition | None = None,
        dry_run: bool = False,
    ) -> BuildReport:
        """Delete documents by id, by source (the file they came from), or where any chunk satisfies a filter.

        Ids that are not there are passed over; `removed` in the report counts what was deleted, or with `dry_run`
        what would be. Raises InputError where nothing is asked for.
        """
        from embedkit_indexes.changes import delete

        wanted, condition = checked_ids(ids), checked_condition(source, where)
        if not wanted and condition is None:
            raise InputError("nothing was named to delete: give ids, a source or a filter")
        report = delete(self.directory, self._stored, wanted, condition, dry_run=dry_run)
        self._settle()
        return report

    def compact(
        self,
        progress: Callable[[BuildProgress], None] | None = None,
        *,
        engine: EngineConfig | None = None,
    ) -> BuildReport:
        """Write all as one segment, without what is deleted; nothing is embedded, readers go on.

        `engine` takes the place of the one that the index is searched with, from now on. Raises InputError, and leaves
        the index as it was, for one that is unknown or does not fit its memory budget.
        """
        from dataclasses import replace

        from embedkit_indexes.changes import compact

        def settings(manifest: Manifest) -> IndexSettings:
            stored = self._stored(manifest)
            return stored if engine is None else replace(stored, engine=engine)

        report = compact(self.directory, settings, progress)
        self._settle()
        return report

    def migrate(
        self,
        embedder: Embedder | str,
        *,
        embedder_spec: str = "",
        embedder_options: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        progress: Callable[[BuildProgress], None] | None = None,
    ) -> BuildReport:
        """Embed every chunk, as it is stored, with another embedder; the index serves as before until the switch.

        Chunks keep their bounds: those beyond the new embedder's length are counted as truncated. A migration that
        was killed goes on where it was.
        """
        from dataclasses import replace

        from embedkit_indexes.changes import migrate, sweep
        from embedkit_indexes.settings import IndexSettings

        options = dict(embedder_options or {})
        new, embedder_spec = opened_embedder(embedder, embedder_spec, options)

        def settings(manifest: Manifest) -> IndexSettings:
            stored = IndexSettings.of(manifest).using(new, embedder_spec, options)
            return replace(stored, dtype=dtype or stored.dtype)

        report = migrate(self.directory, settings, progress)
        with self._loading:
            # Both at once: a search in another thread sees the old embedder and version, or the new ones.
            self._given = new
            self.__dict__.pop("embedder", None)
            self.refresh()
        sweep(self.directory)
        return report

    def _settings(self, manifest: Manifest) -> IndexSettings:
        from dataclasses import replace

        from embedkit_indexes.settings import IndexSettings

        def opened() -> Embedder:
            self._check_fingerprint(self.embedder, manifest)
            return self.embedder

        if self._given is not None or "embedder" in self.__dict__:
            return IndexSettings.of(manifest, opened())
        # Opening a model takes seconds: a change that embeds nothing needs none.
        return replace(IndexSettings.of(manifest), opener=opened)

    @staticmethod
    def _stored(manifest: Manifest) -> IndexSettings:
        from embedkit_indexes.settings import IndexSettings

        return IndexSettings.of(manifest)

    def export(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[BuildProgress], None] | None = None,
    ) -> int:
        """Write all chunks with their vectors to a Parquet file; return how many. `restore` makes an index of it."""
        from embedkit_indexes.exchange import export_parquet

        return export_parquet(self._snapshot, as_path(path, "path"), overwrite=overwrite, progress=progress)

    @staticmethod
    def restore(
        directory: str | Path,
        path: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[BuildProgress], None] | None = None,
    ) -> BuildReport:
        """Make an index of a file that `export` wrote: the same chunks, ids and vectors; nothing is embedded.

        Raises CorpusError for another file.
        """
        from embedkit_indexes.changes import restore
        from embedkit_indexes.exchange import ParquetIndex

        return restore(as_path(directory), ParquetIndex(as_path(path, "path")), progress, overwrite=overwrite)

    def verify(self) -> None:
        """Read all files and compare their checksums. Raises CorruptIndexError naming the one that differs."""
        self.manifest.verify(self.directory)
