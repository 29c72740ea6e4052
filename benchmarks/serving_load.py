"""Load an HTTP server from some keep-alive connections, each asking again as soon as it is answered.

Reads from stdin one JSON object a line, `{"port", "path", "clients", "seconds", "bodies": [text, …]}` (a null body is a GET),
and answers each with one line: requests, seconds, latencies in ms, statuses that were not 200, own CPU seconds. All requests
are written out before the first is sent, and of an answer only status and length are read: the generator costs little.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from itertools import cycle
from typing import Any

import uvloop

WARM_UP = 0.5


class Client(asyncio.Protocol):
    """One connection; `times` gets the seconds of every request that is answered between the warm-up and the end."""

    def __init__(self, requests: Any, measured_from: float, until: float) -> None:
        self.requests, self.measured_from, self.until = requests, measured_from, until
        self.times: list[float] = []
        self.answers = 0
        self.others: Counter[int] = Counter()
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self.transport: Any = transport
        self.ask()

    def ask(self) -> None:
        """Send the next request, or end."""
        self.head, self.missing = b"", -1
        self.began = time.perf_counter()
        if self.began >= self.until:
            self.transport.close()
            self.done.set_result(None)
            return
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        """Read on until the answer is whole."""
        if self.missing < 0:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            place = self.head.lower().index(b"content-length:") + 15
            self.missing = int(self.head[place : self.head.index(b"\r\n", place)]) + end + 4 - len(self.head)
        else:
            self.missing -= len(data)
        if self.missing <= 0:
            status = int(self.head[9:12])
            now = time.perf_counter()
            self.answers += 1
            if status != 200:
                self.others[status] += 1
            elif self.measured_from <= now < self.until:
                self.times.append(now - self.began)
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell of an end that was not asked for."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


async def load(
    port: int, path: str, clients: int, seconds: float, bodies: list[str | None]
) -> dict[str, Any]:
    """Ask for so many seconds after the warm-up."""
    requests = cycle([_request(port, path, body) for body in bodies])
    loop, busy = asyncio.get_running_loop(), time.process_time()
    begin = time.perf_counter() + WARM_UP
    made = [
        await loop.create_connection(lambda: Client(requests, begin, begin + seconds), "127.0.0.1", port)
        for _ in range(clients)
    ]
    protocols = [protocol for _, protocol in made]
    await asyncio.gather(*(protocol.done for protocol in protocols))
    times = [t for protocol in protocols for t in protocol.times]
    return {
        "requests": len(times),
        "seconds": seconds,
        "answers": sum(protocol.answers for protocol in protocols),
        "ms": [round(t * 1000, 3) for t in times],
        "others": dict(sum((protocol.others for protocol in protocols), Counter())),
        "cpu": time.process_time() - busy,
    }


def _request(port: int, path: str, body: str | None) -> bytes:
    host = f"Host: 127.0.0.1:{port}\r\n"
    if body is None:
        return f"GET {path} HTTP/1.1\r\n{host}\r\n".encode()
    raw = body.encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{host}{kind}\r\n".encode() + raw


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(uvloop.run(load(**json.loads(line)))), flush=True)
