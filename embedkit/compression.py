"""Open files that may be compressed; the name says how."""

from __future__ import annotations

import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
#: What reading raises where a compressed file is cut or broken, or where the disk fails.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_GULP = 1 << 20


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed where its name ends in one of `COMPRESSED`."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        import gzip

        return cast("BinaryIO", gzip.open(path))
    if suffix == ".bz2":
        import bz2

        return cast("BinaryIO", bz2.open(path))
    if suffix == ".xz":
        return cast("BinaryIO", lzma.open(path))
    if suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), _GULP)
    return path.open("rb")
