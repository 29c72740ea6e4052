"""Encode what many requests ask for in few calls of the model.

While the model works on a batch, what arrives waits and joins the next one: no timer, a client that is alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit.embedder import Embedder
from embedkit.errors import EmbedderError, ServerError
from embedkit_cli.server.errors import ApiError
from embedkit_cli.server.units import Unit, UnitEncoder
from embedkit_cli.server.workers import result_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A batch is about so many seconds of work: so long waits, at worst, who arrives behind a request of many texts.
_SECONDS = 0.1
# Characters of a batch before the embedder's pace is known, and at least.
_LEAST = 16_384
_MOST = 4_194_304


class Encoded(NamedTuple):
    """Vectors float32 `[n, dim]`, and each text's tokens (special ones included, untruncated)."""

    vectors: NDArray[np.float32]
    tokens: list[int]


class _Job:
    """One request's texts; slices of it join batches until all are encoded."""

    __slots__ = (
        "characters", "count", "done", "future", "loop", "sizes", "taken", "tokens", "units", "vectors"
    )  # fmt: skip

    def __init__(
        self, units: Sequence[Unit], dim: int, count: bool, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        import numpy as np

        self.units = units
        self.sizes: list[int] = []
        self.characters = sum([len(unit.text) for unit in units])
        self.count = count
        self.loop = loop  # where a coroutine's future is settled; a thread's is where it is
        self.future: asyncio.Future[Encoded] | Future[Encoded] = (
            Future() if loop is None else loop.create_future()
        )
        self.vectors = np.empty((len(units), dim), np.float32)
        self.tokens = [0] * len(units)
        self.taken = 0
        self.done = 0

    def settle(self, error: Exception | None = None) -> None:
        """Give whoever waits the vectors, or the error; nobody waits any more where time ran out."""
        if self.future.done():
            return
        with suppress(InvalidStateError):  # given up at this very moment
            if error is None:
                self.future.set_result(Encoded(self.vectors, self.tokens))
            else:
                self.future.set_exception(error)


class _Slice(NamedTuple):
    job: _Job
    start: int
    stop: int


class Batcher:
    """Let threads and coroutines share one embedder, `embedder.parallel` calls of it at a time.

    `most_waiting` texts of `most_characters` together may wait; `on_batch` is told the texts and seconds of each call.
    """

    def __init__(
        self,
        embedder: Embedder,
        most_waiting: int,
        most_characters: int,
        on_batch: Callable[[int, float], Any] = lambda texts, seconds: None,
    ) -> None:
        self.embedder = embedder
        self._most = most_waiting
        self._most_characters = most_characters
        self._on_batch = on_batch
        self._reach = 4 * embedder.info.max_length
        self._encoder = UnitEncoder(embedder)
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._waiting_size = 0
        self._waiting_characters = 0
        self._pace = 0.0
        self._closed = False
        self._lock = threading.Lock()
        # One item for each job, and one more where a batch left something over: a lock and a queue of C's own wake a
        # thread in a fifth of the time that a Condition takes.
        self._wake: SimpleQueue[None] = SimpleQueue()
        for number in range(embedder.parallel):
            threading.Thread(target=self._work, name=f"embedkit-encode-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """The number of texts that wait."""
        with self._lock:
            self._drop_given_up()
            return self._waiting

    async def encode(self, units: Sequence[Unit], *, count: bool = False) -> Encoded:
        """Encode texts; `count` asks for their tokens too. Raises ApiError 429 where the queue is full."""
        job = _Job(units, self.embedder.info.dim, count, asyncio.get_running_loop())
        self._submit(job)
        assert isinstance(job.future, asyncio.Future)
        return await job.future

    def encode_waiting(self, units: Sequence[Unit], *, bounded: bool = True) -> Encoded:
        """Encode texts, for a thread that may wait; raises as `encode` does, never 429 if not `bounded`."""
        job = _Job(units, self.embedder.info.dim, False, None)
        self._submit(job, bounded)
        assert isinstance(job.future, Future)
        return result_of(job.future)

    def _submit(self, job: _Job, bounded: bool = True) -> None:
        job.sizes = [self._size(unit) for unit in job.units]
        with self._lock:
            if self._closed:
                raise ApiError(503, "the server is stopping", headers={"Connection": "close"})
            if bounded and self._is_full(job):
                self._drop_given_up()
                if self._is_full(job):
                    raise self._full()
            self._jobs.append(job)
            self._waiting += len(job.units)
            self._waiting_size += sum(job.sizes)
            self._waiting_characters += job.characters
        self._wake.put(None)

    def _is_full(self, job: _Job) -> bool:
        """Return whether a request is one too many; one that finds nobody waiting never is."""
        return self._waiting > 0 and (
            self._waiting + len(job.units) > self._most
            or self._waiting_characters + job.characters > self._most_characters
        )

    def _drop_given_up(self) -> None:
        self._drop([job for job in self._jobs if job.future.cancelled()])

    def _drop(self, jobs: Sequence[_Job]) -> None:
        gone = set(jobs).intersection(self._jobs)
        for job in gone:
            self._forget(job, len(job.units))
        if gone:
            self._jobs = deque(job for job in self._jobs if job not in gone)

    def close(self) -> None:
        """End the threads when the queue is empty; what comes later is refused."""
        self._closed = True
        for _ in range(self.embedder.parallel):
            self._wake.put(None)

    def _full(self) -> ApiError:
        seconds = min(max(math.ceil(self._waiting_size / self._pace), 1), 60) if self._pace else 1
        return ApiError(
            429,
            f"the server is busy: {self._waiting:,} texts wait to be encoded; try again in {seconds} s",
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )

    def _size(self, unit: Unit) -> int:
        return min(len(unit.text) + len(unit.instruction or ""), self._reach) + 16

    def _work(self) -> None:
        while True:
            self._wake.get()
            with self._lock:
                batch = self._take()
                over = bool(self._jobs)
            if over or self._closed:
                self._wake.put(None)
            if batch:
                self._encode(batch)
            elif self._closed and not over:
                return
            del batch  # else a finished request's vectors stay until the next one

    def _take(self) -> list[_Slice]:
        """Fill a batch, each request with its share, so that one of many texts does not hold up the others."""
        room = min(max(int(self._pace * _SECONDS), _LEAST), _MOST)
        batch: list[_Slice] = []
        unfinished: list[_Job] = []
        self._drop_given_up()
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            start = stop = job.taken
            size, share = 0, room // (len(self._jobs) + 1)
            while stop < len(job.units) and (not size or size < share):
                size += job.sizes[stop]
                stop += 1
            room -= size
            self._forget(job, stop)
            batch.append(_Slice(job, start, stop))
            if stop < len(job.units):
                unfinished.append(job)
        self._jobs.extend(unfinished)
        return batch

    def _forget(self, job: _Job, stop: int) -> None:
        """Count a request's texts up to `stop` as waiting no more; its characters are held until all are taken."""
        self._waiting -= stop - job.taken
        self._waiting_size -= sum(job.sizes[job.taken : stop])
        job.taken = stop
        if stop == len(job.units):
            self._waiting_characters -= job.characters

    def _encode(self, batch: Sequence[_Slice]) -> None:
        began = time.perf_counter()
        try:
            texts = self._fill(batch)
            self._count(batch)
        except BaseException as e:  # a panic of a tokenizer's is no Exception; the thread has to live on
            self._failed(batch, e if isinstance(e, Exception) else EmbedderError(f"{type(e).__name__}: {e}"))
            return
        seconds = time.perf_counter() - began
        size = sum([sum(job.sizes[start:stop]) for job, start, stop in batch])
        # A batch weighs by its length: that of one short query says little of the pace.
        weight = min(size / _LEAST, 1) * 0.5
        self._pace += weight * (size / max(seconds, 1e-6) - self._pace)
        complete: list[_Job] = []
        with self._lock:
            for job, start, stop in batch:
                job.done += stop - start
                if job.done == len(job.units):
                    complete.append(job)
        # First: whoever has an answer finds its batch in the figures.
        self._on_batch(texts, seconds)
        _settle(complete)

    def _failed(self, batch: Sequence[_Slice], error: Exception) -> None:
        """Find the request whose text the embedder fails on, so that the others get their answers."""
        # No text is to blame for a server that does not answer: to ask it again for each request is a flood.
        if len(batch) > 1 and not isinstance(error, ServerError | OSError):
            for part in batch:
                self._encode([part])
            return
        jobs = [part.job for part in batch]
        with self._lock:
            self._drop(jobs)
        _settle(jobs, error)

    def _fill(self, batch: Sequence[_Slice]) -> int:
        """Encode a batch's texts, give each request its vectors, and return how many they are."""
        units = [unit for job, start, stop in batch for unit in job.units[start:stop]]
        vectors = self._encoder.vectors(units)
        row = 0
        for job, start, stop in batch:
            job.vectors[start:stop] = vectors[row : row + stop - start]
            row += stop - start
        return len(units)

    def _count(self, batch: Sequence[_Slice]) -> None:
        """Count the tokens of those requests that asked for it."""
        wanted = [part for part in batch if part.job.count]
        if wanted:
            tokens = self._encoder.tokens([u for job, start, stop in wanted for u in job.units[start:stop]])
            row = 0
            for job, start, stop in wanted:
                job.tokens[start:stop] = tokens[row : row + stop - start]
                row += stop - start


def _settle(jobs: Sequence[_Job], error: Exception | None = None) -> None:
    """Settle jobs, each on its loop; a loop is woken once for all of them."""
    for loop in dict.fromkeys(job.loop for job in jobs):
        own = [job for job in jobs if job.loop is loop]

        def run(own: Sequence[_Job] = own) -> None:
            for job in own:
                job.settle(error)

        if loop is None:
            run()
        else:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(run)
