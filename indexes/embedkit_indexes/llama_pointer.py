"""The small file that `EmbedkitVectorStore.persist` writes: where the index is, relative to the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from embedkit.errors import InputError
from embedkit_indexes.durable import make_directory, replace_text, store_errors

# Core's SimpleVectorStore, which a StorageContext opens where no other store is passed, would take any other JSON object for
# an empty store and find nothing; at a text in this place it stops.
_STOP = "embedding_dict"
_NOTE = "this is no SimpleVectorStore: pass vector_store=EmbedkitVectorStore.from_persist_dir(…) to the StorageContext"


def write_pointer(persist_path: str, index: Path, embedder: str | None, fs: Any) -> None:
    """Write the file; where `persist_path` is the index itself there is nothing to write."""
    _check_local(fs)
    file = Path(persist_path)
    if file.resolve() == index.resolve():
        return
    with store_errors(file):
        make_directory(file.resolve().parent)
        record = {_STOP: _NOTE, "embedkit_index": _relative(index, file), "embedder": embedder}
        replace_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_pointer(persist_path: str, fs: Any) -> tuple[Path, str | None]:
    """Return the index's directory and the embedder's name. Raises InputError for what `persist` did not write."""
    _check_local(fs)
    file = Path(persist_path)
    if file.is_dir():
        return file, None
    try:
        record: Any = json.loads(file.read_text(encoding="utf-8"))
        place, embedder = record["embedkit_index"], record["embedder"]
        if isinstance(place, str) and isinstance(embedder, str | None):
            return Path(os.path.normpath(file.resolve().parent / place)), embedder
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist: persist the store first, or name the index's directory"
        ) from None
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise InputError(
        f"{file} was not written by EmbedkitVectorStore.persist: name its file, or the index's directory"
    )


def _relative(index: Path, file: Path) -> str:
    """Return the index's place as seen from the file, so that both move together."""
    try:
        return Path(os.path.relpath(index.resolve(), file.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return index.resolve().as_posix()


def _check_local(fs: Any) -> None:
    if fs is not None and "file" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        raise InputError(
            f"an index lies on a local disk, not on {fs.protocol!r}: leave fs out, and copy the index's directory yourself"
        )
