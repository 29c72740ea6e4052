"""The lexical index of one segment as a file: a described header, then five little-endian arrays, mapped to read.

magic, header length (uint32), header's crc32 (uint32), header (JSON), then each array at a multiple of 64 bytes:

hashes   uint64 [terms]      ascending hashes of the terms (`lexical_tokens.term_hash`)
offsets  uint64 [terms + 1]  term i's postings are offsets[i] .. offsets[i + 1]
rows     uint32 [postings]   ascending within a term
counts   uint8  [postings]   how often the term stands in the row, 255 where more often
lengths  uint16 [rows]       terms of each row, 65,535 where more
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "lexical.bin"
VERSION = 1
MAX_COUNT, MAX_LENGTH = 255, 65_535
_MAGIC = b"EKLEXIC\n"
_ALIGN = 64
_HEADER_ROOM = 1024  # the first array begins here: the header is written last, when all numbers are known
DTYPES = {"hashes": "<u8", "offsets": "<u8", "rows": "<u4", "counts": "|u1", "lengths": "<u2"}
_CORRUPT = "restore it from a copy, or rebuild with `embedkit index`"


class LexicalIndex:
    """Hold a segment's lexical index, mapped: opening reads the header, a search the postings of its terms."""

    def __init__(self, path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.path = path
        self.size: int = header["size"]  # rows of the segment
        self.total_length: int = header["total_length"]  # terms of all rows together
        self.hashes: NDArray[np.uint64] = arrays["hashes"]
        self.offsets: NDArray[np.uint64] = arrays["offsets"]
        self.rows: NDArray[np.uint32] = arrays["rows"]
        self.counts: NDArray[np.uint8] = arrays["counts"]
        self.lengths: NDArray[np.uint16] = arrays["lengths"]

    @staticmethod
    def open(folder: Path) -> LexicalIndex:
        """Map the lexical index of a segment's folder.

        Raises CorruptIndexError where it is missing, of another version, truncated, or its header altered. What
        lies in the arrays is not read here: a search checks what it follows, `verify` the checksum of the file.
        """
        path = folder / NAME
        try:
            with path.open("rb") as f:
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
            raise CorruptIndexError(f"{path} cannot be read ({e}): {_CORRUPT}") from e
        header = _header(path, data)
        return LexicalIndex(path, header, _arrays(path, data, header))

    def postings(self, hashed: Sequence[int]) -> list[tuple[int, int]]:
        """Return where the postings of each term begin and end; both are 0 where no row has the term."""
        import numpy as np

        if not len(self.hashes):
            return [(0, 0)] * len(hashed)
        wanted = np.array(hashed, np.uint64)
        places = np.minimum(self.hashes.searchsorted(wanted), len(self.hashes) - 1)
        there = self.hashes[places] == wanted
        begins = np.where(there, self.offsets[places], np.uint64(0))
        ends = np.where(there, self.offsets[places + 1], np.uint64(0))
        if np.any(begins[there] >= ends[there]) or np.any(ends > len(self.rows)):
            raise self.corrupt()
        return list(zip(begins.tolist(), ends.tolist(), strict=True))

    def corrupt(self) -> CorruptIndexError:
        """Return the error for postings that point out of the segment."""
        return CorruptIndexError(f"{self.path} points to rows that do not exist: {_CORRUPT}")


class LexicalWriter:
    """Write the file array after array, in the order of `DTYPES`; the header comes last."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file: IO[bytes] = self._path.open("wb")
        self._file.seek(_HEADER_ROOM)
        self._sections: dict[str, tuple[int, int]] = {}

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Append values to the array `name`, after those of earlier calls."""
        values = values.astype(DTYPES[name], copy=False)
        if name not in self._sections:
            self._file.seek(-self._file.tell() % _ALIGN, 1)
            self._sections[name] = (self._file.tell(), 0)
        start, length = self._sections[name]
        self._file.write(values.data)
        self._sections[name] = (start, length + len(values))

    def finish(self, size: int, total_length: int) -> list[str]:
        """Write the header, force the file to disk and return the names of the files written."""
        import os

        header = json.dumps(
            {
                "version": VERSION,
                "size": size,
                "total_length": total_length,
                "end": self._file.tell(),
                "sections": self._sections,
            }
        ).encode()
        self._file.truncate()
        self._file.seek(0)
        self._file.write(
            _MAGIC + len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little")
        )
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return [self._path.name]

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


def _header(path: Path, data: mmap.mmap) -> dict[str, Any]:
    length, crc = int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:16], "little")
    raw = data[16 : 16 + length]
    if data[:8] != _MAGIC or length > _HEADER_ROOM - 16 or zlib.crc32(raw) != crc:
        raise CorruptIndexError(f"{path} is no lexical index, or its beginning was altered: {_CORRUPT}")
    header: dict[str, Any] = json.loads(raw)
    if header["version"] != VERSION:
        raise CorruptIndexError(
            f"{path} has version {header['version']}, this embedkit reads {VERSION}: update embedkit, or rebuild"
        )
    if header["end"] != len(data):
        raise CorruptIndexError(f"{path} has {len(data):,} bytes, not {header['end']:,}: {_CORRUPT}")
    return header


def _arrays(path: Path, data: mmap.mmap, header: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    arrays = {
        name: np.frombuffer(data, dtype, header["sections"][name][1], header["sections"][name][0])
        for name, dtype in DTYPES.items()
    }
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != len(arrays["rows"]):
        raise CorruptIndexError(f"{path} holds offsets that do not fit its postings: {_CORRUPT}")
    return arrays
