"""Progress on stderr, shown on a terminal alone: done, rate and, where the total is known, the time left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_SAMPLE_BYTES = 4 << 20


class Meter:
    """Show one long piece of work; silent where stderr is no terminal."""

    def __init__(self, unit: str) -> None:
        self.shown = sys.stderr.isatty()
        self._unit = unit
        self._total: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[counts]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=Console(stderr=True, emoji=False),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, counts="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make room for another meter until the block ends."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def expect(self, total: int | None) -> None:
        """Set the total, which gives the time left; it may be an estimate."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def update(self, phase: str, done: int, further: int = 0, further_unit: str = "") -> None:
        """Tell how far the work is; `further` is a second count whose rate is shown beside the first's."""
        if self._bar is None:
            return
        elapsed = max(self._bar.tasks[0].elapsed or 0.0, 1e-3)
        counts = f"{done:,} {self._unit}, {done / elapsed:,.0f}/s"
        if further:
            counts += f" · {further / elapsed:,.0f} {further_unit}/s"
        if self._total is not None and done > self._total:  # the total was an estimate
            self.expect(None)
        self._bar.update(self._task, description=phase, completed=done, counts=counts)


def estimate_documents(sources: Iterable[str]) -> int | None:
    """Guess how many documents the sources hold: files of a folder, lines of JSON-lines files; None if unknown.

    Line files are extrapolated from their first megabytes, so that a large corpus is not read twice.
    """
    total = 0
    for source in map(Path, sources):
        if source.is_dir():
            total += sum(len(files) for _, _, files in os.walk(source))
        elif source.suffix in (".jsonl", ".ndjson") and source.is_file():
            total += _lines(source)
        elif source.is_file() and source.suffix not in (
            ".gz",
            ".xz",
            ".zst",
            ".parquet",
            ".csv",
            ".tsv",
            ".json",
        ):
            total += 1
        else:
            return None
    return total or None


def _lines(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(_SAMPLE_BYTES)
    lines = head.count(b"\n") + (not head.endswith(b"\n"))
    return lines if size <= len(head) else round(lines * size / len(head))
