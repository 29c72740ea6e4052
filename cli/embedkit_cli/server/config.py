"""What a server is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class ServedPath:
    """An index and the name that requests call it by."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what one client can cost; sizes in bytes or characters, times in seconds.

    `bodies` is the size of all requests' bodies together; `drain` bounds what is read and dropped of a body that is
    refused. `queue` counts the texts that may wait for an embedder, `queue_characters` what they have, `searches` the
    searches under way or waiting, `reranks` those of one reranker. `tokens` are those that are read of one request's
    texts. Of one search, over all its tasks: `reranked` hits scored anew, `pieces` chunks in contexts, `meanings` hits
    whose snippet is found by meaning; `snippets` hits of each task have one. `request_timeout` is the time until an
    answer begins; a client that takes nothing of it for `body_timeout` is let go.
    """

    body: int = 8_000_000
    bodies: int = 256_000_000
    search_body: int = 1_000_000
    texts: int = 2048
    text_characters: int = 100_000
    tokens: int = 300_000
    queue: int = 8192
    queue_characters: int = 64_000_000
    searches: int = 256
    reranks: int = 32
    reranked: int = 1000
    pieces: int = 2000
    snippets: int = 100
    meanings: int = 200
    connections: int = 1000
    header_bytes: int = 32_768
    drain: int = 64_000_000
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    request_timeout: float = 60.0
    keep_alive: float = 60.0
    grace: float = 30.0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Say what is served, to whom, and within which limits.

    `rerankers` are what `get_reranker` opens, by the name that requests call it; `keys` are the API keys, none for a server that asks for none; `hosts` the names that a request's Host header may
    give (without port), empty for any; `cors` the origins whose pages may read answers; `refresh` the seconds between
    looks at each index for a new version.
    """

    indexes: tuple[ServedPath, ...] = ()
    embedder: str | None = None
    embedder_options: Mapping[str, Any] = field(default_factory=dict)
    rerankers: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = LOOPBACK
    cors: tuple[str, ...] = ()
    refresh: float = 1.0
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)
