"""Money: what a plan will probably cost, and ceilings that no request can break."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from embedkit.errors import InputError
from embedkit_trainer.synthesis.plan import Plan, PlannedRequest
from embedkit_trainer.synthesis.settings import ModelConfig, SynthesisConfig
from embedkit_trainer.synthesis.store import Spent

_SAMPLE = 1000
#: Tokens a word and a request's wrapping; languages other than English are cut into more.
_TOKENS_A_WORD, _TOKENS_A_FOREIGN_WORD, _WRAPPING = 1.4, 2.4, 20
_TASK_WORDS = 18


class Exhausted(Exception):
    """Carry which ceiling the next request would break."""

    def __init__(self, ceiling: str) -> None:
        super().__init__(ceiling)
        self.ceiling = ceiling


@dataclass(frozen=True, slots=True)
class ModelForecast:
    """Hold what is expected of one model; `cost` is None where no price is known."""

    model: str
    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Hold what is expected of a plan, one answer a request, without retries."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    models: tuple[ModelForecast, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """Hold what a request that is under way may cost at most."""

    model: ModelConfig
    tokens_in: int
    tokens_out: int

    @property
    def cost(self) -> float:
        """The price of all of it."""
        return price(self.model, self.tokens_in, self.tokens_out)


class Budget:
    """Let requests through as long as none can break a ceiling, whatever those under way still cost.

    A request books the longest answer that it allows; when it is settled, what it did not use is free again. Where
    a request does not fit, it waits for those under way, and raises Exhausted when none is left.
    """

    def __init__(self, config: SynthesisConfig, spent: Spent) -> None:
        self._config = config
        self.requests = spent.requests
        self.tokens = spent.tokens_in + spent.tokens_out + spent.lost_tokens
        self.cost = spent.cost + spent.lost_cost
        self._open: set[int] = set()
        self._booked_tokens = 0
        self._booked_cost = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, model: ModelConfig, tokens_in: int) -> Reservation:
        """Book one request. Raises Exhausted."""
        wanted = Reservation(model, tokens_in, model.max_tokens)
        while ceiling := self.broken(wanted):
            if not self._open or ceiling == "max_requests":
                raise Exhausted(ceiling)
            self._settled.clear()
            await self._settled.wait()
        self._open.add(id(wanted))
        self.hold(wanted)
        return wanted

    def hold(self, wanted: Reservation, requests: int = 1) -> None:
        """Book what is under way already, whatever the ceilings say."""
        self.requests += requests
        self._booked_tokens += wanted.tokens_in + wanted.tokens_out
        self._booked_cost += wanted.cost

    def settle(self, reservation: Reservation, tokens: tuple[int, int]) -> None:
        """Replace what was booked by what was used."""
        self._open.discard(id(reservation))
        self._booked_tokens -= reservation.tokens_in + reservation.tokens_out
        self._booked_cost -= reservation.cost
        self.tokens += sum(tokens)
        self.cost += price(reservation.model, *tokens)
        self._settled.set()

    def broken(self, wanted: Reservation) -> str | None:
        """Return the ceiling that one more request would break."""
        config = self._config
        if config.max_requests is not None and self.requests + 1 > config.max_requests:
            return "max_requests"
        tokens = self.tokens + self._booked_tokens + wanted.tokens_in + wanted.tokens_out
        if config.max_tokens is not None and tokens > config.max_tokens:
            return "max_tokens"
        cost = self.cost + self._booked_cost + wanted.cost
        return "max_cost" if config.max_cost is not None and cost > config.max_cost else None


def price(model: ModelConfig, tokens_in: int, tokens_out: int) -> float:
    """Return what tokens cost; 0 where no price is known."""
    return (tokens_in * (model.price_input or 0.0) + tokens_out * (model.price_output or 0.0)) / 1e6


def check_prices(config: SynthesisConfig) -> None:
    """Raise InputError where a model in use has no price."""
    for model in config.models:
        if model.share > 0 and model.price_input is None:
            raise InputError(
                f"no price is known for the model {model.name}: set models.{model.name}.price_input and price_output "
                "(per million tokens; 0 for a server of your own), or pass --no-budget"
            )


def count_tokens(text: str) -> int:
    """Estimate a prompt's tokens, rather high than low."""
    return 8 + len(text.encode(errors="replace")) // 4


def forecast(plan: Plan, numbers: Iterable[int], total: int) -> Forecast:
    """Return what `total` requests will probably take, by a sample of `numbers`."""
    sums: dict[str, list[int]] = {m.name: [0, 0, 0] for m in plan.config.models if m.share > 0}
    seen = 0
    for seen, number in enumerate(numbers, 1):
        planned = plan.request(number)
        entry = sums[planned.model.name]
        entry[0] += 1
        entry[1] += count_tokens(planned.prompt)
        entry[2] += expected_tokens(planned, plan.config)
        if seen == _SAMPLE:
            break
    scale = total / seen if seen else 0.0
    models = []
    for model in plan.config.models:
        if model.name in sums:
            requests, tokens_in, tokens_out = (round(n * scale) for n in sums[model.name])
            known = model.price_input is not None
            cost = price(model, tokens_in, tokens_out) if known else None
            models.append(ModelForecast(model.name, requests, tokens_in, tokens_out, cost))
    costs = [m.cost for m in models]
    return Forecast(
        requests=total if seen else 0,
        tokens_in=sum(m.tokens_in for m in models),
        tokens_out=sum(m.tokens_out for m in models),
        cost=None if any(c is None for c in costs) else sum(c or 0.0 for c in costs),
        models=tuple(models),
    )


def expected_tokens(planned: PlannedRequest, config: SynthesisConfig) -> int:
    """Return how many tokens the answer to a request probably has."""
    if planned.template.step == "brainstorm":
        return round(config.brainstorm.tasks * _TASK_WORDS * _TOKENS_A_WORD) + _WRAPPING
    rate = _TOKENS_A_WORD if planned.languages == ("en", "en") else _TOKENS_A_FOREIGN_WORD
    return round(planned.type.expected_words(planned.placeholders) * rate) + _WRAPPING
