"""Content hashes of model files, remembered per file so that a large model is read once, not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from embedkit.errors import InputError

_CACHE_NAME = "file-hashes.json"
_CACHE_LIMIT = 2000
# Reading a smaller file is quicker than writing the cache anew, and would push the large ones out of it.
_SMALLEST_CACHED = 1 << 20
_known: dict[str, tuple[int, int, str]] = {}


def cache_dir() -> Path:
    """Return embedkit's cache folder: $EMBEDKIT_CACHE, else $XDG_CACHE_HOME or ~/.cache; it may not exist."""
    own = os.environ.get("EMBEDKIT_CACHE")
    if own:
        return Path(own).expanduser() / "embedkit"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "embedkit"


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's content as 64 hex digits.

    A large file's digest is remembered under (real path, size, mtime in ns); an unreadable, corrupt or read-only
    cache costs time, never an error. Raises InputError where the file cannot be read.
    """
    try:
        real = Path(path).resolve(strict=True)
        before = real.stat()
        key = str(real)
        stamp = (before.st_size, before.st_mtime_ns)
        large = before.st_size >= _SMALLEST_CACHED
        cached = _known.get(key) or (_read_cache().get(key) if large else None)
        if cached is not None and cached[:2] == stamp:
            _known[key] = cached
            return cached[2]
        with real.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        after = real.stat()
    except OSError as e:
        raise InputError(f"cannot hash {os.fspath(path)!r}: {e.strerror or e}; check the path") from e
    if (after.st_size, after.st_mtime_ns) == stamp:
        _known[key] = (*stamp, digest)
        if large:
            _remember(key, _known[key])
    return digest


def joint_hash(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return one sha256 over the contents of several files, in the order given; names do not enter."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(file_hash(path).encode())
    return whole.hexdigest()


def _read_cache() -> dict[str, tuple[int, int, str]]:
    try:
        raw = json.loads((cache_dir() / _CACHE_NAME).read_text(encoding="utf-8"))
        return {
            str(key): (int(size), int(mtime), str(digest))
            for key, (size, mtime, digest) in raw.items()
            if len(str(digest)) == 64
        }
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):
        return {}


def _remember(key: str, record: tuple[int, int, str]) -> None:
    """Write the cache with one record more; a concurrent writer's record may be lost, never half-written."""
    entries = _read_cache()
    entries.pop(key, None)
    entries[key] = record
    kept = dict(list(entries.items())[-_CACHE_LIMIT:])
    temporary: str | None = None
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=_CACHE_NAME, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            json.dump(kept, f)
        Path(temporary).replace(folder / _CACHE_NAME)
    except (OSError, RuntimeError):
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
