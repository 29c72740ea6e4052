"""Write to disk so that a killed process, or a full disk, never harms what is already there."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedkit.errors import StoreError
from embedkit.syncing import sync_folder

PREFIX = "segment-"
LOCK = "writer.lock"


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError of one sentence that names the path and the way out."""
    try:
        yield
    except StoreError:
        raise
    except OSError as e:
        where = e.filename if isinstance(e.filename, str) else str(path)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "the disk is full: free some space and run it again; what was stored before is untouched"
        elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "no permission: choose another directory or change its rights"
        elif e.errno in (errno.ENOTDIR, errno.EEXIST):
            advice = "that path is a file, not a directory: choose another one"
        else:
            advice = f"{e.strerror or e}; what was stored before is untouched"
        raise StoreError(f"cannot use {where}: {advice}") from e


@contextmanager
def writer_lock(directory: Path) -> Iterator[None]:
    """Hold the directory's one writer's lock; the system frees it when its owner dies, however it dies.

    Raises StoreError naming the process that holds it.
    """
    path = directory / LOCK
    with path.open("a+", encoding="utf-8") as f:
        if not _take(f):
            f.seek(0)
            owner = f.read().strip() or "another process"
            raise StoreError(f"{directory} is being written by {owner}: wait until it is done, or stop it")
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        yield


def _take(f: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # A byte far beyond the text: Windows keeps others from reading what is locked.
            f.seek(1 << 30)
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
            f.seek(0)
        else:
            import fcntl

            fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def new_segment(directory: Path) -> Path:
    """Make a folder for a new segment."""
    folder = directory / f"{PREFIX}{secrets.token_hex(6)}"
    folder.mkdir()
    return folder


def drop_leftovers(directory: Path, keep: str) -> None:
    """Remove every segment folder but `keep`: old ones, and what killed builds left. Hold the lock."""
    for folder in directory.glob(f"{PREFIX}*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: written beside, forced to disk, renamed."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def checksum(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
