"""Requests as bytes on a socket, for what no HTTP client sends."""

from __future__ import annotations

import socket

from tests.cli.server.conftest import Server


def raw(server: Server, data: bytes, seconds: float = 30) -> bytes:
    """Send bytes as they are; return what came back until the server closed the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    seen = b""
    try:
        while part := connection.recv(65536):
            seen += part
    except ConnectionResetError:
        pass
    return seen


def status(answer: bytes) -> int:
    """Return the status of the first answer."""
    return int(answer.split(b" ", 2)[1])


def head(path: str = "/v1/embeddings", *lines: str) -> bytes:
    """Return the head of a POST."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()
