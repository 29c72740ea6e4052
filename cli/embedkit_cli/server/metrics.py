"""What /metrics tells: counters and histograms whose labels are routes and statuses alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """One server's figures, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        self.requests = Counter("embedkit_requests", "Requests answered.", ["route", "status"], **own)
        self.latency = Histogram(
            "embedkit_request_seconds",
            "Seconds from a request's arrival to its answer.",
            ["route"],
            buckets=_SECONDS,
            **own,
        )
        self.under_way = Gauge("embedkit_requests_under_way", "Requests that are being answered.", **own)
        self.rejected = Counter("embedkit_rejected", "Requests refused because a queue was full.", **own)
        self.batch_texts = Histogram(
            "embedkit_batch_texts", "Texts in one call of an embedder.", buckets=_TEXTS, **own
        )
        self.batch_seconds = Histogram(
            "embedkit_batch_seconds", "Seconds of one call of an embedder.", buckets=_SECONDS, **own
        )
        self.texts = Counter("embedkit_texts", "Texts encoded.", **own)
        self.tokens = Counter("embedkit_tokens", "Tokens of the texts sent to /v1/embeddings.", **own)
        self.truncated = Counter("embedkit_truncated_tokens", "Tokens beyond what the embedder reads.", **own)
        self.swaps = Counter("embedkit_index_versions", "New versions of an index that were taken up.", **own)

        # To look a label's child up costs as much as to count.
        self._requests: dict[tuple[str, int], Counter] = {}
        self._latency: dict[str, Histogram] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Note an answer; `route` and `status` are few."""
        try:
            requests, latency = self._requests[route, status], self._latency[route]
        except KeyError:
            requests = self._requests[route, status] = self.requests.labels(route, str(status))
            latency = self._latency[route] = self.latency.labels(route)
        requests.inc()
        latency.observe(seconds)
        if status == 429:
            self.rejected.inc()

    def watch(self, waiting: Callable[[], int], searching: Callable[[], int]) -> None:
        """Read queue lengths when they are asked for."""
        queue = Gauge("embedkit_queue_texts", "Texts that wait for an embedder.", registry=self.registry)
        queue.set_function(waiting)
        searches = Gauge(
            "embedkit_searches_under_way", "Searches under way or waiting.", registry=self.registry
        )
        searches.set_function(searching)

    def batch(self, texts: int, seconds: float) -> None:
        """Note one call of an embedder."""
        self.batch_texts.observe(texts)
        self.batch_seconds.observe(seconds)
        self.texts.inc(texts)

    def text(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)
