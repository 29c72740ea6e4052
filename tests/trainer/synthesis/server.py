"""A scripted OpenAI-compatible server, a process of its own: each prompt has one answer, and faults come when told.

    python server.py LOG [RULES]

prints its port. LOG gets one line of JSON for each request: the prompt, whether a schema came with it, what was done.
RULES is a JSON list, the first that fits wins: {"fault": NAME, "match": text in the prompt, "every": n (one prompt
in n), "tries": m (the first m requests of a prompt; 0: all), "value": what the fault wants, "model": name}.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FIELDS = ("user_query", "positive_document", "hard_negative_document", "input_text", "label", "misleading_label",
          "input", "S1", "S2", "S3", "question", "snippet")  # fmt: skip
_START = "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


def answer(prompt: str) -> str:
    """Return the right answer to a prompt: always the same."""
    source = random.Random(prompt)
    if '"tasks"' in prompt:
        return json.dumps(
            {"tasks": [_words(source, 10) for _ in range(int(re.findall(r"(\d+) ", prompt)[0]))]}
        )
    if '"ranking"' in prompt:
        return json.dumps({"ranking": _ranking(prompt)})
    fields = [name for name in FIELDS if f'"{name}"' in prompt]
    return json.dumps({name: _words(source, 14) for name in fields})


def _ranking(prompt: str) -> list[int]:
    """Return the texts' numbers, those first that hold the most words of the query."""
    query = re.search(r"(?m)^(?:Query|Input): (.*)$", prompt)
    words = set(query[1].split() if query else ())
    found = re.findall(r"(?m)^\[(\d+)\]\n(.*)$", prompt)
    return [n for _, n in sorted((-len(words & set(text.split())), int(number)) for number, text in found)]


def _words(source: random.Random, count: int) -> str:
    """Return words that no other prompt gets."""
    return " ".join(
        "".join(source.choices("abdefgiklmnoprstuv", k=source.randint(2, 9))) for _ in range(count)
    )


class Server:
    """Answer chat completions."""

    def __init__(self, log: Path, rules: list[dict[str, Any]]) -> None:
        self._log = log.open("a", buffering=1, encoding="utf-8")
        self._rules = rules
        self._seen: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._once(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
        body = json.loads(await reader.readexactly(int(size[1]) if size else 0))
        prompt = body["messages"][0]["content"]
        self._seen[prompt] += 1
        rule = self._rule(prompt, body)
        fault = rule["fault"] if rule else "none"
        line = {
            "prompt": prompt,
            "fault": fault,
            "structured": "response_format" in body,
            "model": body["model"],
        }
        line |= {"turns": len(body["messages"]), "key": re.findall(r"(?im)^authorization: *(.*?)\r?$", head)}
        self._log.write(json.dumps(line) + "\n")
        if "/chat/completions" not in head.splitlines()[0]:
            return self._send(writer, 404, {"error": {"message": "no such route"}})
        kept: bool = await getattr(self, f"_{fault.replace('-', '_')}")(writer, body, rule or {})
        return kept

    def _rule(self, prompt: str, body: dict[str, Any]) -> dict[str, Any] | None:
        number = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16)
        for rule in self._rules:
            fits = rule.get("match", "") in prompt and rule.get("model", body["model"]) == body["model"]
            tries = rule.get("tries", 1)
            if fits and number % rule.get("every", 1) == 0 and (not tries or self._seen[prompt] <= tries):
                return rule
        return None

    def _send(self, writer: asyncio.StreamWriter, status: int, body: Any, headers: str = "") -> bool:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(_START.format(status, len(content), headers).encode() + content)
        return True

    def _say(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], text: Any, reason: str = "stop", **more: Any
    ) -> bool:
        usage = {
            "prompt_tokens": len(str(body["messages"])) // 4,
            "completion_tokens": len(str(text)) // 4 + 1,
        }
        message = {"role": "assistant", "content": text, **more}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return self._send(writer, 200, {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                                        "choices": [choice], "usage": usage})  # fmt: skip

    async def _none(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        if delay := rule.get("value"):
            await asyncio.sleep(delay)
        return self._say(writer, body, answer(body["messages"][0]["content"]))

    _slow = _none

    async def _status(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        status, after, code = [*rule["value"], None, None][:3]
        headers = f"Retry-After: {after}\r\n" if after is not None else ""
        return self._send(
            writer, status, {"error": {"message": f"told to say {status}", "code": code}}, headers
        )

    async def _unstructured(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]
    ) -> bool:
        if "response_format" in body:
            return self._send(
                writer, 400, {"error": {"message": "response_format json_schema is not supported"}}
            )
        return await self._none(writer, body, {})

    async def _timeout(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]
    ) -> bool:
        await asyncio.sleep(60)
        return False

    async def _cut(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        writer.write(_START.format(200, 1000, "").encode() + b'{"choices": [')
        await writer.drain()
        return False

    async def _closed(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        return False

    async def _garbage(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]
    ) -> bool:
        writer.write(b"220 mail ready\r\n\r\n")
        await writer.drain()
        return False

    async def _text(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        """Answer with the rule's value, in which ANSWER and PROMPT stand for themselves."""
        prompt = body["messages"][0]["content"]
        text = rule["value"].replace("ANSWER", answer(prompt)).replace("PROMPT", json.dumps(prompt)[1:-1])
        return self._say(writer, body, text, rule.get("reason", "stop"))

    async def _field(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        """Answer rightly, but for the last field, which is the rule's value."""
        fields = json.loads(answer(body["messages"][0]["content"]))
        value = rule["value"]
        if value == "PROMPT":
            value = body["messages"][0]["content"]
        return self._say(writer, body, json.dumps(fields | {list(fields)[-1]: value}))

    async def _truncated(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]
    ) -> bool:
        return self._say(writer, body, answer(body["messages"][0]["content"])[:-9], "length")

    async def _refusal(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]
    ) -> bool:
        return self._say(writer, body, None, refusal="I cannot do that.")

    async def _huge(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        return self._say(writer, body, "x" * rule.get("value", 10_000_000))

    async def _raw(self, writer: asyncio.StreamWriter, body: dict[str, Any], rule: dict[str, Any]) -> bool:
        return self._send(writer, 200, str(rule["value"]).encode())


async def main() -> None:
    """Serve until the process is ended."""
    rules = json.loads(sys.argv[2]) if len(sys.argv) > 2 else []
    server = await asyncio.start_server(Server(Path(sys.argv[1]), rules).serve, "127.0.0.1", 0, limit=1 << 24)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
