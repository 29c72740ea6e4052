"""Pools of task definitions: one editable file of JSON lines for each type, deduplicated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit.errors import CorpusError, MissingExtraError
from embedkit_trainer.data.files import replaced, text_lines

_LONGEST = 2000
_PERMUTATIONS = 64
_SLACK = 0.15
_SHINGLE = 4


@dataclass(frozen=True, slots=True)
class Growth:
    """Count what became of new tasks: those added, those there already, those too like another."""

    added: int
    duplicates: int
    near_duplicates: int


def pool_path(folder: str | Path, kind: str) -> Path:
    """Return the file of a type's pool."""
    return Path(folder) / f"{kind}.jsonl"


def read_pool(path: Path) -> list[dict[str, Any]]:
    """Return a pool's lines, each an object with a `task`; none where the file is not there.

    Tasks that stand there twice are read once. Raises CorpusError with the line for what is no task.
    """
    if not path.exists():
        return []
    found: dict[str, dict[str, Any]] = {}
    for line, text in text_lines(path):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise CorpusError(str(path), 'no JSON: write {"task": "…"} on each line', line) from None
        task = value.get("task") if isinstance(value, dict) else None
        if not isinstance(task, str) or not task.strip():
            raise CorpusError(str(path), 'holds no task: write {"task": "…"} on each line', line)
        if len(task) > _LONGEST or not task.isprintable():
            raise CorpusError(
                str(path), f"the task must be one line of at most {_LONGEST:,} printable characters", line
            )
        found.setdefault(task.strip(), {**value, "task": task.strip()})
    return list(found.values())


def read_tasks(folder: str | Path, kinds: Iterable[str]) -> dict[str, list[str]]:
    """Return the tasks of several types' pools."""
    return {kind: [entry["task"] for entry in read_pool(pool_path(folder, kind))] for kind in kinds}


def write_pool(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a pool; the file appears whole or stays as it was."""
    with replaced(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as f:
        for entry in entries:
            f.write(json.dumps(entry, ensure_ascii=False) + "\n")


def grow(
    entries: Sequence[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], similarity: float
) -> tuple[list[Mapping[str, Any]], Growth]:
    """Return the pool with what is new in `new`, and what became of it.

    Left out are tasks that are there word for word, whatever their case, and those whose Jaccard similarity to one in
    the pool (of runs of four characters) reaches `similarity`; 1 keeps all of these.
    """
    kept = list(entries)
    exact = {_folded(entry["task"]) for entry in kept}
    near = _Near(similarity, (entry["task"] for entry in kept)) if similarity < 1 else None
    duplicates = near_duplicates = 0
    for entry in new:
        folded = _folded(entry["task"])
        if folded in exact:
            duplicates += 1
            continue
        exact.add(folded)
        if near is not None and not near.add(entry["task"]):
            near_duplicates += 1
            continue
        kept.append(entry)
    return kept, Growth(len(kept) - len(entries), duplicates, near_duplicates)


class _Near:
    """Find tasks like another: an index names candidates, their runs of characters decide."""

    def __init__(self, similarity: float, tasks: Iterable[str]) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ModuleNotFoundError as e:
            raise MissingExtraError("leaving near-duplicates out of a pool", "synth") from e
        self._hash = MinHash
        self._similarity = similarity
        self._index = MinHashLSH(threshold=similarity - _SLACK, num_perm=_PERMUTATIONS)
        self._tasks: list[str] = []
        for task in tasks:
            self._insert(task, self._of(_runs(task)))

    def add(self, task: str) -> bool:
        """Add a task unless one like it is there; say whether it was added."""
        runs = _runs(task)
        made = self._of(runs)
        for key in self._index.query(made):
            other = _runs(self._tasks[int(key)])
            if len(runs & other) >= self._similarity * len(runs | other):
                return False
        self._insert(task, made)
        return True

    def _insert(self, task: str, made: Any) -> None:
        self._index.insert(str(len(self._tasks)), made)
        self._tasks.append(task)

    def _of(self, runs: set[str]) -> Any:
        made = self._hash(num_perm=_PERMUTATIONS, seed=1)
        made.update_batch([run.encode() for run in sorted(runs)])
        return made


def _runs(task: str) -> set[str]:
    text = _folded(task)
    return {text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))}


def _folded(task: str) -> str:
    return " ".join(task.casefold().split()).rstrip(".")
