"""Put undone requests into batches, as far as the ceilings allow, and hand each to its server once."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from embedkit.errors import InputError, ServerError
from embedkit_trainer.synthesis.batch_api import BatchServer, Full
from embedkit_trainer.synthesis.batch_files import Draft, request_line
from embedkit_trainer.synthesis.batch_ledger import Batch, Ledger
from embedkit_trainer.synthesis.budget import Budget, Reservation, count_tokens
from embedkit_trainer.synthesis.endpoint import request_body
from embedkit_trainer.synthesis.plan import Plan
from embedkit_trainer.synthesis.settings import ModelConfig
from embedkit_trainer.synthesis.store import Store


class Sender:
    """Send a plan's requests, each once a run.

    `touched` are those that were sent; `held` says why the server takes no more for now, `ceiling` which one was met.
    `pause` waits, and may raise what ends the run.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        ledger: Ledger,
        pause: Callable[[float], Awaitable[None]],
        say: Callable[[str], object],
    ) -> None:
        self._plan, self._store, self._ledger, self._pause, self._say = plan, store, ledger, pause, say
        self._models = {model.name: model for model in plan.config.models}
        self._servers: dict[str, BatchServer] = {}
        self.touched: set[int] = set()
        self.held = self.ceiling = ""

    async def resume(self) -> None:
        """Bring on their way those that were written down, but not made."""
        for batch in [b for b in self._ledger.open.values() if not b.id]:
            await self._hand_over(batch, known=False)

    async def send(self, total: int, retry_failed: bool) -> None:
        """Put into batches what is undone of the first `total` requests."""
        self.ceiling = ""
        if self.held:
            return
        drafts: dict[str, Draft] = {}
        budget = self._budget()
        for number in self._store.undone(total, retry_failed):
            if number in self.touched:
                continue
            planned = self._plan.request(number)
            model = planned.model
            messages = [{"role": "user", "content": planned.prompt}]
            schema = planned.schema if self._is_structured(model) else None
            line = request_line(number, request_body(model, messages, schema))
            wanted = Reservation(model, count_tokens(planned.prompt) + 4, model.max_tokens)
            if ceiling := budget.broken(wanted):
                self.ceiling = ceiling
                break
            if model.name in drafts and self._is_full(drafts[model.name], line):
                await self._submit(model, drafts.pop(model.name))
                if self.held:
                    break
            budget.hold(wanted)
            draft = drafts.get(model.name)
            if draft is None:
                self.server(model.name)  # its key is asked for before anything is written
                key = secrets.token_hex(12)
                draft = drafts[model.name] = Draft(key, self._ledger.requests_file(key))
            draft.add(number, line, wanted.tokens_in, wanted.tokens_out)
        for name, draft in drafts.items():
            if self.held:
                draft.discard()
            else:
                await self._submit(self._models[name], draft)

    def _budget(self) -> Budget:
        """Return what was spent, and what the batches that are under way may cost at most."""
        budget = Budget(self._plan.config, self._store.spent)
        for batch in self._ledger.open.values():
            booked = Reservation(self._models[batch.model], batch.tokens_in, batch.tokens_out)
            budget.hold(booked, len(batch.numbers))
        return budget

    def _is_full(self, draft: Draft, line: bytes) -> bool:
        limits = self._plan.config.batch
        return len(draft.numbers) >= limits.requests or draft.size + len(line) > limits.megabytes * 1e6

    async def _submit(self, model: ModelConfig, draft: Draft) -> None:
        await self._pause(0)
        draft.close()
        batch = Batch(
            draft.key,
            model.name,
            self.server(model.name).place,
            self._plan.digest,
            self._is_structured(model),
            draft.tokens_in,
            draft.tokens_out,
            draft.numbers,
        )
        self._ledger.plan(batch)
        self.touched.update(batch.numbers)
        await self._hand_over(self._ledger.open[batch.key], known=True)

    async def _hand_over(self, batch: Batch, known: bool) -> None:
        """Upload a batch's file and have the batch made; `known`: it cannot have been made before."""
        server = self.server(batch.model)
        try:
            if not batch.file:
                path = self._ledger.requests_file(batch.key)
                self._ledger.uploaded(batch, await self._sent(batch, server.upload(batch.key, path)))
            name = "" if known else await server.find(batch.key, batch.file)
            name = name or await self._sent(batch, server.create(batch.key, batch.file, batch.digest))
        except Full as e:
            if not any(b.id for b in self._ledger.open.values()):
                raise ServerError(
                    f"{server.place} takes no batch of {len(batch.numbers):,} requests for now ({e}): run the same command "
                    "again later, or set batch.requests lower"
                ) from None
            self.held = str(e)
            self._say(
                f"{server.place} takes no further batch for now ({e}): the rest waits for those that it has"
            )
            return
        self._ledger.created(batch, name)
        self._say(f"batch {name}: {len(batch.numbers):,} requests to {batch.model} at {server.place}")

    async def _sent(self, batch: Batch, call: Awaitable[str]) -> str:
        """Return what a call gives; what the server refuses for good is undone again."""
        try:
            return await call
        except InputError:
            self._ledger.close(batch, "refused")
            raise

    def server(self, model: str) -> BatchServer:
        """Return what speaks to a model's server."""
        if model not in self._servers:
            self._servers[model] = BatchServer(self._models[model], self._plan.config, self._pause)
        return self._servers[model]

    def _is_structured(self, model: ModelConfig) -> bool:
        wanted = model.structured_output
        return wanted == "on" or (wanted == "auto" and model.name not in self._ledger.plain)

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers.values():
            await server.close()
