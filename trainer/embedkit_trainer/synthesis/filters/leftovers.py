"""Hidden folders in which outputs are made: locked by their run, and cleared away once that run is dead."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedkit.syncing import sync_folder
from embedkit_trainer.data.files import kind_of

_LOCK, _COMPLETE = "lock", "complete"
_TRIES = 16


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to make it in, locked until the block ends, then removed.

    The system frees the lock when its owner dies, however it dies.
    """
    folder, handle = _claim(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)  # Windows keeps a file that is open


def whole_of(folder: Path, path: Path) -> Path:
    """Return where in the folder lies what becomes `path`: a file, or a folder of files."""
    return folder / "kept" / path.name if kind_of(path) else folder / "kept"


def mark_complete(folder: Path) -> None:
    """Say that all is written and synced: from here on a dead run's output is moved into place, not removed."""
    (folder / _COMPLETE).touch()
    sync_folder(folder)


def clear(path: Path, beside: Path) -> None:
    """Remove what dead runs left of the output `path`; one that died while it moved its output is finished."""
    name = re.compile(rf"\.[0-9a-f]{{8}}\.{re.escape(path.name)}")
    try:
        found = [
            p for p in path.parent.iterdir() if name.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
        ]
    except OSError:
        return
    for folder in found:
        with suppress(OSError):
            _clear(folder, path, beside)


def _clear(folder: Path, path: Path, beside: Path) -> None:
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        folder.rmdir()  # killed before its lock was there; what is not empty is not ours, and stays
        return
    try:
        if not _take(handle):
            return
        if (folder / _COMPLETE).exists():
            _finish(folder, path, beside)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)


def _finish(folder: Path, path: Path, beside: Path) -> None:
    moves = (
        (folder / "beside", beside, folder / "old-beside"),
        (whole_of(folder, path), path, folder / "old"),
    )
    for made, place, old in moves:
        if made.exists():
            if place.exists():
                if old.exists():
                    raise FileExistsError(place)  # somebody has put another there since
                place.rename(old)
            made.rename(place)
    sync_folder(path.parent)


def _claim(path: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        folder = path.parent / f".{secrets.token_hex(4)}.{path.name}"
        folder.mkdir()
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # another run cleared it away before it was locked
        if _take(handle) is not False and (folder / _LOCK).exists():
            return folder, handle
        os.close(handle)
    raise FileExistsError(f"{path} is claimed again and again")


def _take(handle: int) -> bool | None:
    """Take a lock: False where another holds it, None where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True
