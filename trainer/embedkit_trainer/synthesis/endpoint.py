"""Where a model is served: its key, its address, the client that speaks to it, the body of a request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.synthesis.settings import PUBLIC_URL, ModelConfig

#: What openai sends with, by version.
_TRANSPORTS = ("aiohttp", "httpx", "httpx2", "httpcore", "httpcore2")
#: What these call a connection that never came about.
_UNREACHED = ("ClientConnectorError", "ConnectError")


def place_of(model: ModelConfig) -> str:
    """Return a server's address as an error may show it: no user, password or query string."""
    parts = urlsplit(model.base_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def find_key(model: ModelConfig) -> str:
    """Return a model's key, "" where its server needs none. Raises InputError."""
    key = os.environ.get(model.api_key_env, "").strip()
    own = urlsplit(model.base_url).hostname != urlsplit(PUBLIC_URL).hostname
    if not key and not (own and model.api_key_env == "OPENAI_API_KEY" and model.api_version is None):
        raise InputError(
            f"no key for {urlsplit(model.base_url).hostname}: set {model.api_key_env}, or base_url to another server"
        )
    if not all("!" <= c <= "~" for c in key):
        raise InputError(f"the key in {model.api_key_env} holds a character that no key has: copy it again")
    return key


def request_body(
    model: ModelConfig, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what is posted to /chat/completions; `schema` is None where no structured output is asked for."""
    body: dict[str, Any] = {
        "model": model.name,
        "messages": list(messages),
        "temperature": model.temperature,
        "top_p": model.top_p,
        model.limit_name: model.max_tokens,
        **model.extra_body,
    }
    if schema is not None:
        wrapped = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    return body


def open_client(model: ModelConfig, key: str, timeout: float, connections: int = 16) -> Any:
    """Return an `openai.AsyncOpenAI`, which retries nothing by itself. Raises MissingExtraError."""
    try:
        import openai
        from openai import DEFAULT_CONNECTION_LIMITS, DefaultAioHttpClient

        limits = type(DEFAULT_CONNECTION_LIMITS)(max_connections=connections)
        # A request over aiohttp takes little more than half the CPU; it knows no SOCKS.
        socks = any(proxy.startswith("socks") for proxy in getproxies().values())
        http = None if socks else DefaultAioHttpClient(timeout=timeout, limits=limits)
    except (ImportError, RuntimeError) as e:  # openai's own where aiohttp is missing
        raise MissingExtraError("synthesis", "synth") from e
    common: dict[str, Any] = {
        "api_key": key or "none",
        "timeout": timeout,
        "max_retries": 0,
        "http_client": http,
    }
    try:
        if model.api_version is not None:
            return openai.AsyncAzureOpenAI(
                azure_endpoint=model.base_url, api_version=model.api_version, **common
            )
        return openai.AsyncOpenAI(base_url=model.base_url, **common)
    except ImportError as e:
        raise InputError(
            "the environment names a SOCKS proxy (ALL_PROXY or the like): pip install socksio, or unset it"
        ) from e


def is_of_transport(error: Exception) -> bool:
    """Tell whether an error comes from beneath openai, as those do that interrupt the reading of an answer."""
    return type(error).__module__.split(".")[0] in _TRANSPORTS


def what_broke(error: BaseException, timeout: float) -> tuple[str, bool]:
    """Return why there is no answer, and whether the server may have got the request.

    The class of openai's error says little: over aiohttp it calls a refused connection a timeout.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    if any(kind.__name__ in _UNREACHED for e in chain for kind in type(e).__mro__):
        return f"no connection ({chain[-1]})", False
    if any(isinstance(e, TimeoutError) for e in chain):
        return f"no answer within timeout = {timeout:g} s", True
    return f"a connection that broke off ({type(chain[-1]).__name__})", True
