"""Read the files that data sets are published in: lines, tables, JSON; gzip and xz; errors with file and line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from embedkit.compression import COMPRESSED, UNREADABLE, open_binary
from embedkit.errors import CorpusError
from embedkit_trainer.data.files import text_lines

_STEP = 1 << 20
Record = dict[str, Any]


def _open(path: Path) -> TextIO:
    # For what is no text of lines: JSON over many of them, and quoted cells that hold line breaks.
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end); blank lines are left out. Raises CorpusError."""
    return ((number, line.rstrip("\r\n")) for number, line in text_lines(path))


def table(
    path: Path, columns: int, *, header: frozenset[str] = frozenset()
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of a tab-separated file without quoting, at least `columns` cells wide.

    The first line is left out where all of its cells are words of `header`. Raises CorpusError with the line.
    """
    for number, line in lines(path):
        cells = line.split("\t")
        if number == 1 and header.issuperset(cell.strip().lower() for cell in cells):
            continue
        if len(cells) < columns:
            raise CorpusError(
                str(path), f"needs {columns} columns between tabs, got {len(cells)}: {line[:60]!r}", number
            )
        yield number, cells


def headed_table(path: Path, *, quoted: bool = True) -> Iterator[tuple[int, Record]]:
    """Yield (line, cells by column name) of a CSV or TSV file with a header; quotes are text unless `quoted`."""
    import csv

    delimiter = "," if ".csv" in path.suffixes else "\t"
    csv.field_size_limit(1 << 30)
    try:
        with _open(path) as handle:
            reader = csv.DictReader(
                handle, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            )
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as e:
                raise CorpusError(str(path), f"is no table that can be read: {e}", reader.line_num) from e
    except UnicodeDecodeError as e:
        raise CorpusError(str(path), f"is not UTF-8 text: {e.reason}") from e
    except UNREADABLE as e:
        raise CorpusError(str(path), getattr(e, "strerror", None) or str(e)) from e


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line, object) of JSON lines, or (row, object) of a Parquet file. Raises CorpusError with the line."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    for number, line in lines(path):
        try:
            record = json.loads(line)
        except ValueError as e:
            raise CorpusError(str(path), f"is no JSON: {e}", number) from e
        except RecursionError as e:
            raise CorpusError(str(path), "is no JSON that can be read: nested too deeply", number) from e
        yield number, as_object(record, path, number)


def objects(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line, object) of one JSON array or of JSON lines, never holding more than one object.

    DPR's training files are arrays of several gigabytes. Raises CorpusError with the line.
    """
    if path.suffix == ".parquet" or not _starts_with(path, "["):
        yield from records(path)
        return
    decoder = json.JSONDecoder()
    line, text, at, size = 1, "", 0, _STEP
    try:
        with _open(path) as handle:
            text = handle.read(size)
            at = text.index("[") + 1
            line += text.count("\n", 0, at)
            while True:
                start = _skip(text, at)
                line += text.count("\n", at, start)
                at = start
                if text[at : at + 1] == "]":
                    return
                try:
                    # An object that ends where the buffer does may go on in the file: numbers alone could, and none is one.
                    record, end = decoder.raw_decode(text, at)
                except ValueError as e:
                    more = handle.read(size)
                    if not more:
                        raise CorpusError(str(path), f"is no JSON array that ends: {e.args[0]}", line) from e
                    if at == 0:
                        size *= 2  # one object fills the buffer: do not parse its beginning ever again
                    text, at = text[at:] + more, 0
                    continue
                yield line, as_object(record, path, line)
                line += text.count("\n", at, end)
                at = end
    except UnicodeDecodeError as e:
        raise CorpusError(str(path), f"is not UTF-8 text: {e.reason}", line) from e
    except UNREADABLE as e:
        raise CorpusError(str(path), getattr(e, "strerror", None) or str(e), line) from e


def whole(path: Path) -> Record:
    """Return a file that is one JSON object. Raises CorpusError."""
    try:
        with _open(path) as handle:
            return as_object(json.load(handle), path, None)
    except (ValueError, RecursionError) as e:
        raise CorpusError(str(path), f"is no JSON: {e}", getattr(e, "lineno", None)) from e
    except UNREADABLE as e:
        raise CorpusError(str(path), getattr(e, "strerror", None) or str(e)) from e


def as_object(value: Any, path: Path, line: int | None) -> Record:
    """Return a JSON object, or raise CorpusError."""
    if not isinstance(value, dict):
        raise CorpusError(str(path), f"needs a JSON object, got {type(value).__name__}", line)
    return value


def text_of(record: Record, key: str, path: Path, line: int | None) -> str:
    """Return the string under `key`; a number becomes one. Raises CorpusError with the keys that are there."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        there = ", ".join(map(repr, record)) or "none"
        got = "is missing" if key not in record else f"is {type(value).__name__}"
        raise CorpusError(str(path), f"{key!r} {got}, needs a text; the keys are {there[:200]}", line)
    return value if isinstance(value, str) else str(value)


def list_of(record: Record, key: str, path: Path, line: int | None) -> list[Any]:
    """Return the list under `key`, empty where there is none. Raises CorpusError for anything else."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise CorpusError(str(path), f"{key!r} is {type(value).__name__}, needs a list", line)
    return value


def titled(title: Any, text: str) -> str:
    """Return a text under its title, as an index embeds a chunk: the title on a line of its own."""
    head = " ".join(title.split()) if isinstance(title, str) else ""
    return f"{head}\n{text}" if head and not text.startswith(head) else text


def stem(path: Path) -> str:
    """Return a file's name without the endings that say how it is compressed and written."""
    return Path(plain_name(path)).stem


def inputs(path: Path, *endings: str) -> list[Path]:
    """Return the files of a path (a file, a glob, a folder) whose names end so, compressed or not, in order.

    In a folder, files of other splits than the training one are left out where one names it. Raises CorpusError.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and plain_name(p).endswith(endings)]
        found = [p for p in found if "train" in stem(p).lower()] or found
    else:
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        pattern = path.relative_to(path.anchor) if path.is_absolute() else path
        found = [p for p in sorted(anchor.glob(str(pattern))) if p.is_file()] if "*" in str(path) else []
    if not found:
        problem = f"holds no file that ends in {' or '.join(endings)}" if path.is_dir() else "does not exist"
        raise CorpusError(str(path), problem)
    return found


def find(folder: Path, *patterns: str) -> Path | None:
    """Return the first file in the folder (at any depth) that matches the first pattern that any file matches."""
    return next((found[0] for pattern in patterns if (found := find_all(folder, pattern))), None)


def find_all(folder: Path, pattern: str) -> list[Path]:
    """Return the files in the folder (at any depth) that match the pattern, compressed or not, in order."""
    found = {p for ending in ("", *COMPRESSED) for p in folder.rglob(pattern + ending) if p.is_file()}
    return sorted(found, key=lambda p: (p.suffix in COMPRESSED, p))


def need(folder: Path, *patterns: str) -> Path:
    """Return what `find` finds. Raises CorpusError with the names that were looked for."""
    found = find(folder, *patterns)
    if found is None:
        problem = "is no folder" if not folder.is_dir() else f"holds no {' or '.join(patterns)} (.gz)"
        raise CorpusError(str(folder), problem)
    return found


def plain_name(path: Path) -> str:
    """Return a file's name without the ending that says how it is compressed."""
    return path.stem if path.suffix in COMPRESSED else path.name


def _starts_with(path: Path, character: str) -> bool:
    # Not by lines: an array may be one line of gigabytes.
    try:
        with _open(path) as handle:
            while (text := handle.read(1)).isspace():
                pass
    except (UnicodeDecodeError, *UNREADABLE):
        return False  # the reader says what is wrong
    return text == character


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as e:
        raise CorpusError(str(path), f"is no Parquet file that can be read: {e}") from e
