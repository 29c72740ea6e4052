"""Content-addressed cache folders: made once, by one process at a time, whole or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from embedkit.errors import EmbedkitError, InputError
from embedkit.hashing import file_hash
from embedkit.syncing import sync_file, sync_folder
from embedkit_trainer.data.files import store_error

MANIFEST = "manifest.json"


def make_once(folder: Path, make: Callable[[Path], None], *, resume: bool = False) -> bool:
    """Fill `folder` by `make` unless it is there and intact; return whether it was made.

    `make` gets a folder beside it, which is then sealed and renamed. With `resume` that folder is kept when `make`
    fails or is killed, and handed to it again, as is a finished folder that was damaged; else it begins empty. Other
    processes wait their turn. Raises StoreError where the disk is full or forbids it.
    """
    if is_intact(folder):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            if is_intact(folder):  # another process was faster
                return False
            beside = folder.with_name(f"{folder.name}.partial")
            if not resume:
                shutil.rmtree(beside, ignore_errors=True)
            elif folder.is_dir() and not beside.exists():
                folder.rename(beside)
            beside.mkdir(exist_ok=True)
            try:
                make(beside)
                _seal(beside)
            except BaseException:
                if not resume:
                    shutil.rmtree(beside, ignore_errors=True)
                raise
            if folder.exists():  # broken: it was no good a moment ago, under the same lock
                shutil.rmtree(folder)
            beside.rename(folder)
            sync_folder(folder.parent)
    except EmbedkitError:
        raise
    except OSError as e:
        raise store_error(folder, e) from e
    return True


def is_intact(folder: Path) -> bool:
    """Return whether the folder is sealed and every file has the content that it was sealed with.

    A file's hash is remembered with its size and time of change, so that a large store is read once, not at every start.
    """
    try:
        manifest = read_manifest(folder)
        return all(
            (folder / name).stat().st_size == size and file_hash(folder / name) == digest
            for name, (size, digest) in manifest["files"].items()
        )
    except (OSError, InputError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write what `make` wants to find again; sealing adds the files' sizes and hashes."""
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1, ensure_ascii=False), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder. Raises InputError where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{folder} is no finished cache folder: {e}; delete it and build it again") from e
    if not isinstance(manifest, dict):
        raise InputError(f"{folder / MANIFEST} is broken: delete the folder and build it again")
    return manifest


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.name != MANIFEST)
    for path in files:
        sync_file(path)
    record = {p.name: (p.stat().st_size, file_hash(p)) for p in files}
    write_manifest(folder, {**read_manifest(folder), "files": record})
    sync_file(folder / MANIFEST)
    sync_folder(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock until the block ends; the system frees it when its owner dies, however it dies."""
    with path.open("a+b") as f:
        _lock(f)
        yield


def _lock(f: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(f.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                return
            except OSError:
                continue
    else:
        import fcntl

        fcntl.flock(f.fileno(), fcntl.LOCK_EX)
