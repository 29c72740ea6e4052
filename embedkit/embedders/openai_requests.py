"""Send embedding requests through the `openai` client: pacing, retries, checks of the answer, clear errors."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from embedkit.embedders.pacing import Pacer, backoff, retry_after
from embedkit.errors import EmbedderError, InputError, MissingExtraError, ServerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "document"]
PUBLIC_URL = "https://api.openai.com/v1"
_RETRIED = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Remote:
    """Say how requests go out. Nothing here is secret: the key lives in the client alone.

    `batch_size` texts or about `tokens_per_request` tokens make a request (OpenAI's ceiling is 300,000, and
    the estimate runs low outside English); `concurrency` of them are under way at a time. `dimensions` is
    sent, to get shorter vectors. `extra_body` joins every request (`{"truncate": True}` for TEI);
    `input_types` are the values of `input_type` for queries and documents where `send_input_type` is set.
    `longest_wait` bounds the seconds that a `Retry-After` may ask for.
    """

    model: str
    base_url: str = PUBLIC_URL
    dimensions: int | None = None
    max_length: int = 8191
    batch_size: int = 128
    tokens_per_request: int = 100_000
    concurrency: int = 4
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 60.0
    max_retries: int = 6
    first_backoff: float = 0.5
    longest_wait: float = 120.0
    encoding: Literal["base64", "float"] = "base64"
    send_input_type: bool = False
    input_types: tuple[str, str] = ("query", "document")
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the openai embedder needs a model: write openai:text-embedding-3-small")
        for name in (
            *("dimensions", "max_length", "batch_size", "tokens_per_request", "concurrency"),
            *("requests_per_minute", "tokens_per_minute", "timeout"),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise InputError(f"{name} is {value!r}: give a number above 0")
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise InputError(f"max_retries is {self.max_retries!r}: give 0 or more")
        if not isinstance(self.extra_body, Mapping):
            raise InputError(
                f"extra_body is {self.extra_body!r}: give fields by name, such as {{'truncate': true}}"
            )
        if len(self.input_types) != 2 or isinstance(self.input_types, str):
            raise InputError(f"input_types is {self.input_types!r}: give two, such as ['query', 'passage']")
        if self.encoding not in ("base64", "float"):
            raise InputError(f"encoding is {self.encoding!r}: give 'base64' or 'float'")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"base_url is no web address: write it as {PUBLIC_URL}")

    @property
    def identity(self) -> str:
        """What stands for the weights in the fingerprint: the model's name and what alters its documents.

        The host is left out, so that a server may move; an index's probe vectors are checked besides.
        """
        document_type = self.input_types[1] if self.send_input_type else None
        if document_type is None and not self.extra_body:
            return f"remote:{self.model}"
        altering = json.dumps([document_type, dict(self.extra_body)], sort_keys=True)
        return f"remote:{self.model}+{hashlib.sha256(altering.encode()).hexdigest()[:12]}"

    @property
    def place(self) -> str:
        """The server's address as an error may show it: no user, password or query string."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


