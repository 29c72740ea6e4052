"""Call embedkit without a server, for the time that HTTP and batching add.

Reads from stdin one JSON object a line, `{"seconds", "calls"}`, and answers with the milliseconds of each call. The argument is
an embedder, whose calls are lists of texts for `encode_document`, or an index's folder: queries for `Index.search`, ten hits each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

WARM_UP = 0.5


def main() -> None:
    name = sys.argv[1]
    call: Callable[[Any], Any]
    if (Path(name) / "embedkit.json").exists():
        from embedkit_indexes import Index

        index = Index.open(name)
        call = lambda query: index.search(query, k=10)  # noqa: E731
    else:
        from embedkit import get_embedder

        call = get_embedder(name).encode_document
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter() + WARM_UP
        times = []
        for what in cycle(asked["calls"]):
            began = time.perf_counter()
            if began >= begin + asked["seconds"]:
                break
            call(what)
            if began >= begin:
                times.append(round((time.perf_counter() - began) * 1000, 3))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
