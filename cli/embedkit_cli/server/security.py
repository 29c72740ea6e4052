"""Who may ask: API keys, the Host header against DNS rebinding, the Origin header against other sites' pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.errors import ApiError, log

# What a browser fetches before a person has typed a key; none of it tells anything about an index.
_OPEN = frozenset(("/", "/health", "/ready", "/favicon.ico", "/docs"))
_OPEN_FOLDERS = ("/static/", "/docs/")
# Hosts and origins that the log names the option for: no more than a person reads.
_MOST_HINTS = 20
Headers = Iterable[tuple[bytes, bytes]]


class Guard:
    """Refuse requests that are not allowed; keys are held as hashes."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = tuple(hashlib.sha256(key.encode()).digest() for key in config.keys)
        self._hosts = frozenset(host.lower() for host in config.hosts)
        self._origins = frozenset(origin.lower() for origin in config.cors)
        self._hinted: set[str] = set()

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError 421, 403 or 401."""
        hosts: list[str] = []
        origin = key = site = ""
        for name, value in headers:
            if name == b"host":
                hosts.append(value.decode("latin-1").lower())
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"authorization":
                key = value.decode("latin-1")
            elif name == b"sec-fetch-site":
                site = value.decode("latin-1")
        public = path in _OPEN or path.startswith(_OPEN_FOLDERS)
        if self._hosts:
            self._check_hosts(hosts)
        if origin:
            self._check_origin(origin, hosts)
        elif site == "cross-site" and not public and "*" not in self._origins:
            # An image or a frame of another site's page, which names no origin.
            raise ApiError(403, "other sites' pages may not ask this server", code="origin_not_allowed")
        if self._keys and not public:
            self._check_key(key)

    def _check_hosts(self, hosts: list[str]) -> None:
        if hosts and all(self._known(_without_port(host)) for host in hosts):
            return
        seen = hosts[0][:80] if hosts else ""
        self._hint(f"--allow-host adds a name that the server answers to; it was asked as {seen!r}")
        raise ApiError(421, f"this server does not answer to the host {seen!r}", code="host_not_allowed")

    def _known(self, name: str) -> bool:
        if name in self._hosts:
            return True
        # No name, so none that a page's own server can point here.
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _check_origin(self, origin: str, hosts: list[str]) -> None:
        if origin in self._origins or "*" in self._origins:
            return
        own = origin.partition("://")[2]
        if not own or own not in hosts:
            self._hint(f"--cors lets another site's pages ask; a page of {origin[:80]!r} did")
            raise ApiError(
                403, f"pages of {origin[:80]!r} may not ask this server", code="origin_not_allowed"
            )

    def _hint(self, sentence: str) -> None:
        if sentence not in self._hinted and len(self._hinted) < _MOST_HINTS:
            self._hinted.add(sentence)
            log.warning("%s", sentence)

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
