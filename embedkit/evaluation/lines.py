"""Read the lines of an evaluation file, and what each must hold."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from embedkit.compression import UNREADABLE, open_binary
from embedkit.errors import CorpusError


def read_lines(path: str | Path, stream: TextIO | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, compressed or not, each with its number from 1.

    `stream` is read in place of the file where it is given. Raises CorpusError where it cannot be read.
    """
    file = Path(path)
    try:
        if stream is not None:
            yield from enumerate(stream, 1)
            return
        with io.TextIOWrapper(open_binary(file), encoding="utf-8-sig") as handle:
            yield from enumerate(handle, 1)
    except UnicodeDecodeError as e:
        raise CorpusError(str(path), f"is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except UNREADABLE as e:
        raise CorpusError(str(path), getattr(e, "strerror", None) or str(e)) from e


def read_object(path: str, number: int, line: str) -> Mapping[str, Any]:
    """Return the JSON object of a line. Raises CorpusError."""
    import json

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise CorpusError(path, f"is no JSON: {e}", number) from e
    if not isinstance(record, dict):
        raise CorpusError(path, f"needs an object, got {type(record).__name__}", number)
    return record


def required_text(path: str, number: int, record: Mapping[str, Any], name: str) -> str:
    """Return the text that a record holds under a name. Raises CorpusError where it is empty or broken."""
    text = record.get(name)
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(path, f'needs a "{name}" that is not empty, got {text!r}', number)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise CorpusError(path, f'"{name}" holds half a surrogate pair: {text[:60]!r}', number)
    return text
