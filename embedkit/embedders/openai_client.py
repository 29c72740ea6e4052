"""One server through the `openai` client: the key, pacing, retries, and an error for every refusal."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import urlsplit

from embedkit.embedders.pacing import Pacer, backoff, retry_after
from embedkit.errors import EmbedderError, InputError, MissingExtraError, ServerError

if TYPE_CHECKING:
    from openai import OpenAI

PUBLIC_URL = "https://api.openai.com/v1"
_RETRIED = (408, 409, 425, 429)


class Connection(Protocol):
    """Say how requests go out; `route` and `advice` (on a refused request) are for its errors alone.

    `longest_wait` bounds the seconds that a `Retry-After` may ask for.
    """

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def base_url(self) -> str: ...  # noqa: D102
    @property
    def requests_per_minute(self) -> float | None: ...  # noqa: D102
    @property
    def tokens_per_minute(self) -> float | None: ...  # noqa: D102
    @property
    def timeout(self) -> float: ...  # noqa: D102
    @property
    def max_retries(self) -> int: ...  # noqa: D102
    @property
    def first_backoff(self) -> float: ...  # noqa: D102
    @property
    def longest_wait(self) -> float: ...  # noqa: D102
    @property
    def route(self) -> str: ...  # noqa: D102
    @property
    def advice(self) -> str: ...  # noqa: D102


class Client:
    """Send requests to one server; threads share it. `what` names the user of it where its extra is missing."""

    def __init__(self, connection: Connection, api_key: str | None, what: str) -> None:
        try:
            from openai import OpenAI
        except ModuleNotFoundError as e:
            raise MissingExtraError(what, "openai") from e
        self._to = connection
        self._place = place_of(connection.base_url)
        self._pacer = Pacer(connection.requests_per_minute, connection.tokens_per_minute)
        self._reached = False
        self._key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY") or "", connection.base_url)
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=connection.base_url,
            timeout=connection.timeout,
            max_retries=0,
        )

    def send(
        self, request: Callable[[OpenAI], Any], tokens: int, stop: threading.Event | None = None
    ) -> bytes:
        """Return the body of the raw answer that `request` gives, retrying what may pass; `stop` ends the waiting.

        Raises EmbedderError for a refusal, ServerError when no try is left.
        """
        stop = stop or threading.Event()
        attempt = 0
        while True:
            if stop.wait(self._pacer.reserve(tokens)):
                raise ServerError("stopped because another request failed")
            content = self._try(request, attempt)
            if isinstance(content, bytes):
                self._reached = True
                return content
            self._pacer.pause(content)
            attempt += 1

    def clean(self, what: object) -> str:
        """Return what a server said on one line, short, and without the key should it echo it."""
        text = " ".join(str(what).split())
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= 200 else text[:199] + "…"

    def _try(self, request: Callable[[OpenAI], Any], attempt: int) -> bytes | float:
        """Return the answer's body, or the seconds to wait before the next try."""
        import openai

        to = self._to
        try:
            return bytes(request(self._client).http_response.content)
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
            problem, asked = f"no answer within timeout={to.timeout:g} s", None
        except openai.APIConnectionError as e:
            problem, asked = f"no connection ({self.clean(e.__cause__ or e)})", None
        except openai.OpenAIError as e:
            raise EmbedderError(f"{self._place}: {self.clean(e)}") from None
        # A server that never answered is more likely absent than busy.
        retries = to.max_retries if self._reached else min(to.max_retries, 1)
        if attempt >= retries:
            raise ServerError(
                f"{self._place} failed {attempt + 1} times, lastly with {problem}: check that it runs, "
                "or try later with a lower requests_per_minute or tokens_per_minute"
            ) from None
        if asked is not None and asked > to.longest_wait:
            raise ServerError(
                f"{self._place} asks to wait {asked:.0f} s ({problem}), more than longest_wait="
                f"{to.longest_wait:g}: try again then"
            ) from None
        return asked if asked else backoff(attempt, to.first_backoff)

    def _refuse(self, status: int, code: str, detail: str) -> NoReturn:
        to = self._to
        if status == 401:
            text = "refused the key (401): set OPENAI_API_KEY, or pass api_key"
        elif status == 404:
            text = (
                f"has no model {to.model!r} or no {to.route} (404{detail}): check the name, and base_url, "
                "which mostly ends in /v1"
            )
        elif "quota" in code:
            text = f"has no quota left for this key ({status}{detail}): see to the account"
        elif status in (400, 413, 422):
            text = f"refused the request ({status}{detail}): {to.advice}"
        else:
            text = f"refused the request ({status}{detail}): check the key's rights and the model's name"
        raise EmbedderError(f"{self._place} {text}") from None

    def _detail(self, error: Any) -> str:
        body = error.body
        message = (
            body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else None
        )
        return f", {self.clean(message)}" if message else ""


def place_of(base_url: str) -> str:
    """Return a server's address as an error may show it: no user, password or query string."""
    parts = urlsplit(base_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def check_url(base_url: str) -> None:
    """Raise InputError for what is no web address."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url is no web address: write it as {PUBLIC_URL}")


def _checked_key(key: str, base_url: str) -> str:
    key = key.strip()
    if not key and urlsplit(base_url).hostname == urlsplit(PUBLIC_URL).hostname:
        raise InputError(
            "no key for api.openai.com: set OPENAI_API_KEY, or pass api_key (or another base_url)"
        )
    if not all("!" <= c <= "~" for c in key):
        raise InputError(f"the API key of {len(key)} characters holds one that no key has: copy it again")
    return key
