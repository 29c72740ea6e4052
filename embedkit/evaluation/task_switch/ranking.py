"""One index for all conditions: encoded once and bare, searched exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedkit.evaluation.task_switch.conditions import ABSENT, Queries
from embedkit.evaluation.task_switch.data import TASKS, Seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder

_SLICE = 512
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TextIndex:
    """All texts, each once, and their vectors, float32 `[texts, dim]`.

    Texts stand in the order of their hash: among equal scores the first wins, and so no task or seed gains by them.
    """

    texts: tuple[str, ...]
    vectors: NDArray[np.float32]

    @classmethod
    def build(cls, embedder: Embedder, texts: Iterable[str], advance: Advance) -> TextIndex:
        """Encode the texts, bare."""
        unique = tuple(sorted(set(texts), key=lambda t: hashlib.sha256(t.encode()).digest()))
        return cls(unique, _encoded(embedder.encode_document, unique, embedder.info.dim, advance))

    @property
    def checksum(self) -> str:
        """The sha256 of the vectors, 64 hex digits."""
        return hashlib.sha256(self.vectors.tobytes()).hexdigest()

    def columns(self, seeds: Sequence[Seed]) -> NDArray[np.int64]:
        """Return where each seed's positives stand, `[seeds, tasks]`, ABSENT where it has none."""
        import numpy as np

        place = {text: i for i, text in enumerate(self.texts)}
        rows = [[place[s.positives[t]] if t in s.positives else ABSENT for t in TASKS] for s in seeds]
        return np.array(rows, dtype=np.int64)

    def ranks(self, queries: NDArray[np.float32], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rank, from 1, of each column's text for each query: `[q, dim]`, `[c]` to `[q, c]`."""
        import numpy as np

        scores = queries @ self.vectors.T
        ranks = np.empty((len(queries), len(columns)), dtype=np.int64)
        for i, column in enumerate(columns):
            own = scores[:, column, None]
            ranks[:, i] = 1 + (scores > own).sum(axis=1) + (scores[:, :column] == own).sum(axis=1)
        return ranks


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of every member of a seed's own cell, in the whole index, from 1; 0 where there is none.

    `right`, `held_out` and `other_language`: `[seeds, asked task, member's task]`. `bare` and `nonsense`:
    `[seeds, member's task]`. `wordings`: `[seeds, asked task, 5]`, of the asked task's own member.
    """

    right: NDArray[np.int64]
    held_out: NDArray[np.int64]
    other_language: NDArray[np.int64]
    bare: NDArray[np.int64]
    nonsense: NDArray[np.int64]
    wordings: NDArray[np.int64]


def rank_members(
    embedder: Embedder, queries: Queries, index: TextIndex, seeds: Sequence[Seed], advance: Advance
) -> Ranks:
    """Encode the queries and rank each seed's members under each of its own queries."""
    import numpy as np

    vectors = _encoded(embedder.encode_rendered, queries.texts, embedder.info.dim, advance)
    columns = index.columns(seeds)
    tasks = len(TASKS)
    asked_by_task = (queries.right, queries.held_out, queries.other_language)
    by_task = [np.zeros((len(seeds), tasks, tasks), dtype=np.int64) for _ in asked_by_task]
    bare, nonsense = (np.zeros((len(seeds), tasks), dtype=np.int64) for _ in range(2))
    wordings = np.zeros(queries.wordings.shape, dtype=np.int64)
    for i in range(len(seeds)):
        members = np.flatnonzero(columns[i] != ABSENT)
        asked = _numbers(queries, i)
        found = np.zeros((len(asked) + 1, tasks), dtype=np.int64)  # the last row stands for "no such query"
        found[:-1, members] = index.ranks(vectors[asked], columns[i, members])
        row = np.full(len(queries.texts) + 1, len(asked))
        row[asked] = np.arange(len(asked))
        for ranks, numbers in zip(by_task, asked_by_task, strict=True):
            ranks[i] = found[row[numbers[i]]]
        bare[i], nonsense[i] = found[row[queries.bare[i]]], found[row[queries.nonsense[i]]]
        wordings[i] = found[row[queries.wordings[i]], np.arange(tasks)[:, None]]
    right, held_out, other_language = by_task
    return Ranks(right, held_out, other_language, bare, nonsense, wordings)


def _numbers(queries: Queries, seed: int) -> NDArray[np.int64]:
    import numpy as np

    parts = (queries.bare[seed], queries.nonsense[seed], queries.other_language[seed], queries.wordings[seed])
    numbers: NDArray[np.int64] = np.setdiff1d(np.concatenate([np.ravel(p) for p in parts]), [ABSENT])
    return numbers


def _encoded(
    encode: Callable[[Sequence[str]], NDArray[np.float32]], texts: Sequence[str], dim: int, advance: Advance
) -> NDArray[np.float32]:
    import numpy as np

    vectors = np.empty((len(texts), dim), dtype=np.float32)
    for start in range(0, len(texts), _SLICE):
        part = texts[start : start + _SLICE]
        vectors[start : start + _SLICE] = encode(part)
        advance(len(part))
    return vectors
