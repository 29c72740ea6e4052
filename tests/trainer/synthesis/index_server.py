"""The scripted server for `from-index`: a query is made of its passage's words, and a judge counts them.

A query is six words from the middle of the passage. Passages that hold at least half of a query's words answer it, the
one that holds the most first, and of several the longest; a query whose words are too short has no answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.trainer.synthesis import server
from tests.trainer.synthesis.scripted import Scripted

_REPOSITORY = Path(__file__).resolve().parents[3]
_scripted = server.answer


@contextmanager
def index_server(folder: Path, *rules: dict[str, Any]) -> Iterator[Scripted]:
    """Run it with these rules as a process on loopback."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "tests.trainer.synthesis.index_server", str(log), json.dumps(rules)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
    try:
        assert process.stdout is not None
        yield Scripted(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def answer(prompt: str) -> str:
    """Return the right answer to a prompt."""
    if '"answers"' in prompt:
        return json.dumps({"answers": _answering(prompt)})
    passage = re.search(r"<passage>\n(.*)\n</passage>", prompt, re.DOTALL)
    if passage is None:
        return _scripted(prompt)
    words = passage[1].split()
    middle = len(words) // 2
    return json.dumps({"user_query": " ".join(words[max(0, middle - 3) : middle + 3])})


def _answering(prompt: str) -> list[int]:
    query = re.search(r"(?:Query|They typed): (.*)", prompt)
    words = {w for w in (query[1].split() if query else []) if len(w) > 2}
    found: list[tuple[int, int, int]] = []
    parts = re.split(r"(?m)^\[(\d+)\]$", prompt)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        held = sum(word in text.split("\n\nSomebody searches")[0].split("\n\nWhich of")[0] for word in words)
        if words and held * 2 >= len(words):
            found.append((-held, -len(text), int(number)))
    return [number for _, _, number in sorted(found)]


if __name__ == "__main__":
    replaced: Any = server
    replaced.answer = answer
    asyncio.run(server.main())
