"""`embedkit serve`: indexes and embedders over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import Size, debug_option, embedder_options, given, parse_pairs
from embedkit_cli.output import note

if TYPE_CHECKING:
    from embedkit_cli.server.config import Limits, ServedPath, ServerConfig

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("indexes", metavar="[INDEX]…", nargs=-1)
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--api-key",
    "api_key",
    metavar="KEY",
    help="Key that requests must bear; better in EMBEDKIT_API_KEY, where other users of the machine do not see it.",
)
@click.option("--api-key-file", metavar="FILE", help="File of keys, one a line.")
@click.option(
    "--insecure", is_flag=True, help="Listen on another address than this machine's own without a key."
)
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True, help="Further name that the server answers to."
)
@click.option(
    "--cors",
    metavar="ORIGIN",
    multiple=True,
    help="Let pages of this origin read answers, such as https://example.org.",
)
@click.option(
    "--refresh",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look for a new version of each index.",
)
@click.option(
    "--rerank",
    "rerankers",
    metavar="[NAME=]MODEL",
    multiple=True,
    help="Reranker that searches may name: a cross-encoder (folder or Hugging Face id), llm:MODEL@URL, or embedder:NAME.",
)
@click.option("--access-log", is_flag=True, help="Log every request.")
@click.option(
    "--max-body", type=Size(), default=None, metavar="SIZE", help="Largest body of a request; else 8MB."
)
@click.option(
    "--max-texts",
    type=click.IntRange(min=1),
    metavar="N",
    help="Texts that one request may embed; else 2048.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that the texts of one request may have, of each as many as the model reads; else 300000.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    metavar="N",
    help="Texts that may wait for an embedder, above which requests get 429; else 8192.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Time for an answer; else 60."
)
@click.option(
    "--client-timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Time for a client to send its headers (10 s at most) and its body; else 30.",
)
@embedder_options
@debug_option
def serve(
    *,
    indexes: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: str | None,
    insecure: bool,
    hosts: tuple[str, ...],
    cors: tuple[str, ...],
    refresh: float,
    rerankers: tuple[str, ...],
    access_log: bool,
    max_body: int | None,
    max_texts: int | None,
    max_tokens: int | None,
    max_queue: int | None,
    timeout: float | None,
    client_timeout: float | None,
    embedder: str | None,
    pairs: tuple[str, ...],
    **options: Any,
) -> None:
    """Serve indexes over HTTP: a search API, embeddings as OpenAI's API has them, and a page at /.

    An index is called by its directory's last name, or NAME=DIR. --embedder serves an embedder beside those of the
    indexes, or alone; an index that it built is searched with it, and so on its --device.

    \b
    embedkit serve docs.index
    embedkit serve docs.index faq=faq.index --port 8080
    embedkit serve --embedder bundled
    """
    from embedkit.errors import InputError
    from embedkit_cli.server.config import ServerConfig

    if not indexes and embedder is None:
        raise InputError("name an index to serve, or an embedder with --embedder")
    keys = _keys(api_key, api_key_file)
    if host not in _LOOPBACK and not keys and not insecure:
        raise InputError(
            f"--host {host} lets other machines ask: set a key with --api-key-file or EMBEDKIT_API_KEY, or add --insecure"
        )
    own = embedder is not None
    if not own and (pairs or any(v is not None for v in options.values())):
        raise InputError("options of the embedder are given without --embedder: name it")
    config = ServerConfig(
        indexes=_paths(indexes),
        embedder=embedder,
        embedder_options={**parse_pairs(pairs), **given(**options)} if own else {},
        rerankers=_rerankers(rerankers),
        host=host,
        port=port,
        keys=keys,
        hosts=_hosts(host, hosts, bool(keys)),
        cors=_origins(cors),
        refresh=refresh,
        access_log=access_log,
        limits=_limits(
            client_timeout,
            body=max_body,
            texts=max_texts,
            tokens=max_tokens,
            queue=max_queue,
            request_timeout=timeout,
        ),
    )
    _run(config)


def _run(config: ServerConfig) -> None:
    from embedkit.errors import MissingExtraError

    try:
        from embedkit_cli.server.running import serve as run
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("embedkit"):
            raise
        raise MissingExtraError("embedkit serve", "serve") from e
    run(config)


def _limits(client: float | None, **told: float | None) -> Limits:
    from embedkit_cli.server.config import Limits

    limits = given(**told, body_timeout=client)
    if client is not None:
        limits["header_timeout"] = min(client, Limits().header_timeout)
    return Limits(**limits)


def _keys(key: str | None, path: str | None) -> tuple[str, ...]:
    from embedkit.errors import InputError

    if key is not None:
        note(
            "a key on the command line is seen by all users of this machine: EMBEDKIT_API_KEY or --api-key-file hides it"
        )
    keys = [k for k in (key, os.environ.get("EMBEDKIT_API_KEY")) if k is not None]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
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


def _hosts(address: str, told: Sequence[str], with_key: bool) -> tuple[str, ...]:
    """Return the names to answer to; none, for any, where no page could know the key."""
    import re
    import socket

    from embedkit.errors import InputError
    from embedkit_cli.server.config import LOOPBACK

    for name in told:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", name, re.ASCII):
            raise InputError(
                f"--allow-host {name!r} is no name of a host: write it without scheme, port and path, as in box.example"
            )
    if address in _LOOPBACK:
        return (*LOOPBACK, *told)
    if with_key:
        return tuple(told)
    own = socket.gethostname().partition(".")
    return (*LOOPBACK, address, "".join(own), own[0], f"{own[0]}.local", *told)


def _origins(told: Sequence[str]) -> tuple[str, ...]:
    """Return origins as browsers write them."""
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


def _rerankers(told: Sequence[str]) -> dict[str, str]:
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


def _paths(named: Sequence[str]) -> tuple[ServedPath, ...]:
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
            name = path.resolve().name
        if not name:
            raise InputError(f"{text!r} names no index: write DIR or NAME=DIR")
        Manifest.read(path)
        if name in out:
            raise InputError(
                f"two indexes are called {name!r}: name one of them otherwise, as in other={path}"
            )
        out[name] = ServedPath(name, path.resolve())
    return tuple(out.values())
