"""The embedders of a server: each opened once, shared by all indexes that it built."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder, _checked
from embedkit.errors import InputError
from embedkit.registry import full_name, get_embedder, reopen_embedder
from embedkit.tasks import Task
from embedkit_cli.server.batching import Batcher
from embedkit_cli.server.units import Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedkit_cli.server.config import Limits
    from embedkit_indexes.manifest import Manifest

# What a request has had encoded before its search begins.
prepared: ContextVar[Mapping[Unit, NDArray[np.float32]] | None] = ContextVar("prepared", default=None)
# Set where the server itself asks: a full queue refuses it nothing, else a busy server would take up no new version.
unrefused: ContextVar[bool] = ContextVar("unrefused", default=False)


class ServedEmbedder(Embedder):
    """An embedder whose every call goes through its batcher, for an index to search with.

    Vectors that stand in `prepared` are taken from there, so that a search does not wait for the model.
    """

    def __init__(self, inner: Embedder, spec: str, batcher: Batcher) -> None:
        self.info = inner.info
        self._fingerprint = inner.fingerprint  # each request asks for it
        self.full_name = f"{inner.info.name}@{inner.fingerprint}"
        self.spec = spec
        self.batcher = batcher
        self._inner = inner
        # When neither an index nor a request holds it any more, its threads end and the model goes.
        weakref.finalize(self, batcher.close)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own tokenizer."""
        return self._inner.tokenizer

    @property
    def fingerprint(self) -> str:
        """The model's own fingerprint."""
        return self._fingerprint

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count as the model itself does."""
        return self._inner.count_tokens(texts)

    def encode_query(
        self, texts: Sequence[str], task: str | Task | None = None, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """Encode queries as the model itself does."""
        sentence = self.instruction_for(task, instruction)
        return self._through([Unit("query", sentence, text) for text in _checked(texts, "query")])

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode documents as the model itself does."""
        return self._through([Unit("document", None, text) for text in _checked(texts, "document")])

    def encode_rendered(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Encode rendered texts as the model itself does; unit length alone."""
        if not normalize:
            raise InputError("a served embedder gives unit vectors alone")
        return self._through([Unit("rendered", None, text) for text in _checked(texts, "rendered")])

    def _through(self, units: list[Unit]) -> NDArray[np.float32]:
        import numpy as np

        have = prepared.get()
        if have is not None and all(unit in have for unit in units):
            return (
                np.stack([have[unit] for unit in units])
                if units
                else np.empty((0, self.info.dim), np.float32)
            )
        return self.batcher.encode_waiting(units, bounded=not unrefused.get()).vectors

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        raise NotImplementedError("a served embedder encodes through its batcher")


class EmbedderPool:
    """Open embedders, each once; one that no index and no request uses any more is let go."""

    def __init__(self, limits: Limits, on_batch: Callable[[int, float], Any]) -> None:
        self._limits = limits
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[str, ServedEmbedder] = weakref.WeakValueDictionary()
        self.own: ServedEmbedder | None = None

    def open_own(self, name: str, options: Mapping[str, Any]) -> ServedEmbedder:
        """Open the embedder that the server was told to use beside those of its indexes."""
        self.own = self._served(get_embedder(name, **options), full_name(name))
        return self.own

    def of_index(self, manifest: Manifest, place: str) -> ServedEmbedder:
        """Return the embedder that an index was built with. Raises as `Index.embedder` does."""
        if self.own is not None and self.own.fingerprint == manifest.fingerprint:
            return self.own
        if not manifest.spec:
            raise InputError(
                f"{place} was built by a program's own embedder {manifest.embedder['name']!r}, which this command "
                "cannot open: name it with --embedder"
            )
        key = json.dumps([manifest.spec, dict(manifest.options), manifest.fingerprint], sort_keys=True)
        with self._lock:
            served = self._open.get(key)
            if served is None:
                served = self._served(reopen_embedder(manifest.spec, manifest.options), manifest.spec)
                self._open[key] = served
            return served

    def _served(self, embedder: Embedder, spec: str) -> ServedEmbedder:
        most = self._limits.queue, self._limits.queue_characters
        return ServedEmbedder(embedder, spec, Batcher(embedder, *most, self._on_batch))

    def all(self) -> list[ServedEmbedder]:
        """Return the embedders that are open, the server's own first."""
        own = [] if self.own is None else [self.own]
        # References, taken at once: the thread that looks for new versions opens embedders meanwhile.
        opened = [reference() for reference in self._open.valuerefs()]
        return own + [e for e in opened if e is not None and e is not self.own]
