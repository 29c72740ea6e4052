"""The files of the Batch API: requests as they are uploaded, and answers as they come back, of which nothing is trusted."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from embedkit_trainer.data.files import store_error
from embedkit_trainer.synthesis.chat import LARGEST_BODY

URL = "/v1/chat/completions"
#: A line holds an answer in JSON within JSON.
_LONGEST_LINE = LARGEST_BODY + (64 << 10)
_ID = re.compile(r"request-(0|[1-9][0-9]{0,11})")
_HEAD = re.compile(rb'\{\s*(?:"id":\s*"[^"\\]{0,200}",\s*)?"custom_id":\s*"([^"\\]{0,100})"')


class Draft:
    """Write the requests of a batch to come. Raises StoreError."""

    def __init__(self, key: str, path: Path) -> None:
        self.key, self.path = key, path
        self.numbers: list[int] = []
        self.size = self.tokens_in = self.tokens_out = 0
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as e:
            raise store_error(path, e) from e

    def add(self, number: int, line: bytes, tokens_in: int, tokens_out: int) -> None:
        """Write a request's line."""
        try:
            self._file.write(line)
        except OSError as e:
            raise store_error(self.path, e) from e
        self.numbers.append(number)
        self.size += len(line)
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def close(self) -> None:
        """Return once the file would outlast a power cut."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as e:
            raise store_error(self.path, e) from e

    def discard(self) -> None:
        """Take the file away."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def request_line(number: int, body: dict[str, Any]) -> bytes:
    """Return a request as a line of an uploaded file."""
    line = {"custom_id": f"request-{number}", "method": "POST", "url": URL, "body": body}
    return json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n"


@dataclass(frozen=True, slots=True)
class Line:
    """Hold what a server said of one request: an answer where `status` is 200, else why there is none.

    `body` is None where nothing of it can be read, or where it is `too_large`.
    """

    number: int
    status: int
    body: dict[str, Any] | None = None
    code: str = ""
    problem: object = ""
    too_large: bool = False


@dataclass(slots=True)
class Lines:
    """Read lines of a batch with these `numbers`, each once; `unread` counts by kind what is not taken."""

    numbers: Container[int]
    seen: set[int] = field(default_factory=set)
    unread: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path) -> Iterator[Line]:
        """Yield the lines of a file for requests that were not seen yet."""
        with path.open("rb") as f:
            while raw := f.readline(_LONGEST_LINE):
                cut = rest = not raw.endswith(b"\n") and len(raw) == _LONGEST_LINE
                while rest:
                    more = f.readline(_LONGEST_LINE)
                    rest = not more.endswith(b"\n") and len(more) == _LONGEST_LINE
                if not raw.strip():
                    continue
                line = self._line(raw, cut)
                if line is not None:
                    yield line

    def _line(self, raw: bytes, cut: bool) -> Line | None:
        value: Any = None
        if cut:
            head = _HEAD.match(raw)
            name: object = head[1].decode(errors="replace") if head else None
        else:
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                value = None
            name = value.get("custom_id") if isinstance(value, dict) else None
        if not isinstance(name, str):
            self.unread["no-json"] += 1
            return None
        found = _ID.fullmatch(name)
        number = int(found[1]) if found else -1
        if number not in self.numbers:
            self.unread["unknown-id"] += 1
            return None
        if number in self.seen:
            self.unread["repeated-id"] += 1
            return None
        self.seen.add(number)
        return Line(number, 200, too_large=True) if cut else _parsed(number, value)


def _parsed(number: int, value: dict[str, Any]) -> Line:
    response, error = value.get("response"), value.get("error")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code"), response.get("body")
    status = status if isinstance(status, int) else 0
    body = body if isinstance(body, dict) else None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        error = error or body["error"]
    found = error if isinstance(error, dict) else {}
    problem = found.get("message") or (error if isinstance(error, str) else "")
    if error and status == 200:
        status = 0
    return Line(number, status, body, str(found.get("code") or ""), problem)
