"""Where filtered rows go: kept ones under their files' names, dropped and changed ones beside, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedkit.errors import EmbedkitError, InputError
from embedkit.syncing import sync_file, sync_folder
from embedkit_trainer.data.files import kind_of, row_files, store_error, writer
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Example
from embedkit_trainer.synthesis.filters.leftovers import claimed, clear, mark_complete, whole_of
from embedkit_trainer.synthesis.filters.placeholders import DECLARED, find_declared

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Target:
    """Name the output: a file of rows, or a folder that takes one file for each input file, named as that is.

    `inputs` are the files to read, `root` is the folder that holds them all. Dropped rows go to the folder `beside`
    the output as `dropped-REASON.jsonl`, rows before a change as `changed-REASON.jsonl`; the key `dropped` or
    `changed` in them keeps them from being trained on.
    """

    path: Path
    beside: Path
    inputs: tuple[Path, ...]
    root: Path

    @classmethod
    def of(
        cls, rows: str | os.PathLike[str], output: str | os.PathLike[str], *, replace: bool = False
    ) -> Target:
        """Return the target for a file, a folder or a glob of rows, before any work is done.

        What killed runs left of the same output is cleared away. Raises InputError where there are no rows; where the
        output is there and `replace` is not set, or is a folder that no filter wrote; where it would replace an input
        file or lie among them; where it is of no known kind.
        """
        inputs = tuple(row_files(rows))
        path = Path(output).expanduser()
        beside = path.with_name(f"{_stem(path)}.dropped")
        if kind_of(path) == "parquet":
            raise InputError(
                f"cannot write filtered rows to {path}: name a folder, or a file ending in .jsonl"
            )
        given = Path(rows).expanduser()
        for place in (path, beside, path.with_name(f"{_stem(path)}.judge")):
            _check_apart(place, inputs, given if given.is_dir() else None)
        clear(path, beside)
        for place in (path, beside):
            if place.exists():
                _check_ours(place, beside, as_file=place == path and bool(kind_of(path)), replace=replace)
        return cls(path, beside, inputs, Path(os.path.commonpath([file.parent for file in inputs])))

    @property
    def verdicts(self) -> Path:
        """Return the folder beside the output where a model's verdicts stay, whatever becomes of the output."""
        return self.path.with_name(f"{_stem(self.path)}.judge")

    def name(self, file: Path) -> str:
        """Return where the kept rows of an input file go, below the output where that is a folder."""
        if kind_of(self.path):
            return self.path.name
        name = file.relative_to(self.root).as_posix()
        return name if kind_of(file) == "lines" else f"{name}.jsonl"


def _check_apart(place: Path, inputs: tuple[Path, ...], folder: Path | None) -> None:
    real = place.resolve()
    for file in inputs:
        if real == file.resolve() or real in file.resolve().parents:
            raise InputError(f"{place} holds {file}, which is read: choose another output")
    if folder is not None and folder.resolve() in real.parents:
        raise InputError(f"{place} would lie among the rows that are read: choose a place outside {folder}")


def _check_ours(place: Path, beside: Path, *, as_file: bool, replace: bool) -> None:
    if place.is_dir() == as_file:
        raise InputError(f"{place} is a {'folder' if as_file else 'file'}: choose another name")
    if not replace:
        raise InputError(f"{place} is there already: choose another name, or replace it with --force")
    if not as_file and not (beside / REPORT).is_file():
        raise InputError(
            f"the folder {place} is not this command's own, and is left alone: choose another name"
        )


def _stem(path: Path) -> str:
    name = path.name
    while kind_of(Path(name)):
        name = Path(name).stem
    return name


class Writer:
    """Write the outcomes into a folder beside the target; `writing` puts it in the target's place."""

    def __init__(self, target: Target, folder: Path, stack: ExitStack) -> None:
        self._target, self._stack = target, stack
        self.kept, self.beside = folder / "kept", folder / "beside"
        for path in (self.kept, self.beside):
            path.mkdir()
        self._file: Path | None = None
        self._open: BinaryIO | None = None
        self._close = ExitStack()
        stack.push(self._close)
        self._aside: dict[str, BinaryIO] = {}

    def keep(self, example: Example) -> None:
        """Write a row that stays; rows arrive in the order of their files."""
        # One output file for all, or one for each input: that of the last row stays open.
        if self._open is None or (self._file != example.file and not kind_of(self._target.path)):
            self._close.close()
            path = self.kept / self._target.name(example.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open = self._close.enter_context(writer(path))
        self._file = example.file
        self._open.write(_line(example.record))

    def set_aside(self, outcome: Dropped | Changed) -> None:
        """Write a dropped row, or the one before a change, with the reason."""
        kind, example = (
            ("dropped", outcome.example) if isinstance(outcome, Dropped) else ("changed", outcome.before)
        )
        name = f"{kind}-{outcome.reason}.jsonl"
        if name not in self._aside:
            self._aside[name] = self._stack.enter_context((self.beside / name).open("wb"))
        where = f"{example.file.relative_to(self._target.root).as_posix()}, line {example.row.line}"
        why = {"reason": outcome.reason, "detail": outcome.detail, "from": where}
        self._aside[name].write(_line({**example.record, kind: why}))

    def report(self, record: Mapping[str, Any]) -> None:
        """Write the report beside the dropped rows, and what placeholders are drawn from beside the kept ones."""
        declared = find_declared(self._target.inputs[0].parent)
        if declared is not None and not kind_of(self._target.path):
            shutil.copyfile(declared, self.kept / DECLARED)
        text = json.dumps(record, ensure_ascii=False, indent=1)
        (self.beside / REPORT).write_text(text + "\n", encoding="utf-8")


def _line(record: Mapping[str, Any]) -> bytes:
    # Parquet has a null for every key that a row lacks.
    record = {key: value for key, value in record.items() if value is not None}
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n"


@contextmanager
def writing(target: Target) -> Iterator[Writer]:
    """Give a writer whose files replace the target when the block ends without an error; else all is as it was.

    Raises StoreError where the disk is full or forbids it.
    """
    parent = target.path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with claimed(target.path) as folder:
            with ExitStack() as stack:
                made = Writer(target, folder, stack)
                yield made
            for path in (p for p in folder.rglob("*") if p.is_file()):
                sync_file(path)
            mark_complete(folder)
            with _moved_away(target.beside, folder / "old-beside"), _moved_away(target.path, folder / "old"):
                made.beside.rename(target.beside)
                whole_of(folder, target.path).rename(target.path)
            sync_folder(parent)
    except EmbedkitError:
        raise
    except OSError as e:
        raise store_error(target.path, e) from e


@contextmanager
def _moved_away(path: Path, aside: Path) -> Iterator[None]:
    there = path.exists()
    if there:
        path.rename(aside)
    try:
        yield
    except BaseException:
        if there:
            with suppress(OSError):
                if path.exists():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                aside.rename(path)
        raise
