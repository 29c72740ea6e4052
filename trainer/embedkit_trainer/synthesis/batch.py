"""Run a plan by the offline Batch API: files of requests, answered within a day for less; nothing is paid for twice.

Before a batch is asked for it stands in a ledger on the disk, under a key that goes with it as metadata. A run that was
killed finds there what it asked for, and at the server what it could not note any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedkit.errors import InputError
from embedkit_trainer.synthesis.batch_answers import Taker
from embedkit_trainer.synthesis.batch_api import BatchServer, Gone, State
from embedkit_trainer.synthesis.batch_files import Lines
from embedkit_trainer.synthesis.batch_ledger import Batch, Ledger, refuse_open
from embedkit_trainer.synthesis.batch_sending import Sender
from embedkit_trainer.synthesis.budget import Forecast, forecast
from embedkit_trainer.synthesis.plan import Plan
from embedkit_trainer.synthesis.recording import Recorder
from embedkit_trainer.synthesis.running import Progress, Run, RunReport
from embedkit_trainer.synthesis.store import EXAMPLES, FAILURES, Store, read_records

_FOLDER = "batches"
_TICK = 0.2
_QUEUE_FULL = "token_limit_exceeded"


def batch_folder(store: Path) -> Path:
    """Return where a store's batches are written down."""
    return store / _FOLDER


class _Stopped(Exception):
    """Say that a signal came during a wait."""


