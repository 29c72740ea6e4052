"""A scripted server of the Batch API, a process of its own; what it answers to a prompt is `server.answer`.

    python -m tests.trainer.synthesis.batch_server LOG [RULES]

prints its port. LOG gets one line of JSON for each request that changes something. RULES is a JSON object:

looks       after how many looks a batch has ended (1), or {"0": n}: the first one
until       a path: no batch has ended before something is there
slow        {"files": s, "batches": s}: seconds between doing what the first such request asks for and saying so
refuse      {"files" | "batches" | "content" | "list": [status, code, times]}
status      {"1": "expired"}: how the n-th batch ends
answered    how many requests of a batch that is not completed have an answer
problem     [code, message] of a batch that failed
fault       {"every": n, "status": s, "code": c}: one request in n has this instead of an answer
unstructured  requests with a JSON schema are refused
lines       lines that are added to the file of answers; FIRST stands for its first
drop        how many answers are missing, from the end
tokens      [in, out] of each answer
text        what is answered instead
length      how many letters are answered instead
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.trainer.synthesis.server import answer


class State:
    """Hold files and batches."""

    def __init__(self, log: Path, rules: dict[str, Any]) -> None:
        self._log = log.open("a", buffering=1, encoding="utf-8")
        self.rules = rules
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lock = threading.RLock()
        self._refused: dict[str, int] = {}
        self._slowed: set[str] = set()

    def log(self, **facts: Any) -> None:
        """Write a line."""
        self._log.write(json.dumps(facts) + "\n")

    def refusal(self, what: str) -> tuple[int, dict[str, Any]] | None:
        """Return what a kind of request is refused with."""
        rule = self.rules.get("refuse", {}).get(what)
        self._refused[what] = self._refused.get(what, 0) + 1
        if not rule or (rule[2] and self._refused[what] > rule[2]):
            return None
        return rule[0], {"error": {"message": f"told to say {rule[0]}", "code": rule[1]}}

    def delay(self, what: str) -> None:
        """Wait where the first request of a kind is slow."""
        seconds = self.rules.get("slow", {}).get(what, 0)
        if seconds and what not in self._slowed:
            self._slowed.add(what)
            time.sleep(seconds)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Keep a file."""
        with self.lock:
            key = f"file-{len(self.files)}"
            self.files[key] = (name, content)
            self.log(event="upload", file=key, bytes=len(content))
        return self.file(key)

    def file(self, key: str) -> dict[str, Any]:
        """Return what is told of a file."""
        name, content = self.files[key]
        return {"id": key, "object": "file", "bytes": len(content), "filename": name, "purpose": "batch",
                "created_at": 1, "status": "processed"}  # fmt: skip

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a batch."""
        with self.lock:
            key = f"batch_{len(self.batches)}"
            requests = [json.loads(line) for line in self.files[body["input_file_id"]][1].splitlines()]
            batch = {"id": key, "object": "batch", "endpoint": body["endpoint"], "status": "in_progress",
                     "input_file_id": body["input_file_id"], "completion_window": body["completion_window"],
                     "created_at": 1, "metadata": body["metadata"], "looks": 0,
                     "request_counts": {"total": len(requests), "completed": 0, "failed": 0}}  # fmt: skip
            self.batches[key] = batch
            self.log(event="create", batch=key, requests=requests, metadata=body["metadata"])
        return batch

    def look(self, key: str) -> dict[str, Any]:
        """Return a batch; after some looks it has ended."""
        with self.lock:
            batch = self.batches[key]
            batch["looks"] += 1
            self.log(event="look", batch=key)
            looks = self.rules.get("looks", 1)
            looks = looks[key.removeprefix("batch_")] if isinstance(looks, dict) else looks
            may_end = batch["looks"] >= looks and Path(self.rules.get("until", ".")).exists()
            if batch["status"] == "in_progress" and may_end:
                self._end(batch)
            return batch

    def _end(self, batch: dict[str, Any]) -> None:
        rules = self.rules
        batch["status"] = rules.get("status", {}).get(batch["id"].removeprefix("batch_"), "completed")
        if batch["status"] == "failed":
            code, message = rules["problem"]
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": message}]}
            return
        requests = [json.loads(line) for line in self.files[batch["input_file_id"]][1].splitlines()]
        most = len(requests) if batch["status"] == "completed" else rules.get("answered", 0)
        good, bad = [], []
        for i, request in enumerate(requests):
            fault = rules.get("fault")
            line: dict[str, Any] = {"id": f"batch_req_{i}", "custom_id": request["custom_id"]}
            if i >= most:
                error = {"code": f"batch_{batch['status']}", "message": "not in time"}
                bad.append(line | {"response": None, "error": error})
            elif fault and i % fault["every"] == 0:
                body = {"error": {"message": "told so", "code": fault["code"]}}
                bad.append(line | {"response": {"status_code": fault["status"], "body": body}, "error": None})
            elif rules.get("unstructured") and "response_format" in request["body"]:
                body = {"error": {"message": "json_schema is not supported", "code": None}}
                bad.append(line | {"response": {"status_code": 400, "body": body}, "error": None})
            else:
                response = {"status_code": 200, "request_id": "x", "body": self._answer(request["body"])}
                good.append(line | {"response": response, "error": None})
        good = good[: len(good) - rules.get("drop", 0)]
        lines = [json.dumps(line) for line in reversed(good)]  # in no order, as the API says
        if lines or rules.get("lines"):
            more = [line.replace("FIRST", lines[0] if lines else "") for line in rules.get("lines", [])]
            batch["output_file_id"] = self._made("\n".join([*lines, *more]) + "\n")
        if bad:
            batch["error_file_id"] = self._made("".join(json.dumps(line) + "\n" for line in bad))
        batch["request_counts"] |= {"completed": len(good), "failed": len(bad)}

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][0]["content"]
        text = self.rules.get("text") or "x" * self.rules.get("length", 0) or answer(prompt)
        used = self.rules.get("tokens") or [len(str(body["messages"])) // 4, len(text) // 4 + 1]
        message = {"role": "assistant", "content": text}
        return {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": used[0], "completion_tokens": used[1]}}  # fmt: skip

    def _made(self, content: str) -> str:
        key = f"made-{len(self.files)}"
        self.files[key] = ("answers.jsonl", content.encode())
        return key


class Handler(BaseHTTPRequestHandler):
    """Speak /v1/files, /v1/batches and /v1/files/ID/content."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Look, list, or give a file's content."""
        path = self.path.split("?")[0].removeprefix("/v1/")
        state = self.state
        if found := re.fullmatch(r"files/([^/]+)/content", path):
            if refused := state.refusal("content"):
                return self._say(*refused)
            return self._say(200, state.files[found[1]][1])
        if path == "batches":
            if refused := state.refusal("list"):
                return self._say(*refused)
            newest = list(reversed(state.batches.values()))
            return self._say(200, {"object": "list", "data": newest, "has_more": False})
        key = path.removeprefix("batches/")
        if key not in state.batches:
            return self._say(404, {"error": {"message": "no such batch"}})
        return self._say(200, state.look(key))

    def do_POST(self) -> None:
        """Take a file, or make a batch."""
        content = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()  # fmt: skip
        what = self.path.removeprefix("/v1/")
        state = self.state
        if refused := state.refusal(what):
            return self._say(*refused)
        if what == "files":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts: dict[object, tuple[Any, Any]] = {}
            for part in BytesParser(policy=HTTP).parsebytes(head + content).iter_parts():
                field = part.get_param("name", header="content-disposition")
                parts[field] = (part.get_filename(), part.get_payload(decode=True))
            assert parts["purpose"][1] == b"batch"
            made = state.upload(*parts["file"])
        else:
            made = state.create(json.loads(content))
        state.delay(what)
        return self._say(200, made)

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _say(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # whoever asked was killed
            self.close_connection = True


if __name__ == "__main__":
    Handler.state = State(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
