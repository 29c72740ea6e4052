"""What the options of `embedkit serve` say, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit_cli.options import given
from embedkit_cli.output import note

if TYPE_CHECKING:
    from embedkit_cli.server.config import Limits, ServedPath

LOCAL = ("127.0.0.1", "localhost", "::1")


def read_limits(client: float | None, **told: float | None) -> Limits:
    """Return the limits, those that were not told as they are by default."""
    from embedkit_cli.server.config import Limits

    limits = given(**told, body_timeout=client)
    if client is not None:
        limits["header_timeout"] = min(client, Limits().header_timeout)
    return Limits(**limits)


def read_keys(key: str | None, path: str | None) -> tuple[str, ...]:
    """Return the API keys of the option, the environment and the file. Raises InputError."""
    from embedkit.errors import InputError

    if key is not None:
        note(
            "a key on the command line is seen by all users of this machine: EMBEDKIT_API_KEY or --api-key-file hides it"
        )
    keys = [k for k in (key, os.environ.get("EMBEDKIT_API_KEY")) if k is not None]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(
                f"--api-key-file {path} cannot be read: {getattr(e, 'strerror', None) or e}"
            ) from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InputError(f"--api-key-file {path} holds no key: write one a line")
        keys += found
    for one in keys:
        if not one.strip() or not one.isascii() or any(c.isspace() for c in one):
            raise InputError("an API key is empty, or holds spaces or letters outside ASCII: choose another")
    return tuple(keys)


def read_hosts(address: str, told: Sequence[str], with_key: bool) -> tuple[str, ...]:
    """Return the names to answer to; none, for any, where no page could know the key. Raises InputError."""
    import re
    import socket

    from embedkit.errors import InputError
    from embedkit_cli.server.config import LOOPBACK

    for name in told:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", name, re.ASCII):
            raise InputError(
                f"--allow-host {name!r} is no name of a host: write it without scheme, port and path, as in box.example"
            )
    if address in LOCAL:
        return (*LOOPBACK, *told)
    if with_key:
        return tuple(told)
    own = socket.gethostname().partition(".")
    return (*LOOPBACK, address, "".join(own), own[0], f"{own[0]}.local", *told)


def read_origins(told: Sequence[str]) -> tuple[str, ...]:
    """Return origins as browsers write them. Raises InputError."""
    import re

    from embedkit.errors import InputError

    out = []
    for text in told:
        found = re.fullmatch(
            r"([a-z][a-z0-9+.-]*)://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?", text.lower(), re.ASCII
        )
        if text != "*" and found is None:
            raise InputError(
                f"--cors {text!r} is no origin: write scheme, host and port alone, as in https://example.org:8443, or *"
            )
        usual = {"http": ":80", "https": ":443"}.get(found[1], "") if found else ""
        out.append(text.lower().removesuffix(usual))
    return tuple(out)


def read_rerankers(told: Sequence[str]) -> dict[str, str]:
    """Return the rerankers by the names that requests call them. Raises InputError."""
    from embedkit.errors import InputError

    out: dict[str, str] = {}
    for text in told:
        # A model's own name may hold an equals sign; a name that requests use holds neither that nor a path.
        name, equals, model = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, model = Path(text).name, text
        if not name or not model:
            raise InputError(f"--rerank {text!r} names no model: write MODEL or NAME=MODEL")
        if name in out:
            raise InputError(f"two rerankers are called {name!r}: write NAME=MODEL for one of them")
        out[name] = model
    return out


def read_paths(named: Sequence[str]) -> tuple[ServedPath, ...]:
    """Return the indexes under their names. Raises InputError, and what reading their manifests raises."""
    from embedkit.errors import InputError
    from embedkit_cli.server.config import ServedPath
    from embedkit_indexes.manifest import Manifest

    out: dict[str, ServedPath] = {}
    for text in named:
        name, equals, directory = text.partition("=")
        # A directory whose own name holds an equals sign is that directory.
        if equals and directory and not Path(text).exists():
            path = Path(directory)
        else:
            path = Path(text)
            name = _last_name(path)
        if not name:
            raise InputError(f"{text!r} names no index: write DIR or NAME=DIR")
        Manifest.read(path)
        if name in out:
            raise InputError(
                f"two indexes are called {name!r}: name one of them otherwise, as in other={path}"
            )
        # Not where a link leads now: one that is switched is a new version.
        out[name] = ServedPath(name, path.absolute())
    return tuple(out.values())


def _last_name(path: Path) -> str:
    name = path.absolute().name
    return Path(os.path.realpath(path)).name if name == ".." else name
