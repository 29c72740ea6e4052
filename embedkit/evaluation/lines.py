"""Read the lines of an evaluation file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

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
