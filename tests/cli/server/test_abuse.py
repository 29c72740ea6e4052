"""What a hostile or broken client sends: refused with a status and a sentence, and the server goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.server.conftest import Server, Start, launch, wait_for
from tests.cli.server.sockets import head, raw, rest, status

MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def _lives(server: Server) -> Iterator[None]:
    """After every abuse the server answers as before."""
    yield
    assert server.post("/v1/embeddings", {"input": "still there"}).status == 200


@pytest.fixture(scope="module")
def guarded(environment: dict[str, str]) -> Iterator[Server]:
    """A server that asks for a key."""
    running = launch(environment, "--embedder", "held", EMBEDKIT_API_KEY="right")
    yield running
    code, stderr = running.stop()
    assert (code, "Traceback" in stderr) == (0, False), stderr


@pytest.mark.parametrize("path", ["/v1/embeddings", "/search", "/nothing", "/health"])
def test_a_body_that_is_announced_too_large(server: Server, path: str) -> None:
    """Content-Length above the limit: 413, whether the body follows or not."""
    answer = server.post(path, b" " * (MEGABYTE + 1))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.message == "the body is larger than 1,000,000 bytes: send less at a time"
    assert status(raw(server, head(path, f"Content-Length: {10**15}"))) == 413
    assert status(raw(server, head(path, f"Content-Length: {2 * MEGABYTE}", "Expect: 100-continue"))) == 413


def test_bodies_that_are_large_together(start: Start) -> None:
    """Above 256 MB of bodies that are held at once the next gets 503 and when to come back; later all is well."""
    # A busy machine takes its time over as many bytes.
    server = start("--embedder", "held", "--max-body", "64MB", "--client-timeout", "300", "--timeout", "300")
    body = b'{"input": "a"}' + b" " * (51 * MEGABYTE)
    before = len(server.calls)
    hold = server.hold()
    answers: list[int] = []
    crowd = [
        threading.Thread(target=lambda: answers.append(server.post("/v1/embeddings", body).status))
        for _ in range(5)
    ]
    crowd[0].start()
    wait_for(lambda: len(server.calls) > before)
    for thread in crowd[1:]:
        thread.start()
    wait_for(lambda: server.metric("embedkit_queue_texts") == 4)
    answer = server.post("/v1/embeddings", b" " * 2 * MEGABYTE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.message.startswith("the server is busy")
    hold.unlink()
    for thread in crowd:
        thread.join()
    assert answers == [200] * 5
    assert server.post("/v1/embeddings", body).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer wrong"}, {"Host": "evil.example"}, {"Origin": "https://evil.example"}],
    ids=["key", "host", "origin"],
)
def test_who_may_not_ask_is_told_so_after_a_large_body(guarded: Server, headers: dict[str, str]) -> None:
    """A refusal reaches the client that is still sending, as the one answer on its connection."""
    server = guarded
    for method, size in (("POST", 7 * MEGABYTE), ("DELETE", 7 * MEGABYTE), ("POST", 10)):
        answer = server.ask(
            method, "/v1/embeddings", b" " * size, {"Authorization": "Bearer right"} | headers
        )
        assert answer.status in (401, 421, 403)
        assert answer.headers["connection"] == "close"
    lines = ["Host: localhost", *(f"{name}: {value}" for name, value in headers.items())][-2:]
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    sent = "\r\n".join(["GET /v1/models HTTP/1.1", *lines, "Transfer-Encoding: chunked", "", ""]).encode()
    seen = raw(server, sent + chunk * 100 + b"0\r\n\r\n")
    assert status(seen) in (401, 421, 403)
    assert seen.count(b"HTTP/1.1 ") == 1


def test_a_body_that_no_endpoint_wants(server: Server) -> None:
    """A body sent with GET or DELETE is read past: the connection's next request is answered."""
    connection = server.connect()
    for method, path, code in (("GET", "/health", 200), ("DELETE", "/search", 405), ("GET", "/health", 200)):
        connection.request(method, path, b"x" * 900_000)
        answer = connection.getresponse()
        assert (answer.status, answer.read() != b"") == (code, True)
    connection.close()


