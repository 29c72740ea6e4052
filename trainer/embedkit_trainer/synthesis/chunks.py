"""The chunks of a corpus that queries are written for: drawn once, and kept in a file of their own."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from embedkit.errors import StoreError
from embedkit_trainer.data.files import replaced

_LEAST_LETTERS = 40


@dataclass(frozen=True, slots=True)
class Chunk:
    """Hold one piece of a corpus; `lang` is "und" where it is not known."""

    id: int
    document_id: str
    text: str
    title: str = ""
    lang: str = "und"

    @property
    def shown(self) -> str:
        """The text as a prompt shows it, under its title."""
        return f"{self.title}\n{self.text}" if self.title and self.title not in self.text else self.text


#: Gives the chunks in the order of one draw; the number names the draw.
Draw = Callable[[int], Iterator[Chunk]]


class Sample:
    """Read the chunks of a file by number. Memory is 8 bytes a chunk.

    What was drawn stays, whatever becomes of the corpus; a larger sample begins with the smaller one.
    Raises StoreError for a file that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("q")
        self._file: BinaryIO | None = None
        self._scan()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._offsets)

    def __getitem__(self, number: int) -> Chunk:
        """Return chunk `number`, from 0."""
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(self._offsets[number])
        return _read(self._file.readline(), self.path, number + 1)[1]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def extend(self, draw: Draw, total: int, each: int = 1) -> None:
        """Draw until there are `total`, every chunk at most `each` times; chunks with little text are passed over."""
        if len(self) >= total:
            return
        seen = set(self._drawn())
        left = total - len(self)
        self.close()
        with replaced(self.path) as beside, beside.open("wb") as out:
            if self.path.exists():
                with self.path.open("rb") as f:
                    while part := f.read(1 << 20):
                        out.write(part)
            for number in range(each):
                for chunk in draw(number):
                    if not left:
                        break
                    if (number, chunk.id) not in seen and _is_usable(chunk):
                        line = json.dumps({"draw": number, **asdict(chunk)}, ensure_ascii=False)
                        out.write(line.encode() + b"\n")
                        left -= 1
        self._scan()

    def _scan(self) -> None:
        del self._offsets[:]
        if not self.path.exists():
            return
        at = 0
        with self.path.open("rb") as f:
            for line in f:
                self._offsets.append(at)
                at += len(line)

    def _drawn(self) -> Iterator[tuple[int, int]]:
        """Yield draw and id of each chunk."""
        if not self.path.exists():
            return
        with self.path.open("rb") as f:
            for number, line in enumerate(f, 1):
                draw, chunk = _read(line, self.path, number)
                yield draw, chunk.id


def _read(line: bytes, path: Path, number: int) -> tuple[int, Chunk]:
    """Return the draw and the chunk of a line. Raises StoreError."""
    try:
        value = json.loads(line)
        draw, chunk = value.pop("draw"), Chunk(**value)
        texts = (chunk.document_id, chunk.text, chunk.title, chunk.lang)
        if type(draw) is not int or type(chunk.id) is not int or not all(isinstance(t, str) for t in texts):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise StoreError(f"{path}, line {number} is no chunk: choose another output") from e
    return draw, chunk


def _is_usable(chunk: Chunk) -> bool:
    if any("\ud800" <= c <= "\udfff" for c in chunk.shown + chunk.document_id):
        return False
    # A character of Chinese or Japanese says about as much as two letters.
    letters = sum(1 + (c >= "\u3040") for c in chunk.text if c.isalpha())
    return letters >= _LEAST_LETTERS
