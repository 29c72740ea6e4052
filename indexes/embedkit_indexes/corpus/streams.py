"""Open files, plain or compressed, and read lines and text of bounded size in the encoding they have."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from embedkit.compression import open_binary
from embedkit_indexes.corpus.options import Problem, ReadOptions

STDIN = "stdin"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GULP = 1 << 20


def open_source(path: Path | None) -> BinaryIO:
    """Open a file for reading, decompressed where its name says so; None is standard input.

    Whoever opens a file closes it; standard input is left open.
    """
    if path is None:
        return sys.stdin.buffer
    return open_binary(path)


def stdin_holds_objects() -> bool:
    """Return whether standard input begins as JSONL does: with an object."""
    peek = getattr(sys.stdin.buffer, "peek", None)
    return peek is not None and re.match(rb'(\xef\xbb\xbf)?\s*\{\s*["}]', peek(64)) is not None


def bytes_of(path: Path | None, name: str, options: ReadOptions) -> bytes:
    """Return a whole file; raise Problem where it is over the limit."""
    limit = options.max_document_bytes
    stream = open_source(path)
    try:
        data = stream.read(limit + 1)
        if len(data) > limit:
            # Not read to its end to be counted: a pipe may have none, and a small gzip file may hold much.
            raise _too_large(name, None, limit)
    finally:
        if path is not None:
            stream.close()
    return data


def text_of(path: Path | None, name: str, options: ReadOptions) -> str:
    """Return a whole file as text with `\\n` for line ends; raise Problem where it is not text."""
    text = decoded(bytes_of(path, name, options), name, options)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes, name: str, options: ReadOptions) -> str:
    """Decode by the option, else the byte-order mark, else as UTF-8; raise Problem where that fails."""
    encoding = options.encoding or _bom(data) or "utf-8"
    if encoding.startswith("utf-8") and (at := data.find(b"\0")) >= 0:
        raise Problem("binary", name, f"binary: a NUL byte at offset {at}")
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(error, name) from None


def lines(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[tuple[int, bytes | Problem]]:
    """Yield (number from 1, line as UTF-8 bytes without its end); a Problem for one over the limit."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(cast("io.RawIOBase", stream))
    head = buffered.peek(4)[:4]
    encoding = options.encoding or _bom(head)
    if encoding in (None, "utf-8", "utf-8-sig"):
        if head.startswith(codecs.BOM_UTF8):
            buffered.read(3)
        yield from _byte_lines(buffered, name, options.max_document_bytes)
        return
    text = io.TextIOWrapper(buffered, encoding, newline=None)
    try:
        yield from _text_lines(text, name, options.max_document_bytes)
    except UnicodeDecodeError as error:
        raise _undecodable(error, name) from None
    finally:
        text.detach()


def _byte_lines(stream: BinaryIO, name: str, limit: int) -> Iterator[tuple[int, bytes | Problem]]:
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, line.rstrip(b"\r\n")
            continue
        size = len(line)
        del line
        while more := stream.readline(_GULP):
            size += len(more)
            if more.endswith(b"\n"):
                break
        yield number, _too_large(name, size, limit, number)


def _text_lines(stream: io.TextIOWrapper, name: str, limit: int) -> Iterator[tuple[int, bytes | Problem]]:
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) <= limit or line.endswith("\n"):
            yield number, line.rstrip("\n").removeprefix("\ufeff").encode("utf-8", "replace")
            continue
        size = len(line)
        while more := stream.readline(_GULP):
            size += len(more)
            if more.endswith("\n"):
                break
        yield number, _too_large(name, size, limit, number)


def _bom(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _BOMS if data.startswith(mark)), None)


def _too_large(name: str, size: int | None, limit: int, line: int | None = None) -> Problem:
    told = "more bytes than" if size is None else f"{size:,} bytes, over"
    return Problem("too large", name, f"{told} the limit of {limit:,} (max_document_bytes)", line)


def _undecodable(error: UnicodeDecodeError, name: str) -> Problem:
    return Problem(
        "not decodable",
        name,
        f"not {error.encoding}: byte 0x{error.object[error.start]:02x} at offset {error.start}; give its encoding",
    )
