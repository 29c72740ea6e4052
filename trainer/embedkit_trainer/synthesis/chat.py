"""What a server says in a chat completion: the text, why it ended there, the tokens it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedkit_trainer.synthesis.answers import Reason, Rejected
from embedkit_trainer.synthesis.budget import count_tokens

#: No answer of a model is larger; the rest of it is not read.
LARGEST_BODY = 1 << 20
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Completion:
    """Hold a model's text and why it ended there."""

    text: str
    finish_reason: str


class Malformed(ValueError):
    """Say that an answer holds no choices."""


def read_completion(answer: Mapping[str, Any], key: str = "") -> Completion:
    """Return a model's text. Raises Malformed, and Rejected where the model or the server declined.

    `key` is taken out of what a refusal says.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text, reason = message.get("content"), choice.get("finish_reason") or "stop"
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Malformed from None
    if refusal or reason == "content_filter":
        raise Rejected(Reason.REFUSAL, one_line(refusal or "the server's content filter stopped it", key))
    return Completion(text if isinstance(text, str) else "", str(reason))


def read_usage(answer: Mapping[str, Any], estimated_in: int) -> tuple[int, int]:
    """Return the tokens in and out that the server counted, estimates where it did not."""
    usage = answer.get("usage")
    found = [
        usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")
    ]
    tokens_in, tokens_out = (n if isinstance(n, int) and 0 <= n < 10**9 else None for n in found)
    if tokens_out is None:
        tokens_out = count_tokens(json.dumps(answer.get("choices"), ensure_ascii=False, default=str))
    return estimated_in if tokens_in is None else tokens_in, tokens_out


def one_line(what: object, key: str = "") -> str:
    """Return what a server said on one line, short, and without the key should it echo it."""
    shown = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
    text = " ".join(shown.split())
    if key:
        text = text.replace(key, "***")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def message_of(body: object) -> object:
    """Return what an error's body says, None where it says nothing."""
    return body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else None
