"""Write to disk so that a killed process, or a full disk, never harms what is already there."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

from embedkit.errors import StoreError
from embedkit.syncing import sync_file, sync_folder

SEGMENT = "segment-"
DELETED = "deleted-"
SHARDS = "embedding-"
LOCK = "writer.lock"
# The page's map of the corpus: any program may remove it, and the server computes it anew.
MAP = "map.npz"
_BESIDE = re.compile(r"(embedkit\.json|map\.npz)\.\d+\.tmp")
# Whole names: what a user calls segment-2023 is the user's own.
_OURS = re.compile(r"(segment|embedding)-[0-9a-f]{12}(\.gone)?|deleted-[0-9a-f]{12}\.bits(\.gone)?")


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

    Raises StoreError naming the process that holds it, or saying why nothing can be locked there.
    """
    path = directory / LOCK
    with path.open("a+", encoding="utf-8") as f, _kept_from_children(f):
        try:
            taken = _take(f)
        except OSError as e:
            raise StoreError(
                f"{directory} cannot be locked ({e.strerror or e}), so two writers could not be kept apart: mount it "
                "with locks (some network drives have none), or move the index to a local disk"
            ) from e
        if not taken:
            f.seek(0)
            raise StoreError(_held_by(directory, f.read().strip()))
        # Another first build that failed removes its lock: whoever waited for that file would lock nothing.
        if not path.exists() or not os.path.samestat(os.fstat(f.fileno()), path.stat()):
            raise StoreError(f"{directory} was cleared by another process just now: run it again")
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        yield


_held: set[IO[str]] = set()


@contextmanager
def _kept_from_children(f: IO[str]) -> Iterator[None]:
    _held.add(f)
    try:
        yield
    finally:
        _held.discard(f)


def _let_go() -> None:
    # A lock is its open file's, which a forked child shares: it would outlive the writer. Closed, not unlocked: that
    # would free the writer's own.
    for f in _held:
        f.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _held_by(directory: Path, owner: str) -> str:
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    if found and found[2] == platform.node() and _ended(int(found[1])):
        return (
            f"{directory} is locked by a process that process {found[1]} started before it ended: stop that one, or wait "
            "until it is done"
        )
    return f"{directory} is being written by {owner or 'another process'}: wait until it is done, or stop it"


def _ended(pid: int) -> bool:
    if sys.platform == "win32":  # where a signal of 0 would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _take(f: IO[str]) -> bool:
    """Lock the file; return whether nobody else had. Raises OSError where the system has no locks to give."""
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
    except OSError as e:
        if e.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise
        return False
    return True


class Pin:
    """Hold a segment's folder, or its bitmap, for a reader: `drop_leftovers` leaves it until the last pin is gone.

    The system frees it when its process dies. Where folders cannot be locked (Windows, some network drives),
    the folder's mapped files keep it, as far as that system keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._handle = -1
        if sys.platform == "win32":
            return
        import fcntl

        self._handle = os.open(path, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __reduce__(self) -> NoReturn:
        # A copy would close the same handle a second time: another file's by then.
        raise TypeError("a pin is of its own process and object: open the index again instead of copying it")

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


def make_directory(directory: Path) -> bool:
    """Make a directory and those above it, to stay even if the power goes; return whether it was not there."""
    if directory.exists():
        directory.mkdir(exist_ok=True)
        return False
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_folder(directory.parent)
    return True


def new_folder(directory: Path, prefix: str = SEGMENT) -> Path:
    """Make a folder with a name of its own."""
    folder = directory / f"{prefix}{secrets.token_hex(6)}"
    folder.mkdir()
    return folder


def drop_leftovers(directory: Path, keep: Collection[str], *, shards: bool = True) -> None:
    """Remove what no version needs: old segments that no reader holds, and what killed writers left. Hold the lock.

    Without `shards`, what a killed writer has embedded stays.
    """
    for path in directory.iterdir():
        if path.name.startswith(SHARDS) and not shards:
            continue
        if _OURS.fullmatch(path.name) and path.name not in keep:
            _drop(path)
        elif _BESIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _drop(path: Path) -> None:
    if sys.platform == "win32":
        with suppress(OSError):  # a file in use cannot be removed, and keeps its folder from being renamed
            _remove(path.rename(path.with_name(path.name + ".gone")) if path.is_dir() else path)
        return
    import fcntl

    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            pass  # a reader holds it; a later change takes it away
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def belongs(name: str) -> bool:
    """Return whether a file of this name in an index's directory is the index's own."""
    return name in (LOCK, MAP) or any(p.fullmatch(name) for p in (_OURS, _BESIDE))


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: written beside, forced to disk, renamed."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        # What the text names must be there whenever the text is.
        sync_folder(path.parent)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_files(folder: Path) -> None:
    """Force a folder and all files in it to the disk."""
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)


def checksum(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
