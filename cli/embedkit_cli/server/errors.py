"""Errors as OpenAI's API shapes them; what a client reads names no path and shows no traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from embedkit.errors import (
    EmbedderError,
    EmbedkitError,
    InputError,
    ServerError,
    UnknownNameError,
)

log = logging.getLogger("embedkit.server")
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
        self.message = message
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
    if isinstance(error, UnknownNameError | InputError):
        return invalid(str(error))
    log.error("request %s failed", request_id, exc_info=error)
    if isinstance(error, OSError):  # StoreError is one
        return ApiError(
            503, f"the index cannot be read at present; the server's log has more under {request_id}"
        )
    if isinstance(error, ServerError):
        return ApiError(
            503, f"the embedding server behind this one failed; the log has more under {request_id}"
        )
    if isinstance(error, EmbedderError | EmbedkitError):
        return ApiError(500, f"the model failed; the server's log has more under {request_id}")
    return ApiError(500, f"internal error; the server's log has more under {request_id}")


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON; whole numbers of any size, which metadata may hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(value, ensure_ascii=False).encode()
