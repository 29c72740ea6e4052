"""Threads that work for requests, and give up what nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from embedkit_cli.server.errors import ApiError

_T = TypeVar("_T")


class _Cancellation:
    """Tell the thread that works for a request that its time is up, or its client gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._future: Future[object] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            future = self._future
        if future is not None:
            future.cancel()

    def watch(self, future: Future[object]) -> None:
        with self._lock:
            self._future = future
        if self.cancelled:
            future.cancel()


_current: ContextVar[_Cancellation | None] = ContextVar("cancellation", default=None)


def check_wanted() -> None:
    """Raise CancelledError in a thread whose request nobody waits for any more; call it between long steps."""
    cancellation = _current.get()
    if cancellation is not None and cancellation.cancelled:
        raise CancelledError


def result_of(future: Future[_T]) -> _T:
    """Wait for a result; raise CancelledError, and cancel what is waited for, when the request is given up."""
    cancellation = _current.get()
    if cancellation is not None:
        cancellation.watch(future)  # type: ignore[arg-type]
    return future.result()


class Workers:
    """A few threads, and the requests that they work for: `most` at once, those that wait included; `waits` says what waits."""

    def __init__(self, threads: int, name: str, most: int, waits: str) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._most = most
        self._waits = waits
        self.busy = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a request while it is under way. Raises ApiError 429 where there is no room for it."""
        if self.busy >= self._most:
            raise ApiError(
                429, f"the server is busy: {self.busy} {self._waits}; try again in 1 s", code="queue_full",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def run(self, work: Callable[..., _T], *args: object) -> _T:
        """Do the work in one of the threads; when this is cancelled, it ends at its next wait or `check_wanted`."""
        cancellation = _Cancellation()
        context = copy_context()
        context.run(_current.set, cancellation)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, work, *args)
        finally:
            cancellation.cancel()

    def close(self) -> None:
        """Take no more, and end when what is under way ends."""
        self._executor.shutdown(wait=False, cancel_futures=True)
