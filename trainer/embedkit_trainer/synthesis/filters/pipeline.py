"""Run filters over rows: read once, judged batch by batch, written as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from embedkit.errors import EmbedkitError, InputError
from embedkit_trainer.data.rows import read_records
from embedkit_trainer.synthesis.filters.example import (
    Changed,
    Dropped,
    Example,
    Filter,
    Outcome,
    WholeFilter,
)
from embedkit_trainer.synthesis.filters.output import Target, Writer, writing

_BATCH = 1024
_AHEAD = 3  # batches that each worker has before it
# Less is judged before a worker has started.
_WORTH_WORKERS = 8 << 20


@dataclass(slots=True)
class FilterCount:
    """Count what one filter saw and what it did, by reason; `seconds` are this process's own.

    Those of a filter that waits for all rows are not counted.
    """

    name: str
    seen: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(slots=True)
class FilterReport:
    """Count what became of all rows: `rows` = `kept` + the sum of what the filters dropped."""

    rows: int = 0
    kept: int = 0
    filters: list[FilterCount] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def dropped(self) -> dict[str, int]:
        """Return the dropped rows by reason."""
        return {reason: n for count in self.filters for reason, n in count.dropped.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def filter_rows(
    target: Target,
    filters: Sequence[Filter | WholeFilter],
    *,
    workers: int = 0,
    watch: Callable[[int], None] | None = None,
) -> FilterReport:
    """Write the rows that all filters keep to the target, and return what each filter did.

    A filter sees what the ones before it kept. `workers` processes judge for the filters that allow it, where the
    input is worth it (8 MB). `watch` is told how many rows were read. Memory: a few batches of 1,024 rows, and what
    the filters keep.

    Raises CorpusError for a row that breaks the schema, InputError where no row is left, StoreError where the disk
    is full; then the target is as it was.
    """
    started = time.perf_counter()
    report = FilterReport(filters=[FilterCount(judge.name) for judge in filters])
    large = sum(file.stat().st_size for file in target.inputs) >= _WORTH_WORKERS
    wanted = workers if large and any(_is_parallel(judge) for judge in filters) else 0
    first = ""
    with _pool(wanted) as pool, writing(target) as out:
        batches = _read(target.inputs, report, watch)
        for judge, count in zip(filters, report.filters, strict=True):
            batches = _survivors(batches, judge, count, out, (pool, wanted))
        for batch in batches:
            for example in batch:
                out.keep(example)
            report.kept += len(batch)
        report.seconds = round(time.perf_counter() - started, 3)
        if not report.kept:
            first = ", ".join(f"{reason} {n:,}" for reason, n in report.dropped.items())
            raise InputError(
                f"none of {report.rows:,} rows is left ({first}): nothing was written; leave out the filter that "
                "is at fault, or loosen it"
            )
        out.report(report.to_dict())
    return report


def read_examples(files: Sequence[Path]) -> Iterator[Example]:
    """Yield the rows of files as examples; raises as `read_rows` does."""
    for file in files:
        for row, record in read_records(file):
            yield Example(row, record, file)


def _read(
    files: Sequence[Path], report: FilterReport, watch: Callable[[int], None] | None
) -> Iterator[list[Example]]:
    examples = read_examples(files)
    while batch := list(islice(examples, _BATCH)):
        report.rows += len(batch)
        if watch is not None:
            watch(report.rows)
        yield batch


def _survivors(
    batches: Iterator[list[Example]],
    judge: Filter | WholeFilter,
    count: FilterCount,
    out: Writer,
    pool: tuple[Executor | None, int],
) -> Iterator[list[Example]]:
    for outcomes in _judged(batches, judge, count, *pool):
        kept: list[Example] = []
        count.seen += len(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Example):
                kept.append(outcome)
                continue
            out.set_aside(outcome)
            tally = count.dropped if isinstance(outcome, Dropped) else count.changed
            tally[outcome.reason] = tally.get(outcome.reason, 0) + 1
            if isinstance(outcome, Changed):
                kept.append(outcome.after)
        yield kept


def _judged(
    batches: Iterator[list[Example]],
    judge: Filter | WholeFilter,
    count: FilterCount,
    pool: Executor | None,
    workers: int,
) -> Iterator[list[Outcome]]:
    if isinstance(judge, WholeFilter):
        yield from judge.check_all(batches)
        return

    def clocked(do: Callable[[], list[Outcome]]) -> list[Outcome]:
        started = time.perf_counter()
        found = do()
        count.seconds = round(count.seconds + time.perf_counter() - started, 3)
        return found

    if pool is None or not judge.parallel:
        for batch in batches:
            yield clocked(lambda batch=batch: judge.check(batch))  # type: ignore[misc]
        return
    sent: deque[tuple[list[Example], Future[list[Outcome | None]]]] = deque()

    def answer() -> list[Outcome]:
        batch, future = sent.popleft()
        return [e if found is None else found for e, found in zip(batch, _answer(future), strict=True)]

    for batch in batches:
        sent.append((batch, pool.submit(_check_there, judge, batch)))
        if len(sent) > _AHEAD * workers:
            yield clocked(answer)
    while sent:
        yield clocked(answer)


def _check_there(judge: Filter, batch: Sequence[Example]) -> list[Outcome | None]:
    """Judge in another process; what passes unchanged need not be sent back."""
    return [None if isinstance(outcome, Example) else outcome for outcome in judge.check(batch)]


def _is_parallel(judge: Filter | WholeFilter) -> bool:
    return not isinstance(judge, WholeFilter) and judge.parallel


def _answer(future: Future[list[Outcome | None]]) -> list[Outcome | None]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return future.result()
    except BrokenProcessPool as e:
        raise EmbedkitError(
            "a worker process was ended from outside, most often for want of memory: run it again with --workers 0"
        ) from e


def _pool(workers: int) -> AbstractContextManager[Executor | None]:
    if workers < 1:
        return nullcontext()
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: threads of an embedder may be running.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
