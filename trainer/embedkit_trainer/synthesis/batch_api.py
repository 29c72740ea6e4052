"""Speak to a server's Batch API: files and batches, tries that may be repeated, one sentence for what may not."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from embedkit.embedders.pacing import retry_after
from embedkit.errors import InputError, ServerError
from embedkit_trainer.data.files import replaced
from embedkit_trainer.synthesis.batch_files import URL
from embedkit_trainer.synthesis.chat import LARGEST_BODY, message_of, one_line
from embedkit_trainer.synthesis.endpoint import (
    find_key,
    is_of_transport,
    open_client,
    place_of,
    what_broke,
)
from embedkit_trainer.synthesis.settings import ModelConfig, SynthesisConfig

#: Names what is ours among a server's files and batches.
LABEL = "embedkit"
_RETRIED = (408, 409, 425, 429)
_ABSENT = (404, 405, 501)
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0
#: How many of a server's batches are looked at for one of ours; the newest come first.
_LOOKED_AT = 10_000
#: A file of answers may be this many of the largest answers larger than it need be.
_SPARE = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class State:
    """Hold what a server says of a batch; files are "" where there is none."""

    status: str
    answered: int
    output: str
    errors: str
    problem: str
    code: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class Full(Exception):
    """Say that the server takes no further batch for now."""


class Gone(Exception):
    """Say in a sentence that the server does not have what it was given."""


class _Again(Exception):
    def __init__(self, problem: str, asked: float | None = None, refused: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.asked, self.refused = problem, asked, refused


class _Absent(Exception):
    pass


class BatchServer:
    """Hand one model's requests over and fetch the answers.

    `pause` waits some seconds, and may raise what ends the run. Raises InputError and ServerError, MissingExtraError
    without the package openai.
    """

    def __init__(
        self, model: ModelConfig, config: SynthesisConfig, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self.model, self._config, self._pause = model, config, pause
        self.key = find_key(model)
        self.place = place_of(model)
        self._client = open_client(model, self.key, config.timeout, 2)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def upload(self, key: str, path: Path) -> str:
        """Upload a file of requests, and return the server's name of it."""

        async def send() -> str:
            with path.open("rb") as f:
                file = await self._client.files.create(file=(f"{LABEL}-{key}.jsonl", f), purpose="batch")
            return _checked(file.id, self.place)

        try:
            return await self._call(send)
        except _Absent as e:
            raise self._no_batches(e) from None

    async def find(self, key: str, file: str) -> str:
        """Return the batch that was made of a file, "" where there is none."""

        async def find() -> str:
            count = 0
            async for batch in self._client.batches.list(limit=100):
                named = batch.metadata.get(LABEL) if isinstance(batch.metadata, dict) else None
                if named == key or batch.input_file_id == file:
                    return _checked(batch.id, self.place)
                count += 1
                if count == _LOOKED_AT:
                    break
            return ""

        try:
            return await self._call(find)
        except _Absent as e:
            raise ServerError(
                f"{self.place} has no list of batches ({e}), and one may have been made of its file {file}: "
                "have a look there before anything is sent again"
            ) from None

    async def create(self, key: str, file: str, digest: str) -> str:
        """Make a batch of a file, and return the server's name of it. Raises Full.

        A try that nobody answered may have made it all the same: it is looked for before the next.
        """

        async def make() -> str:
            batch = await self._client.batches.create(
                input_file_id=file,
                endpoint=URL,
                completion_window="24h",
                metadata={LABEL: key, "plan": digest},
            )
            return _checked(batch.id, self.place)

        for attempt in range(self._config.retries + 1):
            try:
                return await self._once(make)
            except _Absent as e:
                raise self._no_batches(e) from None
            except _Again as e:
                if not e.refused and (found := await self.find(key, file)):
                    return found
                if attempt == self._config.retries or (e.asked or 0) > self._config.longest_wait:
                    if e.refused:
                        raise Full(e.problem) from None
                    raise self._silent(e.problem) from None
                await self._backoff(e, attempt)
        raise AssertionError

    async def look(self, name: str, requests: int) -> State:
        """Return how far a batch is. Raises Gone."""

        async def look() -> State:
            batch = await self._client.batches.retrieve(name)
            counts = batch.request_counts
            errors = batch.errors.data if batch.errors is not None and batch.errors.data else []
            first = errors[0] if errors else None
            return State(
                str(batch.status),
                min(counts.completed, requests)
                if counts is not None and isinstance(counts.completed, int)
                else 0,
                _checked(batch.output_file_id, self.place) if batch.output_file_id else "",
                _checked(batch.error_file_id, self.place) if batch.error_file_id else "",
                one_line(first.message or "", self.key) if first is not None else "",
                str(first.code or "") if first is not None else "",
            )

        try:
            return await self._call(look)
        except _Absent as e:
            raise Gone(
                f"{self.place} has no batch {name} ({e}), in which {requests:,} requests were sent: set the base_url and the "
                "key that it was made with"
            ) from None

    async def download(self, file: str, path: Path, requests: int) -> None:
        """Write a file of answers to `path`. Raises Gone."""
        most = (requests + _SPARE) * LARGEST_BODY

        async def fetch() -> None:
            size = 0
            with replaced(path) as beside, beside.open("wb") as out:
                async with self._client.files.with_streaming_response.content(file) as response:
                    async for part in response.iter_bytes():
                        size += len(part)
                        if size > most:
                            raise ServerError(
                                f"{self.place}: the file {file} is too large for {requests:,} answers: have a look at it there"
                            )
                        out.write(part)

        try:
            await self._call(fetch)
        except _Absent as e:
            raise Gone(
                f"{self.place} has the file {file} no more ({e}), which held answers to {requests:,} requests"
            ) from None

    async def _call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Return what `make` does, tried again where that may help and costs nothing."""
        for attempt in range(self._config.retries + 1):
            try:
                return await self._once(make)
            except _Again as e:
                if attempt == self._config.retries or (e.asked or 0) > self._config.longest_wait:
                    raise self._silent(e.problem) from None
                await self._backoff(e, attempt)
        raise AssertionError

    async def _backoff(self, again: _Again, attempt: int) -> None:
        jitter = random.uniform(0, min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt, 30)))
        await self._pause((again.asked or 0.0) + jitter)

    async def _once(self, make: Callable[[], Awaitable[T]]) -> T:
        import openai

        # `from None`: a cause may carry the request with its key into a traceback.
        try:
            return await make()
        except openai.APIStatusError as e:
            raise self._refused(e) from None
        except openai.APIConnectionError as e:
            raise self._broken(e) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as e:
            raise _Again(f"an answer that cannot be read ({one_line(e, self.key)})") from None
        except Exception as e:
            if not is_of_transport(e):
                raise
            raise self._broken(e) from None

    def _broken(self, error: Exception) -> _Again:
        problem, _ = what_broke(error, self._config.timeout)
        return _Again(one_line(problem, self.key))

    def _refused(self, error: Any) -> Exception:
        status, code = error.status_code, str(getattr(error, "code", "") or "")
        message = message_of(error.body)
        detail = f"{status}, {one_line(message, self.key)}" if message else str(status)
        if "insufficient_quota" in code or "billing" in code:
            return ServerError(f"{self.place} has no quota left for this key ({detail}): see to the account")
        if status in _RETRIED or (status >= 500 and status not in _ABSENT):
            asked = retry_after(error.response.headers)
            return _Again(f"status {detail}", asked, refused=status == 429)
        if status in (401, 403):
            return InputError(
                f"{self.place} refused the key ({detail}): set {self.model.api_key_env} to one that may make batches"
            )
        if status in _ABSENT:
            return _Absent(detail)
        return InputError(
            f"{self.place} refused a batch of {self.model.name} ({detail}): see what it asks for"
        )

    def _no_batches(self, error: Exception) -> InputError:
        return InputError(
            f"{self.place} has no Batch API ({error}): run the same command without --batch, or check base_url"
        )

    def _silent(self, problem: str) -> ServerError:
        return ServerError(
            f"{self.place} failed {self._config.retries + 1} times, lastly with {problem}: batches that it has go on; run the "
            "same command again later"
        )


def _checked(name: object, place: str) -> str:
    """Return a server's name for a thing. Raises ServerError where it is none that could be asked for."""
    good = isinstance(name, str) and 0 < len(name) <= 256 and all("!" <= c <= "~" for c in name)
    if not good or ".." in str(name):
        raise ServerError(f"{place} gave a name that is none: {one_line(ascii(name))}")
    return str(name)
