"""`Index`: build it once from documents, search it under any instruction."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit.embedder import Embedder
from embedkit.errors import CorruptIndexError, FingerprintError, InputError, UnknownNameError
from embedkit.registry import full_name, get_embedder, reopen_embedder
from embedkit.tasks import Task, get_task
from embedkit.threads import thread_count
from embedkit_indexes import faiss_engine
from embedkit_indexes.manifest import Manifest, check_probes
from embedkit_indexes.results import RankedChunk, SearchHit, SearchResult
from embedkit_indexes.segment import Segment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.builder import BuildProgress, BuildReport
    from embedkit_indexes.corpus.chunking import ChunkConfig
    from embedkit_indexes.corpus.options import ReadReport
    from embedkit_indexes.corpus.records import Document

_BATCH = 1024


class _Found(NamedTuple):
    """What one query found: scores and row numbers, best first."""

    query: str
    task: str | None
    instruction: str | None
    encoded: str
    obeys: bool
    truncated: int
    scores: list[float]
    numbers: list[int]


class Index:
    """A corpus, embedded once: only the query carries a task, so that one index serves them all."""

    def __init__(self, directory: Path, manifest: Manifest, embedder: Embedder | None = None) -> None:
        self.directory = directory
        self.manifest = manifest
        self._given = embedder
        self._loading = threading.Lock()
        self._segment = Segment(directory / manifest.segment)
        if embedder is not None:
            self._check_fingerprint(embedder)

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
        exact_limit: int = faiss_engine.EXACT_LIMIT,
    ) -> BuildReport:
        """Embed `documents` and store them as an index in `directory`.

        `embedder` is a name for `get_embedder` (then `embedder_options` go to it and both are stored, save
        secrets, `device` and `token_budget`) or an object (then say in `embedder_spec` how to open it again, or pass
        it to `open`). `tasks` are stored with the index. Up to `exact_limit` chunks the search is exact.
        An index that is there is replaced, in one step at the end, where `overwrite` is true.

        Raises InputError for a corpus without text, NotAnIndexError where the directory holds other things,
        StoreError for the disk's troubles, EmbedderError for NaN or wrong shapes. Whatever is raised, the
        index that was there stays whole.
        """
        # Imported here: a search needs none of it, and starts the sooner.
        from embedkit_indexes.builder import BuildPlan, build
        from embedkit_indexes.corpus.chunking import ChunkConfig

        options = dict(embedder_options or {})
        if isinstance(embedder, str):
            embedder_spec = full_name(embedder_spec or embedder)
            embedder = get_embedder(embedder, **options)
        plan = BuildPlan(
            Path(directory),
            embedder,
            embedder_spec,
            options,
            chunking or ChunkConfig(),
            tasks or {},
            overwrite,
            exact_limit,
        )
        return build(plan, documents, progress, read_report)

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
        return cls(path, Manifest.read(path), embedder)

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

    def search(
        self,
        query: str,
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        lang: str | None = None,
    ) -> SearchResult:
        """Return the `k` chunks nearest to `query` under a task or a free instruction, best first.

        `lang` keeps only chunks of that language; fewer than `k` hits come back only where there are fewer
        chunks. Raises InputError for an empty query, k < 1 or a language that the index lacks, and
        UnknownNameError for an unknown task.
        """
        return self.search_many([query], task=task, instruction=instruction, k=k, lang=lang)[0]

    def search_many(
        self,
        queries: Sequence[str],
        *,
        task: str | Task | None = None,
        instruction: str | None = None,
        k: int = 10,
        lang: str | None = None,
    ) -> list[SearchResult]:
        """Search for several queries at once, which is faster than one by one; see `search`."""
        results: list[SearchResult] = []
        for found in self._find(queries, task, instruction, k, lang):
            rows = self._segment.rows(found.numbers)
            hits = tuple(
                SearchHit(rank=rank, score=score, **row)
                for rank, (score, row) in enumerate(zip(found.scores, rows, strict=True), 1)
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
    ) -> list[list[RankedChunk]]:
        """Search as `search_many` does, but return document ids and scores alone: for evaluation at depth."""
        self._load()
        ids = self._document_ids
        return [
            [RankedChunk(ids[n], s) for n, s in zip(found.numbers, found.scores, strict=True)]
            for found in self._find(queries, task, instruction, k, lang)
        ]

    def _find(
        self,
        queries: Sequence[str],
        task: str | Task | None,
        instruction: str | None,
        k: int,
        lang: str | None,
    ) -> Iterator[_Found]:
        if isinstance(queries, str):
            raise InputError(f"several queries were expected, got one string: write [{queries[:30]!r}]")
        queries = list(queries)
        for number, query in enumerate(queries):
            where = f" {number + 1}" if len(queries) > 1 else ""
            if not isinstance(query, str):
                raise InputError(f"query{where} is {type(query).__name__}, not str")
            if not query.strip():
                raise InputError(f"query{where} is empty: write what you look for")
        try:
            k = int(operator.index(k))
        except TypeError:
            raise InputError(f"k is {k!r}: give a whole number") from None
        if k < 1:
            raise InputError(f"k is {k}: ask for 1 or more results")
        self._check_language(lang)
        chosen = self._resolve(task)
        self._load()
        info = self.embedder.info
        sentence = self.embedder.instruction_for(chosen, instruction)
        name = self._task_name(chosen, instruction)
        obeys = sentence is None or info.instruction_trained
        rows = self._rows(lang)
        for start in range(0, len(queries), _BATCH):
            part = queries[start : start + _BATCH]
            vectors = self.embedder.encode_query(part, chosen, instruction)
            scores, numbers = self._engine.search(vectors, min(k, len(self)), rows)
            encoded = [info.template.render_query(q, sentence) for q in part]
            tokens = self.embedder.count_tokens(encoded)
            for query, text, count, s, n in zip(part, encoded, tokens, scores, numbers, strict=True):
                kept, cut = n >= 0, max(0, count - info.max_length)
                yield _Found(query, name, sentence, text, obeys, cut, s[kept].tolist(), n[kept].tolist())

    def explain(
        self, query: str, *, task: str | Task | None = None, instruction: str | None = None, k: int = 10
    ) -> dict[str, Any]:
        """Say in plain values what is encoded for a query (string, tokens) and how it is searched."""
        # Searched for real: what is told is what a search does, and what cannot be asked cannot be explained.
        found = next(self._find([query], task, instruction, k, None))
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
            "plan": {**self._engine.plan(k), "threads": thread_count()},
        }

    def document_languages(self) -> dict[str, str]:
        """Return each document's language by its id, `und` where none was told or found."""
        self._map()
        langs = self._segment.column("lang").to_pylist()
        return dict(zip(self._document_ids, langs, strict=True))

    def verify(self) -> None:
        """Read all files and compare their checksums. Raises CorruptIndexError naming the one that differs."""
        self.manifest.verify(self.directory)

    def _resolve(self, task: str | Task | None) -> Task | None:
        return get_task(task, self.tasks) if isinstance(task, str) else task

    def _task_name(self, chosen: Task | None, instruction: str | None) -> str | None:
        """Return the task that holds: the one chosen, else the embedder's default unless words are given."""
        if chosen is not None:
            return chosen.name
        return self.embedder.info.default_task if instruction is None else None

    @cached_property
    def _document_ids(self) -> list[str]:
        ids: list[str] = self._segment.column("document_id").to_pylist()
        return ids

    @cached_property
    def _engine(self) -> faiss_engine.Engine:
        return faiss_engine.open_engine(
            self.directory / self.manifest.segment, self._segment.vectors, self.manifest.engine
        )

    def _load(self) -> None:
        """Open the embedder and, beside it, the index: each waits on other things than the other."""
        with self._loading:
            if "embedder" in self.__dict__ and "_engine" in self.__dict__:
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
            self._map()
            thread.join()
            if failures:
                raise failures[0]

    def _map(self) -> None:
        """Map the files: from here on a rebuild does not touch this index. One that came before is followed."""
        while True:
            try:
                self._segment.map()
                _ = self._engine
            except CorruptIndexError:
                latest = Manifest.read(self.directory)
                if latest.segment == self.manifest.segment:
                    raise
                if latest.fingerprint != self.manifest.fingerprint:
                    raise FingerprintError(
                        f"{self.directory} was rebuilt with {latest.embedder['name']} since it was opened: open it again"
                    ) from None
                self.manifest = latest
                self._segment = Segment(self.directory / latest.segment)
            else:
                return

    def _check_fingerprint(self, embedder: Embedder) -> None:
        if embedder.fingerprint == self.manifest.fingerprint:
            return
        built = self.manifest
        raise FingerprintError(
            f"{self.directory} was built with {built.embedder['name']} ({built.dim} dimensions, {built.fingerprint}), "
            f"this is {embedder.info.name} ({embedder.info.dim} dimensions, {embedder.fingerprint}): their vectors "
            f"cannot be compared; open it with {built.spec or 'the first one'}, or rebuild it with "
            "`embedkit index --force`"
        )

    def _check_language(self, lang: str | None) -> None:
        if lang is not None and lang not in self.manifest.languages:
            raise UnknownNameError("language", lang, self.manifest.languages, "`embedkit info` counts them.")

    def _rows(self, lang: str | None) -> NDArray[np.int64] | None:
        if lang is None:
            return None
        import numpy as np
        import pyarrow.compute as pc

        return np.flatnonzero(pc.equal(self._segment.column("lang"), lang).to_numpy())
