"""Which document ids were seen, and in which file first, in a few bytes an id."""

from __future__ import annotations

from array import array

_FREE = 0


class Seen:
    """Hold a 64-bit hash of every id, and the number of its file, in open addressing: 12 to 36 bytes an id.

    Two different ids share a hash with a chance of about 3 in a million for 10 million ids; the second would
    be taken for a duplicate, and reported so.
    """

    def __init__(self) -> None:
        self._hashes = array("Q", [_FREE]) * 1024
        self._files = array("I", [0]) * 1024
        self._names = [""]
        self._count = 0

    def first(self, id: str, name: str) -> str | None:
        """Remember an id of the file `name`; return the file that had it before, None where none had."""
        key = hash(id) & 0xFFFFFFFFFFFFFFFF or 1
        hashes, mask = self._hashes, len(self._hashes) - 1
        at = (key ^ key >> 32) & mask
        while found := hashes[at]:
            if found == key:
                return self._names[self._files[at]] or id
            at = (at + 1) & mask
        if id != name and self._names[-1] != name:
            self._names.append(name)
        hashes[at] = key
        self._files[at] = 0 if id == name else len(self._names) - 1
        self._count += 1
        if self._count * 3 > len(hashes) * 2:
            self._grow()
        return None

    def _grow(self) -> None:
        old = zip(self._hashes, self._files, strict=True)
        size = len(self._hashes) * 2
        hashes, files, mask = array("Q", [_FREE]) * size, array("I", [0]) * size, size - 1
        for key, file in old:
            if key:
                at = (key ^ key >> 32) & mask
                while hashes[at]:
                    at = (at + 1) & mask
                hashes[at], files[at] = key, file
        self._hashes, self._files = hashes, files
