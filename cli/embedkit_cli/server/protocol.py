"""HTTP on one connection, as uvicorn speaks it, with the bounds that it leaves to a proxy."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from embedkit_cli.server.config import Limits
from embedkit_cli.server.errors import ApiError

# Requests of one connection that may wait behind the one that is being answered.
_AHEAD = 8
# Bytes that are parsed at a time: one read may hold thousands of requests.
_PIECE = 4096


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol class for these limits; uvicorn makes one object a connection."""

    class Bounded(HttpToolsProtocol):
        """Close connections whose headers are slow or long, and those whose reader has stopped.

        Of a client that sends requests ahead little is read before those in front are answered.
        """

        _timer: asyncio.TimerHandle | None = None
        _head = 0  # bytes since the last that were body, or that ended headers or a message
        _later = b""
        _watch: asyncio.TimerHandle | None = None
        _unread: float = 0
        _answering: RequestResponseCycle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.flow = _Flow(self)
            if len(self.connections) > limits.connections:
                self._refuse(503, "the server has as many connections as it takes", {"Retry-After": "1"})
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            if self._watch is not None:
                self._watch.cancel()
            # uvicorn tells the request that came last; of several in a row it is an earlier one that is being answered.
            if self._answering is not None:
                self._answering.disconnected = True
                task = self._answering.scope.pop("embedkit.task", None)  # type: ignore[typeddict-item]
                if task is not None:
                    task.cancel()
            super().connection_lost(exc)
            # After a reset uvicorn leaves the timer, and with it all that the last request holds.
            self._unset_keepalive_if_required()
            self._answering = self.cycle = self.scope = self.flow = None  # type: ignore[assignment]
            self.pipeline.clear()
            self._later = b""

        def data_received(self, data: bytes) -> None:
            self._later += data
            self._parse()

        def _parse(self) -> None:
            data, self._later = self._later, b""
            at = 0
            while at < len(data) and len(self.pipeline) <= _AHEAD and not self.transport.is_closing():
                self._parse_piece(data[at : at + _PIECE])
                at += _PIECE
            self._later = data[at:]

        def _parse_piece(self, data: bytes) -> None:
            if self._timer is None and self._between_requests:
                self._await_headers()
            self._head += len(data)
            super().data_received(data)
            if self._head <= limits.header_bytes or self.transport.is_closing():
                return
            if self._between_requests:
                self._refuse(431, "the headers are too large")
            else:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._head = 0
            self._cancel()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._head = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._head = 0
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._answering = cycle
            if not self.transport.get_write_buffer_size():
                self._unread = math.inf
            super()._start_asgi_task(cycle, app)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_reader()
            self._parse()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unread = math.inf

        def timeout_keep_alive_handler(self) -> None:
            if not self.transport.is_closing() and not self.transport.get_write_buffer_size():
                self.transport.close()

        @property
        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _await_headers(self) -> None:
            self._timer = self.loop.call_later(limits.header_timeout, self._slow)

        def _slow(self) -> None:
            if self._head:
                self._refuse(408, f"the headers did not arrive within {limits.header_timeout:g} s")
            else:
                self.transport.close()

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _watch_reader(self) -> None:
            unread = self.transport.get_write_buffer_size()
            if unread and self._watch is None:
                self._unread = unread
                self._watch = self.loop.call_later(limits.body_timeout, self._give_up)

        def _give_up(self) -> None:
            """Let go of a reader who has taken nothing of a long answer for as long as a body may take to arrive."""
            self._watch = None
            if self.transport.get_write_buffer_size() >= self._unread:
                self.transport.abort()
            else:
                self._watch_reader()

        def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
            self._cancel()
            self.transport.write(_plain(ApiError(status, message, headers=headers)))
            self.transport.close()

    return Bounded


class _Flow(FlowControl):
    """Read nothing while as much waits for an answer as may; uvicorn reads on with every answer and `receive`."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        waiting = self._protocol.pipeline
        if not waiting or (len(waiting) < _AHEAD and len(waiting[0][0].body) <= HIGH_WATER_LIMIT):
            super().resume_reading()


def _plain(error: ApiError) -> bytes:
    from http import HTTPStatus

    headers: dict[str, Any] = {
        "content-type": "application/json", "content-length": len(error.body), "connection": "close", **error.headers
    }  # fmt: skip
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        *(f"{n}: {v}" for n, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + error.body
