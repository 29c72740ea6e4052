"""What a run has paid for: append-only shards of examples and failures, each line with its checksum.

    FOLDER/plan.json               the plan that the folder belongs to
    FOLDER/examples-00000.jsonl    {"crc32": "8 hex digits", "record": {...}}
    FOLDER/failures-00000.jsonl    likewise: reason, detail and raw text of what was not taken
    FOLDER/run.lock                held while a run writes

A line is written whole with one call as soon as its answer is there, so that a killed process loses nothing; after a
power cut the last lines may be missing or torn. A torn last line is cut off, and its request is sent again.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from embedkit.errors import InputError, StoreError
from embedkit_trainer.data.files import replaced, store_error
from embedkit_trainer.saving.lock import only_process
from embedkit_trainer.synthesis.answers import Reason

EXAMPLES, FAILURES = "examples", "failures"
_FORMAT = 1
_PREFIX = b'{"crc32": "00000000", "record": '
_SHARD_BYTES = 64 << 20
_SYNC_SECONDS = 1.0
#: States of a request.
_STORED, _FAILED, _UNANSWERED = 1, 2, 3


@dataclass(slots=True)
class Spent:
    """Count what was stored and paid for; `unanswered` requests are among the failed.

    What was lost is the most that requests without an answer can have cost: ceilings count it.
    """

    stored: int = 0
    failed: int = 0
    unanswered: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    lost_tokens: int = 0
    lost_cost: float = 0.0


class Store:
    """Keep one plan's answers. Open it as a context; one process at a time writes.

    Raises InputError for a folder of another plan, StoreError for one that is damaged, in use, or cannot be written.
    """

    def __init__(self, folder: str | Path, digest: str, parts: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.spent = Spent()
        self._states = bytearray()
        self._plan: dict[str, Any] = {"format": _FORMAT, "digest": digest, "parts": dict(parts)}
        self._held = ExitStack()
        self._files: dict[str, _Shards] = {}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(only_process(self.folder, "writing"))
            self._check_plan()
            for name in (EXAMPLES, FAILURES):
                self._files[name] = shards = _Shards(self.folder, name)
                held.callback(shards.close)
                shards.recover(self._count)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def undone(self, total: int, retry_failed: bool = False) -> Iterator[int]:
        """Yield the requests below `total` that were never answered, or with `retry_failed` not usably."""
        again = (0, _UNANSWERED, _FAILED) if retry_failed else (0, _UNANSWERED)
        # What fails during this run is not taken up by it once more.
        states = bytes(self._states)
        for number in range(total):
            if (states[number] if number < len(states) else 0) in again:
                yield number

    def count_undone(self, total: int, retry_failed: bool = False) -> int:
        """Return how many requests `undone` would yield."""
        counts = [self._states.count(state, 0, total) for state in (_STORED, _FAILED)]
        return total - counts[0] - (0 if retry_failed else counts[1])

    def append(self, record: Mapping[str, Any]) -> None:
        """Store an example; it has `request`, `tokens`, `cost` and `attempts`."""
        self._files[EXAMPLES].append(record)
        self._count(EXAMPLES, record)

    def fail(self, record: Mapping[str, Any]) -> None:
        """Store a failure; it has `reason` and `raw` as well."""
        self._files[FAILURES].append(record)
        self._count(FAILURES, record)

    def sync(self) -> None:
        """Return once what was stored would outlast a power cut."""
        for shards in self._files.values():
            shards.close()

    def _check_plan(self) -> None:
        file = self.folder / "plan.json"
        if not file.exists():
            if any(self.folder.glob(f"{EXAMPLES}-*.jsonl")):
                raise StoreError(
                    f"{self.folder} holds examples but no plan.json: put it back, or choose another output"
                )
            with replaced(file) as beside:
                beside.write_text(json.dumps(self._plan, indent=2) + "\n", encoding="utf-8")
            return
        found = read_plan(self.folder)
        if found["digest"] != self._plan["digest"]:
            ours, theirs = self._plan["parts"], found["parts"]
            differs = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
            raise InputError(
                f"the folder {self.folder} holds examples of another plan (what differs: {', '.join(differs) or 'its version'}): "
                "take that back, or name another output; nothing was changed"
            )

    def _count(self, name: str, record: Mapping[str, Any]) -> None:
        spent, number = self.spent, record["request"]
        spent.requests += record["attempts"]
        spent.tokens_in += record["tokens"][0]
        spent.tokens_out += record["tokens"][1]
        spent.cost += record["cost"]
        if lost := record.get("lost"):
            spent.lost_tokens += lost["tokens"]
            spent.lost_cost += lost["cost"]
        if number >= len(self._states):
            self._states.extend(bytes(number + 1 - len(self._states) + 4096))
        before = self._states[number]
        if name == EXAMPLES:
            state = _STORED
        else:
            state = _UNANSWERED if record["reason"] == Reason.SERVER else _FAILED
        if before != _STORED:
            self._states[number] = state
        self._tally(before, -1)
        self._tally(self._states[number], 1)

    def _tally(self, state: int, by: int) -> None:
        self.spent.stored += by * (state == _STORED)
        self.spent.failed += by * (state in (_FAILED, _UNANSWERED))
        self.spent.unanswered += by * (state == _UNANSWERED)


class _Shards:
    """Append lines to the last of several files; begin another where it grows large."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._number, self._size = 0, 0
        self._handle: int | None = None
        self._synced = time.monotonic()

    def recover(self, count: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Read what is there, cut off a torn last line."""
        files = shard_files(self._folder, self._name)
        for path in files:
            good = 0
            for _, end, record in _lines(path, torn=path == files[-1]):
                count(self._name, record)
                good = end
            if path == files[-1]:
                self._number, self._size = int(path.stem[-5:]), good
                if path.stat().st_size > good:
                    os.truncate(path, good)

    def append(self, record: Mapping[str, Any]) -> None:
        line = encode(record)
        if self._handle is not None and self._size + len(line) > _SHARD_BYTES:
            self.close()
            self._number, self._size = self._number + 1, 0
        path = self._folder / f"{self._name}-{self._number:05d}.jsonl"
        try:
            if self._handle is None:
                self._handle = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
                )
            written = os.write(self._handle, line)
            if written < len(line):  # the disk was full in the middle of it
                os.ftruncate(self._handle, self._size)
                os.write(self._handle, line)
                if os.fstat(self._handle).st_size != self._size + len(line):
                    os.ftruncate(self._handle, self._size)
                    raise OSError(28, "No space left on device")
            self._size += len(line)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._handle)
                self._synced = time.monotonic()
        except OSError as e:
            raise store_error(path, e) from e

    def close(self) -> None:
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        try:
            os.fsync(handle)
        except OSError as e:
            raise store_error(self._folder, e) from e
        finally:
            os.close(handle)


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record as its line."""
    payload = json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")
    return b'{"crc32": "%08x", "record": %s}\n' % (zlib.crc32(payload), payload)


def shard_files(folder: Path, name: str) -> list[Path]:
    """Return the files of examples or failures in order."""
    return sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9].jsonl"))


