"""Strict reading of what a model wrote: one JSON object of known fields, or a reason why not. Nothing is evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

#: An answer beyond this many bytes is not read.
LARGEST = 64 * 1024
_TRIES = 16
_ECHO_WORDS = 12
_LONGEST_TASK = 600
#: What reasoning models write before their answer, where the server leaves it in.
_THOUGHTS = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)
_FENCE = "```"
#: Control characters but for tab and line feed, halves of surrogate pairs, private use.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\U000f0000-\U0010ffff]")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very )?sorry\b|i am (very )?sorry\b|sorry, (but )?i\b|i can(['’]t|not| not) (help|assist|fulfil|comply|provide|create|generate)"
    r"|i['’]?m (unable|not able) to\b|i am (unable|not able) to\b|as an ai\b|i won['’]t\b)",
    re.IGNORECASE,
)


class Reason(StrEnum):
    """Say why an answer was not taken; the value is what files and reports hold."""

    EMPTY = "empty"
    TOO_LARGE = "too-large"
    TRUNCATED = "truncated"
    NO_JSON = "no-json"
    WRONG_SCHEMA = "wrong-schema"
    EMPTY_FIELD = "empty-field"
    CONTROL_CHARACTERS = "control-characters"
    PROMPT_ECHO = "prompt-echo"
    SAME_TEXT = "same-text"
    REFUSAL = "refusal"
    SERVER = "server"


class Rejected(Exception):
    """Carry why an answer was not taken; `detail` is a sentence for people and for a repair request."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def parse_example(
    text: str, fields: Sequence[str], prompt: str, finish_reason: str = "stop"
) -> dict[str, str]:
    """Return an answer's fields, texts stripped. Raises Rejected.

    Code fences, thoughts before the answer, and prose around one object are cut off. `prompt` is compared with, to find echoes.
    """
    value = _object(text, finish_reason)
    if set(value) != set(fields):
        raise Rejected(Reason.WRONG_SCHEMA, _difference(value, fields))
    answer = {name: _text(value[name], name) for name in fields}
    request = _Request(prompt)
    for name, field in answer.items():
        if _REFUSAL.search(field) and len(field) < 300:
            raise Rejected(Reason.REFUSAL, f"the field {name!r} holds a refusal")
        if request.is_echoed_by(field):
            raise Rejected(Reason.PROMPT_ECHO, f"the field {name!r} repeats words of the request")
    if len({field.casefold() for field in answer.values()}) < len(answer):
        raise Rejected(Reason.SAME_TEXT, "two fields hold the same text")
    return answer


def parse_tasks(text: str, prompt: str, finish_reason: str = "stop") -> list[str]:
    """Return the task definitions of a brainstorm's answer, each on one line. Raises Rejected."""
    value = _object(text, finish_reason)
    if set(value) != {"tasks"}:
        raise Rejected(Reason.WRONG_SCHEMA, _difference(value, ("tasks",)))
    tasks = value["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise Rejected(Reason.WRONG_SCHEMA, "the field 'tasks' must be a list of at least one text")
    request = _Request(prompt)
    found = [" ".join(_text(task, f"tasks[{i}]").split()) for i, task in enumerate(tasks)]
    for task in found:
        if len(task) > _LONGEST_TASK:
            raise Rejected(Reason.WRONG_SCHEMA, f"a task must not exceed {_LONGEST_TASK} characters")
        if _REFUSAL.search(task):
            raise Rejected(Reason.REFUSAL, "a task holds a refusal")
        if request.is_echoed_by(task):
            raise Rejected(Reason.PROMPT_ECHO, "a task repeats words of the request")
    return found


def read_numbers(text: str, finish_reason: str, name: str) -> list[Any]:
    """Return the list that is the answer's one field; what is in it is not looked at. Raises Rejected."""
    value = _object(text, finish_reason)
    if set(value) != {name} or not isinstance(value[name], list):
        raise Rejected(Reason.WRONG_SCHEMA, f"the one field must be {name!r}, a list of numbers")
    return list(value[name])


def _object(text: str, finish_reason: str) -> dict[str, Any]:
    if len(text.encode(errors="replace")) > LARGEST:
        raise Rejected(Reason.TOO_LARGE, f"the answer exceeds {LARGEST // 1024} kB")
    if not text.strip():
        reason = Reason.TRUNCATED if finish_reason == "length" else Reason.EMPTY
        raise Rejected(reason, "the answer is empty")
    text = _THOUGHTS.sub("", text)
    found = list(_candidates(text))
    if len(found) > 1:
        raise Rejected(Reason.WRONG_SCHEMA, "the answer holds several JSON objects: one is expected")
    if found:
        return found[0]
    if finish_reason == "length":
        raise Rejected(Reason.TRUNCATED, "the answer was cut off before its end")
    if _REFUSAL.search(text):
        raise Rejected(Reason.REFUSAL, "the model declined")
    if "{" in text and "}" not in text.rsplit("{", 1)[1]:
        raise Rejected(Reason.TRUNCATED, "the JSON object has no end")
    raise Rejected(Reason.NO_JSON, "the answer holds no JSON object")


def _candidates(text: str) -> Iterable[dict[str, Any]]:
    """Yield the JSON objects of an answer: the whole, what is fenced, or what stands in prose."""
    whole = _decoded(text.strip())
    if whole is not None:
        return [whole]
    # Every second part stands in fences, its first line may name a language. A pattern would take n squared steps.
    parts = text.split(_FENCE)[1 : 2 * _TRIES : 2]
    fenced = [value for part in parts if (value := _decoded(part[part.find("{") :].strip())) is not None]
    return fenced or _in_prose(text)


def _in_prose(text: str) -> Iterable[dict[str, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    at = 0
    for _ in range(_TRIES):
        at = text.find("{", at)
        if at < 0:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict):
            yield value


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise Rejected(Reason.WRONG_SCHEMA, "a field occurs twice")
    return value


def _difference(value: dict[str, Any], fields: Sequence[str]) -> str:
    missing = [name for name in fields if name not in value]
    if missing:
        return f"the field {missing[0]!r} is missing: expected {', '.join(fields)}"
    return f"there is a field that was not asked for: expected {', '.join(fields)} alone"


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Rejected(Reason.WRONG_SCHEMA, f"the field {name!r} must be a text")
    text = value.replace("\r\n", "\n").strip()
    if not any(c.isalnum() for c in text):
        raise Rejected(Reason.EMPTY_FIELD, f"the field {name!r} is empty")
    if _CONTROL.search(text):
        raise Rejected(Reason.CONTROL_CHARACTERS, f"the field {name!r} holds control characters")
    return text


class _Request:
    """Find the words of a request in its answer."""

    def __init__(self, prompt: str) -> None:
        self._words = prompt.casefold().split()
        self._known = set(self._words)

    def is_echoed_by(self, text: str) -> bool:
        words = text.casefold().split()
        streak = 0
        for word in words:  # most answers have no such streak, and runs are slow to compare
            streak = streak + 1 if word in self._known else 0
            if streak == _ECHO_WORDS:
                return not _runs(self._words).isdisjoint(_runs(words))
        return False


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + _ECHO_WORDS]) for i in range(len(words) - _ECHO_WORDS + 1)}