_ODD = [
    "http://[",
    "http://",
    "http://[::1",
    "null",
    "//",
    "http://localhost\\",
    "é",
    "a" * 20_000,
    "http://%",
    ",",
]


@pytest.mark.parametrize(
    "name", ["Origin", "Host", "Authorization", "Sec-Fetch-Site", "Content-Type", "Expect"]
)
def test_odd_headers(guarded: Server, name: str) -> None:
    """Whatever stands in a header that says who asks, the answer is an error of that, and no 500."""
    for value in _ODD:
        for path in ("/health", "/v1/embeddings"):
            method, body = ("GET", None) if path == "/health" else ("POST", {"input": "a"})
            answer = guarded.ask(method, path, body, {name: value.encode().decode("latin-1")})
            assert answer.status in (200, 401, 403, 421), (value, answer.body)
            if name == "Origin":
                assert answer.status == 403, value
            if name == "Host":
                assert answer.status == 421, value


def test_a_chunked_body_that_never_says_its_length(start: Start) -> None:
    """Chunks above the limit: 413, and the server's memory does not grow with what is sent on."""
    server = start("--embedder", "held", "--max-body", "1MB", "--client-timeout", "60")
    before = server.metric("process_resident_memory_bytes")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=90) as connection:
        connection.sendall(head("/v1/embeddings", "Transfer-Encoding: chunked"))
        for _ in range(600):  # 39 MB
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\n")
        assert status(rest(connection)) == 413
    assert server.metric("process_resident_memory_bytes") - before < 20 * MEGABYTE


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"input": "\xff\xfe"}', "the body is no JSON"),
        (b'{"input": "caf\xe9"}', "the body is no JSON"),
        (b'{"input": "\\ud800"}', "the body is no JSON"),
        (b'{"input": "\\udfff\\ud800"}', "the body is no JSON"),
        (b'{"input": "a", "dimensions": NaN}', "the body is no JSON"),
        (b'{"input": "a", "dimensions": Infinity}', "the body is no JSON"),
        (b'{"input": "a", "dimensions": 1e999}', "the body is no JSON"),
        (b'{"input": "a", "dimensions": 8.5}', "dimensions: input should be a valid integer"),
        (b"", "the body is no JSON"),
        (b"input=a", "the body is no JSON"),
        (b"\x00" * 100, "the body is no JSON"),
        (b"\xef\xbb\xbf{}", "the body is no JSON"),
        (b'"text"', "the body is no JSON object"),
        (b"null", "the body is no JSON object"),
        (b"[" * 100_000, "the body is no JSON"),
        (b'{"input": ' * 100_000, "the body is no JSON"),
        (b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}", "input: token arrays are not taken"),
        (b"{" + b",".join(b'"k%d": 1' % i for i in range(50_000)) + b"}", "there is no field 'k0'"),
        (b'{"input": [' + b",".join([b"1"] * 300_000) + b"]}", "input: 300,000 texts are too many"),
        (b'{"input": "a", "input": 5}', "input: give a text or a list of texts"),
        (b'{"input": "a", "' + b"x" * 500_000 + b'": 1}', "there is no field 'xxxx"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_what_is_no_sound_json(server: Server, body: bytes, said: str) -> None:
    """Broken UTF-8, half surrogate pairs, NaN, infinity, depth and masses of keys: 400 and one short sentence."""
    for path in ("/v1/embeddings", "/search"):
        answer = server.post(path, body)
        assert answer.status == 400
        assert len(answer.message) < 400
    assert said in server.post("/v1/embeddings", body).message


@pytest.mark.parametrize("depth", [65, 300, 490])
def test_filters_that_are_too_deep(server: Server, depth: int) -> None:
    """A filter nested beyond what a person writes is refused, as an object and as text."""
    condition: Any = {"test": "=", "name": "year", "value": 2020}
    text = "year = 2020"
    for _ in range(depth):
        condition, text = {"not": condition}, f"not ({text})"
    for where in (condition, text):
        answer = server.post("/search", {"query": "a", "where": where})
        assert answer.status == 400
        assert "levels" in answer.message


def test_filters_that_are_too_wide(server: Server) -> None:
    """Thousands of conditions or values are answered; tens of thousands are refused before they are looked at."""
    one = {"test": "=", "name": "year", "value": 2020}
    told = {
        "or": {"or": [one] * 2000},
        "in": {"test": "in", "name": "year", "values": list(range(10_000))},
        "wide": {"or": [one] * 10_000},
        "values": {"test": "in", "name": "year", "values": list(range(100_000))},
        "text": " and ".join(["year = 1"] * 1000),
        "long": " and ".join(["year = 1"] * 10_000),
        "open": "(" * 500_000,
    }
    answers = {name: server.post("/search", {"query": "a", "where": where}) for name, where in told.items()}
    assert [name for name, answer in answers.items() if answer.status == 200] == ["or", "in", "text"]
    assert "the filter holds more than 20,000 values" in answers["wide"].message
    assert "more than 20,000" in answers["open"].message


@pytest.mark.parametrize(
    "name", ["../shop", "/", ".", "", "shop\x00", "shop/../shop", "C:\\", "SHOP", "%2e", "💥" * 1000]
)
def test_names_that_are_paths(server: Server, name: str) -> None:
    """Index, task and model names are looked up in tables: whatever else they hold, they are unknown."""
    told = [
        server.post("/search", {"query": "a", "index": name}),
        server.post("/search", {"query": "a", "tasks": [name]}),
        server.post("/v1/embeddings", {"input": "a", "task": name}),
        server.post("/v1/embeddings", {"input": "a", "model": name}),
    ]
    assert [t.status for t in told] == ([400] * 4 if len(name) > 200 else [404, 400, 400, 404])
    assert all(len(t.message) < 400 for t in told)


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Big: " + "a" * 40_000],
        [f"X-{i}: a" for i in range(6000)],
        ["Cookie: " + "b" * 10_000_000],
    ],
    ids=["long", "many", "endless"],
)
def test_huge_headers(server: Server, lines: list[str]) -> None:
    """Headers beyond 32 KiB are refused with 431, or the connection is closed while they still come."""
    data = head("/health", *lines)
    try:
        answer = raw(server, data)
    except OSError:
        return
    assert answer == b"" or status(answer) == 431


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /hällo HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["tls", "version", "short", "negative", "smuggled", "chunk", "umlaut", "header", "url"],
)
def test_what_is_no_http(server: Server, data: bytes) -> None:
    """TLS, broken request lines and lengths, smuggling: 4xx or a closed connection, never 500."""
    answer = raw(server, data)
    assert answer == b"" or 400 <= status(answer) < 500


def test_a_websocket_is_not_spoken(server: Server) -> None:
    """An upgrade is answered as the plain request that it also is."""
    told = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "a",
        "Sec-WebSocket-Version": "13",
    }
    assert server.get("/health", **told).status == 200


def test_methods_that_no_route_takes(server: Server) -> None:
    """405 with an Allow header; HEAD is a GET without the body."""
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = server.ask(method, "/search")
        assert (answer.status, answer.headers["allow"]) == (405, "POST"), method
    head = server.ask("HEAD", "/health")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "15")


def test_metrics_do_not_grow_with_what_is_asked(server: Server) -> None:
    """Unknown paths, models and indexes make no new labels."""
    server.get("/first-unknown")
    server.post("/search", {"query": "a", "index": "first-unknown"})
    server.get("/metrics")
    before = len(server.get("/metrics").body.splitlines())
    for i in range(50):
        server.get(f"/unknown-{i}")
        server.post("/search", {"query": "a", "index": f"unknown-{i}"})
    after = server.get("/metrics").body.splitlines()
    assert len(after) - before < 12
    assert not any(b"unknown" in line for line in after)
