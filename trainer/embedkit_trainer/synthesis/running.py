"""Run a plan: many requests at once, each stored as soon as it is answered, nothing sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from embedkit.errors import EmbedkitError, ServerError
from embedkit_trainer.synthesis.answers import Reason, Rejected
from embedkit_trainer.synthesis.budget import Budget, Exhausted, Forecast, forecast
from embedkit_trainer.synthesis.client import Client, Messages, Stopped
from embedkit_trainer.synthesis.plan import Plan, PlannedRequest
from embedkit_trainer.synthesis.recording import Recorder, Usage
from embedkit_trainer.synthesis.store import Spent, Store

#: What a model may mend when it is told.
_REPAIRED = frozenset(Reason) - {Reason.SERVER, Reason.REFUSAL, Reason.TOO_LARGE}
_SHOWN_BACK = 4000
_SILENT = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """Tell how far a run is: requests done of those it set out to do, and what the data set has cost so far.

    Of `batches` at the server, `answered` requests have an answer there.
    """

    done: int
    total: int
    rejected: int
    tokens: int
    cost: float
    batches: int = 0
    answered: int = 0


@dataclass(frozen=True, slots=True)
class RunReport:
    """Tell how a run ended. `stopped` is "" for a run that did all, a ceiling's name, or "signal".

    Of those `left`, `under_way` are in batches at the server; `unread` counts lines of its files that were not taken.
    """

    stored: int
    rejected: int
    reasons: Mapping[str, int]
    left: int
    spent: Spent
    stopped: str = ""
    under_way: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)


class Run:
    """Send what is undone of a plan's first `total` requests.

    `announce` gets the forecast of what is undone before the first request, `tell` the progress after each.
    `stop_wanted` is asked before each request; once it says yes, those under way are waited for and stored.
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
    ) -> None:
        self._plan, self._total, self._store = plan, total, store
        self._retry_failed = retry_failed
        self._announce, self._tell, self._stop_wanted = announce, tell, stop_wanted
        self._stopped = ""
        self._error: EmbedkitError | None = None
        self._recorder = Recorder(store)
        self._silent = 0

    async def run(self) -> RunReport:
        """Send them all. Raises the first error that ends a run, after what was under way is stored."""
        config = self._plan.config
        self._goal = self._store.count_undone(self._total, self._retry_failed)
        self._budget = Budget(config, self._store.spent)
        self._clients: dict[str, Client] = {}
        if self._goal:
            numbers = self._store.undone(self._total, self._retry_failed)
            self._announce(forecast(self._plan, numbers, self._goal))
        try:
            for model in config.models:
                if model.share > 0 and self._goal:  # what is complete needs no key
                    self._clients[model.name] = Client(model, config, self._budget, self._stop_wanted)
            numbers = self._store.undone(self._total, self._retry_failed)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(config.concurrency, self._goal)):
                    tasks.create_task(self._work(numbers))
        except BaseExceptionGroup as group:
            # A bug's report is of use with the error itself.
            raise group.exceptions[0] from None
        finally:
            for client in self._clients.values():
                await client.close()
        if self._error is not None:
            raise self._error
        done = self._recorder
        left = self._store.count_undone(self._total)
        return RunReport(done.stored, done.rejected, done.reasons, left, self._store.spent, self._stopped)

    async def _work(self, numbers: Iterator[int]) -> None:
        """Take one request after the other until none is left or something ended the run."""
        while not self._stopped and self._error is None:
            if self._stop_wanted():
                self._stopped = "signal"
                return
            number = next(numbers, None)
            if number is None:
                return
            try:
                await self._one(self._plan.request(number))
            except Exhausted as e:
                self._stopped = self._stopped or e.ceiling
            except Stopped:
                self._stopped = self._stopped or "signal"
            except EmbedkitError as e:
                self._error = self._error or e
            self._tell(self._progress())

    async def _one(self, planned: PlannedRequest) -> None:
        usage = Usage()
        messages: list[Mapping[str, str]] = [{"role": "user", "content": planned.prompt}]
        client = self._clients[planned.model.name]
        rejected: Rejected | None = None
        text = ""
        for _ in range(1 + self._plan.config.repair):
            try:
                completion = await client.complete(messages, planned.schema, usage)
                text = completion.text
                answer = planned.parse(text, completion.finish_reason)
            except Rejected as e:
                rejected = e
                if e.reason not in _REPAIRED:
                    break
                messages = _repair(messages, text, e.detail)
            except (Exhausted, Stopped) as e:
                if rejected is None and (isinstance(e, Exhausted) or not usage.attempts):
                    raise
                # A ceiling or a stop stands before the repair: the answer that there was is kept as it is. What was tried
                # without an answer is stored for what it may have cost; the next run sends it again.
                rejected = rejected or Rejected(Reason.SERVER, "stopped before it was sent again")
                break
            else:
                self._recorder.answer(planned, answer, usage)
                self._silent = 0
                return
        if rejected is not None:
            self._fail(planned, rejected, text, usage)

    def _fail(self, planned: PlannedRequest, rejected: Rejected, text: str, usage: Usage) -> None:
        self._recorder.failure(planned, rejected, text, usage)
        self._silent = self._silent + 1 if rejected.reason is Reason.SERVER else 0
        if self._silent >= _SILENT and not self._stop_wanted():
            raise ServerError(
                f"{self._clients[planned.model.name].place} left {self._silent} requests on end unanswered "
                f"({rejected.detail}): what was answered is stored; run the same command again later"
            )

    def _progress(self) -> Progress:
        stored, rejected = self._recorder.stored, self._recorder.rejected
        return Progress(stored + rejected, self._goal, rejected, self._budget.tokens, self._budget.cost)


def _repair(messages: Messages, text: str, detail: str) -> list[Mapping[str, str]]:
    """Return the request that shows a model its own answer and says what is wrong with it."""
    wish = f"This answer cannot be used: {detail}. Write it again as the one JSON object that was asked for, nothing else."
    return [
        messages[0],
        {"role": "assistant", "content": text[:_SHOWN_BACK] or "(nothing)"},
        {"role": "user", "content": wish},
    ]
