"""A small OpenAI-compatible embedding server on loopback, with deterministic vectors and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 8


def vector(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """Return the server's vector for a text, not of unit length."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return (np.random.default_rng(seed).standard_normal(dim) * 3).astype(np.float32)


@dataclass
class Seen:
    """Keep what one request brought."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float


@dataclass
class Reply:
    """Say how to answer: an error status, a raw body, a delay, or a change to the good answer's items."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    delay: float = 0.0
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    hang_up: bool = False


class EmbeddingServer:
    """Serve `/v1/embeddings`; the next requests take the replies in `script`, later ones are answered well."""

    def __init__(self, dim: int = DIM, knows_base64: bool = True) -> None:
        self.seen: list[Seen] = []
        self.script: deque[Reply] = deque()
        self.otherwise = Reply()
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.seen.append(
                        Seen(body, {k.lower(): v for k, v in self.headers.items()}, time.monotonic())
                    )
                    reply = owner.script.popleft() if owner.script else owner.otherwise
                time.sleep(reply.delay)
                if reply.hang_up:
                    self.close_connection = True
                    return
                content = reply.body
                if content is None and reply.status == 200:
                    plain = body.get("encoding_format") != "base64" or not knows_base64
                    size = body.get("dimensions", dim)
                    vectors = [vector(text, size) for text in body["input"]]
                    items = [
                        {
                            "object": "embedding",
                            "index": i,
                            "embedding": v.tolist() if plain else base64.b64encode(v.tobytes()).decode(),
                        }
                        for i, v in enumerate(vectors)
                    ]
                    content = {
                        "object": "list",
                        "model": "x",
                        "data": reply.change(items) if reply.change else items,
                    }
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> EmbeddingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
