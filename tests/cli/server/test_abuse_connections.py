"""Clients that are slow, stop reading, leave, or come in crowds: let go of, and nobody else waits for them."""

from __future__ import annotations

import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cli.server.conftest import Server, Start, wait_for
from tests.cli.server.sockets import head, raw, rest, status


@pytest.fixture(autouse=True)
def _lives(server: Server) -> Iterator[None]:
    """After every abuse the server answers as before."""
    yield
    assert server.post("/v1/embeddings", {"input": "still there"}).status == 200


def test_an_endless_chunked_body_is_cut_off(server: Server) -> None:
    """A client that never stops sending is answered 413, or 408 where it is slow, and disconnected."""
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head("/v1/embeddings", "Transfer-Encoding: chunked"))
        with pytest.raises(OSError):
            for _ in range(100_000):
                connection.sendall(chunk)
        assert status(rest(connection)) in (413, 408)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /search HT", b"POST /search HTTP/1.1\r\nHost: localhost\r\nX-Slow: a"],
    ids=["no", "line", "headers"],
)
def test_a_client_whose_headers_do_not_come(server: Server, sent: bytes) -> None:
    """A connection that stays silent, or stops in its headers, is closed after the client's time."""
    answer = raw(server, sent)
    assert (not answer) if not sent else b"the headers did not arrive within 2 s" in answer


def test_headers_that_trickle(server: Server) -> None:
    """A byte every now and then does not extend the time for the headers."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        answer = b""
        # Headers that end nowhere: a server that is late does not get them whole.
        for byte in head("/v1/embeddings", "X-Slow: " + "a" * 2000):
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        answer = rest(connection)
    assert answer == b"" or status(answer) == 408


def test_a_body_that_trickles(server: Server) -> None:
    """A body that does not arrive in the client's time is answered 408 and the connection closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head("/v1/embeddings", "Content-Length: 1000") + b'{"input')
        answer = rest(connection)
    assert status(answer) == 408
    assert b"the body did not arrive within 2 s" in answer


def test_many_slow_clients_hold_up_nobody(server: Server) -> None:
    """While 200 connections send half a request, others are answered."""
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(200)]
    for connection in slow:
        connection.sendall(head("/v1/embeddings", "Content-Length: 1000") + b'{"input')
    assert server.post("/v1/embeddings", {"input": "a"}).status == 200
    for connection in slow:
        connection.close()


_FILE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BODY = json.dumps({"input": ["some text"] * 2048}).encode()
_EMBED = head("/v1/embeddings", f"Content-Length: {len(_BODY)}") + _BODY


_WRONG = head("/v1/embeddings", "Content-Length: 2") + b"{}"


@pytest.mark.parametrize(
    "asked", [_FILE * 8, _EMBED * 24, (_EMBED + _WRONG) * 2], ids=["files", "vectors", "errors"]
)
def test_clients_that_do_not_read(start: Start, asked: bytes) -> None:
    """Long answers of which nothing is taken are given up after the client's time, in pieces or in one; no key helps."""
    server = start("--embedder", "held", "--client-timeout", "1", "--max-queue", "20000")
    server.post("/v1/embeddings", {"input": "a"})
    # The least: a connection that has just been closed may be counted still.
    before = min(server.metric("process_open_fds") for _ in range(5))
    crowd = []
    for _ in range(5):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(asked)
        crowd.append(connection)
    for connection in crowd:
        # An answer is there, of which nothing is taken.
        assert connection.recv(13, socket.MSG_PEEK) == b"HTTP/1.1 200 "
    wait_for(lambda: server.metric("process_open_fds") == before)
    code, stderr = server.stop()
    assert (code, stderr) == (0, "")
    for connection in crowd:
        connection.close()


def test_a_client_that_reads_slowly(start: Start) -> None:
    """A client that goes on reading gets a long answer whole, though that takes it several times the time for either."""
    server = start("--embedder", "held", "--client-timeout", "2", "--timeout", "2")
    expected = 4 * len(server.get("/docs/swagger-ui-bundle.js").body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(_FILE * 4)
        size = 0
        for _ in range(300):
            time.sleep(0.02)
            size += len(connection.recv(8192))
        assert size < expected / 2
        while size < expected and (part := connection.recv(65536)):
            size += len(part)
    assert size >= expected


def test_clients_that_leave(start: Start) -> None:
    """What clients asked who left before their answer, by a reset or not, is not encoded; others are answered."""
    server = start("--embedder", "held")
    hold = server.hold()
    first = threading.Thread(target=server.post, args=("/v1/embeddings", {"input": "the first"}))
    before = len(server.calls)
    first.start()
    wait_for(lambda: len(server.calls) > before)
    body = json.dumps({"input": ["a text of one who leaves"] * 100}).encode()
    crowd = []
    for number in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head("/v1/embeddings", f"Content-Length: {len(body)}") + body)
        crowd.append(connection)
    wait_for(lambda: server.metric("embedkit_queue_texts") == 2000)
    for connection in crowd:
        connection.close()
    wait_for(lambda: server.metric("embedkit_requests_under_way") == 2)
    hold.unlink()
    assert server.post("/v1/embeddings", {"input": "another's text"}).status == 200
    first.join()
    assert sum(server.calls[before:]) == 2
    code, stderr = server.stop()
    assert (code, stderr) == (0, "")


@pytest.fixture
def _many_files() -> Iterator[None]:
    """Let this process and those it starts have two thousand files open: 1,024 is a usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"this machine lets a process have {hard} files open")
    if soft != resource.RLIM_INFINITY and soft < 2000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
def test_more_connections_than_it_takes(start: Start) -> None:
    """A crowd of idle connections beyond the ceiling is turned away, and those inside are answered."""
    server = start("--embedder", "held")
    inside = server.connect()
    inside.connect()
    crowd = []
    for _ in range(1100):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        crowd.append(connection)
    inside.request("GET", "/health")
    assert inside.getresponse().status == 200
    assert status(rest(crowd[-1])) == 503
    for connection in crowd:
        connection.close()


def test_two_hundred_clients_at_once(start: Start) -> None:
    """Each of many clients at once gets the vector of its own text."""
    # They are threads of one process, which may take seconds to write what each has to say.
    server = start("--embedder", "held")
    alone = {
        n: server.post("/v1/embeddings", {"input": "x" * n}).json["data"][0]["embedding"]
        for n in range(1, 21)
    }

    def is_right(n: int) -> bool:
        told = server.post("/v1/embeddings", {"input": "x" * n}).json["data"][0]["embedding"]
        return all(abs(a - b) < 1e-5 for a, b in zip(told, alone[n], strict=True))

    with ThreadPoolExecutor(200) as clients:
        assert all(clients.map(is_right, [1 + i % 20 for i in range(200)]))
