"""Headers, trailers and requests in a row without end, and bodies that were read: what they leave in memory."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.server.conftest import Server, Start, launch
from tests.cli.server.sockets import head, rest, status

_MB = 1_000_000
_FILE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
_CHUNKED = "Transfer-Encoding: chunked"
_LINE = b"X-A: " + b"a" * 60_000 + b"\r\n"
_VALUE = b"a" * 60_000


def _peak(server: Server) -> int:
    """Return the most bytes that the process ever had resident."""
    told = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", told)
    assert found
    return int(found[1]) * 1024


def _unread(server: Server) -> socket.socket:
    """Connect as one who takes as little of an answer as can be."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    return connection


@pytest.fixture(scope="module")
def guarded(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the key `right`."""
    folder = str(tmp_path_factory.mktemp("guarded"))
    running = launch(environment, "--embedder", "held", EMBEDKIT_API_KEY="right", HELD_FOLDER=folder)
    yield running
    assert running.stop() == (0, "")


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (_FILE + _HEALTH[:-2], _LINE),
        (_FILE + _HEALTH[:-2] + b"X: ", _VALUE),
        (_FILE + b"GET /", _VALUE),
        (head("/search", _CHUNKED, "Authorization: Bearer right") + b"0\r\n", _LINE),
        (head("/search", _CHUNKED, "Authorization: Bearer right") + b"0\r\nX: ", _VALUE),
        (head("/search", _CHUNKED) + b"0\r\n", _LINE),
        (head("/search", _CHUNKED) + b"0\r\nX: ", _VALUE),
        (head("/search", _CHUNKED) + b"5;a=", _VALUE),
    ],
    ids=["lines", "value", "url", "trailers", "trailer", "trailers-refused", "trailer-refused", "extension"],
)
def test_headers_without_end(guarded: Server, begun: bytes, piece: bytes) -> None:
    """Behind an answer under way, after a body and inside of one, too, headers beyond 32 KiB end the connection."""
    guarded.get("/health")
    before = _peak(guarded)
    with _unread(guarded) as connection:
        connection.sendall(begun)
        with pytest.raises(ConnectionError):
            for _ in range(500):
                connection.sendall(piece)
    assert guarded.get("/health").status == 200
    assert _peak(guarded) - before < 10 * _MB


def test_requests_in_a_row_are_answered(guarded: Server) -> None:
    """A thousand requests that are sent at once are answered one after the other."""
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as connection:
        connection.sendall(_HEALTH * 999 + _HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert rest(connection).count(b"HTTP/1.1 200 OK\r\n") == 1000


def test_requests_in_a_row_wait_unread(start: Start) -> None:
    """Of what a client asks behind an answer that it does not read, little is taken in."""
    server = start("--embedder", "held")
    server.get("/health")
    before = _peak(server)
    crowd = []
    for _ in range(10):
        connection = _unread(server)
        connection.sendall(_FILE)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            for _ in range(500):
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4000)
        crowd.append(connection)
    assert server.get("/health").status == 200
    assert _peak(server) - before < 40 * _MB
    for connection in crowd:
        connection.close()


def test_a_body_behind_requests_in_a_row(start: Start) -> None:
    """The body of a request that waits for answers before it is not taken in with every one of them."""
    server = start("--embedder", "held")
    server.get("/health")
    before = _peak(server)
    size = 60 * _MB
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
        ThreadPoolExecutor() as beside,
    ):
        answers = beside.submit(rest, connection)
        connection.sendall(_HEALTH * 4000 + head("/search", f"Content-Length: {size}"))
        connection.sendall(b" " * size)
        assert answers.result().count(b"HTTP/1.1 413 ") == 1
    assert _peak(server) - before < 15 * _MB


def test_bodies_are_not_kept(start: Start) -> None:
    """Connections that stay open after large requests keep nothing of them."""
    server = start("--embedder", "held")
    body = b'{"input":"' + b"a" * 7_900_000 + b'"}'
    sent = head("/v1/embeddings", f"Content-Length: {len(body)}") + body
    crowd = []
    before = 0
    for _ in range(40):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(sent)
        assert status(connection.recv(9999)) == 400
        crowd.append(connection)
        before = before or _peak(server)
    assert _peak(server) - before < 60 * _MB
    for connection in crowd:
        connection.close()
