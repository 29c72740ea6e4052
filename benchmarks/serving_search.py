"""What HTTP adds: /search over `Index.search`, and /v1/embeddings over a direct call, one client, in turns.

    python benchmarks/serving_search.py --rounds 5 --seconds 3

Two indexes: examples/corpus under the bundled embedder, and 100,000 texts made of the passages of benchmarks/encode.py (ivf-pq) under a static
embedder, whose encoding takes next to nothing. `direct` is a process that holds index or embedder and calls it; `health` is
what the smallest answer of the same server costs. Built once under .bench/serving.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from encode import passages
from serving import HERE, Worker, bodies, percentile, served

FOLDER = HERE.parent / ".bench" / "serving"
ROWS = 100_000


def corpus() -> Path:
    """Return an index of examples/corpus."""
    place = FOLDER / "corpus.index"
    if not (place / "embedkit.json").exists():
        from embedkit_indexes import Document, Index

        lines = (
            (HERE.parent / "examples" / "corpus" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        )
        rows = map(json.loads, lines)
        Index.build(place, [Document(id=row["_id"], text=row["text"], lang=row["lang"]) for row in rows])
    return place


def large() -> Path:
    """Return an index of many passages under random word vectors."""
    place = FOLDER / f"{ROWS}.index"
    if not (place / "embedkit.json").exists():
        import numpy as np

        from embedkit.embedders.static import split_words
        from embedkit_indexes import Document, EngineConfig, Index

        found, draw = [text.split() for text in passages(5000, 1)], random.Random(1)
        # Halves of two, so that there are enough of them.
        texts = [" ".join(draw.choice(found)[:50] + draw.choice(found)[-50:]) for _ in range(ROWS)]
        words = sorted({word for text in texts for word in split_words(text)})
        vectors = np.random.default_rng(0).standard_normal((len(words), 384)).astype(np.float16)
        with (FOLDER / "words.txt").open("w", encoding="utf-8") as file:
            for word, vector in zip(words, vectors, strict=True):
                file.write(f"{word} {' '.join(map(str, vector.tolist()))}\n")
        documents = (Document(id=f"d{i}", text=text, lang="en") for i, text in enumerate(texts))
        Index.build(place, documents, f"static:{FOLDER / 'words.txt'}", engine=EngineConfig("ivf-pq"))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    places = {"corpus": corpus(), "100,000": large()}
    asked = bodies(0)
    queries = [json.loads(body)["input"] for body in asked["one query"]]
    groups = [json.loads(body)["input"] for body in asked["8 passages"]]
    load = Worker("serving_load.py")
    direct = {name: Worker("serving_direct.py", str(place)) for name, place in places.items()}
    direct["embeddings"] = Worker("serving_direct.py", "bundled")
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        serve = [
            sys.executable,
            "-m",
            "embedkit_cli.main",
            "serve",
            "--embedder",
            "bundled",
            "--port",
            "PORT",
        ]
        named = [f"{name.replace(',', '')}={place}" for name, place in places.items()]
        port, _ = stack.enter_context(served([*serve, *named], {}))

        def ask(path: str, contents: list[str | None]) -> float:
            told = load(port=port, path=path, clients=1, seconds=args.seconds, bodies=contents)
            if told["others"]:
                sys.exit(f"{path}: {told['others']}")
            return percentile(told["ms"], 0.5)

        for turn in range(-1, args.rounds):
            found = {}
            for name in places:
                found[name, "direct"] = statistics.median(direct[name](seconds=args.seconds, calls=queries))
                for snippets in (False, True, "meaning"):
                    told = {"index": name.replace(",", ""), "k": 10, "snippets": snippets}
                    found[name, f"snippets {snippets}"] = ask("/search", [json.dumps({"query": q, **told}) for q in queries])  # fmt: skip
            for name, texts in (("one text", [[q] for q in queries]), ("8 passages", groups)):
                found[name, "direct"] = statistics.median(
                    direct["embeddings"](seconds=args.seconds, calls=texts)
                )
                found[name, "served"] = ask("/v1/embeddings", [json.dumps({"input": t}) for t in texts])
            found["a GET", "health"] = ask("/health", [None])
            if turn >= 0:
                for key, value in found.items():
                    times[key].append(value)
    print(
        f"load {os.getloadavg()[0]:.1f}, {args.rounds} rounds of {args.seconds:g} s; p50 in ms, medians of rounds"
    )
    for (name, way), values in times.items():
        base = times.get((name, "direct"), values)
        added = statistics.median(a - b for a, b in zip(values, base, strict=True))
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        rounds = ", ".join(f"{value:.2f}" for value in values)
        print(
            f"| {name} | {way} | {statistics.median(values):.2f} ({rounds}) | {added:+.2f} | {ratio:.2f} x |"
        )


if __name__ == "__main__":
    main()
