"""Pace requests to a remote server: a client-side rate limit, and the wait before another try."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


class Pacer:
    """Space requests evenly, so that neither requests nor tokens go above their rate per minute.

    Threads share one pacer; a pause that the server asks of one holds all of them.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, tokens: int) -> float:
        """Book a request of `tokens` tokens and return the seconds to wait before sending it."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + max(self._per_request, tokens * self._per_token)
            return start - now

    def pause(self, seconds: float) -> None:
        """Let no request start within the next `seconds`."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)


def backoff(attempt: int, first: float, longest: float = 30.0) -> float:
    """Return the seconds to wait after failed try `attempt` (from 0): doubling, with jitter downwards."""
    return float(min(longest, first * 2.0**attempt) * random.uniform(0.5, 1.0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` (a number or a date) or `retry-after-ms` asks for, or None."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None
