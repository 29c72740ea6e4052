"""Word-vector files: word2vec (text and binary) and GloVe, plain or gzipped, streamed into one table."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from embedkit.errors import InputError
from embedkit.hashing import cache_dir, file_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BadWords = Literal["refuse", "skip"]

_READ = 1 << 22
_LONGEST_LINE = 64 << 20
_CACHED_FROM = 32 << 20
_FASTTEXT_MAGIC = b"\xba\x16\x4f\x2f"
_NUMERIC = b"0123456789.+-eE \t\r\n"


@dataclass(frozen=True, slots=True)
class WordVectors:
    """Hold the words' rows in a float32 table `[n, dim]`, which may be memory-mapped."""

    rows: dict[str, int]
    table: NDArray[np.float32]


def read_word_vectors(
    path: Path, limit: int | None = None, bad_words: BadWords = "refuse", cache: bool = True
) -> WordVectors:
    """Read the first `limit` words of a word2vec or GloVe file; the layout is found from the content.

    `bad_words` says what a word that is no UTF-8 or stands twice does: "refuse" raises, "skip" leaves it
    out. The parsed table of a file of 32 MiB or more is kept in embedkit's cache folder under the file's
    content hash. Raises InputError with the file and the line (text) or byte offset (binary).
    """
    if bad_words not in ("refuse", "skip"):
        raise InputError(f"bad_words is {bad_words!r}: give 'refuse' or 'skip'")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: give 1 or more words, or leave it out")
    try:
        cached = cache and path.stat().st_size >= _CACHED_FROM
        folder = cache_dir() / "words" / f"{file_hash(path)}-{limit or 'all'}-{bad_words}" if cached else None
        found = _load_cached(folder) if folder else None
        if found is None:
            found = _parse(path, limit, bad_words)
            if folder:
                _store_cached(folder, found)
        return found
    except (OSError, EOFError, zlib.error) as e:
        raise InputError(f"{path}: cannot be read: {e}; check the path, or fetch the file again") from e


def _parse(path: Path, limit: int | None, bad_words: BadWords) -> WordVectors:
    with path.open("rb") as plain:
        magic = plain.read(4)
        plain.seek(0)
        if magic == _FASTTEXT_MAGIC:
            raise InputError(f"{path} is a fastText model (.bin): give its word vectors (.vec) instead")
        # mypy: GzipFile is a BinaryIO in all that is used here.
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if magic[:2] == b"\x1f\x8b" else plain
        first = stream.readline(_READ)
        header = _header(first)
        table = _Table(path, bad_words, header[0] if header else None, limit)
        if header is None:
            _read_text(table, stream, first, None, 1)
        else:
            sample = stream.read(4096)
            reader = _read_text if _is_text(sample) else _read_binary
            reader(table, stream, sample, header[1], 2 if reader is _read_text else len(first))
        return table.finish()


def _header(line: bytes) -> tuple[int, int] | None:
    parts = line.split()
    if len(parts) == 2 and all(p.isdigit() for p in parts) and int(parts[1]) > 0:
        return int(parts[0]), int(parts[1])
    return None


def _is_text(sample: bytes) -> bool:
    """Tell text rows, which are mostly digits, from raw floats."""
    return b"\0" not in sample and len(sample.translate(None, _NUMERIC)) < 0.6 * max(len(sample), 1)