class Requests:
    """Send texts to one server; threads share it."""

    def __init__(self, remote: Remote, api_key: str | None) -> None:
        try:
            from openai import OpenAI
        except ModuleNotFoundError as e:
            raise MissingExtraError("the openai embedder", "openai") from e
        self._remote = remote
        self._pacer = Pacer(remote.requests_per_minute, remote.tokens_per_minute)
        self._reached = False
        self._key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY") or "", remote)
        self._client = OpenAI(
            api_key=self._key or "none", base_url=remote.base_url, timeout=remote.timeout, max_retries=0
        )

    def send(
        self, texts: Sequence[str], role: Role, dim: int | None = None, stop: threading.Event | None = None
    ) -> NDArray[np.float32]:
        """Return the vectors of one batch in order, retrying what may pass; `stop` ends the waiting.

        Raises EmbedderError for a refusal or a wrong answer, ServerError when no try is left.
        """
        stop = stop or threading.Event()
        tokens = sum(2 + len(text.encode()) // 4 for text in texts)
        attempt = 0
        while True:
            if stop.wait(self._pacer.reserve(tokens)):
                raise ServerError("stopped because another request failed")
            content = self._try(texts, role, attempt)
            if isinstance(content, bytes):
                self._reached = True
                return self._vectors(content, len(texts), dim)
            self._pacer.pause(content)
            attempt += 1

    def _try(self, texts: Sequence[str], role: Role, attempt: int) -> bytes | float:
        """Return the answer's body, or the seconds to wait before the next try."""
        import openai

        remote = self._remote
        body = dict(remote.extra_body)
        if remote.send_input_type:
            body["input_type"] = remote.input_types[role == "document"]
        try:
            answer = self._client.embeddings.with_raw_response.create(
                input=list(texts),
                model=remote.model,
                encoding_format=remote.encoding,
                dimensions=remote.dimensions or openai.NOT_GIVEN,  # type: ignore[arg-type]
                extra_body=body or None,
            )
            return bytes(answer.http_response.content)
        # `from None`: a cause may carry the request with its key into a traceback.
        except openai.APIStatusError as e:
            self._reached = True
            status, code = e.status_code, str(getattr(e, "code", "") or "")
            detail = self._detail(e)
            if (status not in _RETRIED and status < 500) or "quota" in code:
                self._refuse(status, code, detail)
            problem = f"status {status}{detail}"
            asked = retry_after(e.response.headers)
        except openai.APITimeoutError:
            problem, asked = f"no answer within timeout={remote.timeout:g} s", None
        except openai.APIConnectionError as e:
            problem, asked = f"no connection ({self._clean(e.__cause__ or e)})", None
        except openai.OpenAIError as e:
            raise EmbedderError(f"{remote.place}: {self._clean(e)}") from None
        # A server that never answered is more likely absent than busy.
        retries = remote.max_retries if self._reached else min(remote.max_retries, 1)
        if attempt >= retries:
            raise ServerError(
                f"{remote.place} failed {attempt + 1} times, lastly with {problem}: check that it runs, "
                "or try later with a lower requests_per_minute or tokens_per_minute"
            ) from None
        if asked is not None and asked > remote.longest_wait:
            raise ServerError(
                f"{remote.place} asks to wait {asked:.0f} s ({problem}), more than longest_wait="
                f"{remote.longest_wait:g}: try again then"
            ) from None
        return asked if asked else backoff(attempt, remote.first_backoff)

    def _refuse(self, status: int, code: str, detail: str) -> NoReturn:
        remote = self._remote
        if status == 401:
            text = "refused the key (401): set OPENAI_API_KEY, or pass api_key"
        elif status == 404:
            text = (
                f"has no model {remote.model!r} or no /embeddings (404{detail}): check the name, and base_url, "
                "which mostly ends in /v1"
            )
        elif "quota" in code:
            text = f"has no quota left for this key ({status}{detail}): see to the account"
        elif status in (400, 413, 422):
            text = (
                f"refused the request ({status}{detail}): shorter texts (max_length={remote.max_length}) or "
                f"fewer of them (batch_size={remote.batch_size}) may help"
            )
        else:
            text = f"refused the request ({status}{detail}): check the key's rights and the model's name"
        raise EmbedderError(f"{remote.place} {text}") from None

    def _detail(self, error: Any) -> str:
        body = error.body
        message = (
            body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else None
        )
        return f", {self._clean(message)}" if message else ""

    def _clean(self, what: object) -> str:
        """Return what a server said on one line, short, and without the key should it echo it."""
        text = " ".join(str(what).split())
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= 200 else text[:199] + "…"

    def _vectors(self, content: bytes, count: int, dim: int | None) -> NDArray[np.float32]:
        import numpy as np

        place = self._remote.place
        try:
            items = json.loads(content)["data"]
            order = [item.get("index") for item in items]
            rows = [_floats(item["embedding"]) for item in items]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            start = self._clean(content[:80].decode(errors="replace"))
            raise EmbedderError(
                f"{place} answered with no list of embeddings ({type(e).__name__} in {start!r}): check base_url"
            ) from None
        if len(rows) != count:
            raise EmbedderError(f"{place} returned {len(rows)} vectors for {count} texts: nothing was stored")
        if order == [None] * count:
            order = list(range(count))
        if sorted(order, key=str) != sorted(range(count), key=str):
            raise EmbedderError(
                f"{place} numbered its {count} vectors wrongly ({order[:8]}): nothing was stored"
            )
        sizes = {len(row) for row in rows}
        if len(sizes) > 1 or (dim is not None and sizes != {dim}):
            raise EmbedderError(
                f"{place} returned vectors of {', '.join(map(str, sorted(sizes)))} dimensions, expected "
                f"{dim or 'one size'}: another model may answer to {self._remote.model!r}, or dim is wrong "
                "(`dimensions` asks for shorter vectors)"
            )
        out = np.empty((count, sizes.pop()), np.float32)
        out[order] = rows
        return out


def _floats(embedding: Any) -> NDArray[np.float32]:
    """Return one vector; a server that knows no base64 answers with a list, whatever it was asked for."""
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError(vector.shape)
    return vector


def _checked_key(key: str, remote: Remote) -> str:
    key = key.strip()
    if not key and urlsplit(remote.base_url).hostname == urlsplit(PUBLIC_URL).hostname:
        raise InputError(
            "no key for api.openai.com: set OPENAI_API_KEY, or pass api_key (or another base_url)"
        )
    if not all("!" <= c <= "~" for c in key):
        raise InputError(f"the API key of {len(key)} characters holds one that no key has: copy it again")
    return key
