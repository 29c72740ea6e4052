"""Records from line and table files: JSONL, JSON, CSV, TSV, Parquet and Arrow, one at a time."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from embedkit_indexes.corpus.fields import find_fields, require
from embedkit_indexes.corpus.options import Problem, ReadOptions
from embedkit_indexes.corpus.streams import lines, open_source

# A row with its line (or row) number from 1, or why it cannot be had.
Row = tuple[int, dict[str, Any] | Problem]
_BATCH = 256
_BETWEEN = re.compile(r"[\s,\[\]]*")


def rows(path: Path | None, name: str, kind: str, options: ReadOptions) -> Iterator[Row]:
    """Yield the records of a file; raise Problem where the rest of it cannot be read."""
    if kind in ("parquet", "arrow"):
        yield from _arrow(path, name, kind, options)
        return
    read: dict[str, Callable[[BinaryIO, str, ReadOptions], Iterator[Row]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _csv,
        "tsv": _tsv,
    }
    stream = open_source(path)
    try:
        yield from read[kind](stream, name, options)
    finally:
        if path is not None:
            stream.close()


def _loads(data: str | bytes, name: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(data, strict=False)
    except UnicodeDecodeError as error:
        raise Problem("not decodable", name, f"not UTF-8: byte {error.start} of the line", line) from None
    except RecursionError:
        raise Problem("malformed", name, "malformed JSON: nested too deeply", line) from None
    except ValueError as error:
        raise Problem("malformed", name, f"malformed JSON: {error}", line) from None
    return _object(value, name, line)


def _object(value: Any, name: str, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise Problem("malformed", name, f"a JSON object was expected, not {kind}", line)
    return value


def _jsonl(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Row]:
    for number, line in lines(stream, name, options):
        if isinstance(line, Problem):
            yield number, line
        elif line.strip():
            try:
                yield number, _loads(line, name, number)
            except Problem as problem:
                yield number, problem


def _json(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Row]:
    """Yield the objects of an array, or of values one after another, holding one at a time."""
    decoder = json.JSONDecoder(strict=False)
    parts = _texts(stream, name, options)
    text, at, number, done = "", 0, 0, False
    while True:
        if between := _BETWEEN.match(text, at):
            at = between.end()
        if done and at == len(text):
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if done or isinstance(error, RecursionError):
                why = f"malformed JSON in record {number + 1}: {error}"
                raise Problem("malformed", name, why, number + 1) from None
            if len(text) - at > options.max_document_bytes:
                why = f"over the limit of {options.max_document_bytes:,} bytes (max_document_bytes), or malformed"
                raise Problem("too large", name, f"record {number + 1} is {why}", number + 1) from None
            done, text = _grown(parts, text[at:])
            at = 0
            continue
        number += 1
        at = end
        yield (
            number,
            value
            if isinstance(value, dict)
            else Problem(
                "malformed", name, f"a JSON object was expected, not {type(value).__name__}", number
            ),
        )


def _grown(parts: Iterator[str], text: str) -> tuple[bool, str]:
    """Return (whether the file is at its end, the text with at least as much again)."""
    new: list[str] = []
    size = 0
    for part in parts:
        new.append(part)
        size += len(part)
        if size > len(text):
            return False, text + "".join(new)
    return True, text + "".join(new)


def _texts(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[str]:
    import codecs

    head = stream.read(1 << 16)
    found = options.encoding or ("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    decoder = codecs.getincrementaldecoder(found)()
    at = 0
    try:
        while head:
            yield decoder.decode(head)
            at += len(head)
            head = stream.read(1 << 16)
        yield decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise Problem("not decodable", name, f"not {found}: near byte {at + error.start}") from None


def _csv(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Row]:
    yield from _table(stream, name, options, None)


def _tsv(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Row]:
    yield from _table(stream, name, options, "\t")


def _table(stream: BinaryIO, name: str, options: ReadOptions, delimiter: str | None) -> Iterator[Row]:
    # A row that is not UTF-8 passes as surrogates, so that it is skipped and the next ones are not.
    oversize: list[Problem] = []

    def texts() -> Iterator[str]:
        for _, line in lines(stream, name, options):
            if isinstance(line, Problem):
                oversize.append(line)
                yield "\n"
            else:
                yield line.decode("utf-8", "surrogateescape") + "\n"

    source = texts()
    first = next(source, None)
    if first is None:
        return
    delimiter = delimiter or max(",;\t|", key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), options.max_document_bytes))

    def chained() -> Iterator[str]:
        yield first
        yield from source

    reader = _PlainTSV(chained()) if delimiter == "\t" else csv.reader(chained(), delimiter=delimiter)
    header: list[str] | None = list(options.columns) if options.columns else None
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            yield from ((p.line or line, p) for p in oversize)
            return
        except csv.Error as error:
            raise Problem("malformed", name, f"malformed CSV: {error}", line) from None
        yield from ((p.line or line, p) for p in oversize)
        oversize.clear()
        here, line = line, reader.line_num + 1
        if not any(row):
            continue
        if header is None:
            header = [field.strip() for field in row]
            require(find_fields(header, options), header, options, name, here)
            continue
        yield here, _checked_row(row, header, name, here)


def _checked_row(row: list[str], header: list[str], name: str, line: int) -> dict[str, Any] | Problem:
    if any("\ud800" <= c <= "\udfff" for field in row for c in field if c > "\ud7ff"):
        return Problem("not decodable", name, "not UTF-8; give its encoding", line)
    if len(row) > len(header):
        return Problem("malformed", name, f"{len(row)} fields where the header has {len(header)}", line)
    return dict(zip(header, row, strict=False))


class _PlainTSV(Iterator[list[str]]):
    """Read TSV as search collections write it: a quotation mark is a letter, unless it wraps the field."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self.line_num = 0

    def __next__(self) -> list[str]:
        fields = next(self._source).rstrip("\n").split("\t")
        self.line_num += 1
        return [f[1:-1].replace('""', '"') if len(f) > 1 and f[0] == f[-1] == '"' else f for f in fields]


def _arrow(path: Path | None, name: str, kind: str, options: ReadOptions) -> Iterator[Row]:
    import pyarrow as pa

    if path is None:
        raise Problem("malformed", name, f"{kind} cannot be read from standard input: save it to a file")
    try:
        number = 0
        for batch in _batches(path, kind):
            if not number:
                names = batch.schema.names
                require(find_fields(names, options), names, options, name, None)
            for row in _python_rows(batch):
                number += 1
                yield number, row
    except Problem:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise Problem("malformed", name, f"unreadable {kind} file: {' '.join(str(error).split())}") from None


def _python_rows(batch: Any) -> list[dict[str, Any]]:
    """Return the rows as Python values; a column of times that Python cannot hold (nanoseconds) as text."""
    try:
        if any("[ns" in str(kind) for kind in batch.schema.types):
            raise ValueError("pyarrow gives nanoseconds as pandas' type where pandas is installed")
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):
        columns = [_values(column) for column in batch.columns]
        rows = [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    return rows


def _values(column: Any) -> list[Any]:
    """Return a column as Python values: nanoseconds as microseconds where nothing is lost, what is beyond as text."""
    import pyarrow as pa

    kind = column.type
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz))
        elif pa.types.is_time64(kind) and kind.unit == "ns":
            column = column.cast(pa.time64("us"))
        elif pa.types.is_duration(kind) and kind.unit == "ns":
            column = column.cast(pa.duration("us"))
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = column.cast(pa.string()).to_pylist()
    return values


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
            return
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)
