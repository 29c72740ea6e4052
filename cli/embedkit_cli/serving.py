"""`embedkit serve`: indexes and embedders over HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from embedkit_cli.options import Number, Size, debug_option, embedder_options, given, parse_pairs
from embedkit_cli.serving_options import (
    LOCAL,
    read_hosts,
    read_keys,
    read_limits,
    read_origins,
    read_paths,
    read_rerankers,
)

if TYPE_CHECKING:
    from embedkit_cli.server.config import ServerConfig

# A day.
_LONGEST = 86_400


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process with 0 while it does not serve yet, and when it has ended serving."""

    def end(*_: object) -> None:
        # At once: an import or a compiled thread that is cut off by an exception may end the process by a crash.
        os._exit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


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
    type=Number(min=0.01, max=_LONGEST),
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
    "--timeout", type=Number(min=0.1, max=_LONGEST), metavar="SECONDS", help="Time for an answer; else 60."
)
@click.option(
    "--client-timeout",
    type=Number(min=0.1, max=_LONGEST),
    metavar="SECONDS",
    help="Time for a client to send its headers (10 s at most) and its body; else 30.",
)
@embedder_options
@debug_option
@_ended_by_signals()
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
    keys = read_keys(api_key, api_key_file)
    if host not in LOCAL and not keys and not insecure:
        raise InputError(
            f"--host {host} lets other machines ask: set a key with --api-key-file or EMBEDKIT_API_KEY, or add --insecure"
        )
    own = embedder is not None
    if not own and (pairs or any(v is not None for v in options.values())):
        raise InputError("options of the embedder are given without --embedder: name it")
    config = ServerConfig(
        indexes=read_paths(indexes),
        embedder=embedder,
        embedder_options={**parse_pairs(pairs), **given(**options)} if own else {},
        rerankers=read_rerankers(rerankers),
        host=host,
        port=port,
        keys=keys,
        hosts=read_hosts(host, hosts, bool(keys)),
        cors=read_origins(cors),
        refresh=refresh,
        access_log=access_log,
        limits=read_limits(
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
