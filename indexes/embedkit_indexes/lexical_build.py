"""Build a segment's lexical index from texts, or from the indexes of the segments it replaces.

Texts are counted window by window; each window becomes a run sorted by term. Runs are merged term range by term
range, so that memory holds one window, one range and what lies per distinct term, however many texts come.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit_indexes.lexical_file import MAX_COUNT, MAX_LENGTH, LexicalIndex, LexicalWriter
from embedkit_indexes.lexical_tokens import term_hash, tokenize
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WINDOW = 8_000_000  # terms counted at once: about 250 MB while they are sorted
RANGE = 8_000_000  # postings merged at once: about 150 MB


@dataclass(frozen=True)
class _Run:
    """Postings sorted by term and then by row, as in `LexicalIndex`; `renumbered` tells what becomes of its rows."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.uint32]
    counts: NDArray[np.uint8]
    renumbered: _Renumbered | None = None


@dataclass(frozen=True)
class _Renumbered:
    numbers: NDArray[np.uint32]  # the new number of each old row; what stands for dropped rows is not read
    kept: NDArray[np.bool_] | None


def build_lexical(folder: Path, texts: Iterable[str], window: int = WINDOW) -> list[str]:
    """Write the lexical index of texts, row after row, into a segment's folder; returns the names of its files.

    Memory stays at a window of `window` terms, about 30 bytes each; runs of 5 bytes a posting lie in the folder until
    they are merged.
    """

    with tempfile.TemporaryDirectory(dir=folder, prefix="lexical-") as temporary:
        runs: list[_Run] = []
        lengths: list[NDArray[np.uint32]] = []
        size = 0
        for ids, vocabulary, counted in _windows(texts, window):
            run = _sorted_run(ids, vocabulary, counted, size)
            runs.append(run if not runs and len(ids) < window else _spilled(run, Path(temporary), len(runs)))
            lengths.append(counted)
            size += len(counted)
        return _write(folder, runs, lengths)


def merge_lexical(folder: Path, sources: Sequence[tuple[LexicalIndex, RowSet | None]]) -> list[str]:
    """Write the lexical index of a segment made of the kept rows (None: all) of others, in their order.

    Nothing is tokenised again. Returns the names of the files written. Raises CorruptIndexError where a source points
    to rows that it does not have.
    """
    import numpy as np

    runs: list[_Run] = []
    lengths: list[NDArray[np.uint16]] = []
    size = 0
    for index, kept in sources:
        if len(index.rows) and int(index.rows.max()) >= index.size:
            raise index.corrupt()
        if np.any(index.offsets[1:] <= index.offsets[:-1]):
            raise index.corrupt()
        mask = None if kept is None else kept.mask
        numbers = np.arange(index.size) if mask is None else np.cumsum(mask) - 1
        renumbered = _Renumbered((numbers + size).astype(np.uint32), mask)
        runs.append(_Run(index.hashes, index.offsets.astype(np.int64), index.rows, index.counts, renumbered))
        lengths.append(index.lengths if mask is None else index.lengths[mask])
        size += len(lengths[-1])
    return _write(folder, runs, lengths)


def _windows(
    texts: Iterable[str], window: int
) -> Iterator[tuple[NDArray[np.uint32], list[str], NDArray[np.uint32]]]:
    """Yield a term's number for each word of a window, the terms by number, and the words of each text."""
    import numpy as np

    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    ids, counted = array("I"), array("I")
    for text in texts:
        terms = tokenize(text)
        ids.extend(map(numbers.__getitem__, terms))
        counted.append(len(terms))
        if len(ids) >= window:
            yield np.frombuffer(ids, np.uint32), list(numbers), np.frombuffer(counted, np.uint32)
            numbers.clear()
            ids, counted = array("I"), array("I")
    if counted:
        yield np.frombuffer(ids, np.uint32), list(numbers), np.frombuffer(counted, np.uint32)


def _sorted_run(
    ids: NDArray[np.uint32], vocabulary: Sequence[str], counted: NDArray[np.uint32], first_row: int
) -> _Run:
    """Count the words of a window by term and row."""
    import numpy as np

    of_words = np.fromiter(map(term_hash, vocabulary), np.uint64, len(vocabulary))
    hashes, rank = np.unique(of_words, return_inverse=True)
    keys = rank.astype(np.uint64)[ids] << np.uint64(32)
    keys |= np.repeat(np.arange(first_row, first_row + len(counted), dtype=np.uint64), counted)
    keys.sort()
    first = (
        np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        if len(keys)
        else np.empty(0, np.int64)
    )
    counts = np.minimum(np.diff(first, append=len(keys)), MAX_COUNT).astype(np.uint8)
    keys = keys[first]
    offsets = np.searchsorted(keys, np.arange(len(hashes) + 1, dtype=np.uint64) << np.uint64(32))
    return _Run(hashes, offsets.astype(np.int64), keys.astype(np.uint32), counts)


