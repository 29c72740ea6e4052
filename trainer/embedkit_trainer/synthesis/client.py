"""Ask one model over any OpenAI-compatible server: pacing, retries, structured output, ceilings, clear errors."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from embedkit.embedders.pacing import Pacer, retry_after
from embedkit.errors import InputError, ServerError
from embedkit_trainer.synthesis.answers import Reason, Rejected
from embedkit_trainer.synthesis.budget import Budget, count_tokens
from embedkit_trainer.synthesis.chat import (
    LARGEST_BODY,
    Completion,
    Malformed,
    message_of,
    one_line,
    read_completion,
    read_usage,
)
from embedkit_trainer.synthesis.endpoint import (
    find_key,
    is_of_transport,
    open_client,
    place_of,
    request_body,
    what_broke,
)
from embedkit_trainer.synthesis.recording import Usage
from embedkit_trainer.synthesis.settings import ModelConfig, SynthesisConfig

_RETRIED = (408, 409, 425, 429)
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0
# Seconds until a wait sees that a stop is wanted.
_TICK = 0.25
#: What `with_streaming_response.create` sends; posted directly, a request takes a fifth less CPU, for openai looks at no parameter.
_STREAMED = {"X-Stainless-Raw-Response": "stream"}
Messages = Sequence[Mapping[str, str]]


class Stopped(Exception):
    """Say that a stop was wanted before a request was sent, or sent again."""


class _Again(Exception):
    """Carry what failed and how long the server asks to wait."""

    def __init__(self, problem: str, asked: float | None = None, billed: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.asked, self.billed = problem, asked, billed


class Client:
    """Ask one model; no wait outlives a stop that is wanted.

    Raises InputError where its key is missing, MissingExtraError without the package openai.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: SynthesisConfig,
        budget: Budget,
        stop_wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stop_wanted = stop_wanted
        self.model = model
        self._config = config
        self._budget = budget
        self._pacer = Pacer(config.requests_per_minute, config.tokens_per_minute)
        self._structured = model.structured_output != "off"
        self._reached = self._works = False
        self._key = find_key(model)
        self.place = place_of(model)
        self._client = open_client(model, self._key, config.timeout, config.concurrency)
        # Joining it with the server's address takes openai a twentieth of a request's CPU; Azure's older paths hold the model.
        self._url = "/chat/completions" if model.api_version else f"{self._client.base_url}chat/completions"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def complete(self, messages: Messages, schema: Mapping[str, Any], usage: Usage) -> Completion:
        """Return the answer, retrying what may pass; `usage` is added to.

        Raises Rejected where the server declines or no try is left, budget.Exhausted at a ceiling, InputError for a
        refused key or an unknown model, ServerError where the server is not there at all, Stopped where a stop is wanted
        before it is sent, or sent again.
        """
        tokens = sum(count_tokens(m["content"]) for m in messages) + 4
        attempt = 0
        while True:
            if wait := self._pacer.reserve(tokens):
                await self._pause(wait)
            booked = await self._budget.reserve(self.model, tokens)
            used = whole = (booked.tokens_in, booked.tokens_out)
            again: _Again | None = None
            usage.attempts += 1
            try:
                answer = await self._try(messages, schema if self._structured else None)
                used = read_usage(answer, tokens)
                return self._completion(answer)
            except _Again as e:
                # Nobody knows what the server made of a request that it did not answer: ceilings take the most.
                used = whole if e.billed else (0, 0)
                again = e
            except _Unstructured:
                used = (0, 0)
                self._structured = False  # asked again at once, without it
            except (InputError, ServerError):
                used = (0, 0)
                raise
            finally:
                self._budget.settle(booked, used)
                if again is not None and again.billed:
                    usage.lost_in += used[0]
                    usage.lost_out += used[1]
                else:
                    usage.tokens_in += used[0]
                    usage.tokens_out += used[1]
            if again is not None:
                await self._wait(again, attempt)
                attempt += 1

    async def _wait(self, again: _Again, attempt: int) -> None:
        # A server that never answered is more likely absent than busy.
        retries = self._config.retries if self._reached else min(self._config.retries, 2)
        if attempt >= retries:
            if not self._reached:
                raise ServerError(
                    f"{self.place} failed {attempt + 1} times before the first answer, lastly with {again.problem}: "
                    "check that it runs, and base_url"
                ) from None
            raise Rejected(
                Reason.SERVER, f"{attempt + 1} tries failed, lastly with {again.problem}"
            ) from None
        if again.asked is not None and again.asked > self._config.longest_wait:
            raise ServerError(
                f"{self.place} asks to wait {again.asked:.0f} s ({again.problem}), more than longest_wait = "
                f"{self._config.longest_wait:g}: run the same command again then"
            ) from None
        if again.asked is not None:
            self._pacer.pause(again.asked)
        jitter = random.uniform(0, min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt, 30)))
        await self._pause((again.asked or 0.0) + jitter)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a stop is wanted."""
        while not self._stop_wanted():
            if seconds <= 0:
                return
            await asyncio.sleep(min(seconds, _TICK))
            seconds -= _TICK
        raise Stopped

    async def _try(self, messages: Messages, schema: Mapping[str, Any] | None) -> dict[str, Any]:
        import openai

        body = request_body(self.model, messages, schema)
        try:
            async with asyncio.timeout(self._config.timeout):
                return await self._send(body)
        # `from None`: a cause may carry the request with its key into a traceback.
        except (TimeoutError, openai.APIConnectionError) as e:
            raise self._broken(e) from None
        except openai.APIStatusError as e:
            self._refuse(e, schema is not None)
        except (openai.OpenAIError, OSError) as e:
            raise _Again(self._clean(e)) from None

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        content = bytearray()
        try:
            response = await self._client.post(
                self._url,
                cast_to=object,
                body=body,
                options={"headers": _STREAMED},
            )
            try:
                async for part in response.iter_bytes():
                    content += part
                    if len(content) > LARGEST_BODY:
                        raise Rejected(Reason.TOO_LARGE, f"the answer exceeds {LARGEST_BODY >> 20} MB")
            finally:
                await response.close()
        except Exception as e:
            if not is_of_transport(e):
                raise
            raise self._broken(e) from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise _Again(f"an answer that is no JSON ({self._clean(bytes(content))[:60]})", billed=True)
        return answer

    def _broken(self, error: BaseException) -> _Again:
        problem, billed = what_broke(error, self._config.timeout)
        return _Again(self._clean(problem), billed=billed)

    def _completion(self, answer: Mapping[str, Any]) -> Completion:
        try:
            completion = read_completion(answer, self._key)
        except Malformed:
            raise _Again("an answer without choices: check that base_url ends in /v1") from None
        except Rejected:
            self._reached = self._works = True
            raise
        self._reached = self._works = True
        return completion

    def _refuse(self, error: Any, structured: bool) -> NoReturn:
        self._reached = True
        status, code = error.status_code, str(getattr(error, "code", "") or "")
        detail = self._detail(error)
        if "quota" in code:
            raise ServerError(
                f"{self.place} has no quota left for this key ({status}{detail}): see to the account"
            ) from None
        if status in _RETRIED or status >= 500:
            raise _Again(f"status {status}{detail}", retry_after(error.response.headers)) from None
        name = self.model.name
        if status in (401, 403):
            raise InputError(
                f"{self.place} refused the key of {name} ({status}{detail}): set {self.model.api_key_env} to one that may use it"
            ) from None
        if status == 404 or "model_not_found" in code:
            raise InputError(
                f"{self.place} has no model {name!r} or no /chat/completions ({status}{detail}): check the name, and base_url, "
                "which mostly ends in /v1"
            ) from None
        if "content_filter" in code or "content_policy" in code:
            raise Rejected(Reason.REFUSAL, f"status {status}{detail}") from None
        if structured and self.model.structured_output == "auto":
            raise _Unstructured from None
        if self._works:
            raise Rejected(Reason.REFUSAL, f"status {status}{detail}") from None
        raise InputError(
            f"{self.place} refused the request to {name} ({status}{detail}): check the model's settings"
        ) from None

    def _detail(self, error: Any) -> str:
        message = message_of(error.body)
        return f", {self._clean(message)}" if message else ""

    def _clean(self, what: object) -> str:
        return one_line(what, self._key)


class _Unstructured(Exception):
    """Say that the server may not know structured output."""
