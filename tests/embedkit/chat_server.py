"""A small OpenAI-compatible chat server on loopback that rates passages as it is told to."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = dict[str, Any]
#: What a request is answered with: a content made of what was asked, or a status and the whole body.
Reply = Callable[[Asked], str] | tuple[int, Any]


def length_ratings(asked: Asked) -> str:
    """Rate a passage by its length, 0 to 10, as a good model would answer."""
    rated = {str(p["number"]): min(10, len(p["text"]) // 10) for p in asked["passages"]}
    return json.dumps({"scores": rated})


class ChatServer:
    """Serve `/v1/chat/completions`; the next requests take the replies in `script`, later ones `otherwise`."""

    def __init__(self, otherwise: Reply = length_ratings) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: deque[Reply] = deque()
        self.otherwise = otherwise
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    owner.bodies.append(body)
                    owner.keys.append(self.headers.get("Authorization"))
                    reply = owner.script.popleft() if owner.script else owner.otherwise
                status, content = reply if isinstance(reply, tuple) else (200, _completion(reply, body))
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def asked(self, number: int) -> Asked:
        """Return what request `number` asks, as the model reads it."""
        asked: Asked = json.loads(self.bodies[number]["messages"][1]["content"])
        return asked

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def _completion(reply: Callable[[Asked], str], body: dict[str, Any]) -> dict[str, Any]:
    content = reply(json.loads(body["messages"][1]["content"]))
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
    }
