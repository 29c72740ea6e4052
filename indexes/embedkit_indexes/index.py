"""`Index`: build it once from documents, search it under any instruction, change it for years."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from embedkit.embedder import Embedder
from embedkit.errors import InputError, UnknownNameError
from embedkit.registry import full_name, get_embedder, reopen_embedder
from embedkit.tasks import Task, get_task
from embedkit.threads import thread_count
from embedkit_indexes.manifest import Manifest, check_fingerprint, check_probes
from embedkit_indexes.planner import EngineConfig, SearchEffort
from embedkit_indexes.question import Mode, Question, checked_queries, make_question
from embedkit_indexes.results import RankedChunk, SearchHit, SearchResult
from embedkit_indexes.searching import search_snapshot
from embedkit_indexes.snapshot import Ranking, Snapshot

if TYPE_CHECKING:
    from embedkit_indexes.corpus.chunking import ChunkConfig
    from embedkit_indexes.corpus.options import ReadReport
    from embedkit_indexes.corpus.records import Document
    from embedkit_indexes.filters import Condition
    from embedkit_indexes.reports import BuildProgress, BuildReport
    from embedkit_indexes.settings import IndexSettings

_BATCH = 1024


class Found(NamedTuple):
    """What one query found; `cosines` and `bm25` hold what is known of each row."""

    query: str
    task: str | None
    instruction: str | None
    encoded: str
    obeys: bool
    truncated: int
    ranking: Ranking
    cosines: dict[int, float]
    bm25: dict[int, float]


class Index:
    """A corpus, embedded once: only the query carries a task, so that one index serves them all.

    An open index is a snapshot: changes made later, by this process or another, are seen after `refresh`. Its own
    `add`, `upsert`, `sync`, `delete`, `compact` and `migrate` refresh it. Any number of threads may search.
    """

    def __init__(self, directory: Path, snapshot: Snapshot, embedder: Embedder | None = None) -> None:
        self.directory = directory
        self._snapshot = snapshot
        self._given = embedder
        self._loading = threading.Lock()
        if embedder is not None:
            self._check_fingerprint(embedder)

    @property
    def manifest(self) -> Manifest:
        """What the index holds, in the version that is open."""
        return self._snapshot.manifest

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
    ) -> BuildReport:
        """Embed `documents` and store them as an index in `directory`.

        `embedder` is a name for `get_embedder` (then `embedder_options` go to it and both are stored, save
        secrets, `device` and `token_budget`) or an object (then say in `embedder_spec` how to open it again, or pass
        it to `open`). `tasks` are stored with the index. `engine` says how vectors are searched, `dtype` ("float16",
        "float32") how they are stored; `tuning_queries` are real queries to tune the engine on. `sources` are
        remembered for the next `sync`. An index that is there is replaced, in one step at the end, where `overwrite`
        is true. What a killed build has embedded is not embedded again.

        Raises InputError for a corpus without text, NotAnIndexError where the directory holds other things,
        StoreError for the disk's troubles, EmbedderError for NaN or wrong shapes. Whatever is raised, the
        index that was there stays whole.
        """
        # Imported here: a search needs none of it, and starts the sooner.
        from embedkit_indexes.changes import build
        from embedkit_indexes.corpus.chunking import ChunkConfig
        from embedkit_indexes.settings import IndexSettings

        options = dict(embedder_options or {})
        if isinstance(embedder, str):
            embedder_spec = full_name(embedder_spec or embedder)
            embedder = get_embedder(embedder, **options)
        settings = IndexSettings(
            "", {}, 0, chunking=chunking or ChunkConfig(), tasks=tasks or {}, engine=engine or EngineConfig(),
            dtype=dtype, sources=tuple(sources),
        ).using(embedder, embedder_spec, options)  # fmt: skip
        return build(
            Path(directory),
            settings,
            documents,
            progress,
            read_report,
            overwrite=overwrite,
            queries=tuning_queries,
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
        path = Path(directory)
        return cls(path, Snapshot.open(path), embedder)

    def refresh(self) -> bool:
        """See the latest version from now on; return whether there was a newer one.

        Searches under way end on the version they began with. Raises FingerprintError, and stays as it is, where the
        index was rebuilt or migrated to another embedder than the one in use.
        """
        if Manifest.read(self.directory).generation == self.manifest.generation:
            return False
        snapshot = Snapshot.open(self.directory)
        embedder = self.__dict__.get("embedder", self._given)
        if embedder is not None:
            self._check_fingerprint(embedder, snapshot.manifest)
        self._snapshot = snapshot
        self.__dict__.pop("tasks", None)
        return True

    def _settle(self) -> None:
        """See one's own change, and let go of what only this index still held."""
        from embedkit_indexes.changes import sweep

        if self.refresh():
            sweep(self.directory)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self.manifest.chunks

    def __repr__(self) -> str:
        m = self.manifest
        return f"Index({str(self.directory)!r}, {m.documents} documents, {m.chunks} chunks, {m.embedder['name']})"

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks stored with the index, by name; the built-in ones are found beside them."""
        return {t["name"]: Task(**t) for t in self.manifest.tasks}

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder, opened and checked against the index's fingerprint and probe vectors."""
        embedder = self._given
        if embedder is None:
            if not self.manifest.spec:
                raise InputError(
                    f"{self.directory} was built by a program's own embedder {self.manifest.embedder['name']!r}: "
                    "pass it, Index.open(directory, embedder)"
                )
            embedder = reopen_embedder(self.manifest.spec, self.manifest.options)
            self._check_fingerprint(embedder)
        check_probes(self.manifest, embedder)
        return embedder

    # Changing

    def add(self, documents: Iterable[Document], **told: Any) -> BuildReport:
        """Add documents; InputError where an id is there already.

        `told`: `progress`, `read_report`, and `tasks` and `sources` to be stored in place of the index's own.
        """
        return self._ingest(documents, "add", **told)

    def upsert(self, documents: Iterable[Document], **told: Any) -> BuildReport:
        """Add documents, in place of those with the same ids; what did not change is not embedded again."""
        return self._ingest(documents, "upsert", **told)

    def sync(self, documents: Iterable[Document], **told: Any) -> BuildReport:
        """Make the index hold just these documents: embed what is new or changed, delete what is not among them.

        Documents of a source that `read_report` says could not be read stay. Raises InputError, and changes nothing,
        where there is no document at all.
        """
        return self._ingest(documents, "sync", **told)

    def _ingest(
        self,
        documents: Iterable[Document],
        mode: Literal["add", "upsert", "sync"],
        progress: Callable[[BuildProgress], None] | None = None,
        read_report: ReadReport | None = None,
        **stored: Any,
    ) -> BuildReport:
        from dataclasses import replace

        from embedkit_indexes.changes import ingest

        def settings(manifest: Manifest) -> IndexSettings:
            return replace(self._settings(manifest), **stored)

        report = ingest(self.directory, settings, documents, mode, progress=progress, read_report=read_report)
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
        from embedkit_indexes.filters import F, check
        from embedkit_indexes.segment import FilterFields
        from embedkit_indexes.where import parse_where

        if isinstance(ids, str):
            ids = [ids]
        wanted = list(ids)
        condition = parse_where(where) if isinstance(where, str) else where
        if source is not None:
            condition = F("source") == source if condition is None else (F("source") == source) & condition
        if not wanted and condition is None:
            raise InputError("nothing was named to delete: give ids, a source or a filter")
        if condition is not None:
            check(condition, [FilterFields(s) for s in self._snapshot.segments])
        report = delete(self.directory, self._stored, wanted, condition, dry_run=dry_run)
        self._settle()
        return report

    def compact(self, progress: Callable[[BuildProgress], None] | None = None) -> BuildReport:
        """Write all as one segment, without what is deleted; nothing is embedded, readers go on."""
        from embedkit_indexes.changes import compact

        report = compact(self.directory, self._stored, progress)
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

        from embedkit_indexes.changes import migrate
        from embedkit_indexes.settings import IndexSettings

        options = dict(embedder_options or {})
        if isinstance(embedder, str):
            embedder_spec = full_name(embedder_spec or embedder)
            embedder = get_embedder(embedder, **options)
        new = embedder

        def settings(manifest: Manifest) -> IndexSettings:
            stored = IndexSettings.of(manifest).using(new, embedder_spec, options)
            return replace(stored, dtype=dtype or stored.dtype)

        report = migrate(self.directory, settings, progress)
        self._given = new
        self.__dict__.pop("embedder", None)
        self._settle()
        return report

    def _settings(self, manifest: Manifest) -> IndexSettings:
        from embedkit_indexes.settings import IndexSettings

        self._check_fingerprint(self.embedder, manifest)
        return IndexSettings.of(manifest, self.embedder)

    @staticmethod
    def _stored(manifest: Manifest) -> IndexSettings:
        from embedkit_indexes.settings import IndexSettings

        return IndexSettings.of(manifest)

    def export(self, path: str | Path, *, overwrite: bool = False) -> int:
        """Write all chunks with their vectors to a Parquet file; return how many. `restore` makes an index of it."""
        from embedkit_indexes.exchange import export_parquet

        return export_parquet(self._snapshot, Path(path), overwrite=overwrite)

    @staticmethod
    def restore(directory: str | Path, path: str | Path, *, overwrite: bool = False) -> BuildReport:
        """Make an index of a file that `export` wrote: the same chunks, ids and vectors; nothing is embedded.

        Raises CorpusError for another file.
        """
        from embedkit_indexes.changes import restore
        from embedkit_indexes.exchange import ParquetIndex

        return restore(Path(directory), ParquetIndex(Path(path)), overwrite=overwrite)

    # Searching

    def search(
        self,
        query: str,
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        lang: str | None = None,
        where: str | Condition | None = None,
        effort: SearchEffort | float | None = None,
        mode: Mode = "dense",
        weights: Sequence[float] = (1.0, 1.0),
    ) -> SearchResult:
        """Return the `k` chunks nearest to `query` under a task or a free instruction, best first.

        `lang` and `where` (`year >= 2020 and source = "wiki"`, or `F("year") >= 2020`) keep only the chunks that
        satisfy them; fewer than `k` hits come back only where there are fewer such chunks. `effort` is the recall@10
        to reach by the index's own measurement, or the parameters themselves. `mode` "lexical" searches by words
        alone (BM25, without the instruction), "hybrid" fuses both by reciprocal rank under `weights` (vectors,
        words). Raises InputError for an empty query, k < 1 or a filter that cannot be asked, and UnknownNameError for
        an unknown task, language or field.
        """
        return self.search_many(
            [query], task=task, instruction=instruction, k=k, lang=lang, where=where, effort=effort, mode=mode,
            weights=weights,
        )[0]  # fmt: skip

    def search_many(
        self,
        queries: Sequence[str],
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        lang: str | None = None,
        where: str | Condition | None = None,
        effort: SearchEffort | float | None = None,
        mode: Mode = "dense",
        weights: Sequence[float] = (1.0, 1.0),
    ) -> list[SearchResult]:
        """Search for several queries at once, which is faster than one by one; see `search`."""
        question = make_question(
            task, instruction, k, lang=lang, where=where, effort=effort, mode=mode, weights=weights
        )
        snapshot = self._snapshot
        results: list[SearchResult] = []
        for found in self._find(snapshot, queries, question, lang):
            numbers = found.ranking.numbers
            hits = tuple(
                SearchHit(
                    rank=rank,
                    score=score,
                    **row,
                    cosine=found.cosines.get(number),
                    bm25=found.bm25.get(number),
                    index=snapshot.origin(number),
                )
                for rank, (score, number, row) in enumerate(
                    zip(found.ranking.scores, numbers, snapshot.rows(numbers), strict=True), 1
                )
            )
            results.append(SearchResult(*found[:6], hits))
        return results

    def rank(
        self,
        queries: Sequence[str],
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        lang: str | None = None,
        where: str | Condition | None = None,
        effort: SearchEffort | float | None = None,
        mode: Mode = "dense",
        weights: Sequence[float] = (1.0, 1.0),
    ) -> list[list[RankedChunk]]:
        """Search as `search_many` does, but return document ids and scores alone: for evaluation at depth."""
        question = make_question(
            task, instruction, k, lang=lang, where=where, effort=effort, mode=mode, weights=weights
        )
        snapshot = self._snapshot
        ids = snapshot.document_ids
        return [
            [RankedChunk(ids[n], s) for s, n in zip(*found.ranking, strict=True)]
            for found in self._find(snapshot, queries, question, lang)
        ]

    def _find(
        self, snapshot: Snapshot, queries: Sequence[str], question: Question, lang: str | None
    ) -> Iterator[Found]:
        queries = checked_queries(queries)
        if lang is not None and lang not in snapshot.languages:
            raise UnknownNameError("language", lang, snapshot.languages, "`embedkit info` counts them.")
        chosen = get_task(question.task, self.tasks) if isinstance(question.task, str) else question.task
        self._load()
        info = self.embedder.info
        sentence = self.embedder.instruction_for(chosen, question.instruction)
        name = self._task_name(chosen, question.instruction)
        obeys = sentence is None or info.instruction_trained
        allowed = snapshot.allowed(question.condition)
        for start in range(0, len(queries), _BATCH):
            part = queries[start : start + _BATCH]
            encoded = [info.template.render_query(q, sentence) for q in part]
            tokens = self.embedder.count_tokens(encoded)
            vectors = None
            if question.mode != "lexical":
                vectors = self.embedder.encode_query(part, chosen, question.instruction)
            rankings = search_snapshot(snapshot, part, vectors, allowed, question)
            for query, text, count, ranking in zip(part, encoded, tokens, rankings, strict=True):
                cut = max(0, count - info.max_length)
                yield Found(query, name, sentence, text, obeys, cut, *ranking)

    def explain(
        self,
        query: str,
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        where: str | Condition | None = None,
        effort: SearchEffort | float | None = None,
        mode: Mode = "dense",
    ) -> dict[str, Any]:
        """Say in plain values what is encoded for a query (string, tokens) and how it is searched."""
        # Searched for real: what is told is what a search does, and what cannot be asked cannot be explained.
        question = make_question(
            task, instruction, k, lang=None, where=where, effort=effort, mode=mode, weights=(1.0, 1.0)
        )
        snapshot = self._snapshot
        found = next(self._find(snapshot, [query], question, None))
        tokenizer = self.embedder.tokenizer
        return {
            "query": query,
            "task": found.task,
            "instruction": found.instruction,
            "obeys": found.obeys,
            "encoded": found.encoded,
            "tokens": tokenizer.encode(found.encoded).tokens if tokenizer is not None else None,
            "token_count": self.embedder.count_tokens([found.encoded])[0],
            "truncated": found.truncated,
            "embedder": {**self.manifest.embedder, "fingerprint": self.manifest.fingerprint},
            "plan": {**snapshot.plan(question), "threads": thread_count()},
        }

    def document_languages(self) -> dict[str, str]:
        """Return each document's language by its id, `und` where none was told or found."""
        out: dict[str, str] = {}
        for segment in self._snapshot.segments:
            columns = (segment.documents(n).to_pylist() for n in ("id", "lang"))
            live = segment.live_documents.tolist()
            out.update((id, lang) for id, lang, alive in zip(*columns, live, strict=True) if alive)
        return out

    def verify(self) -> None:
        """Read all files and compare their checksums. Raises CorruptIndexError naming the one that differs."""
        self.manifest.verify(self.directory)

    def _task_name(self, chosen: Task | None, instruction: str | None) -> str | None:
        """Return the task that holds: the one chosen, else the embedder's default unless words are given."""
        if chosen is not None:
            return chosen.name
        return self.embedder.info.default_task if instruction is None else None

    def _load(self) -> None:
        """Open the embedder and, beside it, the index: each waits on other things than the other."""
        with self._loading:
            if "embedder" in self.__dict__:
                return
            failures: list[BaseException] = []

            def load() -> None:
                try:
                    _ = self.embedder
                except BaseException as e:  # handed to the caller's thread below
                    failures.append(e)

            # A daemon: Ctrl-C need not wait for a model that is still loading.
            thread = threading.Thread(target=load, name="embedkit-load", daemon=True)
            thread.start()
            self._snapshot.map()
            thread.join()
            if failures:
                raise failures[0]

    def _check_fingerprint(self, embedder: Embedder, manifest: Manifest | None = None) -> None:
        check_fingerprint(manifest or self.manifest, embedder, str(self.directory))
