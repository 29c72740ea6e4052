"""Read the lines of an evaluation file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from embedkit.errors import CorpusError


def read_lines(path: str | Path, stream: TextIO | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file, gzip or not, each with its number from 1; raise CorpusError where it cannot be read.

    `stream` is read in place of the file where it is given.
    """
    file = Path(path)
    try:
        if stream is not None:
            yield from enumerate(stream, 1)
            return
        with _open(file) as handle:
            yield from enumerate(handle, 1)
    except UnicodeDecodeError as e:
        raise CorpusError(str(path), f"is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except (OSError, EOFError, zlib.error) as e:
        raise CorpusError(str(path), getattr(e, "strerror", None) or str(e)) from e


def _open(file: Path) -> TextIO:
    if file.suffix == ".gz":
        import gzip

        return gzip.open(file, "rt", encoding="utf-8-sig")
    return file.open(encoding="utf-8-sig")
