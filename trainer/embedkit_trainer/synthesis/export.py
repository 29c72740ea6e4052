"""From stored examples to the trainer's rows: one folder a type, in the order of the requests."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from embedkit.errors import StoreError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.store import EXAMPLES, decode, shard_files
from embedkit_trainer.synthesis.types import TaskType

_NAME = "rows.jsonl"


def export_rows(store: str | Path, target: str | Path, types: Mapping[str, TaskType]) -> dict[str, int]:
    """Write TARGET/TYPE/rows.jsonl for each type that has examples, and return how many rows each has.

    A file appears whole or stays as it was. The same examples give the same bytes, in whatever order they came;
    memory grows by 24 bytes an example.
    """
    files = shard_files(Path(store), EXAMPLES)
    places: dict[str, array[int]] = {}
    for number, path in enumerate(files):
        for at, record in _lines(path):
            places.setdefault(record["type"], array("q")).extend((record["request"], number, at))
    return {
        name: _write(Path(target) / name / _NAME, files, place, types[name])
        for name, place in sorted(places.items())
    }


def _write(path: Path, files: list[Path], place: array[int], kind: TaskType) -> int:
    import numpy as np

    table = np.frombuffer(place, np.int64).reshape(-1, 3)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    first = np.append(True, table[1:, 0] != table[:-1, 0])
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        with replaced(path) as beside, beside.open("wb") as out:
            for _, number, at in table[first].tolist():
                opened[number].seek(at)
                record = decode(opened[number].readline())
                if record is None:
                    raise StoreError(
                        f"{files[number]} changed while its rows were written: run the same command again"
                    )
                out.write(json.dumps(kind.row(record), ensure_ascii=False).encode() + b"\n")
    return int(first.sum())


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0
    with path.open("rb") as f:
        for line in f:
            record = decode(line)
            if record is not None:  # the store has checked all but a torn last line
                yield at, record
            at += len(line)
