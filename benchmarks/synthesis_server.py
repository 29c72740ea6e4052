"""An OpenAI-compatible server that answers at once: what a client adds is then all that takes time.

    python benchmarks/synthesis_server.py

prints its port. The answer is canned, one for each type of the paper, told apart by the fields that the prompt names.
`GET /seen` returns how many requests came since it was last asked, and the seconds from the first to the last.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

DOCUMENT = (
    "Leaf-cutter bees line their nests with discs of leaf that they cut in less than a minute each. A nest holds about a dozen "
    "cells in a row, and each cell holds one egg on a loaf of pollen and nectar. Gardeners who leave hollow stems standing "
    "over the winter keep them near, and roses with round holes in their leaves are the first sign that they have come."
)
#: The first whose field stands in the request is answered.
TYPES = {
    b"user_query": {
        "user_query": "which bees cut round holes into rose leaves",
        "positive_document": DOCUMENT,
        "hard_negative_document": "Round holes in leaves may be a fungus: shot hole disease takes cherries first. " * 3,
    },
    b"misleading_label": {
        "input_text": DOCUMENT,
        "label": "wildlife in gardens",
        "misleading_label": "garden machines",
    },
    b"positive_document": {
        "input": "bees that line their nests with leaves",
        "positive_document": "insects of gardens that build from plants",
    },
    b"S3": {
        "S1": "The ferry to the island was cancelled because of high winds.",
        "S2": "Strong gusts led to the island boat service being called off.",
        "S3": "The ferry to the island was half an hour late because of fog.",
    },
}  # fmt: skip


def _response(body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _completion(fields: dict[str, str]) -> bytes:
    message = {"role": "assistant", "content": json.dumps(fields)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 150, "completion_tokens": 160, "total_tokens": 310}
    return _response(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "instant", "choices": [choice], "usage": usage}
    )  # fmt: skip


ANSWERS = {name: _completion(fields) for name, fields in TYPES.items()}
_SIZE = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Instant(asyncio.Protocol):
    """Answer every request on a connection as soon as it is whole."""

    count = 0
    first = last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            size = _SIZE.search(self._held, 0, end)
            whole = end + 4 + (int(size[1]) if size else 0)
            if len(self._held) < whole:
                return
            request, self._held = self._held[:whole], self._held[whole:]
            self._transport.write(seen() if request.startswith(b"GET") else self._answer(request))

    def _answer(self, request: bytes) -> bytes:
        Instant.last = time.monotonic()
        Instant.first = Instant.first or Instant.last
        Instant.count += 1
        return next(answer for field, answer in ANSWERS.items() if field in request)


def seen() -> bytes:
    """Return the counts, and begin anew."""
    response = _response({"requests": Instant.count, "seconds": Instant.last - Instant.first})
    Instant.count, Instant.first, Instant.last = 0, 0.0, 0.0
    return response


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
