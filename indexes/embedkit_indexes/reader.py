"""Search an open index under any instruction."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from embedkit.embedder import Embedder
from embedkit.errors import InputError, UnknownNameError
from embedkit.registry import reopen_embedder
from embedkit.tasks import Task, get_task
from embedkit.threads import thread_count
from embedkit_indexes.embedder_checks import check_fingerprint, check_probes
from embedkit_indexes.found import Found, result_of
from embedkit_indexes.manifest import Manifest
from embedkit_indexes.planner import SearchEffort
from embedkit_indexes.request import EVEN, Mode, SearchOptions, SearchRequest, checked_queries, make_request
from embedkit_indexes.reranking import DEPTH, rerank_results, widened
from embedkit_indexes.results import RankedChunk, SearchResult, truncated_tokens
from embedkit_indexes.searching import search_snapshot
from embedkit_indexes.snapshot import Snapshot

if TYPE_CHECKING:
    from embedkit.rerankers.base import Reranker
    from embedkit_indexes.context import Context, Order
    from embedkit_indexes.context_counting import Counter
    from embedkit_indexes.context_forms import Form
    from embedkit_indexes.filters import Condition

_BATCH = 1024


class IndexReader:
    """Search what is open: one index, or several as one. Any number of threads may search."""

    def __init__(self, directory: Path, snapshot: Snapshot, embedder: Embedder | None = None) -> None:
        self.directory = directory
        self._snapshot = snapshot
        self._given = embedder
        # Taken again by a migration's refresh.
        self._loading = threading.RLock()
        if embedder is not None:
            self._check_fingerprint(embedder)

    @property
    def manifest(self) -> Manifest:
        """What the index holds, in the version that is open."""
        return self._snapshot.manifest

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self.manifest.chunks

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks stored with the index, by name; the built-in ones are found beside them."""
        return self._snapshot.tasks

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
        where: str | Condition | None = None,
        effort: SearchEffort | float | None = None,
        mode: Mode = "dense",
        weights: Sequence[float] = EVEN,
        rerank: Reranker | None = None,
        rerank_depth: int = DEPTH,
    ) -> SearchResult:
        """Return the `k` chunks nearest to `query` under a task or a free instruction, best first.

        `lang` and `where` (`year >= 2020 and source = "wiki"`, or `F("year") >= 2020`) keep only the chunks that
        satisfy them; fewer than `k` hits come back only where there are fewer such chunks. `effort` is the recall@10
        to reach by the index's own measurement, or the parameters themselves. `mode` "lexical" searches by words
        alone (BM25, without the instruction), "hybrid" fuses both by reciprocal rank under `weights` (vectors,
        words). With `rerank`, the `rerank_depth` best of that (`k` where it is more) are scored by a reranker under the
        same instruction, and the `k` best by its score returned. Raises InputError for an empty query, k < 1 or a filter
        that cannot be asked, and UnknownNameError for an unknown task, language or field.
        """
        return self.search_many(
            [query], task=task, instruction=instruction, k=k, lang=lang, where=where, effort=effort, mode=mode,
            weights=weights, rerank=rerank, rerank_depth=rerank_depth,
        )[0]  # fmt: skip

    def context(
        self,
        query: str,
        *,
        budget: int = 2000,
        form: Form = "text",
        expand: int = 0,
        order: Order = "score",
        count_tokens: Counter | None = None,
        **search: Unpack[SearchOptions],
    ) -> Context:
        """Search, and return what was found as numbered passages for a prompt of at most `budget` tokens.

        `ContextConfig` and `build_context` say what the arguments do, `search` takes the others. Tokens are counted by the
        embedder's tokenizer; by four bytes a token where it has none, or where words alone are searched.
        """
        from embedkit_indexes.context import ContextConfig, build_context
        from embedkit_indexes.context_counting import counter_of

        config = ContextConfig(budget, form, expand, order)
        result = self.search(query, **search)
        if count_tokens is None and search.get("mode") != "lexical":
            count_tokens = counter_of(self.embedder)
        return build_context(result, config, count_tokens=count_tokens)

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
        weights: Sequence[float] = EVEN,
        rerank: Reranker | None = None,
        rerank_depth: int = DEPTH,
    ) -> list[SearchResult]:
        """Search for several queries at once, which is faster than one by one; see `search`."""
        request = make_request(
            task, instruction, k, lang=lang, where=where, effort=effort, mode=mode, weights=weights
        )
        wanted = request.k
        if rerank is not None:
            request = widened(request, rerank, rerank_depth)
        queries = checked_queries(queries)
        snapshot, embedder = self._opened(request)
        results = [
            result_of(snapshot, embedder, found)
            for found in self._find(snapshot, embedder, queries, request, lang)
        ]
        return results if rerank is None else rerank_results(results, rerank, wanted, request, snapshot.tasks)

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
        weights: Sequence[float] = EVEN,
        rerank: Reranker | None = None,
        rerank_depth: int = DEPTH,
    ) -> list[list[RankedChunk]]:
        """Search as `search_many` does, but return document ids and scores alone: for evaluation at depth."""
        if rerank is not None:
            results = self.search_many(
                queries, task=task, instruction=instruction, k=k, lang=lang, where=where, effort=effort, mode=mode,
                weights=weights, rerank=rerank, rerank_depth=rerank_depth,
            )  # fmt: skip
            return [[RankedChunk(h.document_id, h.rerank_score or 0.0) for h in r.hits] for r in results]
        request = make_request(
            task, instruction, k, lang=lang, where=where, effort=effort, mode=mode, weights=weights
        )
        queries = checked_queries(queries)
        snapshot, embedder = self._opened(request)
        ids = snapshot.document_ids
        return [
            [RankedChunk(ids[n], s) for s, n in zip(*found.ranking, strict=True)]
            for found in self._find(snapshot, embedder, queries, request, lang)
        ]

    def _find(
        self,
        snapshot: Snapshot,
        embedder: Embedder | None,
        queries: Sequence[str],
        request: SearchRequest,
        lang: str | None,
    ) -> list[Found]:
        if lang is not None and lang not in snapshot.languages:
            raise UnknownNameError("language", lang, snapshot.languages, "`embedkit info` counts them.")
        chosen = get_task(request.task, snapshot.tasks) if isinstance(request.task, str) else request.task
        allowed = snapshot.allowed(request.condition)
        if embedder is None:
            # Words need no embedder: neither its weights nor its program.
            rankings = search_snapshot(snapshot, queries, None, allowed, request)
            return [Found(q, None, None, q, True, *r) for q, r in zip(queries, rankings, strict=True)]
        info = embedder.info
        sentence = embedder.instruction_for(chosen, request.instruction)
        name = chosen.name if chosen is not None else info.default_task
        if chosen is None and request.instruction is not None:
            name = None
        obeys = sentence is None or info.instruction_trained
        out: list[Found] = []
        for start in range(0, len(queries), _BATCH):
            part = queries[start : start + _BATCH]
            encoded = [info.template.render_query(q, sentence) for q in part]
            vectors = embedder.encode_query(part, chosen, request.instruction)
            rankings = search_snapshot(snapshot, part, vectors, allowed, request)
            out += [
                Found(query, name, sentence, text, obeys, *ranking)
                for query, text, ranking in zip(part, encoded, rankings, strict=True)
            ]
        return out

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
        request = make_request(
            task, instruction, k, lang=None, where=where, effort=effort, mode=mode, weights=EVEN
        )
        checked_queries([query])
        snapshot, embedder = self._opened(request)
        (found,) = self._find(snapshot, embedder, [query], request, None)
        tokenizer = embedder.tokenizer if embedder is not None else None
        return {
            "query": query,
            "task": found.task,
            "instruction": found.instruction,
            "obeys": found.obeys,
            "encoded": found.encoded,
            "tokens": tokenizer.encode(found.encoded).tokens if tokenizer is not None else None,
            "token_count": embedder.count_tokens([found.encoded])[0] if embedder is not None else None,
            "truncated": truncated_tokens(embedder, found.encoded) if embedder is not None else 0,
            "embedder": {**snapshot.manifest.embedder, "fingerprint": snapshot.manifest.fingerprint},
            "plan": {**snapshot.plan(request), "threads": thread_count()},
        }

    @property
    def reachable_recall(self) -> float:
        """The highest recall@10 that searches by `effort` were measured to reach, 1.0 where all is compared anyway.

        A search for more than that has this; one for a recall of 1 compares all.
        """
        engines = (segment.record.engine for segment in self._snapshot.segments)
        return min(
            (max((p["recall"] for p in e.get("curve", ())), default=1.0) for e in engines), default=1.0
        )

    def document_languages(self) -> dict[str, str]:
        """Return each document's language by its id, `und` where none was told or found."""
        out: dict[str, str] = {}
        for segment in self._snapshot.segments:
            columns = (segment.strings(n) for n in ("id", "lang"))
            live = segment.live_documents.tolist()
            out.update((id, lang) for id, lang, alive in zip(*columns, live, strict=True) if alive)
        return out

    def _opened(self, request: SearchRequest) -> tuple[Snapshot, Embedder | None]:
        """Return a version and the embedder of its vectors, None where words alone are searched."""
        if request.mode == "lexical":
            return self._snapshot, None
        self._load()
        with self._loading:
            # Both at once: a migration replaces both.
            return self._snapshot, self.embedder

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
            try:
                self._snapshot.map()
            finally:
                thread.join()
            if failures:
                # Taken out: an error that its own frame holds would keep the index mapped.
                raise failures.pop()

    def _check_fingerprint(self, embedder: Embedder, manifest: Manifest | None = None) -> None:
        check_fingerprint(manifest or self.manifest, embedder, str(self.directory))
