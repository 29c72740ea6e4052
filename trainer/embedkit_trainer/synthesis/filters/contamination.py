"""Contamination: rows that share text with the sets a model will be evaluated on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from embedkit.compression import COMPRESSED
from embedkit.errors import CorpusError, InputError
from embedkit_trainer.data.files import PARQUET, kind_of, text_lines
from embedkit_trainer.synthesis.filters.example import Dropped, Example, Outcome
from embedkit_trainer.synthesis.filters.words import pieces

# A shorter text says nothing by being the same: "yes", "New York".
_SHORTEST = 4
_PLAIN = (".txt", ".tsv", ".csv")
_NO_TEXT = frozenset(
    ("id", "_id", "query_id", "doc_id", "corpus_id", "positive_id", "negative_ids", "lang", "lang_q", "lang_d", "language",
     "instruction", "source", "task", "type", "group", "licence", "license", "split", "score", "label", "metadata")
)  # fmt: skip
_FACTOR = 0x9E3779B97F4A7C15  # odd: places of the sequence are told apart, modulo 2 ** 64
_BATCH = 4096
_END_BITS = 24
_END = np.uint64((1 << _END_BITS) - 1)
_KINDS = f".jsonl, .ndjson, {', '.join(_PLAIN)} (also {', '.join(COMPRESSED)}) or {PARQUET}"


class ContaminationFilter:
    """Drop rows with a text that shares `size` words in a row with an evaluation set, or that stands in it whole.

    `paths` are files or folders: JSON lines and Parquet (every string in them counts but for ids and languages), or
    plain text, one text a line; all may be compressed. Of shorter texts the whole counts, from four words on.
    Instructions do not count. Keeps 8 bytes for each distinct sequence of the evaluation sets, and 16 MB.

    Raises InputError for a path that is none or holds no text.
    """

    name: ClassVar[str] = "contamination"
    parallel: ClassVar[bool] = False

    def __init__(self, paths: Sequence[str | Path], size: int = 13) -> None:
        if size < _SHORTEST:
            raise InputError(f"sequences of {size} words are shared by chance: give {_SHORTEST} or more")
        self._size = size
        found: list[NDArray[np.uint64]] = []
        for path in paths:
            before = len(found)
            texts = _evaluation_texts(Path(path).expanduser())
            for batch in _batches(texts):
                found.append(np.unique(_hashes(batch, size)[0]))
            if not any(len(hashes) for hashes in found[before:]):
                raise InputError(
                    f"{path} holds no text of {_SHORTEST} words or more to compare with: check the path"
                )
        self._known = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)
        self._ends = np.zeros(1 << _END_BITS, np.bool_)
        self._ends[self._known & _END] = True

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        texts: list[str] = []
        owners: list[tuple[int, str]] = []
        for number, example in enumerate(batch):
            row = example.row
            texts += (row.query, row.positive, *row.negatives)
            owners += ((number, "query"), (number, "positive"))
            owners += ((number, f"negatives[{i}]") for i in range(len(row.negatives)))
        hashes, numbers = _hashes(texts, self._size)
        likely = np.flatnonzero(self._ends[hashes & _END])  # few: the search in them all is slow
        hits = np.unique(numbers[likely[_among(hashes[likely], self._known)]])
        guilty: dict[int, tuple[str, str]] = {}
        for hit in hits.tolist():
            number, key = owners[hit]
            guilty.setdefault(number, (key, texts[hit]))
        return [
            Dropped(example, "contaminated", f"{guilty[n][0]} shares text with an evaluation set: {guilty[n][1][:80]!r}")
            if n in guilty
            else example
            for n, example in enumerate(batch)
        ]  # fmt: skip


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)


def _hashes(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of all sequences of `size` words, and the number of the text that each is from.

    A text of fewer words, but at least four, gives one hash of its whole. They hold in one process alone.
    """
    words = [pieces(text) for text in texts]
    counts = np.fromiter(map(len, words), np.int64, len(words))
    total = int(counts.sum())
    flat = np.fromiter((hash(w) for ws in words for w in ws), np.int64, total).view(np.uint64)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(words)), counts)
    left = np.repeat(starts + counts, counts) - np.arange(total)  # words from here to the text's end
    rolled = np.zeros(total, np.uint64)
    factor = 1
    for step in range(min(size, total)):
        factor = factor * _FACTOR % 2**64
        inside = left[: total - step] > step
        rolled[: total - step] += np.where(inside, flat[step:] * np.uint64(factor), np.uint64(0))
    whole = np.zeros(total, np.bool_)
    whole[starts[(counts >= _SHORTEST) & (counts < size)]] = True
    taken = (left >= size) | whole
    return rolled[taken], owner[taken]


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _BATCH)):
        yield batch


def _evaluation_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _form(p) and not p.name.startswith("."))
        if not files:
            raise InputError(f"the folder {path} holds no evaluation sets: expected files named {_KINDS}")
    elif not path.is_file():
        raise InputError(f"{path} does not exist: give a file or a folder of an evaluation set")
    elif not _form(path):
        raise InputError(f"{path} is no evaluation set by its name: expected {_KINDS}")
    else:
        files = [path]
    for file in files:
        if _form(file) == "plain":
            yield from (text for _, text in text_lines(file))
        elif _form(file) == "parquet":
            yield from _parquet_texts(file)
        else:
            yield from _line_texts(file)


def _form(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return "plain" if plain.suffix.lower() in _PLAIN else kind_of(path)


def _line_texts(path: Path) -> Iterator[str]:
    for line, text in text_lines(path):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise CorpusError(str(path), f"malformed JSON: {e}", line) from None
        yield from _strings(value)


def _parquet_texts(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for record in batch.to_pylist():
                    yield from _strings(record)
    except (pa.ArrowException, OSError) as e:
        raise CorpusError(str(path), f"no readable Parquet file: {e}") from e


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _NO_TEXT:
                yield from _strings(part)
