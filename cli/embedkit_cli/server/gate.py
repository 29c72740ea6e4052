"""The middleware every request passes: who asks, how much, how long; what the answer's headers are."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.requests import Request

from embedkit_cli.server.errors import ApiError, as_api_error
from embedkit_cli.server.security import Guard

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from embedkit_cli.server.service import Service

    Endpoint = Callable[[Service, Request], Awaitable[Response]]

_CONTENT = (
    b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _CONTENT),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_WITH_BODY = ("POST", "PUT", "PATCH")
_CLOSE = {"Connection": "close"}
# What the metrics call a request whose client did not wait for its answer.
_LEFT = 499
# Named in metrics; all other paths are counted together.
_ROUTES = frozenset(
    (
        *(
            "/",
            "/health",
            "/ready",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/indexes",
            "/tasks",
            "/search",
            "/map",
        ),
        *("/v1/embeddings", "/v1/models"),
    )
)


class Gate:
    """Pure ASGI: checks before the application sees a request, one shape for every error after it."""

    def __init__(self, app: ASGIApp, service: Service, straight: Mapping[tuple[str, str], Endpoint]) -> None:
        self._app = app
        # By method and path: what is asked thousands of times a second does not walk through the routes.
        self._straight = straight
        self._service = service
        self._limits = service.config.limits
        self._guard = Guard(service.config)
        self._metrics = service.metrics
        self._held = 0  # bytes of the bodies of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        began = time.perf_counter()
        request_id = secrets.token_hex(8)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()), *_HEADERS, (b"x-request-id", request_id.encode())
                ]  # fmt: skip
            await send(message)

        scope["embedkit.id"] = request_id
        scope["embedkit.task"] = asyncio.current_task()  # the connection takes and cancels it when it is lost
        self._metrics.under_way.inc()
        try:
            try:
                await self._pass(scope, receive, answer)
            except Exception as e:
                if status:
                    raise  # the answer has begun: the connection is closed
                # In a variable of this frame, which its traceback knows, it would keep the body until the next collection.
                await as_api_error(e, request_id).response()(scope, receive, answer)
        except asyncio.CancelledError:
            # While an error is sent, too: it waits where the answers before it are not read.
            if scope.pop("embedkit.task", None) is None:
                status = status or _LEFT
            elif not status:
                stopping = ApiError(503, "the server is stopping", headers=_CLOSE)
                await stopping.response()(scope, receive, answer)
        finally:
            scope.pop("embedkit.task", None)
            scope.pop("embedkit.body", None)  # the connection has the scope until its next request
            self._let_go(scope)
            self._metrics.under_way.dec()
            path = scope["path"]
            route = path if path in _ROUTES else "/static" if path.startswith("/static/") else "other"
            self._metrics.answered(route, status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, answer: Send) -> None:
        limits, complete = self._limits, False
        try:
            async with asyncio.timeout(limits.body_timeout) as time_limit:
                announced = _announced(scope)
                await self._check(scope, receive, announced)
                if announced is not None or scope["method"] in _WITH_BODY:
                    scope["embedkit.body"] = await self._body(scope, receive, announced or 0)
                    receive = _replayed(scope["embedkit.body"], receive)
                complete = True
                time_limit.reschedule(asyncio.get_running_loop().time() + limits.request_timeout)

                async def begin(message: Message) -> None:
                    # From here on it is the reader who takes the time; the connection watches that one.
                    time_limit.reschedule(None)
                    await answer(message)

                if scope["method"] == "HEAD":
                    # uvicorn, whose scope stays as it is, leaves the body out.
                    scope = {**scope, "method": "GET"}
                endpoint = self._straight.get((scope["method"], scope["path"]))
                if endpoint is None:
                    await self._app(scope, receive, begin)
                else:
                    await (await endpoint(self._service, Request(scope)))(scope, receive, begin)
        except TimeoutError:
            if not time_limit.expired():
                raise
            if complete:
                said = f"no answer within {limits.request_timeout:g} s: ask for less, or try again later"
                raise ApiError(504, said, code="timeout") from None
            said = f"the body did not arrive within {limits.body_timeout:g} s"
            raise ApiError(408, said, headers=_CLOSE) from None

    async def _check(self, scope: Scope, receive: Receive, announced: int | None) -> None:
        """Raise ApiError for a request that may not pass, after the body that comes with it."""
        try:
            self._guard.check(scope["path"], scope["headers"])
            if sum(len(n) + len(v) for n, v in scope["headers"]) > self._limits.header_bytes:
                raise ApiError(431, "the headers are too large", headers=_CLOSE)
        except ApiError as e:
            if announced is not None:
                await self._drop(scope, receive, announced)
                e.headers |= _CLOSE
            raise

    async def _body(self, scope: Scope, receive: Receive, announced: int) -> bytes:
        """Return the whole body. Raises ApiError 413 for one that is too large, 503 where all together are."""
        most = self._limits.body
        if announced > most:
            await self._drop(scope, receive, announced)
            raise ApiError(413, _too_large(most), headers=_CLOSE)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the connection was closed before the body was complete", headers=_CLOSE)
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                parts.clear()
                await self._drop(scope, receive, self._limits.drain)
                raise ApiError(413, _too_large(most), headers=_CLOSE)
            self._held += len(part)
            scope["embedkit.held"] = size
            if self._held > self._limits.bodies:
                parts.clear()
                await self._drop(scope, receive, announced)
                said = "the server is busy with as many large requests as it holds: try again in 1 s"
                raise ApiError(503, said, headers=_CLOSE | {"Retry-After": "1"})
            if not message.get("more_body", False):
                return b"".join([*parts, part]) if parts else part
            parts.append(part)

    async def _drop(self, scope: Scope, receive: Receive, size: int) -> None:
        """Read on and keep nothing: a client that is still writing when the connection closes sees no answer."""
        self._let_go(scope)
        if any(name == b"expect" for name, _ in scope["headers"]) or size > self._limits.drain:
            return
        left = self._limits.drain
        while left > 0:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

    def _let_go(self, scope: Scope) -> None:
        self._held -= scope.pop("embedkit.held", 0)


def _announced(scope: Scope) -> int | None:
    """Return how many bytes a body is said to have, 0 where that is not said, None where none comes."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 19 else 0
        if name == b"transfer-encoding":
            return 0
    return None


def _too_large(most: int) -> str:
    return f"the body is larger than {most:,} bytes: send less at a time"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once more, and then what comes after it."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again