def _spilled(run: _Run, folder: Path, number: int) -> _Run:
    """Return the run with its arrays in files instead of memory."""
    import numpy as np

    def mapped(name: str) -> NDArray[Any]:
        values: NDArray[Any] = getattr(run, name)
        path = folder / f"{number}.{name}"
        with path.open("wb") as f:  # not `tofile`, which says nothing on a full disk
            f.write(values.data)
        return np.memmap(path, values.dtype, "r") if len(values) else values

    return _Run(mapped("hashes"), mapped("offsets"), mapped("rows"), mapped("counts"))


def _write(
    folder: Path, runs: Sequence[_Run], lengths: Sequence[NDArray[np.uint32] | NDArray[np.uint16]]
) -> list[str]:
    import numpy as np

    hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *(r.hashes for r in runs)]))
    places = [np.searchsorted(hashes, r.hashes) for r in runs]
    found = np.zeros(len(hashes), np.int64)  # postings of each term
    for run, place in zip(runs, places, strict=True):
        found[place] += _kept_postings(run)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(found)))
    writer = LexicalWriter(folder)
    try:
        there = found > 0
        writer.write("hashes", hashes[there])
        writer.write("offsets", np.concatenate((offsets[:1], offsets[1:][there])))
        for what in ("rows", "counts"):
            writer.write(what, np.empty(0, np.uint8))
            for values in _merged(runs, places, offsets, what):
                writer.write(what, values)
        for part in (np.empty(0, np.uint16), *lengths):
            writer.write("lengths", np.minimum(part, MAX_LENGTH))
        return writer.finish(sum(map(len, lengths)), sum(int(part.sum(dtype=np.int64)) for part in lengths))
    finally:
        writer.abandon()


def _kept_postings(run: _Run) -> NDArray[np.int64]:
    """Return how many postings of each of the run's terms stay."""
    import numpy as np

    if run.renumbered is None or run.renumbered.kept is None:
        return np.diff(run.offsets)
    kept = np.empty(len(run.hashes), np.int64)
    for begin, end in _ranges(run.offsets):
        low, high = run.offsets[begin], run.offsets[end]
        mask = run.renumbered.kept[run.rows[low:high]].view(np.uint8)
        kept[begin:end] = np.add.reduceat(mask, run.offsets[begin:end] - low, dtype=np.int64)
    return kept


def _merged(
    runs: Sequence[_Run], places: Sequence[NDArray[np.int64]], offsets: NDArray[np.int64], what: str
) -> Iterator[NDArray[np.uint32] | NDArray[np.uint8]]:
    """Yield the rows, or the counts, of all runs' postings in the order of terms, a range of terms at a time."""
    import numpy as np

    for begin, end in _ranges(offsets):
        base = offsets[begin]
        if len(runs) == 1 and runs[0].renumbered is None:
            yield (runs[0].rows if what == "rows" else runs[0].counts)[base : offsets[end]]
            continue
        out = np.empty(offsets[end] - base, np.uint32 if what == "rows" else np.uint8)
        free = offsets[begin:end] - base  # where the next posting of each term goes
        # The rows of a run all come after those of the runs before it, so a term's rows stay ascending.
        for run, place in zip(runs, places, strict=True):
            first, last = np.searchsorted(place, (begin, end))
            low, high = run.offsets[first], run.offsets[last]
            terms = np.repeat(place[first:last] - begin, np.diff(run.offsets[first : last + 1]))
            values: NDArray[np.uint32] | NDArray[np.uint8]
            values = run.rows[low:high] if what == "rows" else run.counts[low:high]
            if run.renumbered is not None:
                if run.renumbered.kept is not None:
                    stays = run.renumbered.kept[run.rows[low:high]]
                    terms, values = terms[stays], values[stays]
                if what == "rows":
                    values = run.renumbered.numbers[values]
            found = np.bincount(terms, minlength=end - begin)
            within = np.arange(len(terms)) - (np.cumsum(found) - found)[terms]
            out[free[terms] + within] = values
            free += found
        yield out


def _ranges(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of terms of about `RANGE` postings each, at least one term."""
    import numpy as np

    begin, terms = 0, len(offsets) - 1
    while begin < terms:
        end = int(np.searchsorted(offsets, offsets[begin] + RANGE, side="right")) - 1
        end = min(max(end, begin + 1), terms)
        yield begin, end
        begin = end
