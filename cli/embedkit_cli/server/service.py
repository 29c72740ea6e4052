"""What the endpoints of a server share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.embedders import EmbedderPool, ServedEmbedder
from embedkit_cli.server.errors import ApiError
from embedkit_cli.server.indexes import ServedIndexes
from embedkit_cli.server.metrics import Metrics
from embedkit_cli.server.snippets import PassageVectors
from embedkit_cli.server.workers import Workers

if TYPE_CHECKING:
    from embedkit.rerankers.base import Reranker


class SharedReranker(NamedTuple):
    """A reranker and its one thread: not every model may be called by two, and no other search waits for it."""

    reranker: Reranker
    workers: Workers


class Service:
    """Hold the indexes, the embedders and the threads that search; `open` them before requests come."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.embedders = EmbedderPool(config.limits, self.metrics.batch)
        self.indexes = ServedIndexes(config.indexes, self.embedders, self.metrics.swaps.inc)
        self.rerankers: dict[str, SharedReranker] = {}
        self.passages = PassageVectors()
        self.ready = False
        self.searchers = Workers(
            min(os.cpu_count() or 1, 4) + 1, "embedkit-search", config.limits.searches, "searches wait"
        )
        # What may hold more tokens than one request may is counted apart: neither the model nor a search waits for it.
        self.counters = Workers(1, "embedkit-count", config.limits.searches, "requests wait to be counted")
        self.metrics.watch(
            lambda: sum(e.batcher.waiting for e in self.embedders.all()), lambda: self.searchers.busy
        )

    def open(self) -> None:
        """Open all that is served. Raises what opening an index or an embedder raises."""
        if self.config.embedder is not None:
            self.embedders.open_own(self.config.embedder, self.config.embedder_options)
        for served in self.indexes:
            served.open()
        if self.config.rerankers:
            from embedkit.rerankers.registry import get_reranker

            for name, spec in self.config.rerankers.items():
                workers = Workers(
                    1,
                    "embedkit-rerank",
                    self.config.limits.reranks,
                    f"searches wait for the reranker {name!r}",
                )
                self.rerankers[name] = SharedReranker(get_reranker(spec), workers)
        for embedder in self.embedders.all():
            # More than one batch, so that what an embedder compiles for many texts is there.
            embedder.encode_document(["a text to get warm with " * 8] * 24)
        self.ready = True
        self.indexes.watch(self.config.refresh)

    def open_beside(self, opened: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        """Open all in a thread, so that /health answers meanwhile."""

        def run() -> None:
            try:
                self.open()
            except BaseException as e:  # told to the main thread, which ends with it
                failed(e)
            else:
                opened()

        threading.Thread(target=run, name="embedkit-open", daemon=True).start()

    def close(self) -> None:
        """Let the threads end."""
        self.indexes.stop()
        for workers in (
            self.searchers,
            self.counters,
            *(shared.workers for shared in self.rerankers.values()),
        ):
            workers.close()
        for embedder in self.embedders.all():
            embedder.batcher.close()

    def check_ready(self) -> None:
        """Raise ApiError 503 while indexes and embedders are being opened."""
        if not self.ready:
            raise ApiError(503, "the server is starting: try again in a moment", headers={"Retry-After": "1"})

    def models(self) -> dict[str, ServedEmbedder]:
        """Return the embedders by the names that requests may call them: the server's own, then those of its indexes."""
        opened = [index for served in self.indexes if (index := served.index) is not None]
        own = self.embedders.own
        serving = dict.fromkeys([own, *(index.embedder for index in opened)])
        return named([e for e in serving if isinstance(e, ServedEmbedder)], own)


def named(embedders: Sequence[ServedEmbedder], own: ServedEmbedder | None) -> dict[str, ServedEmbedder]:
    """Return embedders by name, by `NAME@FINGERPRINT` where others have the name: it never means one, then another.

    The server's own stays as long as the server, and so does its name.
    """
    prints: dict[str, set[str]] = {}
    for embedder in embedders:
        prints.setdefault(embedder.info.name, set()).add(embedder.fingerprint)
    out: dict[str, ServedEmbedder] = {}
    for embedder in embedders:
        name = embedder.info.name
        unique = embedder is own or len(prints[name]) == 1
        out.setdefault(name if unique else embedder.full_name, embedder)
    return out