class _Table:
    """Gather rows, growing in place, so that a header's count is checked and never trusted."""

    def __init__(self, path: Path, bad_words: BadWords, expected: int | None, limit: int | None) -> None:
        self.path = path
        self.rows: dict[str, int] = {}
        self.full = False
        self._skip = bad_words == "skip"
        self._expected = expected
        self._limit = limit
        self._seen = 0
        self._data: NDArray[np.float32] | None = None

    def add(self, words: list[bytes], vectors: NDArray[np.float32], places: list[str]) -> None:
        """Take one block; `places` say where each row stands, for errors."""
        import numpy as np

        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise self.error(places[int(np.argmin(finite))], "holds NaN or infinity")
        kept = []
        for i, raw in enumerate(words):
            if self._limit is not None and len(self.rows) >= self._limit:
                self.full = True
                break
            self._seen += 1
            word = self._decode(raw, places[i])
            if word is not None:
                self.rows[word] = len(self.rows)
                kept.append(i)
        self._append(vectors if len(kept) == len(vectors) else vectors[kept])

    def _decode(self, raw: bytes, place: str) -> str | None:
        try:
            word = raw.decode()
            problem = "" if word and "\n" not in word else f"has the unusable word {word!r}"
        except UnicodeDecodeError:
            word, problem = "", f"has the word {raw[:40]!r}, which is not UTF-8"
        if not problem and word in self.rows:
            problem = f"has the word {word!r} a second time"
        if not problem:
            return word
        if self._skip:
            return None
        raise self.error(place, f"{problem}; mend the file or open it with bad_words='skip'")

    def _append(self, block: NDArray[np.float32]) -> None:
        import numpy as np

        if self._data is None:
            self._data = np.empty(block.shape, np.float32)
        end = len(self.rows)
        if end > len(self._data):
            self._data.resize((max(end, len(self._data) * 3 // 2), block.shape[1]), refcheck=False)
        self._data[end - len(block) : end] = block

    def error(self, place: str, problem: str) -> InputError:
        return InputError(f"{self.path}, {place}: {problem}")

    def finish(self) -> WordVectors:
        if self._limit is not None and len(self.rows) >= self._limit:
            self.full = True
        if self._expected is not None and not self.full and self._seen != self._expected:
            raise InputError(
                f"{self.path}: the header promises {self._expected} words, the file holds {self._seen}: "
                "it is cut short or damaged; fetch it again"
            )
        if self._data is None or not self.rows:
            raise InputError(f"{self.path} holds no word vector: give a word2vec or GloVe file")
        self._data.resize((len(self.rows), self._data.shape[1]), refcheck=False)
        return WordVectors(self.rows, self._data)


def _read_text(table: _Table, stream: BinaryIO, start: bytes, dim: int | None, number: int) -> None:
    for lines in _blocks_of_lines(table.path, stream, start):
        if dim is None:
            dim = len(lines[0].split()) - 1
            if dim < 1 or _number(lines[0].split()[1]) is None:
                raise table.error(
                    "line 1", f"is {lines[0][:60]!r}, neither a header nor a word and its vector"
                )
        _add_lines(table, lines, dim, number)
        number += len(lines)
        if table.full:
            return


def _blocks_of_lines(path: Path, stream: BinaryIO, start: bytes) -> Iterator[list[bytes]]:
    rest = start
    while chunk := stream.read(_READ):
        if len(rest) > _LONGEST_LINE:
            raise InputError(
                f"{path} holds no word vectors (no newline in 64 MiB): give a word2vec or GloVe file"
            )
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield rest.removesuffix(b"\n").split(b"\n")


def _add_lines(table: _Table, lines: list[bytes], dim: int, number: int) -> None:
    import numpy as np

    words, numbers, places = [], [], []
    for i, line in enumerate(lines):
        row = line.rstrip()
        if not row:
            continue
        word, _, tail = row.partition(b" ")
        if not word or row.count(b" ") != dim or b"\t" in row:
            word, tail = _split_oddly(table, row, dim, f"line {number + i}")
        words.append(word)
        numbers.append(tail)
        places.append(f"line {number + i}")
    if not words:
        return
    try:
        flat = np.fromstring(b" ".join(numbers), dtype=np.float32, sep=" ")
        if flat.size != len(words) * dim:
            raise ValueError(flat.size)
    except ValueError:
        for tail, place in zip(numbers, places, strict=True):
            for part in tail.split():
                if _number(part) is None:
                    raise table.error(place, f"has {part[:40]!r} where a number should be") from None
        raise table.error(places[0], "or a later line cannot be read as numbers") from None
    table.add(words, flat.reshape(-1, dim), places)


def _split_oddly(table: _Table, row: bytes, dim: int, place: str) -> tuple[bytes, bytes]:
    """Split a row whose word holds spaces (GloVe 840B has some) or whose numbers stand oddly apart."""
    parts = row.split()
    spare = len(parts) - dim
    if spare < 1 or any(_number(p) is not None for p in parts[1:spare]):
        count = sum(_number(p) is not None for p in parts[1:])
        raise table.error(place, f"has {count} numbers, expected {dim}")
    return b" ".join(parts[:spare]), b" ".join(parts[spare:])


def _number(part: bytes) -> float | None:
    try:
        return float(part)
    except ValueError:
        return None


def _read_binary(table: _Table, stream: BinaryIO, start: bytes, dim: int, offset: int) -> None:
    import numpy as np

    buffer, width = start, 4 * dim
    while not table.full:
        words, vectors, places = [], [], []
        at = 0
        while True:
            space = buffer.find(b" ", at)
            if space < 0 or space + 1 + width > len(buffer):
                break
            # The original tool ends a vector with a newline, others do not.
            words.append(buffer[at:space].lstrip(b"\n"))
            vectors.append(buffer[space + 1 : space + 1 + width])
            places.append(f"byte {offset + at}")
            at = space + 1 + width
        if words:
            flat = np.frombuffer(b"".join(vectors), "<f4").astype(np.float32, copy=False)
            table.add(words, flat.reshape(-1, dim), places)
        buffer, offset = buffer[at:], offset + at
        chunk = stream.read(max(_READ, width - len(buffer)))
        if not chunk:
            break
        buffer += chunk
    if not table.full and buffer.strip(b"\n"):
        raise table.error(
            f"byte {offset}",
            f"the last vector is cut short ({len(buffer)} bytes are left of a word and {width})",
        )


def _load_cached(folder: Path) -> WordVectors | None:
    import numpy as np

    try:
        table = np.load(folder / "table.npy", mmap_mode="r", allow_pickle=False)
        # Bytes, because a word may hold a carriage return.
        words = (folder / "words.txt").read_bytes().decode().split("\n")
    except (OSError, ValueError, EOFError):
        return None
    if table.ndim != 2 or table.dtype != np.float32 or len(words) != len(table):
        return None
    return WordVectors({word: i for i, word in enumerate(words)}, table)


def _store_cached(folder: Path, found: WordVectors) -> None:
    """Write the cache whole or not at all; a full or read-only disk costs time, never an error."""
    import numpy as np

    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            np.save(new / "table.npy", found.table)
            (new / "words.txt").write_bytes("\n".join(found.rows).encode())
            if (folder / "table.npy").exists():
                folder.rename(Path(temporary) / "broken")
            new.rename(folder)
