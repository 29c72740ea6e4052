"""Near-duplicates: rows whose query and whose positive both nearly stood before, by MinHash and LSH (datasketch)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.synthesis.filters.example import Dropped, Example, Outcome
from embedkit_trainer.synthesis.filters.words import pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Ten bands of three values of the query's signature and three of the positive's: rows alike by 0.8 in both share a
# band with 95%, those alike by 0.9 with 99.9%, those alike by 0.4 with 4%; what shares one is then compared whole.
_BANDS, _HALF = 10, 3
_VALUES = _BANDS * _HALF
_SEED = 1
_GROWTH = 65_536


class NearIndex:
    """Hold the signatures of rows, 240 bytes each and the tables of their bands (about 3.5 kB a row in all).

    Raises MissingExtraError where datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"the near-duplicates' likeness is {threshold}: give more than 0 and at most 1")
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as e:
            raise MissingExtraError("the search for near-duplicates", "synth") from e
        self._threshold = threshold
        self._half = MinHash(num_perm=_VALUES, seed=_SEED, hashfunc=zlib.crc32)
        self._whole = MinHash(num_perm=2 * _VALUES, seed=_SEED, hashfunc=zlib.crc32)
        self._tables = MinHashLSH(num_perm=2 * _VALUES, params=(_BANDS, 2 * _HALF))
        self._signatures = np.empty((0, 2 * _VALUES), np.uint32)
        self._count = 0

    def find(self, query: str, positive: str) -> tuple[int, float] | None:
        """Return number and likeness of the earlier row that is most alike; where there is none, remember this one.

        Rows are numbered from 0 in the order in which they were remembered. The likeness is the smaller of the
        Jaccard similarities, as estimated, of the queries' and of the positives' pairs of words.
        """
        signature = self._sign(query, positive)
        self._whole.hashvalues = signature
        if candidates := self._tables.query(self._whole):
            numbers = sorted(candidates)
            same = self._signatures[numbers] == signature
            halves = same.reshape(len(numbers), _BANDS, 2, _HALF).mean(axis=(1, 3))
            likeness = halves.min(axis=1)
            best = int(likeness.argmax())
            if likeness[best] >= self._threshold:
                return numbers[best], float(likeness[best])
        if self._count == len(self._signatures):
            self._signatures = np.resize(self._signatures, (self._count + _GROWTH, 2 * _VALUES))
        self._signatures[self._count] = signature
        self._tables.insert(self._count, self._whole, check_duplication=False)
        self._count += 1
        return None

    def _sign(self, query: str, positive: str) -> NDArray[np.uint32]:
        """Return both signatures, in turns, so that every band holds some of each."""
        parts = [self._values(text).reshape(_BANDS, 1, _HALF) for text in (query, positive)]
        return np.concatenate(parts, axis=1).reshape(-1)

    def _values(self, text: str) -> Any:
        self._half.clear()
        self._half.update_batch(shingles(text))
        return self._half.hashvalues


def shingles(text: str) -> set[bytes]:
    """Return the pairs of neighbouring words (without spaces: characters) of a text; of a single word, the word."""
    words = pieces(text)
    if len(words) < 2:
        return {text.strip().encode()}
    return {f"{a} {b}".encode() for a, b in pairwise(words)}


class NearDuplicateFilter:
    """Drop rows that are nearly an earlier one: query and positive alike by `threshold`, 0 to 1.

    One row of each such group stays, the first. Raises MissingExtraError where datasketch is not installed.
    """

    name: ClassVar[str] = "near-duplicates"
    parallel: ClassVar[bool] = False

    def __init__(self, threshold: float = 0.8) -> None:
        self._index = NearIndex(threshold)
        self._names: list[str] = []

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        return [self._check(example) for example in batch]

    def _check(self, example: Example) -> Outcome:
        found = self._index.find(example.row.query, example.row.positive)
        if found is None:
            self._names.append(f"{example.file.name}, line {example.row.line}")
            return example
        number, likeness = found
        return Dropped(example, "near-duplicate", f"alike by {likeness:.2f}: {self._names[number]}")
