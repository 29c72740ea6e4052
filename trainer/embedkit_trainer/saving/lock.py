"""One run at a time in a work folder: two would write each other's files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedkit.errors import StoreError
from embedkit_trainer.data.files import store_error

_FILE = "run.lock"


@contextmanager
def only_run(work: Path, doing: str = "training") -> Iterator[None]:
    """Hold the lock of a run of several processes, of which the first alone takes it. Raises as `only_process` does."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with only_process(work, doing):
        yield


@contextmanager
def only_process(work: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a work folder until the block ends; the system frees it when its owner dies, however it dies.

    Raises StoreError where another process holds it, or where the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work / _FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise store_error(work, e) from e
    try:
        if not _taken(handle):
            raise StoreError(f"another run is {doing} in {work}: wait for its end, or give another output")
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a network file system without locks: nothing can be said there
        return True
    return True
