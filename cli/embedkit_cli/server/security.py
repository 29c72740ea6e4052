"""Who may ask: API keys, the Host header against DNS rebinding, the Origin header against other sites' pages."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.errors import ApiError

# What a browser fetches before a person has typed a key; none of it tells anything about an index.
_OPEN = frozenset(("/", "/health", "/ready", "/favicon.ico", "/docs"))
_OPEN_FOLDERS = ("/static/", "/docs/")
Headers = Iterable[tuple[bytes, bytes]]


class Guard:
    """Refuse requests that are not allowed; keys are held as hashes."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = tuple(hashlib.sha256(key.encode()).digest() for key in config.keys)
        self._hosts = frozenset(host.lower() for host in config.hosts)
        self._origins = frozenset(origin.lower() for origin in config.cors)

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError 421, 403 or 401."""
        hosts: list[str] = []
        origin = key = ""
        for name, value in headers:
            if name == b"host":
                hosts.append(value.decode("latin-1").lower())
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"authorization":
                key = value.decode("latin-1")
        if self._hosts:
            self._check_hosts(hosts)
        if origin:
            self._check_origin(origin, hosts)
        if self._keys and path not in _OPEN and not path.startswith(_OPEN_FOLDERS):
            self._check_key(key)

    def _check_hosts(self, hosts: list[str]) -> None:
        if not hosts or not all(_without_port(host) in self._hosts for host in hosts):
            seen = hosts[0][:80] if hosts else ""
            raise ApiError(
                421,
                f"this server does not answer to the host {seen!r}: start it with --allow-host to have it do so",
                code="host_not_allowed",
            )

    def _check_origin(self, origin: str, hosts: list[str]) -> None:
        if origin in self._origins or "*" in self._origins:
            return
        if urlsplit(origin).netloc not in hosts:
            raise ApiError(
                403,
                f"pages of {origin[:80]!r} may not ask this server: start it with --cors to let them",
                code="origin_not_allowed",
            )

    def _check_key(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        told = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # All keys are compared, and all of each: the time tells nothing.
        known = [hmac.compare_digest(told, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            what = "the API key is wrong" if header else "an API key is needed"
            raise ApiError(
                401, f"{what}: send it as Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
