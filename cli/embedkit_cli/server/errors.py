"""Errors as OpenAI's API shapes them; what a client reads names no path and shows no traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from embedkit.errors import (
    EmbedderError,
    InputError,
    MissingExtraError,
    RerankerError,
    ServerError,
    StoreError,
    UnknownNameError,
)

log = logging.getLogger("embedkit.server")
# Of a message; what a request holds may stand in it.
_LONGEST = 500
# What a client may know of what failed; the first that fits.
_FAILED: tuple[tuple[type[Exception], int, str], ...] = (
    (StoreError, 503, "the index cannot be read at present"),
    (OSError, 503, "a file or a connection of this server failed"),
    (ServerError, 503, "a model's server behind this one failed"),
    (EmbedderError, 500, "the embedder failed"),
    (RerankerError, 500, "the reranker failed"),
    (MissingExtraError, 500, "this server lacks a package that the request needs"),
    (Exception, 500, "internal error"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Answer a request with a status and one sentence; `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error: dict[str, Any] = {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """Return the answer."""
        return Response(self.body, self.status, headers=self.headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception, request_id: str) -> ApiError:
    """Return what a client may know of an error; what it may not know is logged under the request's id."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return invalid(sentence(error))
    log.error("request %s failed", request_id, exc_info=error)
    status, said = next((status, said) for kind, status, said in _FAILED if isinstance(error, kind))
    return ApiError(status, f"{said}; the server's log has more under {request_id}")


def sentence(error: InputError) -> str:
    """Return an error's words without its hint for the command line."""
    return error.message if isinstance(error, UnknownNameError) else str(error)


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON; whole numbers of any size, which metadata may hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return orjson.dumps(_written_out(value), option=orjson.OPT_NON_STR_KEYS)


def _written_out(value: Any) -> Any:
    """Return a value in which whole numbers beyond 64 bits, which orjson refuses, are JSON already."""
    if isinstance(value, dict):
        return {name: _written_out(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written_out(one) for one in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    return value