def read_records(folder: str | Path, name: str = EXAMPLES) -> Iterator[dict[str, Any]]:
    """Yield the examples, or the failures, in the order in which they were stored; a torn last line is passed over."""
    files = shard_files(Path(folder), name)
    for path in files:
        for _, _, record in _lines(path, torn=path == files[-1]):
            yield record


def read_plan(folder: str | Path) -> dict[str, Any]:
    """Return plan.json. Raises StoreError where it is none."""
    file = Path(folder) / "plan.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["digest"], str) or not isinstance(found["parts"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise StoreError(f"{file} cannot be read as a plan: put it back, or choose another output") from e
    if found.get("format") != _FORMAT:
        raise StoreError(
            f"{file} is of another format ({found.get('format')!r}): use the embedkit that wrote it"
        )
    return dict(found)


def _lines(path: Path, torn: bool) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (begin, end, record) of each whole line. Raises StoreError for damage, but not at the end where `torn`."""
    at = 0
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            record = decode(line)
            if record is None:
                if torn and not f.read(1):
                    return
                raise StoreError(
                    f"{path}, line {number} is damaged: delete that line, and its request is sent again"
                )
            yield at, at + len(line), record
            at += len(line)


def decode(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, None where the checksum does not fit."""
    size = len(_PREFIX)
    payload = line[size:-2]
    try:
        if not line.endswith(b"}\n") or int(line[11:19], 16) != zlib.crc32(payload):
            return None
        record = json.loads(payload)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
