"""Run a server in this process: its socket, its signals, its log, and the line that says it is ready."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
import uvicorn

from embedkit.errors import InputError
from embedkit_cli.output import discard_stdout
from embedkit_cli.server.app import create_app
from embedkit_cli.server.config import ServerConfig
from embedkit_cli.server.protocol import bounded

# For threads that were told to end, and do.
_LAST_SECONDS = 0.5


class _Server(uvicorn.Server):
    """Stop on SIGINT and SIGTERM after the requests under way, and end as a command that did its work."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again at the end: the exit code would be that of a killed process.
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves it out, and it would end with a traceback.
            await self.lifespan.shutdown()


def serve(config: ServerConfig) -> None:
    """Serve until a signal comes. Raises InputError where the port cannot be had, and what opening raises."""
    listening = _bound(config.host, config.port)
    host, port = listening.getsockname()[:2]
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _log_to_stderr(config.access_log)
    errors: list[BaseException] = []

    def opened() -> None:
        try:
            click.echo(f"serving {_what(config)} at {place} (Ctrl-C stops)")
        except OSError:  # nobody reads it
            discard_stdout()

    def failed(error: BaseException) -> None:
        # What fails because the server is stopping is no error.
        if not server.should_exit:
            errors.append(error)
            server.should_exit = True

    limits = config.limits
    server = _Server(
        uvicorn.Config(
            create_app(config, opened, failed),
            http=bounded(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=config.access_log,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.keep_alive),
            timeout_graceful_shutdown=int(limits.grace),
        )
    )
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if errors:
        raise errors[0]
    _leave()


def _leave() -> None:
    """End the process where a thread would keep it: all that may be waited for has been."""
    end = time.monotonic() + _LAST_SECONDS
    for thread in threading.enumerate():
        # Daemons too: Python kills what is in compiled code, and some of that ends the process by a crash.
        if thread is not threading.main_thread():
            thread.join(max(end - time.monotonic(), 0))
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Else the system buffers megabytes of an answer, and a slow reader looks like one who has stopped.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 65_536)
        made.bind((host, port))
        made.listen(2048)
        made.set_inheritable(True)
    except (OSError, OverflowError, UnicodeError) as e:
        raise InputError(_problem(host, port, e)) from None
    return made


def _problem(host: str, port: int, error: OSError | OverflowError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"--host {host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"port {port} is in use: stop what uses it, or choose another with --port (0 takes a free one)"
    if number == errno.EACCES:
        return f"port {port} needs special rights: choose one from 1024 on with --port"
    if number == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all"
    return f"{host}, port {port}, cannot be listened on: {error}"


def _what(config: ServerConfig) -> str:
    count = len(config.indexes)
    if not count:
        return f"embeddings of {config.embedder}"
    return f"{count} index" + ("es" if count > 1 else "")


def _log_to_stderr(access: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # uvicorn warns of every request that is no HTTP: as often as anybody likes to send one.
    for name, level in (("embedkit.server", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    if access:
        logger = logging.getLogger("uvicorn.access")
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
