"""One embedder for several users: its callers take turns, as many at a time as it allows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

from embedkit.embedder import Embedder
from embedkit.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

_all_turns: dict[int, BoundedSemaphore] = {}
_all_turns_lock = Lock()


def turns(embedder: Embedder) -> BoundedSemaphore:
    """Return what an embedder's callers wait for, `parallel` of them at a time: the same for all who ask."""
    # By identity: a plug-in's class need not be hashable.
    with _all_turns_lock:
        found = _all_turns.get(id(embedder))
        if found is None:
            found = _all_turns[id(embedder)] = BoundedSemaphore(embedder.parallel)
            weakref.finalize(embedder, _all_turns.pop, id(embedder), None)
        return found


class SharedEmbedder(Embedder):
    """An embedder that others use too: each call waits for its turn, so that `parallel` of them run at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.info = embedder.info
        self._turns = turns(embedder)

    @staticmethod
    def of(embedder: Embedder) -> SharedEmbedder:
        """Return the embedder as a shared one, itself where it is."""
        return embedder if isinstance(embedder, SharedEmbedder) else SharedEmbedder(embedder)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.floating[Any]]:
        return self.embedder._embed(texts)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The embedder's own tokenizer."""
        return self.embedder.tokenizer

    @property
    def fingerprint(self) -> str:
        """The embedder's own fingerprint."""
        return self.embedder.fingerprint

    def encode_query(
        self, texts: Sequence[str], task: str | Task | None = None, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """Encode queries, in turn."""
        with self._turns:
            return self.embedder.encode_query(texts, task, instruction)

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode documents, in turn."""
        with self._turns:
            return self.embedder.encode_document(texts)

    def encode_rendered(self, texts: Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Encode rendered texts, in turn."""
        with self._turns:
            return self.embedder.encode_rendered(texts, normalize=normalize)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, beside whatever is encoded."""
        return self.embedder.count_tokens(texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedEmbedder, (self.embedder,)
