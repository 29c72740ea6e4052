"""Write to disk so that a killed process, or a full disk, never harms what is already there."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedkit.errors import StoreError

_PREFIX = "segment-"


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


def new_segment(directory: Path) -> Path:
    """Make a folder for a new segment; its name holds this process, so that its leftovers can be told."""
    folder = directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def drop_leftovers(directory: Path, keep: str) -> None:
    """Remove every segment folder but `keep`, save those that a living process is writing."""
    for folder in directory.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if folder.name == keep or not owner.isdecimal():
            continue
        if int(owner) == os.getpid() or not _alive(int(owner)) or _finished(folder):
            shutil.rmtree(folder, ignore_errors=True)


def mark_finished(folder: Path) -> None:
    """Note in the folder that its writer is done with it: from now on it lives by the manifest alone."""
    (folder / "finished").touch()


def _finished(folder: Path) -> bool:
    return (folder / "finished").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with path.open("rb+") as f:
        os.fsync(f.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
