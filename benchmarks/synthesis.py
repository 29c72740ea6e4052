"""Measure what `embedkit synth generate` adds to the language model: requests a second, CPU time, memory.

    python benchmarks/synthesis.py [--requests 10000] [--more 100000] [--concurrency 64] [--json]

The server is a process of its own on loopback that answers at once, always the same. Each run is a process of its own too;
the second, with more requests, tells whether memory grows with the examples. On a busy machine read the CPU seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TEXTS = {
    "S1": "The ferry to the island was cancelled because of high winds.",
    "S2": "Strong gusts led to the island boat service being called off.",
    "S3": "The ferry to the island was half an hour late because of fog.",
}
CONFIG = """\
examples = {requests}
output = "out"
concurrency = {concurrency}
shares = {{ sts = 1 }}
[[models]]
name = "instant"
base_url = "{url}"
price_input = 0
price_output = 0
"""


def instant_answer() -> bytes:
    message = {"role": "assistant", "content": json.dumps(TEXTS)}
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "instant",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 60, "total_tokens": 210},
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class Instant(asyncio.Protocol):
    """Answer every request on a connection as soon as it is whole."""

    answer = instant_answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            size = re.search(rb"content-length: *(\d+)", self._held[:end], re.IGNORECASE)
            whole = end + 4 + (int(size[1]) if size else 0)
            if len(self._held) < whole:
                return
            self._held = self._held[whole:]
            self._transport.write(self.answer)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def run(config: Path) -> None:
    from embedkit_trainer.synthesis.generate import generate
    from embedkit_trainer.synthesis.settings_file import load_synthesis

    settings = load_synthesis(config)
    began, cpu = time.perf_counter(), time.process_time()
    report = generate(settings)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"stored": report.run.stored, "seconds": seconds, "cpu": cpu, "peak_mib": peak}))


def measure(url: str, requests: int, concurrency: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "synthesis.toml"
        config.write_text(CONFIG.format(requests=requests, concurrency=concurrency, url=url))
        done = subprocess.run(
            [sys.executable, __file__, "--run", config], capture_output=True, text=True, check=True
        )
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["stored"] == requests
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--more", type=int, default=100_000, help="0: one run alone")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        asyncio.run(serve())
        return
    if told.run:
        run(told.run)
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        found = {
            count: measure(url, count, told.concurrency) for count in (told.requests, told.more) if count
        }
    finally:
        server.kill()
        server.wait()
    if told.json:
        print(json.dumps(found))
        return
    for count, run_ in found.items():
        print(
            f"{count:,} requests at concurrency {told.concurrency}: {count / run_['seconds']:,.0f}/s, "
            f"{run_['cpu'] / count * 1000:.2f} ms of CPU each, peak {run_['peak_mib']:,.0f} MiB"
        )
    if len(found) > 1:
        print(
            f"memory, {told.more:,} over {told.requests:,}: {found[told.more]['peak_mib'] / found[told.requests]['peak_mib']:.2f}x"
        )


if __name__ == "__main__":
    main()
