"""Files of training rows: which ones a path means, their lines, plain or compressed, and whole-file replacement."""

from __future__ import annotations

import codecs
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from embedkit.compression import COMPRESSED, UNREADABLE, open_binary
from embedkit.errors import CorpusError, EmbedkitError, InputError, StoreError
from embedkit.syncing import sync_file, sync_folder

LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
KINDS = f"{', '.join(LINES)} (also {', '.join(COMPRESSED)}) or {PARQUET}"
_GLOB = frozenset("*?[")


def row_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a file, a folder (searched through) or a glob means, in the order of their names.

    Raises InputError where there is none, or where a named file is of no known kind.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if _is_rows(p) and not _is_hidden(p.relative_to(given)))
        if not found:
            raise InputError(f"the folder {given} holds no training rows: expected files named {KINDS}")
        return found
    if given.is_file():
        if not kind_of(given):
            raise InputError(f"{given} is no file of training rows by its name: expected {KINDS}")
        return [given]
    if _GLOB & set(str(given)):
        # The glob begins at the first part that is a pattern, so that absolute patterns work as well.
        at = next(i for i, part in enumerate(given.parts) if _GLOB & set(part))
        base = Path(*given.parts[:at])
        found = sorted(p for p in base.glob(str(Path(*given.parts[at:]))) if _is_rows(p))
        if found:
            return found
        raise InputError(f"no file of training rows matches {str(given)!r}: expected {KINDS}")
    raise InputError(f"{given} does not exist: give a file, a folder or a glob of training rows")


def kind_of(path: Path) -> str:
    """Return "lines", "parquet" or "" (neither) by the file's name."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes[-1:] == [PARQUET]:
        return "parquet"
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return "lines" if suffixes and suffixes[-1] in LINES else ""


def _is_rows(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and bool(kind_of(path))


def _is_hidden(path: Path) -> bool:
    # What a killed process left unfinished lies in such folders, and so do the tools' own copies.
    return any(part.startswith(".") for part in path.parts)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) for every line that is not blank.

    Raises CorpusError for bytes that are not UTF-8, or a compressed file that is cut or broken.
    """
    number = 0
    try:
        with open_binary(path) as stream:
            for number, raw in enumerate(stream, start=1):
                data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if data.strip():
                    yield number, data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise CorpusError(
            str(path), f"not UTF-8 (byte {e.start} of the line): convert the file to UTF-8", number
        ) from None
    except UNREADABLE as e:
        raise CorpusError(str(path), f"cannot be read after line {number}: {e}") from e


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which replaces `path` when the block ends without an error.

    It keeps the suffixes, and is gone after an error. An OSError becomes a StoreError.
    """
    beside = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
    except EmbedkitError:
        raise
    except OSError as e:
        raise store_error(path, e) from e
    finally:
        with suppress(OSError):  # the true reason is on its way
            beside.unlink()


@contextmanager
def writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, compressed where its name says so."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        import gzip

        # mtime 0: the same rows give the same bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as f:
            yield cast("BinaryIO", f)
    elif suffix == ".bz2":
        import bz2

        with bz2.open(path, "wb") as b:
            yield cast("BinaryIO", b)
    elif suffix == ".xz":
        import lzma

        with lzma.open(path, "wb") as x:
            yield cast("BinaryIO", x)
    elif suffix == ".zst":
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as z:
            yield cast("BinaryIO", z)
    else:
        with path.open("wb") as plain:
            yield plain


def store_error(path: Path, e: OSError) -> StoreError:
    """Return one sentence for an OSError that hit writing."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(f"cannot write {path}: the disk is full: free some space and run it again")
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"cannot write {path}: no permission: choose another place or change its rights")
    return StoreError(f"cannot write {path}: {e.strerror or e}; check the path")
