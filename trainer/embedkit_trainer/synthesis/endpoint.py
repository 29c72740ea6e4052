"""Where a model is served: its key, its address, the client that speaks to it, the body of a request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from embedkit.errors import InputError, MissingExtraError
from embedkit_trainer.synthesis.settings import PUBLIC_URL, ModelConfig


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


def open_client(model: ModelConfig, key: str, timeout: float) -> Any:
    """Return an `openai.AsyncOpenAI`, which retries nothing by itself. Raises MissingExtraError."""
    try:
        import openai
    except ModuleNotFoundError as e:
        raise MissingExtraError("synthesis", "synth") from e
    common: dict[str, Any] = {"api_key": key or "none", "timeout": timeout, "max_retries": 0}
    if model.api_version is not None:
        return openai.AsyncAzureOpenAI(azure_endpoint=model.base_url, api_version=model.api_version, **common)
    return openai.AsyncOpenAI(base_url=model.base_url, **common)


def copy_client(client: Any) -> Any:
    """Return the same client with connections of its own."""
    import openai

    return client.copy(
        http_client=openai.DefaultAsyncHttpxClient(base_url=client.base_url, timeout=client.timeout)
    )
