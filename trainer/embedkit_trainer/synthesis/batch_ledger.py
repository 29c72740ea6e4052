"""What was handed to a server's Batch API: written down, and on the disk, before anything that costs is asked for.

FOLDER/ledger.jsonl     one line an event, with its checksum: planned, uploaded, created, plain, closed
FOLDER/KEY.jsonl        the requests of a batch, until the server has made it
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from embedkit.errors import InputError, StoreError
from embedkit.syncing import sync_folder
from embedkit_trainer.data.files import store_error
from embedkit_trainer.synthesis.store import decode, encode

_FILE = "ledger.jsonl"


@dataclass(slots=True)
class Batch:
    """Hold one batch: `numbers` are its requests, tokens the most that these may take, `structured` how it asks.

    `file` and `id` are the server's, "" until they are known.
    """

    key: str
    model: str
    place: str
    digest: str
    structured: bool
    tokens_in: int
    tokens_out: int
    numbers: list[int]
    file: str = ""
    id: str = ""


class Ledger:
    """Keep the batches of one store. Open it as a context while the store is held.

    Raises StoreError where it is damaged or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, Batch] = {}
        self.plain: set[str] = set()
        self._handle: int | None = None

    def __enter__(self) -> Self:
        path = self.path
        good = _replay(path, self._apply)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
            )
            os.ftruncate(self._handle, good)
            sync_folder(self.folder)
            for batch in list(self.open.values()):
                if not batch.file:  # nothing was made of it: its requests are undone
                    self.close(batch, "dropped")
            for leftover in self.folder.iterdir():  # of batches that are closed, or were never planned whole
                if leftover.name != _FILE and leftover.name.lstrip(".").split(".")[0] not in self.open:
                    leftover.unlink()
        except OSError as e:
            raise store_error(path, e) from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)

    @property
    def path(self) -> Path:
        """Where it stands."""
        return self.folder / _FILE

    def requests_file(self, key: str) -> Path:
        """Return where a batch's requests lie."""
        return self.folder / f"{key}.jsonl"

    def plan(self, batch: Batch) -> None:
        """Note that a batch will be asked for; its requests lie on the disk."""
        self._write({"event": "planned", **asdict(batch)})

    def uploaded(self, batch: Batch, file: str) -> None:
        """Note the server's name of the file."""
        self._write({"event": "uploaded", "key": batch.key, "file": file})

    def created(self, batch: Batch, name: str) -> None:
        """Note the server's name of the batch, whose requests it has now."""
        self._write({"event": "created", "key": batch.key, "id": name})
        self.requests_file(batch.key).unlink(missing_ok=True)

    def ask_plainly(self, model: str) -> None:
        """Note that a model's server knows no structured output."""
        self._write({"event": "plain", "model": model})

    def close(self, batch: Batch, status: str) -> None:
        """Note that all is stored that a batch brought."""
        self._write({"event": "closed", "key": batch.key, "status": status})
        for path in self.folder.glob(f"{batch.key}.*"):
            path.unlink()

    def _write(self, event: dict[str, Any]) -> None:
        line = encode(event)
        path = self.path
        try:
            assert self._handle is not None
            before = os.fstat(self._handle).st_size
            if os.write(self._handle, line) < len(line):
                os.ftruncate(self._handle, before)
                raise OSError(28, "No space left on device")
            os.fsync(self._handle)
        except OSError as e:
            raise store_error(path, e) from e
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "planned":
            batch = Batch(**{name: value for name, value in event.items() if name != "event"})
            self.open[batch.key] = batch
        elif kind == "uploaded":
            self.open[event["key"]].file = event["file"]
        elif kind == "created":
            self.open[event["key"]].id = event["id"]
        elif kind == "plain":
            self.plain.add(event["model"])
        elif kind == "closed":
            self.open.pop(event["key"], None)


def refuse_open(folder: Path) -> None:
    """Raise InputError where requests lie in batches at a server: sent one by one, they would be paid for twice."""
    ledger = Ledger(folder)
    _replay(folder / _FILE, ledger._apply)
    waiting = [batch for batch in ledger.open.values() if batch.file]
    if waiting:
        count = sum(len(batch.numbers) for batch in waiting)
        raise InputError(
            f"{count:,} requests are in batches at {waiting[0].place}: run the same command with --batch, which fetches them"
        )


def _replay(path: Path, apply: Any) -> int:
    """Apply what stands in a ledger, and return where it ends; a torn last line is passed over."""
    if not path.exists():
        return 0
    at = 0
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            event = decode(line)
            try:
                if event is None:
                    raise ValueError
                apply(event)
            except (ValueError, KeyError, TypeError):
                if event is None and not f.read(1):
                    break
                raise StoreError(
                    f"{path}, line {number} is damaged: put the file back, or delete it after a look at the server, "
                    "whose batches it names; without it their requests are sent again"
                ) from None
            at += len(line)
    return at