class BatchRun:
    """Send what is undone of a plan's first `total` requests as batches, and store what comes back.

    The plan's models have the prices of batches. Each request goes into one batch a run. `say` gets what happens to
    batches, one sentence each; the others are `running.Run`'s.
    """

    def __init__(
        self,
        plan: Plan,
        total: int,
        store: Store,
        *,
        retry_failed: bool = False,
        announce: Callable[[Forecast], object] = lambda _: None,
        tell: Callable[[Progress], object] = lambda _: None,
        stop_wanted: Callable[[], bool] = lambda: False,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._plan, self._total, self._store = plan, total, store
        self._retry_failed = retry_failed
        self._announce, self._tell, self._stop_wanted, self._say = announce, tell, stop_wanted, say
        self._ledger = Ledger(batch_folder(store.folder))
        self._recorder = Recorder(store)
        self._sender = Sender(plan, store, self._ledger, self._pause, say)
        self._states: dict[str, State] = {}
        self._unread: Counter[str] = Counter()
        self._freed = False
        self._gone: set[str] = set()
        self._error: InputError | None = None

    async def run(self) -> RunReport:
        """Go on until every batch has ended. Raises the first error that ends a run; what the server has stays there."""
        stopped = ""
        with self._ledger:
            self._begin()
            try:
                await self._rounds()
            except _Stopped:
                stopped = "signal"
            finally:
                await self._sender.close()
            under_way = sum(len(batch.numbers) for batch in self._ledger.open.values() if batch.file)
        if self._error is not None:
            raise self._error
        done = self._recorder
        return RunReport(
            done.stored,
            done.rejected,
            done.reasons,
            self._store.count_undone(self._total),
            self._store.spent,
            stopped or self._sender.ceiling,
            under_way,
            self._unread,
        )

    def _begin(self) -> None:
        pending = {number for batch in self._ledger.open.values() for number in batch.numbers}
        self._sender.touched |= pending
        self._goal = self._store.count_undone(self._total, self._retry_failed)
        fresh = sum(n not in pending for n in self._store.undone(self._total, self._retry_failed))
        if fresh:
            numbers = (n for n in self._store.undone(self._total, self._retry_failed) if n not in pending)
            self._announce(forecast(self._plan, numbers, fresh))

    async def _rounds(self) -> None:
        """Fetch, send, wait; a further round sends what a ceiling or a full queue held back."""
        config = self._plan.config.batch
        wait = first = min(config.poll, max(0.02, config.poll / 12))
        send = True
        while True:
            ended = await self._look()
            if (send or ended) and self._error is None:
                await self._sender.resume()
                await self._sender.send(self._total, self._retry_failed)
                send = False
            self._tell(self._progress())
            if not self._awaited():
                return
            wait = first if ended else wait
            await self._pause(wait)
            wait = min(wait * 1.5, config.poll)

    async def _look(self) -> bool:
        """Store what has ended, and say whether anything has."""
        ended = self._freed = False
        for batch in self._awaited():
            server = self._sender.server(batch.model)
            try:
                state = await server.look(batch.id, len(batch.numbers))
                self._states[batch.key] = state
                if state.ended:
                    await self._fetch(batch, state, server)
                    ended = True
            except Gone as e:  # the others are fetched all the same
                self._gone.add(batch.key)
                self._error = self._error or InputError(
                    f"{e}; where it is lost for good, delete {self._ledger.path} once the others are fetched, and its requests "
                    "are sent again"
                )
        return ended

    def _awaited(self) -> list[Batch]:
        return [b for b in self._ledger.open.values() if b.id and b.key not in self._gone]

    async def _fetch(self, batch: Batch, state: State, server: BatchServer) -> None:
        """Store a batch's answers, and free what it left unanswered."""
        before = self._stored_of(batch)
        lines = Lines(set(batch.numbers))
        taker = Taker(self._plan, batch, self._recorder, server.key)
        for file, name in ((state.output, "output"), (state.errors, "errors")):
            if file:
                path = self._ledger.folder / f"{batch.key}.{name}.jsonl"
                await server.download(file, path, len(batch.numbers))
                for line in lines.read(path):
                    if line.number not in before:
                        taker.take(line)
                self._tell(self._progress())
        if state.status == "completed":
            for number in batch.numbers:
                if number not in lines.seen and number not in before:
                    taker.lose(number)
        self._store.sync()
        if taker.unstructured:
            self._ledger.ask_plainly(batch.model)
            self._sender.touched.difference_update(taker.unstructured)
        self._unread.update(lines.unread)
        self._sender.held = ""
        self._freed = self._freed or state.status != "failed"
        waits = any(b.id for b in self._ledger.open.values() if b is not batch)
        again = state.code == _QUEUE_FULL and (waits or self._freed)
        if again:
            self._sender.touched.difference_update(batch.numbers)
            self._sender.held = state.code if waits else ""
        self._ledger.close(batch, state.status)
        self._states.pop(batch.key, None)
        self._tell_end(batch, state, len(before) + taker.answered, lines.unread)
        if not again:
            self._note_problem(batch, state, server, taker)

    def _note_problem(self, batch: Batch, state: State, server: BatchServer, taker: Taker) -> None:
        if state.status == "failed":
            self._error = self._error or InputError(
                f"{server.place} did not start the batch {batch.id} ({state.code or 'failed'}: "
                f"{state.problem or 'it does not say why'}): its {len(batch.numbers):,} requests are undone; see to what it "
                "says, or set batch.requests lower"
            )
        elif taker.refused:
            self._error = self._error or InputError(
                f"{server.place} refused the requests to {batch.model} ({taker.refused}): check the model's settings"
            )

    def _tell_end(self, batch: Batch, state: State, answered: int, unread: Counter[str]) -> None:
        left = len(batch.numbers) - answered
        text = f"batch {batch.id} {state.status}: {answered:,} requests answered"
        if left:
            text += f", {left:,} not" + (f" ({state.problem})" if state.problem else "")
        if unread:
            text += "; lines not taken: " + ", ".join(f"{name} {n:,}" for name, n in sorted(unread.items()))
        self._say(text)

    def _stored_of(self, batch: Batch) -> set[int]:
        """Return which of a batch's requests a run has stored that was killed over it."""
        if not any(self._ledger.folder.glob(f"{batch.key}.*")):  # no file was fetched yet
            return set()
        return {
            record["request"]
            for name in (EXAMPLES, FAILURES)
            for record in read_records(self._store.folder, name)
            if record.get("batch") == batch.key
        }

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond a signal."""
        while True:
            if self._stop_wanted():
                raise _Stopped
            if seconds <= 0:
                return
            await asyncio.sleep(min(seconds, _TICK))
            seconds -= _TICK

    def _progress(self) -> Progress:
        done, spent = self._recorder, self._store.spent
        made = [batch.key for batch in self._ledger.open.values() if batch.id]
        answered = sum(self._states[key].answered for key in made if key in self._states)
        return Progress(
            done.stored + done.rejected,
            self._goal,
            done.rejected,
            spent.tokens_in + spent.tokens_out + spent.lost_tokens,
            spent.cost + spent.lost_cost,
            len(made),
            answered,
        )


def run_plan(
    plan: Plan, total: int, store: Store, *, batch: bool, say: Callable[[str], object], **options: Any
) -> RunReport:
    """Run a plan request by request, or as batches. Raises InputError where a store waits for batches and none are wanted."""
    if batch:
        if plan.config.repair:
            say("repair = true is not for batches: what cannot be used stays a failure, for --retry-failed")
        return asyncio.run(BatchRun(plan, total, store, say=say, **options).run())
    refuse_open(batch_folder(store.folder))
    return asyncio.run(Run(plan, total, store, **options).run())
