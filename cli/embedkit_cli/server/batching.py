"""Encode what many requests ask for in few calls of the model.

While the model works on a batch, what arrives waits and joins the next one. There is no timer: a client that is alone
waits for nothing.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from embedkit.embedder import Embedder
from embedkit.texts import is_visible
from embedkit_cli.server.errors import ApiError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "document", "rendered"]

# A batch is about so many seconds of work: so long waits, at worst, who arrives behind a request of many texts.
_SECONDS = 0.1
# Characters of a batch before the embedder's pace is known, and at least.
_LEAST = 16_384
_MOST = 4_194_304


class Unit(NamedTuple):
    """A text to encode: a query under its instruction, a document, or a string that is rendered already."""

    role: Role
    instruction: str | None
    text: str


class Encoded(NamedTuple):
    """Vectors float32 `[n, dim]`, and each text's tokens (special ones included, untruncated)."""

    vectors: NDArray[np.float32]
    tokens: list[int]


class _Job:
    """One request's texts; slices of it join batches until all are encoded."""

    __slots__ = ("count", "done", "future", "loop", "taken", "tokens", "units", "vectors")

    def __init__(
        self, units: Sequence[Unit], dim: int, count: bool, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        import numpy as np

        self.units = units
        self.count = count
        # A coroutine's future is settled on its loop, a thread's where it is.
        self.loop = loop
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

    `most_waiting` texts may wait; `on_batch` is told the texts, tokens and seconds of each call.
    """

    def __init__(
        self,
        embedder: Embedder,
        most_waiting: int,
        on_batch: Callable[[int, int, float], Any] = lambda texts, tokens, seconds: None,
    ) -> None:
        self.embedder = embedder
        self._most = most_waiting
        self._on_batch = on_batch
        self._reach = 4 * embedder.info.max_length
        # A class that encodes queries or documents in a way of its own has to be asked by role.
        kind = type(embedder)
        self._one_call = (
            kind.encode_query is Embedder.encode_query and kind.encode_document is Embedder.encode_document
        )
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._waiting_size = 0
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
        return self._waiting

    async def encode(self, units: Sequence[Unit], *, count: bool = False) -> Encoded:
        """Encode texts; `count` asks for their tokens too. Raises ApiError 429 where the queue is full."""
        job = _Job(units, self.embedder.info.dim, count, asyncio.get_running_loop())
        self._submit(job)
        assert isinstance(job.future, asyncio.Future)
        return await job.future

    def encode_waiting(self, units: Sequence[Unit]) -> Encoded:
        """Encode texts, for a thread that may wait; raises as `encode` does."""
        job = _Job(units, self.embedder.info.dim, False, None)
        self._submit(job)
        assert isinstance(job.future, Future)
        return job.future.result()

    def _submit(self, job: _Job) -> None:
        size = sum(map(self._size, job.units))
        with self._lock:
            if self._closed:
                raise ApiError(503, "the server is stopping", headers={"Connection": "close"})
            if self._waiting and self._waiting + len(job.units) > self._most:
                raise self._full()
            self._jobs.append(job)
            self._waiting += len(job.units)
            self._waiting_size += size
        self._wake.put(None)

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
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            start, size = job.taken, 0
            if job.future.cancelled():  # its client was told that time is up
                self._forget(job.units[start:])
                continue
            share = room // (len(self._jobs) + 1)
            while job.taken < len(job.units) and (not size or size < share):
                size += self._size(job.units[job.taken])
                job.taken += 1
            room -= size
            self._forget(job.units[start : job.taken])
            batch.append(_Slice(job, start, job.taken))
            if job.taken < len(job.units):
                unfinished.append(job)
        self._jobs.extend(unfinished)
        return batch

    def _forget(self, units: Sequence[Unit]) -> None:
        self._waiting -= len(units)
        self._waiting_size -= sum(map(self._size, units))

    def _encode(self, batch: Sequence[_Slice]) -> None:
        units = [unit for job, start, stop in batch for unit in job.units[start:stop]]
        began = time.perf_counter()
        try:
            vectors = self._vectors(units)
            tokens = self._tokens(batch, units)
        except Exception as e:
            self._failed(batch, e)
            return
        seconds = time.perf_counter() - began
        size = sum(map(self._size, units))
        # A batch weighs by its length: that of one short query says little of the pace.
        weight = min(size / _LEAST, 1) * 0.5
        self._pace += weight * (size / max(seconds, 1e-6) - self._pace)
        complete: list[_Job] = []
        row = 0
        for job, start, stop in batch:
            job.vectors[start:stop] = vectors[row : row + stop - start]
            if job.count:
                job.tokens[start:stop] = tokens[row : row + stop - start]
            row += stop - start
            with self._lock:
                job.done += stop - start
                if job.done == len(job.units):
                    complete.append(job)
        _settle(complete)
        self._on_batch(len(units), sum(tokens), seconds)

    def _failed(self, batch: Sequence[_Slice], error: Exception) -> None:
        """Find the request whose text the embedder fails on, so that the others get their answers."""
        if len(batch) > 1:
            for part in batch:
                self._encode([part])
            return
        job = batch[0].job
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)
                self._forget(job.units[job.taken :])
        _settle([job], error)

    def _tokens(self, batch: Sequence[_Slice], units: Sequence[Unit]) -> list[int]:
        if not any(part.job.count for part in batch):
            return [0] * len(units)
        return self.embedder.count_tokens([self._rendered(unit) for unit in units])

    def _vectors(self, units: Sequence[Unit]) -> NDArray[np.float32]:
        if self._one_call or all(unit.role == "rendered" for unit in units):
            return self.embedder.encode_rendered([self._rendered(unit) for unit in units])
        import numpy as np

        out = np.empty((len(units), self.embedder.info.dim), np.float32)
        for kind in dict.fromkeys(unit[:2] for unit in units):
            rows = [row for row, unit in enumerate(units) if unit[:2] == kind]
            out[rows] = self._of_kind(*kind, [units[row].text for row in rows])
        return out

    def _of_kind(self, role: Role, instruction: str | None, texts: list[str]) -> NDArray[np.float32]:
        if role == "query":
            return self.embedder.encode_query(texts, instruction=instruction)
        return (self.embedder.encode_document if role == "document" else self.embedder.encode_rendered)(texts)

    def _rendered(self, unit: Unit) -> str:
        template = self.embedder.info.template
        if unit.role == "query":
            return template.render_query(unit.text, unit.instruction)
        # A document without a visible character is no error: as in `encode_document`, its vector is all zeros.
        if unit.role == "document" and is_visible(unit.text):
            return template.render_document(unit.text)
        return unit.text


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
